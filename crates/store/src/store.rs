//! One node's storage: the commit log in front, the shards' memory behind it, the view and the checkpoints behind that.
//!
//! ```text
//! Batch::commit ─▶ log.append ─▶ stage            sync() ─▶ fdatasync ─▶ publish ─▶ readers, tails, acks
//!                                                 maintain() ─▶ drain ─▶ view ─▶ VIEW mark, checkpoint ─▶ trim
//! ```
//! The law it keeps: nothing is visible, shipped or acknowledged before the log holds it durably.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use isle_model::{
    Incarnation, IncarnationTree, KeyspaceId, LedgerEntry, Record, Region, Row, RowConflict, ShardId, Streams,
};
use parking_lot::Mutex;

use crate::batch::Unsynced;
use crate::codec;
use crate::disk::Disk;
use crate::entry::{Entry, StateChunk};
use crate::log::{AppendError, CommitLog, LogPosition, SyncError};
use crate::maintain::Maintenance;
use crate::memory::{Census, Memory, ReadError, Rows, Workspace};
use crate::meta::{Meta, Transfers};
use crate::overlay::Item;
use crate::sync_thread::SyncThread;
use crate::view_key::{RECORDS, ViewKey};

/// So many rows of a shard are read at once, and about so many bytes of them where the caller does not say.
pub(crate) const ROWS_AHEAD: usize = 256;
pub(crate) const BYTES_AHEAD: usize = 1 << 20;

/// How one node stores. All sizes are in bytes.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub region: Region,
    pub shards: u32,
    /// Size of a commit log segment. Bigger ones rotate less; the last one is preallocated whole.
    pub segment_bytes: u64,
    /// The newest records held in memory over the view. Writers wait when it is full.
    pub overlay_bytes_max: usize,
    /// From how many bytes on the overlay is drained at once; below, it is drained when a burst is over.
    pub overlay_drain_bytes: usize,
    /// sled's page cache. There are two while a view is built anew beside the one that serves.
    pub view_cache_bytes: u64,
    /// A view below this size is not built anew, however little it holds: what that would save is less than what it costs.
    pub view_rebuild_bytes_min: u64,
    /// A checkpoint is due after so much log; the log before it can then be trimmed.
    pub checkpoint_log_bytes: u64,
    /// The view is flushed after so much log: what a restart replays.
    pub flush_log_bytes: u64,
    /// Recent log kept in memory for the streams to peers.
    pub tail_ring_bytes: usize,
    /// Writes are refused while the disk has less free space than this, so that neither log nor view ever hits its end.
    pub disk_reserve_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            region: Region::new("local"),
            shards: isle_model::limits::SHARDS_DEFAULT,
            segment_bytes: 64 << 20,
            overlay_bytes_max: 512 << 20,
            overlay_drain_bytes: 384 << 20,
            view_cache_bytes: 256 << 20,
            view_rebuild_bytes_min: 64 << 20,
            checkpoint_log_bytes: 256 << 20,
            flush_log_bytes: 256 << 20,
            tail_ring_bytes: 8 << 20,
            disk_reserve_bytes: 64 << 20,
        }
    }
}

impl StoreConfig {
    /// Every fault of the configuration, in words; empty if there is none.
    pub fn faults(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut check = |sound: bool, fault: &str| {
            if !sound {
                out.push(fault.to_owned());
            }
        };
        check((1..=isle_model::limits::SHARDS_MAX).contains(&self.shards), "shards must be 1 to 256");
        check((1 << 16..=1 << 31).contains(&self.segment_bytes), "segment_bytes must be 64 KiB to 2 GiB");
        check(self.overlay_bytes_max >= 1 << 20, "overlay_bytes_max must be at least 1 MiB");
        check(
            self.overlay_drain_bytes <= self.overlay_bytes_max / 4 * 3,
            "overlay_drain_bytes must be at most three quarters of overlay_bytes_max",
        );
        check(self.checkpoint_log_bytes >= self.segment_bytes, "checkpoint_log_bytes must be at least one segment");
        out
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    #[error(transparent)]
    Conflict(#[from] RowConflict),
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// What the log has after a position.
#[derive(Debug, Default)]
pub struct Tail {
    pub items: Vec<LogItem>,
    /// Read on from here.
    pub upto: LogPosition,
}

/// A delta as the log holds it, ready to be shipped.
#[derive(Clone, Debug)]
pub struct LogItem {
    pub end: LogPosition,
    /// Issued by the incarnation that logged it; otherwise it is another region's, or one of the own come back.
    pub own: bool,
    pub head: crate::entry::DeltaHead,
    pub encoded: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error("the log is trimmed up to {oldest}")]
    Trimmed { oldest: LogPosition },
    #[error(transparent)]
    Log(crate::log::ReadError),
    #[error("a log entry does not decode: {0}")]
    Decode(#[from] codec::DecodeError),
}

/// Some live records of a keyspace, in key order over all shards.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub rows: Vec<(Bytes, Arc<Record>)>,
    /// The key to go on from; `None` at the end.
    pub next: Option<Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyspaceStats {
    pub id: KeyspaceId,
    pub records: u64,
    /// `None` until what was there at start has been counted.
    pub digest: Option<u128>,
}

#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub keyspaces: Vec<KeyspaceStats>,
    /// Losers that are still live siblings.
    pub conflicts_open: u64,
    pub log_bytes: u64,
    pub overlay_bytes: u64,
    pub view_bytes: u64,
    /// What the view holds, keys and values as they are stored. `None` until what was there at start has been counted.
    pub view_live_bytes: Option<u64>,
    /// How many times a view that had outgrown what it holds was built anew, since the start.
    pub view_rebuilds: u64,
    pub checkpoint_position: LogPosition,
    pub view_position: LogPosition,
    /// Why the view cannot be written any more, if so.
    pub view_failed: Option<String>,
}

pub struct Store {
    pub(crate) config: StoreConfig,
    pub(crate) memory: Memory,
    pub(crate) log: CommitLog,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) incarnation: Incarnation,
    /// Held while published state is changed or copied as a whole.
    pub(crate) publishing: Mutex<()>,
    pub(crate) published: AtomicU64,
    pub(crate) maintenance: Mutex<Maintenance>,
    pub(crate) sync_thread: OnceLock<Weak<SyncThread>>,
    /// Free space is below the reserve: writes are refused until it is not.
    pub(crate) short_of_space: AtomicBool,
    pub(crate) _lock: Option<std::fs::File>,
}

impl Store {
    /// The data directory. Files at its top that are not the store's are left alone.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub fn region(&self) -> &Region {
        &self.memory.region
    }

    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    pub fn tree(&self) -> Arc<IncarnationTree> {
        self.memory.tree()
    }

    /// Notes rows of other regions. They are in the log before anything that uses them, and so durable before it.
    pub fn learn_rows(&self, rows: impl IntoIterator<Item = (Incarnation, Row)>) -> Result<(), RowsError> {
        let mut tree = self.memory.tree.write();
        let mut grown = IncarnationTree::clone(&tree);
        let mut new = Vec::new();
        for (incarnation, row) in rows {
            if grown.insert(incarnation, row.clone())? {
                new.push((incarnation, row));
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let end = self.log.append(&[codec::encode_entry(&Entry::Rows(new))])?.end;
        *tree = Arc::new(grown);
        drop(tree);
        self.wake_sync(end);
        Ok(())
    }

    /// Notes whether a holder is given up. It is in the log before anything that follows from it.
    pub fn note_holder(&self, region: &Region, expired: bool) -> Result<(), AppendError> {
        let entry = Entry::Holder { region: region.clone(), expired };
        let end = self.log.append(&[codec::encode_entry(&entry)])?.end;
        self.memory.note_holder(region, expired);
        self.wake_sync(end);
        Ok(())
    }

    /// Holders that were given up and have not been completed since.
    pub fn expired_holders(&self) -> BTreeSet<Region> {
        self.memory.expired.read().clone()
    }

    /// The highest stamp that this node ever gave or followed.
    pub fn hlc_high(&self) -> isle_model::Hlc {
        self.memory.hlc_high()
    }

    /// What state transfers have left that the cursors do not tell, durable only.
    pub fn transfers(&self) -> Vec<((KeyspaceId, ShardId), Transfers)> {
        let mut out = Vec::new();
        for (at, shard) in self.memory.shards.iter().enumerate() {
            let shard = shard.read();
            let left = shard.published_transfers.iter().filter(|(_, left)| !left.is_empty());
            out.extend(left.map(|(ks, left)| ((*ks, ShardId(at as u32)), left.clone())));
        }
        out
    }

    pub(crate) fn commit(&self, work: Workspace, payloads: &[Bytes]) -> Result<Unsynced, AppendError> {
        if payloads.is_empty() {
            return Ok(Unsynced { end: self.log.appended() });
        }
        if self.short_of_space.load(Ordering::Relaxed) {
            return Err(AppendError::DiskFull);
        }
        if self.is_overlay_over()
            && let Some(reason) = self.view_failure()
        {
            // Nobody will ever make room: the memory must not grow without bound.
            let reason =
                format!("nothing can be drained into the view, which is built anew at the next start: {reason}");
            return Err(AppendError::Poisoned { reason });
        }
        // The shard stays locked from the append to the staging, so that no publication passes in between and misses it.
        let mut shard = self.memory.shard(work.shard).write();
        let end = self.log.append(payloads)?.end;
        let dropped = work.stage(&self.memory, &mut shard, end);
        drop(shard);
        drop(dropped);
        self.wake_sync(end);
        Ok(Unsynced { end })
    }

    fn wake_sync(&self, end: LogPosition) {
        if let Some(thread) = self.sync_thread.get().and_then(Weak::upgrade) {
            thread.appended(end);
        }
    }

    pub fn appended(&self) -> LogPosition {
        self.log.appended()
    }

    pub fn durable(&self) -> LogPosition {
        self.log.durable()
    }

    /// Fsyncs what is appended, and only then lets it be seen.
    pub fn sync(&self) -> Result<LogPosition, SyncError> {
        let durable = self.log.sync()?;
        self.publish(durable);
        Ok(durable)
    }

    pub(crate) fn publish(&self, durable: LogPosition) {
        let _publishing = self.publishing.lock();
        self.memory.publish(durable);
        self.published.fetch_max(durable.0, Ordering::AcqRel);
    }

    /// Why writes have stopped for good, if they have.
    pub fn is_poisoned(&self) -> Option<String> {
        self.log.poisoned()
    }

    /// Whether writers should wait for the overlay to be drained. Where nothing is drained, for good or for want of disk space,
    /// commits are refused instead.
    pub fn overlay_full(&self) -> bool {
        let is_drained = self.view_failure().is_none() && !self.short_of_space.load(Ordering::Relaxed);
        self.is_overlay_over() && is_drained
    }

    /// Why the view takes nothing more, if so. It stays so: sled latches its errors, and the next start rebuilds the view.
    pub fn view_failure(&self) -> Option<String> {
        self.memory.view.load().fault().map(str::to_owned)
    }

    /// What shows that the view is damaged, if anything does. Some of what it holds cannot be read then, and the next start
    /// builds it anew.
    pub fn view_damage(&self) -> Option<String> {
        self.memory.view.load().damaged().map(str::to_owned)
    }

    /// Damages a record in the view, as a disk does.
    #[cfg(feature = "faults")]
    pub fn damage_view(&self, keyspace: KeyspaceId, key: &[u8]) {
        self.memory.view.load().damage(&ViewKey::record(keyspace, self.memory.shard_of(keyspace, key), key));
    }

    fn is_overlay_over(&self) -> bool {
        self.memory.overlay_bytes() >= self.config.overlay_bytes_max
    }

    pub fn get(&self, keyspace: KeyspaceId, key: &[u8]) -> Result<Option<Arc<Record>>, ReadError> {
        let shard = self.memory.shard_of(keyspace, key);
        Ok(self.memory.visible(shard, &ViewKey::record(keyspace, shard, key))?)
    }

    /// Live records of [start, end), at most `limit` of them and about `bytes_max` bytes. Not a snapshot.
    pub fn scan(
        &self,
        keyspace: KeyspaceId,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Page, ReadError> {
        let shards = self.config.shards as usize;
        let mut cursors: Vec<ShardCursor> =
            (0..self.config.shards).map(|s| ShardCursor::new(keyspace, ShardId(s), start, end)).collect();
        let (mut page, mut bytes) = (Page::default(), 0);
        loop {
            for cursor in &mut cursors {
                cursor.fill(&self.memory, limit.clamp(1, ROWS_AHEAD), bytes_max / shards)?;
            }
            let Some(first) =
                (0..cursors.len()).filter(|i| cursors[*i].peek().is_some()).min_by_key(|i| cursors[*i].peek())
            else {
                return Ok(page);
            };
            let Some((key, record)) = cursors[first].rows.pop() else { return Ok(page) };
            if page.rows.len() >= limit || (bytes >= bytes_max && !page.rows.is_empty()) {
                page.next = Some(key);
                return Ok(page);
            }
            bytes += key.len() + record.size();
            page.rows.push((key, record));
        }
    }

    /// The newest cursors of a keyspace's shard, unsynced batches included.
    pub fn streams(&self, keyspace: KeyspaceId, shard: ShardId) -> Streams {
        let shard = self.memory.shard(shard).read();
        shard.streams.get(&keyspace).map(|s| Streams::clone(s)).unwrap_or_default()
    }

    /// The cursors as of the durable mark: what may be acknowledged.
    pub fn durable_streams(&self, keyspace: KeyspaceId, shard: ShardId) -> Streams {
        let shard = self.memory.shard(shard).read();
        shard.published.get(&keyspace).map(|s| Streams::clone(s)).unwrap_or_default()
    }

    /// All durable cursors.
    pub fn all_streams(&self) -> Vec<((KeyspaceId, ShardId), Arc<Streams>)> {
        let mut out = Vec::new();
        for (at, shard) in self.memory.shards.iter().enumerate() {
            let shard = shard.read();
            out.extend(shard.published.iter().map(|(ks, streams)| ((*ks, ShardId(at as u32)), streams.clone())));
        }
        out.sort_by_key(|(stream, _)| *stream);
        out
    }

    /// Every keyspace and shard of which anything is here, for the writers, but for what is being purged.
    pub fn kept(&self) -> BTreeSet<(KeyspaceId, ShardId)> {
        let kept = |(at, shard): (usize, &parking_lot::RwLock<crate::memory::Shard>)| {
            let kept: Vec<KeyspaceId> = shard.read().kept().collect();
            kept.into_iter().map(move |keyspace| (keyspace, ShardId(at as u32)))
        };
        self.memory.shards.iter().enumerate().flat_map(kept).collect()
    }

    /// Keyspaces that are not there any more, though the disk still holds some of them.
    pub fn purging(&self) -> BTreeSet<KeyspaceId> {
        self.memory.shards.iter().flat_map(|shard| shard.read().purging.clone()).collect()
    }

    /// Deltas of the log after a position, durable ones only, about `bytes_max` of them. A damaged segment is as good as
    /// trimmed: who needs it takes a state, and goes on behind it.
    pub fn tail(&self, after: LogPosition, bytes_max: usize) -> Result<Tail, TailError> {
        let read = self.log.read(after, bytes_max).map_err(|error| match error {
            crate::log::ReadError::Trimmed { oldest } => TailError::Trimmed { oldest },
            crate::log::ReadError::Corrupt { position } => {
                tracing::error!(%position, "the commit log is damaged there; stop this node and run isle doctor");
                TailError::Trimmed { oldest: self.log.after_segment(position) }
            }
            other => TailError::Log(other),
        })?;
        let mut tail = Tail { items: Vec::new(), upto: after };
        for entry in read {
            let delta = match codec::delta_of_entry(&entry.payload) {
                Ok(delta) => delta,
                // What comes before it is handed out first: the next call then begins with the error.
                Err(_) if tail.upto > after => return Ok(tail),
                Err(error) => return Err(error.into()),
            };
            tail.upto = entry.end;
            if let Some((head, encoded)) = delta {
                let own = head.dot.incarnation.0 == entry.incarnation;
                tail.items.push(LogItem { end: entry.end, own, head, encoded });
            }
        }
        Ok(tail)
    }

    pub fn oldest(&self) -> LogPosition {
        self.log.oldest()
    }

    pub fn log_bytes(&self) -> u64 {
        self.log.bytes()
    }

    pub fn log_bytes_between(&self, from: LogPosition, to: LogPosition) -> u64 {
        self.log.bytes_between(from, to)
    }

    /// A complete state of the keys from `start` on, about `bytes_max` of it.
    pub fn state_chunk(
        &self,
        keyspace: KeyspaceId,
        shard: ShardId,
        start: &[u8],
        bytes_max: usize,
    ) -> Result<StateChunk, ReadError> {
        // The vector is taken before the read: what comes in between is then in the state, and only not yet in the vector.
        let streams = self.durable_streams(keyspace, shard);
        let absorbed: Vec<_> = streams.applied().clone().into_iter().collect();
        let end = ViewKey::end(RECORDS, keyspace, shard);
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut from = Some(ViewKey::record(keyspace, shard, start));
        'fill: while let Some(at) = from.take() {
            let Rows { rows, next } = self.memory.visible_range(shard, &at, &end, ROWS_AHEAD, bytes_max)?;
            from = next;
            for (key, item) in rows {
                // At least one, so that a caller who asks for next to nothing gets on.
                if bytes >= bytes_max && !records.is_empty() {
                    from = Some(key);
                    break 'fill;
                }
                if let Item::Record(record) = item {
                    bytes += key.as_bytes().len() + record.size();
                    records.push((key.user_key(), Record::clone(&record)));
                }
            }
        }
        let end_key = from.map(|key| key.user_key());
        let ledger = self.ledger_range(keyspace, shard, start, end_key.as_deref())?;
        if self.durable_streams(keyspace, shard).is_behind(&absorbed, self.tree().shard(shard)) {
            return Err(ReadError::Purged { keyspace, shard });
        }
        Ok(StateChunk {
            keyspace,
            shard,
            start: Bytes::copy_from_slice(start),
            end: end_key,
            absorbed,
            records,
            ledger,
            taken_at: isle_model::Hlc::default(),
            changes: false,
            last_own: streams.last_own(),
        })
    }

    fn ledger_range(
        &self,
        keyspace: KeyspaceId,
        shard: ShardId,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> Result<Vec<LedgerEntry>, ReadError> {
        let mut from = Some(ViewKey::ledger_from(keyspace, shard, start));
        let end = match end {
            Some(end) => ViewKey::ledger_from(keyspace, shard, end),
            None => ViewKey::end(crate::view_key::LEDGER, keyspace, shard),
        };
        let mut out = Vec::new();
        while let Some(at) = from {
            let Rows { rows, next } = self.memory.visible_range(shard, &at, &end, ROWS_AHEAD, BYTES_AHEAD)?;
            out.extend(rows.into_iter().filter_map(|(_, item)| match item {
                Item::Ledger(entry) => Some(LedgerEntry::clone(&entry)),
                _ => None,
            }));
            from = next;
        }
        Ok(out)
    }

    /// Ledger entries of a keyspace, shard after shard, at most `limit`.
    pub fn ledger(&self, keyspace: KeyspaceId, limit: usize) -> Result<Vec<LedgerEntry>, ReadError> {
        let mut out = Vec::new();
        for shard in 0..self.config.shards {
            out.extend(self.ledger_range(keyspace, ShardId(shard), &[], None)?);
            if out.len() >= limit {
                break;
            }
        }
        out.truncate(limit);
        Ok(out)
    }

    /// Tombstones that the view holds, after a key, in key order; with an empty record those that have just been forgotten.
    pub fn tombstones(
        &self,
        keyspace: KeyspaceId,
        shard: ShardId,
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Arc<Record>)>, ReadError> {
        let from = ViewKey::record(keyspace, shard, after);
        if self.memory.shard(shard).read().published_purging.contains(&keyspace) {
            return Ok(Vec::new());
        }
        let keys = self.memory.view.load().tombstones(&from, &ViewKey::end(RECORDS, keyspace, shard), limit)?;
        let mut out = Vec::new();
        for key in keys {
            let record = self.memory.visible(shard, &key)?.unwrap_or_default();
            out.push((key.user_key(), record));
        }
        Ok(out)
    }

    /// Trims the log below a position, but never above what the view and the checkpoint can do without.
    pub fn trim(&self, below: LogPosition) -> std::io::Result<()> {
        let (view, checkpoint) = {
            let maintenance = self.maintenance.lock();
            (maintenance.view_position, maintenance.checkpoint_position)
        };
        self.log.trim(below.min(view).min(checkpoint))
    }

    pub fn stats(&self) -> Stats {
        let mut tallies: std::collections::BTreeMap<KeyspaceId, crate::memory::Tally> = Default::default();
        let (mut conflicts_open, mut counted) = (0, true);
        for shard in &self.memory.shards {
            let shard = shard.read();
            conflicts_open += shard.open_losers.values().map(|open| open.len() as u64).sum::<u64>();
            counted &= shard.census == Census::Done;
            for (keyspace, tally) in &shard.tallies {
                tallies.entry(*keyspace).or_default().add(*tally);
            }
        }
        let keyspaces = tallies
            .into_iter()
            .map(|(id, tally)| KeyspaceStats {
                id,
                records: tally.records.max(0) as u64,
                digest: counted.then_some(tally.digest),
            })
            .collect();
        let maintenance = self.maintenance.lock();
        Stats {
            keyspaces,
            conflicts_open,
            log_bytes: self.log.bytes(),
            overlay_bytes: self.memory.overlay_bytes() as u64,
            view_bytes: self.memory.view.load().bytes(),
            view_live_bytes: counted.then(|| maintenance.live_bytes()),
            view_rebuilds: maintenance.rebuilds,
            checkpoint_position: maintenance.checkpoint_position,
            view_position: maintenance.view_position,
            view_failed: self.view_failure(),
        }
    }

    /// Whether everything that was there at start has been counted: before, `digest` is `None`.
    pub fn is_counted(&self) -> bool {
        self.memory.shards.iter().all(|shard| shard.read().census == Census::Done)
    }

    /// What a replay from the published mark needs: everything as of that mark, at one moment.
    pub(crate) fn published_meta(&self) -> Meta {
        let _publishing = self.publishing.lock();
        let mut streams = std::collections::BTreeMap::new();
        let mut last_seqs = Vec::new();
        let mut transfers = std::collections::BTreeMap::new();
        let mut purging = BTreeSet::new();
        for (at, shard) in self.memory.shards.iter().enumerate() {
            let shard = shard.read();
            last_seqs.push(shard.published_seq);
            streams.extend(shard.published.iter().map(|(ks, s)| ((*ks, ShardId(at as u32)), Streams::clone(s))));
            let left = shard.published_transfers.iter().filter(|(_, left)| !left.is_empty());
            transfers.extend(left.map(|(ks, left)| ((*ks, ShardId(at as u32)), left.clone())));
            purging.extend(shard.published_purging.iter().map(|ks| (*ks, ShardId(at as u32))));
        }
        Meta {
            position: LogPosition(self.published.load(Ordering::Acquire)),
            tree: IncarnationTree::clone(&self.tree()),
            last_incarnation: Some(self.incarnation),
            last_seqs,
            streams,
            hlc_high: self.memory.hlc_high(),
            expired: self.expired_holders(),
            transfers,
            purging,
        }
    }
}

/// A scan's place in one shard: rows read ahead, in reverse, so that the next is popped.
struct ShardCursor {
    shard: ShardId,
    next: Option<ViewKey>,
    end: ViewKey,
    rows: Vec<(Bytes, Arc<Record>)>,
}

impl ShardCursor {
    fn new(keyspace: KeyspaceId, shard: ShardId, start: &[u8], end: Option<&[u8]>) -> Self {
        let end = match end {
            Some(end) => ViewKey::record(keyspace, shard, end),
            None => ViewKey::end(RECORDS, keyspace, shard),
        };
        ShardCursor { shard, next: Some(ViewKey::record(keyspace, shard, start)), end, rows: Vec::new() }
    }

    fn peek(&self) -> Option<&Bytes> {
        self.rows.last().map(|(key, _)| key)
    }

    fn fill(&mut self, memory: &Memory, most: usize, bytes_max: usize) -> Result<(), ReadError> {
        while self.rows.is_empty() {
            let Some(at) = self.next.take() else { return Ok(()) };
            let Rows { rows, next } = memory.visible_range(self.shard, &at, &self.end, most, bytes_max)?;
            self.next = next;
            let live = rows.into_iter().rev().filter_map(|(key, item)| match item {
                Item::Record(record) if record.is_live() => Some((key.user_key(), record)),
                _ => None,
            });
            self.rows.extend(live);
        }
        Ok(())
    }
}
