//! A register holds every value of a field that no later write has replaced.
//!
//! Merging is commutative, associative and idempotent, so deltas may come late, twice or in any order: a sibling stays if
//! both sides have it, or if the other side has not seen it. Nothing is chosen while merging; choosing among siblings is
//! done when reading and lives in `reading`. (Dotted version vectors: Preguiça et al., 2010.)

use crate::{Absorbed, Covered, Dot, Epoch, Generation, Hlc, Incarnation, Lineage, Region, Value, Vector, planted};

/// Who writes, and when: what every sibling of one write carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub dot: Dot,
    pub hlc: Hlc,
    /// The highest epoch the writer's region knows.
    pub epoch: Epoch,
}

/// A live value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sibling {
    pub dot: Dot,
    pub epoch: Epoch,
    pub generation: Generation,
    pub hlc: Hlc,
    pub value: Value,
}

/// What orders siblings when one must be shown. It extends causality; clocks only break ties.
pub type Rank<'a> = (Epoch, Generation, Hlc, Option<&'a Region>, Dot);

impl Sibling {
    pub fn rank<'a>(&self, lineage: Lineage<'a>) -> Rank<'a> {
        let generation = if planted::is(planted::Bug::ClockFirst) { Generation(0) } else { self.generation };
        (self.epoch, generation, self.hlc, lineage.region(self.dot.incarnation), self.dot)
    }
}

/// What a client brings of one field: all that it had seen when it read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldContext {
    pub seen: Vector,
    pub generation: Generation,
    pub epoch: Epoch,
    /// The sibling the client was shown.
    pub shown: Option<Dot>,
    /// Live siblings that the version it was shown hid. Of a counter: the dots that tell its version from others.
    pub hidden: Vec<Dot>,
    /// What a delete by this client covers of a counter, sorted by incarnation.
    pub covers: Vec<(Incarnation, Covered)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// Live values, sorted by dot. None covers another.
    siblings: Vec<Sibling>,
    /// Every dot this field has absorbed.
    seen: Vector,
    /// The highest generation and epoch ever held or covered: at least every sibling's.
    generation: Generation,
    epoch: Epoch,
}

impl Register {
    /// From stored parts. The siblings are sorted here; of two with one dot the first stays.
    pub fn from_parts(mut siblings: Vec<Sibling>, seen: Vector, generation: Generation, epoch: Epoch) -> Self {
        siblings.sort_by_key(|s| s.dot);
        siblings.dedup_by_key(|s| s.dot);
        let generation = siblings.iter().map(|s| s.generation).fold(generation, Ord::max);
        let epoch = siblings.iter().map(|s| s.epoch).fold(epoch, Ord::max);
        Register { siblings, seen, generation, epoch }
    }

    pub fn siblings(&self) -> &[Sibling] {
        &self.siblings
    }

    pub fn sibling(&self, dot: Dot) -> Option<&Sibling> {
        self.siblings.binary_search_by_key(&dot, |s| s.dot).ok().map(|at| &self.siblings[at])
    }

    pub fn seen(&self) -> &Vector {
        &self.seen
    }

    /// The highest generation this field has held or covered.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn is_live(&self) -> bool {
        !self.siblings.is_empty()
    }

    /// The sibling that reading by version shows.
    pub fn highest(&self, lineage: Lineage<'_>) -> Option<&Sibling> {
        self.siblings.iter().max_by(|a, b| a.rank(lineage).cmp(&b.rank(lineage)))
    }

    pub fn merge(&mut self, other: &Register, lineage: Lineage<'_>) {
        self.siblings.retain(|s| other.sibling(s.dot).is_some() || !other.seen.covers(s.dot, lineage));
        for sibling in &other.siblings {
            // What was held here and is not any more was in `seen` as well: so the order of these two steps is free.
            if let Err(at) = self.siblings.binary_search_by_key(&sibling.dot, |s| s.dot)
                && !self.seen.covers(sibling.dot, lineage)
            {
                self.siblings.insert(at, sibling.clone());
            }
        }
        self.seen.join(&other.seen, lineage);
        self.generation = self.generation.max(other.generation);
        self.epoch = self.epoch.max(other.epoch);
    }

    /// The register after a write that covers all this one has seen, and all its client had.
    pub fn written(
        &self,
        stamp: Stamp,
        value: Value,
        context: Option<&FieldContext>,
        lineage: Lineage<'_>,
    ) -> Register {
        let mut out = self.emptied(stamp.dot, context, lineage);
        out.generation = out.generation.next();
        out.epoch = out.epoch.max(stamp.epoch);
        // Nearly always the only one: room for more would be most of what a record takes.
        out.siblings =
            vec![Sibling { dot: stamp.dot, epoch: out.epoch, generation: out.generation, hlc: stamp.hlc, value }];
        out
    }

    /// The register after a delete. It keeps what it has seen, so that nothing covered comes back.
    pub fn emptied(&self, dot: Dot, context: Option<&FieldContext>, lineage: Lineage<'_>) -> Register {
        let mut out =
            Register { siblings: Vec::new(), seen: self.seen.clone(), generation: self.generation, epoch: self.epoch };
        if let Some(context) = context {
            out.seen.join(&context.seen, lineage);
            out.generation = out.generation.max(context.generation);
            out.epoch = out.epoch.max(context.epoch);
        }
        out.seen.add(dot, lineage);
        out
    }

    /// Merges two complete states: of what either side has absorbed and does not hold, nothing stays.
    pub fn complete(&mut self, listed: Option<&Register>, sides: Absorbed<'_>, lineage: Lineage<'_>) {
        let mut theirs = listed.cloned().unwrap_or_default();
        let forgotten_here = |s: &Sibling| self.sibling(s.dot).is_none() && sides.here.covers(s.dot, lineage);
        let kept: Vec<Sibling> = theirs.siblings.iter().filter(|s| !forgotten_here(s)).cloned().collect();
        let forgotten_there = |s: &Sibling| theirs.sibling(s.dot).is_none() && sides.there.covers(s.dot, lineage);
        self.siblings.retain(|s| !forgotten_there(s));
        theirs.siblings = kept;
        self.merge(&theirs, lineage);
    }

    /// The dots that nobody may be missing before the field, emptied, is forgotten.
    pub fn dots(&self) -> impl Iterator<Item = Dot> {
        self.seen.dots()
    }
}
