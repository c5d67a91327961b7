//! When what is written here is shipped to the other regions, of the keyspaces whose changes are not shipped as they come.
//!
//! ```text
//! a peer lacks something ─ the keyspace's interval passes, or somebody asks ─▶ due ─ the peer is told (outbound) ─▶ it takes what has
//!                          changed since its cursor (repair) ─▶ Refetch: its cursor ─▶ no longer due
//! ```
//! The law it keeps: nothing waits longer than the interval once its peer is reached. Nothing of this is stored: what a peer lacks is
//! told by its cursor, and a region that starts does not know since when, so it ships that first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isle_model::metadata::Step;
use isle_model::{Dot, IncarnationTree, KeyspaceId, Region, ShardId, Vector, planted};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::catalog::Known;
use crate::peers::PeerSlot;
use crate::shared::{Shared, StreamKey};
use crate::{Node, NodeError, RequestContext};

pub(crate) struct Shipping {
    state: Mutex<State>,
    /// Stirred when something has come to be due.
    due: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// The keyspaces that there were at the last look, however they are shipped; `None` before the first.
    keyspaces: Option<BTreeSet<KeyspaceId>>,
    /// Streams that were shipped at intervals then.
    known: BTreeSet<StreamKey>,
    waiting: BTreeMap<(Region, StreamKey), Waiting>,
}

/// What a peer lacks of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    since: Duration,
    /// It is due until the peer has this.
    target: Option<Dot>,
    /// When the peer was told, last.
    told: Option<Duration>,
}

/// How a shipment to one peer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shipped {
    pub region: Region,
    /// Keys of which it lacked something; `None` where they were not counted.
    pub keys: Option<u64>,
    /// Whether it has all that was written here before. Else it gets it once it is reached.
    pub is_done: bool,
}

/// What one peer lacks of one keyspace that is not shipped as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShipmentStatus {
    pub keyspace: String,
    /// `None` where they were not counted.
    pub keys_waiting: Option<u64>,
    /// The age of the oldest change that the peer lacks.
    pub oldest: Duration,
    /// When the next shipment is due. Zero while one is.
    pub next_in: Duration,
}

impl Default for Shipping {
    fn default() -> Shipping {
        Shipping { state: Mutex::default(), due: watch::Sender::new(()) }
    }
}

impl Waiting {
    /// One look at a stream of which the peer lacks the last write.
    fn look(&mut self, last: Dot, is_due: impl FnOnce(Duration) -> bool, has: impl Fn(Dot) -> bool, now: Duration) {
        if self.target.is_some_and(has) {
            // What it lacks by now was written after it was told.
            *self = Waiting { since: self.told.unwrap_or(now), target: None, told: None };
        }
        if self.target.is_none() && is_due(now.saturating_sub(self.since)) {
            self.target = Some(last);
        }
    }
}

impl Shipping {
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.due.subscribe()
    }

    /// Streams that the peer is to be told of.
    pub(crate) fn due_to(&self, peer: &Region) -> Vec<StreamKey> {
        let state = self.state.lock();
        let due = state.waiting.iter().filter(|((region, _), waiting)| region == peer && waiting.target.is_some());
        due.map(|((_, stream), _)| *stream).collect()
    }

    pub(crate) fn note_told(&self, peer: &Region, stream: StreamKey, now: Duration) {
        if let Some(waiting) = self.state.lock().waiting.get_mut(&(peer.clone(), stream)) {
            // What is shipped is of before it was first told of: a shipment that breaks off goes on from where it began.
            waiting.told.get_or_insert(now);
        }
    }

    /// Makes what these peers lack of a keyspace due, if it is shipped at intervals.
    pub(crate) fn hasten<'a>(&self, shared: &Shared, id: KeyspaceId, peers: impl Iterator<Item = &'a Region>) {
        let streams: Vec<(StreamKey, Dot)> = shared
            .shards()
            .filter_map(|shard| Some(((id, shard), shared.store.durable_streams(id, shard).last_own()?)))
            .collect();
        if shared.catalog.known().ship_interval(id).is_none() {
            return;
        }
        let now = shared.now();
        let mut state = self.state.lock();
        for (peer, (stream, last)) in peers.flat_map(|peer| streams.iter().map(move |of| (peer, of))) {
            let fresh = Waiting { since: now, target: None, told: None };
            let waiting = state.waiting.entry((peer.clone(), *stream)).or_insert(fresh);
            waiting.target = Some(*last);
        }
        drop(state);
        self.due.send_replace(());
    }
}

/// Looks for what has come to be due, and forgets what everybody has.
pub(crate) fn look(shared: &Shared) {
    let known = shared.catalog.known();
    let (me, now, tree) = (shared.me(), shared.now(), shared.store.tree());
    let shipped = shipped(&known, me);
    let ids: Vec<KeyspaceId> = shipped.iter().map(|(id, _)| *id).collect();
    shared.store.note_changes_of(&ids);
    let peers = shared.peers.all();
    let mut state = shared.shipping.state.lock();
    let State { keyspaces, known: seen, waiting } = &mut *state;
    let before = keyspaces.replace(known.metadata.keyspaces.keys().copied().collect());
    let is_there = |(id, _): &StreamKey| ids.contains(id);
    seen.retain(is_there);
    waiting.retain(|(peer, stream), _| is_there(stream) && peers.contains_key(peer) && known.is_for(peer, stream.0));
    let mut stirred = false;
    for (id, interval) in shipped {
        // Nothing may stay behind in a region that is to let it go.
        let hurries = known.is_leaving(me) || known.step(me, id) == Some(Step::Handing);
        for shard in shared.shards() {
            let stream = (id, shard);
            // What is there when this node starts has waited for it is not known how long, and what a hot keyspace had under way when it
            // turned is not to wait. What is new has waited for no time.
            let was_there = before.as_ref().is_none_or(|before| before.contains(&id));
            let is_overdue = seen.insert(stream) && was_there;
            let Some(last) = shared.store.durable_streams(id, shard).last_own() else { continue };
            let mut all_have = Vec::new();
            for (peer, slot) in peers.iter().filter(|(peer, _)| known.is_for(peer, id)) {
                let have = confirmed_by(slot, stream);
                let has = |dot| have.covers(dot, tree.shard(shard));
                if has(last) {
                    waiting.remove(&(peer.clone(), stream));
                } else {
                    let fresh = Waiting { since: now, target: None, told: None };
                    let waits = waiting.entry((peer.clone(), stream)).or_insert(fresh);
                    let was_due = waits.target.is_some();
                    waits.look(last, |age| is_overdue || hurries || age >= interval, has, now);
                    stirred |= waits.target.is_some() && !was_due;
                }
                all_have.push(have);
            }
            if planted::is(planted::Bug::ForgetChange) {
                all_have.iter().for_each(|have| shared.store.forget_changes(id, shard, have));
            } else if let Some(least) = least(&all_have, &tree, shard) {
                shared.store.forget_changes(id, shard, least);
            }
        }
    }
    drop(state);
    if stirred {
        shared.shipping.due.send_replace(());
    }
}

/// Keyspaces whose changes this region ships at intervals.
fn shipped(known: &Known, me: &Region) -> Vec<(KeyspaceId, Duration)> {
    let keyspaces = known.metadata.keyspaces.values().filter(|keyspace| known.takes_part(me, keyspace.id));
    keyspaces.filter_map(|keyspace| Some((keyspace.id, keyspace.policy.ship_interval()?))).collect()
}

/// Of cursors of one stream the one that every other covers; `None` where there is none such, or nobody to ask.
fn least<'a>(all: &'a [Vector], tree: &IncarnationTree, shard: ShardId) -> Option<&'a Vector> {
    all.iter().find(|one| all.iter().all(|other| other.covers_all(one, tree.shard(shard))))
}

fn confirmed_by(slot: &PeerSlot, stream: StreamKey) -> Vector {
    let link = slot.link.lock();
    let confirmed = link.confirmed.as_ref().and_then(|confirmed| confirmed.cursors.get(&stream));
    confirmed.cloned().unwrap_or_default()
}

/// Streams that are shipped at intervals and of which the peer lacks something that was written here.
pub(crate) fn lacked_by(shared: &Shared, peer: &Region, slot: &PeerSlot) -> Vec<StreamKey> {
    let (known, tree) = (shared.catalog.known(), shared.store.tree());
    let mut lacked = Vec::new();
    for (id, _) in shipped(&known, shared.me()).into_iter().filter(|(id, _)| known.is_for(peer, *id)) {
        for shard in shared.shards() {
            let Some(last) = shared.store.durable_streams(id, shard).last_own() else { continue };
            let have = confirmed_by(slot, (id, shard));
            // Statements alone make nothing staler.
            if !have.covers(last, tree.shard(shard)) && shared.store.has_changes(id, shard, &have) != Some(false) {
                lacked.push((id, shard));
            }
        }
    }
    lacked
}

pub(crate) fn status(shared: &Shared, peer: &Region, slot: &PeerSlot) -> Vec<ShipmentStatus> {
    let (known, now) = (shared.catalog.known(), shared.now());
    let mut out = Vec::new();
    for (id, interval) in shipped(&known, shared.me()).into_iter().filter(|(id, _)| known.is_for(peer, *id)) {
        let Some(keyspace) = known.keyspace(id) else { continue };
        let waiting: Vec<Waiting> = {
            let state = shared.shipping.state.lock();
            let of_it = |shard| state.waiting.get(&(peer.clone(), (id, shard))).copied();
            shared.shards().filter_map(of_it).collect()
        };
        let keys = shared.shards().map(|shard| keys_lacked(shared, slot, (id, shard)));
        let keys_waiting = keys.sum::<Option<u64>>();
        // A statement that nobody has heard yet is no change.
        let changes = waiting.iter().filter(|_| keys_waiting != Some(0));
        let oldest = changes.map(|waits| now.saturating_sub(waits.since)).max();
        let is_due = waiting.iter().any(|waits| waits.target.is_some());
        out.push(ShipmentStatus {
            keyspace: keyspace.name.clone(),
            keys_waiting,
            oldest: oldest.unwrap_or_default(),
            next_in: if is_due { Duration::ZERO } else { interval.saturating_sub(oldest.unwrap_or_default()) },
        });
    }
    out
}

fn keys_lacked(shared: &Shared, slot: &PeerSlot, stream: StreamKey) -> Option<u64> {
    shared.store.keys_changed(stream.0, stream.1, &confirmed_by(slot, stream))
}

impl Node {
    /// Ships what this region has written into a keyspace to every region that holds it, now, and waits until they have it, for as long as
    /// the caller does. What is not done by then goes on.
    pub async fn ship(&self, ctx: &RequestContext, keyspace: &str) -> Result<Vec<Shipped>, NodeError> {
        let shared = &self.shared;
        let known = shared.catalog.known();
        let id = self.keyspace(&known, keyspace)?.id;
        shared.check_serving()?;
        let targets: Vec<(StreamKey, Dot)> = shared
            .shards()
            .filter_map(|shard| Some(((id, shard), shared.store.durable_streams(id, shard).last_own()?)))
            .collect();
        let peers = shared.peers.all();
        let holders: Vec<(&Region, &PeerSlot)> =
            peers.iter().filter(|(peer, _)| known.is_for(peer, id)).map(|(peer, slot)| (peer, slot.as_ref())).collect();
        let lacked = |slot: &PeerSlot| shared.shards().map(|shard| keys_lacked(shared, slot, (id, shard))).sum();
        let keys: Vec<Option<u64>> = holders.iter().map(|(_, slot)| lacked(slot)).collect();
        let tree = shared.store.tree();
        let is_done = |slot: &PeerSlot| {
            targets.iter().all(|(stream, dot)| confirmed_by(slot, *stream).covers(*dot, tree.shard(stream.1)))
        };
        let mut confirmations = shared.confirmations.subscribe();
        shared.shipping.hasten(shared, id, holders.iter().filter(|(_, slot)| !is_done(slot)).map(|(peer, _)| *peer));
        let deadline = Instant::now() + self.patience(ctx).ok_or(NodeError::DeadlineExpired)?;
        while !holders.iter().all(|(_, slot)| is_done(slot)) {
            if !matches!(timeout_at(deadline, confirmations.changed()).await, Ok(Ok(()))) {
                break;
            }
        }
        let shipped = holders.iter().zip(keys);
        let one = |((peer, slot), keys): (&(&Region, &PeerSlot), _)| Shipped {
            region: (*peer).clone(),
            keys,
            is_done: is_done(slot),
        };
        Ok(shipped.map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isle_model::Incarnation;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn dot(seq: u64) -> Dot {
        Dot::new(Incarnation(1), seq)
    }

    #[test]
    fn what_waits_is_due_once_its_interval_has_passed() {
        let mut waits = Waiting { since: s(0), target: None, told: None };
        let hourly = |age: Duration| age >= s(3600);
        waits.look(dot(3), hourly, |_| false, s(3599));
        assert_eq!(waits.target, None);
        waits.look(dot(4), hourly, |_| false, s(3600));
        assert_eq!(waits.target, Some(dot(4)));
        waits.told = Some(s(3601));
        waits.look(dot(7), hourly, |at| at.seq <= 3, s(3602));
        assert_eq!(waits.target, Some(dot(4)), "the goal does not move away from a shipment under way");
        waits.look(dot(9), hourly, |at| at.seq <= 5, s(3610));
        let fresh = Waiting { since: s(3601), target: None, told: None };
        assert_eq!(waits, fresh, "what it lacks now was written after it was told");
    }
}
