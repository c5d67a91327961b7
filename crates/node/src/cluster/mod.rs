//! The cluster's metadata, agreed on by Raft: one voter a region, by openraft.
//!
//! ```text
//! Node::change ─▶ group ═ Ask::Propose ═▶ the leader's group ─▶ openraft ─▶ storage (file METADATA)
//!                   ▲                                              │ committed, applied
//!                   └──────────── catalog ◀────────────────────────┘
//! ```
//! The laws it keeps: nothing on the data path waits for it; a vote and an entry of the log are durable before anybody hears of
//! them; a change is acknowledged only once most regions have it and this one has applied it.

mod document;
mod group;
mod network;
mod runtime;
mod seats;
mod storage;
#[cfg(test)]
mod tests;
mod wire;

use std::io::Cursor;

use isle_model::Region;
use isle_model::metadata::{Command, Keyspace, Refused};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

pub use document::Damaged;
pub use group::MetadataStatus;
pub(crate) use group::{Group, change, decide, run, serve, status};
pub(crate) use storage::Storage;

openraft::declare_raft_types!(
    pub(crate) Types:
        D = Command,
        R = Result<Option<Keyspace>, Refused>,
        NodeId = u64,
        Node = Voter,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = runtime::SeededRuntime,
);

/// A region's node as openraft knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voter {
    pub(crate) region: Region,
}

impl Default for Voter {
    fn default() -> Self {
        Voter { region: Region::new("") }
    }
}

/// A region's number as a voter, by the command that let it in, 0 where it is a founder: one that has left and joins again knows
/// nothing of what it voted for before, and is another voter. Where two are alike the configuration or the change is refused.
pub(crate) fn voter_id(region: &Region, joined: u64) -> u64 {
    match joined {
        0 => xxh3_64(region.as_str().as_bytes()),
        _ => xxh3_64(format!("{region} {joined}").as_bytes()),
    }
}

/// The largest configuration and the largest change that fit into an entry.
pub(crate) fn fits(command: &Command) -> bool {
    serde_json::to_vec(command).is_ok_and(|encoded| encoded.len() <= wire::COMMAND_BYTES_MAX)
}
