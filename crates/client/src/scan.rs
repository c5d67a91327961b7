//! Pages of a scan.

use bytes::Bytes;

use crate::Entry;

/// Which keys to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Inclusive; empty is the first.
    pub start: Bytes,
    /// Exclusive; empty is after the last.
    pub end: Bytes,
    /// Instead of `start` and `end`.
    pub prefix: Bytes,
}

impl Range {
    pub fn prefix(prefix: impl Into<Bytes>) -> Range {
        Range { prefix: prefix.into(), ..Range::default() }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// In key order. May be empty though more follow.
    pub entries: Vec<Entry>,
    /// Empty after the last page.
    pub next: Bytes,
}
