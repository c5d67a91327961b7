//! The newest of one shard in memory, over the view: what a burst writes is read from here and drained into sled behind it.
//!
//! ```text
//! stage(end, changes) ──▶ pending ── publish(durable) ──▶ visible ── drain, in key order ──▶ view
//!        writers read: pending, visible, view     (packed)   readers: visible, view
//! ```
//! Readers never see what is not durable: a batch becomes visible only when the log's durable mark has passed its end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use isle_model::{LedgerEntry, Record};

use crate::log::LogPosition;
use crate::packed::Packed;
use crate::view_key::ViewKey;

/// One thing the view holds, in its newest form.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Record(Arc<Record>),
    Ledger(Arc<LedgerEntry>),
    /// A forgotten tombstone.
    Gone,
}

impl Item {
    /// About how many bytes of memory it takes while it waits for its fsync, its key apart: a record is many small pieces.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Item::Record(record) => 192 + 136 * record.fields().len() + record.size(),
            Item::Ledger(entry) => 384 + entry.key.len() + entry.value.as_ref().map_or(0, |v| v.value.bytes.len()),
            Item::Gone => 64,
        }
    }
}

/// The changes of one batch, waiting for its fsync, with whatever else is to be published with them.
struct Pending<T> {
    end: LogPosition,
    changes: Arc<Vec<(ViewKey, Item)>>,
    with: T,
}

pub(crate) struct Overlay<T> {
    pending: VecDeque<Pending<T>>,
    /// The newest pending item of a key, and in how many pending batches the key is.
    newest: HashMap<ViewKey, (Item, u32), RandomState>,
    visible: BTreeMap<ViewKey, Packed>,
    /// About how many bytes all overlays of a node hold, pending ones included: asked without a lock before every batch.
    bytes: Arc<AtomicUsize>,
}

impl<T> Overlay<T> {
    pub(crate) fn new(bytes: Arc<AtomicUsize>) -> Self {
        Overlay { pending: VecDeque::new(), newest: HashMap::default(), visible: BTreeMap::new(), bytes }
    }

    /// The newest there is that is not durable yet: for the shard's writer alone.
    pub(crate) fn pending(&self, key: &ViewKey) -> Option<&Item> {
        self.newest.get(key).map(|(item, _)| item)
    }

    pub(crate) fn visible(&self, key: &ViewKey) -> Option<&Packed> {
        self.visible.get(key)
    }

    pub(crate) fn stage(&mut self, end: LogPosition, changes: Vec<(ViewKey, Item)>, with: T) {
        debug_assert!(self.pending.back().is_none_or(|last| last.end <= end));
        for (key, item) in &changes {
            self.bytes.fetch_add(key.heap_bytes() + item.bytes(), Ordering::Relaxed);
            match self.newest.get_mut(key) {
                Some((newest, batches)) => {
                    *newest = item.clone();
                    *batches += 1;
                }
                None => {
                    self.newest.insert(key.clone(), (item.clone(), 1));
                }
            }
        }
        self.pending.push_back(Pending { end, changes: Arc::new(changes), with });
    }

    /// The oldest batch, if it may be made visible. Its changes are packed without the lock: a writer need not wait for that.
    pub(crate) fn due(&self, durable: LogPosition) -> Option<Arc<Vec<(ViewKey, Item)>>> {
        self.pending.front().filter(|first| first.end <= durable).map(|first| first.changes.clone())
    }

    /// Makes the oldest batch visible, packed change by change; returns what was staged with it.
    pub(crate) fn publish_next(&mut self, packed: Vec<Packed>) -> Option<T> {
        let Pending { changes, with, .. } = self.pending.pop_front()?;
        debug_assert_eq!(changes.len(), packed.len(), "it is packed by whoever publishes, one at a time");
        for ((key, item), packed) in changes.iter().zip(packed) {
            self.forget_pending(key);
            let (key_bytes, more) = (key.heap_bytes(), packed.bytes());
            let replaced = self.visible.insert(key.clone(), packed).map_or(0, |old| key_bytes + old.bytes());
            self.bytes.fetch_add(more, Ordering::Relaxed);
            self.bytes.fetch_sub(item.bytes() + replaced, Ordering::Relaxed);
        }
        Some(with)
    }

    fn forget_pending(&mut self, key: &ViewKey) {
        if let Some((_, batches)) = self.newest.get_mut(key) {
            *batches -= 1;
            if *batches == 0 {
                self.newest.remove(key);
            }
        }
    }

    /// Up to `most` visible items after `after`, in key order.
    pub(crate) fn next_to_drain(&self, after: Option<&ViewKey>, most: usize) -> Vec<(ViewKey, Packed)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.visible.range::<ViewKey, _>((from, Bound::Unbounded));
        range.take(most).map(|(key, item)| (key.clone(), item.clone())).collect()
    }

    /// Visible items of [start, end), in key order.
    pub(crate) fn range<'a>(
        &'a self,
        start: &ViewKey,
        end: &ViewKey,
    ) -> impl Iterator<Item = (&'a ViewKey, &'a Packed)> + use<'a, T> {
        // An empty or backward range is nothing, not a panic.
        let bounds = (start < end).then(|| (Bound::Included(start.clone()), Bound::Excluded(end.clone())));
        bounds.into_iter().flat_map(|bounds| self.visible.range::<ViewKey, _>(bounds))
    }

    /// Users' keys of records in [start, end), unsynced ones included.
    pub(crate) fn newest_keys(&self, start: &ViewKey, end: &ViewKey) -> std::collections::BTreeSet<bytes::Bytes> {
        let pending = self.newest.keys().filter(|key| (start..end).contains(key));
        pending.chain(self.range(start, end).map(|(key, _)| key)).map(ViewKey::user_key).collect()
    }

    /// Takes out up to `most` visible items of [start, end), whether or not the view holds them.
    pub(crate) fn take(&mut self, start: &ViewKey, end: &ViewKey, most: usize) -> Vec<(ViewKey, Packed)> {
        let keys: Vec<ViewKey> = self.range(start, end).take(most).map(|(key, _)| key.clone()).collect();
        let taken: Vec<_> = keys.into_iter().filter_map(|key| self.visible.remove_entry(&key)).collect();
        let bytes: usize = taken.iter().map(|(key, item)| key.heap_bytes() + item.bytes()).sum();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        taken
    }

    /// Takes out what the view now holds, unless something newer has come meanwhile.
    pub(crate) fn drained(&mut self, items: &[(ViewKey, Packed)]) {
        for (key, item) in items {
            if self.visible.get(key).is_some_and(|now| now.is_same(item)) {
                self.visible.remove(key);
                self.bytes.fetch_sub(key.heap_bytes() + item.bytes(), Ordering::Relaxed);
            }
        }
    }
}

pub(crate) fn pack(changes: &[(ViewKey, Item)]) -> Vec<Packed> {
    changes.iter().map(|(key, item)| Packed::of(key, item)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use isle_model::{KeyspaceId, ShardId};

    fn key(n: u8) -> ViewKey {
        ViewKey::record(KeyspaceId(1), ShardId(0), &[n])
    }

    fn publish<T>(overlay: &mut Overlay<T>, durable: LogPosition) -> usize {
        let mut published = 0;
        while let Some(changes) = overlay.due(durable) {
            assert!(overlay.publish_next(pack(&changes)).is_some());
            published += changes.len();
        }
        published
    }

    fn record() -> Item {
        Item::Record(Arc::new(Record::new()))
    }

    #[test]
    fn readers_see_a_batch_only_once_it_is_durable() {
        let mut overlay = Overlay::new(Arc::default());
        overlay.stage(LogPosition(8), vec![(key(1), record())], ());
        assert!(overlay.visible(&key(1)).is_none());
        assert!(overlay.pending(&key(1)).is_some());
        assert_eq!(publish(&mut overlay, LogPosition(7)), 0, "nothing is durable yet");
        assert_eq!(publish(&mut overlay, LogPosition(8)), 1);
        assert!(overlay.visible(&key(1)).is_some());
    }

    #[test]
    fn a_newer_item_survives_the_draining_of_an_older_one() {
        let mut overlay = Overlay::new(Arc::default());
        overlay.stage(LogPosition(8), vec![(key(1), record())], ());
        publish(&mut overlay, LogPosition(8));
        let draining = overlay.next_to_drain(None, 10);
        overlay.stage(LogPosition(16), vec![(key(1), record())], ());
        publish(&mut overlay, LogPosition(16));
        overlay.drained(&draining);
        assert_eq!(overlay.next_to_drain(None, 10).len(), 1);
        let newer = overlay.next_to_drain(None, 10);
        overlay.drained(&newer);
        assert!(overlay.next_to_drain(None, 1).is_empty());
        assert_eq!(overlay.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_writer_reads_its_unsynced_batches_until_the_last_is_published() {
        let mut overlay = Overlay::new(Arc::default());
        overlay.stage(LogPosition(8), vec![(key(1), record())], ());
        overlay.stage(LogPosition(16), vec![(key(1), Item::Gone)], ());
        publish(&mut overlay, LogPosition(8));
        assert!(matches!(overlay.pending(&key(1)), Some(Item::Gone)));
        assert!(matches!(overlay.visible(&key(1)), Some(Packed::Record { .. })));
        publish(&mut overlay, LogPosition(16));
        assert!(overlay.pending(&key(1)).is_none());
        assert!(matches!(overlay.visible(&key(1)), Some(Packed::Gone)));
    }
}
