//! Three sites, each with a disk and, while it is up, a region's server and its clients; the links between them; and time,
//! which passes only when asked to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use isle::config::{self, Config};
use isle::peer_client::TonicConnector;
use isle::server::{self, Seams, Storage};
use isle_model::Incarnation;
use isle_model::policy::{HomeRule, Policy, Tier};
use isle_node::{Clock, EgressMeter, Node, SyncDriver};
use isle_store::disk::{Crash, MemoryDisk};
use isle_store::{BootIdentity, ViewPlace};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use turmoil::Sim;

use super::door::Door;
use super::history::History;
use super::keyspaces::{Answered, Governor, Leaver};
use super::links::{CLIENT_PORT, Dialler, PEER_PORT, listen};
use super::tamper::Tampering;
use super::workload::{Client, Shape};
use super::{CLIENTS, CLONE, CLUSTER, KEYSPACES, OTHER, SHARDS, SITES, rng_of};

/// 2023-11-14, so that times in a trace are told from durations.
const EPOCH_MS: i64 = 1_700_000_000_000;
const TICK: Duration = Duration::from_millis(1);
pub const OVERLAY_BYTES_MAX: u64 = 4 << 20;
/// How long what has changed may wait, where it does.
const SOON: Duration = Duration::from_millis(700);
const LATER: Duration = Duration::from_secs(3);

/// A site's clock: simulated time, its wall shifted by what jumps have made of it.
#[derive(Default)]
pub struct SimClock {
    shift_ms: AtomicI64,
    /// For whoever looks from outside the simulation, where no time passes.
    last: AtomicU64,
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        let ms = EPOCH_MS + self.monotonic().as_millis() as i64 + self.shift_ms.load(Ordering::Relaxed);
        ms.max(0) as u64
    }

    fn monotonic(&self) -> Duration {
        if let Some(now) = turmoil::sim_elapsed() {
            self.last.store(now.as_nanos() as u64, Ordering::Relaxed);
        }
        Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }
}

/// What differs between one run's nodes and another's.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    pub log_budget_bytes: u64,
    pub segment_bytes: u64,
    pub shape: Shape,
    /// Clients of each region: beside the node, and on a host of their own.
    pub clients: usize,
    pub clients_away: usize,
    /// How often a batch of deltas is tampered with.
    pub tamper_rate: f64,
    pub spoils: bool,
    /// Whether writes of the other keyspace are forwarded to its keys' homes.
    pub homed: bool,
    pub leaver: Option<Leaver>,
    /// Whether the keyspaces are shipped at intervals, and whether that changes.
    pub warm: bool,
    pub turns: bool,
    pub tombstone_horizon: Duration,
    /// Below so much free space writes are refused.
    pub free_bytes_min: u64,
    /// The longest that an append waits for its sync.
    pub sync_delay_max: Duration,
    /// The longest way of a message, until a link is slowed.
    pub latency_max: Duration,
    /// How often a message breaks its link for a while.
    pub fail_rate: f64,
}

/// What the next start of a site finds.
#[derive(Clone)]
struct Boot {
    disk: MemoryDisk,
    incarnation: Incarnation,
    chance: u64,
    starts: u64,
}

/// What a site's software is made of, and what it left for those outside.
struct Site {
    index: usize,
    seed: u64,
    tuning: Tuning,
    clock: Arc<SimClock>,
    history: Arc<History>,
    answered: Arc<Answered>,
    boot: Mutex<Boot>,
    /// Whether it joins a cluster that is there, rather than founds one.
    joins: AtomicBool,
    node: Mutex<Option<Arc<Node>>>,
    error: Mutex<Option<String>>,
}

/// What was done to links, other than slowing them.
#[derive(Default)]
struct Broken {
    cut: BTreeSet<(usize, usize)>,
    held: BTreeSet<(usize, usize)>,
    /// Sites that their clients cannot reach.
    deaf: BTreeSet<usize>,
}

pub struct World {
    /// What was answered of keyspaces.
    pub answered: Arc<Answered>,
    rng: StdRng,
    sites: Vec<Arc<Site>>,
    /// A copy of a region's directory, running beside it.
    clone: Arc<Mutex<Option<Arc<Site>>>>,
    broken: Broken,
    fail_rate: f64,
    sim: Sim<'static>,
}

impl World {
    pub fn new(seed: u64, tuning: Tuning, history: &Arc<History>) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .min_message_latency(TICK)
            .max_message_latency(tuning.latency_max)
            .fail_rate(tuning.fail_rate)
            .repair_rate(0.1)
            .tcp_capacity(1 << 16)
            .simulation_duration(Duration::MAX)
            .build();
        let answered: Arc<Answered> = Arc::default();
        let site = |index| {
            let boot = Boot { disk: MemoryDisk::new(), incarnation: Incarnation(0), chance: 0, starts: 0 };
            Arc::new(Site {
                index,
                seed,
                tuning,
                clock: Arc::default(),
                history: history.clone(),
                answered: answered.clone(),
                boot: Mutex::new(boot),
                joins: AtomicBool::new(false),
                node: Mutex::default(),
                error: Mutex::default(),
            })
        };
        let sites: Vec<Arc<Site>> = (0..SITES.len()).map(site).collect();
        for site in &sites {
            let (index, away, site) = (site.index, site.clone(), site.clone());
            sim.host(SITES[index], move || {
                let site = site.clone();
                async move {
                    site.live().await;
                    Ok(())
                }
            });
            sim.host(CLIENTS[index], move || {
                let site = away.clone();
                async move {
                    site.live_away().await;
                    Ok(())
                }
            });
            sim.set_link_latency(SITES[index], CLIENTS[index], TICK);
        }
        let clone: Arc<Mutex<Option<Arc<Site>>>> = Arc::default();
        let running = clone.clone();
        sim.host(CLONE, move || {
            let site = running.lock().clone();
            async move {
                match site {
                    Some(site) => site.live().await,
                    None => std::future::pending().await,
                }
                Ok(())
            }
        });
        World {
            answered,
            rng: rng_of(seed, "world"),
            clone,
            sites,
            broken: Broken::default(),
            fail_rate: tuning.fail_rate,
            sim,
        }
    }

    pub fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Lets simulated time pass.
    pub fn advance(&mut self, span: Duration) -> Result<(), String> {
        let until = self.now() + span;
        while self.now() < until {
            self.sim.step().map_err(|error| format!("a site's software ended: {error}"))?;
        }
        for site in &self.sites {
            site.clock.last.store(self.now().as_nanos() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    pub fn disk(&self, site: usize) -> MemoryDisk {
        self.sites[site].boot.lock().disk.clone()
    }

    /// What the next start of a site finds.
    pub fn put_disk(&mut self, site: usize, disk: MemoryDisk) {
        self.sites[site].boot.lock().disk = disk;
    }

    /// Starts a copy of a region's directory on a host that the others do not know: it dials them.
    pub fn start_clone(&mut self, of: usize, disk: MemoryDisk) -> Result<(), String> {
        let clone = self.sites[of].clone_of(disk);
        *self.clone.lock() = Some(Arc::new(clone));
        self.sim.bounce(CLONE);
        self.advance(TICK)?;
        let error = self.clone.lock().as_ref().and_then(|clone| clone.error.lock().take());
        error.map_or(Ok(()), Err)
    }

    pub fn clone_node(&self) -> Option<Arc<Node>> {
        self.clone.lock().as_ref().and_then(|clone| clone.node.lock().clone())
    }

    /// Ends the clone; what it leaves on its disk.
    pub fn end_clone(&mut self) -> MemoryDisk {
        let clone = self.clone.lock().take().expect("there is a clone");
        let disk = clone.boot.lock().disk.crash(Crash::Process, &mut |_| 0);
        clone.node.lock().take();
        self.sim.set_fail_rate(0.0);
        SITES.iter().for_each(|site| self.sim.partition(CLONE, *site));
        self.sim.crash(CLONE);
        self.sim.set_fail_rate(self.fail_rate);
        SITES.iter().for_each(|site| self.sim.repair(CLONE, *site));
        disk
    }

    pub fn node(&self, site: usize) -> Option<Arc<Node>> {
        self.sites[site].node.lock().clone()
    }

    pub fn is_up(&self, site: usize) -> bool {
        self.sites[site].node.lock().is_some()
    }

    /// A site's wall clock is so far off from now on.
    pub fn shift_clock(&self, site: usize, ms: i64) {
        self.sites[site].clock.shift_ms.store(ms, Ordering::Relaxed);
    }

    /// Opens the site's disk as a new incarnation and lets its clients loose.
    pub fn start(&mut self, site: usize) -> Result<(), String> {
        {
            let mut boot = self.sites[site].boot.lock();
            boot.incarnation = Incarnation(self.rng.random());
            boot.chance = self.rng.random();
            boot.starts += 1;
        }
        self.sim.bounce(SITES[site]);
        self.advance(TICK)?;
        let error = self.sites[site].error.lock().take();
        match error {
            Some(error) => {
                self.end_software(site);
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// Everything that runs at a site is gone at once; its disk is what the crash leaves of it.
    pub fn crash(&mut self, site: usize, how: Crash) {
        let this = &self.sites[site];
        let rng = &mut self.rng;
        // First the disk: nothing that ends below can reach it any more.
        let disk = this.boot.lock().disk.crash(how, &mut |n| rng.random_range(0..n));
        this.node.lock().take();
        this.boot.lock().disk = disk;
        self.end_software(site);
    }

    /// Ends a site's tasks with its cables pulled: in which order they end, and say goodbye, follows from tokio's task ids,
    /// which runs on other threads use up too. A power cut says no goodbye either.
    fn end_software(&mut self, site: usize) {
        let others = || (0..SITES.len()).filter(move |other| *other != site);
        self.sim.set_fail_rate(0.0);
        others().for_each(|other| self.sim.partition(SITES[site], SITES[other]));
        self.sim.partition(SITES[site], CLIENTS[site]);
        self.sim.crash(SITES[site]);
        self.sim.set_fail_rate(self.fail_rate);
        if !self.broken.deaf.contains(&site) {
            self.sim.repair(SITES[site], CLIENTS[site]);
        }
        for other in others() {
            self.sim.repair(SITES[site], SITES[other]);
            self.break_again(site, other);
        }
    }

    fn break_again(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            if self.broken.cut.contains(&(from, to)) {
                self.sim.partition_oneway(SITES[from], SITES[to]);
            }
            if self.broken.held.contains(&(from, to)) {
                self.sim.hold(SITES[from], SITES[to]);
            }
        }
    }

    /// The disk is beyond use, and a new one is put in.
    pub fn replace_disk(&mut self, site: usize) {
        self.sites[site].boot.lock().disk = MemoryDisk::new();
    }

    /// The site has left the cluster: its next start joins it with an empty disk.
    pub fn begin_anew(&mut self, site: usize) {
        self.replace_disk(site);
        self.sites[site].joins.store(true, Ordering::Relaxed);
    }

    /// Nothing arrives from one site at the other any more, and what is under way is lost.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.broken.cut.insert((from, to));
        self.sim.partition_oneway(SITES[from], SITES[to]);
    }

    /// Everything between two sites is held, and arrives after healing.
    pub fn hold(&mut self, a: usize, b: usize) {
        self.broken.held.insert((a, b));
        self.sim.hold(SITES[a], SITES[b]);
    }

    /// Opens a link, both ways.
    pub fn repair(&mut self, a: usize, b: usize) {
        for ends in [(a, b), (b, a)] {
            self.broken.cut.remove(&ends);
            self.broken.held.remove(&ends);
        }
        self.sim.release(SITES[a], SITES[b]);
        self.sim.repair(SITES[a], SITES[b]);
    }

    /// Nothing passes between a site and its clients any more, or again.
    pub fn deafen(&mut self, site: usize) {
        self.broken.deaf.insert(site);
        self.sim.partition(SITES[site], CLIENTS[site]);
    }

    pub fn hear_again(&mut self, site: usize) {
        self.broken.deaf.remove(&site);
        self.sim.repair(SITES[site], CLIENTS[site]);
    }

    /// Everything between two sites takes so long.
    pub fn slow(&mut self, a: usize, b: usize, latency: Duration) {
        self.sim.set_link_latency(SITES[a], SITES[b], latency);
    }

    /// No message is lost from now on.
    pub fn stop_losing(&mut self) {
        self.fail_rate = 0.0;
        self.sim.set_fail_rate(0.0);
    }
}

impl Drop for World {
    /// Tasks hold the node, and the node its tasks.
    fn drop(&mut self) {
        if self.clone_node().is_some() {
            self.end_clone();
        }
        for site in &self.sites {
            site.node.lock().take();
            self.sim.crash(SITES[site.index]);
            self.sim.crash(CLIENTS[site.index]);
        }
    }
}

impl Site {
    /// A site's software: one region's server, and the clients beside it.
    async fn live(&self) {
        let boot = self.boot.lock().clone();
        if boot.starts == 0 {
            return std::future::pending().await;
        }
        let region = match server::open(&self.config(), self.seams(&boot), &mut |_| {}) {
            Ok((region, report)) => {
                let what =
                    format!("{} starts: {} entries, cuts {:?}", self.index, report.entries_replayed, report.cuts);
                self.history.event(self.clock.monotonic(), &what);
                region
            }
            Err(error) => {
                *self.error.lock() = Some(error.to_string());
                return std::future::pending().await;
            }
        };
        let node = region.node().clone();
        self.history.know(&node.store().tree());
        *self.node.lock() = Some(node.clone());
        let mut clients = tokio::task::JoinSet::new();
        for n in 0..self.tuning.clients {
            clients.spawn(self.client(&format!("{n} {}", boot.starts), Door::Node(node.clone())).run());
        }
        clients.spawn(self.governor(&node, boot.starts).run());
        let served = tokio::try_join!(serve_peers(&region), serve_clients(&region));
        self.history.violation(format!("{} serves no more: {served:?}", self.index));
    }

    /// Clients on a host of their own: they outlive their region's crashes.
    async fn live_away(&self) {
        let mut clients = tokio::task::JoinSet::new();
        for n in 0..self.tuning.clients_away {
            clients.spawn(self.client(&format!("away {n}"), Door::to_region(SITES[self.index])).run());
        }
        while clients.join_next().await.is_some() {}
    }

    fn governor(&self, node: &Arc<Node>, starts: u64) -> Governor {
        Governor {
            node: node.clone(),
            site: self.index,
            leaver: self.tuning.leaver,
            ships: self.tuning.warm,
            turns: self.tuning.turns,
            rng: rng_of(self.seed, &format!("governor {} {starts}", self.index)),
            clock: self.clock.clone(),
            history: self.history.clone(),
            answered: self.answered.clone(),
        }
    }

    fn clone_of(&self, disk: MemoryDisk) -> Site {
        let mut boot = self.boot.lock().clone();
        let mut rng = rng_of(boot.chance, "clone");
        boot = Boot { disk, incarnation: Incarnation(rng.random()), chance: rng.random(), starts: boot.starts + 1000 };
        Site {
            index: self.index,
            seed: self.seed,
            tuning: self.tuning,
            clock: self.clock.clone(),
            history: self.history.clone(),
            answered: self.answered.clone(),
            boot: Mutex::new(boot),
            joins: AtomicBool::new(false),
            node: Mutex::default(),
            error: Mutex::default(),
        }
    }

    fn config(&self) -> Config {
        Config { join: self.joins.load(Ordering::Relaxed), ..config(self.index, &self.tuning) }
    }

    fn seams(&self, boot: &Boot) -> Seams {
        let identity = BootIdentity { boot_id: format!("boot {}", boot.starts), mount_id: String::new() };
        let config = self.config();
        let egress: Arc<EgressMeter> = Arc::default();
        let tampering = Tampering {
            inner: Arc::new(TonicConnector::new(Arc::new(Dialler), server::identity(&config), egress.clone())),
            rate: self.tuning.tamper_rate,
            spoils: self.tuning.spoils,
            rng: Arc::new(Mutex::new(rng_of(boot.chance, "tamper"))),
            history: self.history.clone(),
        };
        Seams {
            storage: Storage { disk: Arc::new(boot.disk.clone()), place: ViewPlace::Temporary, boot: identity },
            connector: Arc::new(tampering),
            egress,
            clock: self.clock.clone(),
            incarnation: boot.incarnation,
            seed: boot.chance,
            sync: SyncDriver::Task { delay_max: self.tuning.sync_delay_max },
        }
    }

    fn client(&self, name: &str, door: Door) -> Client {
        Client {
            door,
            site: self.index,
            rng: rng_of(self.seed, &format!("client {} {name}", self.index)),
            history: self.history.clone(),
            clock: self.clock.clone(),
            shape: self.tuning.shape,
        }
    }
}

async fn serve_peers(region: &server::Region) -> Result<(), String> {
    let incoming = listen(PEER_PORT).await.map_err(|error| error.to_string())?;
    region.serve_peers(incoming, std::future::pending()).await.map_err(|error| error.to_string())
}

async fn serve_clients(region: &server::Region) -> Result<(), String> {
    let incoming = listen(CLIENT_PORT).await.map_err(|error| error.to_string())?;
    region.serve_clients(incoming, std::future::pending()).await.map_err(|error| error.to_string())
}

fn keyspace(of: &super::Keyspace, tuning: &Tuning) -> config::Keyspace {
    let mut keyspace = config::Keyspace::new(of.id.0, of.name);
    if tuning.homed && of.name == OTHER {
        keyspace.policy = Policy::default();
    }
    if tuning.warm {
        // Two regions that make one key are both its home until they hear of each other: that is long here.
        if keyspace.policy.is_forwarded() {
            keyspace.policy.home = Some(HomeRule::Hash);
        }
        keyspace.policy.tier = Tier::Warm(if of.name == OTHER { LATER } else { SOON });
    }
    keyspace
}

fn config(site: usize, tuning: &Tuning) -> Config {
    let peer = |other: &&str| config::Peer {
        jurisdiction: String::new(),
        region: (*other).to_owned(),
        endpoint: format!("http://{other}:{PEER_PORT}"),
        client_endpoint: None,
        tls_name: None,
        egress_usd_per_gb: None,
    };
    let mut config = Config {
        cluster: CLUSTER.to_owned(),
        region: SITES[site].to_owned(),
        shards: SHARDS,
        peers: SITES.iter().filter(|other| **other != SITES[site]).map(peer).collect(),
        keyspaces: KEYSPACES.iter().map(|k| keyspace(k, tuning)).collect(),
        ..Config::default()
    };
    config.limits.log_budget_bytes = tuning.log_budget_bytes;
    config.limits.tombstone_horizon = tuning.tombstone_horizon;
    if tuning.warm {
        // So that what is shipped comes in pieces, and is written meanwhile.
        config.limits.state_chunk_bytes = 1 << 10;
    }
    config.store.disk_reserve_bytes = tuning.free_bytes_min;
    config.store.segment_bytes = tuning.segment_bytes;
    config.store.checkpoint_log_bytes = tuning.segment_bytes;
    config.store.overlay_bytes_max = OVERLAY_BYTES_MAX;
    config.store.view_cache_bytes = 4 << 20;
    config
}
