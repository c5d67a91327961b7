//! Recovery reads the log back after any stop, and tells a torn write from corruption.
//!
//! A frame is bad if its checksum fails, or if it is missing although the log is known to go on. Whether it was durable
//! is read from the notes that are sound anywhere at or after it, from the headers of later segments (which say what was
//! durable when they were made), and from what the caller knows:
//!
//! - above all of them, it is a torn write: it and everything after it is cut, and reported;
//! - below any of them, it is corruption: nothing is changed, and the position is named.
//!
//! Pages reach the disk in any order, so sound frames may follow a torn one, in its segment or in the next: they come
//! back in no case. Two things see to it. The first note of a segment says where the segment before it ended, so a tail
//! that vanished whole is missed. And a cut removes the later segments, durably, before it truncates the segment with
//! the bad frame: a crash in between finds the bad frame again.

use std::io;
use std::sync::Arc;

use super::frame::{Kind, Note, decode_note};
use super::scan::{self, FrameScan, Remains, Step};
use super::segment::{DIRECTORY, HEADER_BYTES, Header, HeaderFault, Segment, number_of, path_of};
use super::{Entry, LogPosition};
use crate::disk::{Disk, DiskFile, OpenMode};

const BLOCK_BYTES: usize = 1 << 20;

/// What was dropped as a torn write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The log ends here now.
    pub position: LogPosition,
    /// How many bytes beyond held anything, in this segment and in those removed.
    pub bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Where the log ended, which is where this incarnation leaves it. Below what the caller knew as durable, if the
    /// disk lost what it had acknowledged.
    pub end: LogPosition,
    /// The entries handed out.
    pub entries: u64,
    /// The bytes scanned.
    pub bytes: u64,
    pub cuts: Vec<Cut>,
}

/// How far recovery has come, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// Why the log cannot be opened. Only `Io` may have changed anything on the disk, and nothing that was durable.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "commit log at {position} fails its checksum, although it was durable up to {noted}: repair it from a peer"
    )]
    Corrupt { position: LogPosition, noted: LogPosition },
    #[error("commit log segment {segment} has no sound header, although it holds data: repair it from a peer")]
    CorruptHeader { segment: u32 },
    #[error("commit log segment {segment} has format version {version}, which is not known here: run a newer isle")]
    Version { segment: u32, version: u32 },
    #[error("commit log segment {missing} is missing before segment {segment}: repair it from a peer")]
    Missing { missing: u32, segment: u32 },
    #[error("commit log is gone, although it was durable up to {known}: repair it from a peer")]
    Gone { known: LogPosition },
    #[error("commit log is needed from {replay_from}, but starts at {oldest}: start from a newer checkpoint")]
    Trimmed { replay_from: LogPosition, oldest: LogPosition },
    #[error("commit log has used up its segment numbers")]
    NumbersExhausted,
    #[error("commit log: {what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error("commit log entry at {position} was refused: {source}")]
    Visit { position: LogPosition, source: Box<dyn std::error::Error + Send + Sync> },
}

pub(crate) type Visit<'a> = dyn FnMut(Entry) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// What recovery is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub replay_from: LogPosition,
    pub durable: LogPosition,
}

/// What it found: the log is sound, durable and sealed up to `report.end`.
pub(crate) struct Recovered {
    pub segments: Vec<Segment>,
    pub report: RecoveryReport,
    pub next_number: u32,
}

pub(super) fn io(what: &'static str) -> impl Fn(io::Error) -> LogError {
    move |source| LogError::Io { what, source }
}

/// A segment file as found.
pub(super) struct Found {
    pub(super) header: Header,
    pub(super) file: Arc<dyn DiskFile>,
    len: u32,
    first_note: Option<Note>,
    /// Where its frames end, once known.
    end: u32,
    scanned: bool,
}

impl Found {
    pub(super) fn number(&self) -> u32 {
        self.header.number
    }

    pub(super) fn end(&self) -> LogPosition {
        LogPosition::new(self.number(), self.end)
    }

    /// Where the log before this segment ended, as far as the segment itself says.
    pub(super) fn previous_end(&self) -> Option<LogPosition> {
        self.header.previous_end.or(self.first_note.map(|note| note.previous_end))
    }

    fn remains(&self, from: u32) -> Result<Remains, LogError> {
        scan::remains(self.file.as_ref(), &self.header, from).map_err(io("reading a segment"))
    }
}

pub(crate) fn recover(
    disk: &dyn Disk,
    known: Known,
    visit: &mut Visit<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Recovered, LogError> {
    let numbers = list(disk)?;
    let found = load(disk, &numbers, known.durable)?;
    check_chain(&found)?;
    check_there(&found, known)?;
    let oldest = found.first().map_or(LogPosition::ZERO, |_| previous_end(&found, 0));
    if known.replay_from < oldest {
        return Err(LogError::Trimmed { replay_from: known.replay_from, oldest });
    }
    let highest = numbers.last().copied().unwrap_or(0).max(known.replay_from.segment()).max(known.durable.segment());
    let mut recovery = Recovery::new(known, found);
    recovery.scan(visit, progress)?;
    recovery.seal(disk, &numbers)?;
    let next_number = highest.checked_add(1).ok_or(LogError::NumbersExhausted)?;
    Ok(recovery.finish(next_number))
}

pub(super) fn list(disk: &dyn Disk) -> Result<Vec<u32>, LogError> {
    let names = disk.list(DIRECTORY).map_err(io("listing segments"))?;
    Ok(names.iter().filter_map(|name| number_of(name)).collect())
}

pub(super) fn load(disk: &dyn Disk, numbers: &[u32], durable: LogPosition) -> Result<Vec<Found>, LogError> {
    let mut found = Vec::with_capacity(numbers.len());
    for &number in numbers {
        let file = disk.open(&path_of(number), OpenMode::ReadWrite).map_err(io("opening a segment"))?;
        let file_len = file.len().map_err(io("opening a segment"))?;
        let len = u32::try_from(file_len).map_err(|_| LogError::CorruptHeader { segment: number })?;
        match Header::read(file.as_ref(), number).map_err(io("reading a header"))? {
            Ok(header) => {
                let first_note = scan::first_note(file.as_ref(), &header).map_err(io("reading a segment"))?;
                found.push(Found { header, file, len, first_note, end: HEADER_BYTES, scanned: false });
            }
            Err(HeaderFault::Version(version)) => return Err(LogError::Version { segment: number, version }),
            Err(HeaderFault::Unsound) => {
                // A crash while it was made: its header is durable before anything follows it, in it or after it.
                let unfinished = Some(&number) == numbers.last() && durable.segment() < number && blank(file.as_ref())?;
                if !unfinished {
                    return Err(LogError::CorruptHeader { segment: number });
                }
            }
        }
    }
    Ok(found)
}

fn blank(file: &dyn DiskFile) -> Result<bool, LogError> {
    let nothing = Header { number: 0, incarnation: 0, follows: 0, previous_end: None };
    let remains = scan::remains(file, &nothing, HEADER_BYTES).map_err(io("reading a segment"))?;
    Ok(remains.data_end == HEADER_BYTES)
}

/// However far a log is trimmed, its last segment stays.
pub(super) fn check_there(found: &[Found], known: Known) -> Result<(), LogError> {
    let known = known.replay_from.max(known.durable);
    if found.is_empty() && known > LogPosition::ZERO { Err(LogError::Gone { known }) } else { Ok(()) }
}

/// Each segment names the one before it, so one that is missing in between is missed.
pub(super) fn check_chain(found: &[Found]) -> Result<(), LogError> {
    for pair in found.windows(2) {
        if pair[1].header.follows != pair[0].number() {
            return Err(LogError::Missing { missing: pair[1].header.follows, segment: pair[1].number() });
        }
    }
    Ok(())
}

/// Where the log before segment `index` ended, from what it or those after it say.
pub(super) fn previous_end(found: &[Found], index: usize) -> LogPosition {
    let this = &found[index];
    let below = |end: &LogPosition| end.segment() < this.number();
    let said = found[index..].iter().find_map(Found::previous_end).filter(below);
    // A segment that says nothing holds no frame, and neither does the one before it if the next skips both.
    said.unwrap_or_else(|| match index.checked_sub(1) {
        Some(before) if found[before].end > HEADER_BYTES => found[before].end(),
        Some(before) => previous_end(found, before),
        None if this.header.follows == 0 => LogPosition::ZERO,
        None => LogPosition::new(this.number(), 0),
    })
}

pub(super) struct Recovery {
    known: Known,
    pub(super) found: Vec<Found>,
    /// The highest position known as durable, so far.
    noted: LogPosition,
    pub(super) report: RecoveryReport,
}

impl Recovery {
    pub(super) fn new(known: Known, found: Vec<Found>) -> Recovery {
        Recovery { known, found, noted: known.durable, report: RecoveryReport::default() }
    }

    pub(super) fn scan(&mut self, visit: &mut Visit<'_>, progress: &mut dyn FnMut(Progress)) -> Result<(), LogError> {
        let needed = |found: &&Found| found.number() >= self.known.replay_from.segment();
        let total = self.found.iter().filter(needed).map(|found| u64::from(found.len - HEADER_BYTES)).sum();
        for index in 0..self.found.len() {
            let bound = self.bound(index);
            let found = &mut self.found[index];
            if found.number() < self.known.replay_from.segment() {
                found.end = bound.unwrap_or(found.len);
                continue;
            }
            found.scanned = true;
            if let Some(bad) = self.scan_segment(index, bound, total, visit, progress)? {
                return self.cut_or_refuse(index, bad);
            }
        }
        progress(Progress { done: total, total });
        Ok(())
    }

    /// Where a segment's frames must end, if a later segment says so.
    fn bound(&self, index: usize) -> Option<u32> {
        let number = self.found[index].number();
        let end = self.found[index + 1..].iter().find_map(Found::previous_end)?;
        match end.segment().cmp(&number) {
            std::cmp::Ordering::Less => Some(HEADER_BYTES),
            std::cmp::Ordering::Equal => Some(end.offset()),
            std::cmp::Ordering::Greater => None,
        }
    }

    /// Hands out the entries of a segment; returns where it goes wrong, if it does.
    fn scan_segment(
        &mut self,
        index: usize,
        bound: Option<u32>,
        total: u64,
        visit: &mut Visit<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<u32>, LogError> {
        let found = &mut self.found[index];
        let limit = bound.unwrap_or(found.len).min(found.len);
        let mut frames = FrameScan::new(found.file.as_ref(), &found.header, HEADER_BYTES, limit, BLOCK_BYTES);
        let before = self.report.bytes;
        let mut shown = before;
        let bad = loop {
            match frames.next().map_err(io("reading a segment"))? {
                Step::Frame { kind: Kind::Note, payload, .. } => {
                    let durable = decode_note(&payload).map_or(LogPosition::ZERO, |note| note.durable);
                    self.noted = self.noted.max(durable);
                }
                Step::Frame { kind: Kind::Entry, start, end, payload } if end > self.known.replay_from => {
                    let entry = Entry { start, end, incarnation: found.header.incarnation, payload };
                    visit(entry).map_err(|source| LogError::Visit { position: start, source })?;
                    self.report.entries += 1;
                }
                Step::Frame { .. } => {}
                Step::End => break false,
                Step::Bad => break true,
            }
            self.report.bytes = before + u64::from(frames.at() - HEADER_BYTES);
            if self.report.bytes - shown >= BLOCK_BYTES as u64 {
                shown = self.report.bytes;
                progress(Progress { done: shown, total });
            }
        };
        found.end = frames.at();
        let whole = match bound {
            Some(bound) => found.end == bound,
            None => found.remains(found.end)?.data_end == found.end,
        };
        Ok(Some(found.end).filter(|_| bad || !whole))
    }

    fn cut_or_refuse(&mut self, index: usize, bad: u32) -> Result<(), LogError> {
        let position = LogPosition::new(self.found[index].number(), bad);
        let here = self.found[index].remains(bad)?;
        let mut bytes = u64::from(here.data_end - bad);
        self.noted = self.noted.max(here.noted);
        for later in &self.found[index + 1..] {
            let remains = later.remains(HEADER_BYTES)?;
            bytes += u64::from(remains.data_end - HEADER_BYTES);
            self.noted = self.noted.max(remains.noted).max(later.header.previous_end.unwrap_or_default());
        }
        if self.noted > position {
            return Err(LogError::Corrupt { position, noted: self.noted });
        }
        self.found.truncate(index + 1);
        self.report.cuts.push(Cut { position, bytes });
        Ok(())
    }

    /// Makes the disk say what was found: later segments go first, then the tails.
    fn seal(&mut self, disk: &dyn Disk, numbers: &[u32]) -> Result<(), LogError> {
        let kept = self.found.last().map(Found::number).unwrap_or(0);
        let dropped: Vec<u32> = numbers.iter().copied().filter(|number| *number > kept).collect();
        for number in dropped.iter().rev() {
            disk.remove(&path_of(*number)).map_err(io("removing a segment"))?;
        }
        if !dropped.is_empty() {
            disk.sync_dir(DIRECTORY).map_err(io("syncing the directory"))?;
        }
        for found in self.found.iter_mut().filter(|found| found.scanned) {
            // A process that died left frames in the page cache alone. They were handed out: they must stay.
            let surely_durable = found.end() <= self.noted && found.len == found.end;
            if !surely_durable {
                found.file.set_len(u64::from(found.end)).map_err(io("truncating a segment"))?;
                found.file.sync_all().map_err(io("syncing a segment"))?;
                found.len = found.end;
            }
        }
        Ok(())
    }

    fn finish(mut self, next_number: u32) -> Recovered {
        let found = &self.found;
        let ends: Vec<LogPosition> = (0..found.len()).map(|index| previous_end(found, index)).collect();
        self.report.end = match found.last() {
            Some(last) if last.end > HEADER_BYTES => last.end(),
            Some(_) => ends.last().copied().unwrap_or_default(),
            None => LogPosition::ZERO,
        };
        let segment = |(found, end): (Found, _)| Segment::new(found.header, found.file, end, found.end);
        let segments = self.found.into_iter().zip(ends).map(segment).collect();
        Recovered { segments, report: self.report, next_number }
    }
}
