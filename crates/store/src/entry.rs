//! What the commit log holds: one entry a frame. The log is the truth; everything else is what applying its entries leaves.

use bytes::Bytes;
use isle_model::{Delta, Dot, Hlc, Incarnation, KeyspaceId, LedgerEntry, Record, Region, Row, ShardId, Stated, Vector};

use crate::meta::Begun;

#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Incarnation rows, ahead of whatever uses them.
    Rows(Vec<(Incarnation, Row)>),
    /// A delta, own or another region's. It is own if the incarnation that wrote the log's segment issued its dot.
    Delta(Delta),
    /// A tombstone that every holder has absorbed.
    Forget {
        keyspace: KeyspaceId,
        shard: ShardId,
        key: Bytes,
    },
    StateChunk(StateChunk),
    StateDone {
        keyspace: KeyspaceId,
        shard: ShardId,
        cursors: Vec<(Region, Vector)>,
        /// Whose state it was and what that region had absorbed before the first of it was read, where that counts as a statement.
        heard: Option<(Region, Stated)>,
        /// Nothing was in it.
        is_empty: bool,
    },
    /// How far a state transfer has come: before its first chunk is merged, and again behind each.
    StateBegun {
        keyspace: KeyspaceId,
        shard: ShardId,
        from: Region,
        begun: Begun,
    },
    /// Whether a holder is given up. A fact of the whole node.
    Holder {
        region: Region,
        expired: bool,
    },
    /// A delta whose stamp was too far ahead: this node's clock does not follow it.
    DeltaAhead(Delta),
    /// The keyspace goes from this shard, with all that is known of it.
    Purge {
        keyspace: KeyspaceId,
        shard: ShardId,
    },
}

impl Entry {
    /// The shard whose state it changes; rows and holders change none.
    pub(crate) fn shard(&self) -> Option<ShardId> {
        match self {
            Entry::Rows(_) | Entry::Holder { .. } => None,
            Entry::Delta(delta) | Entry::DeltaAhead(delta) => Some(delta.shard),
            Entry::Forget { shard, .. }
            | Entry::StateDone { shard, .. }
            | Entry::StateBegun { shard, .. }
            | Entry::Purge { shard, .. } => Some(*shard),
            Entry::StateChunk(chunk) => Some(chunk.shard),
        }
    }

    /// The keyspace that it brings something of, or takes a part of.
    pub(crate) fn keyspace(&self) -> Option<KeyspaceId> {
        match self {
            Entry::Rows(_) | Entry::Holder { .. } | Entry::Purge { .. } => None,
            Entry::Delta(delta) | Entry::DeltaAhead(delta) => Some(delta.keyspace),
            Entry::Forget { keyspace, .. } | Entry::StateDone { keyspace, .. } | Entry::StateBegun { keyspace, .. } => {
                Some(*keyspace)
            }
            Entry::StateChunk(chunk) => Some(chunk.keyspace),
        }
    }
}

/// A complete state of the keys in [start, end): what it does not list, at or below what its sender had absorbed, is gone. Or what has
/// changed in them: what that does not list stays.
#[derive(Clone, Debug, PartialEq)]
pub struct StateChunk {
    pub keyspace: KeyspaceId,
    pub shard: ShardId,
    pub start: Bytes,
    /// Exclusive; `None` is the end of the shard.
    pub end: Option<Bytes>,
    /// The sender's cursors, from before it read.
    pub absorbed: Vec<(Region, Vector)>,
    pub records: Vec<(Bytes, Record)>,
    pub ledger: Vec<LedgerEntry>,
    /// When the receiver took it, for its ledger. The sender leaves it zero.
    pub taken_at: Hlc,
    /// It lists those fields alone that its sender wrote above what the receiver had of its stream.
    pub changes: bool,
    /// The last delta of its sender's own stream, from before it read.
    pub last_own: Option<Dot>,
}

/// Another region's delta and the bytes it came as. The log gets these, not a second encoding: what a newer version of isle
/// put into them is passed on as well.
#[derive(Clone, Debug)]
pub struct Received {
    pub delta: Delta,
    pub encoded: Bytes,
}

/// What is known of a delta without decoding its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaHead {
    pub dot: isle_model::Dot,
    pub prev: Option<isle_model::Dot>,
    pub keyspace: KeyspaceId,
    pub shard: ShardId,
    pub hlc: Hlc,
    pub is_statement: bool,
}
