//! Stores that a benchmark starts for itself, and those that are running already.
//!
//! The law: a deployment is as a careful user would run the store, each region a process of its own with its own directory, and all
//! of it is gone when the deployment is dropped.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use isle_client::Client;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::BenchError;
use crate::process::{Process, ProcessError, Recipe, Usage};
use crate::target::floor::FloorTarget;
use crate::target::isle::IsleTarget;
use crate::target::{Fault, Target, Vitals};

/// How long a server may take to its first answer.
pub const START_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Below those that the kernel hands out to whoever dials.
const PORTS: std::ops::Range<u32> = 10_000..32_000;
const KNOWN_REGIONS: [&str; 3] = ["us-east-1", "eu-west-1", "ap-southeast-1"];
/// Written ahead in the floor's file: more than a second of the fastest bursts.
pub const FLOOR_FILE_BYTES: u64 = 256 << 20;

/// One endpoint, and what is known of the process behind it.
pub struct Region {
    pub name: String,
    pub target: Arc<dyn Target>,
    /// Where the benchmark started it.
    pub process: Option<Process>,
    pub data_dir: Option<PathBuf>,
}

/// All endpoints of one store. The first is where load goes unless a workload says otherwise.
pub struct Deployment {
    // Processes end before their directory goes: fields are dropped in their order.
    pub regions: Vec<Region>,
    _directory: Option<TempDir>,
}

/// Knows how to bring a store up.
#[async_trait(?Send)]
pub trait Starter: Send + Sync {
    fn name(&self) -> &'static str;

    /// Fresh and empty, unless the user runs it.
    async fn start(&self, regions: usize) -> Result<Deployment, BenchError>;
}

impl Region {
    pub fn usage(&self) -> Option<Usage> {
        self.process.as_ref().map(Process::usage)
    }

    /// Waits for the first answer.
    pub async fn until_ready(&mut self) -> Result<Duration, ProcessError> {
        let Region { target, process, .. } = self;
        match process {
            Some(process) => process.until_ready(START_PATIENCE, async || target.ready().await).await,
            None => Ok(Duration::ZERO),
        }
    }

    /// What its directory takes on disk.
    pub fn disk_bytes(&self) -> Option<u64> {
        self.data_dir.as_deref().map(allocated_bytes)
    }

    /// The part of that which is isle's commit log; of other stores nothing.
    pub fn log_directory_bytes(&self) -> u64 {
        self.data_dir.as_deref().map_or(0, |path| allocated_bytes(&path.join("log")))
    }
}

impl Deployment {
    pub fn new(regions: Vec<Region>, directory: Option<TempDir>) -> Deployment {
        Deployment { regions, _directory: directory }
    }

    pub fn first(&self) -> &Region {
        &self.regions[0]
    }

    pub async fn until_ready(&mut self) -> Result<(), ProcessError> {
        for region in &mut self.regions {
            region.until_ready().await?;
        }
        Ok(())
    }

    pub async fn vitals(&self) -> Result<Vec<Vitals>, Fault> {
        futures::future::try_join_all(self.regions.iter().map(|region| region.target.vitals())).await
    }

    /// Waits until every region is connected to every other.
    pub async fn until_linked(&self) -> Result<(), BenchError> {
        self.until("the links to be up", START_PATIENCE, |all| all.iter().all(is_linked)).await.map(|_| ())
    }

    /// Waits until all regions hold the same and lack nothing. Says how long that took.
    pub async fn until_settled(&self, patience: Duration) -> Result<Duration, BenchError> {
        self.until("all regions to agree", patience, are_settled).await
    }

    async fn until(
        &self,
        what: &'static str,
        patience: Duration,
        holds: impl Fn(&[Vitals]) -> bool,
    ) -> Result<Duration, BenchError> {
        let began = Instant::now();
        while !holds(&self.vitals().await?) {
            if began.elapsed() > patience {
                return Err(BenchError::TooLong { what, seconds: patience.as_secs() });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(began.elapsed())
    }

    /// Stops what it started, and waits for it to end.
    pub async fn stop(mut self) -> Result<(), ProcessError> {
        for process in self.regions.iter_mut().filter_map(|region| region.process.as_mut()) {
            process.stop().await?;
        }
        Ok(())
    }
}

fn is_linked(vitals: &Vitals) -> bool {
    vitals.peers.iter().all(|peer| peer.connected)
}

fn are_settled(all: &[Vitals]) -> bool {
    let first = &all[0];
    let same = |one: &Vitals| one.digest == first.digest && one.records == first.records;
    first.digest.is_some() && all.iter().all(|one| same(one) && one.peers.iter().all(|peer| peer.lag_bytes == 0))
}

/// isle as `isle serve` runs it, with the settings it has by itself.
pub struct StartIsle {
    pub program: PathBuf,
    /// Where directories are made.
    pub place: PathBuf,
    pub keyspace: String,
}

#[async_trait(?Send)]
impl Starter for StartIsle {
    fn name(&self) -> &'static str {
        "isle"
    }

    async fn start(&self, regions: usize) -> Result<Deployment, BenchError> {
        let directory = directory(&self.place)?;
        let names: Vec<String> = (0..regions).map(region_name).collect();
        let ports: Vec<u16> = names.iter().map(|_| free_ports(3)).collect();
        let mut started = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let config = directory.path().join(format!("{name}.toml"));
            let data_dir = directory.path().join(name);
            let text = isle_config(&names, &ports, at, &data_dir);
            std::fs::write(&config, text).map_err(|source| BenchError::of_file(&config, source))?;
            let log = directory.path().join(format!("{name}.log"));
            let recipe = Recipe::new(&self.program, log).arg("serve").arg("--config").arg(&config);
            let target = IsleTarget::new(format!("http://127.0.0.1:{}", ports[at]), self.keyspace.clone());
            let process = Some(recipe.start()?);
            started.push(Region { name: name.clone(), target: Arc::new(target), process, data_dir: Some(data_dir) });
        }
        let mut deployment = Deployment::new(started, Some(directory));
        deployment.until_ready().await?;
        deployment.until_linked().await?;
        Ok(deployment)
    }
}

fn region_name(at: usize) -> String {
    KNOWN_REGIONS.get(at).map_or_else(|| format!("region-{}", at + 1), |name| (*name).to_owned())
}

fn isle_config(names: &[String], ports: &[u16], at: usize, data_dir: &Path) -> String {
    let [client, peer, http] = [0, 1, 2].map(|offset| ports[at] + offset);
    let mut text = format!(
        "cluster = \"bench\"\nregion = {:?}\ndata_dir = {:?}\n\n[listen]\nclient = \"127.0.0.1:{client}\"\npeer = \
         \"127.0.0.1:{peer}\"\nhttp = \"127.0.0.1:{http}\"\n",
        names[at],
        data_dir.display().to_string(),
    );
    for (other, name) in names.iter().enumerate().filter(|(other, _)| *other != at) {
        let (client, peer) = (ports[other], ports[other] + 1);
        text.push_str(&format!(
            "\n[[peers]]\nregion = {name:?}\nendpoint = \"http://127.0.0.1:{peer}\"\nclient_endpoint = \
             \"http://127.0.0.1:{client}\"\n"
        ));
    }
    text
}

/// The floor, as a command that takes the flags of `FloorOptions`.
pub struct StartFloor {
    pub program: PathBuf,
    /// What comes before its flags.
    pub arguments: Vec<OsString>,
    pub place: PathBuf,
    pub runtime_threads: usize,
    /// How large its echoes are.
    pub echo_bytes: usize,
    pub file_bytes: u64,
}

#[async_trait(?Send)]
impl Starter for StartFloor {
    fn name(&self) -> &'static str {
        "floor"
    }

    async fn start(&self, regions: usize) -> Result<Deployment, BenchError> {
        if regions > 1 {
            return Err(Fault::Unsupported { target: "floor", what: "second region" }.into());
        }
        let directory = directory(&self.place)?;
        let port = free_ports(1);
        let recipe = Recipe::new(&self.program, directory.path().join("floor.log"))
            .args(self.arguments.iter())
            .args(["--listen", &format!("127.0.0.1:{port}"), "--file"])
            .arg(directory.path().join("file"))
            .args(["--file-bytes", &self.file_bytes.to_string()])
            .args(["--runtime-threads", &self.runtime_threads.to_string()]);
        let target = FloorTarget::new(format!("http://127.0.0.1:{port}"), self.echo_bytes);
        let process = Some(recipe.start()?);
        let region = Region { name: "floor".to_owned(), target: Arc::new(target), process, data_dir: None };
        let mut deployment = Deployment::new(vec![region], Some(directory));
        deployment.until_ready().await?;
        Ok(deployment)
    }
}

/// An isle that the user runs. Its other regions are found through the one that is named.
pub struct AttachIsle {
    pub endpoint: String,
    pub keyspace: String,
}

#[async_trait(?Send)]
impl Starter for AttachIsle {
    fn name(&self) -> &'static str {
        "isle"
    }

    async fn start(&self, regions: usize) -> Result<Deployment, BenchError> {
        let unreachable = |error: isle_client::Error| Fault::Unreachable(error.to_string());
        let client = Client::connect(&self.endpoint).await.map_err(unreachable)?;
        let status = client.status().await.map_err(unreachable)?;
        let here = status.region.map(|region| region.region).unwrap_or_default();
        let mut endpoints = vec![(here.clone(), self.endpoint.clone())];
        let others = status.regions.into_iter().filter(|at| at.region != here && !at.endpoint.is_empty());
        endpoints.extend(others.map(|at| (at.region, at.endpoint)));
        if endpoints.len() < regions {
            let known = endpoints.len();
            return Err(BenchError::Usage(format!("{regions} regions are asked for, and {known} are known there")));
        }
        let region = |(name, endpoint)| {
            let target = Arc::new(IsleTarget::new(endpoint, self.keyspace.clone()));
            Region { name, target, process: None, data_dir: None }
        };
        Ok(Deployment::new(endpoints.into_iter().take(regions).map(region).collect(), None))
    }
}

pub fn directory(place: &Path) -> Result<TempDir, BenchError> {
    let made = tempfile::Builder::new().prefix("isle-bench-").tempdir_in(place);
    made.map_err(|source| BenchError::of_file(place, source))
}

/// A port with free ones behind it. Nobody else gets the same one from here; another process might, and then the server says so
/// and ends.
pub fn free_ports(span: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Benchmarks that run at the same time start looking in different places.
    let offset = std::process::id().wrapping_mul(617);
    loop {
        let tried = NEXT.fetch_add(u32::from(span), Ordering::Relaxed);
        let at = PORTS.start + offset.wrapping_add(tried) % (PORTS.end - PORTS.start - u32::from(span));
        let first = u16::try_from(at).expect("the range lies within u16");
        if (first..first + span).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
}

/// Blocks and not lengths: what is written ahead and what is sparse count as what they take. Files that go meanwhile count as
/// nothing.
fn allocated_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let sizes = entries.filter_map(Result::ok).map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => allocated_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::target::PeerVitals;

    #[test]
    fn regions_are_settled_when_they_agree_and_lack_nothing() {
        let peer = |lag_bytes| PeerVitals { connected: true, lag_bytes, egress_bytes: 0 };
        let vitals = |digest: Option<&str>, lag_bytes| Vitals {
            records: 1,
            digest: digest.map(str::to_owned),
            peers: vec![peer(lag_bytes)],
            ..Vitals::default()
        };
        assert!(are_settled(&[vitals(Some("x"), 0), vitals(Some("x"), 0)]));
        assert!(!are_settled(&[vitals(Some("x"), 0), vitals(Some("y"), 0)]));
        assert!(!are_settled(&[vitals(Some("x"), 0), vitals(Some("x"), 1)]));
        assert!(!are_settled(&[vitals(None, 0), vitals(None, 0)]));
    }

    #[test]
    fn free_ports_do_not_overlap() {
        let (first, second) = (free_ports(3), free_ports(3));
        assert!(first.abs_diff(second) >= 3);
    }

    #[test]
    fn directories_count_what_they_take() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("inner")).unwrap();
        std::fs::write(directory.path().join("inner/file"), vec![1; 100_000]).unwrap();
        let bytes = allocated_bytes(directory.path());
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
    }
}
