//! One value of each stored format, and the bytes it had in version 1: `tests/fixtures/v1`.
//!
//! The bytes are never written anew. A format that must change gets a new tag, a feature level and fixtures of its own.

use std::fmt::Debug;
use std::path::PathBuf;

use isle_model::{
    Body, Counter, Covered, Epoch, Fate, Field, FieldKey, Generation, Register, Sibling, Statement, Total, Value, Write,
};

use super::*;
use isle_model::Row;

const A: Incarnation = Incarnation(0x0a0a_0a0a_0a0a_0a0a);
const B: Incarnation = Incarnation(0xb0b0_b0b0_b0b0_b0b0);
const KEYSPACE: KeyspaceId = KeyspaceId(7);
const SHARD: ShardId = ShardId(2);
const KEY: Bytes = Bytes::from_static(b"user/42\0\xff");

fn east() -> Region {
    Region::new("us-east-1")
}

fn west() -> Region {
    Region::new("eu-west-1")
}

fn sibling(incarnation: Incarnation, seq: u64, value: Value) -> Sibling {
    Sibling {
        dot: Dot::new(incarnation, seq),
        epoch: Epoch(3),
        generation: Generation(300),
        hlc: Hlc(0x0190_0000_0000_0001),
        value,
    }
}

fn register(siblings: Vec<Sibling>) -> Field {
    let seen = Vector::from_entries([(A, 130), (B, 9)]);
    Field::Register(Register::from_parts(siblings, seen, Generation(301), Epoch(4)))
}

fn record() -> Record {
    let counter = Counter::from_parts(
        vec![(A, Total { seq: 12, start: 10, total: -5 }), (B, Total { seq: 7, start: 1, total: i64::MAX })],
        vec![(B, Covered { seq: 6, total: i64::MIN })],
        Vector::of(Dot::new(A, 12)),
    );
    let fields = vec![
        (FieldKey::value(""), register(vec![sibling(A, 130, Value::string("né")), sibling(B, 9, Value::i64(-1))])),
        (FieldKey::value("deleted"), register(vec![])),
        (FieldKey::value("f64"), register(vec![sibling(A, 1, Value::f64(-0.5))])),
        (FieldKey::value("flag"), register(vec![sibling(A, 2, Value::bool(true))])),
        (FieldKey::value("json"), register(vec![sibling(A, 3, Value::json("{\"a\":1}"))])),
        (FieldKey::value("raw"), register(vec![sibling(A, 4, Value::bytes(vec![0, 255]))])),
        (FieldKey::counter("visits"), Field::Counter(counter)),
        (FieldKey::home(), register(vec![sibling(A, 130, Value::string("us-east-1"))])),
    ];
    Record::from_fields(fields).unwrap()
}

fn ledger_entry() -> LedgerEntry {
    LedgerEntry {
        keyspace: KEYSPACE,
        key: KEY,
        field: FieldKey::value("name"),
        loser: Dot::new(B, 9),
        value: Some(sibling(B, 9, Value::string("lost"))),
        winner: Some(Dot::new(A, 130)),
        seen_at: Hlc(0x0190_0000_0000_0002),
        seen_in: west(),
        fate: Fate::Lost,
        covered_by: Some(Dot::new(A, 131)),
    }
}

fn open_entry() -> LedgerEntry {
    LedgerEntry { value: None, winner: None, fate: Fate::Open, covered_by: None, ..ledger_entry() }
}

fn superseded_entry() -> LedgerEntry {
    LedgerEntry { field: FieldKey::home(), fate: Fate::Superseded, ..ledger_entry() }
}

fn absorbed() -> Vec<(Region, Vector)> {
    vec![(west(), Vector::from_entries([(B, 9)])), (east(), Vector::from_entries([(A, 130)]))]
}

fn delta(prev: Option<Dot>, body: Body) -> Delta {
    Delta { dot: Dot::new(A, 131), prev, keyspace: KEYSPACE, shard: SHARD, hlc: Hlc(5 << 16), epoch: Epoch(4), body }
}

fn write() -> Delta {
    let body = Write { key: KEY, fields: record(), ledger: vec![ledger_entry(), open_entry()] };
    delta(Some(Dot::new(A, 129)), Body::Write(body))
}

fn statement() -> Delta {
    delta(None, Body::Statement(Statement { absorbed: absorbed() }))
}

fn stated() -> Stated {
    Stated { dot: Some(Dot::new(B, 12)), absorbed: absorbed().into_iter().collect() }
}

fn state_chunk() -> StateChunk {
    StateChunk {
        keyspace: KEYSPACE,
        shard: SHARD,
        start: Bytes::from_static(b"a"),
        end: Some(Bytes::from_static(b"z\0")),
        absorbed: absorbed(),
        records: vec![(KEY, record()), (Bytes::from_static(b"w"), Record::new())],
        ledger: vec![superseded_entry()],
        taken_at: Hlc(6 << 16),
        changes: false,
        last_own: None,
    }
}

fn rows() -> Vec<(Incarnation, Row)> {
    vec![
        (A, Row { region: east(), parent: None, left_at: vec![0, 0, 0, 0] }),
        (B, Row { region: west(), parent: Some(Incarnation(0xbb)), left_at: vec![1, 300, 0, u64::MAX] }),
    ]
}

fn meta() -> Meta {
    meta_where(None)
}

/// `dot` is where a holder's statement stands.
fn meta_where(dot: Option<Dot>) -> Meta {
    let mut tree = IncarnationTree::new();
    for (incarnation, row) in rows() {
        tree.insert(incarnation, row).unwrap();
    }
    let applied: BTreeMap<_, _> = absorbed().into_iter().collect();
    let heard = BTreeMap::from([
        (west(), Stated { dot, absorbed: applied.clone() }),
        (east(), Stated { dot: None, absorbed: BTreeMap::new() }),
    ]);
    let streams = Streams::from_parts(applied, heard, Some(Dot::new(A, 131)));
    Meta {
        position: LogPosition(0x0000_0003_0000_1000),
        tree,
        last_incarnation: Some(A),
        last_seqs: vec![0, 1, 131, 7],
        streams: BTreeMap::from([((KEYSPACE, SHARD), streams), ((KeyspaceId(8), ShardId(0)), Streams::new())]),
        ..Meta::empty(4)
    }
}

fn view_mark() -> ViewMark {
    let (boot_id, mount_id) = ("boot".to_owned(), "mount".to_owned());
    ViewMark { generation: 5, boot_id, mount_id, clean: true, seal: 0, meta: meta() }
}

fn manifest() -> Manifest {
    Manifest { chunks: 3, items: 3_000, ..Manifest::default() }
}

fn manifest_with_rows() -> Manifest {
    Manifest { durable: LogPosition(0x0000_0002_0000_1000), tree: meta().tree, ..manifest() }
}

fn view_mark_with_facts() -> ViewMark {
    let left = Transfers {
        open: BTreeMap::from([(west(), Begun { pin: absorbed(), next: Bytes::new(), heard: None })]),
        shown: Vector::of(Dot::new(B, 12)),
    };
    let meta = Meta {
        hlc_high: Hlc(0x0190_0000_0000_0003),
        expired: [west()].into(),
        transfers: BTreeMap::from([((KEYSPACE, SHARD), left)]),
        ..meta()
    };
    ViewMark { meta, ..view_mark() }
}

fn purging() -> Meta {
    Meta { purging: [(KEYSPACE, SHARD), (KeyspaceId(8), ShardId(0))].into(), ..meta() }
}

fn checkpoint_chunk() -> Vec<(ViewKey, Held)> {
    let entry = ledger_entry();
    let ledger_key = ViewKey::ledger(entry.keyspace, SHARD, &entry.key, entry.loser, &entry.field);
    vec![
        (ViewKey::record(KEYSPACE, SHARD, &KEY), Held::Record(record().into())),
        (ViewKey::record(KEYSPACE, SHARD, b"w"), Held::Record(Record::new().into())),
        (ledger_key, Held::Ledger(entry.into())),
    ]
}

struct Frozen {
    name: &'static str,
    encoded: Bytes,
    /// Whether these bytes are read as the value.
    reads: Box<dyn Fn(Bytes)>,
}

fn frozen<T: Debug + PartialEq + 'static>(
    name: &'static str,
    value: T,
    encode: impl Fn(&T) -> Bytes,
    decode: impl Fn(Bytes) -> Result<T, DecodeError> + 'static,
) -> Frozen {
    let encoded = encode(&value);
    let reads = Box::new(move |bytes| {
        let read = decode(bytes).unwrap_or_else(|error| panic!("{name} of version 1 is not read any more: {error}"));
        assert_eq!(read, value, "{name} of version 1 is read as something else: stored formats are frozen");
    });
    Frozen { name, encoded, reads }
}

fn all() -> Vec<Frozen> {
    let entry = |name, entry| frozen(name, entry, encode_entry, decode_entry);
    let (keyspace, shard) = (KEYSPACE, SHARD);
    vec![
        frozen("delta_write", write(), encode_delta, decode_delta),
        frozen("delta_statement", statement(), encode_delta, decode_delta),
        frozen("record", record(), encode_record, decode_record),
        frozen("record_empty", Record::new(), encode_record, decode_record),
        frozen("ledger_entry_open", open_entry(), encode_ledger_entry, decode_ledger_entry),
        frozen("ledger_entry_superseded", superseded_entry(), encode_ledger_entry, decode_ledger_entry),
        frozen("ledger_entry_lost", ledger_entry(), encode_ledger_entry, decode_ledger_entry),
        frozen("state_chunk", state_chunk(), encode_state_chunk, decode_state_chunk),
        frozen(
            "state_chunk_to_the_end",
            StateChunk { end: None, ..state_chunk() },
            encode_state_chunk,
            decode_state_chunk,
        ),
        entry("entry_rows", Entry::Rows(rows())),
        entry("entry_delta", Entry::Delta(write())),
        entry("entry_forget", Entry::Forget { keyspace, shard, key: KEY }),
        entry("entry_state_chunk", Entry::StateChunk(state_chunk())),
        entry(
            "entry_state_done",
            Entry::StateDone { keyspace, shard, cursors: absorbed(), heard: None, is_empty: false },
        ),
        entry(
            "entry_changes",
            Entry::StateChunk(StateChunk {
                records: vec![(KEY, record())],
                changes: true,
                last_own: Some(Dot::new(A, 129)),
                ..state_chunk()
            }),
        ),
        entry(
            "entry_changes_done",
            Entry::StateDone { keyspace, shard, cursors: absorbed(), heard: Some((west(), stated())), is_empty: true },
        ),
        entry(
            "entry_changes_begun",
            Entry::StateBegun {
                keyspace,
                shard,
                from: west(),
                begun: Begun { pin: absorbed(), next: Bytes::from("m"), heard: Some(stated()) },
            },
        ),
        entry(
            "entry_state_begun",
            Entry::StateBegun {
                keyspace,
                shard,
                from: west(),
                begun: Begun { pin: absorbed(), next: Bytes::new(), heard: None },
            },
        ),
        entry(
            "entry_state_under_way",
            Entry::StateBegun {
                keyspace,
                shard,
                from: west(),
                begun: Begun { pin: absorbed(), next: Bytes::from("m"), heard: None },
            },
        ),
        entry("entry_holder", Entry::Holder { region: west(), expired: true }),
        entry("entry_delta_ahead", Entry::DeltaAhead(write())),
        entry("entry_purge", Entry::Purge { keyspace, shard }),
        frozen("view_mark", view_mark(), encode_view_mark, decode_view_mark),
        frozen("view_mark_facts", view_mark_with_facts(), encode_view_mark, decode_view_mark),
        frozen("checkpoint_header", meta(), encode_checkpoint_header, decode_checkpoint_header),
        frozen(
            "checkpoint_header_heard",
            meta_where(Some(Dot::new(B, 9))),
            encode_checkpoint_header,
            decode_checkpoint_header,
        ),
        frozen("checkpoint_header_purging", purging(), encode_checkpoint_header, decode_checkpoint_header),
        frozen("checkpoint_header_first", Meta::empty(4), encode_checkpoint_header, decode_checkpoint_header),
        frozen("checkpoint_chunk", checkpoint_chunk(), |chunk| encode_chunk(chunk), decode_chunk),
        frozen(
            "view_mark_sealed",
            ViewMark { seal: 300, ..view_mark_with_facts() },
            encode_view_mark,
            decode_view_mark,
        ),
        frozen("checkpoint_manifest", manifest(), encode_checkpoint_manifest, decode_checkpoint_manifest),
        frozen(
            "checkpoint_manifest_rows",
            manifest_with_rows(),
            encode_checkpoint_manifest,
            decode_checkpoint_manifest,
        ),
    ]
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1").join(format!("{name}.bin"))
}

#[test]
fn what_version_1_stored_is_read_as_it_was_meant() {
    for one in all() {
        let stored = std::fs::read(path_of(one.name)).unwrap_or_else(|error| panic!("fixture {}: {error}", one.name));
        (one.reads)(stored.into());
    }
}

#[test]
fn what_is_stored_now_has_the_bytes_of_version_1() {
    for one in all() {
        let stored = std::fs::read(path_of(one.name)).unwrap_or_else(|error| panic!("fixture {}: {error}", one.name));
        assert!(
            one.encoded == stored,
            "{} is encoded otherwise than in version 1. Stored formats are frozen: data on disks and peers of other \
             versions have these bytes. Add a tag under a new feature level; leave the fixture as it is.\n\
             then: {stored:02x?}\n now: {:02x?}",
            one.name,
            &one.encoded[..],
        );
    }
}

#[test]
fn every_fixture_is_of_a_format_that_is_tested() {
    let names: Vec<_> = all().iter().map(|one| path_of(one.name)).collect();
    for file in std::fs::read_dir(path_of("x").parent().unwrap()).unwrap() {
        let path = file.unwrap().path();
        assert!(path.is_dir() || names.contains(&path), "{} is tested by nobody", path.display());
    }
}

/// For a format that is new: `cargo test -p isle-store -- --ignored fixtures_that_are_missing`. It never writes one anew.
#[test]
#[ignore = "writes files"]
fn fixtures_that_are_missing_are_made() {
    for one in all().into_iter().filter(|one| !path_of(one.name).exists()) {
        std::fs::write(path_of(one.name), &one.encoded).unwrap();
    }
}
