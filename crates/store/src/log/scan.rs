//! Walks the frames of one segment, a block at a time; payloads are slices of the block they were read with.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

use super::LogPosition;
use super::frame::{self, ALIGNMENT, Decoded, HEADER_BYTES, Kind, NOTE_BYTES, Note};
use super::segment::{self, Header};
use crate::disk::DiskFile;

pub(crate) enum Step {
    Frame {
        kind: Kind,
        start: LogPosition,
        end: LogPosition,
        payload: Bytes,
    },
    /// Zeros, or the limit.
    End,
    Bad,
}

pub(crate) struct FrameScan<'a> {
    file: &'a dyn DiskFile,
    number: u32,
    incarnation: u64,
    at: u32,
    limit: u32,
    /// Read from `at` on.
    block: Bytes,
    block_bytes: usize,
}

impl<'a> FrameScan<'a> {
    /// Scans from `at`, where a frame must start, and nothing from `limit` on.
    pub(crate) fn new(file: &'a dyn DiskFile, header: &Header, at: u32, limit: u32, block_bytes: usize) -> Self {
        let (number, incarnation) = (header.number, header.incarnation);
        Self { file, number, incarnation, at, limit, block: Bytes::new(), block_bytes }
    }

    pub(crate) fn at(&self) -> u32 {
        self.at
    }

    pub(crate) fn next(&mut self) -> io::Result<Step> {
        let start = LogPosition::new(self.number, self.at);
        loop {
            let left = self.limit.saturating_sub(self.at) as usize;
            if left == 0 {
                return Ok(Step::End);
            }
            match frame::decode(&self.block, start, self.incarnation) {
                Decoded::Incomplete(needed) if needed > left => return self.partial(left),
                Decoded::Incomplete(needed) => self.fill(needed, left)?,
                Decoded::End => return Ok(Step::End),
                Decoded::Bad => return Ok(Step::Bad),
                Decoded::Frame { kind, payload_bytes } => return Ok(self.take(kind, start, payload_bytes)),
            }
        }
    }

    fn take(&mut self, kind: Kind, start: LogPosition, payload_bytes: usize) -> Step {
        let total = frame::frame_bytes(payload_bytes);
        let payload = self.block.slice(HEADER_BYTES..HEADER_BYTES + payload_bytes);
        self.block.advance(total);
        self.at += total as u32;
        Step::Frame { kind, start, end: LogPosition::new(self.number, self.at), payload }
    }

    fn fill(&mut self, needed: usize, left: usize) -> io::Result<()> {
        let mut block = BytesMut::zeroed(self.block_bytes.max(needed).min(left));
        let read = self.file.read_at(&mut block, u64::from(self.at))?;
        if read < block.len() {
            self.limit = self.at + read as u32;
            block.truncate(read);
        }
        self.block = block.freeze();
        Ok(())
    }

    /// Fewer bytes are left than a frame needs: zeros too short for a header are an end like any other.
    fn partial(&mut self, left: usize) -> io::Result<Step> {
        let mut rest = vec![0; left.min(HEADER_BYTES)];
        self.file.read_at(&mut rest, u64::from(self.at))?;
        let short_zeros = left < HEADER_BYTES && rest.iter().all(|byte| *byte == 0);
        Ok(if short_zeros { Step::End } else { Step::Bad })
    }
}

/// What lies in a segment from some place on, read without trusting that frames follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remains {
    /// Just after the last byte that is not zero; the place itself if there is none.
    pub data_end: u32,
    /// The highest position that a sound note there calls durable.
    pub noted: LogPosition,
}

pub(crate) fn remains(file: &dyn DiskFile, header: &Header, from: u32) -> io::Result<Remains> {
    const BLOCK: u32 = 1 << 20;
    // Blocks overlap by a note less one step, so that every note lies whole in one of them.
    let mut block = vec![0; BLOCK as usize + NOTE_BYTES - ALIGNMENT];
    let mut found = Remains { data_end: from, noted: LogPosition::ZERO };
    let mut at = from;
    loop {
        let read = file.read_at(&mut block, u64::from(at))?;
        let bytes = &block[..read];
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            found.data_end = found.data_end.max(at + last as u32 + 1);
            for note in notes(bytes, header, at) {
                found.noted = found.noted.max(note.durable);
            }
        }
        if read < block.len() {
            return Ok(found);
        }
        at += BLOCK;
    }
}

fn notes<'a>(bytes: &'a [u8], header: &'a Header, at: u32) -> impl Iterator<Item = Note> + 'a {
    (0..bytes.len()).step_by(ALIGNMENT).filter_map(move |offset| {
        let position = LogPosition::new(header.number, at + offset as u32);
        frame::note_at(&bytes[offset..], position, header.incarnation)
    })
}

/// The note that a segment starts with.
pub(crate) fn first_note(file: &dyn DiskFile, header: &Header) -> io::Result<Option<Note>> {
    let mut bytes = [0; NOTE_BYTES];
    let read = file.read_at(&mut bytes, u64::from(segment::HEADER_BYTES))?;
    let start = LogPosition::new(header.number, segment::HEADER_BYTES);
    Ok(frame::note_at(&bytes[..read], start, header.incarnation))
}
