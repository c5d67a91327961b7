//! Three sites, each with a disk and, while it is up, a node and its clients; the links between them; and time, which passes
//! only when asked to.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use isle_model::{Incarnation, Region};
use isle_node::{Clock, Node, NodeConfig, Parts, PeerConfig, SyncDriver};
use isle_store::disk::{Crash, MemoryDisk};
use isle_store::{BootIdentity, OpenError, Store, StoreConfig, ViewPlace};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::history::History;
use super::links::{Dialler, Links};
use super::workload::{Client, Shape};
use super::{SHARDS, SITES, rng_of, token_key};

/// 2023-11-14, so that times in a trace are told from durations.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// A site's clock: simulated time, its wall shifted by what jumps have made of it.
pub struct SimClock {
    origin: Instant,
    shift_ms: AtomicI64,
    /// For whoever looks from outside the simulation, where no time passes.
    last: AtomicU64,
}

impl SimClock {
    fn new(origin: Instant) -> Self {
        SimClock { origin, shift_ms: AtomicI64::new(0), last: AtomicU64::new(0) }
    }

    pub fn jump(&self, ms: i64) {
        self.shift_ms.store(ms, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        let ms = EPOCH_MS + self.monotonic().as_millis() as i64 + self.shift_ms.load(Ordering::Relaxed);
        ms.max(0) as u64
    }

    fn monotonic(&self) -> Duration {
        if tokio::runtime::Handle::try_current().is_ok() {
            self.last.store(self.origin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }
}

/// What differs between the nodes of one run and another's.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    pub log_budget_bytes: u64,
    pub segment_bytes: u64,
    pub shape: Shape,
    pub clients: usize,
}

struct Site {
    disk: MemoryDisk,
    clock: Arc<SimClock>,
    node: Option<Arc<Node>>,
    clients: JoinSet<()>,
    starts: u64,
}

pub struct World {
    seed: u64,
    rng: StdRng,
    tuning: Tuning,
    sites: Vec<Site>,
    pub links: Arc<Links>,
    history: Arc<History>,
    origin: Instant,
    // Dropped after everything that runs on it.
    runtime: Runtime,
}

impl World {
    pub fn new(seed: u64, tuning: Tuning, history: Arc<History>) -> Self {
        let tokio_seed = tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes());
        let runtime =
            Builder::new_current_thread().enable_all().start_paused(true).rng_seed(tokio_seed).build().unwrap();
        let origin = runtime.block_on(async { Instant::now() });
        let site = |_| Site {
            disk: MemoryDisk::new(),
            clock: Arc::new(SimClock::new(origin)),
            node: None,
            clients: JoinSet::new(),
            starts: 0,
        };
        let sites = (0..SITES.len()).map(site).collect();
        let links = Arc::new(Links::new(seed));
        World { seed, rng: rng_of(seed, "world"), tuning, sites, links, history, origin, runtime }
    }

    pub fn now(&self) -> Duration {
        let _inside = self.runtime.enter();
        self.origin.elapsed()
    }

    /// Lets simulated time pass.
    pub fn advance(&mut self, span: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(span).await });
        for site in &self.sites {
            let _inside = self.runtime.enter();
            site.clock.monotonic();
        }
    }

    pub fn node(&self, site: usize) -> Option<&Arc<Node>> {
        self.sites[site].node.as_ref()
    }

    pub fn is_up(&self, site: usize) -> bool {
        self.sites[site].node.is_some()
    }

    pub fn jump(&self, site: usize, ms: i64) {
        self.sites[site].clock.jump(ms);
    }

    /// Opens the site's disk as a new incarnation and lets its clients loose.
    pub fn start(&mut self, site: usize) -> Result<(), OpenError> {
        let incarnation = Incarnation(self.rng.random());
        let chance = self.rng.random();
        let this = &mut self.sites[site];
        this.starts += 1;
        let boot = BootIdentity { boot_id: format!("boot {}", this.starts), mount_id: String::new() };
        let disk = Arc::new(this.disk.clone());
        let storage = store_config(site, &self.tuning);
        let (store, writers, report) =
            Store::open(storage, disk, ViewPlace::Temporary, boot, incarnation, &mut |_| {})?;
        let now = self.now();
        let what = format!("{site} starts as {incarnation}: {} entries, cuts {:?}", report.entries_replayed, report.cuts);
        self.history.event(now, &what);
        let this = &mut self.sites[site];
        let connector = Arc::new(Dialler { links: self.links.clone(), from: site });
        let parts =
            Parts { store, writers, clock: this.clock.clone(), connector, seed: chance, sync: SyncDriver::Task };
        let _inside = self.runtime.enter();
        let node = Node::start(node_config(site, &self.tuning), parts).unwrap();
        self.links.set_node(site, Some(&node));
        for n in 0..self.tuning.clients {
            let client = Client {
                node: node.clone(),
                site,
                rng: rng_of(self.seed, &format!("client {site} {n} {}", this.starts)),
                history: self.history.clone(),
                clock: this.clock.clone(),
                shape: self.tuning.shape,
            };
            this.clients.spawn(client.run());
        }
        this.node = Some(node);
        Ok(())
    }

    /// Everything that runs at a site is gone at once; its disk is what the crash leaves of it.
    pub fn crash(&mut self, site: usize, how: Crash) {
        let this = &mut self.sites[site];
        let rng = &mut self.rng;
        let disk = this.disk.crash(how, &mut |n| rng.random_range(0..n));
        let _inside = self.runtime.enter();
        self.links.set_node(site, None);
        this.clients = JoinSet::new();
        this.node = None;
        this.disk = disk;
    }

    /// The disk is beyond use, and a new one is put in.
    pub fn replace_disk(&mut self, site: usize) {
        self.sites[site].disk = MemoryDisk::new();
    }

    pub fn shutdown(&mut self) {
        for site in &mut self.sites {
            if let Some(node) = site.node.take() {
                self.runtime.block_on(node.shutdown());
            }
        }
    }
}

fn node_config(site: usize, tuning: &Tuning) -> NodeConfig {
    let peer = |other: &&str| PeerConfig { region: Region::new(other), endpoint: format!("http://{other}:7401") };
    NodeConfig {
        region: Region::new(SITES[site]),
        shards: SHARDS,
        token_key: token_key(),
        peers: SITES.iter().filter(|other| **other != SITES[site]).map(peer).collect(),
        log_budget_bytes: tuning.log_budget_bytes,
        ..NodeConfig::default()
    }
}

fn store_config(site: usize, tuning: &Tuning) -> StoreConfig {
    StoreConfig {
        region: Region::new(SITES[site]),
        shards: SHARDS,
        segment_bytes: tuning.segment_bytes,
        checkpoint_log_bytes: tuning.segment_bytes,
        flush_log_bytes: tuning.segment_bytes,
        overlay_bytes_max: 4 << 20,
        overlay_drain_bytes: 64 << 10,
        view_cache_bytes: 4 << 20,
        disk_reserve_bytes: 0,
        ..StoreConfig::default()
    }
}
