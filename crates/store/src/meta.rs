//! What a node knows beside its records, as of one log position. It is written with the view's mark and with each checkpoint,
//! so that replaying the log from there restores all of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use isle_model::{
    Dot, Hlc, Incarnation, IncarnationTree, KeyspaceId, Lineage, Record, Region, Seq, ShardId, Stated, Streams, Vector,
};

use crate::log::LogPosition;

#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    pub position: LogPosition,
    pub tree: IncarnationTree,
    /// The newest incarnation of this node's own, and its last sequence number in each shard.
    pub last_incarnation: Option<Incarnation>,
    pub last_seqs: Vec<Seq>,
    pub streams: BTreeMap<(KeyspaceId, ShardId), Streams>,
    /// The highest stamp that this node ever gave or followed. It may be of after the position.
    pub hlc_high: Hlc,
    /// Holders that are given up.
    pub expired: BTreeSet<Region>,
    pub transfers: BTreeMap<(KeyspaceId, ShardId), Transfers>,
    /// Purges that are not over: what the view still holds of these is not there.
    pub purging: BTreeSet<(KeyspaceId, ShardId)>,
}

impl Meta {
    pub(crate) fn empty(shards: u32) -> Meta {
        Meta {
            position: LogPosition(0),
            tree: IncarnationTree::new(),
            last_incarnation: None,
            last_seqs: vec![0; shards as usize],
            streams: BTreeMap::new(),
            hlc_high: Hlc::default(),
            expired: BTreeSet::new(),
            transfers: BTreeMap::new(),
            purging: BTreeSet::new(),
        }
    }
}

/// A state transfer that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// What the sender had absorbed before the first chunk was read: where the cursors will be after the last.
    pub pin: Vec<(Region, Vector)>,
    /// Keys below are merged. Empty where nothing is, or counts no more.
    pub next: Bytes,
    /// Of a transfer of changes alone, what its sender had absorbed of every stream by then; the pin is of its own.
    pub heard: Option<Stated>,
}

/// What the state transfers of one keyspace and shard have left that its cursors do not tell.
///
/// A chunk is read while its sender goes on, so it shows more than the transfer's pin, and the cursors stay below it. The
/// sender's stream brings the rest; if that is lost, what was shown is in no log and under no cursor, and only a complete
/// state of this region can give it to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    /// Begun and not over, by sender.
    pub open: BTreeMap<Region, Begun>,
    /// Of each incarnation the last dot that merged states showed, where no cursor covers it.
    pub shown: Vector,
}

impl Transfers {
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.shown.is_empty()
    }

    /// Notes how far a transfer has come. Another's that was under way starts over: this one's chunks may have brought back what
    /// its earlier chunks took away.
    pub(crate) fn note(&mut self, from: &Region, begun: Begun) {
        self.open.values_mut().for_each(|other| other.next = Bytes::new());
        self.open.insert(from.clone(), begun);
    }

    /// A delta came by its stream that a transfer would have brought: what that has merged may have had its key.
    pub(crate) fn overtaken_by(&mut self, origin: &Region, dot: Dot, lineage: Lineage<'_>) {
        for begun in self.open.values_mut().filter(|begun| !begun.next.is_empty()) {
            if begun.pin.iter().any(|(region, pin)| region == origin && pin.covers(dot, lineage)) {
                begun.next = Bytes::new();
            }
        }
    }

    pub(crate) fn show<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a Record>,
        streams: &Streams,
        lineage: Lineage<'_>,
    ) {
        let absorbed = streams.absorbed(lineage);
        let new = records.into_iter().flat_map(Record::dots).filter(|dot| !absorbed.covers(*dot, lineage));
        new.for_each(|dot| self.shown.add(dot, lineage));
    }

    /// Leaves out what the cursors cover by now.
    pub(crate) fn settle(&mut self, streams: &Streams, lineage: Lineage<'_>) {
        self.open.retain(|_, begun| streams.is_behind(&begun.pin, lineage));
        if !self.shown.is_empty() {
            let absorbed = streams.absorbed(lineage);
            let beyond = self.shown.dots().filter(|dot| !absorbed.covers(*dot, lineage));
            self.shown = Vector::from_entries(beyond.map(|dot| (dot.incarnation, dot.seq)));
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
    /// What the view's last flush was sealed by; 0 in a mark that vouches for its meta alone.
    pub seal: u64,
    pub meta: Meta,
}

/// What stands last in a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    pub chunks: u64,
    pub items: u64,
    /// Nothing in the checkpoint is of after it.
    pub durable: LogPosition,
    /// Every incarnation that the checkpoint names.
    pub tree: IncarnationTree,
}
