//! Decoders get whatever bytes a damaged disk or a peer gone wrong may hold. They answer with an error or a sound value: one
//! that is encoded and decoded again as itself.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// One stroke of damage.
#[derive(Clone, Debug)]
enum Damage {
    Flip {
        at: Index,
        bits: u8,
    },
    Set {
        at: Index,
        to: u8,
    },
    Cut {
        at: Index,
    },
    Insert {
        at: Index,
        bytes: Vec<u8>,
    },
    /// A part comes twice: with luck a whole field.
    Repeat {
        from: Index,
        to: Index,
    },
    Remove {
        from: Index,
        to: Index,
    },
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 1..=u8::MAX).prop_map(|(at, bits)| Damage::Flip { at, bits }),
        // Bytes that mean much: zeros, empty lengths, long varints, low tags.
        (at(), prop_oneof![Just(0), Just(0x7f), Just(0x80), Just(0xff), 0..0x50u8])
            .prop_map(|(at, to)| Damage::Set { at, to }),
        at().prop_map(|at| Damage::Cut { at }),
        (at(), vec(any::<u8>(), 1..6)).prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
        (at(), at()).prop_map(|(from, to)| Damage::Repeat { from, to }),
        (at(), at()).prop_map(|(from, to)| Damage::Remove { from, to }),
    ]
}

fn range(from: &Index, to: &Index, len: usize) -> std::ops::Range<usize> {
    let (a, b) = (from.index(len), to.index(len));
    a.min(b)..a.max(b)
}

impl Damage {
    fn strike(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        if len == 0 {
            return;
        }
        match self {
            Damage::Flip { at, bits } => bytes[at.index(len)] ^= bits,
            Damage::Set { at, to } => bytes[at.index(len)] = *to,
            Damage::Cut { at } => bytes.truncate(at.index(len)),
            Damage::Insert { at, bytes: more } => {
                let at = at.index(len);
                bytes.splice(at..at, more.iter().copied());
            }
            Damage::Repeat { from, to } => {
                let part = bytes[range(from, to, len)].to_vec();
                let at = range(from, to, len).end;
                bytes.splice(at..at, part);
            }
            Damage::Remove { from, to } => {
                bytes.drain(range(from, to, len));
            }
        }
    }
}

/// Sound bytes after some damage; now and then, bytes that never were sound.
fn damaged(sound: impl Strategy<Value = Bytes>) -> impl Strategy<Value = Bytes> {
    let struck = (sound, vec(damage(), 0..4)).prop_map(|(sound, strokes)| {
        let mut bytes = sound.to_vec();
        strokes.iter().for_each(|stroke| stroke.strike(&mut bytes));
        Bytes::from(bytes)
    });
    prop_oneof![4 => struck, 1 => vec(any::<u8>(), 0..64).prop_map(Bytes::from)]
}

fn is_stable<T: Debug + PartialEq>(
    bytes: Bytes,
    decode: impl Fn(Bytes) -> Result<T, DecodeError>,
    encode: impl Fn(&T) -> Bytes,
) {
    if let Ok(value) = decode(bytes) {
        assert_eq!(decode(encode(&value)).unwrap(), value);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn deltas(bytes in damaged(arbitrary::delta().prop_map(|delta| encode_delta(&delta)))) {
        is_stable(bytes.clone(), decode_delta, encode_delta);
        let head = delta_head(bytes.clone());
        if let Ok(delta) = decode_delta(bytes) {
            // A head is all that a relay looks at, so it must never name another delta.
            let told = |head: DeltaHead| DeltaHead { is_statement: false, ..head };
            prop_assert_eq!(told(head.unwrap()), told(head_of(&delta)));
        }
    }

    #[test]
    fn records(bytes in damaged(arbitrary::record().prop_map(|record| encode_record(&record)))) {
        is_stable(bytes, decode_record, encode_record);
    }

    #[test]
    fn ledger_entries(bytes in damaged(arbitrary::ledger_entry().prop_map(|entry| encode_ledger_entry(&entry)))) {
        is_stable(bytes, decode_ledger_entry, encode_ledger_entry);
    }

    #[test]
    fn state_chunks(bytes in damaged(arbitrary::state_chunk().prop_map(|chunk| encode_state_chunk(&chunk)))) {
        is_stable(bytes, decode_state_chunk, encode_state_chunk);
    }

    #[test]
    fn log_entries(bytes in damaged(arbitrary::entry().prop_map(|entry| encode_entry(&entry)))) {
        let _ = delta_of_entry(&bytes);
        is_stable(bytes, decode_entry, encode_entry);
    }

    #[test]
    fn view_marks(bytes in damaged(arbitrary::view_mark().prop_map(|mark| encode_view_mark(&mark)))) {
        is_stable(bytes, decode_view_mark, encode_view_mark);
    }

    #[test]
    fn checkpoint_headers(bytes in damaged(arbitrary::meta().prop_map(|meta| encode_checkpoint_header(&meta)))) {
        is_stable(bytes, decode_checkpoint_header, encode_checkpoint_header);
    }

    #[test]
    fn checkpoint_chunks(bytes in damaged(arbitrary::checkpoint_chunk().prop_map(|chunk| encode_chunk(&chunk)))) {
        is_stable(bytes, decode_chunk, |chunk: &Vec<_>| encode_chunk(chunk));
    }

    #[test]
    fn checkpoint_manifests(bytes in damaged(arbitrary::manifest().prop_map(|of| encode_checkpoint_manifest(&of)))) {
        is_stable(bytes, decode_checkpoint_manifest, encode_checkpoint_manifest);
    }
}

#[test]
fn a_stream_of_a_shard_that_the_meta_does_not_count_is_refused() {
    let mut meta = Meta::empty(2);
    meta.streams.insert((KeyspaceId(1), ShardId(1)), Streams::new());
    assert!(decode_checkpoint_header(encode_checkpoint_header(&meta)).is_ok());
    meta.streams.insert((KeyspaceId(1), ShardId(2)), Streams::new());
    assert!(decode_checkpoint_header(encode_checkpoint_header(&meta)).is_err());
}

#[test]
fn a_range_may_end_just_after_the_longest_key_and_no_further() {
    let chunk = |len: usize| s::StateChunk { end: Some(vec![7; len].into()), ..Default::default() };
    assert!(to_state_chunk(chunk(KEY_BYTES_MAX + 1)).is_ok());
    assert!(to_state_chunk(chunk(KEY_BYTES_MAX + 2)).is_err());
}

#[test]
fn a_checkpoint_item_under_a_key_of_the_other_tree_is_refused() {
    let key = ViewKey::record(KeyspaceId(1), ShardId(0), b"k");
    let swapped = ViewKey::from_tree(LEDGER, key.in_tree());
    assert!(decode_chunk(encode_chunk(&[(key, Held::Record(Record::new().into()))])).is_ok());
    assert!(decode_chunk(encode_chunk(&[(swapped, Held::Record(Record::new().into()))])).is_err());
}
