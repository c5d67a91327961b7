//! A whole cluster under faults, from one seed: real nodes and stores on disks in memory, clients that write at random, links
//! that are cut and slowed, clocks that jump, nodes that crash. In the end everything is healed, and what is there is checked
//! against the history of what was answered.
//!
//! ```text
//! run: faults ─▶ world (servers, disks, links, simulated time)
//!  │                 ▲ workload: clients of each region ─▶ history
//!  └▶ oracle ◀───────┴──── history, logs, final states
//! ```
//! The law it keeps: everything follows from the seed. No wall clock, no thread, no order of a hash map has a say.
#![allow(clippy::unwrap_used)]

pub mod history;
pub mod links;
pub mod oracle;
pub mod run;
pub mod seeds;
pub mod workload;
pub mod world;

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use isle_model::{KeyspaceId, TokenKey};
use rand::SeedableRng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};

pub const KEYSPACE: KeyspaceId = KeyspaceId(1);
pub const SHARDS: u32 = 2;
pub const SITES: [&str; 3] = ["a", "b", "c"];

pub const CLUSTER: &str = "simulated";

/// Of a cluster without a key file.
pub fn token_key() -> TokenKey {
    TokenKey::new(Sha256::digest(format!("isle cluster {CLUSTER}")).into())
}

/// What may go wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mix {
    /// Links delay, clocks differ.
    Calm,
    /// Links are cut, one way too, and slowed; clocks jump; a region may be away beyond the log's budget.
    Partitions,
    /// The same, and nodes crash; disks keep what they promised.
    Crashes,
    /// The same, and disks have acknowledged syncs that they did not do.
    Lying,
}

impl Mix {
    pub const ALL: [Mix; 4] = [Mix::Calm, Mix::Partitions, Mix::Crashes, Mix::Lying];

    /// Whether what was acknowledged is on the disk.
    pub fn is_honest(self) -> bool {
        self != Mix::Lying
    }
}

/// Chance of its own for everything that has a name, so that one drawing more changes nothing for the others.
pub fn rng_of(seed: u64, name: &str) -> StdRng {
    StdRng::seed_from_u64(BuildHasherDefault::<DefaultHasher>::default().hash_one((seed, name)))
}
