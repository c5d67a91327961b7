//! Which keys overlay and view may hold, of records and of tombstones. It outlives a view: one that takes another's place holds the
//! same keys.

use crate::key_filter::KeyFilter;
use crate::overlay::Item;
use crate::view_key::{RECORDS, ViewKey};

#[derive(Default)]
pub(crate) struct KnownKeys {
    /// Keys of records, of those on their way to the view too.
    records: KeyFilter,
    /// Keys of those that are tombstones.
    tombstones: KeyFilter,
}

impl KnownKeys {
    /// Whether a key is a record's, and neither in the view nor on its way.
    pub(crate) fn denies(&self, key: &ViewKey) -> bool {
        key.tree() == RECORDS && self.records.denies(key.in_tree())
    }

    /// Whether what the view holds of a key is no tombstone for sure.
    pub(crate) fn denies_tombstone(&self, key: &ViewKey) -> bool {
        self.tombstones.denies(key.in_tree())
    }

    /// An item of this key is staged, and will be put into the view.
    pub(crate) fn expect(&self, key: &ViewKey) {
        if key.tree() == RECORDS {
            self.records.note(key.in_tree());
        }
    }

    pub(crate) fn expect_tombstone(&self, key: &ViewKey) {
        self.tombstones.note(key.in_tree());
    }

    /// Of what was in the view at the start.
    pub(crate) fn note_known(&self, key: &ViewKey, item: &Item) {
        self.expect(key);
        if matches!(item, Item::Record(record) if !record.is_live()) {
            self.expect_tombstone(key);
        }
    }

    /// Every record that was in the view at the start has been noted.
    pub(crate) fn all_known(&self) {
        self.records.complete();
        self.tombstones.complete();
    }
}
