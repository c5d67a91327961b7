//! The one gate before every byte that leaves this region: deltas, states, fetched streams, forwarded writes.
//!
//! It fails closed: what it does not know stays here. A keyspace's data goes to a peer only if residency lets the peer hold it,
//! and only while both mean the same by the keyspace: a peer that has not heard of a change yet waits.

use std::sync::Arc;

use isle_model::{KeyspaceId, Region};

use crate::catalog::{Fingerprints, Known};
use crate::shared::Shared;

/// What may leave for one peer, as of one moment.
pub(crate) struct Gate {
    peer: Region,
    known: Arc<Known>,
    /// What the peer said last.
    said: Arc<Fingerprints>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// The peer may hold it, and does not agree yet on what it is.
    Wait,
    Never,
}

impl Gate {
    /// Nothing passes to a region that is no peer.
    pub(crate) fn to(shared: &Shared, peer: &Region) -> Gate {
        let said = shared.peers.get(peer).map(|slot| slot.said.lock().clone()).unwrap_or_default();
        Gate { peer: peer.clone(), known: shared.catalog.known(), said }
    }

    pub(crate) fn judge(&self, keyspace: KeyspaceId) -> Verdict {
        if !self.known.is_for(&self.peer, keyspace) {
            return Verdict::Never;
        }
        let here = self.known.fingerprints().get(&keyspace);
        if here.is_some() && here == self.said.get(&keyspace) { Verdict::Pass } else { Verdict::Wait }
    }

    pub(crate) fn passes(&self, keyspace: KeyspaceId) -> bool {
        self.judge(keyspace) == Verdict::Pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use isle_model::metadata::Metadata;
    use isle_model::policy::{Member, Members, Policy, Residency, Scope};

    fn known(residency: Residency) -> Arc<Known> {
        let members: Members = ["a", "b"].map(|region| (Region::new(region), Member::default())).into();
        let keyspaces = [
            (KeyspaceId(1), "all".to_owned(), Policy { residency, ..Policy::default() }),
            (KeyspaceId(2), "own".to_owned(), Policy::of_scope(Scope::Local)),
        ];
        Catalog::new(Metadata::provisional(members, keyspaces)).known()
    }

    fn gate(peer: &str, known: &Arc<Known>, said: &Arc<Known>) -> Gate {
        Gate { peer: Region::new(peer), known: known.clone(), said: said.fingerprints().clone() }
    }

    #[test]
    fn what_is_unknown_stays_here() {
        let all = known(Residency::All);
        assert_eq!(gate("b", &all, &all).judge(KeyspaceId(1)), Verdict::Pass);
        assert_eq!(gate("b", &all, &all).judge(KeyspaceId(3)), Verdict::Never);
        assert_eq!(gate("c", &all, &all).judge(KeyspaceId(1)), Verdict::Never);
    }

    #[test]
    fn what_is_local_never_leaves() {
        let all = known(Residency::All);
        assert_eq!(gate("b", &all, &all).judge(KeyspaceId(2)), Verdict::Never);
    }

    #[test]
    fn a_peer_that_means_something_else_waits() {
        let all = known(Residency::All);
        let narrow = known("region:a,region:b".parse().expect("a residency"));
        assert_eq!(gate("b", &all, &narrow).judge(KeyspaceId(1)), Verdict::Wait);
        let nothing = Gate { said: Arc::default(), ..gate("b", &all, &all) };
        assert_eq!(nothing.judge(KeyspaceId(1)), Verdict::Wait);
    }

    #[test]
    fn residency_is_the_gates_law() {
        let narrow = known("region:a".parse().expect("a residency"));
        assert_eq!(gate("b", &narrow, &narrow).judge(KeyspaceId(1)), Verdict::Never);
    }
}
