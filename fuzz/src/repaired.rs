//! Inputs with their checksums set right. Fuzzers do not guess checksums; what lies behind one is reached only so.

use bytes::{BufMut, BytesMut};

/// A segment that starts where every log starts: number 1, after nothing.
pub const SEGMENT_PATH: &str = "log/0000000000000001.seg";
pub const SEGMENT_BYTES: usize = 64 << 10;
pub const INCARNATION: u64 = 7;
const SEGMENT_HEADER_BYTES: usize = 4096;
const FRAME_HEADER_BYTES: usize = 8;
const NOTE: u32 = 2;

/// A segment of the log with these bytes for frames; `sound` sets every frame's checksum right, as far as lengths lead.
pub fn segment(frames: &[u8], sound: bool) -> Vec<u8> {
    let mut out = segment_header();
    out.resize(SEGMENT_HEADER_BYTES, 0);
    // A segment begins with a note; a log that lacks it is no log.
    let note = [0; 16];
    put_frame(&mut out, (NOTE << 28) | 16, &note);
    let start = out.len();
    let room = SEGMENT_BYTES - start;
    out.extend_from_slice(&frames[..frames.len().min(room)]);
    if sound {
        set_frames_right(&mut out, start);
    }
    out.resize(SEGMENT_BYTES, 0);
    out
}

fn segment_header() -> Vec<u8> {
    let mut out = vec![0; 64];
    out[..8].copy_from_slice(b"isle-log");
    out[8..12].copy_from_slice(&1u32.to_le_bytes());
    out[16..24].copy_from_slice(&1u64.to_le_bytes());
    out[24..32].copy_from_slice(&INCARNATION.to_le_bytes());
    out[40..48].copy_from_slice(&0u64.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&out[..12]);
    hasher.update(&out[16..]);
    let crc = hasher.finalize();
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

fn put_frame(out: &mut Vec<u8>, word: u32, payload: &[u8]) {
    let at = out.len();
    out.extend_from_slice(&word.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out.resize(at + (FRAME_HEADER_BYTES + payload.len()).next_multiple_of(8), 0);
    set_frame_right(out, at);
}

fn set_frames_right(out: &mut [u8], mut at: usize) {
    while let Some(next) = set_frame_right(out, at) {
        at = next;
    }
}

/// Sets one frame's checksum; returns where the next one starts.
fn set_frame_right(out: &mut [u8], at: usize) -> Option<usize> {
    let word = u32::from_le_bytes(out.get(at..at + 4)?.try_into().ok()?);
    let total = (FRAME_HEADER_BYTES + (word & 0x0fff_ffff) as usize).next_multiple_of(8);
    let body = out.get(at + FRAME_HEADER_BYTES..at + total)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&word.to_le_bytes());
    hasher.update(&(1u64 << 32 | at as u64).to_le_bytes());
    hasher.update(&INCARNATION.to_le_bytes());
    hasher.update(body);
    let crc = hasher.finalize();
    out[at + 4..at + FRAME_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    Some(at + total)
}

/// A checkpoint whose frames hold these payloads: the header, chunks to be packed, the manifest.
pub fn checkpoint(payloads: &[&[u8]]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for (at, payload) in payloads.iter().enumerate() {
        let is_chunk = at > 0 && at + 1 < payloads.len();
        let frame = if is_chunk { packed(payload) } else { payload.to_vec() };
        out.put_u32_le(frame.len() as u32);
        out.put_u32_le(crc32fast::hash(&frame));
        out.put_slice(&frame);
    }
    out.to_vec()
}

fn packed(raw: &[u8]) -> Vec<u8> {
    let mut out = (raw.len() as u64).to_le_bytes().to_vec();
    out.extend(zstd::bulk::compress(raw, 1).expect("memory takes what is written to it"));
    out
}

/// Parts of an input, each preceded by its length (u16, little endian). What is left over is the last.
pub fn parts(mut input: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (part, rest) = rest.split_at(length);
        out.push(part);
        input = rest;
    }
    if !input.is_empty() {
        out.push(input);
    }
    out
}
