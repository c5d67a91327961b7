//! What `isle status` shows of one region.

use std::collections::BTreeSet;
use std::time::Duration;

use isle_model::{Incarnation, KeyspaceId, Region};

use crate::PeerConfig;
use crate::cluster::{self, MetadataStatus};
use crate::egress::{Gate, Verdict};
use crate::egress_meter::Cause;
use crate::members;
use crate::peers::PeerSlot;
use crate::replication::link::LinkState;
use crate::replication::outbound::lag_of;
use crate::shared::Shared;
use crate::shipping::{self, ShipmentStatus};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    Serving,
    /// Its disk was behind; the others complete it.
    Completing,
    /// It joins the cluster, and takes its state.
    Joining {
        progress: String,
    },
    /// Reads go on; it goes once the others have what it took.
    Leaving,
    /// Reads go on, writes are refused until a restart.
    WritesStopped {
        reason: String,
    },
    /// Reads go on, writes are refused until the clock is set.
    ClockAhead {
        by_ms: u64,
    },
    Stopped {
        reason: String,
    },
}

#[derive(Clone, Debug)]
pub struct NodeStatus {
    pub cluster: String,
    pub region: Region,
    pub incarnation: Incarnation,
    pub state: NodeState,
    pub records: u64,
    /// `None` until known. Equal in two regions exactly if they agree.
    pub digest: Option<u128>,
    pub conflicts_open: u64,
    pub keyspaces: Vec<KeyspaceStatus>,
    /// How many keyspaces the disk here still holds some of that were deleted, or may not be here any more.
    pub keyspaces_purging: u64,
    pub peers: Vec<PeerStatus>,
    pub log_bytes: u64,
    pub overlay_bytes: u64,
    pub view_bytes: u64,
    /// What the view holds, as it is stored; `None` until it has been counted.
    pub view_live_bytes: Option<u64>,
    /// How many times it was built anew for having outgrown that, since the start.
    pub view_rebuilds: u64,
    pub view_failed: Option<String>,
    pub metadata: MetadataStatus,
}

#[derive(Clone, Debug)]
pub struct KeyspaceStatus {
    pub id: KeyspaceId,
    pub name: String,
    pub records: u64,
    pub digest: Option<u128>,
    /// Whether every region holds a copy.
    pub is_everywhere: bool,
}

/// What has left for a peer of one keyspace, for one cause.
#[derive(Clone, Debug)]
pub struct EgressStatus {
    /// `None` where it was of none.
    pub keyspace: Option<String>,
    pub cause: Cause,
    pub bytes: u64,
}

#[derive(Clone, Debug)]
pub struct PeerStatus {
    pub region: Region,
    pub endpoint: String,
    pub state: LinkState,
    /// The age of the oldest that the peer has not confirmed.
    pub lag: Duration,
    pub lag_bytes: u64,
    /// Bytes that left for it since the start, on the wire.
    pub egress_bytes: u64,
    /// The same, by what they were of.
    pub egress: Vec<EgressStatus>,
    /// Whether this region takes in the peer's streams.
    pub receiving: bool,
    /// What is read here of the peer's writes is at most this old.
    pub staleness: Option<Duration>,
    pub last_error: Option<String>,
    /// Keyspaces by which the peer means something else, or nothing yet: they wait until it has heard of the change.
    pub keyspaces_waiting: Vec<String>,
    /// Streams of the peer that stand still here at a delta that cannot be applied, until a state takes them past it.
    pub quarantined: u64,
    /// Why, of the newest.
    pub quarantine_reason: Option<String>,
    /// What it lacks of keyspaces that are not shipped as they are written.
    pub shipments: Vec<ShipmentStatus>,
}

pub(crate) fn status(shared: &Shared) -> NodeStatus {
    let stats = shared.store.stats();
    let known = shared.catalog.known();
    let keyspaces: Vec<KeyspaceStatus> = known
        .held_by(shared.me())
        .map(|keyspace| {
            let found = stats.keyspaces.iter().find(|s| s.id == keyspace.id);
            // A keyspace that the storage has not met is empty, once what there is has been counted.
            let digest = found.map_or_else(|| shared.store.is_counted().then_some(0), |s| s.digest);
            let records = found.map_or(0, |s| s.records);
            let members = &known.metadata.members;
            let is_everywhere =
                keyspace.policy.is_copied() && keyspace.policy.holders(members).count() == members.len();
            KeyspaceStatus { id: keyspace.id, name: keyspace.name.clone(), records, digest, is_everywhere }
        })
        .collect();
    let sum = |all: u128, keyspace: &KeyspaceStatus| keyspace.digest.map(|one| all.wrapping_add(one));
    NodeStatus {
        cluster: shared.config.cluster.clone(),
        region: shared.me().clone(),
        incarnation: shared.store.incarnation(),
        state: state(shared),
        records: keyspaces.iter().map(|keyspace| keyspace.records).sum(),
        digest: keyspaces.iter().filter(|keyspace| keyspace.is_everywhere).try_fold(0, sum),
        conflicts_open: stats.conflicts_open,
        keyspaces,
        keyspaces_purging: purging(shared),
        peers: shared.peers.all().values().map(|slot| peer_status(shared, slot)).collect(),
        log_bytes: stats.log_bytes,
        overlay_bytes: stats.overlay_bytes,
        view_bytes: stats.view_bytes,
        view_live_bytes: stats.view_live_bytes,
        view_rebuilds: stats.view_rebuilds,
        view_failed: stats.view_failed,
        metadata: cluster::status(shared),
    }
}

fn purging(shared: &Shared) -> u64 {
    let known = shared.catalog.known();
    let kept = shared
        .store
        .kept()
        .into_iter()
        .map(|(keyspace, _)| keyspace)
        .filter(|keyspace| known.is_gone_from(shared.me(), *keyspace));
    kept.chain(shared.store.purging()).collect::<BTreeSet<KeyspaceId>>().len() as u64
}

fn state(shared: &Shared) -> NodeState {
    if let Some(reason) = shared.fatal.borrow().as_ref() {
        return NodeState::Stopped { reason: reason.to_string() };
    }
    if let Some(reason) = shared.durability.failure() {
        return NodeState::WritesStopped { reason: reason.to_string() };
    }
    let known = shared.catalog.known();
    {
        let standing = shared.standing.lock();
        if standing.is_joining() {
            return NodeState::Joining { progress: members::progress(shared, &known, &standing) };
        }
    }
    if shared.is_behind() {
        return NodeState::Completing;
    }
    if known.is_leaving(shared.me()) {
        return NodeState::Leaving;
    }
    shared.clock_ahead().map_or(NodeState::Serving, |by_ms| NodeState::ClockAhead { by_ms })
}

fn peer_status(shared: &Shared, slot: &PeerSlot) -> PeerStatus {
    let PeerConfig { region, endpoint, .. } = &slot.config;
    let now = shared.now();
    let (lag_bytes, lag) = lag_of(shared, region, slot);
    let quarantined = shared.quarantined(region);
    let shipments = shipping::status(shared, region, slot);
    let egress = egress_of(shared, region);
    let link = slot.link.lock();
    PeerStatus {
        region: region.clone(),
        endpoint: endpoint.clone(),
        state: link.state(lag),
        lag,
        lag_bytes,
        egress_bytes: egress.iter().map(|row| row.bytes).sum(),
        egress,
        receiving: link.inbound,
        staleness: link.fresh_as_of.map(|at| now.saturating_sub(at)),
        last_error: link.last_error.clone(),
        keyspaces_waiting: keyspaces_waiting(shared, region),
        quarantined: quarantined.len() as u64,
        quarantine_reason: quarantined.into_iter().max_by_key(|held| held.since).map(|held| held.reason),
        shipments,
    }
}

fn egress_of(shared: &Shared, peer: &Region) -> Vec<EgressStatus> {
    let known = shared.catalog.known();
    // A keyspace that is deleted has no name any more.
    let name =
        |id: KeyspaceId| known.keyspace(id).map_or_else(|| format!("#{}", id.0), |keyspace| keyspace.name.clone());
    let rows = shared.peers.egress.to(peer).rows().into_iter();
    rows.map(|((keyspace, cause), bytes)| EgressStatus { keyspace: keyspace.map(name), cause, bytes }).collect()
}

fn keyspaces_waiting(shared: &Shared, peer: &Region) -> Vec<String> {
    let (known, gate) = (shared.catalog.known(), Gate::to(shared, peer));
    let waiting = known.held_by(shared.me()).filter(|keyspace| gate.judge(keyspace.id) == Verdict::Wait);
    waiting.map(|keyspace| keyspace.name.clone()).collect()
}
