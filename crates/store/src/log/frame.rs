//! A frame is one entry or one note of the log, under one checksum.
//!
//! ```text
//! word: kind (4 bits) | payload length (28 bits)    u32, little endian
//! crc32 over word, position, incarnation, payload    u32
//! payload, then zeros up to a multiple of 8
//! ```
//!
//! The checksum covers where the frame stands (its position names the segment) and who wrote it, so bytes copied
//! elsewhere, or left by an older use of the place, never read as sound. The kind is never zero, so a frame never looks
//! like the zeros that end a segment. What a bad frame means is for `recovery`.

use super::LogPosition;

/// The largest payload of an entry, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;
pub(crate) const HEADER_BYTES: usize = 8;
pub(crate) const ALIGNMENT: usize = 8;
const NOTE_PAYLOAD_BYTES: usize = 16;
pub(crate) const NOTE_BYTES: usize = HEADER_BYTES + NOTE_PAYLOAD_BYTES;
const KIND_SHIFT: u32 = 28;
const LENGTH_MASK: u32 = (1 << KIND_SHIFT) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Entry = 1,
    Note = 2,
}

/// What the log knew when a batch was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// Everything below was durable.
    pub durable: LogPosition,
    /// The frame before this one ended there: in a segment's first note, the end of the segment before.
    pub previous_end: LogPosition,
}

/// What the bytes at a position are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// Zeros: nothing was written here.
    End,
    /// So many bytes are needed to tell.
    Incomplete(usize),
    Bad,
    Frame {
        kind: Kind,
        payload_bytes: usize,
    },
}

/// The bytes that a payload takes in the log.
pub(crate) fn frame_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(ALIGNMENT)
}

/// Appends a frame that will stand at `position`. The payload's size is checked by the caller.
pub(crate) fn encode(out: &mut Vec<u8>, kind: Kind, position: LogPosition, incarnation: u64, payload: &[u8]) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    let start = out.len();
    let word = (kind as u32) << KIND_SHIFT | payload.len() as u32;
    out.extend_from_slice(&word.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out.resize(start + frame_bytes(payload.len()), 0);
    let crc = checksum(word, position, incarnation, &out[start + HEADER_BYTES..]);
    out[start + 4..start + HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
}

pub(crate) fn encode_note(out: &mut Vec<u8>, position: LogPosition, incarnation: u64, note: Note) {
    let mut payload = [0; NOTE_PAYLOAD_BYTES];
    payload[..8].copy_from_slice(&note.durable.0.to_le_bytes());
    payload[8..].copy_from_slice(&note.previous_end.0.to_le_bytes());
    encode(out, Kind::Note, position, incarnation, &payload);
}

/// Judges the bytes that stand at `position`.
pub(crate) fn decode(bytes: &[u8], position: LogPosition, incarnation: u64) -> Decoded {
    let Some((word, crc)) = header(bytes) else { return Decoded::Incomplete(HEADER_BYTES) };
    if word == 0 && crc == 0 {
        return Decoded::End;
    }
    let payload_bytes = (word & LENGTH_MASK) as usize;
    let kind = match word >> KIND_SHIFT {
        1 if payload_bytes <= PAYLOAD_BYTES_MAX => Kind::Entry,
        2 if payload_bytes == NOTE_PAYLOAD_BYTES => Kind::Note,
        _ => return Decoded::Bad,
    };
    let total = frame_bytes(payload_bytes);
    let Some(body) = bytes.get(HEADER_BYTES..total) else { return Decoded::Incomplete(total) };
    match checksum(word, position, incarnation, body) == crc {
        true => Decoded::Frame { kind, payload_bytes },
        false => Decoded::Bad,
    }
}

/// The note whose payload this is; `decode` has checked its length.
pub(crate) fn decode_note(payload: &[u8]) -> Option<Note> {
    let (durable, previous_end) = payload.split_first_chunk::<8>()?;
    Some(Note {
        durable: LogPosition(u64::from_le_bytes(*durable)),
        previous_end: LogPosition(u64::from_le_bytes(previous_end.try_into().ok()?)),
    })
}

/// The sound note that starts at exactly these bytes, if one does.
pub(crate) fn note_at(bytes: &[u8], position: LogPosition, incarnation: u64) -> Option<Note> {
    let (word, _) = header(bytes)?;
    if word != (Kind::Note as u32) << KIND_SHIFT | NOTE_PAYLOAD_BYTES as u32 {
        return None;
    }
    match decode(bytes, position, incarnation) {
        Decoded::Frame { kind: Kind::Note, .. } => decode_note(&bytes[HEADER_BYTES..NOTE_BYTES]),
        _ => None,
    }
}

fn header(bytes: &[u8]) -> Option<(u32, u32)> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, _) = rest.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*word), u32::from_le_bytes(*crc)))
}

fn checksum(word: u32, position: LogPosition, incarnation: u64, padded_payload: &[u8]) -> u32 {
    let mut place = [0; 20];
    place[..4].copy_from_slice(&word.to_le_bytes());
    place[4..12].copy_from_slice(&position.0.to_le_bytes());
    place[12..].copy_from_slice(&incarnation.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place);
    hasher.update(padded_payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const HERE: LogPosition = LogPosition(3 << 32 | 4096);

    #[test]
    fn an_empty_entry_does_not_look_like_the_end() {
        let mut bytes = Vec::new();
        encode(&mut bytes, Kind::Entry, HERE, 7, b"");
        assert_eq!(bytes.len(), 8);
        assert_eq!(decode(&bytes, HERE, 7), Decoded::Frame { kind: Kind::Entry, payload_bytes: 0 });
        assert_eq!(decode(&[0; 64], HERE, 7), Decoded::End);
    }

    /// The stored form is frozen: a change here is a new format version of the segment.
    #[test]
    fn frames_are_stored_as_they_always_were() {
        let mut bytes = Vec::new();
        encode(&mut bytes, Kind::Entry, HERE, 7, b"isle");
        assert_eq!(bytes, [4, 0, 0, 16, 58, 209, 82, 177, b'i', b's', b'l', b'e', 0, 0, 0, 0]);
    }

    #[test]
    fn a_note_says_what_was_written() {
        let note = Note { durable: LogPosition(5), previous_end: LogPosition(u64::MAX) };
        let mut bytes = Vec::new();
        encode_note(&mut bytes, HERE, 7, note);
        assert_eq!(bytes.len(), NOTE_BYTES);
        assert_eq!(note_at(&bytes, HERE, 7), Some(note));
        assert_eq!(note_at(&bytes, HERE, 8), None);
        assert_eq!(note_at(&bytes[..20], HERE, 7), None);
    }

    proptest! {
        #[test]
        fn a_frame_reads_back_and_any_flipped_bit_is_seen(
            payload in proptest::collection::vec(any::<u8>(), 0..200), position: u64, incarnation: u64, bit: usize,
        ) {
            let position = LogPosition(position);
            let mut bytes = Vec::new();
            encode(&mut bytes, Kind::Entry, position, incarnation, &payload);
            prop_assert_eq!(bytes.len() % 8, 0);
            prop_assert_eq!(
                decode(&bytes, position, incarnation),
                Decoded::Frame { kind: Kind::Entry, payload_bytes: payload.len() }
            );
            prop_assert_eq!(&bytes[8..8 + payload.len()], &payload[..]);
            for cut in 0..bytes.len() {
                prop_assert!(matches!(decode(&bytes[..cut], position, incarnation), Decoded::Incomplete(_)));
            }
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let judged = decode(&bytes, position, incarnation);
            prop_assert!(!matches!(judged, Decoded::Frame { .. } | Decoded::End), "{judged:?}");
        }

        #[test]
        fn a_frame_is_unsound_anywhere_else(position: u64, elsewhere: u64, incarnation: u64, other: u64) {
            let mut bytes = Vec::new();
            encode(&mut bytes, Kind::Entry, LogPosition(position), incarnation, b"payload");
            if elsewhere != position {
                prop_assert_eq!(decode(&bytes, LogPosition(elsewhere), incarnation), Decoded::Bad);
            }
            if other != incarnation {
                prop_assert_eq!(decode(&bytes, LogPosition(position), other), Decoded::Bad);
            }
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), position: u64) {
            let _ = decode(&bytes, LogPosition(position), 1);
            let _ = note_at(&bytes, LogPosition(position), 1);
        }
    }
}
