//! What all tasks of one node hold in common. Each lock is held for a look or a change, never over an await.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isle_model::policy::MemberState;
use isle_model::{Dot, Epoch, Heard, Hlc, HlcClock, Incarnation, KeyspaceId, Region, ShardId, Vector};
use isle_store::{LogPosition, Store};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::catalog::Catalog;
use crate::clock::{Clock, ahead_of_most};
use crate::cluster::Group;
use crate::completing::Completing;
use crate::counters::Counters;
use crate::durability::Durability;
use crate::egress_meter::Cause;
use crate::peers::{PeerSlot, Peers};
use crate::replication::link::AgeMarks;
use crate::shard_queue::ShardQueue;
use crate::shipping::Shipping;
use crate::standing::Standing;
use crate::{NodeConfig, NodeError};

/// How many streams may stand still, and how much is kept of a delta at which one does.
const QUARANTINE_MAX: usize = 1024;
const QUARANTINE_BYTES_MAX: usize = 4 << 10;

/// One stream set: all regions' streams of one keyspace and shard.
pub(crate) type StreamKey = (KeyspaceId, ShardId);

pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) group: Group,
    hlc: Mutex<HlcClock>,
    pub(crate) counters: Counters,
    pub(crate) durability: Durability,
    /// Tells the sync task of a simulation that there is something to sync.
    pub(crate) appended: Notify,
    pub(crate) queues: Vec<ShardQueue>,
    pub(crate) peers: Peers,
    pub(crate) standing: Mutex<Standing>,
    /// State transfers asked for, by sender; carried out one after another.
    pub(crate) wanted: Mutex<BTreeMap<(Region, StreamKey), Extent>>,
    /// What waits to be shipped to the peers.
    pub(crate) shipping: Shipping,
    pub(crate) repair: Notify,
    pub(crate) completing: Completing,
    /// Deltas that cannot be applied, the newest of each stream. Their streams stand still below them.
    quarantine: Mutex<BTreeMap<(Region, StreamKey), Quarantined>>,
    /// Complete states that peers are to take of here, because no stream brings them what these hold.
    pub(crate) offers: Mutex<BTreeSet<(Region, StreamKey)>>,
    /// Streams whose last statement some peer may have missed: a state took it past that, or it never heard one.
    pub(crate) restate: Mutex<BTreeSet<StreamKey>>,
    /// How far the wall clock is ahead of most peers that are heard, where that is more than allowed; else zero.
    clock_ahead_ms: AtomicU64,
    /// Whether the storage is being rid of what may not be here: the log waits for nobody who is away.
    pub(crate) scrubbing: AtomicBool,
    /// When which position had become durable, for lag in time.
    pub(crate) ages: Mutex<AgeMarks>,
    /// Why the node stopped for good.
    pub(crate) fatal: watch::Sender<Option<Arc<str>>>,
    /// Stirred whenever a peer has confirmed something.
    pub(crate) confirmations: watch::Sender<()>,
    /// Raised once: links, repair and upkeep end.
    pub(crate) stop: watch::Sender<bool>,
    /// Whether blocking work has threads to go to. A simulation has none.
    pub(crate) has_threads: bool,
}

/// A delta that cannot be applied.
#[derive(Clone, Debug)]
pub struct Quarantined {
    pub dot: Dot,
    pub reason: String,
    /// As it came, where it could not be read; cut off where it is long.
    pub bytes: Bytes,
    /// By the node's monotonic clock.
    pub since: Duration,
}

/// How much of a state is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Extent {
    /// What has changed since this region's cursor.
    Changes,
    Complete,
}

/// What other tasks ask of an inbound link.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkCommand {
    /// The peer is to ship what waits of this keyspace.
    Ship(KeyspaceId),
    /// The cursor of this stream was moved by a state: go on from there.
    Refetch(StreamKey),
}

/// What the sending side remembers of a peer between subscriptions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Confirmed {
    /// Every own delta at or below is covered by `cursors`.
    pub(crate) position: LogPosition,
    pub(crate) cursors: BTreeMap<StreamKey, Vector>,
}

impl Shared {
    pub(crate) fn new(
        config: NodeConfig,
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
        group: Group,
        queues: Vec<ShardQueue>,
        peers: Peers,
        has_threads: bool,
    ) -> Self {
        let now = clock.monotonic();
        let mut ages = AgeMarks::default();
        ages.note(store.durable(), now);
        let catalog = Catalog::new(config.metadata());
        catalog.learn(group.storage().metadata());
        let is_joining = match &catalog.known().metadata {
            agreed if agreed.revision > 0 => {
                agreed.members.get(&config.region).is_some_and(|member| member.state == MemberState::Joining)
            }
            _ => config.join,
        };
        let mut standing = Standing::new(store.expired_holders(), is_joining);
        let counters = Counters::default();
        peers.all().keys().for_each(|region| counters.note_peer(region));
        for (region, incarnation) in admitted_by(&store, peers.all().keys()) {
            standing.admit(&region, incarnation);
        }
        Shared {
            counters,
            durability: Durability::new(store.durable()),
            standing: Mutex::new(standing),
            hlc: Mutex::new(HlcClock::new(store.hlc_high())),
            appended: Notify::new(),
            wanted: Mutex::default(),
            shipping: Shipping::default(),
            repair: Notify::new(),
            completing: Completing::default(),
            quarantine: Mutex::default(),
            offers: Mutex::default(),
            clock_ahead_ms: AtomicU64::new(0),
            scrubbing: AtomicBool::new(false),
            restate: Mutex::default(),
            ages: Mutex::new(ages),
            fatal: watch::Sender::new(None),
            confirmations: watch::Sender::new(()),
            stop: watch::Sender::new(false),
            has_threads,
            catalog: Arc::new(catalog),
            group,
            config,
            store,
            clock,
            queues,
            peers,
        }
    }

    pub(crate) fn me(&self) -> &Region {
        &self.config.region
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Counts a message to another region.
    pub(crate) fn note_sent(&self, peer: &Region, keyspace: KeyspaceId, cause: Cause, bytes: u64) {
        self.peers.egress.to(peer).note(Some(keyspace), cause, bytes);
    }

    /// A stamp for a new write.
    pub(crate) fn tick(&self) -> Hlc {
        self.hlc.lock().tick(self.clock.wall_ms())
    }

    /// Hears another region's stamp; says whether the clock follows it.
    pub(crate) fn hear(&self, stamp: Hlc) -> bool {
        let heard = self.hlc.lock().hear(stamp, self.clock.wall_ms(), self.config.clock_drift_ms_max);
        heard == Heard::Taken
    }

    /// Gives up a holder that is away too long; says whether it was waited for before. What follows from it comes after it in
    /// the log, so that a restart knows it too.
    pub(crate) fn expire(&self, region: &Region) -> bool {
        let mut standing = self.standing.lock();
        if standing.is_expired(region) || !self.noted(region, true) {
            return false;
        }
        standing.expire(region)
    }

    /// Waits again for a holder that has taken a complete state of everything; says whether it was given up.
    pub(crate) fn welcome_back(&self, region: &Region) -> bool {
        let mut standing = self.standing.lock();
        standing.is_expired(region) && self.noted(region, false) && standing.welcome_back(region)
    }

    fn noted(&self, region: &Region, expired: bool) -> bool {
        let noted = self.store.note_holder(region, expired);
        if let Err(error) = &noted {
            tracing::warn!(%region, expired, %error, "whether a holder is given up cannot be noted; it stays as it was");
        }
        self.appended.notify_one();
        noted.is_ok()
    }

    /// Keeps a delta that cannot be applied aside. Its stream is to be completed by state.
    pub(crate) fn quarantine(&self, origin: &Region, stream: StreamKey, dot: Dot, bytes: Bytes, reason: String) {
        self.counters.quarantined.add(1);
        tracing::error!(
            %origin, %dot, keyspace = stream.0.0, shard = stream.1.0, bytes = bytes.len(), reason,
            "a delta cannot be applied; its stream is completed by state"
        );
        let mut quarantine = self.quarantine.lock();
        if quarantine.len() < QUARANTINE_MAX || quarantine.contains_key(&(origin.clone(), stream)) {
            // Not as part of the buffer that it came in.
            let bytes = Bytes::copy_from_slice(&bytes[..bytes.len().min(QUARANTINE_BYTES_MAX)]);
            quarantine.insert((origin.clone(), stream), Quarantined { dot, reason, bytes, since: self.now() });
        }
    }

    /// What stands still of a region's streams, after forgetting what the cursors have come past.
    pub(crate) fn quarantined(&self, origin: &Region) -> Vec<Quarantined> {
        let tree = self.store.tree();
        let mut quarantine = self.quarantine.lock();
        quarantine.retain(|(origin, (keyspace, shard)), held| {
            let cursor = self.store.durable_streams(*keyspace, *shard).cursor(origin);
            !cursor.covers(held.dot, tree.shard(*shard))
        });
        quarantine.iter().filter(|((region, _), _)| region == origin).map(|(_, held)| held.clone()).collect()
    }

    pub(crate) fn shard_of(&self, keyspace: KeyspaceId, key: &[u8]) -> ShardId {
        ShardId::of(keyspace, key, self.config.shards)
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> {
        (0..self.queues.len() as u32).map(ShardId)
    }

    pub(crate) fn queue(&self, shard: ShardId) -> Option<&ShardQueue> {
        self.queues.get(shard.0 as usize)
    }

    /// Weighs what the peers that are heard say of their clocks.
    pub(crate) fn judge_clock(&self) {
        let ahead =
            ahead_of_most(self.peers.all().values().filter_map(|slot| slot.link.lock().clock_ahead_ms).collect());
        let ahead = if ahead > self.config.clock_drift_ms_max { ahead } else { 0 };
        let before = self.clock_ahead_ms.swap(ahead, Ordering::Relaxed);
        if (before == 0) != (ahead == 0) {
            tracing::warn!(by_ms = ahead, "this node's clock came to be, or ceased to be, ahead of most peers'");
        }
    }

    /// How far the wall clock is ahead of most peers', if that is more than allowed.
    pub(crate) fn clock_ahead(&self) -> Option<u64> {
        Some(self.clock_ahead_ms.load(Ordering::Relaxed)).filter(|by_ms| *by_ms > 0)
    }

    pub(crate) fn not_home(&self, home: Region, epoch: Epoch) -> NodeError {
        let endpoint = self.peers.get(&home).map(|slot| slot.config.client_endpoint.clone()).unwrap_or_default();
        NodeError::NotHome { home, endpoint, epoch }
    }

    /// Whether clients are served.
    pub(crate) fn check_serving(&self) -> Result<(), NodeError> {
        if let Some(reason) = self.fatal.borrow().as_ref() {
            return Err(NodeError::Stopped { reason: reason.to_string() });
        }
        if self.standing.lock().is_joining() {
            return Err(NodeError::Joining);
        }
        if self.is_behind() {
            return Err(NodeError::Completing);
        }
        Ok(())
    }

    /// Whether this region joins, or lacks what it once had. What it has only come to hold, and does not serve yet, it may lack.
    pub(crate) fn is_behind(&self) -> bool {
        let known = self.catalog.known();
        self.standing.lock().is_behind(|keyspace| known.is_taking(self.me(), keyspace))
    }

    /// Stops the node for good: it must be restarted, or has been replaced.
    pub(crate) fn stop_for_good(&self, reason: &str) {
        tracing::error!(region = %self.me(), reason, "this node stops");
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            fatal.get_or_insert_with(|| Arc::from(reason));
            first
        });
        self.durability.failed(reason);
        self.stop.send_replace(true);
    }

    /// Whether another's word that this region is no member, as of a revision, is news: one that joins may not be let in yet.
    pub(crate) fn was_removed(&self, revision: u64) -> bool {
        let known = self.catalog.known().metadata.revision.max(self.group.storage().joined());
        revision > known && (known > 0 || !self.standing.lock().is_joining())
    }

    /// Waits for a region that has come to be a member.
    pub(crate) fn note_peer(&self, slot: Arc<PeerSlot>) {
        self.counters.note_peer(&slot.config.region);
        self.peers.insert(slot);
    }

    /// Nothing waits for a region any more that has ceased to be a member, and nothing is taken of it.
    pub(crate) fn forget_peer(&self, region: &Region) {
        self.peers.remove(region);
        self.standing.lock().welcome_back(region);
        self.wanted.lock().retain(|(from, _), _| from != region);
        self.offers.lock().retain(|(to, _)| to != region);
        // Its streams may stand still for ever: what is missing of them the survivors have, or nobody.
        self.quarantine.lock().retain(|(origin, _), _| origin != region);
        self.judge_clock();
        self.confirmations.send_replace(());
        self.repair.notify_one();
    }

    /// Runs work on the storage that may take long.
    // Only a node with threads comes to it: a simulation carries the work out in place.
    #[allow(clippy::disallowed_methods)]
    pub(crate) async fn off_loop<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> Option<T> {
        if !self.has_threads {
            return Some(work(self));
        }
        let shared = self.clone();
        tokio::task::spawn_blocking(move || work(&shared)).await.ok()
    }

    /// As of when all that a peer had written into a keyspace has been absorbed here.
    pub(crate) fn fresh_as_of(&self, slot: &PeerSlot, keyspace: KeyspaceId) -> Option<Duration> {
        let link = slot.link.lock();
        let mut shards = self.shards().map(|shard| link.stream_fresh_as_of((keyspace, shard)));
        shards.try_fold(Duration::MAX, |oldest, at| Some(oldest.min(at?)))
    }

    /// Asks for the complete state of a stream set from a peer.
    pub(crate) fn want_state(&self, from: &Region, stream: StreamKey) {
        self.want(from, stream, Extent::Complete);
    }

    pub(crate) fn want(&self, from: &Region, stream: StreamKey, extent: Extent) {
        if self.queue(stream.1).is_none() || self.is_shut_out(stream.0) {
            return;
        }
        let mut wanted = self.wanted.lock();
        let asked = wanted.entry((from.clone(), stream)).or_insert(extent);
        *asked = extent.max(*asked);
        drop(wanted);
        self.repair.notify_one();
    }

    /// Whether nothing of a keyspace may be here: it is deleted, or handed over. Asked after the storage was: that purges nothing before this says so.
    pub(crate) fn is_gone(&self, keyspace: KeyspaceId) -> bool {
        self.catalog.known().is_gone_from(self.me(), keyspace)
    }

    /// Whether nothing of a keyspace comes here any more, whatever is missing.
    pub(crate) fn is_shut_out(&self, keyspace: KeyspaceId) -> bool {
        self.catalog.known().is_shut_out(self.me(), keyspace)
    }

    /// Nobody waits any more for anything of keyspaces that are gone: nobody has it, or gives it.
    pub(crate) fn forget_gone(&self) {
        let known = self.catalog.known();
        let is_there = |stream: &StreamKey| !known.is_gone_from(self.me(), stream.0);
        let may_come = |stream: &StreamKey| !known.is_shut_out(self.me(), stream.0);
        self.standing.lock().settle(|stream, _| may_come(&stream));
        self.wanted.lock().retain(|(_, stream), _| may_come(stream));
        self.offers.lock().retain(|(_, stream)| is_there(stream));
        self.restate.lock().retain(is_there);
        self.quarantine.lock().retain(|(_, stream), _| is_there(stream));
    }

    /// Every keyspace and shard this region holds.
    pub(crate) fn stream_keys(&self) -> Vec<StreamKey> {
        let known = self.catalog.known();
        known.held_by(self.me()).flat_map(|ks| self.shards().map(|shard| (ks.id, shard))).collect()
    }
}

/// The incarnations that the stored cursors say were admitted: the newest of each region, where there is exactly one.
fn admitted_by<'a>(store: &Store, peers: impl Iterator<Item = &'a Region>) -> Vec<(Region, Incarnation)> {
    let tree = store.tree();
    let streams = store.all_streams();
    peers
        .filter_map(|peer| {
            let known: BTreeSet<Incarnation> = streams
                .iter()
                .filter_map(|(_, streams)| streams.applied().get(peer))
                .flat_map(|vector| vector.entries().iter().map(|entry| entry.0))
                .collect();
            let newest = |candidate: &&Incarnation| known.iter().all(|other| tree.descends(**candidate, *other));
            known.iter().find(newest).map(|incarnation| (peer.clone(), *incarnation))
        })
        .collect()
}
