//! The log while it is open: one appender at a time, one syncer at a time, readers and trimming beside them.
//!
//! An append writes into the page cache and returns; only `sync` makes it durable, and the append lock is never held over
//! an fdatasync. Durable means all of it: a segment that was left behind is sealed and synced before `durable` passes it.
//! A write or a sync that fails, for anything but lack of space, ends writing for good: what the disk then holds is
//! unknown, a second fsync would claim more than it knows, and recovery at the next open finds out.

use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::frame::{self, Kind, NOTE_BYTES, Note, PAYLOAD_BYTES_MAX};
use super::recent::Recent;
use super::recovery::{self, Known, LogError, Progress, RecoveryReport};
use super::scan::{FrameScan, Step};
use super::segment::{self, DIRECTORY, HEADER_BYTES, Header, Prepared, Segment};
use super::{Entry, LogPosition};
use crate::disk::{Disk, is_full};

/// The most that one append may take in the log.
const BATCH_BYTES_MAX: usize = 256 << 20;
const PAGE: u32 = 4096;
/// What is prepared at least, once anything is.
const PIECE_BYTES: u32 = 2 << 20;
/// A batch's buffer is kept for the next one, unless it has grown beyond this.
const SCRATCH_BYTES_KEPT: usize = 4 << 20;

#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The run of the node that opens the log. Never used before.
    pub incarnation: u64,
    /// How much is preallocated at a time, at least 64 KiB. Larger batches get a larger segment.
    pub segment_bytes: u32,
    /// Entries that end above are handed out when the log is opened.
    pub replay_from: LogPosition,
    /// What the caller knows to have been durable, say from a peer's cursor: damage below is never a torn write.
    pub known_durable: LogPosition,
    /// How much of the newest entries is kept in memory for readers.
    pub recent_bytes: usize,
    /// Free space of the disk that is left alone: only a run's first segment may be made of it, so that there is always a start.
    pub reserve_bytes: u64,
}

impl LogOptions {
    pub const SEGMENT_BYTES_MIN: u32 = 64 << 10;

    pub fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            segment_bytes: 64 << 20,
            replay_from: LogPosition::ZERO,
            known_durable: LogPosition::ZERO,
            recent_bytes: 8 << 20,
            reserve_bytes: 0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where each entry ends, in the order given.
    pub ends: Vec<LogPosition>,
    /// Where the log ends.
    pub end: LogPosition,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Nothing was written. Try again when there is space.
    #[error("no space for another commit log segment")]
    DiskFull,
    /// The write failed, and some of it may be found at the next open. Nothing can be written until then.
    #[error("commit log cannot be written: {reason}")]
    Failed { reason: String },
    /// Nothing was written, and never will be.
    #[error("an append of {bytes} bytes is beyond the commit log's limits")]
    TooLarge { bytes: usize },
    /// Nothing was written, and nothing will be until the log is opened anew.
    #[error("commit log takes no more writes: {reason}")]
    Poisoned { reason: String },
}

/// What was appended since the last sync may or may not be durable. Nothing can be written until the log is opened anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("commit log cannot be synced: {reason}")]
pub struct SyncError {
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the commit log was trimmed up to {oldest}")]
    Trimmed { oldest: LogPosition },
    #[error("commit log at {position} fails its checksum")]
    Corrupt { position: LogPosition },
    #[error("commit log at {position} cannot be read: {source}")]
    Io { position: LogPosition, source: io::Error },
}

pub struct CommitLog {
    disk: Arc<dyn Disk>,
    incarnation: u64,
    segment_bytes: u32,
    reserve_bytes: u64,
    // Locks are taken in this order: syncing, tail, ahead; the others alone.
    syncing: Mutex<()>,
    tail: Mutex<Tail>,
    ahead: Mutex<Ahead>,
    trimming: Mutex<()>,
    recent: Mutex<Recent>,
    /// By number, without holes but those that numbering leaves.
    segments: RwLock<Vec<Arc<Segment>>>,
    appended: AtomicU64,
    durable: AtomicU64,
    poison: OnceLock<String>,
}

/// Where the next frame goes.
struct Tail {
    /// `None` while there has been no space for one since the log was opened.
    segment: Option<Current>,
    end: LogPosition,
    last_entry_end: LogPosition,
    /// The highest position that a note calls durable.
    noted: LogPosition,
    /// Segments left behind since the last sync.
    unsealed: Vec<Arc<Segment>>,
    scratch: Vec<u8>,
}

struct Current {
    segment: Arc<Segment>,
    offset: u32,
    capacity: u32,
}

/// The segment after the current one.
struct Ahead {
    follows: u32,
    number: u32,
    prepared: Option<Prepared>,
}

impl CommitLog {
    /// Recovers the log and starts a new segment. `visit` gets every entry that ends above `replay_from`, in order; an
    /// error of its ends the recovery. They are durable when `open` returns, not before.
    pub fn open<E: Into<Box<dyn Error + Send + Sync>>>(
        disk: Arc<dyn Disk>,
        options: &LogOptions,
        mut visit: impl FnMut(Entry) -> Result<(), E>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(CommitLog, RecoveryReport), LogError> {
        disk.create_dir(DIRECTORY).map_err(|source| LogError::Io { what: "making the directory", source })?;
        let known = Known { replay_from: options.replay_from, durable: options.known_durable };
        let mut visit = |entry| visit(entry).map_err(Into::into);
        let recovered = recovery::recover(disk.as_ref(), known, &mut visit, progress)?;
        let end = recovered.report.end;
        let log = CommitLog {
            disk,
            incarnation: options.incarnation,
            segment_bytes: options.segment_bytes.max(LogOptions::SEGMENT_BYTES_MIN),
            reserve_bytes: options.reserve_bytes,
            syncing: Mutex::new(()),
            tail: Mutex::new(Tail::new(end)),
            ahead: Mutex::new(Ahead {
                follows: recovered.segments.last().map_or(0, Segment::number),
                number: recovered.next_number,
                prepared: None,
            }),
            trimming: Mutex::new(()),
            recent: Mutex::new(Recent::new(end, options.recent_bytes)),
            segments: RwLock::new(recovered.segments.into_iter().map(Arc::new).collect()),
            appended: AtomicU64::new(end.0),
            durable: AtomicU64::new(end.0),
            poison: OnceLock::new(),
        };
        log.start()?;
        Ok((log, recovered.report))
    }

    /// Without space the log opens all the same, for reading; the first append tries again.
    fn start(&self) -> Result<(), LogError> {
        match self.rotate(&mut self.tail.lock(), 0) {
            Ok(()) | Err(AppendError::DiskFull) => Ok(()),
            Err(error) => Err(LogError::Io { what: "making a segment", source: io::Error::other(error) }),
        }
    }

    /// Appends entries, each atomic by itself, in one write. They are neither durable nor readable before a `sync`.
    pub fn append(&self, payloads: &[Bytes]) -> Result<Appended, AppendError> {
        check_sizes(payloads)?;
        let mut tail = self.tail.lock();
        self.check_poison()?;
        if payloads.is_empty() {
            return Ok(Appended { ends: Vec::new(), end: tail.end });
        }
        self.write(&mut tail, payloads)
    }

    /// Makes everything appended so far durable, and returns where that ends.
    pub fn sync(&self) -> Result<LogPosition, SyncError> {
        let _one_at_a_time = self.syncing.lock();
        let (left_behind, current, end) = {
            let mut tail = self.tail.lock();
            if tail.end == self.durable() {
                return Ok(tail.end);
            }
            self.check_poison()?;
            let current = tail.segment.as_ref().map(|current| current.segment.clone());
            (std::mem::take(&mut tail.unsealed), current, tail.end)
        };
        let synced = left_behind.iter().try_for_each(|segment| segment.seal());
        synced
            .and_then(|()| current.map_or(Ok(()), |segment| segment.file.sync_data()))
            .map_err(|error| self.fail(&error))?;
        self.durable.store(end.0, Ordering::Release);
        Ok(end)
    }

    /// Syncs, and writes down durably that it did, so that damage to the last batch is known from a torn write. For when
    /// the log falls idle; does nothing when that was done already.
    pub fn note_idle(&self) -> Result<LogPosition, SyncError> {
        let durable = self.sync()?;
        let mut tail = self.tail.lock();
        if tail.last_entry_end <= tail.noted {
            return Ok(durable);
        }
        self.check_poison()?;
        self.write(&mut tail, &[])?;
        drop(tail);
        self.sync()
    }

    /// Ends the current segment and begins the next, so that all that was appended can be trimmed. Returns where that ends; a sync makes it
    /// known to the next start.
    pub fn cut(&self) -> Result<LogPosition, AppendError> {
        let mut tail = self.tail.lock();
        self.check_poison()?;
        let end = tail.end;
        if tail.segment.as_ref().is_none_or(|current| current.offset > HEADER_BYTES) {
            self.rotate(&mut tail, NOTE_BYTES as u32)?;
        }
        self.write(&mut tail, &[])?;
        Ok(end)
    }

    /// Notes what is durable and seals the log. Later appends are refused; reading goes on.
    pub fn close(&self) -> Result<(), SyncError> {
        self.note_idle()?;
        let _one_at_a_time = self.syncing.lock();
        let mut tail = self.tail.lock();
        self.check_poison()?;
        if tail.end != self.durable() {
            return Err(SyncError { reason: "it was written to while it was closed".to_owned() });
        }
        if let Some(current) = tail.segment.take() {
            current.segment.seal().map_err(|error| self.fail(&error))?;
        }
        if let Some(prepared) = self.ahead.lock().prepared.take() {
            Prepared::discard(self.disk.as_ref(), prepared.header.number);
        }
        let _ = self.poison.set("it is closed".to_owned());
        Ok(())
    }

    /// Makes some of the next segment, so that no append has to. Call it now and then from a thread that may wait for the disk. It
    /// does nothing while the current segment is mostly empty, and then keeps pace, twice as fast as that fills: made in one go, a
    /// segment of zeros holds up the sync of every commit for as long as the disk takes to write it.
    pub fn prepare_next(&self) -> Result<(), AppendError> {
        let wanted = {
            let tail = self.tail.lock();
            self.check_poison()?;
            tail.segment.as_ref().map_or(0, |current| {
                let beyond = current.offset.saturating_sub(current.capacity / 4);
                (u64::from(self.segment_bytes) * u64::from(beyond) * 2 / u64::from(current.capacity)) as u32
            })
        };
        // Piece by piece, however much is missing: who rotates the log waits for one of them at most.
        while self.prepare_piece(wanted.min(self.segment_bytes))? {}
        Ok(())
    }

    /// Makes a piece of the next segment unless so much of it is there; says whether it did.
    fn prepare_piece(&self, wanted: u32) -> Result<bool, AppendError> {
        let mut ahead = self.ahead.lock();
        let made = ahead.prepared.as_ref().map_or(0, |prepared| prepared.capacity);
        if made >= wanted {
            return Ok(false);
        }
        let next = self.segment_bytes.min(made + PIECE_BYTES);
        self.check_reserve(next - made)?;
        match &mut ahead.prepared {
            Some(prepared) => prepared.grow(next).map_err(|error| self.no_segment(&error))?,
            None => ahead.prepared = Some(self.prepare(&ahead, None, next)?),
        }
        Ok(true)
    }

    /// Where the log ends, durable or not.
    pub fn appended(&self) -> LogPosition {
        LogPosition(self.appended.load(Ordering::Acquire))
    }

    /// Everything that ends at or below is durable.
    pub fn durable(&self) -> LogPosition {
        LogPosition(self.durable.load(Ordering::Acquire))
    }

    /// Why nothing can be written any more, if that is so.
    pub fn poisoned(&self) -> Option<String> {
        self.poison.get().cloned()
    }

    /// The durable entries that end above `after`, in order, about `bytes_max` of payload and at least one if there is
    /// one. `after` is where an entry ends, or where the log started.
    pub fn read(&self, after: LogPosition, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        let durable = self.durable();
        let recent = self.recent.lock().read(after, durable, bytes_max);
        match recent {
            Some(entries) => Ok(entries),
            None => self.read_files(after, durable, bytes_max),
        }
    }

    fn read_files(&self, after: LogPosition, durable: LogPosition, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        let mut out = Vec::new();
        let mut left = bytes_max.max(1);
        let mut at = after;
        while left > 0
            && let Some(segment) = self.segment_after(at, durable)?
        {
            left = read_segment(&segment, at, durable, left, &mut out)?;
            at = segment.end();
        }
        Ok(out)
    }

    /// The segment that holds what follows a position.
    fn segment_after(&self, at: LogPosition, durable: LogPosition) -> Result<Option<Arc<Segment>>, ReadError> {
        let segments = self.segments.read();
        if let Some(oldest) = segments.first().map(|segment| segment.previous_end).filter(|oldest| at < *oldest) {
            return Err(ReadError::Trimmed { oldest });
        }
        let next = segments.partition_point(|segment| segment.end() <= at);
        let started = |segment: &&Arc<Segment>| LogPosition::new(segment.number(), HEADER_BYTES) < durable;
        Ok(segments.get(next).filter(started).cloned())
    }

    /// Where the segment of a position ends, as far as it is durable.
    pub fn after_segment(&self, position: LogPosition) -> LogPosition {
        let segments = self.segments.read();
        let segment = segments.iter().find(|segment| segment.number() == position.segment());
        segment.map_or(self.durable(), |segment| segment.end().min(self.durable()))
    }

    /// Entries that end above this position are all still here.
    pub fn oldest(&self) -> LogPosition {
        self.segments.read().first().map_or(self.durable(), |segment| segment.previous_end)
    }

    /// The bytes of all entries and notes that are kept.
    pub fn bytes(&self) -> u64 {
        self.bytes_between(LogPosition::ZERO, LogPosition(u64::MAX))
    }

    /// The bytes of entries and notes between two positions, as far as they are kept.
    pub fn bytes_between(&self, from: LogPosition, to: LogPosition) -> u64 {
        self.segments.read().iter().map(|segment| segment.bytes_between(from, to)).sum()
    }

    /// Removes the segments that end at or below a position, as long as the log still knows without them where it ends.
    pub fn trim(&self, below: LogPosition) -> io::Result<()> {
        let _one_at_a_time = self.trimming.lock();
        while let Some(number) = self.trimmable(below.min(self.durable())) {
            self.disk.remove(&segment::path_of(number))?;
            // One by one, so that no crash leaves a hole.
            self.disk.sync_dir(DIRECTORY)?;
            self.segments.write().remove(0);
        }
        Ok(())
    }

    /// The oldest segment, if it ends at or below a position and the next one durably says where it ended.
    fn trimmable(&self, below: LogPosition) -> Option<u32> {
        let segments = self.segments.read();
        let [oldest, next, ..] = segments.as_slice() else { return None };
        let known = next.header.previous_end.is_some() || self.durable().segment() >= next.number();
        (known && oldest.end() <= below).then(|| oldest.number())
    }

    /// Writes a note and entries at the end, in a new segment if they do not fit into this one.
    fn write(&self, tail: &mut Tail, payloads: &[Bytes]) -> Result<Appended, AppendError> {
        let frames: usize = payloads.iter().map(|payload| frame::frame_bytes(payload.len())).sum();
        // An entry leaves room for one more note, so that falling idle and closing need no new segment.
        let spare = if payloads.is_empty() { 0 } else { NOTE_BYTES };
        let needed = (NOTE_BYTES + frames + spare) as u32;
        if tail.segment.as_ref().is_none_or(|current| current.capacity - current.offset < needed) {
            self.rotate(tail, needed)?;
        }
        let Tail { segment: Some(current), scratch, .. } = tail else { return Err(AppendError::DiskFull) };
        let note = Note { durable: self.durable(), previous_end: tail.end };
        let entries = encode_batch(scratch, current, note, payloads);
        let written = current.segment.file.write_at(scratch, u64::from(current.offset));
        written.map_err(|error| AppendError::Failed { reason: self.fail(&error).reason })?;
        current.offset += scratch.len() as u32;
        current.segment.set_end(current.offset);
        if scratch.capacity() > SCRATCH_BYTES_KEPT {
            *scratch = Vec::new();
        }
        tail.noted = note.durable;
        tail.end = LogPosition::new(current.segment.number(), current.offset);
        Ok(self.publish(tail, entries))
    }

    fn publish(&self, tail: &mut Tail, entries: Vec<Entry>) -> Appended {
        let ends: Vec<LogPosition> = entries.iter().map(|entry| entry.end).collect();
        if let Some(last) = ends.last() {
            tail.last_entry_end = *last;
        }
        let mut recent = self.recent.lock();
        entries.into_iter().for_each(|entry| recent.push(entry));
        drop(recent);
        // After the entries are in the ring: a reader that sees them as durable finds them there.
        self.appended.store(tail.end.0, Ordering::Release);
        Appended { ends, end: tail.end }
    }

    /// Makes the next segment the current one. The one left behind is sealed by the next sync.
    fn rotate(&self, tail: &mut Tail, needed: u32) -> Result<(), AppendError> {
        let capacity = self.segment_bytes.max((HEADER_BYTES + needed).next_multiple_of(PAGE));
        let mut ahead = self.ahead.lock();
        if tail.segment.is_some() {
            let made = ahead.prepared.as_ref().map_or(0, |prepared| prepared.capacity);
            self.check_reserve(capacity.saturating_sub(made))?;
        }
        let mut prepared = match ahead.prepared.take() {
            Some(prepared) => prepared,
            // Only the first segment of a run is made when all before it is durable, and may say so.
            None => self.prepare(&ahead, tail.segment.is_none().then_some(tail.end), capacity)?,
        };
        if prepared.capacity < capacity
            && let Err(error) = prepared.grow(capacity)
        {
            ahead.prepared = Some(prepared);
            return Err(self.no_segment(&error));
        }
        ahead.follows = ahead.number;
        ahead.number += 1;
        let Prepared { header, file, capacity } = prepared;
        let segment = Arc::new(Segment::new(header, file, tail.end, HEADER_BYTES));
        self.segments.write().push(segment.clone());
        let left_behind = tail.segment.replace(Current { segment, offset: HEADER_BYTES, capacity });
        tail.unsealed.extend(left_behind.map(|current| current.segment));
        Ok(())
    }

    fn prepare(
        &self,
        ahead: &Ahead,
        previous_end: Option<LogPosition>,
        capacity: u32,
    ) -> Result<Prepared, AppendError> {
        let header =
            Header { number: ahead.number, incarnation: self.incarnation, follows: ahead.follows, previous_end };
        Prepared::make(self.disk.as_ref(), header, capacity).map_err(|error| self.no_segment(&error))
    }

    /// Whether so much may be taken from the disk and leave the reserve.
    fn check_reserve(&self, more: u32) -> Result<(), AppendError> {
        let free = self.disk.free_bytes().unwrap_or_default();
        let is_short = free.is_some_and(|free| free < self.reserve_bytes.saturating_add(u64::from(more)));
        if self.reserve_bytes > 0 && is_short { Err(AppendError::DiskFull) } else { Ok(()) }
    }

    fn no_segment(&self, error: &io::Error) -> AppendError {
        match is_full(error) {
            true => AppendError::DiskFull,
            false => AppendError::Failed { reason: self.fail(error).reason },
        }
    }

    fn fail(&self, error: &io::Error) -> SyncError {
        let reason = self.poison.get_or_init(|| error.to_string());
        tracing::error!(%reason, "the commit log takes no more writes");
        SyncError { reason: error.to_string() }
    }

    fn check_poison(&self) -> Result<(), Poisoned> {
        match self.poison.get() {
            Some(reason) => Err(Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }
}

struct Poisoned {
    reason: String,
}

impl From<Poisoned> for AppendError {
    fn from(Poisoned { reason }: Poisoned) -> Self {
        AppendError::Poisoned { reason }
    }
}

impl From<Poisoned> for SyncError {
    fn from(Poisoned { reason }: Poisoned) -> Self {
        SyncError { reason }
    }
}

impl From<AppendError> for SyncError {
    fn from(error: AppendError) -> Self {
        SyncError { reason: error.to_string() }
    }
}

impl Tail {
    fn new(end: LogPosition) -> Self {
        Self { segment: None, end, last_entry_end: end, noted: end, unsealed: Vec::new(), scratch: Vec::new() }
    }
}

fn check_sizes(payloads: &[Bytes]) -> Result<(), AppendError> {
    let mut total = 0;
    for bytes in payloads.iter().map(Bytes::len) {
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(AppendError::TooLarge { bytes });
        }
        total += frame::frame_bytes(bytes);
    }
    match total > BATCH_BYTES_MAX {
        true => Err(AppendError::TooLarge { bytes: total }),
        false => Ok(()),
    }
}

fn encode_batch(out: &mut Vec<u8>, current: &Current, note: Note, payloads: &[Bytes]) -> Vec<Entry> {
    let incarnation = current.segment.header.incarnation;
    let position = |written: usize| LogPosition::new(current.segment.number(), current.offset + written as u32);
    out.clear();
    frame::encode_note(out, position(0), incarnation, note);
    let mut entries = Vec::with_capacity(payloads.len());
    for payload in payloads {
        let start = position(out.len());
        frame::encode(out, Kind::Entry, start, incarnation, payload);
        entries.push(Entry { start, end: position(out.len()), incarnation, payload: payload.clone() });
    }
    entries
}

/// Reads on in one segment, and returns how many bytes are still wanted.
fn read_segment(
    segment: &Segment,
    after: LogPosition,
    durable: LogPosition,
    mut left: usize,
    out: &mut Vec<Entry>,
) -> Result<usize, ReadError> {
    let start = after.max(LogPosition::new(segment.number(), HEADER_BYTES)).offset();
    let limit = segment.end().min(durable).offset();
    let block_bytes = left.clamp(64 << 10, 1 << 20);
    let mut frames = FrameScan::new(segment.file.as_ref(), &segment.header, start, limit, block_bytes);
    while left > 0 {
        let position = LogPosition::new(segment.number(), frames.at());
        match frames.next().map_err(|source| ReadError::Io { position, source })? {
            Step::Frame { kind: Kind::Note, .. } => {}
            Step::Frame { kind: Kind::Entry, start, end, payload } => {
                left = left.saturating_sub(payload.len().max(1));
                out.push(Entry { start, end, incarnation: segment.header.incarnation, payload });
            }
            Step::End if frames.at() == limit => break,
            Step::End | Step::Bad => return Err(ReadError::Corrupt { position }),
        }
    }
    Ok(left)
}
