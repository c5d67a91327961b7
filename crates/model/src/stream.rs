//! What a region has absorbed of each region's stream in one keyspace and shard, and what it has heard others say.
//!
//! A gap is waited for, never skipped; a duplicate is dropped. A tombstone goes only when every holder, in its own stream,
//! has stated that it absorbed every dot of it, and this region has absorbed that statement.

use std::collections::BTreeMap;

use crate::{Body, Delta, Dot, Lineage, Record, Region, Statement, Vector, planted};

/// Whether a delta may be applied now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Apply,
    Duplicate,
    /// The delta before it has not been absorbed: fetch from there.
    Gap {
        prev: Dot,
    },
}

/// The streams of one keyspace and shard, as one region has absorbed them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    applied: BTreeMap<Region, Vector>,
    /// holder → what it last stated it had absorbed of each region's stream.
    heard: BTreeMap<Region, BTreeMap<Region, Vector>>,
    /// The last delta of this region's own stream: `prev` of the next.
    last_own: Option<Dot>,
    /// Whether something other than a statement was absorbed since this region's last statement.
    news: bool,
}

impl Streams {
    pub fn new() -> Self {
        Self::default()
    }

    /// From stored parts. `news` is assumed: one statement too many harms nobody.
    pub fn from_parts(
        applied: BTreeMap<Region, Vector>,
        heard: BTreeMap<Region, BTreeMap<Region, Vector>>,
        last_own: Option<Dot>,
    ) -> Self {
        let news = !applied.is_empty();
        Streams { applied, heard, last_own, news }
    }

    pub fn applied(&self) -> &BTreeMap<Region, Vector> {
        &self.applied
    }

    pub fn heard(&self) -> &BTreeMap<Region, BTreeMap<Region, Vector>> {
        &self.heard
    }

    pub fn last_own(&self) -> Option<Dot> {
        self.last_own
    }

    /// What has been absorbed of one region's stream.
    pub fn cursor(&self, region: &Region) -> Vector {
        self.applied.get(region).cloned().unwrap_or_default()
    }

    /// Everything absorbed, of all regions: the vector of a complete state.
    pub fn absorbed(&self, lineage: Lineage<'_>) -> Vector {
        self.applied.values().fold(Vector::new(), |all, v| all.joined(v, lineage))
    }

    pub fn admit(&self, origin: &Region, delta: &Delta, lineage: Lineage<'_>) -> Admission {
        let nothing = Vector::new();
        let have = self.applied.get(origin).unwrap_or(&nothing);
        if have.covers(delta.dot, lineage) {
            return Admission::Duplicate;
        }
        match delta.prev {
            Some(prev) if !have.covers(prev, lineage) && !planted::is(planted::Bug::SkipGap) => Admission::Gap { prev },
            _ => Admission::Apply,
        }
    }

    /// Notes an admitted delta as absorbed. `own` when it stands in this node's log as its own, issued by this incarnation
    /// or by an ancestor: not when it is an own delta that was lost and comes back from a peer.
    pub fn absorb(&mut self, origin: &Region, delta: &Delta, own: bool, lineage: Lineage<'_>) {
        self.applied.entry(origin.clone()).or_default().add(delta.dot, lineage);
        if own {
            self.last_own = Some(delta.dot);
        }
        match &delta.body {
            // What a branch that the disk lost had stated counts for nothing: its region has not absorbed it any more. But that
            // the branch's end came is news, which others' tombstones may wait for; a lost branch ends, so no talk goes on.
            Body::Statement(_) if self.is_off_the_line(origin, delta.dot, lineage) => self.news = true,
            Body::Statement(statement) => {
                self.heard.insert(origin.clone(), statement.absorbed.iter().cloned().collect());
                // A statement alone never causes another, or two idle regions would talk for ever.
                self.news &= !own;
            }
            Body::Write(_) => self.news = true,
        }
    }

    /// Whether a later incarnation that was heard of left this one before it issued the dot.
    fn is_off_the_line(&self, origin: &Region, dot: Dot, lineage: Lineage<'_>) -> bool {
        let Some(applied) = self.applied.get(origin) else { return false };
        applied.entries().iter().any(|&(other, _)| {
            other != dot.incarnation
                && lineage.tree().descends(other, dot.incarnation)
                && lineage.implied(other, dot.incarnation) < dot.seq
        })
    }

    /// Moves cursors to what a state transfer brought. A cursor never moves back.
    pub fn advance(&mut self, cursors: &[(Region, Vector)], lineage: Lineage<'_>) {
        for (region, vector) in cursors {
            self.applied.entry(region.clone()).or_default().join(vector, lineage);
        }
        self.news = true;
    }

    /// What a statement made now would say; `None` when it would say nothing new.
    pub fn statement(&self) -> Option<Statement> {
        self.news.then(|| Statement { absorbed: self.applied.clone().into_iter().collect() })
    }

    /// The next statement is made though it says nothing new: somebody may have missed the last.
    pub fn restate(&mut self) {
        self.news = true;
    }

    /// Whether `holder` is known to have absorbed `dot`.
    pub fn has_absorbed(&self, holder: &Region, me: &Region, dot: Dot, lineage: Lineage<'_>) -> bool {
        let Some(origin) = lineage.region(dot.incarnation) else { return false };
        let said = if holder == me { Some(&self.applied) } else { self.heard.get(holder) };
        said.and_then(|said| said.get(origin)).is_some_and(|v| v.covers(dot, lineage))
    }

    /// Whether a tombstone may be forgotten: every holder has absorbed every dot of it. A home that is still live, because
    /// nobody's delete saw all the rest, keeps it: forgetting a live sibling in one region only would part the regions.
    pub fn may_forget(&self, record: &Record, holders: &[Region], me: &Region, lineage: Lineage<'_>) -> bool {
        let absorbed_by_all = |dot| holders.iter().all(|h| self.has_absorbed(h, me, dot, lineage));
        let is_live = record.fields().iter().any(|(_, field)| field.is_live());
        !is_live && (planted::is(planted::Bug::ForgetEarly) || record.dots().all(absorbed_by_all))
    }

    /// Whether this region lacks something of what, by others' memory, it once stated that it had absorbed: its disk was
    /// restored, or lied. It must be completed by state before it serves.
    pub fn is_behind(&self, stated: &[(Region, Vector)], lineage: Lineage<'_>) -> bool {
        let nothing = Vector::new();
        stated.iter().any(|(origin, vector)| !self.applied.get(origin).unwrap_or(&nothing).covers_all(vector, lineage))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Epoch, Hlc, Incarnation, IncarnationTree, KeyspaceId, Row, ShardId};

    fn statement(dot: Dot, prev: Option<Dot>, of: u64) -> Delta {
        let absorbed = vec![(Region::new("b"), Vector::of(Dot::new(Incarnation(9), of)))];
        Delta {
            dot,
            prev,
            keyspace: KeyspaceId(1),
            shard: ShardId(0),
            hlc: Hlc(0),
            epoch: Epoch(0),
            body: Body::Statement(Statement { absorbed }),
        }
    }

    /// A disk lied: incarnation 1 had stated up to seq 14, its successor left it at 12 and has stated since. The lost statement
    /// comes last, from a survivor, and took the place of the newer one: the region's tombstones then waited for ever, and
    /// those of the others for word that the lost one had come.
    #[test]
    fn a_lost_branch_s_statement_does_not_replace_its_successor_s() {
        let mut tree = IncarnationTree::new();
        let row = |parent, left| Row { region: Region::new("c"), parent, left_at: vec![left] };
        tree.insert(Incarnation(1), row(None, 0)).unwrap();
        tree.insert(Incarnation(2), row(Some(Incarnation(1)), 12)).unwrap();
        tree.insert(Incarnation(9), Row { region: Region::new("b"), parent: None, left_at: vec![0] }).unwrap();
        let (c, lineage) = (Region::new("c"), tree.shard(ShardId(0)));
        let (lost, newer) = (Dot::new(Incarnation(1), 14), Dot::new(Incarnation(2), 1));
        let mut streams = Streams::new();
        streams.absorb(&c, &statement(newer, None, 30), false, lineage);
        assert!(streams.statement().is_none(), "a statement alone causes none");
        streams.absorb(&c, &statement(lost, None, 5), false, lineage);
        assert!(streams.has_absorbed(&c, &Region::new("a"), Dot::new(Incarnation(9), 30), lineage));
        assert!(streams.statement().is_some(), "others may wait to hear that the lost one has come");
    }
}
