//! The state that applying log entries leaves: shards with their overlays and streams, over the view.
//!
//! Live commits and recovery go through the same code, so that what a crash leaves is what the log says.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use foldhash::fast::RandomState;
use isle_model::write::{Applied, Site};
use isle_model::{
    Absorbed, Body, Delta, Dot, Fate, FieldKey, Hlc, Incarnation, IncarnationTree, KeyspaceId, LedgerEntry, Lineage,
    Record, Region, Seq, ShardId, Sibling, Stated, Streams, Vector, Write, planted, write,
};
use parking_lot::RwLock;

use crate::changed_keys::ChangedKeys;
use crate::entry::StateChunk;
use crate::known_keys::KnownKeys;
use crate::log::LogPosition;
use crate::meta::{Begun, Transfers};
use crate::overlay::{self, Item, Overlay};
use crate::packed::Packed;
use crate::view::{View, ViewError};
use crate::view_key::{LEDGER, RECORDS, ViewKey};

/// Reading what is stored failed. The caller can do nothing but report it: the view has to be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    View(#[from] ViewError),
    #[error("the log has given dot {0}, whose incarnation is not known here")]
    UnknownIncarnation(Dot),
    #[error("a key of keyspace {} does not belong where it is named, in shard {}", keyspace.0, shard.0)]
    Misplaced { keyspace: KeyspaceId, shard: ShardId },
    /// Nothing has changed. Who means to bring the keyspace back waits until it is over.
    #[error("keyspace {} is being purged from shard {}", keyspace.0, shard.0)]
    Purging { keyspace: KeyspaceId, shard: ShardId },
    /// A state of what is left would say that the rest was deleted.
    #[error("keyspace {} was purged from shard {} while it was read", keyspace.0, shard.0)]
    Purged { keyspace: KeyspaceId, shard: ShardId },
}

/// How many live records a keyspace has, and the sum of their digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) records: i64,
    pub(crate) digest: u128,
}

impl Tally {
    pub(crate) fn of(keyspace: KeyspaceId, key: &[u8], record: &Record) -> Tally {
        Tally { records: i64::from(record.is_live()), digest: record.digest(keyspace, key) }
    }

    pub(crate) fn add(&mut self, other: Tally) {
        self.records += other.records;
        self.digest = self.digest.wrapping_add(other.digest);
    }

    fn minus(self, other: Tally) -> Tally {
        Tally { records: self.records - other.records, digest: self.digest.wrapping_sub(other.digest) }
    }
}

/// How far the counting of what was there at start has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Census {
    /// Keys at or below this one are counted; changes above it are not, the census will meet them.
    Upto(Option<ViewKey>),
    Done,
}

impl Census {
    /// The ledger is counted when the store opens.
    pub(crate) fn counts(&self, key: &ViewKey) -> bool {
        match self {
            _ if key.tree() == LEDGER => true,
            Census::Done => true,
            Census::Upto(frontier) => frontier.as_ref().is_some_and(|f| key <= f),
        }
    }
}

/// What becomes visible together with a batch's records.
pub(crate) struct WithBatch {
    tallies: Vec<(ViewKey, Tally)>,
    streams: Vec<(KeyspaceId, Arc<Streams>)>,
    transfers: BTreeMap<KeyspaceId, Transfers>,
    purges: BTreeSet<KeyspaceId>,
    /// Keys written by this region, and the dots of those writes, of the keyspaces of which that is kept.
    changed: Vec<(KeyspaceId, Bytes, Dot)>,
    /// Keyspaces in which writes of this region's own came from elsewhere: which keys they were of is not kept.
    returned: BTreeSet<KeyspaceId>,
    seq: Seq,
}

/// Losers of one keyspace whose ledger entry is open.
pub(crate) type OpenLosers = HashSet<(Dot, FieldKey)>;

pub(crate) struct Shard {
    pub(crate) overlay: Overlay<WithBatch>,
    pub(crate) streams: BTreeMap<KeyspaceId, Arc<Streams>>,
    pub(crate) published: BTreeMap<KeyspaceId, Arc<Streams>>,
    pub(crate) transfers: BTreeMap<KeyspaceId, Transfers>,
    pub(crate) published_transfers: BTreeMap<KeyspaceId, Transfers>,
    pub(crate) seq: Seq,
    pub(crate) published_seq: Seq,
    /// Asked at every write, so kept in memory.
    pub(crate) open_losers: BTreeMap<KeyspaceId, OpenLosers>,
    /// Keyspaces of which nothing is here for the writer, though overlay and view may hold some.
    pub(crate) purging: BTreeSet<KeyspaceId>,
    /// The same for readers: what may be taken out.
    pub(crate) published_purging: BTreeSet<KeyspaceId>,
    /// Of the keyspaces whose changes are shipped as such.
    pub(crate) changed: BTreeMap<KeyspaceId, ChangedKeys>,
    pub(crate) census: Census,
    pub(crate) tallies: BTreeMap<KeyspaceId, Tally>,
}

impl Shard {
    fn new(overlay_bytes: Arc<AtomicUsize>) -> Self {
        Shard {
            overlay: Overlay::new(overlay_bytes),
            streams: BTreeMap::new(),
            published: BTreeMap::new(),
            transfers: BTreeMap::new(),
            published_transfers: BTreeMap::new(),
            seq: 0,
            published_seq: 0,
            open_losers: BTreeMap::new(),
            purging: BTreeSet::new(),
            published_purging: BTreeSet::new(),
            changed: BTreeMap::new(),
            census: Census::Upto(None),
            tallies: BTreeMap::new(),
        }
    }

    /// Makes the oldest batch visible, and what goes with it.
    pub(crate) fn publish_next(&mut self, packed: Vec<Packed>, me: &Region, lineage: Lineage<'_>) {
        let Some(with) = self.overlay.publish_next(packed) else { return };
        for (keyspace, key, dot) in with.changed {
            if let Some(changed) = self.changed.get_mut(&keyspace) {
                changed.note(key, dot, lineage);
            }
        }
        for (key, change) in with.tallies.into_iter().filter(|(key, _)| self.census.counts(key)) {
            self.tallies.entry(key.keyspace()).or_default().add(change);
        }
        self.published.extend(with.streams);
        for keyspace in with.returned {
            let written = self.published.get(&keyspace).map(|streams| streams.cursor(me)).unwrap_or_default();
            if let Some(changed) = self.changed.get_mut(&keyspace) {
                *changed = ChangedKeys::since(written);
            }
        }
        self.published_transfers.extend(with.transfers);
        self.published_seq = with.seq;
        for keyspace in with.purges {
            self.tallies.remove(&keyspace);
            self.published.remove(&keyspace);
            self.published_transfers.remove(&keyspace);
            self.changed.remove(&keyspace);
            self.published_purging.insert(keyspace);
        }
    }

    /// Whether anything of a keyspace is here, as far as the writer knows.
    fn keeps(&self, keyspace: KeyspaceId) -> bool {
        let has_records = self.tallies.contains_key(&keyspace) || self.open_losers.contains_key(&keyspace);
        let has_streams = self.streams.contains_key(&keyspace) || self.transfers.contains_key(&keyspace);
        !self.purging.contains(&keyspace) && (has_records || has_streams)
    }

    /// Keyspaces of which anything is here, as far as the writer knows.
    pub(crate) fn kept(&self) -> impl Iterator<Item = KeyspaceId> {
        let all: BTreeSet<KeyspaceId> = self
            .tallies
            .keys()
            .chain(self.open_losers.keys())
            .chain(self.streams.keys())
            .chain(self.transfers.keys())
            .copied()
            .collect();
        all.into_iter().filter(|keyspace| !self.purging.contains(keyspace))
    }

    /// Nothing of it is left.
    pub(crate) fn purged(&mut self, keyspace: KeyspaceId) {
        self.purging.remove(&keyspace);
        self.published_purging.remove(&keyspace);
    }
}

pub(crate) struct Memory {
    pub(crate) region: Region,
    pub(crate) shards: Vec<RwLock<Shard>>,
    pub(crate) tree: RwLock<Arc<IncarnationTree>>,
    /// Another takes its place when it has outgrown what it holds. Whoever looks for a key looks in the overlay first and takes the
    /// view after that: what was drained in between is in the view of then, and in every later one, but need not be in an earlier.
    pub(crate) view: ArcSwap<View>,
    pub(crate) keys: Arc<KnownKeys>,
    overlay_bytes: Arc<AtomicUsize>,
    /// The highest stamp that this node ever gave or followed.
    hlc_high: AtomicU64,
    /// Holders that are given up.
    pub(crate) expired: RwLock<BTreeSet<Region>>,
}

impl Memory {
    pub(crate) fn new(region: Region, shards: u32, view: View) -> Memory {
        let overlay_bytes = Arc::new(AtomicUsize::new(0));
        Memory {
            region,
            shards: (0..shards).map(|_| RwLock::new(Shard::new(overlay_bytes.clone()))).collect(),
            overlay_bytes,
            hlc_high: AtomicU64::new(0),
            expired: RwLock::new(BTreeSet::new()),
            tree: RwLock::new(Arc::new(IncarnationTree::new())),
            keys: view.keys().clone(),
            view: ArcSwap::from_pointee(view),
        }
    }

    pub(crate) fn tree(&self) -> Arc<IncarnationTree> {
        self.tree.read().clone()
    }

    pub(crate) fn hlc_high(&self) -> Hlc {
        Hlc(self.hlc_high.load(Ordering::Relaxed))
    }

    /// Notes a stamp that was given or followed. One whose batch is dropped harms nobody: a clock may skip.
    pub(crate) fn note_hlc(&self, stamp: Hlc) {
        self.hlc_high.fetch_max(stamp.0, Ordering::Relaxed);
    }

    pub(crate) fn note_holder(&self, region: &Region, expired: bool) {
        let mut all = self.expired.write();
        match expired {
            true => all.insert(region.clone()),
            false => all.remove(region),
        };
    }

    pub(crate) fn shard(&self, shard: ShardId) -> &RwLock<Shard> {
        &self.shards[shard.0 as usize]
    }

    pub(crate) fn shard_of(&self, keyspace: KeyspaceId, key: &[u8]) -> ShardId {
        ShardId::of(keyspace, key, self.shards.len() as u32)
    }

    /// A key in a shard not its own would never be found again, and is another shard's to write. Whoever sent it is at fault.
    fn check_delta(&self, delta: &Delta, shard: ShardId) -> Result<(), ReadError> {
        let sound = match &delta.body {
            Body::Statement(_) => true,
            Body::Write(write) => {
                let same = |entry: &LedgerEntry| entry.keyspace == delta.keyspace && entry.key == write.key;
                self.shard_of(delta.keyspace, &write.key) == shard && write.ledger.iter().all(same)
            }
        };
        let misplaced = ReadError::Misplaced { keyspace: delta.keyspace, shard };
        if sound && delta.shard == shard { Ok(()) } else { Err(misplaced) }
    }

    fn check_chunk(&self, chunk: &StateChunk, shard: ShardId) -> Result<(), ReadError> {
        let in_range = |key: &Bytes| *key >= chunk.start && chunk.end.as_ref().is_none_or(|end| key < end);
        let belongs = |key: &Bytes| self.shard_of(chunk.keyspace, key) == shard && in_range(key);
        let sound = chunk.shard == shard
            && chunk.records.iter().all(|(key, _)| belongs(key))
            && chunk.ledger.iter().all(|entry| entry.keyspace == chunk.keyspace && belongs(&entry.key));
        let misplaced = ReadError::Misplaced { keyspace: chunk.keyspace, shard };
        if sound { Ok(()) } else { Err(misplaced) }
    }

    pub(crate) fn overlay_bytes(&self) -> usize {
        self.overlay_bytes.load(Ordering::Relaxed)
    }

    /// Makes every batch at or below `durable` visible, the oldest first. One caller at a time. The lock is let go between two, so
    /// that neither reader nor writer waits for all of them.
    pub(crate) fn publish(&self, durable: LogPosition) {
        let tree = self.tree();
        for (at, shard) in self.shards.iter().enumerate() {
            let due = || shard.read().overlay.due(durable);
            while let Some(changes) = due() {
                let packed = overlay::pack(&changes);
                shard.write().publish_next(packed, &self.region, tree.shard(ShardId(at as u32)));
            }
        }
    }

    /// What readers see of a key: the overlay's published item, else the view's.
    pub(crate) fn visible(&self, shard: ShardId, key: &ViewKey) -> Result<Option<Arc<Record>>, ViewError> {
        if self.keys.denies(key) {
            return Ok(None);
        }
        let above = {
            let shard = self.shard(shard).read();
            if shard.published_purging.contains(&key.keyspace()) {
                return Ok(None);
            }
            shard.overlay.visible(key).cloned()
        };
        match above.map(|packed| packed.item()).transpose()? {
            Some(Item::Record(record)) => Ok(Some(record)),
            Some(Item::Gone) => Ok(None),
            Some(Item::Ledger(_)) | None => self.view.load().record(key),
        }
    }

    /// Published items of [start, end), in key order: the overlay laid over the view, up to `most` of them and about `bytes_max`
    /// bytes, but at least one if there is one.
    pub(crate) fn visible_range(
        &self,
        shard: ShardId,
        start: &ViewKey,
        end: &ViewKey,
        most: usize,
        bytes_max: usize,
    ) -> Result<Rows, ViewError> {
        // The overlay is copied first: what is drained in between is then met in both, and never in neither.
        let above: Vec<(ViewKey, Packed)> = {
            let shard = self.shard(shard).read();
            if shard.published_purging.contains(&start.keyspace()) {
                return Ok(Rows { rows: Vec::new(), next: None });
            }
            shard.overlay.range(start, end).take(most).map(|(k, i)| (k.clone(), i.clone())).collect()
        };
        lay_over(above, self.view.load().range(start, end), most, bytes_max)
    }
}

/// Puts what was published into a view. Returns by how many bytes that has grown, as far as it is counted.
pub(crate) fn put_all(view: &View, items: &[(ViewKey, Packed)], census: &Census) -> Result<i64, ViewError> {
    let mut grown = 0;
    for (key, item) in items {
        let by = view.put(key, item)?;
        if census.counts(key) {
            grown += by;
        }
    }
    Ok(grown)
}

/// Some rows of a range, and where to go on if there are more.
pub(crate) struct Rows {
    pub(crate) rows: Vec<(ViewKey, Item)>,
    pub(crate) next: Option<ViewKey>,
}

fn lay_over(
    above: Vec<(ViewKey, Packed)>,
    below: impl Iterator<Item = Result<(ViewKey, Item), ViewError>>,
    most: usize,
    bytes_max: usize,
) -> Result<Rows, ViewError> {
    let above_is_all = above.len() < most;
    let (mut above, mut below) = (above.into_iter().peekable(), below.peekable());
    let (mut rows, mut bytes) = (Vec::new(), 0);
    let mut last = None;
    loop {
        let from_above = match (above.peek(), below.peek()) {
            // The overlay's copy was cut short: beyond its last key there is more, and the view alone may be stale.
            (None, _) if !above_is_all => break,
            (None, None) => return Ok(Rows { rows, next: None }),
            (None, Some(_)) => false,
            (Some(_), None) => true,
            (Some(_), Some(Err(_))) => false,
            (Some((a, _)), Some(Ok((b, _)))) => {
                let (above_first, same) = (a <= b, a == b);
                if same {
                    below.next();
                }
                above_first
            }
        };
        let (key, item) = match from_above {
            true => {
                let (key, packed) = above.next().expect("peeked");
                (key, packed.item()?)
            }
            false => below.next().expect("peeked")?,
        };
        last = Some(key.clone());
        if !matches!(item, Item::Gone) {
            bytes += item.bytes();
            rows.push((key, item));
        }
        if rows.len() == most || (bytes >= bytes_max && !rows.is_empty()) {
            break;
        }
    }
    Ok(Rows { rows, next: last.as_ref().map(ViewKey::successor) })
}

/// A shard's state with some entries applied to it, none of which has taken effect yet.
pub(crate) struct Workspace {
    pub(crate) shard: ShardId,
    changes: Vec<(ViewKey, Item)>,
    at: HashMap<ViewKey, usize, RandomState>,
    tallies: Vec<(ViewKey, Tally)>,
    streams: BTreeMap<KeyspaceId, Streams>,
    transfers: BTreeMap<KeyspaceId, Transfers>,
    /// `true` opens a loser's entry, `false` closes it; in order.
    losers: Vec<(KeyspaceId, Dot, FieldKey, bool)>,
    /// Keyspaces of which there is nothing, and of which nothing is taken in.
    purging: BTreeSet<KeyspaceId>,
    /// Those of them that go with this.
    purges: BTreeSet<KeyspaceId>,
    /// What this region has written.
    written: Vec<(KeyspaceId, Bytes, Dot)>,
    /// Where writes of its own came back to it.
    returned: BTreeSet<KeyspaceId>,
    pub(crate) seq: Seq,
    /// A write is planned on its record and then applied to it: the second time it is not looked up again.
    last_read: Option<(ViewKey, Arc<Record>)>,
}

impl Workspace {
    pub(crate) fn new(memory: &Memory, shard: ShardId) -> Self {
        let (seq, purging) = {
            let shard = memory.shard(shard).read();
            (shard.seq, shard.purging.clone())
        };
        Workspace {
            shard,
            changes: Vec::new(),
            at: HashMap::default(),
            tallies: Vec::new(),
            streams: BTreeMap::new(),
            transfers: BTreeMap::new(),
            losers: Vec::new(),
            purging,
            purges: BTreeSet::new(),
            written: Vec::new(),
            returned: BTreeSet::new(),
            seq,
            last_read: None,
        }
    }

    pub(crate) fn streams<'a>(&'a mut self, memory: &Memory, keyspace: KeyspaceId) -> &'a mut Streams {
        let is_gone = self.purging.contains(&keyspace);
        self.streams.entry(keyspace).or_insert_with(|| {
            let shard = memory.shard(self.shard).read();
            let here = shard.streams.get(&keyspace).filter(|_| !is_gone);
            here.map(|s| Streams::clone(s)).unwrap_or_default()
        })
    }

    fn transfers<'a>(&'a mut self, memory: &Memory, keyspace: KeyspaceId) -> &'a mut Transfers {
        if self.purging.contains(&keyspace) {
            return self.transfers.entry(keyspace).or_default();
        }
        let shard = self.shard;
        self.transfers
            .entry(keyspace)
            .or_insert_with(|| memory.shard(shard).read().transfers.get(&keyspace).cloned().unwrap_or_default())
    }

    /// Leaves out of what transfers have left what the cursors tell by now.
    fn settle_transfers(&mut self, memory: &Memory, tree: &IncarnationTree, keyspace: KeyspaceId) {
        if self.transfers(memory, keyspace).is_empty() {
            self.transfers.remove(&keyspace);
            return;
        }
        let (streams, lineage) = (self.streams(memory, keyspace).clone(), tree.shard(self.shard));
        self.transfers(memory, keyspace).settle(&streams, lineage);
    }

    pub(crate) fn record(
        &mut self,
        memory: &Memory,
        keyspace: KeyspaceId,
        key: &[u8],
    ) -> Result<Arc<Record>, ReadError> {
        if let Some((last, record)) = &self.last_read
            && last.is_record_of(keyspace, key)
        {
            return Ok(record.clone());
        }
        let view_key = ViewKey::record(keyspace, self.shard, key);
        let record = match self.newest(memory, &view_key)? {
            Some(Item::Record(record)) => record,
            _ => Arc::default(),
        };
        self.last_read = Some((view_key, record.clone()));
        Ok(record)
    }

    fn newest(&self, memory: &Memory, key: &ViewKey) -> Result<Option<Item>, ReadError> {
        if self.purging.contains(&key.keyspace()) {
            return Ok(None);
        }
        if let Some(at) = self.at.get(key) {
            return Ok(Some(self.changes[*at].1.clone()));
        }
        // Asked first, and without the lock: the sync thread may hold that.
        if memory.keys.denies(key) {
            return Ok(None);
        }
        let above = {
            let shard = memory.shard(self.shard).read();
            if let Some(item) = shard.overlay.pending(key) {
                return Ok(Some(item.clone()));
            }
            shard.overlay.visible(key).cloned()
        };
        if let Some(packed) = above {
            return Ok(Some(packed.item()?));
        }
        Ok(match key.tree() {
            LEDGER => memory.view.load().ledger_entry(key)?.map(Item::Ledger),
            _ => memory.view.load().record(key)?.map(Item::Record),
        })
    }

    fn change(&mut self, key: ViewKey, item: Item) {
        if self.last_read.as_ref().is_some_and(|(last, _)| *last == key) {
            self.last_read = None;
        }
        match self.at.get(&key) {
            Some(at) => self.changes[*at].1 = item,
            None => {
                self.at.insert(key.clone(), self.changes.len());
                self.changes.push((key, item));
            }
        }
    }

    /// Applies an admitted delta: the region's own, or another's.
    pub(crate) fn delta(
        &mut self,
        memory: &Memory,
        tree: &IncarnationTree,
        delta: Delta,
        own: bool,
    ) -> Result<Arc<Record>, ReadError> {
        let lineage = tree.shard(self.shard);
        let origin = lineage.region(delta.dot.incarnation).ok_or(ReadError::UnknownIncarnation(delta.dot))?;
        memory.check_delta(&delta, self.shard)?;
        self.streams(memory, delta.keyspace).absorb(origin, &delta, own, lineage);
        match own {
            true => self.seq = delta.dot.seq,
            false => {
                if *origin == memory.region {
                    self.returned.insert(delta.keyspace);
                }
                self.transfers(memory, delta.keyspace).overtaken_by(origin, delta.dot, lineage);
                self.settle_transfers(memory, tree, delta.keyspace);
            }
        }
        let Delta { dot, keyspace, hlc, body: Body::Write(write), .. } = delta else { return Ok(Arc::default()) };
        let (key, current) = (write.key.clone(), self.record(memory, keyspace, &write.key)?);
        if own {
            self.written.push((keyspace, key.clone(), dot));
        }
        let applied = write::apply(&current, write, Site { region: &memory.region, keyspace, hlc, lineage });
        self.settle(memory, keyspace, &key, &current, applied, Some(dot))
    }

    pub(crate) fn forget(&mut self, memory: &Memory, keyspace: KeyspaceId, key: &[u8]) -> Result<(), ReadError> {
        let view_key = ViewKey::record(keyspace, self.shard, key);
        // A tombstone counts for nothing, so that no tally changes. Replaying a forget over a record that lives again, as an
        // older log over a newer view does, must not take it out: the deltas that follow in the log could not restore all of it.
        if !self.record(memory, keyspace, key)?.is_live() {
            self.change(view_key, Item::Gone);
        }
        Ok(())
    }

    /// Completes every key of the chunk's range that is here or listed.
    pub(crate) fn state_chunk(
        &mut self,
        memory: &Memory,
        tree: &IncarnationTree,
        chunk: &StateChunk,
    ) -> Result<(), ReadError> {
        memory.check_chunk(chunk, self.shard)?;
        if planted::is(planted::Bug::CursorBeforeLast) && chunk.end.is_none() {
            return Ok(());
        }
        if chunk.changes {
            return self.changes(memory, tree, chunk);
        }
        let lineage = tree.shard(self.shard);
        let absorbed = chunk.absorbed.iter().fold(Vector::new(), |all, (_, v)| all.joined(v, lineage));
        let here = self.streams(memory, chunk.keyspace).absorbed(lineage);
        let sides = Absorbed { here: &here, there: &absorbed };
        let listed: BTreeMap<&Bytes, &Record> = chunk.records.iter().map(|(key, record)| (key, record)).collect();
        let mut keys = self.keys_here(memory, chunk)?;
        keys.extend(chunk.records.iter().map(|(key, _)| key.clone()));
        let nothing = Record::new();
        let mut ledger: BTreeMap<&Bytes, Vec<LedgerEntry>> = BTreeMap::new();
        for entry in &chunk.ledger {
            ledger.entry(&entry.key).or_default().push(entry.clone());
        }
        for key in keys {
            let current = self.record(memory, chunk.keyspace, &key)?;
            let site = Site { region: &memory.region, keyspace: chunk.keyspace, hlc: chunk.taken_at, lineage };
            let there = listed.get(&key).copied().unwrap_or(&nothing);
            let applied = write::complete(&key, &current, there, sides, site);
            let after = self.settle(memory, chunk.keyspace, &key, &current, applied, None)?;
            for entry in write::taken(&ledger.remove(&key).unwrap_or_default(), &current, &after, lineage) {
                self.ledger(memory, entry)?;
            }
        }
        // Entries of keys that nobody holds any more.
        for entry in ledger.into_values().flatten() {
            self.ledger(memory, entry)?;
        }
        let streams = self.streams(memory, chunk.keyspace).clone();
        let records = chunk.records.iter().map(|(_, record)| record);
        self.transfers(memory, chunk.keyspace).show(records, &streams, lineage);
        Ok(())
    }

    /// Merges what has changed of some keys.
    fn changes(&mut self, memory: &Memory, tree: &IncarnationTree, chunk: &StateChunk) -> Result<(), ReadError> {
        let lineage = tree.shard(self.shard);
        let site = Site { region: &memory.region, keyspace: chunk.keyspace, hlc: chunk.taken_at, lineage };
        let mut ledger: BTreeMap<&Bytes, Vec<LedgerEntry>> = BTreeMap::new();
        for entry in &chunk.ledger {
            ledger.entry(&entry.key).or_default().push(entry.clone());
        }
        for (key, fields) in &chunk.records {
            let current = self.record(memory, chunk.keyspace, key)?;
            let ledger = ledger.remove(key).unwrap_or_default();
            let applied = write::apply(&current, Write { key: key.clone(), fields: fields.clone(), ledger }, site);
            self.settle(memory, chunk.keyspace, key, &current, applied, None)?;
        }
        for entry in ledger.into_values().flatten() {
            self.ledger(memory, entry)?;
        }
        let streams = self.streams(memory, chunk.keyspace).clone();
        let records = chunk.records.iter().map(|(_, record)| record);
        self.transfers(memory, chunk.keyspace).show(records, &streams, lineage);
        Ok(())
    }

    /// Keys of the chunk's range that this region holds, unsynced ones included.
    fn keys_here(&self, memory: &Memory, chunk: &StateChunk) -> Result<BTreeSet<Bytes>, ReadError> {
        let start = ViewKey::record(chunk.keyspace, self.shard, &chunk.start);
        let end = match &chunk.end {
            Some(end) => ViewKey::record(chunk.keyspace, self.shard, end),
            None => ViewKey::end(RECORDS, chunk.keyspace, self.shard),
        };
        let mut keys: BTreeSet<Bytes> = memory.shard(self.shard).read().overlay.newest_keys(&start, &end);
        for row in memory.view.load().range(&start, &end) {
            keys.insert(row?.0.user_key());
        }
        let changed = self.changes.iter().map(|(key, _)| key).filter(|key| (&start..&end).contains(key));
        keys.extend(changed.map(ViewKey::user_key));
        Ok(keys)
    }

    pub(crate) fn state_done(
        &mut self,
        memory: &Memory,
        tree: &IncarnationTree,
        keyspace: KeyspaceId,
        cursors: &[(Region, Vector)],
        heard: Option<&(Region, Stated)>,
        is_empty: bool,
    ) {
        let lineage = tree.shard(self.shard);
        let before = self.streams(memory, keyspace).cursor(&memory.region);
        self.streams(memory, keyspace).advance(cursors, heard, is_empty, lineage);
        if self.streams(memory, keyspace).cursor(&memory.region) != before {
            self.returned.insert(keyspace);
        }
        self.settle_transfers(memory, tree, keyspace);
    }

    pub(crate) fn state_begun(&mut self, memory: &Memory, keyspace: KeyspaceId, from: &Region, begun: &Begun) {
        self.transfers(memory, keyspace).note(from, begun.clone());
    }

    /// Asked before anything of a keyspace is taken in: what comes while the rest of it is taken out would go as well.
    pub(crate) fn check_open(&self, keyspace: KeyspaceId) -> Result<(), ReadError> {
        let purging = ReadError::Purging { keyspace, shard: self.shard };
        if self.purging.contains(&keyspace) { Err(purging) } else { Ok(()) }
    }

    /// Whether anything of a keyspace is here.
    pub(crate) fn keeps(&self, memory: &Memory, keyspace: KeyspaceId) -> bool {
        let is_new = self.streams.get(&keyspace).is_some_and(|streams| *streams != Streams::new());
        !self.purging.contains(&keyspace) && (is_new || memory.shard(self.shard).read().keeps(keyspace))
    }

    /// Lets the keyspace go, with what this has of it.
    pub(crate) fn purge(&mut self, keyspace: KeyspaceId) {
        self.purging.insert(keyspace);
        self.purges.insert(keyspace);
        self.last_read = None;
        self.streams.remove(&keyspace);
        self.transfers.remove(&keyspace);
    }

    fn settle(
        &mut self,
        memory: &Memory,
        keyspace: KeyspaceId,
        key: &Bytes,
        before: &Record,
        applied: Applied,
        by: Option<Dot>,
    ) -> Result<Arc<Record>, ReadError> {
        for entry in applied.ledger {
            self.ledger(memory, entry)?;
        }
        for (field, sibling) in applied.late {
            self.fill_in(memory, keyspace, key, field, sibling)?;
        }
        for (field, dot) in applied.covered {
            if self.is_open(memory, keyspace, dot, &field) {
                self.supersede(memory, keyspace, key, field, dot, by)?;
            }
        }
        let record = Arc::new(applied.record);
        if *record != *before {
            let view_key = match &self.last_read {
                Some((last, _)) if last.is_record_of(keyspace, key) => last.clone(),
                _ => ViewKey::record(keyspace, self.shard, key),
            };
            let change = Tally::of(keyspace, key, &record).minus(Tally::of(keyspace, key, before));
            self.tallies.push((view_key.clone(), change));
            self.change(view_key, Item::Record(record.clone()));
        }
        Ok(record)
    }

    /// Gives an entry that only a client's token has made its value.
    fn fill_in(
        &mut self,
        memory: &Memory,
        keyspace: KeyspaceId,
        key: &Bytes,
        field: FieldKey,
        sibling: Sibling,
    ) -> Result<(), ReadError> {
        let view_key = ViewKey::ledger(keyspace, self.shard, key, sibling.dot, &field);
        match self.newest(memory, &view_key)? {
            Some(Item::Ledger(entry)) if entry.value.is_none() => {
                self.ledger(memory, LedgerEntry { value: Some(sibling), ..LedgerEntry::clone(&entry) })
            }
            _ => Ok(()),
        }
    }

    fn is_open(&self, memory: &Memory, keyspace: KeyspaceId, dot: Dot, field: &FieldKey) -> bool {
        let here = self.losers.iter().rev().find(|(_, d, f, _)| *d == dot && f == field);
        match here {
            Some((.., open)) => *open,
            None => {
                let shard = memory.shard(self.shard).read();
                shard.open_losers.get(&keyspace).is_some_and(|open| open.contains(&(dot, field.clone())))
            }
        }
    }

    fn supersede(
        &mut self,
        memory: &Memory,
        keyspace: KeyspaceId,
        key: &Bytes,
        field: FieldKey,
        dot: Dot,
        by: Option<Dot>,
    ) -> Result<(), ReadError> {
        let view_key = ViewKey::ledger(keyspace, self.shard, key, dot, &field);
        let Some(Item::Ledger(entry)) = self.newest(memory, &view_key)? else { return Ok(()) };
        let closed = LedgerEntry { fate: Fate::Superseded, covered_by: by, ..LedgerEntry::clone(&entry) };
        self.ledger(memory, closed)
    }

    /// Merges an entry into the ledger.
    fn ledger(&mut self, memory: &Memory, entry: LedgerEntry) -> Result<(), ReadError> {
        let view_key = ViewKey::ledger(entry.keyspace, self.shard, &entry.key, entry.loser, &entry.field);
        let mut merged = entry;
        if let Some(Item::Ledger(known)) = self.newest(memory, &view_key)? {
            merged.merge(&known);
        }
        self.losers.push((merged.keyspace, merged.loser, merged.field.clone(), merged.fate == Fate::Open));
        self.change(view_key, Item::Ledger(Arc::new(merged)));
        Ok(())
    }

    /// Lets it all take effect, at a log position; visible once the log is durable so far. The shard is locked by the caller, who
    /// drops what is returned only when it is not any more: there may be much of it.
    pub(crate) fn stage(mut self, memory: &Memory, shard: &mut Shard, end: LogPosition) -> Vec<OpenLosers> {
        // Whoever only looked at them noted that there are none.
        self.streams.retain(|keyspace, _| !self.purging.contains(keyspace));
        self.transfers.retain(|keyspace, _| !self.purging.contains(keyspace));
        let streams: Vec<_> =
            self.streams.into_iter().map(|(keyspace, streams)| (keyspace, Arc::new(streams))).collect();
        shard.streams.extend(streams.iter().cloned());
        shard.seq = self.seq;
        for (keyspace, dot, field, open) in self.losers {
            match open {
                true => _ = shard.open_losers.entry(keyspace).or_default().insert((dot, field)),
                false => _ = shard.open_losers.get_mut(&keyspace).map(|open| open.remove(&(dot, field))),
            };
        }
        shard.transfers.extend(self.transfers.clone());
        let mut dropped = Vec::new();
        for keyspace in &self.purges {
            shard.streams.remove(keyspace);
            shard.transfers.remove(keyspace);
            dropped.extend(shard.open_losers.remove(keyspace));
            shard.purging.insert(*keyspace);
        }
        let (transfers, purges) = (self.transfers, self.purges);
        let changed = match shard.changed.is_empty() {
            true => Vec::new(),
            false => self.written.into_iter().filter(|(keyspace, ..)| shard.changed.contains_key(keyspace)).collect(),
        };
        let (returned, seq) = (self.returned, self.seq);
        let with = WithBatch { tallies: self.tallies, streams, transfers, purges, changed, returned, seq };
        self.changes.iter().for_each(|(key, _)| memory.keys.expect(key));
        shard.overlay.stage(end, self.changes, with);
        dropped
    }
}

/// Whether every incarnation that a delta or state names is known: it must not be applied before.
pub(crate) fn all_known(
    lineage: Lineage<'_>,
    mut incarnations: impl Iterator<Item = Incarnation>,
) -> Option<Incarnation> {
    incarnations.find(|incarnation| !lineage.knows(*incarnation))
}
