//! Batches of deltas as they travel: each preceded by its length (u32, little endian), all compressed by zstd.
//!
//! The batches of one subscription are one zstd frame, flushed behind each batch: a batch of a few deltas, which is what a busy
//! link without a backlog sends, has nothing in itself to be compressed by, and finds it in those before. A batch that answers a
//! call is a frame of its own; an unpacker takes both.
//! What comes in is bounded before it is unpacked, and its checksum, over the raw bytes, is checked before it is read.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use isle_model::{Incarnation, Row};
use zstd::stream::raw::{DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe;

use crate::peer::{DeltaBatch, PeerError};

/// Largest batch, unpacked. One delta of a full record fits, with its ledger entries.
pub(crate) const RAW_BYTES_MAX: usize = 32 << 20;
/// A delta has its dot at least. Shorter ones would be many, and each takes a handle.
const DELTA_BYTES_MIN: usize = 13;
/// Fast enough for a link on the side of everything else; what is large by itself hardly shrinks more at higher levels.
const ZSTD_LEVEL: i32 = 1;
/// For small batches, which find what they have in common with those before in pieces of a few bytes.
const ZSTD_LEVEL_DENSE: i32 = 7;
/// From so many raw bytes on a batch tells of a burst, when time is dearer than bytes.
const BURST_BYTES: usize = 32 << 10;
/// So many smaller ones tell that it is over: about a quarter of a second's.
const CALM_BATCHES: u32 = 64;
/// What an unpacker remembers at most, as a power of two: 8 MiB. A packer remembers two at most.
const WINDOW_LOG_MAX: u32 = 23;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BatchError {
    #[error("the batch announces {0} bytes, more than {RAW_BYTES_MAX}")]
    TooLarge(usize),
    #[error("the batch does not unpack: {0}")]
    Unpack(String),
    #[error("the batch fails its checksum")]
    Checksum,
    #[error("the batch is cut short or says a wrong count")]
    Malformed,
}

#[derive(Debug, Default)]
pub(crate) struct BatchBuilder {
    raw: BytesMut,
    count: u32,
}

impl BatchBuilder {
    pub(crate) fn push(&mut self, encoded: &[u8]) {
        self.raw.put_u32_le(encoded.len() as u32);
        self.raw.extend_from_slice(encoded);
        self.count += 1;
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn bytes(&self) -> usize {
        self.raw.len()
    }

    /// A batch for itself.
    pub(crate) fn finish(self, rows: Vec<(Incarnation, Row)>) -> Result<DeltaBatch, BatchError> {
        let zstd = zstd::bulk::compress(&self.raw, ZSTD_LEVEL)?;
        Ok(self.packed(rows, zstd))
    }

    /// The next batch of a subscription.
    pub(crate) fn finish_in(
        self,
        packer: &mut Packer,
        rows: Vec<(Incarnation, Row)>,
    ) -> Result<DeltaBatch, BatchError> {
        let zstd = packer.pack(&self.raw)?;
        Ok(self.packed(rows, zstd))
    }

    fn packed(self, rows: Vec<(Incarnation, Row)>, zstd: Vec<u8>) -> DeltaBatch {
        let (count, raw_len, crc) = (self.count, self.raw.len() as u32, crc32fast::hash(&self.raw));
        DeltaBatch { rows, count, raw_len, crc, zstd: Bytes::from(zstd) }
    }
}

impl From<io::Error> for BatchError {
    fn from(error: io::Error) -> BatchError {
        BatchError::Unpack(error.to_string())
    }
}

/// Packs the batches of one subscription, in the order in which they are sent: densely while they are small, fast in a burst. A
/// change between the two begins another frame.
pub(crate) struct Packer {
    encoder: Encoder<'static>,
    is_dense: bool,
    /// Small batches since the last large one.
    calm: u32,
}

impl Packer {
    pub(crate) fn new() -> Packer {
        Packer { encoder: encoder(ZSTD_LEVEL_DENSE), is_dense: true, calm: CALM_BATCHES }
    }

    fn pack(&mut self, raw: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = vec![0; zstd_safe::compress_bound(raw.len()) + 64];
        let mut input = InBuffer::around(raw);
        let mut output = OutBuffer::around(&mut out[..]);
        self.calm = if raw.len() < BURST_BYTES { self.calm.saturating_add(1) } else { 0 };
        let is_dense = self.calm >= CALM_BATCHES || (self.is_dense && self.calm > 0);
        if is_dense != self.is_dense {
            self.encoder.finish(&mut output, false)?;
            self.encoder = encoder(if is_dense { ZSTD_LEVEL_DENSE } else { ZSTD_LEVEL });
            self.is_dense = is_dense;
        }
        while input.pos() < raw.len() {
            self.encoder.run(&mut input, &mut output)?;
        }
        let left = self.encoder.flush(&mut output)?;
        debug_assert_eq!(left, 0, "the bound is zstd's own, and there is room for the frame's header");
        let packed = output.pos();
        out.truncate(packed);
        Ok(out)
    }
}

fn encoder(level: i32) -> Encoder<'static> {
    Encoder::new(level).expect("the level is one that there is")
}

/// Unpacks the batches of one subscription, in the order in which they were packed.
pub struct Unpacker(Decoder<'static>);

impl Default for Unpacker {
    fn default() -> Unpacker {
        let mut decoder = Decoder::new().expect("no dictionary is asked for");
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).expect("the limit is one that there is");
        Unpacker(decoder)
    }
}

impl Unpacker {
    /// The encoded deltas of the next batch. They share its memory.
    pub(crate) fn unpack(&mut self, batch: &DeltaBatch) -> Result<Vec<Bytes>, BatchError> {
        items(self.raw(batch)?, batch.count)
    }

    /// The next batch as one for itself: for whoever stands in the middle of a subscription, and changes what passes.
    pub fn alone(&mut self, batch: DeltaBatch) -> Result<DeltaBatch, PeerError> {
        let corrupt = |reason: String| PeerError::Corrupt { reason };
        let raw = self.raw(&batch).map_err(|error| corrupt(error.to_string()))?;
        let zstd = zstd::bulk::compress(&raw, ZSTD_LEVEL).map_err(|error| corrupt(error.to_string()))?;
        Ok(DeltaBatch { zstd: zstd.into(), ..batch })
    }

    fn raw(&mut self, batch: &DeltaBatch) -> Result<Bytes, BatchError> {
        let raw_len = batch.raw_len as usize;
        if raw_len > RAW_BYTES_MAX {
            return Err(BatchError::TooLarge(raw_len));
        }
        // One byte more than was announced: whatever comes into it is too much.
        let mut raw = Vec::with_capacity(raw_len + 1);
        let mut input = InBuffer::around(&batch.zstd[..]);
        let mut output = OutBuffer::around(&mut raw);
        loop {
            let before = (input.pos(), output.pos());
            self.0.run(&mut input, &mut output)?;
            if output.pos() > raw_len {
                return Err(BatchError::Unpack("it holds more than it announces".to_owned()));
            }
            if (input.pos(), output.pos()) == before {
                break;
            }
        }
        match raw.len() == raw_len && input.pos() == batch.zstd.len() {
            true if crc32fast::hash(&raw) == batch.crc => Ok(raw.into()),
            true => Err(BatchError::Checksum),
            false => Err(BatchError::Unpack("it holds less than it announces".to_owned())),
        }
    }
}

/// The encoded deltas of a batch for itself.
pub(crate) fn unpack(batch: &DeltaBatch) -> Result<Vec<Bytes>, BatchError> {
    Unpacker::default().unpack(batch)
}

fn items(mut raw: Bytes, count: u32) -> Result<Vec<Bytes>, BatchError> {
    let mut out = Vec::new();
    while !raw.is_empty() {
        let length = raw.split_to_checked(4).ok_or(BatchError::Malformed)?;
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if length < DELTA_BYTES_MIN {
            return Err(BatchError::Malformed);
        }
        out.push(raw.split_to_checked(length).ok_or(BatchError::Malformed)?);
    }
    if out.len() == count as usize { Ok(out) } else { Err(BatchError::Malformed) }
}

trait SplitChecked: Sized {
    fn split_to_checked(&mut self, at: usize) -> Option<Self>;
}

impl SplitChecked for Bytes {
    fn split_to_checked(&mut self, at: usize) -> Option<Bytes> {
        (at <= self.len()).then(|| self.split_to(at))
    }
}

/// About how many bytes a batch takes on the wire.
pub(crate) fn wire_bytes(batch: &DeltaBatch) -> u64 {
    let rows: usize = batch.rows.iter().map(|(_, row)| 32 + row.region.as_str().len() + 4 * row.left_at.len()).sum();
    (batch.zstd.len() + rows + 16) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn batch(items: &[&[u8]]) -> DeltaBatch {
        let mut builder = BatchBuilder::default();
        items.iter().for_each(|item| builder.push(item));
        builder.finish(Vec::new()).unwrap()
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let items: Vec<Vec<u8>> = (0..200).map(|n| vec![n as u8; DELTA_BYTES_MIN + n * 7]).collect();
        let slices: Vec<&[u8]> = items.iter().map(Vec::as_slice).collect();
        assert_eq!(unpack(&batch(&slices)).unwrap(), slices);
        assert_eq!(unpack(&batch(&[])).unwrap(), Vec::<Bytes>::new());
    }

    #[test]
    fn the_batches_of_a_subscription_are_packed_by_what_went_before() {
        let (mut packer, mut unpacker) = (Packer::new(), Unpacker::default());
        let mut sizes = Vec::new();
        for n in 0..200u32 {
            let item = format!("delta {n} of some length, most of which is in every other delta as well");
            let mut builder = BatchBuilder::default();
            builder.push(item.as_bytes());
            let batch = builder.finish_in(&mut packer, Vec::new()).unwrap();
            sizes.push(batch.zstd.len());
            // In between come batches of those who stand in the middle, or answer calls.
            assert_eq!(unpack(&Unpacker::default().alone(self::batch(&[item.as_bytes()])).unwrap()).unwrap(), [&item]);
            assert_eq!(unpacker.unpack(&batch).unwrap(), [item]);
        }
        assert!(sizes[1..].iter().all(|size| *size < sizes[0] / 2), "{sizes:?}");
    }

    #[test]
    fn bursts_and_calm_take_turns() {
        let (mut packer, mut unpacker) = (Packer::new(), Unpacker::default());
        let mut turns = 0;
        for n in 0..6 * CALM_BATCHES {
            let was_dense = packer.is_dense;
            let item = format!("{n} ").repeat(if n % (2 * CALM_BATCHES) == 5 { BURST_BYTES } else { 40 });
            let mut builder = BatchBuilder::default();
            builder.push(item.as_bytes());
            let batch = builder.finish_in(&mut packer, Vec::new()).unwrap();
            assert!(unpacker.unpack(&batch).unwrap() == [item]);
            turns += u32::from(packer.is_dense != was_dense);
        }
        assert_eq!(turns, 6);
    }

    #[test]
    fn batches_larger_than_what_is_remembered_pass() {
        let (mut packer, mut unpacker) = (Packer::new(), Unpacker::default());
        let mut noise = 1u64;
        for _ in 0..3 {
            let item: Vec<u8> = std::iter::repeat_with(|| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (noise >> 56) as u8
            })
            .take(3 << 20)
            .collect();
            let mut builder = BatchBuilder::default();
            builder.push(&item);
            let batch = builder.finish_in(&mut packer, Vec::new()).unwrap();
            assert!(unpacker.unpack(&batch).unwrap()[0] == item);
        }
    }

    #[test]
    fn a_batch_of_a_subscription_cannot_do_without_those_before_it() {
        let mut packer = Packer::new();
        let mut next = || {
            let mut builder = BatchBuilder::default();
            builder.push(b"one delta or so, and the same again");
            builder.finish_in(&mut packer, Vec::new()).unwrap()
        };
        let (first, second) = (next(), next());
        assert!(Unpacker::default().unpack(&second).is_err());
        let mut unpacker = Unpacker::default();
        assert!(unpacker.unpack(&first).is_ok() && unpacker.unpack(&second).is_ok());
    }

    #[test]
    fn a_batch_that_announces_too_much_is_not_even_unpacked() {
        let large = DeltaBatch { raw_len: RAW_BYTES_MAX as u32 + 1, ..batch(&[b"one delta or so"]) };
        assert_eq!(unpack(&large), Err(BatchError::TooLarge(RAW_BYTES_MAX + 1)));
    }

    /// 32 MiB of nothing but lengths were 8 million handles: half a gigabyte.
    #[test]
    fn what_is_too_short_for_a_delta_is_refused() {
        assert_eq!(unpack(&batch(&[b"one delta or so", b""])), Err(BatchError::Malformed));
        assert_eq!(unpack(&batch(&[&[7; DELTA_BYTES_MIN - 1]])), Err(BatchError::Malformed));
    }

    #[test]
    fn damage_is_noticed() {
        let sound = batch(&[b"one delta or so", b"another delta"]);
        assert_eq!(unpack(&DeltaBatch { crc: sound.crc ^ 1, ..sound.clone() }), Err(BatchError::Checksum));
        assert_eq!(unpack(&DeltaBatch { count: 3, ..sound.clone() }), Err(BatchError::Malformed));
        assert!(unpack(&DeltaBatch { raw_len: sound.raw_len - 1, ..sound.clone() }).is_err());
        for cut in 0..sound.zstd.len() {
            assert!(unpack(&DeltaBatch { zstd: sound.zstd.slice(..cut), ..sound.clone() }).is_err());
        }
    }
}
