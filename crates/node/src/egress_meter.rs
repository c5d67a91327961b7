//! What leaves for each other region, in bytes: how many in all, and of which keyspace, and why.
//!
//! ```text
//! messages ─ keyspace, cause ─▶ note ─┐
//!                                     ├▶ what is shown
//! connections ─ bytes written ─▶ wrote ┘
//! ```
//! The law it keeps: the sum is what the connections have written, TLS included, which is what a network charges for but for its own
//! headers. What no message accounts for is the transport's: frames, call headers, keepalives, encryption.

use std::collections::BTreeMap;
use std::sync::Arc;

use isle_model::{KeyspaceId, Region};
use parking_lot::{Mutex, RwLock};

use crate::counters::Counter;

/// Why something was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Writes, as they come.
    Delta,
    /// What had changed, at an interval or because the log did not reach back.
    Warm,
    /// Complete states.
    State,
    /// Requests sent on to a key's home, and their answers.
    Forward,
    /// Agreeing on members and keyspaces.
    Metadata,
    /// Greetings, acknowledgements, probes: what keeps a link.
    Heartbeat,
    /// What the messages take beside themselves on their connections.
    Transport,
}

impl Cause {
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Delta => "delta",
            Cause::Warm => "warm",
            Cause::State => "state",
            Cause::Forward => "forward",
            Cause::Metadata => "metadata",
            Cause::Heartbeat => "heartbeat",
            Cause::Transport => "transport",
        }
    }
}

#[derive(Debug, Default)]
pub struct EgressMeter(RwLock<BTreeMap<Region, Arc<PeerEgress>>>);

/// What has left for one region since the node started.
#[derive(Debug, Default)]
pub struct PeerEgress {
    written: Counter,
    by: Mutex<BTreeMap<(Option<KeyspaceId>, Cause), u64>>,
}

impl EgressMeter {
    pub fn to(&self, peer: &Region) -> Arc<PeerEgress> {
        if let Some(known) = self.0.read().get(peer) {
            return known.clone();
        }
        self.0.write().entry(peer.clone()).or_default().clone()
    }
}

impl PeerEgress {
    /// A connection to it has written so many bytes.
    pub fn wrote(&self, bytes: u64) {
        self.written.add(bytes);
    }

    /// A message to it takes so many.
    pub fn note(&self, keyspace: Option<KeyspaceId>, cause: Cause, bytes: u64) {
        *self.by.lock().entry((keyspace, cause)).or_default() += bytes;
    }

    /// A message of several keyspaces' writes: each has the part of it that it is of what went in.
    pub(crate) fn note_parts(&self, raw: &BTreeMap<KeyspaceId, u64>, cause: Cause, bytes: u64) {
        let all: u64 = raw.values().sum();
        let (mut left, mut raw_left) = (bytes, all);
        for (keyspace, raw) in raw {
            // Of what is left, so that the parts make the whole.
            let part =
                if raw_left == 0 { left } else { (u128::from(left) * u128::from(*raw) / u128::from(raw_left)) as u64 };
            self.note(Some(*keyspace), cause, part);
            left -= part;
            raw_left -= raw;
        }
    }

    /// All there was, by keyspace and cause. Messages that wait to be written are in it already.
    pub fn rows(&self) -> BTreeMap<(Option<KeyspaceId>, Cause), u64> {
        let mut rows = self.by.lock().clone();
        let noted: u64 = rows.values().sum();
        let rest = self.written.get().saturating_sub(noted);
        if rest > 0 {
            rows.insert((None, Cause::Transport), rest);
        }
        rows
    }

    pub fn total(&self) -> u64 {
        self.rows().values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: KeyspaceId = KeyspaceId(1);
    const B: KeyspaceId = KeyspaceId(2);

    #[test]
    fn parts_make_the_whole() {
        let peer = PeerEgress::default();
        peer.note_parts(&BTreeMap::from([(A, 1), (B, 2)]), Cause::Delta, 100);
        assert_eq!(peer.rows(), BTreeMap::from([((Some(A), Cause::Delta), 33), ((Some(B), Cause::Delta), 67)]));
        peer.note_parts(&BTreeMap::from([(A, 0)]), Cause::Delta, 5);
        assert_eq!(peer.total(), 105);
    }

    #[test]
    fn the_sum_is_what_was_written() {
        let peer = PeerEgress::default();
        peer.note(None, Cause::Heartbeat, 40);
        assert_eq!(peer.total(), 40, "it is on its way");
        peer.wrote(100);
        assert_eq!(peer.rows()[&(None, Cause::Transport)], 60);
        assert_eq!(peer.total(), 100);
    }

    #[test]
    fn regions_are_counted_apart() {
        let meter = EgressMeter::default();
        meter.to(&Region::new("a")).wrote(3);
        meter.to(&Region::new("a")).wrote(4);
        assert_eq!((meter.to(&Region::new("a")).total(), meter.to(&Region::new("b")).total()), (7, 0));
    }
}
