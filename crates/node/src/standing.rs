//! Where this region stands with the others: whether its disk was found behind, and which incarnation of each region it
//! admits. Pure: it is told facts and answers questions.
//!
//! The law it keeps: a region whose disk is below what it once stated serves nobody until complete, but for the states by which
//! those who are behind complete each other: two complete states bring nothing back that either has forgotten.

use std::collections::{BTreeMap, BTreeSet};

use isle_model::{Incarnation, IncarnationTree, KeyspaceId, Region, ShardId, Vector, planted};

/// What a stream set must cover before this region is complete again.
pub(crate) type Owed = BTreeMap<(KeyspaceId, ShardId), Vec<(Region, Vector)>>;

#[derive(Debug)]
pub(crate) struct Standing {
    owed: Owed,
    admitted: BTreeMap<Region, Incarnation>,
    /// Incarnations that were admitted until another was: of two that run at once only one may go on.
    replaced: BTreeSet<Incarnation>,
    /// Holders away for longer than the horizon: they come back by complete state.
    expired: BTreeSet<Region>,
    /// While this region joins the cluster: the members that know it as one, so that they wait for it.
    joining: Option<BTreeSet<Region>>,
}

/// What to do with the incarnation that a peer announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admittance {
    Admit,
    /// It is an ancestor of the admitted one, or a branch beside it that has been replaced.
    Replaced {
        admitted: Incarnation,
    },
    /// It is a branch: it replaces the admitted one once it has been completed.
    CompleteFirst,
}

impl Standing {
    /// `expired`: holders that an earlier run gave up, and that have not been completed since.
    pub(crate) fn new(expired: BTreeSet<Region>, is_joining: bool) -> Self {
        Standing {
            owed: Owed::new(),
            admitted: BTreeMap::new(),
            replaced: BTreeSet::new(),
            expired,
            joining: is_joining.then(BTreeSet::new),
        }
    }

    pub(crate) fn is_joining(&self) -> bool {
        self.joining.is_some()
    }

    /// Notes that a member knows this region as one. Says whether that is news to a region that joins: what the member has, it is to
    /// have before it serves.
    pub(crate) fn known_to(&mut self, member: &Region) -> bool {
        self.joining.as_mut().is_some_and(|known_to| known_to.insert(member.clone()))
    }

    /// Of these members, those that may not wait for this region yet.
    pub(crate) fn unknown_to<'a>(&self, members: impl IntoIterator<Item = &'a Region>) -> Vec<Region> {
        let Some(known_to) = &self.joining else { return Vec::new() };
        members.into_iter().filter(|member| !known_to.contains(*member)).cloned().collect()
    }

    /// The cluster has agreed that this region serves.
    pub(crate) fn joined(&mut self) {
        self.joining = None;
    }

    /// Notes what a peer remembers of this region that its disk does not hold.
    pub(crate) fn compare(&mut self, owed: Owed) {
        for (stream, vectors) in owed {
            self.owed.entry(stream).or_default().extend(vectors);
        }
    }

    pub(crate) fn owed(&self) -> &Owed {
        &self.owed
    }

    /// Forgets what is covered by now.
    pub(crate) fn settle(&mut self, mut still_behind: impl FnMut((KeyspaceId, ShardId), &[(Region, Vector)]) -> bool) {
        self.owed.retain(|stream, vectors| still_behind(*stream, vectors));
    }

    /// Whether anything is owed, but for keyspaces that may be incomplete.
    pub(crate) fn is_behind(&self, may_lack: impl Fn(KeyspaceId) -> bool) -> bool {
        self.is_joining() || self.owed.keys().any(|(keyspace, _)| !may_lack(*keyspace))
    }

    pub(crate) fn judge(
        &self,
        region: &Region,
        incarnation: Incarnation,
        tree: &IncarnationTree,
        is_complete: bool,
    ) -> Admittance {
        let Some(&admitted) = self.admitted.get(region) else { return Admittance::Admit };
        let is_replaced = self.replaced.contains(&incarnation) || tree.descends(admitted, incarnation);
        if incarnation == admitted {
            Admittance::Admit
        } else if is_replaced && !planted::is(planted::Bug::AdmitReplaced) {
            Admittance::Replaced { admitted }
        } else if is_complete || tree.descends(incarnation, admitted) {
            Admittance::Admit
        } else {
            Admittance::CompleteFirst
        }
    }

    /// The incarnation that goes on for a region.
    pub(crate) fn admitted(&self, region: &Region) -> Option<Incarnation> {
        self.admitted.get(region).copied()
    }

    pub(crate) fn admit(&mut self, region: &Region, incarnation: Incarnation) {
        let before = self.admitted.insert(region.clone(), incarnation);
        self.replaced.extend(before.filter(|before| *before != incarnation));
    }

    pub(crate) fn expire(&mut self, region: &Region) -> bool {
        self.expired.insert(region.clone())
    }

    /// The region has been told to take a complete state of everything.
    pub(crate) fn welcome_back(&mut self, region: &Region) -> bool {
        self.expired.remove(region)
    }

    pub(crate) fn is_expired(&self, region: &Region) -> bool {
        self.expired.contains(region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isle_model::{Dot, Row};

    fn tree() -> IncarnationTree {
        let mut tree = IncarnationTree::new();
        let row = |parent: Option<u64>| Row {
            region: Region::new("a"),
            parent: parent.map(Incarnation),
            left_at: parent.map(|_| 5).into_iter().collect(),
        };
        for (incarnation, parent) in [(1, None), (2, Some(1)), (3, Some(2)), (4, Some(1))] {
            tree.insert(Incarnation(incarnation), row(parent)).expect("the rows agree");
        }
        tree
    }

    #[test]
    fn a_descendant_is_admitted_and_its_ancestor_then_refused() {
        let (a, tree) = (Region::new("a"), tree());
        let mut standing = Standing::new(BTreeSet::new(), false);
        assert_eq!(standing.judge(&a, Incarnation(2), &tree, false), Admittance::Admit);
        standing.admit(&a, Incarnation(2));
        assert_eq!(standing.judge(&a, Incarnation(3), &tree, false), Admittance::Admit);
        standing.admit(&a, Incarnation(3));
        let replaced = Admittance::Replaced { admitted: Incarnation(3) };
        assert_eq!(standing.judge(&a, Incarnation(2), &tree, true), replaced);
    }

    #[test]
    fn a_branch_is_admitted_only_once_it_is_complete() {
        let (a, tree) = (Region::new("a"), tree());
        let mut standing = Standing::new(BTreeSet::new(), false);
        standing.admit(&a, Incarnation(3));
        assert_eq!(standing.judge(&a, Incarnation(4), &tree, false), Admittance::CompleteFirst);
        assert_eq!(standing.judge(&a, Incarnation(4), &tree, true), Admittance::Admit);
    }

    #[test]
    fn a_region_is_behind_until_what_it_once_had_is_covered() {
        let a = Region::new("a");
        let mut standing = Standing::new(BTreeSet::new(), false);
        standing.compare(Owed::new());
        assert!(!standing.is_behind(|_| false));
        let vector = Vector::of(Dot::new(Incarnation(1), 1));
        let stream = (KeyspaceId(1), ShardId(0));
        standing.compare(Owed::from([(stream, vec![(a, vector)])]));
        standing.settle(|at, _| at == stream);
        assert!(standing.is_behind(|_| false));
        standing.settle(|_, _| false);
        assert!(!standing.is_behind(|_| false));
    }

    /// A directory was cloned and both were started. Each branch was complete before long, by what the other had shipped, and
    /// so each was admitted again and again in the other's place: neither was ever refused, and both went on serving.
    #[test]
    fn of_two_branches_that_run_at_once_the_replaced_one_is_refused_though_it_is_complete() {
        let (a, tree) = (Region::new("a"), tree());
        let mut standing = Standing::new(BTreeSet::new(), false);
        standing.admit(&a, Incarnation(3));
        assert_eq!(standing.judge(&a, Incarnation(4), &tree, true), Admittance::Admit);
        standing.admit(&a, Incarnation(4));
        assert_eq!(standing.judge(&a, Incarnation(4), &tree, true), Admittance::Admit);
        let replaced = Admittance::Replaced { admitted: Incarnation(4) };
        assert_eq!(standing.judge(&a, Incarnation(3), &tree, true), replaced);
    }

    #[test]
    fn a_region_that_joins_is_behind_until_it_is_told_that_it_serves() {
        let (a, b) = (Region::new("a"), Region::new("b"));
        let mut standing = Standing::new(BTreeSet::new(), true);
        assert!(standing.is_behind(|_| false));
        assert!(standing.known_to(&a) && !standing.known_to(&a), "once is enough");
        assert_eq!(standing.unknown_to([&a, &b]), vec![b.clone()]);
        assert!(standing.known_to(&b) && standing.unknown_to([&a, &b]).is_empty());
        assert!(standing.is_behind(|_| false), "it has what it is to have, and the cluster has not agreed yet");
        standing.joined();
        assert!(!standing.is_behind(|_| false) && !standing.known_to(&a));
    }
}
