//! What a node knows beside its records, as of one log position. It is written with the view's mark and with each checkpoint,
//! so that replaying the log from there restores all of it.

use std::collections::BTreeMap;

use isle_model::{Incarnation, IncarnationTree, KeyspaceId, Seq, ShardId, Streams};

use crate::log::LogPosition;

#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    pub position: LogPosition,
    pub tree: IncarnationTree,
    /// The newest incarnation of this node's own, and its last sequence number in each shard.
    pub last_incarnation: Option<Incarnation>,
    pub last_seqs: Vec<Seq>,
    pub streams: BTreeMap<(KeyspaceId, ShardId), Streams>,
}

impl Meta {
    pub(crate) fn empty(shards: u32) -> Meta {
        Meta {
            position: LogPosition(0),
            tree: IncarnationTree::new(),
            last_incarnation: None,
            last_seqs: vec![0; shards as usize],
            streams: BTreeMap::new(),
        }
    }
}

/// The file `VIEW`: which generation of the view counts, and how far it is known to be on the disk.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewMark {
    pub generation: u64,
    /// The view is trusted only where both ids are unchanged, or after a clean close.
    pub boot_id: String,
    pub mount_id: String,
    pub clean: bool,
    pub meta: Meta,
}
