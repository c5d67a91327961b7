//! What is asked of a node, and what it answers.

use std::time::Duration;

use bytes::Bytes;
use isle_model::{Epoch, Mutation, Reading, Region};

/// What must hold of the newest state, or nothing is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PreconditionAsked {
    #[default]
    None,
    Absent,
    /// The record's version is the one of this token.
    Version(Bytes),
}

#[derive(Clone, Debug)]
pub struct WriteRequest {
    pub keyspace: String,
    pub key: Bytes,
    pub mutation: Mutation,
    pub precondition: PreconditionAsked,
    /// A version token: the write covers what its client saw. One given as precondition counts here too.
    pub context: Option<Bytes>,
    /// Not there yet: anything but empty is refused.
    pub request_id: String,
    /// For a key that is created by this write: its home, where the keyspace leaves that to its creator.
    pub home: Option<Region>,
    /// That of the metadata entry which made it, for a move; 0 for everything else.
    pub epoch: Epoch,
    /// Whether it is sent to the key's home where that is another region; else it is refused there.
    pub forward: bool,
}

impl WriteRequest {
    /// One without conditions, sent to its home wherever that is.
    pub fn new(keyspace: impl Into<String>, key: Bytes, mutation: Mutation) -> WriteRequest {
        WriteRequest {
            keyspace: keyspace.into(),
            key,
            mutation,
            precondition: PreconditionAsked::None,
            context: None,
            request_id: String::new(),
            home: None,
            epoch: Epoch::default(),
            forward: true,
        }
    }
}

/// Whether a batch's replies have versions. Each costs a MAC, and a bulk load has no use for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    Shown,
    Omitted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteReply {
    /// Empty where versions are omitted.
    pub version: Bytes,
    pub home: Option<Region>,
    pub home_epoch: Epoch,
    pub served_by: Region,
    pub replayed: bool,
    /// What an increment left.
    pub value: Option<i64>,
    /// Whether something was live before; of a move, whether the home was another one.
    pub found: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// What the keyspace's policy says.
    #[default]
    Default,
    /// What this region has.
    Eventual,
    /// Not there yet.
    Session,
    /// At most so old; of a forwarded key, at its home if it has to be.
    Bounded(Duration),
    /// At the key's home.
    Strong,
}

#[derive(Clone, Debug)]
pub struct GetRequest {
    pub keyspace: String,
    pub key: Bytes,
    pub consistency: Consistency,
}

#[derive(Clone, Debug, PartialEq)]
pub struct GetReply {
    /// `None` where there is nothing, or nothing any more.
    pub reading: Option<Reading>,
    /// Also of a deleted record, so that a write can be made conditional on its absence.
    pub version: Bytes,
    pub served_by: Region,
    pub home: Option<Region>,
    pub home_epoch: Epoch,
    pub staleness: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct ScanRequest {
    pub keyspace: String,
    pub start: Bytes,
    /// Exclusive.
    pub end: Option<Bytes>,
    pub limit: usize,
    pub bytes_max: usize,
    pub consistency: Consistency,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ScanRow {
    pub key: Bytes,
    pub reading: Reading,
    pub version: Bytes,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ScanReply {
    pub rows: Vec<ScanRow>,
    /// Where to go on; `None` at the end.
    pub next: Option<Bytes>,
    pub served_by: Region,
    pub staleness: Option<Duration>,
}
