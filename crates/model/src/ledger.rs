//! The durable record of conflicts: which value lost, to which, when, where; keyed by the loser's dot.
//!
//! No acked write vanishes silently: it is current, or causally superseded, or in the ledger. Entries merge by union, so
//! they may be made in several regions and travel any number of times.

use bytes::Bytes;

use crate::{Dot, FieldKey, Hlc, KeyspaceId, Region, Sibling};

/// What became of a loser. Higher wins in merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// Still a live sibling.
    Open = 1,
    /// Covered by a write whose region showed it as the current value.
    Superseded = 2,
    /// Covered without ever having been shown there.
    Lost = 3,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    pub keyspace: KeyspaceId,
    pub key: Bytes,
    pub field: FieldKey,
    pub loser: Dot,
    /// The losing value; `None` where only a client's token knew of it, until somebody fills it in.
    pub value: Option<Sibling>,
    /// The value it lost to, where that was seen.
    pub winner: Option<Dot>,
    /// When the loss was first seen, and where.
    pub seen_at: Hlc,
    pub seen_in: Region,
    pub fate: Fate,
    /// The write that covered it, once it is not open any more.
    pub covered_by: Option<Dot>,
}

impl LedgerEntry {
    /// Merges what another region knows of the same loser.
    pub fn merge(&mut self, other: &LedgerEntry) {
        debug_assert_eq!((self.loser, &self.field), (other.loser, &other.field));
        if self.value.is_none() {
            self.value = other.value.clone();
        }
        // One triple, so that a winner is never shown with another region's time.
        fn first(e: &LedgerEntry) -> (bool, Hlc, &Region, Option<Dot>) {
            (e.winner.is_none(), e.seen_at, &e.seen_in, e.winner)
        }
        if first(other) < first(self) {
            self.winner = other.winner;
            self.seen_at = other.seen_at;
            self.seen_in = other.seen_in.clone();
        }
        self.covered_by = match (self.fate.cmp(&other.fate), self.covered_by, other.covered_by) {
            (std::cmp::Ordering::Greater, mine, _) => mine,
            (std::cmp::Ordering::Less, _, theirs) => theirs,
            (_, Some(mine), Some(theirs)) => Some(mine.min(theirs)),
            (_, mine, theirs) => mine.or(theirs),
        };
        self.fate = self.fate.max(other.fate);
    }
}
