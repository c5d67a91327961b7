//! A delta is what one write changed, as whole registers and counter entries: so repeats and relays are harmless.
//!
//! Every delta names the one before it in its stream (`prev`), so that contiguity is checked stream by stream, whatever else
//! a peer may not see. A stream is the deltas of one region in one keyspace and shard.

use bytes::Bytes;

use crate::{Dot, Epoch, Hlc, Incarnation, KeyspaceId, LedgerEntry, Record, Region, ShardId, Vector};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    pub dot: Dot,
    /// The delta before this one in its stream; `None` for the stream's first.
    pub prev: Option<Dot>,
    pub keyspace: KeyspaceId,
    pub shard: ShardId,
    pub hlc: Hlc,
    /// The home epoch the writer knew.
    pub epoch: Epoch,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Write(Write),
    Statement(Statement),
}

/// The changed fields of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: Bytes,
    pub fields: Record,
    /// Entries of the losers this write covers.
    pub ledger: Vec<LedgerEntry>,
}

/// What this region has absorbed of every region's stream in this keyspace and shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statement {
    pub absorbed: Vec<(Region, Vector)>,
}

impl Delta {
    /// Every incarnation the delta names, to be known before it is applied.
    pub fn incarnations(&self) -> Vec<Incarnation> {
        let mut out = vec![self.dot.incarnation];
        out.extend(self.prev.map(|dot| dot.incarnation));
        match &self.body {
            Body::Write(write) => out.extend(write.fields.incarnations()),
            Body::Statement(statement) => {
                out.extend(statement.absorbed.iter().flat_map(|(_, v)| v.entries().iter().map(|e| e.0)));
            }
        }
        out.sort_unstable();
        out.dedup();
        out
    }
}
