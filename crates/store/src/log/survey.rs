//! Looks a log over without touching it: what recovery would find, and what of it is lost if it is damaged.
//!
//! Recovery stops at the first damage and changes nothing; whoever repairs has to know more: which segment it is, and how far
//! a state must reach that can do without it.

use super::LogPosition;
use super::frame::Kind;
use super::recovery::{self, Cut, Found, Known, LogError, Progress, Recovery, Visit};
use super::scan::{self, FrameScan, Step};
use super::segment::{HEADER_BYTES, Header, path_of};
use crate::disk::{Disk, OpenMode};

/// What a log holds.
pub(crate) struct Survey {
    pub(crate) segments: usize,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Entries that end above this position are all here.
    pub(crate) oldest: LogPosition,
    pub(crate) end: LogPosition,
    /// Torn writes, which the next start cuts off.
    pub(crate) cuts: Vec<Cut>,
    pub(crate) damage: Option<Damage>,
}

/// The first damage of a log.
pub(crate) struct Damage {
    pub(crate) what: LogError,
    pub(crate) segment: u32,
    /// What ends at or below is sound.
    pub(crate) position: LogPosition,
    /// What is above is of later segments: a state of this position or later needs nothing of the damaged one.
    pub(crate) end: LogPosition,
}

/// `visit` gets every entry up to the first damage. `durable` is what is known from elsewhere.
pub(crate) fn survey(
    disk: &dyn Disk,
    durable: LogPosition,
    visit: &mut Visit<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Survey, LogError> {
    let mut survey = Survey {
        segments: 0,
        entries: 0,
        bytes: 0,
        oldest: LogPosition::ZERO,
        end: LogPosition::ZERO,
        cuts: Vec::new(),
        damage: None,
    };
    let numbers = recovery::list(disk)?;
    survey.segments = numbers.len();
    let known = Known { replay_from: LogPosition::ZERO, durable };
    let found = recovery::load(disk, &numbers, durable).and_then(|found| {
        recovery::check_chain(&found)?;
        recovery::check_there(&found, known)?;
        Ok(found)
    });
    let scanned = found.and_then(|found| {
        survey.oldest = found.first().map_or(LogPosition::ZERO, |_| recovery::previous_end(&found, 0));
        let mut recovery = Recovery::new(known, found);
        let scanned = recovery.scan(visit, progress);
        survey.entries = recovery.report.entries;
        survey.bytes = recovery.report.bytes;
        survey.cuts = std::mem::take(&mut recovery.report.cuts);
        survey.end = recovery.found.last().map_or(survey.oldest, Found::end);
        scanned
    });
    match scanned {
        Ok(()) => Ok(survey),
        Err(what) => {
            let (segment, position) = place_of(&what)?;
            let end = end_of(disk, &numbers, segment, durable)?;
            survey.damage = Some(Damage { what, segment, position, end });
            Ok(survey)
        }
    }
}

/// Whether a segment holds no entry after a position, where a frame ends, and nothing unsound that may have been one.
pub(crate) fn is_last_entry(disk: &dyn Disk, position: LogPosition) -> Result<bool, LogError> {
    let io = recovery::io("reading a segment");
    let file = disk.open(&path_of(position.segment()), OpenMode::Read).map_err(&io)?;
    let Ok(header) = Header::read(file.as_ref(), position.segment()).map_err(&io)? else { return Ok(false) };
    let len = u32::try_from(file.len().map_err(&io)?).unwrap_or(u32::MAX);
    let mut frames = FrameScan::new(file.as_ref(), &header, position.offset().max(HEADER_BYTES), len, 1 << 16);
    loop {
        match frames.next().map_err(&io)? {
            Step::Frame { kind: Kind::Note, .. } => {}
            Step::Frame { kind: Kind::Entry, .. } | Step::Bad => return Ok(false),
            Step::End => break,
        }
    }
    let remains = scan::remains(file.as_ref(), &header, frames.at()).map_err(&io)?;
    Ok(remains.data_end == frames.at())
}

/// What is no damage is handed back.
fn place_of(error: &LogError) -> Result<(u32, LogPosition), LogError> {
    match error {
        LogError::Corrupt { position, .. } | LogError::Visit { position, .. } => Ok((position.segment(), *position)),
        LogError::CorruptHeader { segment } => Ok((*segment, LogPosition::new(*segment, 0))),
        LogError::Missing { missing, .. } => Ok((*missing, LogPosition::new(*missing, 0))),
        LogError::Gone { known } => Ok((known.segment(), LogPosition::ZERO)),
        LogError::Io { what, source } => Err(LogError::Io { what, source: std::io::Error::from(source.kind()) }),
        LogError::Version { segment, version } => Err(LogError::Version { segment: *segment, version: *version }),
        LogError::Trimmed { replay_from, oldest } => {
            Err(LogError::Trimmed { replay_from: *replay_from, oldest: *oldest })
        }
        LogError::NumbersExhausted => Err(LogError::NumbersExhausted),
    }
}

/// Where the log was when the segment after this one began, or, in the last segment, where its last byte is.
fn end_of(disk: &dyn Disk, numbers: &[u32], segment: u32, durable: LogPosition) -> Result<LogPosition, LogError> {
    let io = recovery::io("reading a segment");
    for number in numbers.iter().copied().filter(|number| *number >= segment) {
        let file = disk.open(&path_of(number), OpenMode::Read).map_err(&io)?;
        let header = Header::read(file.as_ref(), number).map_err(&io)?;
        if number == segment {
            continue;
        }
        let Ok(header) = header else { continue };
        let note = scan::first_note(file.as_ref(), &header).map_err(&io)?;
        if let Some(end) = header.previous_end.or(note.map(|note| note.previous_end)) {
            return Ok(end);
        }
    }
    if !numbers.contains(&segment) {
        return Ok(durable.max(LogPosition::new(segment, HEADER_BYTES)));
    }
    let file = disk.open(&path_of(segment), OpenMode::Read).map_err(&io)?;
    let nothing = Header { number: segment, incarnation: 0, follows: 0, previous_end: None };
    let remains = scan::remains(file.as_ref(), &nothing, HEADER_BYTES).map_err(&io)?;
    Ok(LogPosition::new(segment, remains.data_end).max(durable))
}
