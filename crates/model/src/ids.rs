//! Names of things that are compared, ordered and stored: regions, keyspaces, shards, incarnations, dots.
//!
//! Every id is a type of its own, so that a sequence number never meets an epoch.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a region, such as `eu-west-1`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(Arc<str>);

impl Region {
    pub fn new(name: &str) -> Self {
        Region(Arc::from(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({})", self.0)
    }
}

impl Serialize for Region {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Region {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|name| Region::new(&name))
    }
}

impl From<&str> for Region {
    fn from(name: &str) -> Self {
        Region::new(name)
    }
}

/// The id of a keyspace. Never reused; stored keys hold it, never the keyspace's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyspaceId(pub u64);

/// A slice of the keys, the same in every region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The shard of a key: xxh3 of keyspace id and key, modulo the count fixed when the cluster was made.
    pub fn of(keyspace: KeyspaceId, key: &[u8], shards: u32) -> ShardId {
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(key, keyspace.0);
        ShardId((hash % u64::from(shards.max(1))) as u32)
    }
}

/// One run of a region's node: a random id minted at every start. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A position in what one incarnation wrote to one shard: dense, from 1. Zero means "nothing yet".
pub type Seq = u64;

/// The name of one write. It is issued once, ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    pub incarnation: Incarnation,
    pub seq: Seq,
}

impl Dot {
    pub fn new(incarnation: Incarnation, seq: Seq) -> Self {
        Dot { incarnation, seq }
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.incarnation, self.seq)
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.incarnation, self.seq)
    }
}

/// The index of the metadata entry that made a move or failover; 0 before any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// 1 + the highest generation the writer's region or its client had seen: an order that extends causality.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    pub fn next(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }
}
