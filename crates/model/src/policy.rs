//! What a keyspace promises, and to whom: its policy.
//!
//! Every setting has one text form, the same on the command line, in a policy file and in stored metadata. `rules` says which
//! mixes are impossible, and which are not built yet; `holders` and `home_of` are what everybody else asks.
//!
//! The law it keeps: residency fails closed. What no rule admits is held by nobody.

mod rules;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::Region;
pub use rules::Fault;
pub use text::{BadSetting, SETTINGS};

/// Where a keyspace's data may be, and who writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Every key has a home region; all holders have a copy.
    #[default]
    Affine,
    /// Never leaves its region: every region has data of its own under the keyspace's name.
    Local,
    /// Written anywhere, held everywhere.
    Global,
}

/// Which region is the home of a new key. Affine keyspaces alone have homes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HomeRule {
    /// The region that first writes it, or the one named in the request.
    Creator,
    /// The region of the longest prefix that the key begins with. The empty prefix is any key's.
    Prefixes(BTreeMap<String, Region>),
    /// One of the holders, by the key's hash (rendezvous hashing, Thaler and Ravishankar 1998: a holder that comes or goes
    /// takes with it only its own keys).
    Hash,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// Sent to the key's home, which serialises them.
    #[default]
    Forward,
    /// Accepted where they come; conflicts are resolved by version.
    Anywhere,
    /// At the home, visible once so many holders have them that no failover can lose them.
    Strong,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replication {
    /// Acknowledged once durable in the region that takes the write.
    #[default]
    Async,
    /// Acknowledged once that many other holders have it durable too.
    Sync(u32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tier {
    #[default]
    Hot,
    Warm(Duration),
    Cold(Duration),
}

/// What a reader sees of concurrent versions. Stored is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConflictRule {
    /// The highest.
    #[default]
    Version,
    /// All of them.
    Siblings,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadDefault {
    #[default]
    Eventual,
    Session,
    Bounded(Duration),
    Strong,
}

/// Who may hold the data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    #[default]
    All,
    /// The regions of these jurisdictions, and these regions.
    Within { jurisdictions: BTreeSet<String>, regions: BTreeSet<Region> },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestIds {
    #[default]
    Optional,
    Required,
}

/// How long an outcome is remembered by its request id, where nothing else is said.
pub const REQUEST_ID_WINDOW: Duration = Duration::from_secs(24 * 3600);
pub const WARM_INTERVAL: Duration = Duration::from_secs(3600);
pub const COLD_INTERVAL: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub scope: Scope,
    /// `None` exactly for the scopes that have no homes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<HomeRule>,
    pub writes: Writes,
    pub replication: Replication,
    pub tier: Tier,
    pub conflict: ConflictRule,
    pub read_default: ReadDefault,
    pub residency: Residency,
    /// Keys go that long after they were last written.
    #[serde(default, with = "text::optional_span", skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    pub request_ids: RequestIds,
    #[serde(with = "text::spans")]
    pub request_id_window: Duration,
    /// Largest value, in bytes.
    pub value_bytes_max: u32,
    /// For people and bills: team, cost centre.
    pub labels: BTreeMap<String, String>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy::of_scope(Scope::Affine)
    }
}

/// A region of the cluster, as policies see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Such as `eu`; empty where none is given, which no residency rule admits by jurisdiction.
    pub jurisdiction: String,
    #[serde(default, skip_serializing_if = "MemberState::is_serving")]
    pub state: MemberState,
    /// The index of the command that let it in; 0 of a founder. So one that comes again is told from what it was before.
    #[serde(default, skip_serializing_if = "crate::metadata::is_zero")]
    pub joined: u64,
    /// Where the other regions dial it; empty where only their configurations say so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// Where clients reach it; empty where that is not known, or where configurations say so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client_endpoint: String,
}

/// How far a region has come in joining the cluster, or in leaving it. In every state the others replicate with it, and wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    /// It takes the state of the cluster, and serves nobody yet.
    Joining,
    #[default]
    Serving,
    /// It takes no more writes, and goes once the others have all of its own.
    Leaving,
}

impl MemberState {
    pub fn is_serving(&self) -> bool {
        *self == MemberState::Serving
    }
}

pub type Members = BTreeMap<Region, Member>;

impl Policy {
    /// What a keyspace of this scope has where nothing else is said.
    pub fn of_scope(scope: Scope) -> Policy {
        let is_affine = scope == Scope::Affine;
        Policy {
            scope,
            home: is_affine.then_some(HomeRule::Creator),
            writes: if is_affine { Writes::Forward } else { Writes::Anywhere },
            replication: Replication::default(),
            tier: Tier::default(),
            conflict: ConflictRule::default(),
            read_default: ReadDefault::default(),
            residency: Residency::default(),
            ttl: None,
            request_ids: RequestIds::default(),
            request_id_window: REQUEST_ID_WINDOW,
            value_bytes_max: crate::limits::VALUE_BYTES_MAX as u32,
            labels: BTreeMap::new(),
        }
    }

    /// Whether one region serialises the writes of a key.
    pub fn is_forwarded(&self) -> bool {
        self.scope == Scope::Affine && self.writes != Writes::Anywhere
    }

    /// Whether residency lets a region hold the data.
    pub fn admits(&self, region: &Region, members: &Members) -> bool {
        let Some(member) = members.get(region) else { return false };
        match &self.residency {
            Residency::All => true,
            Residency::Within { jurisdictions, regions } => {
                regions.contains(region) || jurisdictions.contains(&member.jurisdiction)
            }
        }
    }

    /// The regions that hold the data, in the order of their names. Of a local keyspace each region holds its own, which is no
    /// copy of another's: `is_copied` tells.
    pub fn holders<'a>(&'a self, members: &'a Members) -> impl Iterator<Item = &'a Region> {
        members.keys().filter(|region| self.admits(region, members))
    }

    /// How long a change may wait before it is shipped, where changes are not shipped as they come.
    pub fn ship_interval(&self) -> Option<Duration> {
        match self.tier {
            Tier::Warm(interval) if self.is_copied() => Some(interval),
            _ => None,
        }
    }

    /// Whether what one region writes goes to the others.
    pub fn is_copied(&self) -> bool {
        self.scope != Scope::Local
    }

    /// The home of a key that is not there yet; `None` where its creator is to be it.
    pub fn home_of(&self, key: &[u8], members: &Members) -> Option<Region> {
        match self.home.as_ref()? {
            HomeRule::Creator => None,
            HomeRule::Prefixes(prefixes) => {
                let longest = prefixes
                    .iter()
                    .filter(|(prefix, _)| key.starts_with(prefix.as_bytes()))
                    .max_by_key(|(p, _)| p.len());
                longest.map(|(_, region)| region.clone())
            }
            HomeRule::Hash => self.home_by_hash(key, members),
        }
    }

    /// The holder that a key's hash chooses among those that have the data. One that leaves is among them until it has left: two would
    /// make one key else.
    pub fn home_by_hash(&self, key: &[u8], members: &Members) -> Option<Region> {
        let serving = self.holders(members).filter(|region| members[*region].state != MemberState::Joining);
        Policy::chosen_by_hash(key, serving).cloned()
    }

    pub(crate) fn chosen_by_hash<'a>(key: &[u8], among: impl Iterator<Item = &'a Region>) -> Option<&'a Region> {
        let weight = |region: &&Region| xxh3_64_with_seed(key, xxh3_64_with_seed(region.as_str().as_bytes(), 0));
        among.max_by_key(|region| (weight(region), *region))
    }
}

#[cfg(test)]
mod tests;
