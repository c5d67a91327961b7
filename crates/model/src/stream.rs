//! What a region has absorbed of each region's stream in one keyspace and shard, and what it has heard others say.
//!
//! A gap is waited for, never skipped; a duplicate is dropped. A tombstone goes only when every holder, in its own stream,
//! has stated that it absorbed every dot of it, and this region has absorbed that statement.
//!
//! A disk that lied, or was restored, may part a region's stream in branches, and a branch that was lost may come later than
//! what replaced it. So statements are ordered by what their speakers had absorbed of their own region, never by arrival: one
//! that covers another replaces it, and none counts until it covers every branch that has come.

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

/// A holder's statement, as it was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// Where it stands in the holder's stream. `None` from a store that did not note it: any other statement replaces it.
    pub dot: Option<Dot>,
    /// What the holder had absorbed of each region's stream, its own included.
    pub absorbed: BTreeMap<Region, Vector>,
}

/// The streams of one keyspace and shard, as one region has absorbed them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    applied: BTreeMap<Region, Vector>,
    /// holder → the last of its statements, as far as their order is known.
    heard: BTreeMap<Region, Stated>,
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
        heard: BTreeMap<Region, Stated>,
        last_own: Option<Dot>,
    ) -> Self {
        let news = !applied.is_empty();
        Streams { applied, heard, last_own, news }
    }

    pub fn applied(&self) -> &BTreeMap<Region, Vector> {
        &self.applied
    }

    pub fn heard(&self) -> &BTreeMap<Region, Stated> {
        &self.heard
    }

    /// What a holder has stated that it had absorbed, whether or not that counts.
    pub fn stated_by(&self, holder: &Region) -> Option<&BTreeMap<Region, Vector>> {
        self.heard.get(holder).map(|heard| &heard.absorbed)
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
            Body::Statement(statement) => {
                let order = self.hear(origin, delta.dot, statement, lineage);
                // A statement alone never causes another, or two idle regions would talk for ever. But that a branch's end came
                // is news, which others' tombstones may wait for; a lost branch ends, so no talk goes on.
                self.news = (self.news && !own) || order == Order::Branch;
            }
            Body::Write(_) => self.news = true,
        }
    }

    /// Keeps a statement in place of the one before it, unless it is of a branch that ended before that was made.
    fn hear(&mut self, origin: &Region, dot: Dot, statement: &Statement, lineage: Lineage<'_>) -> Order {
        let new = Stated { dot: Some(dot), absorbed: statement.absorbed.iter().cloned().collect() };
        let old = self.heard.get(origin).and_then(|old| old.dot);
        let succeeds = old.is_none_or(|old| new.covers(origin, old, lineage));
        // Of two branches the one that goes on from the other is newer, though it may have left it before its last statement.
        if succeeds || old.is_some_and(|old| lineage.tree().descends(dot.incarnation, old.incarnation)) {
            self.heard.insert(origin.clone(), new);
        }
        if succeeds { Order::Successor } else { Order::Branch }
    }

    /// Moves cursors to what a state transfer brought. A cursor never moves back.
    ///
    /// `heard` is what the sender had absorbed before the first of it was read, where that is to count: as good as a statement behind
    /// the last of its own deltas by then. Where nothing was merged, it is no news that cursors move, or two idle regions would talk
    /// for ever.
    pub fn advance(
        &mut self,
        cursors: &[(Region, Vector)],
        heard: Option<&(Region, Stated)>,
        is_empty: bool,
        lineage: Lineage<'_>,
    ) {
        for (region, vector) in cursors {
            self.applied.entry(region.clone()).or_default().join(vector, lineage);
        }
        self.news |= !is_empty;
        if let Some((from, stated)) = heard
            && let Some(dot) = stated.dot
        {
            let absorbed = stated.absorbed.clone().into_iter().collect();
            self.news |= self.hear(from, dot, &Statement { absorbed }, lineage) == Order::Branch;
        }
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
        let covers = |said: &BTreeMap<Region, Vector>| said.get(origin).is_some_and(|v| v.covers(dot, lineage));
        if holder == me {
            return covers(&self.applied);
        }
        self.heard.get(holder).is_some_and(|heard| covers(&heard.absorbed) && self.counts(holder, heard, lineage))
    }

    /// Whether a statement is of the line that its region goes on with. Of two branches, neither of which goes on from the
    /// other, this region cannot tell the lost one; the region can, and says so once it has absorbed both.
    fn counts(&self, holder: &Region, heard: &Stated, lineage: Lineage<'_>) -> bool {
        let follows = |at: Dot, said: Dot| {
            at.incarnation == said.incarnation || lineage.implied(at.incarnation, said.incarnation) >= said.seq
        };
        let Some(said) = heard.dot else { return false };
        let come = self.applied.get(holder);
        come.is_some_and(|come| come.dots().all(|at| follows(at, said) || heard.covers(holder, at, lineage)))
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

/// How a statement stands to the one that was heard before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Its speaker had absorbed the other: it says all there is to know.
    Successor,
    /// One of the two was made in ignorance of the other.
    Branch,
}

impl Stated {
    /// Whether its speaker, once it was made, had absorbed the dot of its own region.
    fn covers(&self, speaker: &Region, dot: Dot, lineage: Lineage<'_>) -> bool {
        // A statement does not list itself.
        self.dot.is_some_and(|own| Vector::of(own).covers(dot, lineage))
            || self.absorbed.get(speaker).is_some_and(|own| own.covers(dot, lineage))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Epoch, Hlc, Incarnation, IncarnationTree, KeyspaceId, Row, ShardId};

    /// `of` is what is stated of b's stream, `own` what of the speaker's.
    fn statement(dot: Dot, of: u64, own: &[Dot]) -> Delta {
        let own = Vector::from_entries(own.iter().map(|dot| (dot.incarnation, dot.seq)));
        let absorbed = vec![(Region::new("b"), Vector::of(Dot::new(Incarnation(9), of))), (Region::new("c"), own)];
        Delta {
            dot,
            prev: None,
            keyspace: KeyspaceId(1),
            shard: ShardId(0),
            hlc: Hlc(0),
            epoch: Epoch(0),
            body: Body::Statement(Statement { absorbed }),
        }
    }

    /// Region c: incarnation 1, and what went on from it.
    fn tree(rows: &[(u64, u64, u64)]) -> IncarnationTree {
        let mut tree = IncarnationTree::new();
        let row = |region, parent, left| Row { region: Region::new(region), parent, left_at: vec![left] };
        tree.insert(Incarnation(9), row("b", None, 0)).unwrap();
        tree.insert(Incarnation(1), row("c", None, 0)).unwrap();
        for &(incarnation, parent, left) in rows {
            tree.insert(Incarnation(incarnation), row("c", Some(Incarnation(parent)), left)).unwrap();
        }
        tree
    }

    /// How far, at a, region c has absorbed b's stream.
    fn heard_of_b(streams: &Streams, lineage: Lineage<'_>) -> u64 {
        let has = |seq| streams.has_absorbed(&c(), &Region::new("a"), Dot::new(Incarnation(9), seq), lineage);
        (1..=99).rev().find(|seq| has(*seq)).unwrap_or(0)
    }

    fn c() -> Region {
        Region::new("c")
    }

    /// A disk lied: incarnation 1 had stated up to seq 14, its successor left it at 12 and has stated since. The lost statement
    /// comes last, from a survivor, and took the place of the newer one: the region's tombstones then waited for ever, and
    /// those of the others for word that the lost one had come.
    #[test]
    fn a_lost_branch_s_statement_does_not_replace_its_successor_s() {
        let tree = tree(&[(2, 1, 12)]);
        let lineage = tree.shard(ShardId(0));
        let (lost, newer) = (Dot::new(Incarnation(1), 14), Dot::new(Incarnation(2), 1));
        let mut streams = Streams::new();
        streams.absorb(&c(), &statement(newer, 30, &[]), false, lineage);
        assert!(streams.statement().is_none(), "a statement alone causes none");
        assert_eq!(heard_of_b(&streams, lineage), 30);
        streams.absorb(&c(), &statement(lost, 5, &[]), false, lineage);
        let kept = &streams.stated_by(&c()).unwrap()[&Region::new("b")];
        assert_eq!(*kept, Vector::of(Dot::new(Incarnation(9), 30)), "the lost one came last and is not the newer");
        assert!(streams.statement().is_some(), "others may wait to hear that the lost one has come");
        let last = Dot::new(Incarnation(2), 2);
        streams.absorb(&c(), &statement(last, 31, &[newer, lost]), false, lineage);
        assert_eq!(heard_of_b(&streams, lineage), 31);
    }

    /// Region c was restored from a copy that was older than its last start: incarnation 3 goes on from 1 as the lost
    /// incarnation 2 did, and neither from the other. The lost one's statements came later, from a survivor, and took the
    /// place of the newer ones, and what they said counted though c did not hold it any more.
    #[test]
    fn no_statement_of_two_branches_counts_until_one_covers_both() {
        let tree = tree(&[(2, 1, 12), (3, 1, 10)]);
        let lineage = tree.shard(ShardId(0));
        let (lost, newer) = (Dot::new(Incarnation(2), 4), Dot::new(Incarnation(3), 14));
        for order in [[lost, newer], [newer, lost]] {
            let mut streams = Streams::new();
            for dot in order {
                streams.absorb(&c(), &statement(dot, 20, &[]), false, lineage);
            }
            assert_eq!(heard_of_b(&streams, lineage), 0, "nobody can tell which of the two was lost");
            let last = Dot::new(Incarnation(3), 15);
            streams.absorb(&c(), &statement(last, 25, &[newer, lost]), false, lineage);
            assert_eq!(heard_of_b(&streams, lineage), 25);
            // More of the lost branch turns up, which c has not heard of yet.
            streams.absorb(&c(), &statement(Dot::new(Incarnation(2), 5), 90, &[]), false, lineage);
            assert_eq!(heard_of_b(&streams, lineage), 0);
            assert!(streams.statement().is_some(), "c waits to hear of it");
            let last = Dot::new(Incarnation(3), 16);
            streams.absorb(&c(), &statement(last, 26, &[newer, Dot::new(Incarnation(2), 5)]), false, lineage);
            assert_eq!(heard_of_b(&streams, lineage), 26);
        }
    }

    #[test]
    fn a_statement_without_its_place_counts_for_nothing_and_any_replaces_it() {
        let tree = tree(&[]);
        let lineage = tree.shard(ShardId(0));
        let absorbed: BTreeMap<_, _> = [(Region::new("b"), Vector::of(Dot::new(Incarnation(9), 40)))].into();
        let applied = BTreeMap::from([(c(), Vector::of(Dot::new(Incarnation(1), 3)))]);
        let heard = BTreeMap::from([(c(), Stated { dot: None, absorbed })]);
        let mut streams = Streams::from_parts(applied, heard, None);
        assert_eq!(heard_of_b(&streams, lineage), 0);
        streams.absorb(&c(), &statement(Dot::new(Incarnation(1), 4), 30, &[]), false, lineage);
        assert_eq!(heard_of_b(&streams, lineage), 30);
    }
}
