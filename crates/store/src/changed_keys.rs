//! Keys that this region has written, each with the last of those writes: what a shipment of changes goes through instead of every
//! record.
//!
//! It is a shortcut and no more. That a peer lacks something of a record is told by the record's own dots and the peer's cursor, and
//! both are in the log: so this is kept in memory alone, is bounded, and starts empty. The law it keeps: it has every key with a
//! published write of this region's above `since`; who lacks more than that goes through the records.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use isle_model::{Dot, Lineage, Vector, planted};

/// So many of one keyspace and shard: about 40 MiB, were their keys 64 bytes each.
const KEYS_MAX: usize = 1 << 18;

pub(crate) struct ChangedKeys {
    /// Of this region's writes covered by this it knows nothing.
    since: Vector,
    keys: BTreeMap<Bytes, Dot>,
}

impl ChangedKeys {
    pub(crate) fn since(written: Vector) -> ChangedKeys {
        ChangedKeys { since: written, keys: BTreeMap::new() }
    }

    /// Notes a write, the last that was published. When there are too many it begins anew behind it.
    pub(crate) fn note(&mut self, key: Bytes, dot: Dot, lineage: Lineage<'_>) {
        self.keys.insert(key, dot);
        if self.keys.len() > KEYS_MAX {
            self.keys.clear();
            self.since.add(dot, lineage);
        }
    }

    /// Whether it has every key that somebody lacks who has so much of this region's stream.
    pub(crate) fn knows(&self, have: &Vector, lineage: Lineage<'_>) -> bool {
        have.covers_all(&self.since, lineage)
    }

    /// Those keys, from one on, in key order.
    pub(crate) fn lacked<'a>(
        &'a self,
        from: &[u8],
        have: &'a Vector,
        lineage: Lineage<'a>,
    ) -> impl Iterator<Item = &'a Bytes> + use<'a> {
        let from = Bound::Included(Bytes::copy_from_slice(from));
        let keys = self.keys.range::<Bytes, _>((from, Bound::Unbounded));
        keys.filter(move |(_, dot)| !have.covers(**dot, lineage)).map(|(key, _)| key)
    }

    /// Whether anything is to be forgotten where everybody has so much.
    pub(crate) fn would_forget(&self, have: &Vector, lineage: Lineage<'_>) -> bool {
        planted::is(planted::Bug::ForgetChange) || !self.since.covers_all(have, lineage)
    }

    /// Forgets the keys of writes that everybody has.
    pub(crate) fn forget(&mut self, have: &Vector, lineage: Lineage<'_>) {
        self.keys.retain(|_, dot| !have.covers(*dot, lineage));
        // Whoever comes back from an older copy lacks some of them again.
        if !planted::is(planted::Bug::ForgetChange) {
            self.since.join(have, lineage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isle_model::{Incarnation, IncarnationTree, Region, Row, ShardId};

    fn tree() -> IncarnationTree {
        let mut tree = IncarnationTree::new();
        let row = Row { region: Region::new("a"), parent: None, left_at: vec![0] };
        tree.insert(Incarnation(1), row).expect("the first row");
        tree
    }

    fn dot(seq: u64) -> Dot {
        Dot::new(Incarnation(1), seq)
    }

    fn key(n: u64) -> Bytes {
        Bytes::from(format!("{n:08}"))
    }

    #[test]
    fn a_key_is_lacked_by_its_last_write() {
        let tree = tree();
        let lineage = tree.shard(ShardId(0));
        let mut changed = ChangedKeys::since(Vector::of(dot(2)));
        for (n, seq) in [(1, 3), (2, 4), (1, 5)] {
            changed.note(key(n), dot(seq), lineage);
        }
        let lacked = |changed: &ChangedKeys, have: u64| {
            changed.lacked(b"", &Vector::of(dot(have)), lineage).cloned().collect::<Vec<_>>()
        };
        assert!(!changed.knows(&Vector::of(dot(1)), lineage), "what was written before it began it does not know");
        assert!(changed.knows(&Vector::of(dot(2)), lineage));
        assert_eq!(lacked(&changed, 2), [key(1), key(2)]);
        assert_eq!(lacked(&changed, 4), [key(1)]);
        assert_eq!(changed.lacked(&key(2), &Vector::of(dot(2)), lineage).count(), 1, "it goes on from a key");
        changed.forget(&Vector::of(dot(4)), lineage);
        assert_eq!(lacked(&changed, 4), [key(1)]);
        assert!(!changed.knows(&Vector::of(dot(3)), lineage), "the key of the fourth is forgotten");
    }

    #[test]
    fn too_many_are_forgotten_and_it_says_so() {
        let tree = tree();
        let lineage = tree.shard(ShardId(0));
        let mut changed = ChangedKeys::since(Vector::new());
        let most = KEYS_MAX as u64;
        (1..=most).for_each(|n| changed.note(key(n), dot(n), lineage));
        assert!(changed.knows(&Vector::new(), lineage));
        (most + 1..=most + 2).for_each(|n| changed.note(key(n), dot(n), lineage));
        assert!(!changed.knows(&Vector::of(dot(most)), lineage));
        let have = Vector::of(dot(most + 1));
        assert!(changed.knows(&have, lineage));
        assert_eq!(changed.lacked(b"", &have, lineage).collect::<Vec<_>>(), [&key(most + 2)]);
    }
}
