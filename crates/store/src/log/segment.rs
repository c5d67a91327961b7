//! A segment is one file of the log: a header page, frames, and zeros up to its preallocated length.
//!
//! The header page, the zeros and the file's name are durable before the first frame is written, and the header is never
//! written again. So a file without a sound header holds no frame that counts, unless it is damaged. A sealed segment
//! ends with its last frame.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::LogPosition;
use crate::disk::{Disk, DiskFile, OpenMode};

pub(crate) const DIRECTORY: &str = "log";
/// Frames start on a page of their own, so that writing them never touches the header's.
pub(crate) const HEADER_BYTES: u32 = 4096;
const ENCODED_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"isle-log";
const VERSION: u32 = 1;
const UNKNOWN: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub number: u32,
    pub incarnation: u64,
    /// The number of the segment before this one, 0 if there never was one.
    pub follows: u32,
    /// Where the log ended when this segment was made, all of it durable. Not known to a segment that was made ahead:
    /// there, the first note tells.
    pub previous_end: Option<LogPosition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Unsound,
    Version(u32),
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; ENCODED_BYTES] {
        let mut out = [0; ENCODED_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&u64::from(self.number).to_le_bytes());
        out[24..32].copy_from_slice(&self.incarnation.to_le_bytes());
        out[32..40].copy_from_slice(&u64::from(self.follows).to_le_bytes());
        let previous_end = self.previous_end.map_or(UNKNOWN, |position| position.0);
        out[40..48].copy_from_slice(&previous_end.to_le_bytes());
        let crc = checksum(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; ENCODED_BYTES]) -> Result<Header, HeaderFault> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let number = |at: usize| u32::try_from(long(at)).map_err(|_| HeaderFault::Unsound);
        if bytes[..8] != MAGIC || word(12) != checksum(bytes) {
            return Err(HeaderFault::Unsound);
        }
        if word(8) != VERSION {
            return Err(HeaderFault::Version(word(8)));
        }
        Ok(Header {
            number: number(16)?,
            incarnation: long(24),
            follows: number(32)?,
            previous_end: Some(long(40)).filter(|end| *end != UNKNOWN).map(LogPosition),
        })
    }

    /// Reads the header of a file, which must be the one of segment `number`.
    pub(crate) fn read(file: &dyn DiskFile, number: u32) -> io::Result<Result<Header, HeaderFault>> {
        let mut bytes = [0; ENCODED_BYTES];
        file.read_at(&mut bytes, 0)?;
        if file.len()? < u64::from(HEADER_BYTES) {
            return Ok(Err(HeaderFault::Unsound));
        }
        Ok(Header::decode(&bytes)
            .and_then(|header| if header.number == number { Ok(header) } else { Err(HeaderFault::Unsound) }))
    }
}

fn checksum(header: &[u8; ENCODED_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..12]);
    hasher.update(&header[16..]);
    hasher.finalize()
}

pub(crate) fn path_of(number: u32) -> String {
    format!("{DIRECTORY}/{number:016x}.seg")
}

/// The number in a segment's file name.
pub(crate) fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 16)?;
    u32::from_str_radix(digits, 16).ok()
}

/// A segment whose header and zeros are durable, and which holds no frame yet.
pub(crate) struct Prepared {
    pub header: Header,
    pub file: Arc<dyn DiskFile>,
    pub capacity: u32,
}

impl Prepared {
    /// Makes the file. When that fails, what there is of it is removed, so that it can be tried again.
    pub(crate) fn make(disk: &dyn Disk, header: Header, capacity: u32) -> io::Result<Prepared> {
        Self::build(disk, header, capacity).inspect_err(|_| Self::discard(disk, header.number))
    }

    fn build(disk: &dyn Disk, header: Header, capacity: u32) -> io::Result<Prepared> {
        let file = disk.open(&path_of(header.number), OpenMode::Create)?;
        file.preallocate(u64::from(capacity))?;
        file.write_at(&header.encode(), 0)?;
        file.sync_all()?;
        disk.sync_dir(DIRECTORY)?;
        Ok(Prepared { header, file, capacity })
    }

    /// What is left over does no harm: it holds no frame, and is made anew or passed over.
    pub(crate) fn discard(disk: &dyn Disk, number: u32) {
        if let Err(error) = disk.remove(&path_of(number)) {
            tracing::debug!(number, %error, "an unused log segment stays");
        }
    }

    pub(crate) fn grow(&mut self, capacity: u32) -> io::Result<()> {
        self.file.preallocate(u64::from(capacity))?;
        self.capacity = capacity;
        Ok(())
    }
}

/// A segment that is part of the log.
pub(crate) struct Segment {
    pub header: Header,
    pub file: Arc<dyn DiskFile>,
    /// The end of the log before this segment.
    pub previous_end: LogPosition,
    end: AtomicU32,
}

impl Segment {
    pub(crate) fn new(header: Header, file: Arc<dyn DiskFile>, previous_end: LogPosition, end: u32) -> Self {
        Self { header, file, previous_end, end: AtomicU32::new(end) }
    }

    pub(crate) fn number(&self) -> u32 {
        self.header.number
    }

    /// Just after the last frame.
    pub(crate) fn end(&self) -> LogPosition {
        LogPosition::new(self.number(), self.end.load(Ordering::Acquire))
    }

    pub(crate) fn set_end(&self, end: u32) {
        self.end.store(end, Ordering::Release);
    }

    /// Cuts the zeros off and makes everything in it durable.
    pub(crate) fn seal(&self) -> io::Result<()> {
        self.file.set_len(u64::from(self.end().offset()))?;
        self.file.sync_all()
    }

    /// The bytes of frames between two positions that are in this segment.
    pub(crate) fn bytes_between(&self, from: LogPosition, to: LogPosition) -> u64 {
        let from = from.max(LogPosition::new(self.number(), HEADER_BYTES));
        to.min(self.end()).0.saturating_sub(from.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEADER: Header =
        Header { number: 9, incarnation: u64::MAX - 1, follows: 7, previous_end: Some(LogPosition(5)) };

    #[test]
    fn a_header_reads_back_and_any_flipped_bit_is_seen() {
        for header in [HEADER, Header { previous_end: None, ..HEADER }] {
            let bytes = header.encode();
            assert_eq!(Header::decode(&bytes), Ok(header));
            for bit in 0..bytes.len() * 8 {
                let mut bytes = bytes;
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Header::decode(&bytes), Err(HeaderFault::Unsound), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_later_format_is_named() {
        let mut bytes = HEADER.encode();
        bytes[8] = 2;
        let crc = checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&bytes), Err(HeaderFault::Version(2)));
    }

    #[test]
    fn names_and_numbers_match() {
        assert_eq!(path_of(0x1f), "log/000000000000001f.seg");
        assert_eq!(number_of("000000000000001f.seg"), Some(0x1f));
        for other in ["1f.seg", "000000000000001f.tmp", "10000000000000001.seg", "VIEW", "00000001ffffffff.seg"] {
            assert_eq!(number_of(other), None);
        }
    }

    #[test]
    fn a_segment_that_finds_no_space_leaves_nothing_behind() {
        let disk = crate::disk::MemoryDisk::new();
        disk.create_dir(DIRECTORY).unwrap();
        disk.set_capacity(Some(10_000));
        assert!(Prepared::make(&disk, HEADER, 65_536).is_err());
        assert_eq!(disk.list(DIRECTORY).unwrap(), [""; 0]);
        disk.set_capacity(None);
        let prepared = Prepared::make(&disk, HEADER, 65_536).unwrap();
        assert_eq!(Header::read(prepared.file.as_ref(), 9).unwrap(), Ok(HEADER));
        assert_eq!(Header::read(prepared.file.as_ref(), 8).unwrap(), Err(HeaderFault::Unsound));
    }
}
