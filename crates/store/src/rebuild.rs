//! A view that has outgrown what it holds is built anew beside itself, while it serves on, and the new one then takes its place.
//!
//! ```text
//! drain ──┬──▶ view-N ──── copied, key by key, in several passes ──┐
//!         └──────────────────────────────────────────▶ view-N+1 ◀──┘     flush, sync ─▶ VIEW says N+1 ─▶ readers switch ─▶ view-N goes
//! ```
//! The law it keeps: the new view never holds what the old one does not, and when the last pass is over it holds all of it.
//! Whatever is drained meanwhile is put into both, what is purged is taken out of both, and nothing else changes either.
//!
//! A pass copies one class of the keys. sled cleans a segment of its file only once half of it is dead, and a fill in key order
//! leaves pages behind that are never touched again: their file takes 2.9 times what it holds. A second pass meets each page once
//! more and fills it up: 1.6 times, and 1.5 with a third.

use xxhash_rust::xxh3::xxh3_64;

use crate::packed::Packed;
use crate::view::{View, ViewError, ViewPlace};
use crate::view_key::ViewKey;

const PASSES: u64 = 3;
/// At rest a view is kept below two and a half times what it holds, and in the midst of writes below five times: it grows as fast
/// as it is written, and is not to be written anew over and over.
const AT_REST_PERCENT: u64 = 250;
const UNDER_WRITES_PERCENT: u64 = 500;
/// Of many small items even a fresh view takes more than it should. It has to have grown since to be worth another try.
const GROWN_PERCENT: u64 = 120;

/// What is known of a view's size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) live_bytes: u64,
    /// What it had when it was built in another's place.
    pub(crate) born_bytes: u64,
}

impl Size {
    pub(crate) fn has_outgrown(self, at_rest: bool) -> bool {
        let percent = if at_rest { AT_REST_PERCENT } else { UNDER_WRITES_PERCENT };
        let is_over = |of: u64, percent: u64| u128::from(self.bytes) * 100 > u128::from(of) * u128::from(percent);
        is_over(self.live_bytes, percent) && is_over(self.born_bytes, GROWN_PERCENT)
    }

    /// What another may take.
    pub(crate) fn copy_bytes(self) -> u64 {
        (self.live_bytes / 100 * AT_REST_PERCENT).max(self.born_bytes).min(self.bytes)
    }
}

/// A view that is being built.
pub(crate) struct Rebuild {
    view: View,
    pass: u64,
    after: Option<ViewKey>,
    live_bytes: i64,
}

impl Rebuild {
    pub(crate) fn begin(old: &View, place: &ViewPlace, generation: u64, cache_bytes: u64) -> Result<Self, ViewError> {
        Ok(Rebuild { view: old.successor(place, generation, cache_bytes)?, pass: 0, after: None, live_bytes: 0 })
    }

    /// Up to which key the old view has been copied in this pass.
    pub(crate) fn after(&self) -> Option<&ViewKey> {
        self.after.as_ref()
    }

    /// What is drained into the old view.
    pub(crate) fn put(&mut self, items: &[(ViewKey, Packed)]) -> Result<(), ViewError> {
        items.iter().try_for_each(|(key, item)| self.put_one(key, item))
    }

    /// What is taken out of the old view.
    pub(crate) fn remove(&mut self, keys: &[ViewKey]) -> Result<(), ViewError> {
        keys.iter().try_for_each(|key| {
            self.live_bytes += self.view.remove(key)?;
            Ok(())
        })
    }

    /// The next of the old view's items. Says whether that was the last pass.
    pub(crate) fn copy(&mut self, items: &[(ViewKey, Packed)]) -> Result<bool, ViewError> {
        let pass = self.pass;
        let of_pass = items.iter().filter(|(key, _)| xxh3_64(key.as_bytes()) % PASSES == pass);
        // What the drain has put here already is put once more, the same: sled takes no note of that.
        of_pass.into_iter().try_for_each(|(key, item)| self.put_one(key, item))?;
        self.after = items.last().map(|(key, _)| key.clone());
        if self.after.is_none() {
            self.pass += 1;
        }
        Ok(self.pass == PASSES)
    }

    fn put_one(&mut self, key: &ViewKey, item: &Packed) -> Result<(), ViewError> {
        self.live_bytes += self.view.put(key, item)?;
        Ok(())
    }

    /// Keys and values that it holds, in bytes.
    pub(crate) fn live_bytes(&self) -> i64 {
        self.live_bytes
    }

    /// Makes all of it durable; returns the seal that its mark has to know.
    pub(crate) fn finish(&mut self) -> Result<u64, ViewError> {
        self.view.flush_built()
    }

    pub(crate) fn into_view(self) -> View {
        self.view
    }

    /// Its directory goes with it. The mark must not name it.
    pub(crate) fn abandon(self) {
        self.view.retire();
    }

    #[cfg(test)]
    pub(crate) fn break_down(&self) {
        self.view.break_down();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_outgrown_sooner_at_rest_than_under_writes_and_only_if_it_has_grown() {
        let size = |bytes, born_bytes| Size { bytes, live_bytes: 100, born_bytes };
        assert!(!size(250, 0).has_outgrown(true));
        assert!(size(251, 150).has_outgrown(true));
        assert!(!size(500, 150).has_outgrown(false));
        assert!(size(501, 150).has_outgrown(false));
        assert!(!size(600, 590).has_outgrown(true) && !size(600, 590).has_outgrown(false));
        assert!(size(u64::MAX, 0).has_outgrown(false), "no product overflows");
    }
}
