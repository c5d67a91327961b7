//! A vector: what has been absorbed, as one position an incarnation.
//!
//! A position implies its ancestors up to where they were left, and implied entries are dropped: in normal life there is one
//! entry a region, however often it restarts. (Version vectors with branches: see Almeida et al., "Interval Tree Clocks", for
//! the problem, and the incarnation tree for our answer.)

use crate::{Dot, Incarnation, Lineage, Seq};

/// Incarnation → seq, sorted by incarnation, without zeros and without implied entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Vector {
    entries: Vec<(Incarnation, Seq)>,
}

impl Vector {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn of(dot: Dot) -> Self {
        Vector::from_entries([(dot.incarnation, dot.seq)])
    }

    /// From entries in any order, as they come off the wire. Of two for one incarnation the higher counts.
    pub fn from_entries(entries: impl IntoIterator<Item = (Incarnation, Seq)>) -> Self {
        let mut entries: Vec<_> = entries.into_iter().filter(|&(_, seq)| seq > 0).collect();
        entries.sort_unstable_by(|a, b| (a.0, b.1).cmp(&(b.0, a.1)));
        entries.dedup_by_key(|e| e.0);
        Vector { entries }
    }

    pub fn entries(&self) -> &[(Incarnation, Seq)] {
        &self.entries
    }

    pub fn dots(&self) -> impl DoubleEndedIterator<Item = Dot> {
        self.entries.iter().map(|&(incarnation, seq)| Dot { incarnation, seq })
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry itself, without what others imply.
    pub fn get(&self, incarnation: Incarnation) -> Seq {
        match self.entries.binary_search_by_key(&incarnation, |e| e.0) {
            Ok(at) => self.entries[at].1,
            Err(_) => 0,
        }
    }

    pub fn covers(&self, dot: Dot, lineage: Lineage<'_>) -> bool {
        // An entry says all there is to know of its incarnation: were more of it implied, it would have been dropped.
        match self.get(dot.incarnation) {
            0 => dot.seq == 0 || self.entries.iter().any(|&(i, _)| lineage.implied(i, dot.incarnation) >= dot.seq),
            seq => seq >= dot.seq,
        }
    }

    pub fn covers_all(&self, other: &Vector, lineage: Lineage<'_>) -> bool {
        other.dots().all(|dot| self.covers(dot, lineage))
    }

    /// Joins `other` in: afterwards `self` covers what either covered.
    pub fn join(&mut self, other: &Vector, lineage: Lineage<'_>) {
        if other.entries.iter().all(|&(i, s)| self.get(i) >= s) {
            return;
        }
        let mut strangers = false;
        for &(incarnation, seq) in &other.entries {
            strangers |= self.raise(incarnation, seq);
        }
        // Only a new incarnation can imply or be implied; raising a known entry cannot.
        if strangers {
            self.drop_implied(lineage);
        }
    }

    pub fn joined(&self, other: &Vector, lineage: Lineage<'_>) -> Vector {
        let mut out = self.clone();
        out.join(other, lineage);
        out
    }

    pub fn add(&mut self, dot: Dot, lineage: Lineage<'_>) {
        if self.raise(dot.incarnation, dot.seq) {
            self.drop_implied(lineage);
        }
    }

    pub fn with_dot(&self, dot: Dot, lineage: Lineage<'_>) -> Vector {
        let mut out = self.clone();
        out.add(dot, lineage);
        out
    }

    /// Raises one entry; says whether the incarnation was not there before.
    fn raise(&mut self, incarnation: Incarnation, seq: Seq) -> bool {
        if seq == 0 {
            return false;
        }
        match self.entries.binary_search_by_key(&incarnation, |e| e.0) {
            Ok(at) => {
                self.entries[at].1 = self.entries[at].1.max(seq);
                false
            }
            Err(at) => {
                self.entries.insert(at, (incarnation, seq));
                true
            }
        }
    }

    fn drop_implied(&mut self, lineage: Lineage<'_>) {
        if self.entries.len() < 2 {
            return;
        }
        let mut implied = vec![false; self.entries.len()];
        for at in 0..self.entries.len() {
            // What an implied entry implies, its descendant implies too. (In a cycle, which only a liar makes, one stays.)
            if implied[at] {
                continue;
            }
            for (ancestor, left_at) in lineage.ancestors(self.entries[at].0) {
                if let Ok(i) = self.entries.binary_search_by_key(&ancestor, |e| e.0) {
                    implied[i] |= i != at && left_at >= self.entries[i].1;
                }
            }
        }
        let mut at = 0;
        self.entries.retain(|_| {
            at += 1;
            !implied[at - 1]
        });
    }
}
