//! The stored form of a voter: one small file of two lines of JSON, a header with the checksum, and the document.
//!
//! The types within are openraft's own, which serde knows and protobuf does not. The file is small, seldom written, replaced as a
//! whole, and readable by whoever has to find out what a cluster agreed on.

use std::collections::BTreeSet;

use isle_model::Region;
use isle_model::metadata::Metadata;
use openraft::{Entry, EntryPayload, LogId, RaftLogId, SnapshotMeta, StoredMembership, Vote};
use serde::{Deserialize, Serialize};

use super::{Types, Voter};

/// Where it is, in the data directory.
pub(crate) const FILE: &str = "METADATA";
const FORMAT: &str = "isle metadata";
const VERSION: u32 = 1;

/// What a voter must never forget.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Document {
    /// The regions that founded the cluster, as this one's configuration said then. Voters of other founders do not count.
    pub(crate) founders: BTreeSet<Region>,
    /// The command that let this region in; 0 of a founder.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) joined: u64,
    pub(crate) vote: Option<Vote<u64>>,
    /// Up to where the state machine has come.
    pub(crate) applied: Option<LogId<u64>>,
    /// Up to where the log was dropped: the snapshot holds what it did.
    pub(crate) purged: Option<LogId<u64>>,
    pub(crate) snapshot: Option<StoredSnapshot>,
    /// Without holes, from behind `purged`.
    pub(crate) log: Vec<Entry<Types>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredSnapshot {
    pub(crate) meta: SnapshotMeta<u64, Voter>,
    pub(crate) metadata: Metadata,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What the log makes of the metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Applied {
    pub(crate) metadata: Metadata,
    pub(crate) membership: StoredMembership<u64, Voter>,
}

/// The file cannot be trusted, and a voter that guesses may undo what the cluster has agreed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster's metadata in file {FILE} cannot be read: {fact}. If most of the other regions are up, move the file away \
     and start again: the region then takes the metadata from them. Never do so in several regions at once"
)]
pub struct Damaged {
    pub(crate) fact: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    crc32: u32,
}

impl Document {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_string(self).expect("its maps have names for keys");
        let header = Header { format: FORMAT.to_owned(), version: VERSION, crc32: crc32fast::hash(body.as_bytes()) };
        let header = serde_json::to_string(&header).expect("it is flat");
        format!("{header}\n{body}\n").into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Document, Damaged> {
        let damaged = |fact: String| Damaged { fact };
        let cut = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("it has no header".to_owned()))?;
        let (header, body) = (&bytes[..cut], &bytes[cut + 1..]);
        let header: Header =
            serde_json::from_slice(header).map_err(|error| damaged(format!("its header is damaged: {error}")))?;
        if header.format != FORMAT || header.version != VERSION {
            let fact =
                format!("it is {:?} version {}, not {FORMAT:?} version {VERSION}", header.format, header.version);
            return Err(damaged(fact));
        }
        let body = body.strip_suffix(b"\n").ok_or_else(|| damaged("it is cut off".to_owned()))?;
        let crc32 = crc32fast::hash(body);
        if crc32 != header.crc32 {
            return Err(damaged(format!("its checksum is {crc32}, its header says {}", header.crc32)));
        }
        let document: Document = serde_json::from_slice(body).map_err(|error| damaged(error.to_string()))?;
        document.check()?;
        Ok(document)
    }

    /// What every later step rests on.
    fn check(&self) -> Result<(), Damaged> {
        let damaged = |fact: String| Err(Damaged { fact });
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        for (expected, entry) in (first..).zip(&self.log) {
            if entry.log_id.index != expected {
                return damaged(format!("its log has entry {} where {expected} belongs", entry.log_id.index));
            }
        }
        let (last, applied) = (self.last(), self.applied);
        let snapshot = self.snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id);
        if applied > last.max(snapshot) {
            return damaged(format!("{applied:?} is applied, and {last:?} its end"));
        }
        if self.purged > snapshot {
            return damaged(format!("its log is dropped up to {:?}, its snapshot is of {snapshot:?}", self.purged));
        }
        Ok(())
    }

    /// The last entry of the log, or what was dropped last.
    pub(crate) fn last(&self) -> Option<LogId<u64>> {
        self.log.last().map(|entry| entry.log_id).or(self.purged)
    }

    /// The snapshot, and what was applied since.
    pub(crate) fn replay(&self) -> Applied {
        let mut applied = self.snapshot.as_ref().map_or_else(Applied::default, |snapshot| Applied {
            metadata: snapshot.metadata.clone(),
            membership: snapshot.meta.last_membership.clone(),
        });
        let from = self.snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id);
        let since = self.log.iter().filter(|entry| Some(entry.log_id) > from && Some(entry.log_id) <= self.applied);
        since.for_each(|entry| _ = applied.apply(entry));
        applied
    }
}

impl Applied {
    pub(crate) fn apply(&mut self, entry: &Entry<Types>) -> <Types as openraft::RaftTypeConfig>::R {
        let id = *entry.get_log_id();
        match &entry.payload {
            EntryPayload::Blank => Ok(None),
            EntryPayload::Normal(command) => self.metadata.apply(id.index, command.clone()),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership.clone());
                Ok(None)
            }
        }
    }
}
