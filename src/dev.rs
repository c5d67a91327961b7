//! A whole cluster in one process, over real loopback sockets: for trying things out.
//!
//! Every region has a thread and a runtime of its own, as it would have a machine of its own; between them are the links,
//! which can be cut. Nothing but the links knows that the regions share a process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use isle_node::{LinkState, Node, NodeState};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::config::{Config, Limits, Listen, Peer, StoreLimits};
use crate::links::Links;
use crate::server::{self, Ports, ServerError};

/// Between the ports of one region and of the next.
const PORTS_A_REGION: u16 = 10;
const READY_POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
pub struct Plan {
    pub regions: Vec<String>,
    /// Region i serves clients at `port + 10 i`, peers one above, HTTP two above.
    pub port: u16,
    pub link_delay: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("{0}")]
    Plan(String),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("region {region}: {source}")]
    Region { region: String, source: ServerError },
    #[error("a link cannot be made: {0}")]
    Link(std::io::Error),
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// Where a region is.
#[derive(Clone, Debug)]
pub struct Endpoints {
    pub region: String,
    pub client: SocketAddr,
    pub http: SocketAddr,
}

impl Plan {
    pub fn endpoints(&self) -> Vec<Endpoints> {
        let listens = self.regions.iter().enumerate().map(|(at, region)| (region, self.listen(at)));
        listens
            .map(|(region, listen)| Endpoints { region: region.clone(), client: listen.client, http: listen.http })
            .collect()
    }

    fn listen(&self, region: usize) -> Listen {
        let base = self.port + PORTS_A_REGION * region as u16;
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Listen { client: at(base), peer: at(base + 1), http: at(base + 2) }
    }

    fn check(&self) -> Result<(), DevError> {
        let highest = u32::from(self.port) + u32::from(PORTS_A_REGION) * self.regions.len() as u32;
        if self.regions.is_empty() {
            return Err(DevError::Plan("at least one region is needed".to_owned()));
        }
        if highest > u32::from(u16::MAX) || self.port == 0 {
            let fact = format!("{} regions do not fit above port {}", self.regions.len(), self.port);
            return Err(DevError::Plan(fact));
        }
        Ok(())
    }
}

/// Runs the cluster until `stop` is true. `ready` is called once every region serves and all links are up.
pub async fn run(
    plan: &Plan,
    data_dir: &Path,
    stop: watch::Receiver<bool>,
    ready: impl FnOnce(),
) -> Result<(), DevError> {
    plan.check()?;
    let links = Links::new(&plan.regions, plan.link_delay);
    let mut proxies = JoinSet::new();
    let configs = configs(plan, data_dir, &links, &mut proxies).await?;
    let stop_regions = watch::Sender::new(false);
    let (served, mut serving) = mpsc::unbounded_channel();
    let (ended, mut endings) = mpsc::unbounded_channel();
    let mut threads = Vec::new();
    for config in configs {
        let ports = Ports::bind(&config).await?;
        let region = RegionThread { config, links: links.clone(), stop: stop_regions.subscribe() };
        threads.push(region.start(ports, served.clone(), ended.clone())?);
    }
    drop((served, ended));

    let until_ready = async {
        let mut nodes = Vec::new();
        while let Some(node) = serving.recv().await {
            nodes.push(node);
            if nodes.len() == plan.regions.len() {
                break;
            }
        }
        wait_until_linked(&nodes).await;
        ready();
        std::future::pending::<std::convert::Infallible>().await
    };
    let failed = tokio::select! {
        never = until_ready => match never {},
        () = stopped(stop) => None,
        // A region ends before it is told to only if something is wrong.
        ending = endings.recv() => ending,
    };
    stop_regions.send_replace(true);
    let mut failures: Vec<DevError> = failed.into_iter().flatten().collect();
    while let Some(ending) = endings.recv().await {
        failures.extend(ending);
    }
    for thread in threads {
        if thread.join().is_err() {
            failures.push(DevError::Plan("a region's thread broke down".to_owned()));
        }
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}

async fn configs(
    plan: &Plan,
    data_dir: &Path,
    links: &Links,
    proxies: &mut JoinSet<()>,
) -> Result<Vec<Config>, DevError> {
    let mut configs = Vec::new();
    for (at, region) in plan.regions.iter().enumerate() {
        let mut config = Config {
            cluster: "dev".to_owned(),
            region: region.clone(),
            jurisdiction: jurisdiction_of(region),
            data_dir: data_dir.join(region),
            listen: plan.listen(at),
            // Whoever presses Ctrl-C waits for this.
            limits: Limits { drain_timeout: Duration::from_secs(2), ..Limits::default() },
            // Several regions share one machine's memory.
            store: StoreLimits { overlay_bytes_max: 128 << 20, ..StoreLimits::default() },
            ..Config::default()
        };
        for (other_at, other) in plan.regions.iter().enumerate().filter(|(other_at, _)| *other_at != at) {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(DevError::Link)?;
            let proxy = listener.local_addr().map_err(DevError::Link)?;
            let target = plan.listen(other_at);
            proxies.spawn(links.clone().serve(listener, region.clone(), other.clone(), target.peer));
            config.peers.push(Peer {
                region: other.clone(),
                jurisdiction: jurisdiction_of(other),
                endpoint: format!("http://{proxy}"),
                client_endpoint: Some(format!("http://{}", target.client)),
                tls_name: None,
                egress_usd_per_gb: None,
            });
        }
        config.validate().map_err(|faults| DevError::Plan(faults.to_string()))?;
        configs.push(config);
    }
    Ok(configs)
}

/// What clouds call the place: the first part of `eu-west-1`.
fn jurisdiction_of(region: &str) -> String {
    region.split('-').next().unwrap_or(region).to_owned()
}

struct RegionThread {
    config: Config,
    links: Links,
    stop: watch::Receiver<bool>,
}

impl RegionThread {
    fn start(
        self,
        ports: Ports,
        served: mpsc::UnboundedSender<Arc<Node>>,
        ended: mpsc::UnboundedSender<Option<DevError>>,
    ) -> Result<JoinHandle<()>, DevError> {
        let ports = ports.detach()?;
        let region = self.config.region.clone();
        let name = format!("region {region}");
        let body = move || {
            let ending = self.run(ports, served).err();
            // Nobody listens only if the cluster has ended, and then nobody wants to know.
            let _ = ended.send(ending.map(|source| DevError::Region { region, source }));
        };
        std::thread::Builder::new().name(name).spawn(body).map_err(DevError::Thread)
    }

    fn run(self, ports: server::DetachedPorts, served: mpsc::UnboundedSender<Arc<Node>>) -> Result<(), ServerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| ServerError::Serve(error.to_string()))?;
        runtime.block_on(async {
            let ports = ports.attach()?;
            let serving = |node: &Arc<Node>| _ = served.send(node.clone());
            server::run(&self.config, ports, Some(self.links), self.stop, serving).await
        })
    }
}

async fn wait_until_linked(nodes: &[Arc<Node>]) {
    let linked = |node: &Arc<Node>| {
        let status = node.status();
        let up = status.peers.iter().all(|peer| peer.receiving && !matches!(peer.state, LinkState::Down));
        // So that keyspaces can be made from the first moment on.
        let agreed = status.metadata.revision > 0 && status.metadata.has_majority;
        up && agreed && matches!(status.state, NodeState::Serving)
    };
    while !nodes.iter().all(linked) {
        tokio::time::sleep(READY_POLL).await;
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
