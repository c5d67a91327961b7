//! One run: faults and work for a while, then healing, then the reckoning.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isle_model::metadata::Step;
use isle_model::{Dot, Field, Incarnation, KeyspaceId, Lineage, Record, Region, ShardId, Total};
use isle_node::{LinkState, Node, NodeState};
use isle_store::Stats;
use isle_store::disk::MemoryDisk;
use rand::Rng;
use rand::rngs::StdRng;

use super::faults::Failed;
use super::history::History;
use super::keyspaces::Leaver;
use super::logs::Logs;
use super::oracle;
use super::workload::Shape;
use super::world::{OVERLAY_BYTES_MAX, Tuning, World};
use super::{KEYSPACES, Mix, SHARDS, SITES, rng_of};

pub const PAIRS: [(usize, usize); 3] = [(0, 1), (1, 2), (0, 2)];
/// What trimming leaves: segments that reach over the budget, and those above the last flush and checkpoint.
const LOG_SLACK_BYTES: u64 = 512 << 10;
const LOG_OVER_MAX: Duration = Duration::from_secs(4);
/// How long healed regions may take to agree, and then to forget their tombstones.
const HEALING_MAX: Duration = Duration::from_secs(180);

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Ran {
    pub hash: u64,
    pub events: u64,
    pub simulated: Duration,
    pub crashes: u64,
    pub states_taken: u64,
    pub quarantined: u64,
    /// How many writes of a field the oracle's own account of causes was judged by.
    pub judged: u64,
    /// Changes of keyspaces that were acknowledged.
    pub keyspaces_changed: u64,
    /// How often a region was let in or told to leave.
    pub members_changed: u64,
}

/// Runs one seed; an error says which law was broken.
pub fn run(seed: u64, mix: Mix) -> Result<Ran, String> {
    Run::new(seed, mix, false).run()
}

/// The same, and the whole history in words.
pub fn trace(seed: u64, mix: Mix) -> (Result<Ran, String>, String) {
    let run = Run::new(seed, mix, true);
    let history = run.history.clone();
    (run.run(), history.take_trace().unwrap_or_default())
}

/// A run under way. What goes wrong in it stands in `faults`.
pub struct Run {
    pub mix: Mix,
    pub rng: StdRng,
    pub world: World,
    pub history: Arc<History>,
    tuning: Tuning,
    logs: Logs,
    log_over_since: BTreeMap<usize, Duration>,
    /// When a crashed site comes back.
    pub back_at: BTreeMap<usize, Duration>,
    pub crashes: u64,
    states_taken: u64,
    quarantined: u64,
    /// Sites whose disks are full, and those whose nodes have met a failed disk.
    pub full: BTreeSet<usize>,
    pub failed: BTreeMap<usize, Failed>,
    /// Whose directory is copied.
    pub victim: usize,
    pub copy: Option<MemoryDisk>,
    pub cloned: bool,
}

impl Run {
    fn new(seed: u64, mix: Mix, traced: bool) -> Self {
        let mut rng = rng_of(seed, "run");
        let history = Arc::new(History::new(mix, traced));
        let bulky = mix != Mix::Calm && rng.random_bool(0.4);
        let tuning = Tuning {
            log_budget_bytes: if bulky { 128 << 10 } else { 16 << 20 },
            segment_bytes: 64 << 10,
            shape: Shape {
                keys: rng.random_range(2..20),
                think_ms_max: rng.random_range(40..250),
                value_bytes_max: if bulky { 3000 } else { 60 },
                wide_percent: rng.random_range(0..40),
                homed: mix.is_homed(),
            },
            // Whoever moves homes is beside the node.
            clients: rng.random_range(0..2).max(usize::from(mix.is_homed())),
            clients_away: rng.random_range(1..3),
            tamper_rate: if mix != Mix::Calm && rng.random_bool(0.6) { rng.random_range(0.01..0.3) } else { 0.0 },
            spoils: rng.random_bool(0.3),
            homed: mix.is_homed(),
            leaver: match mix {
                Mix::Members => Some(Leaver::OfCluster(seed as usize / 8 % SITES.len())),
                Mix::Holders => Some(Leaver::OfKeyspaces(seed as usize / 8 % SITES.len())),
                _ => None,
            },
            warm: mix.is_warm(),
            // A voter that went back in time may make the others forget what they had agreed on.
            turns: mix == Mix::Warm,
            sync_delay_max: Duration::from_millis(match rng.random_range(0..10) {
                0..8 => 2,
                _ if mix == Mix::Disks => 600,
                _ => 100,
            }),
            // Production has seven days.
            tombstone_horizon: Duration::from_secs(if mix == Mix::Away { 3 } else { 7 * 86_400 }),
            free_bytes_min: if rng.random_bool(0.5) { 0 } else { 32 << 10 },
            latency_max: Duration::from_millis(rng.random_range(2..100)),
            fail_rate: if mix != Mix::Calm && rng.random_bool(0.3) { 0.0005 } else { 0.0 },
        };
        let world = World::new(seed, tuning, &history);
        Run {
            mix,
            rng,
            world,
            history,
            tuning,
            logs: Logs::default(),
            log_over_since: BTreeMap::new(),
            back_at: BTreeMap::new(),
            crashes: 0,
            states_taken: 0,
            quarantined: 0,
            full: BTreeSet::new(),
            failed: BTreeMap::new(),
            victim: seed as usize / 8 % SITES.len(),
            copy: None,
            cloned: false,
        }
    }

    fn run(mut self) -> Result<Ran, String> {
        for site in 0..SITES.len() {
            self.start(site)?;
        }
        let longer =
            if matches!(self.mix, Mix::Away | Mix::Members | Mix::Holders) || self.mix.is_warm() { 6 } else { 0 };
        let span = Duration::from_secs(self.rng.random_range(3..9) + longer);
        while self.world.now() < span {
            let pause = Duration::from_micros(self.rng.random_range(1_000..800_000));
            self.world.advance(pause)?;
            self.fault();
            self.bring_back()?;
            self.look()?;
        }
        self.heal()?;
        self.settle("the regions agree", Self::disagreement)?;
        // Also of a region whose leave came about only now.
        self.settle("every tombstone is forgotten, and they agree", |run| {
            run.disagreement().or_else(|| run.tombstones())
        })?;
        self.look()?;
        self.note_end();
        if let (true, Some(node)) = (self.mix.is_honest(), self.nodes().first()) {
            self.world.answered.check(&node.metadata())?;
        }
        let judged = oracle::check(self.mix, &self.history, &self.logs, &self.nodes(), self.victim, self.states_taken)?;
        let simulated = self.world.now();
        Ok(Ran {
            hash: self.history.hash(),
            events: self.history.events(),
            simulated,
            crashes: self.crashes,
            states_taken: self.states_taken,
            quarantined: self.quarantined,
            judged,
            keyspaces_changed: self.world.answered.count(),
            members_changed: self.world.answered.members(),
        })
    }

    pub fn start(&mut self, site: usize) -> Result<(), String> {
        self.logs.restarted(site);
        self.log_over_since.remove(&site);
        if self.full.remove(&site) {
            self.world.disk(site).set_capacity(None);
        }
        match self.world.start(site) {
            Ok(()) => Ok(()),
            Err(error) if self.mix.is_honest() => {
                Err(format!("region {site} does not open what an honest disk kept: {error}"))
            }
            Err(error) => {
                self.history.event(self.world.now(), &format!("{site} gets a new disk: {error}"));
                self.world.replace_disk(site);
                self.world.start(site).map_err(|error| format!("an empty disk does not open: {error}"))
            }
        }
    }

    /// What must hold at every moment.
    fn look(&mut self) -> Result<(), String> {
        for site in 0..SITES.len() {
            self.collect(site);
            let Some(node) = self.world.node(site) else { continue };
            check_gone(site, &node)?;
            let stats = node.store().stats();
            self.check_log(site, &node, &stats)?;
            if stats.overlay_bytes > OVERLAY_BYTES_MAX + (1 << 20) {
                return Err(format!("the overlay of {site} has {} bytes", stats.overlay_bytes));
            }
            if let Some(reason) = stats.view_failed {
                return Err(format!("the view of {site} has failed: {reason}"));
            }
        }
        match self.history.violations().first() {
            Some(violation) => Err(violation.clone()),
            None => Ok(()),
        }
    }

    /// The log may be over its budget until it is trimmed, once a second, by segments; a state that came fills some at once.
    fn check_log(&mut self, site: usize, node: &Node, stats: &Stats) -> Result<(), String> {
        let now = self.world.now();
        let budget = self.tuning.log_budget_bytes;
        if self.full.contains(&site) || self.failed.contains_key(&site) {
            // Nothing is checkpointed, so nothing is trimmed.
            self.log_over_since.remove(&site);
            return Ok(());
        }
        if stats.log_bytes <= budget + LOG_SLACK_BYTES {
            self.log_over_since.remove(&site);
            return Ok(());
        }
        let since = *self.log_over_since.entry(site).or_insert(now);
        if now.saturating_sub(since) <= LOG_OVER_MAX {
            return Ok(());
        }
        let peers: Vec<_> = node.status().peers.iter().map(|peer| (peer.state, peer.lag_bytes)).collect();
        Err(format!(
            "the log of {site} has {} bytes, its budget is {budget}: {} to {}, checkpoint {}, view {}, peers {peers:?}",
            stats.log_bytes,
            node.store().oldest(),
            node.store().durable(),
            stats.checkpoint_position,
            stats.view_position,
        ))
    }

    pub fn collect(&mut self, site: usize) {
        if let Some(node) = self.world.node(site) {
            self.logs.collect(site, &node, &self.history);
        }
    }

    fn settle(&mut self, what: &str, missing: fn(&Self) -> Option<String>) -> Result<(), String> {
        let deadline = self.world.now() + HEALING_MAX;
        while let Some(missing) = missing(self) {
            if self.world.now() > deadline {
                return Err(format!("not within {HEALING_MAX:?} of healing: {what}\n{missing}"));
            }
            self.world.advance(Duration::from_millis(200))?;
            self.bring_back()?;
            self.look()?;
        }
        Ok(())
    }

    fn disagreement(&self) -> Option<String> {
        let all: Vec<_> = self.nodes().iter().map(|node| node.status()).collect();
        let settled = all.len() == SITES.len()
            && self.world.clone_node().is_none()
            && self.failed.is_empty()
            && all.iter().all(|status| {
                status.digest.is_some()
                    && status.state == NodeState::Serving
                    && status.peers.iter().all(|peer| peer.state == LinkState::Live && peer.lag_bytes == 0)
            });
        // Disks that forgot what they had promised may have lost what most regions had agreed on.
        let known: Vec<_> = self.nodes().iter().map(|node| node.metadata()).collect();
        let agreed = known.iter().all(|metadata| *metadata == known[0])
            && all.iter().all(|status| status.metadata.revision > 0 && status.metadata.has_majority);
        // And what was shut out is let in again.
        let everywhere = known.iter().all(|metadata| metadata.keyspaces.values().all(|ks| ks.holding.is_empty()));
        let settled = settled && ((agreed && everywhere) || !self.mix.is_honest());
        let alike = all.iter().all(|status| (status.digest, status.records) == (all[0].digest, all[0].records));
        let differences = if alike { Vec::new() } else { self.differences() };
        if settled && differences.iter().all(|different| self.is_at_the_limit(different)) {
            return None;
        }
        let differences = differences.into_iter().map(|(at, held)| format!("{at:?} is {held:?}"));
        let clone = self.world.clone_node().map(|node| node.status());
        let status = all.iter().chain(&clone).map(|status| format!("{status:?}"));
        let changing =
            known.iter().flat_map(|metadata| metadata.keyspaces.values()).filter(|ks| !ks.holding.is_empty());
        let changing = changing.map(|ks| format!("{}: {:?}", ks.name, ks.holding)).collect::<Vec<_>>();
        Some(changing.into_iter().chain(status).chain(differences).collect::<Vec<_>>().join("\n"))
    }

    /// The records that are not alike everywhere, as each region holds them.
    fn differences(&self) -> Vec<(KeyOf, Vec<Record>)> {
        let nodes = self.nodes();
        let mut held: BTreeMap<KeyOf, Vec<Record>> = BTreeMap::new();
        for (site, node) in nodes.iter().enumerate() {
            for keyspace in KEYSPACES.iter().map(|keyspace| keyspace.id) {
                let page = node.store().scan(keyspace, &Bytes::new(), None, usize::MAX, usize::MAX).unwrap();
                for (key, record) in page.rows {
                    let rows = held.entry((keyspace, key)).or_insert_with(|| vec![Record::new(); nodes.len()]);
                    rows[site] = Record::clone(&record);
                }
            }
        }
        held.retain(|at, records| !are_alike(at, records));
        held.into_iter().collect()
    }

    /// The one limit that the design names: what a lost branch has added to a counter returns, and some region has forgotten
    /// the delete that covered a part of it. Regions may count differently there until the next delete, and nowhere else.
    fn is_at_the_limit(&self, (at, records): &(KeyOf, Vec<Record>)) -> bool {
        let Some(tree) = self.nodes().first().map(|node| node.store().tree()) else { return false };
        let shard = ShardId::of(at.0, &at.1, SHARDS);
        let is_lost = |(incarnation, total): &(Incarnation, Total)| {
            is_beside_the_line(tree.shard(shard), Dot::new(*incarnation, total.seq))
        };
        let rest = |record: &Record| {
            let kept = record.fields().iter().filter(|(_, field)| match field {
                Field::Counter(counter) => !counter.totals().iter().any(is_lost),
                Field::Register(_) => true,
            });
            Record::from_fields(kept.cloned().collect()).expect("they were fields of one record")
        };
        !self.mix.is_honest() && are_alike(at, &records.iter().map(rest).collect::<Vec<_>>())
    }

    fn tombstones(&self) -> Option<String> {
        let mut left = Vec::new();
        for (site, node) in self.nodes().iter().enumerate() {
            for (keyspace, shard) in stream_keys() {
                for (key, record) in node.store().tombstones(keyspace, shard, b"", 1000).unwrap() {
                    let awaited = self.awaited(node, (keyspace, shard), &record);
                    let key = String::from_utf8_lossy(&key).into_owned();
                    // Deletes of different fields, made concurrently, may leave a home, which keeps the record.
                    let has_home = record.fields().iter().any(|(_, field)| field.is_live());
                    // A client's token may bring the dot of a write that a disk lost before any other region had it.
                    let is_lost = |dot| !self.mix.is_honest() && self.is_lost((keyspace, shard), dot);
                    if !has_home && !awaited.iter().any(|(_, dot)| is_lost(*dot)) {
                        left.push(format!("{key} in {site} waits for {awaited:?}\n{}", self.told((keyspace, shard))));
                    }
                }
            }
        }
        (!left.is_empty()).then(|| left.join("\n"))
    }

    /// What every region has absorbed of a stream, and what it has heard others state.
    fn told(&self, (keyspace, shard): StreamKey) -> String {
        let of = |node: Arc<Node>| {
            let streams = node.store().streams(keyspace, shard);
            format!("  {}: has {:?}\n     heard {:?}", node.store().region(), streams.applied(), streams.heard())
        };
        self.nodes().into_iter().map(of).collect::<Vec<_>>().join("\n")
    }

    /// Which holders a tombstone waits for, and for what.
    fn awaited(&self, node: &Node, (keyspace, shard): StreamKey, record: &Record) -> Vec<(Region, Dot)> {
        let (store, tree) = (node.store(), node.store().tree());
        let (streams, lineage) = (store.durable_streams(keyspace, shard), tree.shard(shard));
        let holders = SITES.map(Region::new);
        let lacks = |holder: &Region, dot: Dot| !streams.has_absorbed(holder, store.region(), dot, lineage);
        let missing = record.dots().flat_map(|dot| {
            holders.iter().filter(move |holder| lacks(holder, dot)).map(move |holder| (holder.clone(), dot))
        });
        missing.collect()
    }

    /// Whether no region has absorbed a write, nor ever will.
    fn is_lost(&self, (keyspace, shard): StreamKey, dot: Dot) -> bool {
        self.nodes().iter().all(|node| {
            let tree = node.store().tree();
            !node.store().streams(keyspace, shard).absorbed(tree.shard(shard)).covers(dot, tree.shard(shard))
        })
    }

    fn nodes(&self) -> Vec<Arc<Node>> {
        (0..SITES.len()).filter_map(|site| self.world.node(site)).collect()
    }

    pub fn count_states(&mut self, site: usize) {
        let Some(node) = self.world.node(site) else { return };
        self.quarantined += node.counters().quarantined.get();
        self.states_taken += node.counters().peers().values().map(|peer| peer.state_chunks_in.get()).sum::<u64>();
    }

    fn note_end(&mut self) {
        for (site, node) in self.nodes().iter().enumerate() {
            self.count_states(site);
            let status = node.status();
            let end = format!(
                "{site} ends: {:?} {} records, log {:?}",
                status.digest,
                status.records,
                node.store().appended()
            );
            self.history.event(self.world.now(), &end);
        }
    }
}

/// Nothing is in a region that has said that it has nothing.
fn check_gone(site: usize, node: &Node) -> Result<(), String> {
    let (metadata, region) = (node.metadata(), node.store().region().clone());
    let gone = metadata.keyspaces.values().filter(|keyspace| keyspace.step(&region) == Some(Step::Gone));
    for keyspace in gone {
        let is_kept = node.store().kept().iter().any(|(kept, _)| *kept == keyspace.id);
        let rows = node.store().scan(keyspace.id, b"", None, 1, usize::MAX).map_err(|error| error.to_string())?.rows;
        if is_kept || !rows.is_empty() {
            return Err(format!("{site} has some of keyspace {} that it is rid of", keyspace.name));
        }
    }
    Ok(())
}

type StreamKey = (KeyspaceId, ShardId);
type KeyOf = (KeyspaceId, Bytes);

fn are_alike(at: &KeyOf, records: &[Record]) -> bool {
    records.iter().all(|record| record.digest(at.0, &at.1) == records[0].digest(at.0, &at.1))
}

/// Whether the dot's region has another branch: one that does not lead to it and does not come from it.
fn is_beside_the_line(lineage: Lineage<'_>, dot: Dot) -> bool {
    let tree = lineage.tree();
    let of_region = tree.rows().filter(|(_, row)| Some(&row.region) == tree.region(dot.incarnation));
    let mut others = of_region.map(|(incarnation, _)| incarnation).filter(|other| *other != dot.incarnation);
    others.any(|other| {
        let comes_from_it = lineage.implied(other, dot.incarnation) >= dot.seq;
        !comes_from_it && !tree.descends(dot.incarnation, other)
    })
}

fn stream_keys() -> impl Iterator<Item = StreamKey> {
    KEYSPACES.iter().flat_map(|keyspace| (0..SHARDS).map(|shard| (keyspace.id, ShardId(shard))))
}
