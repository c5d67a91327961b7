//! The other regions, and what is known of the links to each. Regions come and go while the node runs: whoever holds a slot goes on
//! with it until its link ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isle_model::Region;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::catalog::Fingerprints;
use crate::egress_meter::EgressMeter;
use crate::peer::Peer;
use crate::replication::link::Link;
use crate::shared::LinkCommand;
use crate::{NodeConfig, PeerConfig};

pub(crate) type Slots = BTreeMap<Region, Arc<PeerSlot>>;

/// What is known of one peer's two links.
pub(crate) struct PeerSlot {
    pub(crate) config: PeerConfig,
    /// The command that let it in, as far as is known: one that was let in again is another.
    pub(crate) joined: u64,
    pub(crate) link: Mutex<Link>,
    /// The connection to it, while there is one.
    pub(crate) handle: Mutex<Option<Arc<dyn Peer>>>,
    pub(crate) commands: mpsc::UnboundedSender<LinkCommand>,
    /// Raised by each new subscription of the peer: an older one then ends. Raised also when the peer is no member any more.
    pub(crate) subscription: watch::Sender<u64>,
    /// Whether it is no member any more: both links end.
    pub(crate) left: watch::Sender<bool>,
    /// Requests under way to the peer that are not replication's.
    pub(crate) forwards: Semaphore,
    /// What the peer means by each keyspace, as it said last.
    pub(crate) said: Mutex<Arc<Fingerprints>>,
}

impl PeerSlot {
    /// A peer that has not been reached, and the commands to its inbound link.
    pub(crate) fn new(
        peer: PeerConfig,
        joined: u64,
        config: &NodeConfig,
        now: Duration,
    ) -> (Arc<PeerSlot>, mpsc::UnboundedReceiver<LinkCommand>) {
        let (commands, commanded) = mpsc::unbounded_channel();
        let slot = PeerSlot {
            config: peer,
            joined,
            link: Mutex::new(Link::new(now)),
            handle: Mutex::new(None),
            commands,
            subscription: watch::Sender::new(0),
            left: watch::Sender::new(false),
            forwards: Semaphore::new(config.forwards_max),
            said: Mutex::default(),
        };
        (Arc::new(slot), commanded)
    }
}

pub(crate) struct Peers {
    slots: RwLock<Arc<Slots>>,
    /// What leaves for each of them.
    pub(crate) egress: Arc<EgressMeter>,
}

impl Peers {
    /// None yet.
    pub(crate) fn new(egress: Arc<EgressMeter>) -> Peers {
        Peers { slots: RwLock::default(), egress }
    }

    /// All of them, as of now.
    pub(crate) fn all(&self) -> Arc<Slots> {
        self.slots.read().clone()
    }

    pub(crate) fn get(&self, region: &Region) -> Option<Arc<PeerSlot>> {
        self.slots.read().get(region).cloned()
    }

    pub(crate) fn contains(&self, region: &Region) -> bool {
        self.slots.read().contains_key(region)
    }

    pub(crate) fn insert(&self, slot: Arc<PeerSlot>) {
        let mut slots = self.slots.write();
        let mut changed = Slots::clone(&slots);
        changed.insert(slot.config.region.clone(), slot);
        *slots = Arc::new(changed);
    }

    /// Ends the links of a peer that is no member any more.
    pub(crate) fn remove(&self, region: &Region) {
        let mut slots = self.slots.write();
        let mut changed = Slots::clone(&slots);
        let Some(slot) = changed.remove(region) else { return };
        *slots = Arc::new(changed);
        drop(slots);
        slot.left.send_replace(true);
        slot.subscription.send_modify(|generation| *generation += 1);
        *slot.handle.lock() = None;
    }
}
