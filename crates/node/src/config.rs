//! How one region's node is set up. `validate` names every fault at once.

use std::collections::BTreeSet;
use std::time::Duration;

use isle_model::limits::{CLOCK_DRIFT_MS_MAX, SHARDS_DEFAULT, SHARDS_MAX};
use isle_model::metadata::{Command, Metadata, is_name};
use isle_model::policy::{Member, Members, Policy, Writes};
use isle_model::{KeyspaceId, Region, TokenKey};

use crate::cluster::{fits, voter_id};

/// A keyspace that the cluster begins with. Those made later are the cluster's own knowledge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyspaceConfig {
    pub id: KeyspaceId,
    pub name: String,
    pub policy: Policy,
}

impl KeyspaceConfig {
    /// One whose keys have homes and are nevertheless written anywhere: there is no region that somebody would wait for.
    pub fn new(id: KeyspaceId, name: &str) -> Self {
        let policy = Policy { writes: Writes::Anywhere, ..Policy::default() };
        KeyspaceConfig { id, name: name.to_owned(), policy }
    }
}

/// Another region's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    pub region: Region,
    /// Such as `eu`; empty where none is given.
    pub jurisdiction: String,
    /// Where to dial it. Means something to the connector only.
    pub endpoint: String,
    /// Where clients reach it; empty where that is not known. Means something to them only.
    pub client_endpoint: String,
}

#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub cluster: String,
    pub region: Region,
    /// Such as `eu`; empty where none is given.
    pub jurisdiction: String,
    pub shards: u32,
    pub keyspaces: Vec<KeyspaceConfig>,
    pub peers: Vec<PeerConfig>,
    /// Whether this region joins a cluster that is there already, rather than found one. It then serves once it has its state. Has no
    /// effect where the region is a member already.
    pub join: bool,
    /// Signs version tokens. The same in every region of the cluster.
    pub token_key: TokenKey,
    /// Bytes of requests a shard holds, from acceptance to reply; the same again for what replication brings.
    pub queue_bytes_max: u32,
    /// Most items and bytes in one commit.
    pub batch_items_max: usize,
    pub batch_bytes_max: usize,
    /// How far behind, in bytes of log and in age of the oldest missed delta, a peer may be before the log stops waiting for it.
    pub log_budget_bytes: u64,
    pub log_budget_age: Duration,
    /// About how many bytes of a state are asked of a peer at once.
    pub state_chunk_bytes: u32,
    /// A stamp further ahead than this never advances the local clock.
    pub clock_drift_ms_max: u64,
    /// A holder away longer than this is not waited for when tombstones are forgotten.
    pub tombstone_horizon: Duration,
    /// How often a shard states what it has absorbed, if there is news.
    pub statement_interval: Duration,
    /// How often links are probed, and how long a silent one is believed in.
    pub heartbeat_interval: Duration,
    pub silence_max: Duration,
    /// Requests that may be under way to one other region, forwarded by this one.
    pub forwards_max: usize,
    /// How long one may take where its caller set no deadline.
    pub forward_timeout: Duration,
    /// Bytes sent to a peer that it has not confirmed.
    pub unacked_bytes_max: u64,
    /// How long something a survivor holds may be missing here before it is fetched from there.
    pub repair_after: Duration,
    /// First and longest wait between two dials.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// How often the leader of the cluster's metadata is heard. A region farther away than this, there and back, takes no part.
    pub metadata_heartbeat: Duration,
    /// A leader that was not heard for twice to four times as long is replaced.
    pub metadata_election: Duration,
    /// Changes after which the metadata's log is replaced by a snapshot.
    pub metadata_log_entries: u64,
}

impl Default for NodeConfig {
    fn default() -> Self {
        NodeConfig {
            cluster: "isle".to_owned(),
            region: Region::new("local"),
            shards: SHARDS_DEFAULT,
            jurisdiction: String::new(),
            keyspaces: vec![KeyspaceConfig::new(KeyspaceId(1), "default")],
            peers: Vec::new(),
            join: false,
            token_key: TokenKey::new([0; 32]),
            // About a tenth of a second of the largest burst one shard can commit.
            queue_bytes_max: 32 << 20,
            batch_items_max: 1024,
            // Large enough to amortise the fsync, small enough that no reply waits long for its neighbours.
            batch_bytes_max: 1 << 20,
            log_budget_bytes: 1 << 30,
            log_budget_age: Duration::from_secs(24 * 3600),
            state_chunk_bytes: 1 << 20,
            clock_drift_ms_max: CLOCK_DRIFT_MS_MAX,
            tombstone_horizon: Duration::from_secs(7 * 24 * 3600),
            statement_interval: Duration::from_secs(1),
            heartbeat_interval: Duration::from_secs(1),
            silence_max: Duration::from_secs(3),
            forwards_max: 4096,
            forward_timeout: Duration::from_secs(10),
            unacked_bytes_max: 8 << 20,
            repair_after: Duration::from_secs(2),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            // Above any round trip on earth, and one small message a link.
            metadata_heartbeat: Duration::from_millis(500),
            // So a leader goes after 3 to 4 s of silence: as long as links are believed in, and several heartbeats lost.
            metadata_election: Duration::from_secs(1),
            // Some 100 KB, which each change writes anew.
            metadata_log_entries: 100,
        }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node's configuration has {} fault(s): {}", .faults.len(), .faults.join("; "))]
pub struct ConfigFaults {
    pub faults: Vec<String>,
}

impl NodeConfig {
    pub fn validate(&self) -> Result<(), ConfigFaults> {
        let mut faults = Vec::new();
        let mut check = |sound: bool, fault: String| {
            if !sound {
                faults.push(fault);
            }
        };
        check(!self.cluster.is_empty(), "cluster: is empty".to_owned());
        check(is_name(self.region.as_str()), format!("region: {:?} is not a name", self.region.as_str()));
        check(
            (1..=SHARDS_MAX).contains(&self.shards),
            format!("shards: {} is not between 1 and {SHARDS_MAX}", self.shards),
        );
        let mut ids = BTreeSet::new();
        let mut names = BTreeSet::new();
        for keyspace in &self.keyspaces {
            check(is_name(&keyspace.name), format!("keyspaces: {:?} is not a name", keyspace.name));
            check(ids.insert(keyspace.id), format!("keyspaces: id {} is given twice", keyspace.id.0));
            check(names.insert(&keyspace.name), format!("keyspaces: {:?} is named twice", keyspace.name));
            let policy = &keyspace.policy;
            for fault in policy.faults(&self.metadata().members).into_iter().chain(policy.unimplemented()) {
                check(false, format!("keyspaces: {:?}: {fault}", keyspace.name));
            }
        }
        check(!self.join || !self.peers.is_empty(), "join: needs the cluster's regions as peers".to_owned());
        let mut regions = BTreeSet::from([&self.region]);
        for peer in &self.peers {
            check(is_name(peer.region.as_str()), format!("peers: {:?} is not a name", peer.region.as_str()));
            check(regions.insert(&peer.region), format!("peers: {} is named twice, or is this region", peer.region));
        }
        let voters: BTreeSet<u64> = regions.iter().map(|region| voter_id(region, 0)).collect();
        check(voters.len() == regions.len(), "peers: two regions' names have the same hash; rename one".to_owned());
        check(fits(&self.found()), "keyspaces: are larger than the cluster's metadata can begin with".to_owned());
        for (name, bytes) in [
            ("queue_bytes_max", u64::from(self.queue_bytes_max)),
            ("batch_bytes_max", self.batch_bytes_max as u64),
            ("unacked_bytes_max", self.unacked_bytes_max),
        ] {
            check(bytes >= 64 << 10, format!("{name}: {bytes} is less than 64 KiB"));
        }
        check(self.state_chunk_bytes > 0, "state_chunk_bytes: is zero".to_owned());
        check(self.batch_items_max > 0, "batch_items_max: is zero".to_owned());
        for (name, span) in [
            ("statement_interval", self.statement_interval),
            ("heartbeat_interval", self.heartbeat_interval),
            ("backoff_min", self.backoff_min),
            ("metadata_heartbeat", self.metadata_heartbeat),
        ] {
            check(!span.is_zero(), format!("{name}: is zero"));
        }
        check(
            self.silence_max >= 2 * self.heartbeat_interval,
            "silence_max: is shorter than two heartbeats".to_owned(),
        );
        check(
            self.metadata_election >= 2 * self.metadata_heartbeat,
            "metadata_election: is shorter than two heartbeats".to_owned(),
        );
        check(self.metadata_log_entries > 0, "metadata_log_entries: is zero".to_owned());
        check(self.backoff_min <= self.backoff_max, "backoff_min: is longer than backoff_max".to_owned());
        if faults.is_empty() { Ok(()) } else { Err(ConfigFaults { faults }) }
    }

    /// Every region of the cluster.
    pub(crate) fn regions(&self) -> impl Iterator<Item = &Region> {
        self.peers.iter().map(|peer| &peer.region).chain([&self.region])
    }

    /// What the cluster is before it has agreed on anything.
    pub(crate) fn metadata(&self) -> Metadata {
        Metadata::provisional(self.members(), self.begin_with())
    }

    /// What a first leader proposes.
    pub(crate) fn found(&self) -> Command {
        Command::Found { members: self.members(), keyspaces: self.begin_with().collect() }
    }

    fn members(&self) -> Members {
        let member = |jurisdiction: &String| Member { jurisdiction: jurisdiction.clone(), ..Member::default() };
        let peers = self.peers.iter().map(|peer| (peer.region.clone(), member(&peer.jurisdiction)));
        peers.chain([(self.region.clone(), member(&self.jurisdiction))]).collect()
    }

    fn begin_with(&self) -> impl Iterator<Item = (KeyspaceId, String, Policy)> {
        self.keyspaces.iter().map(|ks| (ks.id, ks.name.clone(), ks.policy.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound() {
        assert_eq!(NodeConfig::default().validate(), Ok(()));
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let twice = KeyspaceConfig::new(KeyspaceId(1), "default");
        let config = NodeConfig {
            shards: 0,
            region: Region::new("no spaces please"),
            keyspaces: vec![twice.clone(), twice],
            backoff_min: Duration::from_secs(9),
            ..NodeConfig::default()
        };
        let faults = config.validate().expect_err("five things are wrong").faults;
        assert_eq!(faults.len(), 5, "{faults:?}");
    }
}
