//! An isle region node without its network surface.
//!
//! ```text
//! server ─▶ node ─▶ shard_queue ─▶ shard_loop ─▶ isle_store (log, overlay, view)
//!            │                        ▲               │ durability
//!            │                        │               ▼
//!            └▶ replication: peers ═▶ inbound     outbound ═▶ peers      (by Peer and Connector, see peer)
//!                              repair ┘               └ egress: the gate
//!            write_batch, reads ─▶ forward: to the home of a key, where that is another region (homes, moves)
//!            maintenance: statements, tombstones, trimming
//!            members: regions that come and go; holdings: keyspaces that this region comes to hold, and ceases to
//!            cluster: the metadata that all regions agree on ─▶ catalog
//! ```
//! It knows no wire format and no file: those are the server's and the store's. Time, peers, chance and storage are parts
//! handed to `Node::start`.

mod catalog;
mod change;
mod clock;
mod cluster;
mod completing;
mod config;
mod context;
mod counters;
mod durability;
mod egress;
mod egress_meter;
mod error;
mod forward;
mod handover;
mod holdings;
mod homes;
mod maintenance;
mod members;
mod moves;
mod node;
pub mod peer;
mod peers;
mod reads;
mod replication;
mod request;
mod shard_loop;
mod shard_queue;
mod shared;
mod shipping;
mod standing;
mod status;
mod write_batch;

pub use change::ChangeError;
pub use clock::{Clock, SystemClock};
pub use cluster::{Damaged as DamagedMetadata, MetadataStatus};
pub use config::{ConfigFaults, KeyspaceConfig, NodeConfig, PeerConfig};
pub use context::RequestContext;
pub use counters::{Counter, Counters, PeerCounters};
pub use egress_meter::{Cause, EgressMeter, PeerEgress};
pub use error::{NodeError, RemoteError};
pub use moves::{MoveError, MoveReply, MoveRequest, Moved};
pub use node::{Node, Parts, StartError, SyncDriver};
pub use replication::link::LinkState;
pub use request::{
    Consistency, GetReply, GetRequest, PreconditionAsked, ScanReply, ScanRequest, ScanRow, Versions, WriteReply,
    WriteRequest,
};
pub use shared::Quarantined;
pub use shipping::{ShipmentStatus, Shipped};
pub use status::{EgressStatus, KeyspaceStatus, NodeState, NodeStatus, PeerStatus};

/// What a peer may send, for fuzzing alone.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    use bytes::Bytes;

    use crate::peer::DeltaBatch;
    use crate::replication::batch_codec;

    /// The encoded deltas of a batch.
    pub fn unpack(batch: &DeltaBatch) -> Result<Vec<Bytes>, String> {
        batch_codec::unpack(batch).map_err(|error| error.to_string())
    }
}
