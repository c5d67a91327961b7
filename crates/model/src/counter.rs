//! A counter sums increments made anywhere, and survives deletes made concurrently with them.
//!
//! Per incarnation it keeps a running total, and how much of that total deletes have covered. Merging takes the higher seq,
//! entry by entry. A covered total counts only from the start it belongs to. (A PN-counter with causal reset; what a mere
//! dropping of entries would do is in the design: deleted totals come back.)

use crate::{Absorbed, Dot, FieldContext, Incarnation, Lineage, Seq, Vector};

/// What one incarnation has added: as of `seq`, `total` since `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Total {
    pub seq: Seq,
    pub start: Seq,
    pub total: i64,
}

/// How much of an incarnation's total deletes have covered, as of `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Covered {
    pub seq: Seq,
    pub total: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Sorted by incarnation.
    totals: Vec<(Incarnation, Total)>,
    covered: Vec<(Incarnation, Covered)>,
    seen: Vector,
}

fn at<T: Copy>(entries: &[(Incarnation, T)], incarnation: Incarnation) -> Option<T> {
    entries.binary_search_by_key(&incarnation, |e| e.0).ok().map(|i| entries[i].1)
}

fn raise<T: Copy + Ord>(entries: &mut Vec<(Incarnation, T)>, incarnation: Incarnation, entry: T) {
    match entries.binary_search_by_key(&incarnation, |e| e.0) {
        Ok(i) => entries[i].1 = entries[i].1.max(entry),
        Err(i) => entries.insert(i, (incarnation, entry)),
    }
}

impl Counter {
    pub fn from_parts(totals: Vec<(Incarnation, Total)>, covered: Vec<(Incarnation, Covered)>, seen: Vector) -> Self {
        let mut out = Counter { seen, ..Counter::default() };
        for (incarnation, total) in totals {
            raise(&mut out.totals, incarnation, total);
        }
        for (incarnation, total) in covered {
            raise(&mut out.covered, incarnation, total);
        }
        out
    }

    pub fn totals(&self) -> &[(Incarnation, Total)] {
        &self.totals
    }

    pub fn covered(&self) -> &[(Incarnation, Covered)] {
        &self.covered
    }

    pub fn seen(&self) -> &Vector {
        &self.seen
    }

    /// The sum, wrapping at the ends of `i64` in every region alike.
    pub fn value(&self) -> i64 {
        self.totals.iter().fold(0i64, |sum, &(incarnation, entry)| {
            let left = match at(&self.covered, incarnation) {
                // A delete may have covered more of it than has been heard here.
                Some(covered) if covered.seq >= entry.seq => 0,
                Some(covered) if covered.seq >= entry.start => entry.total.wrapping_sub(covered.total),
                _ => entry.total,
            };
            sum.wrapping_add(left)
        })
    }

    /// Whether some increment has not been deleted. A live counter may stand at zero.
    pub fn is_live(&self) -> bool {
        self.live_entries().next().is_some()
    }

    /// The entries that deletes have not wholly covered.
    pub fn live_entries(&self) -> impl Iterator<Item = (Incarnation, Total)> {
        self.totals
            .iter()
            .copied()
            .filter(|&(incarnation, entry)| at(&self.covered, incarnation).is_none_or(|c| c.seq < entry.seq))
    }

    pub fn merge(&mut self, other: &Counter, lineage: Lineage<'_>) {
        for &(incarnation, entry) in &other.totals {
            raise(&mut self.totals, incarnation, entry);
        }
        for &(incarnation, entry) in &other.covered {
            raise(&mut self.covered, incarnation, entry);
        }
        self.seen.join(&other.seen, lineage);
    }

    /// What an increment ships: its own incarnation's entry alone. Others' totals have streams of their own.
    pub fn added(&self, dot: Dot, amount: i64) -> Counter {
        let own = at(&self.totals, dot.incarnation);
        let covered = at(&self.covered, dot.incarnation).map_or(0, |c| c.seq);
        let (start, total) = match own {
            Some(entry) if covered < entry.seq => (entry.start, entry.total),
            // All of it is deleted: start anew, or those who have forgotten the delete would bring it back.
            _ => (dot.seq, 0),
        };
        Counter {
            totals: vec![(dot.incarnation, Total { seq: dot.seq, start, total: total.wrapping_add(amount) })],
            covered: Vec::new(),
            seen: Vector::of(dot),
        }
    }

    /// What a delete covers: every total, and what earlier deletes covered of totals not yet heard here.
    pub fn covering(&self) -> Vec<(Incarnation, Covered)> {
        let mut out = self.covered.clone();
        for &(incarnation, Total { seq, total, .. }) in &self.totals {
            raise(&mut out, incarnation, Covered { seq, total });
        }
        out
    }

    /// The dots that tell this version from others: of every live entry its own, and that of what deletes covered of it.
    pub fn version(&self) -> Vec<Dot> {
        let dots = self.live_entries().flat_map(|(incarnation, entry)| {
            let covered = at(&self.covered, incarnation).filter(|c| c.seq >= entry.start).map(|c| c.seq);
            covered.into_iter().chain([entry.seq]).map(move |seq| Dot { incarnation, seq })
        });
        dots.collect()
    }

    /// The counter after a delete: everything it has seen, and everything its client had, is covered.
    pub fn emptied(&self, dot: Dot, context: Option<&FieldContext>, lineage: Lineage<'_>) -> Counter {
        let mut out = Counter { totals: self.totals.clone(), covered: self.covering(), seen: self.seen.clone() };
        if let Some(context) = context {
            for &(incarnation, covered) in &context.covers {
                raise(&mut out.covered, incarnation, covered);
            }
            out.seen.join(&context.seen, lineage);
        }
        out.seen.add(dot, lineage);
        out
    }

    /// Merges two complete states: of what either side has absorbed and does not hold, nothing stays.
    pub fn complete(&mut self, listed: Option<&Counter>, sides: Absorbed<'_>, lineage: Lineage<'_>) {
        let mut theirs = listed.cloned().unwrap_or_default();
        let here: Vec<Incarnation> = self.totals.iter().map(|total| total.0).collect();
        let there: Vec<Incarnation> = theirs.totals.iter().map(|total| total.0).collect();
        self.leave_out_forgotten(&there, sides.there, lineage);
        theirs.leave_out_forgotten(&here, sides.here, lineage);
        self.merge(&theirs, lineage);
    }

    /// Leaves out what the other side has absorbed and holds no total of any more.
    fn leave_out_forgotten(&mut self, held: &[Incarnation], absorbed: &Vector, lineage: Lineage<'_>) {
        let stays = |incarnation: Incarnation, seq: Seq| {
            held.contains(&incarnation) || !absorbed.covers(Dot { incarnation, seq }, lineage)
        };
        self.totals.retain(|&(incarnation, entry)| stays(incarnation, entry.seq));
        self.covered.retain(|&(incarnation, entry)| stays(incarnation, entry.seq));
    }

    pub fn dots(&self) -> impl Iterator<Item = Dot> {
        self.seen.dots()
    }
}
