//! The newest of one shard in memory, over the view: what a burst writes is read from here and drained into sled behind it.
//!
//! ```text
//! stage(end, changes) ──▶ pending ── publish(durable) ──▶ visible ── drain, in key order ──▶ view
//!        writers read: pending, visible, view                readers: visible, view
//! ```
//! Readers never see what is not durable: a batch becomes visible only when the log's durable mark has passed its end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use isle_model::{LedgerEntry, Record};

use crate::log::LogPosition;
use crate::view_key::ViewKey;

/// One thing the view holds, in its newest form.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Record(Arc<Record>),
    Ledger(Arc<LedgerEntry>),
    /// A forgotten tombstone: to be removed from the view.
    Gone,
}

impl Item {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Item::Record(record) => 96 + record.size(),
            Item::Ledger(entry) => 256 + entry.key.len() + entry.value.as_ref().map_or(0, |v| v.value.bytes.len()),
            Item::Gone => 64,
        }
    }

    pub(crate) fn is_same(&self, other: &Item) -> bool {
        match (self, other) {
            (Item::Record(a), Item::Record(b)) => Arc::ptr_eq(a, b),
            (Item::Ledger(a), Item::Ledger(b)) => Arc::ptr_eq(a, b),
            (Item::Gone, Item::Gone) => true,
            _ => false,
        }
    }
}

/// The changes of one batch, waiting for its fsync, with whatever else is to be published with them.
struct Pending<T> {
    end: LogPosition,
    changes: Vec<(ViewKey, Item)>,
    with: T,
}

pub(crate) struct Overlay<T> {
    pending: VecDeque<Pending<T>>,
    /// The newest pending item of a key, and in how many pending batches the key is.
    newest: HashMap<ViewKey, (Item, u32)>,
    visible: BTreeMap<ViewKey, Item>,
    /// About how many bytes all overlays of a node hold, pending ones included: asked without a lock before every batch.
    bytes: Arc<AtomicUsize>,
}

impl<T> Overlay<T> {
    pub(crate) fn new(bytes: Arc<AtomicUsize>) -> Self {
        Overlay { pending: VecDeque::new(), newest: HashMap::new(), visible: BTreeMap::new(), bytes }
    }

    /// The newest there is, durable or not: for the shard's writer alone.
    pub(crate) fn newest(&self, key: &ViewKey) -> Option<&Item> {
        self.newest.get(key).map(|(item, _)| item).or_else(|| self.visible.get(key))
    }

    pub(crate) fn visible(&self, key: &ViewKey) -> Option<&Item> {
        self.visible.get(key)
    }

    pub(crate) fn stage(&mut self, end: LogPosition, changes: Vec<(ViewKey, Item)>, with: T) {
        debug_assert!(self.pending.back().is_none_or(|last| last.end <= end));
        for (key, item) in &changes {
            self.bytes.fetch_add(key.0.len() + item.bytes(), Ordering::Relaxed);
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
        self.pending.push_back(Pending { end, changes, with });
    }

    /// Makes every batch at or below `durable` visible; `then` gets what was staged with it, change by change and whole.
    pub(crate) fn publish(&mut self, durable: LogPosition, mut then: impl FnMut(&[(ViewKey, Item)], T)) {
        while self.pending.front().is_some_and(|first| first.end <= durable) {
            let Some(Pending { changes, with, .. }) = self.pending.pop_front() else { return };
            then(&changes, with);
            for (key, item) in changes {
                self.forget_pending(&key);
                if let Some(old) = self.visible.insert(key.clone(), item) {
                    self.bytes.fetch_sub(key.0.len() + old.bytes(), Ordering::Relaxed);
                }
            }
        }
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
    pub(crate) fn next_to_drain(&self, after: Option<&ViewKey>, most: usize) -> Vec<(ViewKey, Item)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.visible.range::<ViewKey, _>((from, Bound::Unbounded));
        range.take(most).map(|(key, item)| (key.clone(), item.clone())).collect()
    }

    /// Visible items of [start, end), in key order.
    pub(crate) fn range<'a>(
        &'a self,
        start: &ViewKey,
        end: &ViewKey,
    ) -> impl Iterator<Item = (&'a ViewKey, &'a Item)> + use<'a, T> {
        // An empty or backward range is nothing, not a panic.
        let bounds = (start < end).then(|| (Bound::Included(start.clone()), Bound::Excluded(end.clone())));
        bounds.into_iter().flat_map(|bounds| self.visible.range::<ViewKey, _>(bounds))
    }

    /// Users' keys of records in [start, end), unsynced ones included.
    pub(crate) fn newest_keys(&self, start: &ViewKey, end: &ViewKey) -> std::collections::BTreeSet<bytes::Bytes> {
        let pending = self.newest.keys().filter(|key| (start..end).contains(key));
        pending.chain(self.range(start, end).map(|(key, _)| key)).map(ViewKey::user_key).collect()
    }

    /// Takes out what the view now holds, unless something newer has come meanwhile.
    pub(crate) fn drained(&mut self, items: &[(ViewKey, Item)]) {
        for (key, item) in items {
            if self.visible.get(key).is_some_and(|now| now.is_same(item)) {
                self.visible.remove(key);
                self.bytes.fetch_sub(key.0.len() + item.bytes(), Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isle_model::{KeyspaceId, ShardId};

    fn key(n: u8) -> ViewKey {
        ViewKey::record(KeyspaceId(1), ShardId(0), &[n])
    }

    fn record() -> Item {
        Item::Record(Arc::new(Record::new()))
    }

    #[test]
    fn readers_see_a_batch_only_once_it_is_durable() {
        let mut overlay = Overlay::new(Arc::default());
        overlay.stage(LogPosition(8), vec![(key(1), record())], ());
        assert!(overlay.visible(&key(1)).is_none());
        assert!(overlay.newest(&key(1)).is_some());
        overlay.publish(LogPosition(7), |_, ()| panic!("nothing is durable yet"));
        let mut published = 0;
        overlay.publish(LogPosition(8), |changes, ()| published += changes.len());
        assert_eq!(published, 1);
        assert!(overlay.visible(&key(1)).is_some());
    }

    #[test]
    fn a_newer_item_survives_the_draining_of_an_older_one() {
        let mut overlay = Overlay::new(Arc::default());
        overlay.stage(LogPosition(8), vec![(key(1), record())], ());
        overlay.publish(LogPosition(8), |_, ()| ());
        let draining = overlay.next_to_drain(None, 10);
        overlay.stage(LogPosition(16), vec![(key(1), record())], ());
        overlay.publish(LogPosition(16), |_, ()| ());
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
        let (first, second) = (record(), record());
        overlay.stage(LogPosition(8), vec![(key(1), first)], ());
        overlay.stage(LogPosition(16), vec![(key(1), second.clone())], ());
        overlay.publish(LogPosition(8), |_, ()| ());
        assert!(overlay.newest(&key(1)).is_some_and(|item| item.is_same(&second)));
        overlay.publish(LogPosition(16), |_, ()| ());
        assert!(overlay.visible(&key(1)).is_some_and(|item| item.is_same(&second)));
    }
}
