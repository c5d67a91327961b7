//! What is encoded comes back, whatever it is.

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn deltas_and_their_heads(delta in arbitrary::delta()) {
        let encoded = encode_delta(&delta);
        prop_assert_eq!(delta_head(encoded.clone()).unwrap(), head_of(&delta));
        prop_assert_eq!(decode_delta(encoded).unwrap(), delta);
    }

    #[test]
    fn records(record in arbitrary::record()) {
        prop_assert_eq!(decode_record(encode_record(&record)).unwrap(), record);
    }

    /// What is written most has an encoder of its own.
    #[test]
    fn the_shorter_way_gives_the_bytes_of_the_generated_code(delta in arbitrary::delta(), record in arbitrary::record()) {
        let generated = convert::delta(&delta);
        prop_assert_eq!(encode_delta(&delta), bytes_of(&generated));
        prop_assert_eq!(encode_record(&record), bytes_of(&convert::record(&record)));
        let room = encode_record_and_room(&record, 4);
        prop_assert_eq!(room.split_last_chunk().unwrap(), (&encode_record(&record)[..], &[0; 4]));
        let entries = [
            (Entry::Delta(delta.clone()), s::log_entry::Entry::Delta(generated.clone())),
            (Entry::DeltaAhead(delta), s::log_entry::Entry::DeltaAhead(generated)),
        ];
        for (entry, stored) in entries {
            prop_assert_eq!(encode_entry(&entry), bytes_of(&s::LogEntry { entry: Some(stored) }));
        }
    }

    #[test]
    fn ledger_entries(entry in arbitrary::ledger_entry()) {
        prop_assert_eq!(decode_ledger_entry(encode_ledger_entry(&entry)).unwrap(), entry);
    }

    #[test]
    fn state_chunks(chunk in arbitrary::state_chunk()) {
        prop_assert_eq!(decode_state_chunk(encode_state_chunk(&chunk)).unwrap(), chunk);
    }

    #[test]
    fn log_entries_and_the_deltas_in_them(entry in arbitrary::entry()) {
        let encoded = encode_entry(&entry);
        let inside = delta_of_entry(&encoded).unwrap();
        match &entry {
            Entry::Delta(delta) | Entry::DeltaAhead(delta) => prop_assert_eq!(inside, Some((head_of(delta), encode_delta(delta)))),
            _ => prop_assert_eq!(inside, None),
        }
        prop_assert_eq!(decode_entry(encoded).unwrap(), entry);
    }

    #[test]
    fn view_marks(mark in arbitrary::view_mark()) {
        prop_assert_eq!(decode_view_mark(encode_view_mark(&mark)).unwrap(), mark);
    }

    #[test]
    fn checkpoints(meta in arbitrary::meta(), chunk in arbitrary::checkpoint_chunk(), of in arbitrary::manifest()) {
        prop_assert_eq!(decode_checkpoint_header(encode_checkpoint_header(&meta)).unwrap(), meta);
        prop_assert_eq!(decode_chunk(encode_chunk(&chunk)).unwrap(), chunk);
        prop_assert_eq!(decode_checkpoint_manifest(encode_checkpoint_manifest(&of)).unwrap(), of);
    }
}
