//! The commit log: what is acked is here, and everything else the store keeps is made from it.
//!
//! An entry is durable once `sync` has passed its end, and then every later `open` hands it out again, in order and
//! unchanged, or says exactly where the log is damaged. An entry that was not durable is there whole or not at all, and
//! nothing that came after a lost one comes back.
//!
//! ```text
//! CommitLog::append ─▶ Segment file (preallocated) ◀─ sync: fdatasync, then `durable` moves
//!        │                     ▲
//!        └▶ Recent (ring) ─▶ read ─ files, for whoever is further behind
//! CommitLog::open ─▶ recovery: scan, visit, cut the torn tail or refuse ─▶ a new segment
//! ```
//!
//! What entries mean is for the callers: payloads are opaque bytes here. When to sync is for `group_commit`.

mod commit_log;
mod frame;
mod position;
mod recent;
mod recovery;
mod scan;
mod segment;
mod survey;

pub use commit_log::{AppendError, Appended, CommitLog, LogOptions, ReadError, SyncError};
pub use frame::PAYLOAD_BYTES_MAX;
pub use position::LogPosition;
pub use recovery::{Cut, LogError, Progress, RecoveryReport};
pub(crate) use segment::{DIRECTORY, HEADER_BYTES as SEGMENT_HEADER_BYTES, Header, Prepared, number_of, path_of};
pub(crate) use survey::{Damage, Survey, is_last_entry, survey};

use bytes::Bytes;

/// One entry of the log, as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub start: LogPosition,
    /// Just after the entry: what names it.
    pub end: LogPosition,
    /// The run of the node that appended it.
    pub incarnation: u64,
    pub payload: Bytes,
}
