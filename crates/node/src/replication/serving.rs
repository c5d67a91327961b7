//! Answers to other regions that are not streams of this region's own: a lost region's stream, from this node's log, and
//! complete states.
//!
//! The law it keeps: while this region is behind, only those who are behind themselves are answered, by states; and everything
//! passes the egress gate.

use std::collections::BTreeMap;

use isle_model::{IncarnationTree, Region, Vector};
use isle_store::{LogItem, LogPosition, StateChunk, TailError};
use parking_lot::Mutex;

use crate::egress::{Gate, Verdict};
use crate::egress_meter::Cause;
use crate::peer::{FetchReply, FetchRequest, PeerError, StateReply, StateRequest};
use crate::replication::batch_codec::{BatchBuilder, wire_bytes};
use crate::shared::{Shared, StreamKey};

const READ_BYTES: usize = 1 << 20;
const REPLY_BYTES_MAX: usize = 4 << 20;
const HINTS_MAX: usize = 1024;

/// Where fetches have come to: whoever has all of the vector goes on from the position.
#[derive(Debug, Default)]
pub(crate) struct FetchHints(Mutex<BTreeMap<(Region, StreamKey), (Vector, LogPosition)>>);

pub(crate) fn serve_fetch(shared: &Shared, hints: &FetchHints, ask: &FetchRequest) -> Result<FetchReply, PeerError> {
    check(shared, &ask.asker, (ask.keyspace, ask.shard), false)?;
    let stream = (ask.keyspace, ask.shard);
    // Before the log is read: what is absorbed meanwhile is for the next fetch.
    let cursor = shared.store.durable_streams(ask.keyspace, ask.shard).cursor(&ask.origin);
    let tree = shared.store.tree();
    let lineage = tree.shard(ask.shard);
    let mut have = ask.after.clone();
    let mut at = start(shared, hints, ask, &tree);
    let mut builder = BatchBuilder::default();
    let limit = (ask.bytes_max as usize).min(REPLY_BYTES_MAX);
    let (mut more, mut needs_state) = (false, false);
    'log: while at < shared.store.durable() {
        let from = at;
        let tail = match shared.store.tail(from, READ_BYTES) {
            Ok(tail) => tail,
            Err(TailError::Trimmed { oldest }) => {
                at = oldest;
                continue;
            }
            Err(error) => return Err(PeerError::NotReady { reason: error.to_string() }),
        };
        for item in tail.items.iter().filter(|item| is_of(item, ask, &tree)) {
            if have.covers(item.head.dot, lineage) {
                continue;
            }
            if item.head.prev.is_some_and(|prev| !have.covers(prev, lineage)) {
                needs_state = true;
                break 'log;
            }
            if builder.bytes() >= limit {
                more = true;
                break 'log;
            }
            have.add(item.head.dot, lineage);
            builder.push(&item.encoded);
            at = item.end;
        }
        if tail.upto <= from {
            // What is left up to the durable mark are notes of the log itself.
            break;
        }
        at = tail.upto;
    }
    // What this region got by state its log cannot tell.
    needs_state |= !more && !have.covers_all(&cursor, lineage);
    hints.note(&ask.origin, stream, have, at);
    let rows = tree.rows().map(|(incarnation, row)| (incarnation, row.clone())).collect();
    let batch = builder.finish(rows).map_err(|error| PeerError::NotReady { reason: error.to_string() })?;
    shared.note_sent(&ask.asker, ask.keyspace, Cause::Delta, wire_bytes(&batch));
    Ok(FetchReply { batch, more, needs_state })
}

fn is_of(item: &LogItem, ask: &FetchRequest, tree: &IncarnationTree) -> bool {
    item.head.keyspace == ask.keyspace
        && item.head.shard == ask.shard
        && tree.region(item.head.dot.incarnation) == Some(&ask.origin)
}

fn start(shared: &Shared, hints: &FetchHints, ask: &FetchRequest, tree: &IncarnationTree) -> LogPosition {
    let hints = hints.0.lock();
    let oldest = shared.store.oldest();
    match hints.get(&(ask.origin.clone(), (ask.keyspace, ask.shard))) {
        Some((vector, position)) if ask.after.covers_all(vector, tree.shard(ask.shard)) => oldest.max(*position),
        _ => oldest,
    }
}

impl FetchHints {
    fn note(&self, origin: &Region, stream: StreamKey, have: Vector, at: LogPosition) {
        let mut hints = self.0.lock();
        if hints.len() >= HINTS_MAX {
            hints.clear();
        }
        hints.insert((origin.clone(), stream), (have, at));
    }
}

pub(crate) fn serve_state(shared: &Shared, ask: &StateRequest) -> Result<StateReply, PeerError> {
    check(shared, &ask.asker, (ask.keyspace, ask.shard), ask.asker_is_behind)?;
    let limit = (ask.bytes_max as usize).min(REPLY_BYTES_MAX);
    let chunk = match &ask.changes_after {
        None => shared.store.state_chunk(ask.keyspace, ask.shard, &ask.start, limit),
        // A tombstone that it should have may be gone, and is among no changes.
        Some(_) if shared.standing.lock().is_expired(&ask.asker) => {
            let reason = format!("{} was away for too long: a complete state comes first", ask.asker);
            return Err(PeerError::NotReady { reason });
        }
        Some(after) => shared.store.changes_chunk(ask.keyspace, ask.shard, &ask.start, after, limit),
    };
    let chunk: StateChunk = chunk.map_err(|error| PeerError::NotReady { reason: error.to_string() })?;
    // Asked once the chunk is read: a tombstone that was gone by then went on the word of what was stated by then.
    if let Some(after) = &ask.changes_after
        && has_lost_more(shared, ask, after)
    {
        shared.offers.lock().insert((ask.asker.clone(), (ask.keyspace, ask.shard)));
        let reason = format!("{} once had more than it has: a complete state comes first", ask.asker);
        return Err(PeerError::NotReady { reason });
    }
    // Read after the chunk: they name everything that it does.
    let rows = shared.store.tree().rows().map(|(incarnation, row)| (incarnation, row.clone())).collect();
    Ok(StateReply { rows, chunk })
}

/// Whether the asker has stated to have more of this region's writes than its cursor says: its disk was restored, which it may not know.
fn has_lost_more(shared: &Shared, ask: &StateRequest, after: &Vector) -> bool {
    let (streams, tree) = (shared.store.streams(ask.keyspace, ask.shard), shared.store.tree());
    let stated = streams.stated_by(&ask.asker).and_then(|stated| stated.get(shared.me()));
    stated.is_some_and(|stated| !after.covers_all(stated, tree.shard(ask.shard)))
}

fn check(shared: &Shared, asker: &Region, stream: StreamKey, asker_is_behind: bool) -> Result<(), PeerError> {
    let verdict = Gate::to(shared, asker).judge(stream.0);
    if verdict == Verdict::Never || shared.queue(stream.1).is_none() {
        let reason = format!("keyspace {} shard {} is not for {asker}", stream.0.0, stream.1.0);
        return Err(PeerError::Incompatible { reason });
    }
    if verdict == Verdict::Wait {
        let reason = format!("{asker} means something else by keyspace {}", stream.0.0);
        return Err(PeerError::NotReady { reason });
    }
    if shared.catalog.known().is_taking(shared.me(), stream.0) && !asker_is_behind {
        return Err(PeerError::NotReady { reason: "it does not have all of the keyspace itself".to_owned() });
    }
    if shared.is_behind() && !asker_is_behind {
        return Err(PeerError::NotReady { reason: "its disk was found behind, and it is being completed".to_owned() });
    }
    Ok(())
}
