//! One region's node with its ports, from a config.
//!
//! `open` makes the node; `Region` serves it over any listeners, so that production, `isle dev` and simulations serve the
//! same thing; `run` does both over TCP, until told to stop.
//!
//! ```text
//! stop ─▶ health: not serving ─▶ clients: no new requests, drain ─▶ node: sync, close ─▶ peers, HTTP
//! ```

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isle_model::{Incarnation, KeyspaceId, Region as RegionName, TokenKey};
use isle_node::peer::Connector;
use isle_node::{
    Clock, EgressMeter, KeyspaceConfig, Node, NodeConfig, NodeState, Parts, PeerConfig, StartError, SyncDriver,
    SystemClock,
};
use isle_proto::v1::cluster_server::ClusterServer;
use isle_proto::v1::dev_links_server::DevLinksServer;
use isle_proto::v1::keyspaces_server::KeyspacesServer;
use isle_proto::v1::kv_server::KvServer;
use isle_proto::v1::peer_server::PeerServer;
use isle_store::disk::{Disk, RealDisk};
use isle_store::{BootIdentity, OpenError, Progress, RecoveryReport, Store, StoreConfig, ViewPlace};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceBuilder;
use tower::layer::util::{Identity as NoLayer, Stack};

use crate::admission::{AdmissionLayer, Bounds};
use crate::causes::causes;
use crate::config::{self, Config};
use crate::connection::{self, Dial, Incoming, TcpDialer};
use crate::links::Links;
use crate::metrics::NodeVitals;
use crate::page_token::PageKey;
use crate::peer_client::{CONNECTION_WINDOW_BYTES, PEER_MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES, TonicConnector};
use crate::request_context::RequestContextLayer;
use crate::services::cluster::{ClusterService, Facts};
use crate::services::dev_links::DevLinksService;
use crate::services::keyspaces::KeyspacesService;
use crate::services::kv::KvService;
use crate::services::peer::PeerService;
use crate::services::peer_wire::Identity;
use crate::tls::{self, PeerNames, Tls, TlsError};
use crate::{boot, http};

/// Above a batch of 4 MiB, so that one that is a little too large is told which field is.
const CLIENT_MESSAGE_BYTES_MAX: usize = 8 << 20;
/// The largest policy, with all the prefixes and labels that it may have, is a third of it.
const KEYSPACE_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// A peer that dials sends rows and cursors, and what its clients ask of homes here: a batch, with room for who asks.
const PEER_REQUEST_BYTES_MAX: usize = 5 << 20;
/// Of requests that are still coming in: 64 batches of the largest at the same moment.
const CLIENT_RECEIVING_BYTES_MAX: usize = 256 << 20;
const CLIENT_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const CLIENT_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// As short as the dialling side's: a sender, too, has to know within 3 s that nobody listens.
const PEER_KEEPALIVE: Duration = Duration::from_secs(1);
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
const HEALTH_NAMES: [&str; 4] = ["", "isle.v1.Kv", "isle.v1.Keyspaces", "isle.v1.Cluster"];

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{port} port {address}: {source}")]
    Bind { port: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("data directory {path}: {source}")]
    DataDir { path: String, source: std::io::Error },
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Start(#[from] StartError),
    #[error("[tls]: {0}")]
    Tls(#[from] TlsError),
    #[error("cluster_key_file {path}: {fact}")]
    ClusterKey { path: String, fact: String },
    #[error("serving failed: {0}")]
    Serve(String),
    #[error("the node stopped by itself: {0}")]
    Stopped(String),
}

/// Where a node keeps its data.
pub struct Storage {
    pub disk: Arc<dyn Disk>,
    pub place: ViewPlace,
    pub boot: BootIdentity,
}

impl Storage {
    /// A directory of this machine; it is made if needed.
    pub fn directory(path: &Path) -> Result<Storage, ServerError> {
        let fault = |source| ServerError::DataDir { path: path.display().to_string(), source };
        let disk = RealDisk::open(path.to_owned()).map_err(fault)?;
        Ok(Storage { disk: Arc::new(disk), place: ViewPlace::Directory(path.to_owned()), boot: boot::identity(path) })
    }
}

/// What differs between production and simulation.
pub struct Seams {
    pub storage: Storage,
    /// Dials the other regions.
    pub connector: Arc<dyn Connector>,
    /// What the connector counts into.
    pub egress: Arc<EgressMeter>,
    pub clock: Arc<dyn Clock>,
    /// Of this run; never used before.
    pub incarnation: Incarnation,
    pub seed: u64,
    pub sync: SyncDriver,
}

impl Seams {
    pub fn production(config: &Config, storage: Storage, dialer: Arc<dyn Dial>) -> Seams {
        let egress: Arc<EgressMeter> = Arc::default();
        Seams {
            storage,
            connector: Arc::new(TonicConnector::new(dialer, identity(config), egress.clone())),
            egress,
            clock: Arc::new(SystemClock::new()),
            incarnation: boot::incarnation(),
            seed: boot::seed(),
            sync: SyncDriver::Threads,
        }
    }
}

/// A node, and what its ports need to know.
pub struct Region {
    node: Arc<Node>,
    facts: Arc<Facts>,
    identity: Identity,
    pages: PageKey,
    /// Where peers show certificates.
    names: Option<Arc<PeerNames>>,
    bounds: Bounds,
    /// Of `isle dev`.
    links: Option<Links>,
}

/// Opens the storage and starts the node. It replicates at once, and serves when `Region` is asked to.
pub fn open(
    config: &Config,
    seams: Seams,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Region, RecoveryReport), ServerError> {
    let Storage { disk, place, boot } = seams.storage;
    let cluster_key = cluster_key(config)?;
    let (store, writers, report) = Store::open(store_config(config), disk, place, boot, seams.incarnation, progress)?;
    let Seams { connector, egress, clock, seed, sync, .. } = seams;
    let parts = Parts { store, writers, clock, connector, egress, seed, sync };
    let node = Node::start(node_config(config, cluster_key), parts)?;
    let region = Region {
        node,
        facts: Arc::new(Facts::of(config)),
        identity: identity(config),
        pages: PageKey::new(cluster_key),
        names: names(config)?,
        bounds: Bounds {
            requests_max: config.limits.requests_max,
            message_bytes_max: CLIENT_MESSAGE_BYTES_MAX,
            receiving_bytes_max: CLIENT_RECEIVING_BYTES_MAX,
            receive_timeout: config.limits.receive_timeout,
        },
        links: None,
    };
    Ok((region, report))
}

fn names(config: &Config) -> Result<Option<Arc<PeerNames>>, TlsError> {
    config.tls.as_ref().map(|_| PeerNames::of(&config.peers).map(Arc::new)).transpose()
}

/// Who a node is to the others.
pub fn identity(config: &Config) -> Identity {
    Identity { cluster: config.cluster.clone(), region: RegionName::new(&config.region) }
}

type ClientRouter = Router<Stack<ServiceLayers, NoLayer>>;
type ServiceLayers = Stack<AdmissionLayer, Stack<RequestContextLayer, NoLayer>>;

impl Region {
    /// Lets the region's endpoint steer the links of `isle dev`.
    pub fn with_links(self, links: Links) -> Region {
        Region { links: Some(links), ..self }
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Serves clients until `stop`, then finishes what has begun.
    pub async fn serve_clients(&self, incoming: Incoming, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let router = self.client_router().map_err(|error| ServerError::Serve(error.to_string()))?.add_service(health);
        let watched = self.report_health(&reporter);
        let stop = async {
            stop.await;
            report(&reporter, ServingStatus::NotServing).await;
        };
        let served = router.serve_with_incoming_shutdown(incoming, stop);
        tokio::select! {
            served = served => served.map_err(|error| ServerError::Serve(causes(&error))),
            never = watched => match never {},
        }
    }

    fn client_router(&self) -> Result<ClientRouter, tonic_reflection::server::Error> {
        let node = || self.node.clone();
        let kv = KvServer::new(KvService::new(node(), self.pages.clone(), self.bounds.requests_max))
            .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(CLIENT_MESSAGE_BYTES_MAX);
        let keyspaces = KeyspacesServer::new(KeyspacesService::new(node(), self.pages.clone()))
            .max_decoding_message_size(KEYSPACE_MESSAGE_BYTES_MAX);
        let cluster = ClusterServer::new(ClusterService::new(node(), self.facts.clone()));
        let region = self.identity.region.to_string();
        let links = self.links.clone().map(|links| DevLinksServer::new(DevLinksService::new(links, region)));
        let layers = ServiceBuilder::new().layer(RequestContextLayer).layer(AdmissionLayer::new(self.bounds));
        Ok(Server::builder()
            .layer(layers.into_inner())
            .http2_keepalive_interval(Some(CLIENT_KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(CLIENT_KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .add_service(kv)
            .add_service(keyspaces)
            .add_service(cluster)
            .add_service(self.reflection().build_v1()?)
            .add_service(self.reflection().build_v1alpha()?)
            .add_optional_service(links))
    }

    /// Lists what is served here, and no more.
    fn reflection(&self) -> tonic_reflection::server::Builder<'static> {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(isle_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("isle.v1.Kv")
            .with_service_name("isle.v1.Keyspaces")
            .with_service_name("isle.v1.Cluster")
            .with_service_name("grpc.health.v1.Health");
        if self.links.is_some() { builder.with_service_name("isle.v1.DevLinks") } else { builder }
    }

    async fn report_health(&self, reporter: &HealthReporter) -> std::convert::Infallible {
        loop {
            let serving = !matches!(
                self.node.status().state,
                NodeState::Completing | NodeState::Joining { .. } | NodeState::Leaving | NodeState::Stopped { .. }
            );
            report(reporter, if serving { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
            tokio::time::sleep(HEALTH_INTERVAL).await;
        }
    }

    /// Serves other regions until `stop`.
    pub async fn serve_peers(&self, incoming: Incoming, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let peer = PeerServer::new(PeerService::new(self.node.clone(), self.identity.clone(), self.names.clone()))
            .max_decoding_message_size(PEER_REQUEST_BYTES_MAX)
            .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
        let served = Server::builder()
            .http2_keepalive_interval(Some(PEER_KEEPALIVE))
            .http2_keepalive_timeout(Some(PEER_KEEPALIVE))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .add_service(peer)
            .serve_with_incoming_shutdown(incoming, stop);
        served.await.map_err(|error| ServerError::Serve(causes(&error)))
    }
}

async fn report(reporter: &HealthReporter, status: ServingStatus) {
    for name in HEALTH_NAMES {
        reporter.set_service_status(name, status).await;
    }
}

/// The TCP ports of a node.
pub struct Ports {
    client: TcpListener,
    peer: TcpListener,
    http: TcpListener,
}

impl Ports {
    pub async fn bind(config: &Config) -> Result<Ports, ServerError> {
        let listen = &config.listen;
        Ok(Ports {
            client: bind("client", listen.client).await?,
            peer: bind("peer", listen.peer).await?,
            http: bind("http", listen.http).await?,
        })
    }
}

/// The same, between runtimes: a listener of tokio belongs to the one it was made in.
pub struct DetachedPorts {
    client: std::net::TcpListener,
    peer: std::net::TcpListener,
    http: std::net::TcpListener,
}

impl Ports {
    pub fn detach(self) -> Result<DetachedPorts, ServerError> {
        let detach = |listener: TcpListener| listener.into_std().map_err(|error| ServerError::Serve(error.to_string()));
        Ok(DetachedPorts { client: detach(self.client)?, peer: detach(self.peer)?, http: detach(self.http)? })
    }
}

impl DetachedPorts {
    pub fn attach(self) -> Result<Ports, ServerError> {
        let attach = |listener: std::net::TcpListener| {
            TcpListener::from_std(listener).map_err(|error| ServerError::Serve(error.to_string()))
        };
        Ok(Ports { client: attach(self.client)?, peer: attach(self.peer)?, http: attach(self.http)? })
    }
}

async fn bind(port: &'static str, address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Bind { port, address, source })
}

/// Runs a region over TCP until `stop` is true. `serving` is called once it serves.
pub async fn run(
    config: &Config,
    ports: Ports,
    links: Option<Links>,
    stop: watch::Receiver<bool>,
    serving: impl FnOnce(&Arc<Node>),
) -> Result<(), ServerError> {
    let (client, peer, dialer) = secured(config, ports.client, ports.peer)?;
    let seams = Seams::production(config, Storage::directory(&config.data_dir)?, dialer);
    let (region, report) = open(config, seams, &mut log_progress())?;
    log_recovery(config, &report);
    let region = Arc::new(match links {
        Some(links) => region.with_links(links),
        None => region,
    });
    let node = region.node().clone();

    let (stop_clients, stop_peers) = (watch::Sender::new(false), watch::Sender::new(false));
    let clients = {
        let (region, stop) = (region.clone(), stopped(stop_clients.subscribe()));
        tokio::spawn(async move { region.serve_clients(client, stop).await })
    };
    let peers = {
        let (region, stop) = (region.clone(), stopped(stop_peers.subscribe()));
        tokio::spawn(async move { region.serve_peers(peer, stop).await })
    };
    let vitals = Arc::new(NodeVitals::new(node.clone()));
    let http = tokio::spawn(http::serve(ports.http, vitals, stopped(stop_peers.subscribe())));
    serving(&node);

    let ended = tokio::select! {
        () = stopped(stop) => Ok(()),
        // Whoever starts it again would be told the same.
        reason = node.stopped() => if node.has_left() { Ok(()) } else { Err(ServerError::Stopped(reason)) },
    };
    stop_clients.send_replace(true);
    finish("clients", clients, config.limits.drain_timeout).await;
    node.shutdown().await;
    stop_peers.send_replace(true);
    finish("peers", peers, Duration::from_secs(1)).await;
    http.abort();
    ended
}

/// The listeners and the dialer, with TLS over them where it is set.
fn secured(
    config: &Config,
    client: TcpListener,
    peer: TcpListener,
) -> Result<(Incoming, Incoming, Arc<dyn Dial>), ServerError> {
    let (client, peer) = (connection::tcp(client), connection::tcp(peer));
    let Some(files) = &config.tls else { return Ok((client, peer, Arc::new(TcpDialer))) };
    let Tls { client_port, peer_port, dialer } = Tls::load(files, &config.peers)?;
    Ok((tls::accept(client, client_port), tls::accept(peer, peer_port), Arc::new(dialer)))
}

/// True, or nobody left who could say so.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Gives a task time to end by itself.
async fn finish(what: &'static str, mut task: JoinHandle<Result<(), ServerError>>, patience: Duration) {
    match tokio::time::timeout(patience, &mut task).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!(what, %error, "serving ended badly"),
        Ok(Err(error)) => tracing::error!(what, %error, "serving broke down"),
        Err(_) => {
            tracing::debug!(what, "not waited for any longer");
            task.abort();
        }
    }
}

fn log_progress() -> impl FnMut(Progress) {
    let mut last: Option<std::mem::Discriminant<Progress>> = None;
    move |progress| {
        // One line a stage at info; the steps are for whoever wants to watch.
        if last.replace(std::mem::discriminant(&progress)) != Some(std::mem::discriminant(&progress)) {
            tracing::info!(?progress, "recovering");
        } else {
            tracing::debug!(?progress, "recovering");
        }
    }
}

fn log_recovery(config: &Config, report: &RecoveryReport) {
    for cut in &report.cuts {
        tracing::warn!(region = config.region, ?cut, "a torn write was cut from the log; it was never acknowledged");
    }
    tracing::info!(
        region = config.region,
        view_reused = report.view_reused,
        view_distrusted = report.view_distrusted,
        checkpoint_items = report.checkpoint_items,
        entries_replayed = report.entries_replayed,
        "storage opened"
    );
}

fn store_config(config: &Config) -> StoreConfig {
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let default = StoreConfig::default();
    let overlay_bytes_max = bytes(config.store.overlay_bytes_max);
    StoreConfig {
        region: RegionName::new(&config.region),
        shards: config.shards,
        segment_bytes: config.store.segment_bytes,
        overlay_bytes_max,
        overlay_drain_bytes: overlay_bytes_max / 4 * 3,
        view_cache_bytes: config.store.view_cache_bytes,
        checkpoint_log_bytes: config.store.checkpoint_log_bytes,
        disk_reserve_bytes: config.store.disk_reserve_bytes,
        // The log is trimmed below both, so that a rarer flush would undo a smaller checkpoint distance.
        flush_log_bytes: default.flush_log_bytes.min(config.store.checkpoint_log_bytes),
        ..default
    }
}

fn node_config(config: &Config, cluster_key: [u8; 32]) -> NodeConfig {
    let keyspaces = config.keyspaces.iter();
    let keyspace =
        |k: &config::Keyspace| KeyspaceConfig { id: KeyspaceId(k.id), name: k.name.clone(), policy: k.policy.clone() };
    let peers = config.peers.iter();
    let peer = |p: &config::Peer| PeerConfig {
        region: RegionName::new(&p.region),
        jurisdiction: p.jurisdiction.clone(),
        endpoint: p.endpoint.clone(),
        client_endpoint: p.client_endpoint.clone().unwrap_or_default(),
    };
    NodeConfig {
        cluster: config.cluster.clone(),
        region: RegionName::new(&config.region),
        shards: config.shards,
        jurisdiction: config.jurisdiction.clone(),
        keyspaces: keyspaces.map(keyspace).collect(),
        peers: peers.map(peer).collect(),
        join: config.join,
        token_key: TokenKey::new(cluster_key),
        queue_bytes_max: u32::try_from(config.limits.queue_bytes_max).unwrap_or(u32::MAX),
        log_budget_bytes: config.limits.log_budget_bytes,
        log_budget_age: config.limits.log_budget_age,
        state_chunk_bytes: u32::try_from(config.limits.state_chunk_bytes).unwrap_or(u32::MAX),
        clock_drift_ms_max: u64::try_from(config.limits.clock_drift_max.as_millis()).unwrap_or(u64::MAX),
        tombstone_horizon: config.limits.tombstone_horizon,
        ..NodeConfig::default()
    }
}

/// The key of version and page tokens. Without a file it follows from the cluster's name, which is enough to catch
/// mistakes and no guard against forgery.
fn cluster_key(config: &Config) -> Result<[u8; 32], ServerError> {
    let Some(path) = &config.cluster_key_file else {
        let beyond_loopback = !config.listen.client.ip().is_loopback();
        if beyond_loopback {
            tracing::warn!("cluster_key_file is not set: tokens can be forged by whoever knows the cluster's name");
        }
        return Ok(Sha256::digest(format!("isle cluster {}", config.cluster)).into());
    };
    let fault = |fact: String| ServerError::ClusterKey { path: path.display().to_string(), fact };
    let text = std::fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
    key_of_hex(text.trim()).ok_or_else(|| fault("does not hold 64 hexadecimal digits".to_owned()))
}

fn key_of_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_key_is_64_hexadecimal_digits() {
        let key = key_of_hex(&"0f".repeat(32));
        assert_eq!(key, Some([0x0f; 32]));
        assert_eq!(key_of_hex(&"0f".repeat(31)), None);
        assert_eq!(key_of_hex(&"+f".repeat(32)), None);
    }
}
