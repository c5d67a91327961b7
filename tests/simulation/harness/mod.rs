//! A whole cluster under faults, from one seed: real servers and stores on disks in memory, clients that write at random, links
//! that are cut and slowed, clocks that jump, nodes that crash. In the end everything is healed, and what is there is checked
//! against the history of what was answered.
//!
//! ```text
//! run: faults ─▶ world (servers, disks, links, simulated time; tamper: what deltas meet on their way)
//!  │                 ▲ workload: clients of each region ─ door ─▶ history
//!  │                 ▲ keyspaces: come and go ─▶ what was answered
//!  └▶ oracle ◀───────┴──── history, logs, final states
//! ```
//! The law it keeps: everything follows from the seed. No wall clock, no thread, no order of a hash map has a say.
#![allow(clippy::unwrap_used)]

pub mod causality;
pub mod door;
pub mod faults;
pub mod history;
pub mod keyspaces;
pub mod links;
pub mod logs;
pub mod mix;
pub mod oracle;
pub mod run;
pub mod seeds;
pub mod tamper;
pub mod workload;
pub mod world;

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

pub use mix::Mix;

use isle_model::{KeyspaceId, TokenKey};
use rand::SeedableRng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};

pub const SHARDS: u32 = 2;
pub const SITES: [&str; 3] = ["a", "b", "c"];
/// The host of a region's clone.
pub const CLONE: &str = "clone";
/// The hosts of the clients that reach their region over a link.
pub const CLIENTS: [&str; 3] = ["clients-a", "clients-b", "clients-c"];

/// What every region holds. A key's name says which keyspace it is in.
pub struct Keyspace {
    pub id: KeyspaceId,
    pub name: &'static str,
}

pub const KEYSPACES: [Keyspace; 2] =
    [Keyspace { id: KeyspaceId(1), name: "default" }, Keyspace { id: KeyspaceId(7), name: OTHER }];

pub const OTHER: &str = "other";

pub fn keyspace_of(key: &str) -> &'static Keyspace {
    &KEYSPACES[usize::from(key.starts_with("other-"))]
}

pub const CLUSTER: &str = "simulated";

/// Of a cluster without a key file.
pub fn token_key() -> TokenKey {
    TokenKey::new(Sha256::digest(format!("isle cluster {CLUSTER}")).into())
}

/// Chance of its own for everything that has a name, so that one drawing more changes nothing for the others.
pub fn rng_of(seed: u64, name: &str) -> StdRng {
    StdRng::seed_from_u64(BuildHasherDefault::<DefaultHasher>::default().hash_one((seed, name)))
}
