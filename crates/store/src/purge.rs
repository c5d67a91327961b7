//! What is left of a purged keyspace's shard goes from overlay and view, step by step, behind the entry that says so.
//!
//! ```text
//! Batch::purge ─▶ log ─▶ stage: gone for the writer ─ sync ─▶ publish: gone for readers, streams and tallies too
//!                 overlay ─▶ records, ledger, list of tombstones of the view ─▶ the purge is over ─▶ checkpoint ◀─ maintain()
//! ```
//! The laws it keeps: from the entry on nothing of the keyspace is seen, whatever overlay and view still hold; nothing is taken
//! out before the entry is durable; and until all of it is out nothing of the keyspace is taken in, so that what is swept is of
//! before the entry alone.
//!
//! It may go on over a drain, a checkpoint, a rebuild and a crash:
//! - A drain may carry what the overlay holds into the view until the overlay is swept. That comes first, and the two never run
//!   at once.
//! - A checkpoint that began before the entry has a position below it: a replay meets the entry. One that begins later names the
//!   purge in its meta, and so does the view's mark: whoever starts from there hides what is left, and sweeps on.
//! - A view that is being built holds nothing that the old one does not: what is taken out is taken out of both.
//! - A replay from below the entry, over a view that is swept already, merges what the log still has and comes to the entry.

use isle_model::{KeyspaceId, ShardId};

use crate::memory::Memory;
use crate::view::{View, ViewError};
use crate::view_key::{LEDGER, RECORDS, ViewKey};

/// How far the sweeping of one keyspace and shard has come.
pub(crate) struct Sweep {
    keyspace: KeyspaceId,
    shard: ShardId,
    place: Place,
    /// The last key that was taken out of this place.
    after: Option<ViewKey>,
}

/// Where is swept, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Overlay,
    Records,
    Ledger,
    /// Of a kill between two writes an entry without its record may be left.
    Tombstones,
}

impl Sweep {
    pub(crate) fn new(keyspace: KeyspaceId, shard: ShardId) -> Sweep {
        Sweep { keyspace, shard, place: Place::Overlay, after: None }
    }

    /// Keys to be taken out of the view next, up to `most` of them. `None` where nothing is left, and the purge is over.
    pub(crate) fn next(
        &mut self,
        memory: &Memory,
        view: &View,
        most: usize,
    ) -> Result<Option<Vec<ViewKey>>, ViewError> {
        let (tree, then) = match self.place {
            Place::Overlay => {
                if self.sweep_overlay(memory, most) < most {
                    self.place = Place::Records;
                }
                return Ok(Some(Vec::new()));
            }
            Place::Records => (RECORDS, Some(Place::Ledger)),
            Place::Ledger => (LEDGER, Some(Place::Tombstones)),
            Place::Tombstones => (RECORDS, None),
        };
        let after = self.after.take().unwrap_or_else(|| ViewKey::start(tree, self.keyspace, self.shard));
        let end = ViewKey::end(tree, self.keyspace, self.shard);
        let keys = match self.place {
            Place::Tombstones => view.tombstones(&after, &end, most)?,
            _ => view.key_range(&after, &end, most)?,
        };
        self.after = keys.last().cloned();
        match then {
            _ if !keys.is_empty() => {}
            Some(then) => self.place = then,
            None => {
                memory.shard(self.shard).write().purged(self.keyspace);
                return Ok(None);
            }
        }
        Ok(Some(keys))
    }

    /// Says how many items it has taken out.
    fn sweep_overlay(&self, memory: &Memory, most: usize) -> usize {
        let mut swept = Vec::new();
        for tree in [RECORDS, LEDGER] {
            let (start, end) =
                (ViewKey::start(tree, self.keyspace, self.shard), ViewKey::end(tree, self.keyspace, self.shard));
            // What is taken out is dropped when the lock is let go.
            swept.extend(memory.shard(self.shard).write().overlay.take(&start, &end, most - swept.len()));
        }
        swept.len()
    }
}
