//! isle's storage. The commit log is the truth; sled is its materialised view.
//!
//! ```text
//! batch ──▶ log ── group_commit, sync_thread ──▶ publish
//!   │        │                                      │
//!   ▼        ▼ tail                                 ▼
//! memory: workspace ─▶ overlay ── maintain ──▶ view (sled) ──▶ checkpoint
//!
//! open       from what is on the disk to a store that serves
//! entry      what the log holds          meta       what a node knows beside its records
//! codec      model ⇄ stored bytes        disk       the one seam for every file operation
//! rebuild    a view anew, beside the one that serves
//! purge      what a keyspace that is gone leaves behind
//! doctor     looks a stopped directory over, and repairs it
//! ```
//! The law it keeps: acked means durable. Nothing is visible, shipped or acknowledged before the log has it on the disk.
//! What an entry does to a record is the model's; when to sync, drain and trim is the node's.

mod batch;
mod changed_keys;
mod changes;
mod checkpoint;
pub mod codec;
pub mod disk;
pub mod doctor;
mod entry;
pub mod group_commit;
mod key_filter;
mod known_keys;
pub mod log;
mod maintain;
mod memory;
mod meta;
mod open;
mod overlay;
mod packed;
mod primitives;
mod purge;
mod rebuild;
mod store;
pub mod sync_thread;
mod threads;
mod view;
mod view_key;

pub use batch::{Batch, CommitError, ShardWriter, Unsynced};
pub use entry::{DeltaHead, Entry, Received, StateChunk};
pub use log::{AppendError, LogPosition, SyncError};
pub use maintain::{MaintainError, SET_ASIDE, Scrub};
pub use memory::ReadError;
pub use meta::{Begun, Transfers};
pub use open::{BootIdentity, OpenError, Opened, Progress, RecoveryReport};
pub use store::{KeyspaceStats, LogItem, Page, RowsError, Stats, Store, StoreConfig, Tail, TailError};
pub use threads::Threads;
pub use view::ViewPlace;

/// What a disk may hold, for fuzzing alone.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    use crate::checkpoint::{self, CheckpointError};
    use crate::disk::Disk;
    use crate::log::LogPosition;

    /// Reads a checkpoint from end to end; returns how many items it has.
    pub fn checkpoint(disk: &dyn Disk, position: LogPosition) -> Result<u64, String> {
        let mut items = 0;
        let take = |_, _| {
            items += 1;
            Ok::<(), CheckpointError>(())
        };
        checkpoint::load(disk, position, take).map_err(|error| error.to_string())?;
        Ok(items)
    }
}
