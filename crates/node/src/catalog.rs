//! The metadata as this node knows it last. Nothing on the data path waits for the cluster to agree: it asks here.
//!
//! Until the cluster has agreed on anything, it is what the configuration says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use isle_model::metadata::{Keyspace, Metadata, Step};
use isle_model::policy::{MemberState, Members};
use isle_model::{KeyspaceId, Region};
use tokio::sync::watch;

use crate::NodeError;

/// By keyspace, what a region means by it.
pub type Fingerprints = BTreeMap<KeyspaceId, u64>;

pub(crate) struct Catalog {
    known: watch::Sender<Arc<Known>>,
}

/// One state of the metadata, and what is asked of it often.
pub(crate) struct Known {
    pub(crate) metadata: Arc<Metadata>,
    by_name: HashMap<String, KeyspaceId>,
    fingerprints: Arc<Fingerprints>,
}

impl Catalog {
    pub(crate) fn new(metadata: Metadata) -> Catalog {
        Catalog { known: watch::Sender::new(Arc::new(Known::new(metadata))) }
    }

    pub(crate) fn known(&self) -> Arc<Known> {
        self.known.borrow().clone()
    }

    /// Woken by every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Known>> {
        self.known.subscribe()
    }

    /// Who the members are, as others have said, before this node has heard it from the cluster itself.
    pub(crate) fn adopt(&self, members: Members) {
        self.known.send_if_modified(|known| {
            let is_news = known.metadata.revision == 0 && known.metadata.members != members;
            if is_news {
                *known = Arc::new(Known::new(Metadata { members, ..Metadata::clone(&known.metadata) }));
            }
            is_news
        });
    }

    /// What the cluster has agreed on. An older state than the known one changes nothing.
    pub(crate) fn learn(&self, metadata: Metadata) {
        self.known.send_if_modified(|known| {
            let is_newer = metadata.revision > known.metadata.revision;
            if is_newer {
                *known = Arc::new(Known::new(metadata));
            }
            is_newer
        });
    }
}

impl Known {
    fn new(metadata: Metadata) -> Known {
        let keyspaces = || metadata.keyspaces.values();
        Known {
            by_name: keyspaces().map(|keyspace| (keyspace.name.clone(), keyspace.id)).collect(),
            fingerprints: Arc::new(keyspaces().map(|keyspace| (keyspace.id, keyspace.fingerprint())).collect()),
            metadata: Arc::new(metadata),
        }
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Keyspace> {
        self.keyspace(*self.by_name.get(name)?)
    }

    pub(crate) fn unknown(&self, name: &str) -> NodeError {
        let known = self.metadata.keyspaces.values().map(|keyspace| keyspace.name.clone()).collect();
        NodeError::UnknownKeyspace { name: name.to_owned(), known }
    }

    /// Whether the others go by what a region states of a keyspace: those that hold it do, and one that hands it over, for what it has
    /// of a lost region's they ask for by what it states.
    pub(crate) fn has_to_state(&self, region: &Region, id: KeyspaceId) -> bool {
        self.takes_part(region, id) && !self.is_taking(region, id)
    }

    /// Whether a region is to get nothing of a keyspace any more, whatever it may lack: it hands it over, or has.
    pub(crate) fn is_shut_out(&self, region: &Region, id: KeyspaceId) -> bool {
        self.is_gone_from(region, id) || self.step(region, id) == Some(Step::Handing)
    }

    /// Why a region serves nothing of a keyspace.
    pub(crate) fn not_held(&self, region: &Region, keyspace: &Keyspace) -> NodeError {
        let name = keyspace.name.clone();
        match keyspace.step(region) {
            Some(Step::Taking) => NodeError::TakingKeyspace { keyspace: name },
            _ => NodeError::ResidencyViolation {
                keyspace: name,
                holders: self.metadata.holders(keyspace.id).cloned().collect(),
            },
        }
    }

    pub(crate) fn keyspace(&self, id: KeyspaceId) -> Option<&Keyspace> {
        self.metadata.keyspaces.get(&id)
    }

    /// Whether nothing of a keyspace may be in a region: the cluster has deleted it, or the region has handed over what it had of it.
    pub(crate) fn is_gone_from(&self, region: &Region, id: KeyspaceId) -> bool {
        self.metadata.is_gone(id) || self.keyspace(id).is_some_and(|keyspace| keyspace.is_barred(region))
    }

    /// How far a region has come in holding a keyspace, or in ceasing to.
    pub(crate) fn step(&self, region: &Region, id: KeyspaceId) -> Option<Step> {
        self.keyspace(id)?.step(region)
    }

    /// Whether a region comes to hold a keyspace, and lacks some of what there is of it.
    pub(crate) fn is_taking(&self, region: &Region, id: KeyspaceId) -> bool {
        self.step(region, id) == Some(Step::Taking)
    }

    pub(crate) fn fingerprints(&self) -> &Arc<Fingerprints> {
        &self.fingerprints
    }

    /// Whether a region is on its way out of the cluster, or out of it.
    pub(crate) fn is_leaving(&self, region: &Region) -> bool {
        let member = self.metadata.members.get(region);
        member.map_or(self.metadata.revision > 0, |member| member.state == MemberState::Leaving)
    }

    /// The members that serve, or have served until now, beside this one: what the cluster has is with them.
    pub(crate) fn others<'a>(&'a self, me: &'a Region) -> impl Iterator<Item = &'a Region> {
        let members = self.metadata.members.iter();
        members.filter(move |(region, member)| *region != me && member.state != MemberState::Joining).map(|(r, _)| r)
    }

    /// How long changes of a keyspace wait before they are shipped, where they are not shipped as they come.
    pub(crate) fn ship_interval(&self, id: KeyspaceId) -> Option<Duration> {
        self.keyspace(id)?.policy.ship_interval()
    }

    /// Whether what one region writes into a keyspace is for another.
    pub(crate) fn is_for(&self, region: &Region, id: KeyspaceId) -> bool {
        self.keyspace(id).is_some_and(|ks| ks.policy.is_copied() && ks.policy.admits(region, &self.metadata.members))
    }

    /// Whether a region's copy counts among those that a write is to have: it is whole, and there to stay.
    pub(crate) fn counts_for(&self, region: &Region, id: KeyspaceId) -> bool {
        self.serves(region) && self.is_for(region, id) && !self.is_taking(region, id)
    }

    /// Whether a region is a member that has come, and does not go.
    pub(crate) fn serves(&self, region: &Region) -> bool {
        self.metadata.members.get(region).is_some_and(|member| member.state.is_serving())
    }

    /// Whether a region may have writes of a keyspace that are not here, and has not heard of all that are: it is waited for.
    pub(crate) fn takes_part(&self, region: &Region, id: KeyspaceId) -> bool {
        self.is_for(region, id) || self.step(region, id) == Some(Step::Handing)
    }

    /// The keyspaces whose data a region may hold.
    pub(crate) fn held_by<'a>(&'a self, region: &'a Region) -> impl Iterator<Item = &'a Keyspace> {
        self.metadata.keyspaces.values().filter(|keyspace| keyspace.policy.admits(region, &self.metadata.members))
    }
}
