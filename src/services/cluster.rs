//! `isle.v1.Cluster`: how the answering region is, and where the others are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isle_model::Region;
use isle_model::metadata::is_name;
use isle_model::policy::{Member, MemberState};
use isle_node::{LinkState, Node, NodeState, NodeStatus, peer::FEATURE_LEVEL};
use isle_proto::v1;
use isle_proto::v1::cluster_server::Cluster;
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status};

use super::keyspaces::holders_changing;
use super::wire;
use crate::config::{self, Config};
use crate::request_context;
use crate::status_table::{bad_field, of_change};

/// What is known of a region beside its node: fixed at start.
pub struct Facts {
    endpoint: String,
    /// Whether other regions are reached by TLS.
    is_secure: bool,
    config_hash: String,
    log_budget_bytes: u64,
    /// What a GB sent to a region costs, in US dollars.
    prices: BTreeMap<String, f64>,
}

impl Facts {
    pub fn of(config: &Config) -> Facts {
        let endpoint = config.client_endpoint();
        let is_secure = config.tls.is_some();
        Facts {
            endpoint,
            is_secure,
            config_hash: config_hash(config),
            log_budget_bytes: config.limits.log_budget_bytes,
            prices: config.peers.iter().filter_map(|peer| Some((peer.region.clone(), peer.price()?))).collect(),
        }
    }
}

/// Over what has to be the same in every region.
fn config_hash(config: &Config) -> String {
    let keyspace = |keyspace: &config::Keyspace| (keyspace.id, keyspace.name.clone(), keyspace.policy.to_string());
    let mut keyspaces: Vec<_> = config.keyspaces.iter().map(keyspace).collect();
    keyspaces.sort_unstable();
    let peers = config.peers.iter().map(|peer| (&peer.region, &peer.jurisdiction));
    let mut regions: Vec<_> = peers.chain([(&config.region, &config.jurisdiction)]).collect();
    regions.sort_unstable();
    let text = format!("{:?}", (&config.cluster, regions, config.shards, keyspaces));
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

pub struct ClusterService {
    node: Arc<Node>,
    facts: Arc<Facts>,
    started: tokio::time::Instant,
}

impl ClusterService {
    pub fn new(node: Arc<Node>, facts: Arc<Facts>) -> ClusterService {
        ClusterService { node, facts, started: tokio::time::Instant::now() }
    }

    fn holders_changing(&self) -> Vec<v1::HolderChange> {
        self.node.metadata().keyspaces.values().flat_map(holders_changing).collect()
    }

    /// Every region and where clients find it, sorted by name.
    fn regions(&self) -> Vec<v1::RegionEndpoint> {
        let (metadata, me) = (self.node.metadata(), &self.node.config().region);
        let state = |region: &Region| match metadata.members.get(region).map(|member| member.state) {
            Some(MemberState::Joining) => v1::RegionState::Joining,
            Some(MemberState::Serving) => v1::RegionState::Serving,
            Some(MemberState::Leaving) => v1::RegionState::Leaving,
            None => v1::RegionState::Unspecified,
        };
        let row = |region: &Region, jurisdiction: &str, endpoint: String| v1::RegionEndpoint {
            region: region.to_string(),
            endpoint,
            jurisdiction: jurisdiction.to_owned(),
            state: state(region).into(),
        };
        let peers = self.node.peers().into_iter();
        let rows = peers.map(|peer| row(&peer.region, &peer.jurisdiction, peer.client_endpoint));
        let own = row(me, &self.node.config().jurisdiction, self.facts.endpoint.clone());
        sorted(rows.chain([own]), |row| row.region.clone())
    }

    fn header(&self) -> Option<v1::ResponseHeader> {
        Some(v1::ResponseHeader { served_by: self.node.config().region.to_string(), ..v1::ResponseHeader::default() })
    }

    fn region(&self, status: NodeStatus) -> v1::RegionStatus {
        let (state, cause) = state_of(&status.state);
        let config = self.node.config();
        let quarantined = status.peers.iter().map(|peer| peer.quarantined).sum();
        v1::RegionStatus {
            region: status.region.to_string(),
            endpoint: self.facts.endpoint.clone(),
            state: state.into(),
            cause: cause.or(status.view_failed).unwrap_or_default(),
            records: status.records,
            digest: status.digest.map(digest),
            conflicts: status.conflicts_open,
            conflicts_open: status.conflicts_open,
            keyspaces: sorted(status.keyspaces.into_iter().map(keyspace), |keyspace| keyspace.name.clone()),
            peers: sorted(status.peers.into_iter().map(|status| self.peer(status)), |peer| peer.region.clone()),
            incarnation: status.incarnation.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_hash: self.facts.config_hash.clone(),
            feature_level: FEATURE_LEVEL,
            shards: config.shards,
            uptime: wire::span(self.started.elapsed()),
            log_bytes: status.log_bytes,
            log_budget_bytes: self.facts.log_budget_bytes,
            view_bytes: status.view_bytes,
            view_live_bytes: status.view_live_bytes,
            overlay_bytes: status.overlay_bytes,
            quarantined,
            keyspaces_purging: status.keyspaces_purging as u32,
            holders_changing: sorted(self.holders_changing().into_iter(), |change| {
                (change.keyspace.clone(), change.region.clone())
            }),
            metadata: Some(metadata(status.metadata)),
            ..v1::RegionStatus::default()
        }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let status = self.node.status();
        let header = v1::ResponseHeader {
            served_by: status.region.to_string(),
            staleness: wire::span(Duration::ZERO),
            ..v1::ResponseHeader::default()
        };
        Ok(Response::new(v1::StatusResponse {
            header: Some(header),
            cluster: status.cluster.clone(),
            region: Some(self.region(status)),
            regions: self.regions(),
        }))
    }

    async fn add_region(
        &self,
        request: Request<v1::AddRegionRequest>,
    ) -> Result<Response<v1::AddRegionResponse>, Status> {
        let context = request_context::of(&request);
        let v1::AddRegionRequest { region, jurisdiction, peer_endpoint, client_endpoint } = request.into_inner();
        check_url("peer_endpoint", &peer_endpoint, Some(self.facts.is_secure))?;
        if !client_endpoint.is_empty() {
            check_url("client_endpoint", &client_endpoint, None)?;
        }
        let member = Member { jurisdiction, endpoint: peer_endpoint, client_endpoint, ..Member::default() };
        let added = self.node.add_region(&context, Region::new(&name(&region)?), member).await;
        added.map_err(|error| of_change(&error, &region))?;
        Ok(Response::new(v1::AddRegionResponse { header: self.header() }))
    }

    async fn remove_region(
        &self,
        request: Request<v1::RemoveRegionRequest>,
    ) -> Result<Response<v1::RemoveRegionResponse>, Status> {
        let context = request_context::of(&request);
        let v1::RemoveRegionRequest { region, lost } = request.into_inner();
        let removed = self.node.remove_region(&context, Region::new(&name(&region)?), lost).await;
        removed.map_err(|error| of_change(&error, &region))?;
        Ok(Response::new(v1::RemoveRegionResponse { header: self.header() }))
    }
}

fn name(region: &str) -> Result<String, Status> {
    let rule = "is not 1 to 64 letters, digits, dots, dashes and underscores";
    if is_name(region) { Ok(region.to_owned()) } else { Err(bad_field("region", rule)) }
}

fn check_url(field: &'static str, url: &str, secure: Option<bool>) -> Result<(), Status> {
    config::url_fault(url, secure).map_or(Ok(()), |fault| Err(bad_field(field, fault)))
}

/// 32 hexadecimal digits.
pub fn digest(sum: u128) -> String {
    format!("{sum:032x}")
}

fn sorted<T, K: Ord>(rows: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut rows: Vec<T> = rows.collect();
    rows.sort_by_key(key);
    rows
}

fn state_of(state: &NodeState) -> (v1::RegionState, Option<String>) {
    match state {
        NodeState::Serving => (v1::RegionState::Serving, None),
        NodeState::Completing => (v1::RegionState::Completing, None),
        NodeState::Joining { progress } => (v1::RegionState::Joining, Some(progress.clone())),
        NodeState::Leaving => (v1::RegionState::Leaving, None),
        NodeState::WritesStopped { reason } => (v1::RegionState::ReadOnly, Some(reason.clone())),
        NodeState::ClockAhead { by_ms } => (v1::RegionState::ReadOnly, Some(clock_ahead(*by_ms))),
        NodeState::Stopped { reason } => (v1::RegionState::Draining, Some(reason.clone())),
    }
}

fn clock_ahead(by_ms: u64) -> String {
    isle_node::NodeError::ClockAhead { by_ms }.to_string()
}

fn metadata(from: isle_node::MetadataStatus) -> v1::MetadataStatus {
    v1::MetadataStatus {
        revision: from.revision,
        leader: from.leader.map(|region| region.to_string()).unwrap_or_default(),
        has_majority: from.has_majority,
    }
}

fn keyspace(from: isle_node::KeyspaceStatus) -> v1::KeyspaceStatus {
    v1::KeyspaceStatus {
        name: from.name,
        id: from.id.0,
        records: from.records,
        digest: from.digest.map(digest),
        conflicts: 0,
    }
}

impl ClusterService {
    fn peer(&self, from: isle_node::PeerStatus) -> v1::PeerStatus {
        let price = self.facts.prices.get(from.region.as_str()).copied();
        v1::PeerStatus { egress_usd_per_gb: price, ..peer(from) }
    }
}

fn peer(from: isle_node::PeerStatus) -> v1::PeerStatus {
    let state = match from.state {
        LinkState::Live => v1::PeerState::Live,
        // Down is further behind than any lag: it slows nobody either.
        LinkState::Lagging | LinkState::Down => v1::PeerState::Lagging,
        LinkState::NeedsState => v1::PeerState::NeedsState,
    };
    v1::PeerStatus {
        region: from.region.to_string(),
        state: state.into(),
        lag_seconds: from.lag.as_secs_f64(),
        lag_bytes: from.lag_bytes,
        egress_bytes: from.egress_bytes,
        connected: !matches!(from.state, LinkState::Down),
        staleness: from.staleness.and_then(wire::span),
        last_error: from.last_error.unwrap_or_default(),
        quarantined: from.quarantined,
        quarantine_reason: from.quarantine_reason.unwrap_or_default(),
        shipments: from.shipments.into_iter().map(shipment).collect(),
        egress: from.egress.into_iter().map(egress).collect(),
        ..v1::PeerStatus::default()
    }
}

fn egress(from: isle_node::EgressStatus) -> v1::EgressStatus {
    let keyspace = from.keyspace.unwrap_or_default();
    v1::EgressStatus { keyspace, cause: from.cause.name().to_owned(), bytes: from.bytes }
}

fn shipment(from: isle_node::ShipmentStatus) -> v1::ShipmentStatus {
    v1::ShipmentStatus {
        keyspace: from.keyspace,
        keys_waiting: from.keys_waiting,
        oldest: wire::span(from.oldest),
        next_in: wire::span(from.next_in),
    }
}
