//! isle's replication model: pure data and rules, no I/O, no clock, no randomness. It never looks anything up.
//!
//! ```text
//! ids ── lineage ── vector ─┬─ register ─┐
//!                           └─ counter ──┴─ record ─┬─ reading   what a reader sees
//!                                                   ├─ token     what a client brings back
//!                                                   ├─ write     request → delta → record, with the ledger
//!                                                   ├─ delta     what one write changed
//!                                                   └─ stream    what was absorbed, and what may be forgotten
//! policy ── metadata   what a keyspace promises, and what all regions agree on: members and keyspaces
//! ```
//!
//! The laws it keeps: merge is commutative, associative and idempotent; a superseded version never wins; concurrent means
//! concurrent; no acked write vanishes silently; deletes do not resurrect.

mod counter;
mod delta;
mod hlc;
mod ids;
mod ledger;
pub mod limits;
mod lineage;
pub mod metadata;
pub mod planted;
pub mod policy;
mod reading;
mod record;
mod register;
pub mod span;
mod stream;
mod token;
mod value;
mod vector;
pub mod write;

pub use counter::{Counter, Covered, Total};
pub use delta::{Body, Delta, Statement, Write};
pub use hlc::{Heard, Hlc, HlcClock};
pub use ids::{Dot, Epoch, Generation, Incarnation, KeyspaceId, Region, Seq, ShardId};
pub use ledger::{Fate, LedgerEntry};
pub use lineage::{IncarnationTree, Lineage, Row, RowConflict};
pub use reading::Reading;
pub use record::{Absorbed, Field, FieldKey, FieldName, Kind, Record};
pub use register::{FieldContext, Rank, Register, Sibling, Stamp};
pub use stream::{Admission, Stated, Streams};
pub use token::{BadToken, Context, TokenKey};
pub use value::{BadValue, Value, ValueType};
pub use vector::Vector;
pub use write::{Mutation, Precondition, WriteError};
