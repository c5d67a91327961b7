//! The incarnation tree: which run of a node followed which, and where it left it.
//!
//! Rows are facts: they never change, are durable before use, and travel ahead of whatever uses them. So a disk that lied, a
//! restored backup or a cloned directory only make a branch, and a position in an incarnation implies its ancestors up to
//! where they were left.

use std::collections::BTreeMap;

use crate::{Incarnation, Region, Seq, ShardId};

/// What is known of one incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub region: Region,
    /// The incarnation, of the same region, whose log this one recovered; `None` for a region's first.
    pub parent: Option<Incarnation>,
    /// For each shard, the parent's last sequence number in the recovered log.
    pub left_at: Vec<Seq>,
}

/// A row that contradicts one already known: somebody's incarnation ids collide, or somebody lies.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("incarnation {incarnation} is known with another row (region {known}, offered by {offered})")]
pub struct RowConflict {
    pub incarnation: Incarnation,
    pub known: Region,
    pub offered: Region,
}

/// All rows this node knows, of every region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IncarnationTree {
    rows: BTreeMap<Incarnation, Row>,
}

impl IncarnationTree {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row; says whether it was new.
    pub fn insert(&mut self, incarnation: Incarnation, row: Row) -> Result<bool, RowConflict> {
        match self.rows.get(&incarnation) {
            None => {
                self.rows.insert(incarnation, row);
                Ok(true)
            }
            Some(known) if *known == row => Ok(false),
            Some(known) => Err(RowConflict { incarnation, known: known.region.clone(), offered: row.region }),
        }
    }

    pub fn get(&self, incarnation: Incarnation) -> Option<&Row> {
        self.rows.get(&incarnation)
    }

    pub fn contains(&self, incarnation: Incarnation) -> bool {
        self.rows.contains_key(&incarnation)
    }

    pub fn region(&self, incarnation: Incarnation) -> Option<&Region> {
        self.rows.get(&incarnation).map(|row| &row.region)
    }

    pub fn rows(&self) -> impl Iterator<Item = (Incarnation, &Row)> {
        self.rows.iter().map(|(incarnation, row)| (*incarnation, row))
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether `descendant` is `ancestor` or was started, over any number of restarts, from its log.
    pub fn descends(&self, descendant: Incarnation, ancestor: Incarnation) -> bool {
        descendant == ancestor || self.ancestors(descendant).any(|(incarnation, _)| incarnation == ancestor)
    }

    /// The tree as one shard sees it.
    pub fn shard(&self, shard: ShardId) -> Lineage<'_> {
        Lineage { tree: self, shard }
    }

    /// Ancestors from the parent up, each with the row that left it.
    fn ancestors(&self, incarnation: Incarnation) -> impl Iterator<Item = (Incarnation, &Row)> {
        let mut at = incarnation;
        // A chain is never longer than the number of rows: a cycle, which only a liar can make, ends there.
        (0..self.rows.len()).map_while(move |_| {
            let row = self.rows.get(&at)?;
            at = row.parent?;
            Some((at, row))
        })
    }
}

/// One shard's view of the incarnation tree: what a position implies of the incarnations before it.
#[derive(Clone, Copy, Debug)]
pub struct Lineage<'a> {
    tree: &'a IncarnationTree,
    shard: ShardId,
}

impl<'a> Lineage<'a> {
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    pub fn tree(&self) -> &'a IncarnationTree {
        self.tree
    }

    /// The highest seq of `ancestor` that any position in `incarnation` implies; 0 if it is no ancestor.
    pub fn implied(&self, incarnation: Incarnation, ancestor: Incarnation) -> Seq {
        // Most questions are about another region's incarnation: no need to walk years of restarts for those.
        if self.region(incarnation) != self.region(ancestor) {
            return 0;
        }
        self.ancestors(incarnation).find(|(parent, _)| *parent == ancestor).map_or(0, |(_, left_at)| left_at)
    }

    /// Ancestors from the parent up, each with the seq that any position in `incarnation` implies of it.
    pub(crate) fn ancestors(&self, incarnation: Incarnation) -> impl Iterator<Item = (Incarnation, Seq)> {
        let shard = self.shard.0 as usize;
        self.tree
            .ancestors(incarnation)
            .map(move |(parent, row)| (parent, row.left_at.get(shard).copied().unwrap_or(0)))
    }

    pub fn region(&self, incarnation: Incarnation) -> Option<&'a Region> {
        self.tree.region(incarnation)
    }

    pub fn knows(&self, incarnation: Incarnation) -> bool {
        self.tree.contains(incarnation)
    }
}
