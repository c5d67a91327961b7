//! What is read back from a disk.

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use isle_store::disk::{Disk, MemoryDisk, OpenMode};
use isle_store::log::{CommitLog, LogOptions, LogPosition};
use isle_store::{codec, fuzzing};

use crate::{Verdict, repaired};

/// What decodes is encoded and decoded again as itself: it is sound, and nothing of it is lost in the next write.
fn decoded<T: PartialEq + Debug, E: Debug>(
    input: &[u8],
    decode: impl Fn(Bytes) -> Result<T, E>,
    encode: impl Fn(&T) -> Bytes,
) -> Verdict {
    let first = decode(Bytes::copy_from_slice(input));
    if let Ok(value) = &first {
        let again = decode(encode(value)).expect("what was encoded is decoded");
        // A float that is no number is not equal to itself; its bytes are.
        assert!(again == *value || encode(&again) == encode(value), "{value:?} came back as {again:?}");
    }
    Verdict::of(&first)
}

pub fn log_entry(input: &[u8]) -> Verdict {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(Some((head, encoded))) = codec::delta_of_entry(&bytes)
        && let Ok(delta) = codec::decode_delta(encoded)
    {
        assert_eq!((head.dot, head.prev, head.shard), (delta.dot, delta.prev, delta.shard));
    }
    decoded(input, codec::decode_entry, codec::encode_entry)
}

pub fn delta(input: &[u8]) -> Verdict {
    let head = codec::delta_head(Bytes::copy_from_slice(input));
    if let (Ok(head), Ok(delta)) = (&head, codec::decode_delta(Bytes::copy_from_slice(input))) {
        assert_eq!((head.dot, head.prev, head.keyspace), (delta.dot, delta.prev, delta.keyspace));
    }
    decoded(input, codec::decode_delta, codec::encode_delta)
}

pub fn record(input: &[u8]) -> Verdict {
    decoded(input, codec::decode_record, codec::encode_record)
}

pub fn ledger_entry(input: &[u8]) -> Verdict {
    decoded(input, codec::decode_ledger_entry, codec::encode_ledger_entry)
}

pub fn state_chunk(input: &[u8]) -> Verdict {
    decoded(input, codec::decode_state_chunk, codec::encode_state_chunk)
}

/// The first byte says whether the mark's checksum is set right.
pub fn view_mark(input: &[u8]) -> Verdict {
    use isle_proto::storage as s;
    use prost::Message;
    let Some((mode, rest)) = input.split_first() else { return Verdict::Refused };
    if mode & 1 == 0 {
        return decoded(rest, codec::decode_view_mark, codec::encode_view_mark);
    }
    let Ok(mut mark) = s::ViewMark::decode(rest) else { return Verdict::Refused };
    mark.meta_crc = mark.meta.as_ref().map_or(0, |meta| crc32fast::hash(&meta.encode_to_vec()));
    decoded(&mark.encode_to_vec(), codec::decode_view_mark, codec::encode_view_mark)
}

fn disk_with(path: &str, bytes: &[u8]) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let (folder, _) = path.split_once('/').expect("every file of a store lies in a folder");
    let written = disk.create_dir(folder).and_then(|()| {
        let file = disk.open(path, OpenMode::Create)?;
        file.write_at(bytes, 0)?;
        file.sync_all()?;
        disk.sync_dir(folder)
    });
    written.expect("memory takes what is written to it");
    disk
}

/// The first byte says whether the frames' checksums are set right; the rest is what follows the segment's first note.
pub fn log_segment(input: &[u8]) -> Verdict {
    let Some((mode, frames)) = input.split_first() else { return Verdict::Refused };
    let disk = disk_with(repaired::SEGMENT_PATH, &repaired::segment(frames, mode & 1 == 1));
    let options = LogOptions {
        segment_bytes: LogOptions::SEGMENT_BYTES_MIN,
        recent_bytes: 4096,
        ..LogOptions::new(repaired::INCARNATION + 1)
    };
    let mut handed_out = Vec::new();
    let visit = |entry: isle_store::log::Entry| {
        handed_out.push(entry.payload);
        Ok::<(), Infallible>(())
    };
    let opened = CommitLog::open(Arc::new(disk), &options, visit, &mut |_| ());
    if let Ok((log, report)) = &opened {
        assert_eq!(report.entries as usize, handed_out.len());
        // What a log once handed out it goes on to hand out, and it takes more.
        log.append(&[Bytes::from_static(b"more")]).expect("a log that opens can be written");
        log.sync().expect("memory syncs");
        handed_out.push(Bytes::from_static(b"more"));
        assert_eq!(read_all(log), handed_out);
    }
    Verdict::of(&opened)
}

fn read_all(log: &CommitLog) -> Vec<Bytes> {
    let (mut after, mut all) = (log.oldest(), Vec::new());
    loop {
        let entries = log.read(after, 1 << 20).expect("what was recovered is read");
        let Some(last) = entries.last() else { return all };
        after = last.end;
        all.extend(entries.into_iter().map(|entry| entry.payload));
    }
}

/// The first byte says whether the file is made of the parts of the rest, packed and with checksums, or is the rest.
pub fn checkpoint(input: &[u8]) -> Verdict {
    let Some((mode, rest)) = input.split_first() else { return Verdict::Refused };
    let file = if mode & 1 == 1 { repaired::checkpoint(&repaired::parts(rest)) } else { rest.to_vec() };
    let disk = disk_with("checkpoints/0000000100001000.ckpt", &file);
    Verdict::of(&fuzzing::checkpoint(&disk, LogPosition(0x0000_0001_0000_1000)))
}
