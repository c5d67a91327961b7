//! State transfers that are not over, and what of the streams waits for them.
//!
//! The law it keeps: what a transfer's pin covers comes by that transfer alone until it is over or given up. A delta that the
//! pin covers, merged behind the chunk that has its key, would stay for good where the sender had absorbed and forgotten its
//! delete: the cursors move past the delete with the last chunk. What the sender itself streams waits whatever it is.

use std::collections::{BTreeMap, BTreeSet};

use isle_model::{Dot, Lineage, Region, Streams, Vector};
use parking_lot::Mutex;

use crate::shared::StreamKey;

type Pin = Vec<(Region, Vector)>;

#[derive(Debug, Default)]
pub(crate) struct Completing(Mutex<BTreeMap<(Region, StreamKey), Underway>>);

#[derive(Debug, Default)]
struct Underway {
    /// Whether the sender is being asked just now, rather than waited for.
    asking: bool,
    /// Empty until the first chunk has come.
    pin: Pin,
    /// Whose deltas were left out meanwhile: they have to be asked for again.
    left_out: BTreeSet<Region>,
}

impl Completing {
    pub(crate) fn begin(&self, from: &Region, stream: StreamKey) {
        self.0.lock().entry((from.clone(), stream)).or_default().asking = true;
    }

    /// Before the first chunk is merged.
    pub(crate) fn pin(&self, from: &Region, stream: StreamKey, pin: Pin) {
        self.0.lock().entry((from.clone(), stream)).or_default().pin = pin;
    }

    pub(crate) fn pause(&self, from: &Region, stream: StreamKey) {
        if let Some(underway) = self.0.lock().get_mut(&(from.clone(), stream)) {
            underway.asking = false;
        }
    }

    /// The transfer is over, or given up. Says whose deltas were left out for it.
    pub(crate) fn end(&self, from: &Region, stream: StreamKey) -> BTreeSet<Region> {
        self.0.lock().remove(&(from.clone(), stream)).map(|underway| underway.left_out).unwrap_or_default()
    }

    /// Whether deltas of the origin's are left out that have not been asked for again.
    pub(crate) fn has_left_out(&self, origin: &Region) -> bool {
        self.0.lock().values().any(|underway| underway.left_out.contains(origin))
    }

    /// Whether nothing of the origin's stream can be applied yet: it is the sender's own, or still below some pin. What has come
    /// of it is then left out.
    pub(crate) fn holds_back(
        &self,
        origin: &Region,
        stream: StreamKey,
        streams: impl FnOnce() -> Streams,
        lineage: Lineage<'_>,
    ) -> bool {
        let mut underway = self.0.lock();
        let mut here = underway.iter_mut().filter(|((_, at), _)| *at == stream).peekable();
        if here.peek().is_none() {
            return false;
        }
        let cursor = streams().cursor(origin);
        here.fold(false, |held, ((from, _), underway)| {
            let below = |(region, pin): &(Region, Vector)| region == origin && !cursor.covers_all(pin, lineage);
            let holds = (underway.asking && from == origin) || underway.pin.iter().any(below);
            if holds {
                underway.left_out.insert(origin.clone());
            }
            held | holds
        })
    }

    /// Whether a delta of the origin's comes by a transfer. It is then left out.
    pub(crate) fn covers(&self, origin: &Region, stream: StreamKey, dot: Dot, lineage: Lineage<'_>) -> bool {
        let mut underway = self.0.lock();
        let here = underway.iter_mut().filter(|((_, at), _)| *at == stream).map(|(_, underway)| underway);
        here.fold(false, |covered, underway| {
            let covers = underway.pin.iter().any(|(region, pin)| region == origin && pin.covers(dot, lineage));
            if covers {
                underway.left_out.insert(origin.clone());
            }
            covered | covers
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isle_model::{Incarnation, IncarnationTree, KeyspaceId, Row, ShardId};

    #[test]
    fn what_a_pin_covers_waits_until_the_transfer_ends() {
        let (sender, third) = (Region::new("s"), Region::new("t"));
        let mut tree = IncarnationTree::new();
        let row = Row { region: third.clone(), parent: None, left_at: vec![0] };
        tree.insert(Incarnation(3), row).expect("the first row");
        let (lineage, stream) = (tree.shard(ShardId(0)), (KeyspaceId(1), ShardId(0)));
        let dot = |seq| Dot::new(Incarnation(3), seq);
        let completing = Completing::default();
        let holds = |origin| completing.holds_back(origin, stream, Streams::new, lineage);
        assert!(!holds(&sender) && !holds(&third));
        completing.begin(&sender, stream);
        assert!(holds(&sender) && !holds(&third), "the pin is not known yet");
        completing.pin(&sender, stream, vec![(third.clone(), Vector::of(dot(5)))]);
        completing.pause(&sender, stream);
        assert!(!holds(&sender) && holds(&third));
        assert!(completing.covers(&third, stream, dot(5), lineage));
        assert!(!completing.covers(&third, stream, dot(6), lineage));
        assert!(completing.has_left_out(&third));
        assert_eq!(completing.end(&sender, stream), [sender.clone(), third.clone()].into(), "to be asked for again");
        assert!(!holds(&third) && !completing.covers(&third, stream, dot(5), lineage));
    }

    /// One that was on its way to the shard's loop when the pin came was left out there, and nobody asked for it again where
    /// the transfer was given up.
    #[test]
    fn what_is_left_out_at_the_last_moment_is_asked_for_again_too() {
        let (sender, third) = (Region::new("s"), Region::new("t"));
        let tree = IncarnationTree::new();
        let (lineage, stream) = (tree.shard(ShardId(0)), (KeyspaceId(1), ShardId(0)));
        let dot = |seq| Dot::new(Incarnation(3), seq);
        let completing = Completing::default();
        completing.pin(&sender, stream, vec![(third.clone(), Vector::of(dot(5)))]);
        assert!(!completing.covers(&third, stream, dot(6), lineage) && !completing.has_left_out(&third));
        assert!(completing.covers(&third, stream, dot(5), lineage));
        assert_eq!(completing.end(&sender, stream), [third].into());
    }
}
