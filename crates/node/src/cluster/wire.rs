//! What one region's voter asks of another's. To whatever carries it, it is bytes: JSON of openraft's own types.

use std::collections::BTreeSet;

use bytes::Bytes;
use isle_model::Region;
use isle_model::metadata::{Command, Keyspace, Refused};
use isle_model::policy::Members;
use openraft::error::InstallSnapshotError;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use serde::{Deserialize, Serialize};

use super::Types;
use crate::peer::PeerError;

/// Largest ask or answer, encoded.
pub(crate) const ASK_BYTES_MAX: usize = 3 << 20;
/// Largest command, encoded: one always fits into an ask.
pub(crate) const COMMAND_BYTES_MAX: usize = 1 << 20;
/// Bytes of a snapshot in one ask. As JSON they take up to four times as many.
pub(crate) const SNAPSHOT_CHUNK_BYTES: u64 = 256 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// Of the founders of the asker's cluster. Voters that were set up with different ones must not count each other.
    pub(crate) founders: u64,
    /// The command that let the asker in; 0 of a founder.
    pub(crate) joined: u64,
    /// Which voter is meant, where a voter is: one that has left and joined again is another, and must not answer for what it was.
    pub(crate) voter: Option<u64>,
    pub(crate) ask: Ask,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u64>),
    Snapshot(InstallSnapshotRequest<Types>),
    /// Has the cluster been founded, as far as you know?
    Founded,
    /// Are you the leader, and do most regions still hear you?
    Confirm,
    /// To the leader alone: it is not passed on.
    Propose(Command),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Snapshot(Result<InstallSnapshotResponse<u64>, InstallSnapshotError>),
    Founded(Option<Founded>),
    Confirmed(Result<(), String>),
    /// An error says why the leader does not know whether it will come about.
    Proposed(Result<Box<Decided>, String>),
}

/// By whom the cluster was founded, and what the asker is in it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Founded {
    pub(crate) founders: BTreeSet<Region>,
    /// The asker is one of them.
    pub(crate) members: Members,
}

/// The cluster has decided, with the entry of this index.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Decided {
    pub(crate) index: u64,
    pub(crate) outcome: Result<Option<Keyspace>, Refused>,
}

pub(crate) fn encode<T: Serialize>(message: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(message).expect("its maps have names and numbers for keys"))
}

pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, PeerError> {
    if bytes.len() > ASK_BYTES_MAX {
        let reason = format!("{} bytes about metadata, more than {ASK_BYTES_MAX}", bytes.len());
        return Err(PeerError::Corrupt { reason });
    }
    serde_json::from_slice(bytes).map_err(|error| PeerError::Corrupt { reason: format!("metadata: {error}") })
}
