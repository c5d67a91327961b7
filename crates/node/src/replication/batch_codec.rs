//! Batches of deltas as they travel: each preceded by its length (u32, little endian), all compressed by zstd.
//!
//! What comes in is bounded before it is unpacked, and its checksum, over the raw bytes, is checked before it is read.

use bytes::{BufMut, Bytes, BytesMut};
use isle_model::{Incarnation, Row};

use crate::peer::DeltaBatch;

/// Largest batch, unpacked. One delta of a full record fits, with its ledger entries.
pub(crate) const RAW_BYTES_MAX: usize = 32 << 20;
/// A delta has its dot at least. Shorter ones would be many, and each takes a handle.
const DELTA_BYTES_MIN: usize = 13;
/// Fast enough for a link on the side of everything else; higher levels save hardly more.
const ZSTD_LEVEL: i32 = 1;

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

    pub(crate) fn finish(self, rows: Vec<(Incarnation, Row)>) -> Result<DeltaBatch, BatchError> {
        let zstd =
            zstd::bulk::compress(&self.raw, ZSTD_LEVEL).map_err(|error| BatchError::Unpack(error.to_string()))?;
        Ok(DeltaBatch {
            rows,
            count: self.count,
            raw_len: self.raw.len() as u32,
            crc: crc32fast::hash(&self.raw),
            zstd: Bytes::from(zstd),
        })
    }
}

/// The encoded deltas of a batch. They share its memory.
pub(crate) fn unpack(batch: &DeltaBatch) -> Result<Vec<Bytes>, BatchError> {
    let raw_len = batch.raw_len as usize;
    if raw_len > RAW_BYTES_MAX {
        return Err(BatchError::TooLarge(raw_len));
    }
    let raw = zstd::bulk::decompress(&batch.zstd, raw_len).map_err(|error| BatchError::Unpack(error.to_string()))?;
    if raw.len() != raw_len || crc32fast::hash(&raw) != batch.crc {
        return Err(BatchError::Checksum);
    }
    let mut raw = Bytes::from(raw);
    let mut out = Vec::new();
    while !raw.is_empty() {
        let length = raw.split_to_checked(4).ok_or(BatchError::Malformed)?;
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if length < DELTA_BYTES_MIN {
            return Err(BatchError::Malformed);
        }
        out.push(raw.split_to_checked(length).ok_or(BatchError::Malformed)?);
    }
    if out.len() == batch.count as usize { Ok(out) } else { Err(BatchError::Malformed) }
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
