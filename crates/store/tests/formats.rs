//! What version 1 left on a disk is opened by every later one; what does not belong where it says is refused, live and in
//! replay.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use isle_model::write::{Writer, plan};
use isle_model::{
    Admission, Body, Delta, Dot, Epoch, Fate, FieldKey, FieldName, Hlc, Incarnation, KeyspaceId, LedgerEntry, Mutation,
    Precondition, Reading, Record, Region, Row, ShardId, Value, Write,
};
use isle_store::disk::{Crash, Disk, MemoryDisk};
use isle_store::log::{CommitLog, LogOptions};
use isle_store::{
    BootIdentity, Entry, OpenError, ReadError, ShardWriter, StateChunk, Store, StoreConfig, ViewPlace, codec,
};

const KS: KeyspaceId = KeyspaceId(1);
const SHARDS: u32 = 4;

struct Node {
    store: Arc<Store>,
    writers: Vec<ShardWriter>,
    clock: u64,
}

fn try_open(region: &str, disk: &MemoryDisk, incarnation: u64) -> Result<Node, OpenError> {
    let config = StoreConfig {
        region: Region::new(region),
        shards: SHARDS,
        segment_bytes: 1 << 16,
        checkpoint_log_bytes: 1 << 16,
        flush_log_bytes: 1 << 16,
        overlay_drain_bytes: 1 << 14,
        view_cache_bytes: 1 << 20,
        ..StoreConfig::default()
    };
    let boot = BootIdentity { boot_id: "boot".to_owned(), mount_id: "mount".to_owned() };
    let disk = Arc::new(disk.clone());
    let (store, writers, _) =
        Store::open(config, disk, ViewPlace::Temporary, boot, Incarnation(incarnation), &mut |_| ())?;
    Ok(Node { store, writers, clock: 1_000 })
}

fn open(region: &str, disk: &MemoryDisk, incarnation: u64) -> Node {
    try_open(region, disk, incarnation).unwrap()
}

impl Node {
    fn mutate(&mut self, key: &str, mutation: Mutation) {
        self.clock += 1;
        let key = Bytes::copy_from_slice(key.as_bytes());
        let shard = ShardId::of(KS, &key, SHARDS);
        let region = self.store.region().clone();
        let mut batch = self.writers[shard.0 as usize].begin();
        let current = batch.newest(KS, &key).unwrap();
        let tree = batch.tree();
        let stamp = batch.stamp(Hlc::from_ms(self.clock), Epoch(0));
        let writer = Writer {
            region: &region,
            home: &region,
            takes_over: false,
            keyspace: KS,
            stamp,
            lineage: tree.shard(shard),
        };
        if let Some(write) = plan(&key, &mutation, &Precondition::None, None, &current, writer).unwrap() {
            batch.write(KS, write, stamp).unwrap();
        }
        let _ = batch.commit().unwrap();
        self.store.sync().unwrap();
    }

    fn put(&mut self, key: &str, value: &str) {
        self.mutate(key, Mutation::Put { value: Value::string(value) });
    }

    fn settle(&self) {
        while self.store.maintain().unwrap() {}
    }

    fn pull(&mut self, from: &Node) {
        self.store.learn_rows(from.store.tree().rows().map(|(i, row)| (i, row.clone()))).unwrap();
        let tail = from.store.tail(Default::default(), usize::MAX).unwrap();
        for item in tail.items.into_iter().filter(|item| item.own) {
            let delta = codec::decode_delta(item.encoded).unwrap();
            let mut batch = self.writers[delta.shard.0 as usize].begin();
            assert_eq!(batch.foreign(from.store.region(), delta).unwrap(), Admission::Apply);
            let _ = batch.commit().unwrap();
        }
        self.store.sync().unwrap();
    }

    fn all(&self) -> BTreeMap<String, String> {
        let page = self.store.scan(KS, b"", None, 1_000, usize::MAX).unwrap();
        let shown = |(key, record): &(Bytes, Arc<Record>)| {
            let reading = Reading::of(record, self.store.tree().shard(ShardId::of(KS, key, SHARDS)));
            let (_, siblings) = reading.values.first()?;
            let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            Some((text(key), text(&siblings[0].value.bytes)))
        };
        page.rows.iter().filter_map(shown).collect()
    }
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/directory")
}

fn load(from: &Path, under: &str, disk: &MemoryDisk) {
    for file in std::fs::read_dir(from).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let name = if under.is_empty() { name.to_owned() } else { format!("{under}/{name}") };
        if path.is_dir() {
            disk.create_dir(&name).unwrap();
            load(&path, &name, disk);
        } else {
            disk.write_atomic(&name, &std::fs::read(&path).unwrap()).unwrap();
        }
    }
}

fn save(disk: &MemoryDisk, under: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in disk.list(under).unwrap() {
        let path = if under.is_empty() { name.clone() } else { format!("{under}/{name}") };
        match disk.read(&path) {
            Ok(bytes) => std::fs::write(to.join(&name), bytes).unwrap(),
            Err(_) => save(disk, &path, &to.join(&name)),
        }
    }
}

/// What the directory of version 1 shows.
fn shown() -> BTreeMap<String, String> {
    let before = (0..40).map(|n| (format!("key-{n}"), format!("value {}", n + 1560)));
    let foreign = (0..10).map(|n| (format!("foreign-{n}"), format!("b{n}")));
    let after = (0..5).map(|n| (format!("key-{n}"), format!("after {n}")));
    let mut out: BTreeMap<_, _> = before.chain(foreign).chain(after).collect();
    out.remove("key-7");
    out
}

/// As the directory was made.
const DIGEST: u128 = 83_355_246_512_806_309_667_678_278_492_531_993_152;

#[test]
fn a_data_directory_of_version_1_opens_with_all_that_it_held() {
    let disk = MemoryDisk::new();
    load(&directory(), "", &disk);
    let mut node = open("a", &disk, 9);
    let mut found = node.all();
    // A conflict: which of the two is shown follows from their stamps.
    assert_eq!(found.remove("both").as_deref(), Some("of b"));
    assert_eq!(found, shown(), "stored formats are frozen: what version 1 wrote must be read as it was");
    let ledger = node.store.ledger(KS, 10).unwrap();
    assert_eq!(ledger.iter().map(|e| (&e.key[..], e.fate)).collect::<Vec<_>>(), [(&b"both"[..], Fate::Open)]);
    assert_eq!(ledger[0].value.as_ref().map(|v| &v.value.bytes[..]), Some(&b"of a"[..]));
    let counter = node.store.get(KS, b"visits").unwrap().unwrap();
    assert_eq!(counter.counter(&FieldKey::counter("n")).map(|c| c.value()), Some(8));
    let tree = node.store.tree();
    let regions: Vec<_> = tree.rows().map(|(i, row)| (i.0, row.region.to_string(), row.parent.map(|p| p.0))).collect();
    let expected = [(1, "a", None), (2, "b", None), (9, "a", Some(1))];
    assert_eq!(regions, expected.map(|(i, region, parent)| (i, region.to_owned(), parent)));
    node.settle();
    assert_eq!(node.store.stats().keyspaces[0].digest, Some(DIGEST));
    assert!(node.store.stats().checkpoint_position > Default::default(), "the checkpoint was read");
    node.put("key-7", "again");
    assert_eq!(node.all().get("key-7").map(String::as_str), Some("again"));
}

/// Never writes it anew.
#[test]
#[ignore = "writes files"]
fn the_data_directory_is_made_if_it_is_missing() {
    if directory().exists() {
        return;
    }
    let (disk_a, disk_b) = (MemoryDisk::new(), MemoryDisk::new());
    let (mut a, mut b) = (open("a", &disk_a, 1), open("b", &disk_b, 2));
    let increment = |amount| Mutation::Increment { field: FieldName::new("n"), amount };
    for n in 0..10 {
        b.put(&format!("foreign-{n}"), &format!("b{n}"));
    }
    a.put("both", "of a");
    b.put("both", "of b");
    b.mutate("visits", increment(3));
    a.pull(&b);
    a.mutate("visits", increment(5));
    for n in 0..1600 {
        a.put(&format!("key-{}", n % 40), &format!("value {n}"));
    }
    a.settle();
    assert!(a.store.stats().checkpoint_position > Default::default(), "a checkpoint was due");
    a.store.trim(a.store.durable()).unwrap();
    for n in 0..5 {
        a.put(&format!("key-{n}"), &format!("after {n}"));
    }
    a.mutate("key-7", Mutation::Delete);
    println!("digest {:?}", a.store.stats().keyspaces[0].digest);
    save(&disk_a.crash(Crash::KeepSynced, &mut |_| 0), "", &directory());
}

/// A key that is not of this shard.
fn stranger(shard: ShardId) -> Bytes {
    let keys = (0u32..).map(|n| Bytes::from(format!("k{n}")));
    keys.into_iter().find(|key| ShardId::of(KS, key, SHARDS) != shard).unwrap()
}

fn native(shard: ShardId) -> Bytes {
    let keys = (0u32..).map(|n| Bytes::from(format!("k{n}")));
    keys.into_iter().find(|key| ShardId::of(KS, key, SHARDS) == shard).unwrap()
}

fn foreign(shard: ShardId, key: Bytes, ledger: Vec<LedgerEntry>) -> Delta {
    Delta {
        dot: Dot::new(Incarnation(2), 1),
        prev: None,
        keyspace: KS,
        shard,
        hlc: Hlc::from_ms(5),
        epoch: Epoch(0),
        body: Body::Write(Write { key, fields: Record::new(), ledger }),
    }
}

fn entry_of(keyspace: KeyspaceId, key: Bytes) -> LedgerEntry {
    LedgerEntry {
        keyspace,
        key,
        field: FieldKey::value(""),
        loser: Dot::new(Incarnation(2), 1),
        value: None,
        winner: None,
        seen_at: Hlc(1),
        seen_in: Region::new("b"),
        fate: Fate::Open,
        covered_by: None,
    }
}

fn with_row_of_b(disk: &MemoryDisk) -> Node {
    let node = open("a", disk, 1);
    let row = Row { region: Region::new("b"), parent: None, left_at: Vec::new() };
    node.store.learn_rows([(Incarnation(2), row)]).unwrap();
    node
}

#[test]
fn a_delta_of_another_shard_is_refused_and_leaves_the_batch_as_it_was() {
    let mut node = with_row_of_b(&MemoryDisk::new());
    let shard = ShardId(1);
    let (ours, theirs) = (native(shard), stranger(shard));
    let misplaced = [
        foreign(shard, theirs.clone(), vec![]),
        foreign(ShardId(2), ours.clone(), vec![]),
        foreign(ShardId(SHARDS), ours.clone(), vec![]),
        foreign(ShardId(u32::MAX), ours.clone(), vec![]),
        foreign(shard, ours.clone(), vec![entry_of(KS, theirs)]),
        foreign(shard, ours.clone(), vec![entry_of(KeyspaceId(2), ours.clone())]),
    ];
    let mut batch = node.writers[1].begin();
    for delta in misplaced {
        let refused = batch.foreign(&Region::new("b"), delta.clone());
        assert!(matches!(refused, Err(ReadError::Misplaced { .. })), "{delta:?}: {refused:?}");
    }
    assert!(batch.is_empty());
    let sound = foreign(shard, ours.clone(), vec![entry_of(KS, ours)]);
    assert_eq!(batch.foreign(&Region::new("b"), sound).unwrap(), Admission::Apply);
    assert_eq!(batch.len(), 1);
}

#[test]
fn a_state_that_holds_keys_of_elsewhere_is_refused() {
    let mut node = with_row_of_b(&MemoryDisk::new());
    let shard = ShardId(1);
    let (ours, theirs) = (native(shard), stranger(shard));
    let chunk = |shard, key: &Bytes, start: &Bytes, end| StateChunk {
        keyspace: KS,
        shard,
        start: start.clone(),
        end,
        absorbed: Vec::new(),
        records: vec![(key.clone(), Record::new())],
        ledger: Vec::new(),
        taken_at: Hlc(0),
        changes: false,
        last_own: None,
    };
    let all = Bytes::new();
    let after = Bytes::from([&ours[..], b"\0"].concat());
    let ledger_of = |entry| StateChunk { ledger: vec![entry], ..chunk(shard, &ours, &all, None) };
    let misplaced = [
        chunk(shard, &theirs, &all, None),
        chunk(ShardId(2), &ours, &all, None),
        chunk(shard, &ours, &after, None),
        chunk(shard, &ours, &all, Some(ours.clone())),
        ledger_of(entry_of(KS, theirs.clone())),
        ledger_of(entry_of(KeyspaceId(2), ours.clone())),
    ];
    let mut batch = node.writers[1].begin();
    for chunk in misplaced {
        let refused = batch.state_chunk(chunk.clone(), Hlc(7));
        assert!(matches!(refused, Err(ReadError::Misplaced { .. })), "{chunk:?}: {refused:?}");
    }
    assert!(batch.is_empty());
    batch.state_chunk(chunk(shard, &ours, &ours, Some(after)), Hlc(7)).unwrap();
    assert_eq!(batch.len(), 1);
}

/// Opens a store over a log that holds one entry which no store would write.
fn replay_of(entry: &Entry) -> Result<Node, OpenError> {
    let disk = MemoryDisk::new();
    drop(with_row_of_b(&disk));
    let options = LogOptions { segment_bytes: 1 << 16, ..LogOptions::new(3) };
    let visit = |_| Ok::<(), std::convert::Infallible>(());
    let (log, _) = CommitLog::open(Arc::new(disk.clone()), &options, visit, &mut |_| ()).unwrap();
    log.append(&[codec::encode_entry(entry)]).unwrap();
    log.sync().unwrap();
    drop(log);
    try_open("a", &disk, 4)
}

#[test]
fn a_log_entry_of_another_shard_stops_the_start_and_says_where() {
    let key = native(ShardId(1));
    assert!(replay_of(&Entry::Delta(foreign(ShardId(1), key.clone(), vec![]))).is_ok());
    for shard in [ShardId(SHARDS), ShardId(u32::MAX)] {
        let entries = [
            Entry::Delta(foreign(shard, key.clone(), vec![])),
            Entry::Forget { keyspace: KS, shard, key: key.clone() },
            Entry::StateDone { keyspace: KS, shard, cursors: Vec::new(), heard: None, is_empty: false },
            Entry::Purge { keyspace: KS, shard },
        ];
        for entry in entries {
            let error = replay_of(&entry).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(&format!("is of shard {}", shard.0)), "{entry:?}: {error}");
        }
    }
    let error = replay_of(&Entry::Delta(foreign(ShardId(2), key, vec![]))).err().unwrap().to_string();
    assert!(error.contains("does not belong"), "{error}");
}
