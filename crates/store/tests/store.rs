//! A store as its node uses it: what is durable survives, what is not is not seen, and what was there comes back.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use isle_model::write::{Writer, plan};
use isle_model::{
    Admission, Epoch, Hlc, Incarnation, KeyspaceId, Mutation, Precondition, Reading, Region, ShardId, Value, Vector,
};
use isle_store::codec;
use isle_store::disk::{Crash, Disk, MemoryDisk, RealDisk};
use isle_store::{BootIdentity, OpenError, ShardWriter, Store, StoreConfig, Unsynced, ViewPlace};

const KS: KeyspaceId = KeyspaceId(1);

struct Node {
    store: Arc<Store>,
    writers: Vec<ShardWriter>,
    clock: u64,
}

fn config(region: &str) -> StoreConfig {
    StoreConfig {
        region: Region::new(region),
        segment_bytes: 1 << 16,
        overlay_drain_bytes: 1 << 14,
        overlay_bytes_max: 1 << 22,
        checkpoint_log_bytes: 1 << 17,
        flush_log_bytes: 1 << 16,
        view_cache_bytes: 1 << 20,
        ..StoreConfig::default()
    }
}

fn boot(id: &str) -> BootIdentity {
    BootIdentity { boot_id: id.to_owned(), mount_id: "1".to_owned() }
}

impl Node {
    fn open(region: &str, disk: &MemoryDisk, incarnation: u64) -> Node {
        Node::try_open(config(region), Arc::new(disk.clone()), ViewPlace::Temporary, incarnation, "boot").unwrap()
    }

    fn try_open(
        config: StoreConfig,
        disk: Arc<dyn Disk>,
        place: ViewPlace,
        incarnation: u64,
        boot_id: &str,
    ) -> Result<Node, OpenError> {
        let (store, writers, _) =
            Store::open(config, disk, place, boot(boot_id), Incarnation(incarnation), &mut |_| ())?;
        Ok(Node { store, writers, clock: 1_000 })
    }

    fn mutate(&mut self, key: &[u8], mutation: Mutation) -> Unsynced {
        self.clock += 1;
        let key = Bytes::copy_from_slice(key);
        let shard = ShardId::of(KS, &key, self.store.config().shards);
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
        batch.commit().unwrap()
    }

    fn put(&mut self, key: &[u8], value: &str) -> Unsynced {
        self.mutate(key, Mutation::Put { value: Value::string(value) })
    }

    fn get(&self, key: &[u8]) -> Option<String> {
        let record = self.store.get(KS, key).unwrap()?;
        let shard = ShardId::of(KS, key, self.store.config().shards);
        let reading = Reading::of(&record, self.store.tree().shard(shard));
        let (_, siblings) = reading.values.first()?;
        Some(String::from_utf8(siblings[0].value.bytes.to_vec()).unwrap())
    }

    fn all(&self) -> BTreeMap<Bytes, String> {
        let mut out = BTreeMap::new();
        let mut start = Bytes::new();
        // However large the pages are and what is read ahead for them, together they hold the same.
        let mut sizes = [usize::MAX, 1, 300].into_iter().cycle();
        loop {
            let bytes_max = sizes.next().unwrap();
            let page = self.store.scan(KS, &start, None, 7, bytes_max).unwrap();
            out.extend(page.rows.iter().map(|(key, _)| (key.clone(), self.get(key).unwrap_or_default())));
            match page.next {
                Some(next) => start = next,
                None => return out,
            }
        }
    }

    fn settle(&self) {
        while self.store.maintain().unwrap() {}
    }

    /// Pulls what another node's log has of its own stream.
    fn pull(&mut self, from: &Node) {
        let origin = from.store.region().clone();
        self.store.learn_rows(from.store.tree().rows().map(|(i, row)| (i, row.clone()))).unwrap();
        let mut after = Default::default();
        loop {
            let tail = from.store.tail(after, 1 << 20).unwrap();
            if tail.items.is_empty() && tail.upto == after {
                break;
            }
            after = tail.upto;
            for item in tail.items.into_iter().filter(|item| item.own) {
                let delta = codec::decode_delta(item.encoded).unwrap();
                let mut batch = self.writers[delta.shard.0 as usize].begin();
                let admission = batch.foreign(&origin, delta).unwrap();
                assert!(!matches!(admission, Admission::Gap { .. }), "a log in order has no gaps");
                let _ = batch.commit().unwrap();
            }
        }
        self.store.sync().unwrap();
    }

    fn digest(&self) -> (u64, u128) {
        self.settle();
        let stats = self.store.stats();
        stats.keyspaces.first().map_or((0, 0), |k| (k.records, k.digest.unwrap()))
    }
}

/// Says where two maps differ, not all that they hold.
fn assert_same(found: &BTreeMap<Bytes, String>, expected: &BTreeMap<Bytes, String>) {
    let differs = |(key, value): &(&Bytes, &String)| expected.get(*key) != Some(*value);
    let wrong: Vec<_> = found.iter().filter(differs).take(3).map(|(k, v)| (k, v, expected.get(k))).collect();
    assert!(wrong.is_empty() && found.len() == expected.len(), "{} of {} rows; {wrong:?}", found.len(), expected.len());
}

#[test]
fn readers_see_a_write_only_after_its_fsync() {
    let disk = MemoryDisk::new();
    let mut node = Node::open("a", &disk, 1);
    let unsynced = node.put(b"k", "v");
    assert_eq!(node.get(b"k"), None);
    assert!(node.store.durable() < unsynced.end);
    assert!(node.store.sync().unwrap() >= unsynced.end);
    assert_eq!(node.get(b"k").as_deref(), Some("v"));
}

#[test]
fn synced_writes_survive_any_crash_and_their_dots_are_never_issued_again() {
    for seed in 0..40u64 {
        let mut rng = Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut disk = MemoryDisk::new();
        let mut expected: BTreeMap<Bytes, String> = BTreeMap::new();
        let mut dots = std::collections::BTreeSet::new();
        for incarnation in 1..6 {
            let mut node = Node::open("a", &disk, incarnation);
            assert_eq!(node.all(), expected, "seed {seed}, start {incarnation}");
            for n in 0..rng.below(300) {
                let key = format!("k{}", rng.below(40));
                let value = format!("{incarnation}.{n}");
                let shard = ShardId::of(KS, key.as_bytes(), 4);
                let dot = node.writers[shard.0 as usize].begin().stamp(Hlc(0), Epoch(0)).dot;
                assert!(dots.insert((shard, dot)), "seed {seed}: {dot} was issued before");
                let _ = node.put(key.as_bytes(), &value);
                node.store.sync().unwrap();
                expected.insert(key.into(), value);
                if rng.below(10) == 0 {
                    node.store.maintain().unwrap();
                }
            }
            for n in 0..rng.below(5) {
                // Not synced: it may or may not be there, so it is written to a key of its own.
                let _ = node.put(format!("unsynced{n}").as_bytes(), "?");
            }
            disk = disk.crash(Crash::KeepSynced, &mut |n| rng.below(n));
        }
    }
}

#[test]
fn checkpoints_let_the_log_go_and_restore_what_it_held() {
    let mut disk = MemoryDisk::new();
    let mut expected = BTreeMap::new();
    {
        let mut node = Node::open("a", &disk, 1);
        for n in 0..6_000 {
            let (key, value) = (format!("key-{}", n % 500), format!("value {n} {}", "x".repeat(50)));
            let _ = node.put(key.as_bytes(), &value);
            expected.insert(Bytes::from(key), value);
            if n % 50 == 0 {
                node.store.sync().unwrap();
                node.store.maintain().unwrap();
            }
        }
        node.store.sync().unwrap();
        node.settle();
        let stats = node.store.stats();
        assert!(stats.checkpoint_position > Default::default(), "a checkpoint was due");
        let before = node.store.log_bytes();
        node.store.trim(node.store.durable()).unwrap();
        assert!(node.store.log_bytes() < before, "the log before the checkpoint goes");
        assert_same(&node.all(), &expected);
        disk = disk.crash(Crash::KeepSynced, &mut |_| 0);
    }
    let mut node = Node::open("a", &disk, 2);
    assert_same(&node.all(), &expected);
    let _ = node.put(b"after", "v");
    node.store.sync().unwrap();
    assert_eq!(node.get(b"after").as_deref(), Some("v"));
}

#[test]
fn two_stores_that_pull_from_each_other_agree() {
    let (disk_a, disk_b) = (MemoryDisk::new(), MemoryDisk::new());
    let (mut a, mut b) = (Node::open("a", &disk_a, 1), Node::open("b", &disk_b, 2));
    for n in 0..200 {
        let _ = a.put(format!("k{}", n % 50).as_bytes(), &format!("a{n}"));
        let _ = b.put(format!("k{}", n % 70).as_bytes(), &format!("b{n}"));
    }
    let _ = b.mutate(b"n", Mutation::Increment { field: isle_model::FieldName::new("n"), amount: 5 });
    a.store.sync().unwrap();
    b.store.sync().unwrap();
    a.pull(&b);
    b.pull(&a);
    assert_eq!(a.digest(), b.digest());
    assert_eq!(a.all().keys().collect::<Vec<_>>(), b.all().keys().collect::<Vec<_>>());
    // Fifty keys were written at both: each has a loser, the same one in both regions.
    assert_eq!(a.store.stats().conflicts_open, 50);
    assert_eq!(b.store.stats().conflicts_open, 50);
    let open = |node: &Node| {
        let entries = node.store.ledger(KS, 1000).unwrap();
        entries.iter().filter(|e| e.fate == isle_model::Fate::Open).map(|e| e.loser).collect::<Vec<_>>()
    };
    assert_eq!(open(&a), open(&b));
    // A write over a conflict closes it, and says that the loser was lost.
    let _ = a.put(b"k2", "settled");
    a.store.sync().unwrap();
    b.pull(&a);
    assert_eq!(b.store.stats().conflicts_open, 49);
    let lost = b.store.ledger(KS, 1000).unwrap().into_iter().filter(|e| e.fate == isle_model::Fate::Lost).count();
    assert_eq!(lost, 1);
    assert_eq!(a.digest(), b.digest());
}

#[test]
fn the_digest_after_a_restart_is_the_digest_before() {
    let mut disk = MemoryDisk::new();
    let before = {
        let mut node = Node::open("a", &disk, 1);
        for n in 0..3000 {
            let _ = node.put(format!("k{n}").as_bytes(), "v");
        }
        node.store.sync().unwrap();
        let digest = node.digest();
        disk = disk.crash(Crash::KeepSynced, &mut |_| 0);
        digest
    };
    assert_eq!(before.0, 3000);
    let mut node = Node::open("a", &disk, 2);
    assert_eq!(node.store.stats().keyspaces.iter().filter_map(|k| k.digest).next(), None, "unknown until counted");
    // Writes during the count are counted once, wherever the count has come to.
    for n in 0..3000 {
        if n % 100 == 0 {
            node.store.maintain().unwrap();
        }
        let _ = node.put(format!("k{n}").as_bytes(), "w");
        node.store.sync().unwrap();
    }
    let (records, digest) = node.digest();
    assert_eq!(records, 3000);
    disk = disk.crash(Crash::KeepSynced, &mut |_| 0);
    assert_eq!(Node::open("a", &disk, 3).digest(), (records, digest));
}

#[test]
fn a_full_disk_refuses_writes_and_takes_them_again_when_there_is_space() {
    let disk = MemoryDisk::new();
    let mut node = Node::open("a", &disk, 1);
    disk.set_capacity(Some(300 << 10));
    let mut acked = 0;
    let refused = loop {
        let key = format!("k{acked}");
        let shard = ShardId::of(KS, key.as_bytes(), 4);
        let region = node.store.region().clone();
        let mut batch = node.writers[shard.0 as usize].begin();
        let tree = batch.tree();
        let stamp = batch.stamp(Hlc::from_ms(1), Epoch(0));
        let writer = Writer {
            region: &region,
            home: &region,
            takes_over: false,
            keyspace: KS,
            stamp,
            lineage: tree.shard(shard),
        };
        let mutation = Mutation::Put { value: Value::string(&"x".repeat(1000)) };
        let current = batch.newest(KS, key.as_bytes()).unwrap();
        let write = plan(&key.into(), &mutation, &Precondition::None, None, &current, writer).unwrap().unwrap();
        batch.write(KS, write, stamp).unwrap();
        match batch.commit() {
            Ok(_) => acked += 1,
            Err(error) => break error,
        }
        node.store.sync().unwrap();
        assert!(acked < 10_000, "the disk was never full");
    };
    assert!(matches!(refused, isle_store::CommitError::Append(isle_store::AppendError::DiskFull)), "{refused}");
    assert_eq!(node.all().len(), acked, "reads go on");
    disk.set_capacity(None);
    let _ = node.put(b"again", "v");
    node.store.sync().unwrap();
    assert_eq!(node.get(b"again").as_deref(), Some("v"));
}

#[test]
fn a_failed_fsync_stops_writes_for_good_and_shows_nothing() {
    let disk = MemoryDisk::new();
    let mut node = Node::open("a", &disk, 1);
    disk.fail_syncs(true);
    let _ = node.put(b"k", "v");
    assert!(node.store.sync().is_err());
    disk.fail_syncs(false);
    assert!(node.store.sync().is_err(), "a failed fsync is never retried");
    assert!(node.store.is_poisoned().is_some());
    assert_eq!(node.get(b"k"), None);
}

#[test]
fn complete_state_brings_a_region_level_and_removes_what_is_gone() {
    let (disk_a, disk_b) = (MemoryDisk::new(), MemoryDisk::new());
    let (mut a, mut b) = (Node::open("a", &disk_a, 1), Node::open("b", &disk_b, 2));
    for n in 0..500 {
        let _ = a.put(format!("k{n:04}").as_bytes(), "v");
    }
    a.store.sync().unwrap();
    b.pull(&a);
    for n in 0..100 {
        let _ = a.mutate(format!("k{n:04}").as_bytes(), Mutation::Delete);
    }
    let _ = b.put(b"only b", "new");
    a.store.sync().unwrap();
    b.store.sync().unwrap();
    for shard in (0..4).map(ShardId) {
        let (mut start, mut pin) = (Bytes::new(), None);
        loop {
            let chunk = a.store.state_chunk(KS, shard, &start, 2_000).unwrap();
            pin.get_or_insert_with(|| chunk.absorbed.clone());
            let end = chunk.end.clone();
            let chunk = codec::decode_state_chunk(codec::encode_state_chunk(&chunk)).unwrap();
            let mut batch = b.writers[shard.0 as usize].begin();
            batch.state_chunk(chunk, Hlc::from_ms(5)).unwrap();
            let _ = batch.commit().unwrap();
            match end {
                Some(end) => start = end,
                None => break,
            }
        }
        let mut batch = b.writers[shard.0 as usize].begin();
        batch.state_done(KS, pin.unwrap(), None, false).unwrap();
        let _ = batch.commit().unwrap();
    }
    b.store.sync().unwrap();
    let mut expected = a.all();
    expected.insert(Bytes::from_static(b"only b"), "new".to_owned());
    assert_eq!(b.all(), expected);
    let mut log_is_enough = b.store.streams(KS, ShardId(0)).cursor(&Region::new("a"));
    log_is_enough.join(&Vector::new(), b.store.tree().shard(ShardId(0)));
    assert_eq!(log_is_enough, a.store.streams(KS, ShardId(0)).cursor(&Region::new("a")));
    a.pull(&b);
    assert_eq!(a.digest(), b.digest());
    // And the stream goes on from there, without a gap.
    let _ = a.put(b"k0001", "again");
    a.store.sync().unwrap();
    b.pull(&a);
    assert_eq!(b.get(b"k0001").as_deref(), Some("again"));
}

#[test]
fn tombstones_go_only_when_everybody_has_said_so() {
    let (disk_a, disk_b) = (MemoryDisk::new(), MemoryDisk::new());
    let (mut a, mut b) = (Node::open("a", &disk_a, 1), Node::open("b", &disk_b, 2));
    let holders = [Region::new("a"), Region::new("b")];
    let _ = a.put(b"k", "v");
    let _ = a.mutate(b"k", Mutation::Delete);
    a.store.sync().unwrap();
    a.store.close().unwrap();
    let mut a = Node::open("a", &disk_a, 3);
    let shard = ShardId::of(KS, b"k", 4);
    let forget = |node: &mut Node| {
        let mut batch = node.writers[shard.0 as usize].begin();
        let forgot = batch.forget(KS, Bytes::from_static(b"k"), &holders).unwrap();
        let _ = batch.commit().unwrap();
        node.store.sync().unwrap();
        forgot
    };
    let state = |node: &mut Node| {
        let mut batch = node.writers[shard.0 as usize].begin();
        let said = batch.statement(KS, Hlc::from_ms(9)).unwrap();
        let _ = batch.commit().unwrap();
        node.store.sync().unwrap();
        said
    };
    assert!(!forget(&mut a), "b has said nothing");
    b.pull(&a);
    assert!(!forget(&mut a), "b has absorbed it, and not said so");
    assert!(state(&mut b));
    assert!(!state(&mut b), "a statement is made once");
    a.pull(&b);
    assert!(forget(&mut a));
    assert!(!forget(&mut b), "a has said nothing");
    assert!(state(&mut a));
    b.pull(&a);
    assert!(forget(&mut b));
    assert!(a.store.get(KS, b"k").unwrap().is_none_or(|r| r.is_empty()));
}

#[test]
fn a_view_is_reused_after_the_death_of_the_process_and_not_after_a_reboot() {
    let directory = tempfile::tempdir().unwrap();
    let open = |incarnation: u64, boot_id: &str| {
        let disk = Arc::new(RealDisk::open(directory.path().to_owned()).unwrap());
        let place = ViewPlace::Directory(directory.path().to_owned());
        Store::open(config("a"), disk, place, boot(boot_id), Incarnation(incarnation), &mut |_| ()).unwrap()
    };
    let write = |(store, writers, _): (Arc<Store>, Vec<ShardWriter>, _), key: &str, clean: bool| {
        let mut node = Node { store, writers, clock: 0 };
        let _ = node.put(key.as_bytes(), "v");
        node.store.sync().unwrap();
        if clean {
            node.store.close().unwrap();
        }
    };
    write(open(1, "boot 1"), "one", false);
    let second = open(2, "boot 1");
    assert!(second.2.view_reused);
    write(second, "two", false);
    let third = open(3, "boot 2");
    assert!(!third.2.view_reused, "{:?}", third.2);
    write(third, "three", true);
    let fourth = open(4, "boot 3");
    assert!(fourth.2.view_reused, "a clean close is trusted over a reboot");
    let node = Node { store: fourth.0, writers: fourth.1, clock: 0 };
    assert_eq!(node.all().len(), 3);
}

#[test]
fn a_data_directory_is_opened_once_at_a_time_and_only_in_its_own_format() {
    let directory = tempfile::tempdir().unwrap();
    let open = |incarnation| {
        let disk = Arc::new(RealDisk::open(directory.path().to_owned()).unwrap());
        Node::try_open(config("a"), disk, ViewPlace::Directory(directory.path().to_owned()), incarnation, "b")
    };
    let first = open(1).unwrap();
    assert!(matches!(open(2).err().unwrap(), OpenError::Locked));
    drop(first);
    assert!(open(3).is_ok());
    std::fs::write(directory.path().join("FORMAT"), "isle data directory, format 99\n").unwrap();
    let error = open(4).err().unwrap();
    assert!(error.to_string().contains("format 99"), "{error}");
}

#[test]
fn an_incarnation_is_never_used_twice() {
    let disk = MemoryDisk::new();
    let _ = Node::open("a", &disk, 1);
    let again = Node::try_open(config("a"), Arc::new(disk.clone()), ViewPlace::Temporary, 1, "boot").err().unwrap();
    assert!(again.to_string().contains("used before"), "{again}");
    let _ = Node::open("a", &disk, 2);
}

#[test]
fn a_data_directory_of_another_region_or_shard_count_is_refused() {
    let disk = MemoryDisk::new();
    let mut node = Node::open("a", &disk, 1);
    let _ = node.put(b"k", "v");
    node.store.sync().unwrap();
    let open = |config| Node::try_open(config, Arc::new(disk.clone()), ViewPlace::Temporary, 2, "boot").err().unwrap();
    let error = open(config("b"));
    assert!(matches!(&error, OpenError::Region { found, .. } if found == "a"), "{error}");
    let error = open(StoreConfig { shards: 2, ..config("a") });
    assert!(matches!(error, OpenError::Shards { found: 4, asked: 2 }), "{error}");
    assert_eq!(Node::open("a", &disk, 3).get(b"k").as_deref(), Some("v"));
}

/// Writes until there is a checkpoint; returns where the newest is.
fn fill_until_checkpoint(node: &mut Node) -> String {
    for n in 0..4_000 {
        let _ = node.put(format!("key-{}", n % 100).as_bytes(), &"x".repeat(100));
    }
    node.store.sync().unwrap();
    node.settle();
    let position = node.store.stats().checkpoint_position;
    assert!(position > Default::default());
    format!("checkpoints/{:016x}.ckpt", position.0)
}

fn damage(disk: &MemoryDisk, file: &str) {
    let mut bytes = disk.read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    disk.write_atomic(file, &bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_passed_over_while_the_log_reaches_back_and_named_otherwise() {
    let disk = MemoryDisk::new();
    let mut node = Node::open("a", &disk, 1);
    let checkpoint = fill_until_checkpoint(&mut node);
    let (expected, untrimmed) = (node.all(), disk.crash(Crash::KeepSynced, &mut |_| 0));
    damage(&untrimmed, &checkpoint);
    let disk_of = |disk: &MemoryDisk| Arc::new(disk.clone());
    let (store, writers, report) =
        Store::open(config("a"), disk_of(&untrimmed), ViewPlace::Temporary, boot("boot"), Incarnation(2), &mut |_| ())
            .unwrap();
    assert_eq!(report.checkpoints_damaged.len(), 1);
    assert_same(&Node { store, writers, clock: 0 }.all(), &expected);
    node.store.trim(node.store.durable()).unwrap();
    let trimmed = disk.crash(Crash::KeepSynced, &mut |_| 0);
    damage(&trimmed, &checkpoint);
    let error = Node::try_open(config("a"), disk_of(&trimmed), ViewPlace::Temporary, 2, "boot").err().unwrap();
    assert!(matches!(error, OpenError::CheckpointLost { .. }), "{error}");
    assert!(error.to_string().contains("peers"), "it says what to do: {error}");
}

#[test]
fn below_the_reserve_every_write_is_refused_until_there_is_space() {
    let disk = MemoryDisk::new();
    let config = StoreConfig { disk_reserve_bytes: 1 << 20, ..config("a") };
    let mut node = Node::try_open(config, Arc::new(disk.clone()), ViewPlace::Temporary, 1, "boot").unwrap();
    let _ = node.put(b"before", "v");
    node.store.sync().unwrap();
    disk.set_capacity(Some(disk.used() + (1 << 19)));
    node.store.maintain().unwrap();
    let mut batch = node.writers[0].begin();
    batch.state_done(KS, Vec::new(), None, false).unwrap();
    assert!(
        matches!(batch.commit(), Err(isle_store::CommitError::Append(isle_store::AppendError::DiskFull))),
        "a peer's batch is refused as well"
    );
    assert_eq!(node.get(b"before").as_deref(), Some("v"), "reads go on");
    disk.set_capacity(None);
    node.store.maintain().unwrap();
    let _ = node.put(b"after", "v");
    node.store.sync().unwrap();
    assert_eq!(node.get(b"after").as_deref(), Some("v"));
}

/// Below the reserve nothing is drained, so that writers who waited for that would wait for as long as the disk is full, without
/// a word: a full disk was met like this with a full overlay, and took a minute to say so.
#[test]
fn below_the_reserve_nobody_waits_for_the_overlay() {
    let disk = MemoryDisk::new();
    let config = StoreConfig {
        disk_reserve_bytes: 1 << 20,
        overlay_bytes_max: 1 << 20,
        overlay_drain_bytes: 1 << 19,
        ..config("a")
    };
    let mut node = Node::try_open(config, Arc::new(disk.clone()), ViewPlace::Temporary, 1, "boot").unwrap();
    for n in 0.. {
        if node.store.overlay_full() {
            break;
        }
        let _ = node.put(format!("k{n}").as_bytes(), &"v".repeat(500));
        node.store.sync().unwrap();
    }
    disk.set_capacity(Some(disk.used() + (1 << 19)));
    node.store.maintain().unwrap();
    assert!(!node.store.overlay_full(), "who waits now is never told");
    let mut batch = node.writers[0].begin();
    batch.state_done(KS, Vec::new(), None, false).unwrap();
    let refused = batch.commit().unwrap_err();
    assert!(matches!(refused, isle_store::CommitError::Append(isle_store::AppendError::DiskFull)), "{refused}");
    disk.set_capacity(None);
    while node.store.maintain().unwrap() {}
    assert!(!node.store.overlay_full(), "it is drained once there is space");
}

/// Writes into a view's tree behind the store's back.
fn spoil(root: &std::path::Path, key: &[u8]) {
    let view = sled::open(root.join("view-1")).unwrap();
    let records = view.open_tree("records").unwrap();
    let key = records.iter().keys().map(Result::unwrap).find(|found| found.ends_with(key)).unwrap();
    records.insert(key, b"\xff\xff not a record").unwrap();
    drop((records, view));
    // sled's threads may hold its lock for a moment longer: another file is not under it.
    std::fs::copy(root.join("view-1/db"), root.join("view-1/copy")).unwrap();
    std::fs::rename(root.join("view-1/copy"), root.join("view-1/db")).unwrap();
}

#[test]
fn a_view_that_fails_is_named_refuses_what_it_cannot_hold_and_is_rebuilt_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let open = |incarnation| {
        let disk = Arc::new(RealDisk::open(directory.path().to_owned()).unwrap());
        let place = ViewPlace::Directory(directory.path().to_owned());
        Store::open(config("a"), disk, place, boot("boot"), Incarnation(incarnation), &mut |_| ()).unwrap()
    };
    let (store, writers, _) = open(1);
    let mut node = Node { store, writers, clock: 0 };
    for key in ["k1", "k2"] {
        let _ = node.put(key.as_bytes(), "v");
    }
    node.store.close().unwrap();
    drop(node);
    spoil(directory.path(), b"k1");
    let (store, writers, report) = open(2);
    assert!(report.view_reused, "{report:?}");
    let mut node = Node { store, writers, clock: 0 };
    let failed = (0..10).find_map(|_| node.store.maintain().err());
    assert!(failed.is_some_and(|error| error.to_string().contains("fails its checksum")));
    assert!(node.store.stats().view_failed.is_some());
    assert_eq!(node.get(b"k2").as_deref(), Some("v"), "reads of the rest go on");
    let mut written = 0;
    let refused = loop {
        let mut batch = node.writers[0].begin();
        let hlc = Hlc::from_ms(1);
        let (tree, key) = (batch.tree(), (0..).map(|n| format!("{written}-{n}")));
        let key = Bytes::from(key.into_iter().find(|key| ShardId::of(KS, key.as_bytes(), 4) == ShardId(0)).unwrap());
        let stamp = batch.stamp(hlc, Epoch(0));
        let region = Region::new("a");
        let writer = Writer {
            region: &region,
            home: &region,
            takes_over: false,
            keyspace: KS,
            stamp,
            lineage: tree.shard(ShardId(0)),
        };
        let mutation = Mutation::Put { value: Value::string(&"x".repeat(10_000)) };
        let write = plan(&key, &mutation, &Precondition::None, None, &Default::default(), writer).unwrap().unwrap();
        batch.write(KS, write, stamp).unwrap();
        match batch.commit() {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(!node.store.overlay_full(), "nobody waits for what never comes");
        assert!(written < 1_000, "the memory grows without bound");
    };
    assert!(refused.to_string().contains("fails its checksum"), "{refused}");
    node.store.sync().unwrap();
    drop(node);
    let (store, writers, report) = open(3);
    assert!(report.view_distrusted.is_some() && !report.view_reused, "{report:?}");
    let node = Node { store, writers, clock: 0 };
    assert_eq!(node.all().len(), written + 2);
    assert_eq!(node.get(b"k1").as_deref(), Some("v"), "the log had it");
}

/// A replay reads what it writes over: a view that turns out to be damaged then was an error that no restart could mend.
#[test]
fn a_view_that_fails_under_the_replay_is_rebuilt_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let open = |incarnation| {
        let disk = Arc::new(RealDisk::open(directory.path().to_owned()).unwrap());
        let place = ViewPlace::Directory(directory.path().to_owned());
        let (store, writers, report) =
            Store::open(config("a"), disk, place, boot("boot"), Incarnation(incarnation), &mut |_| ()).unwrap();
        (Node { store, writers, clock: 0 }, report)
    };
    let (mut node, _) = open(1);
    let _ = node.put(b"k1", "old");
    node.store.close().unwrap();
    drop(node);
    let (mut node, report) = open(2);
    assert!(report.view_reused);
    let _ = node.put(b"k1", "new");
    node.store.sync().unwrap();
    drop(node);
    spoil(directory.path(), b"k1");
    let (node, report) = open(3);
    assert_eq!((report.view_reused, report.view_distrusted), (false, Some("it is damaged")));
    assert_eq!(node.get(b"k1").as_deref(), Some("new"));
}

#[test]
fn a_closed_store_stays_as_its_mark_says_however_often_it_is_closed_or_tended() {
    let directory = tempfile::tempdir().unwrap();
    let open = |incarnation| {
        let disk = Arc::new(RealDisk::open(directory.path().to_owned()).unwrap());
        let place = ViewPlace::Directory(directory.path().to_owned());
        Node::try_open(config("a"), disk, place, incarnation, "boot").unwrap()
    };
    let mut node = open(1);
    let _ = node.put(b"k", "v");
    let threads = node.store.start_threads(Box::new(|_| ()), Box::new(|_| ())).unwrap();
    node.store.close().unwrap();
    let mark = std::fs::read(directory.path().join("VIEW")).unwrap();
    node.store.close().unwrap();
    assert!(!node.store.maintain().unwrap());
    drop(threads);
    assert_eq!(std::fs::read(directory.path().join("VIEW")).unwrap(), mark);
    let mut batch = node.writers[0].begin();
    batch.state_done(KS, Vec::new(), None, false).unwrap();
    assert!(batch.commit().is_err(), "a closed store takes nothing");
    drop(node);
    assert_eq!(open(2).get(b"k").as_deref(), Some("v"));
}

#[test]
fn an_idle_store_is_flushed_so_that_a_restart_replays_next_to_nothing() {
    let disk = MemoryDisk::new();
    let mut node = Node::open("a", &disk, 1);
    let end = node.put(b"k", "v").end;
    node.store.sync().unwrap();
    // Less than what makes a flush due: it is being idle that does.
    for _ in 0..200 {
        node.store.maintain().unwrap();
    }
    let stats = node.store.stats();
    assert!(stats.view_position >= end, "{} of {end}", stats.view_position);
    let syncs = disk.syncs();
    for _ in 0..500 {
        node.store.maintain().unwrap();
    }
    assert_eq!(disk.syncs(), syncs, "and then it rests");
}

#[test]
fn a_burst_is_drained_while_the_count_and_a_checkpoint_go_on() {
    let mut disk = MemoryDisk::new();
    let mut node = Node::open("a", &disk, 1);
    for n in 0..20_000 {
        let _ = node.put(format!("k{n}").as_bytes(), "v");
    }
    node.store.sync().unwrap();
    node.settle();
    disk = disk.crash(Crash::KeepSynced, &mut |_| 0);
    let mut node = Node::open("a", &disk, 2);
    for n in 0..2_000 {
        let _ = node.put(format!("k{n}").as_bytes(), &"w".repeat(100));
    }
    node.store.sync().unwrap();
    let drain = node.store.config().overlay_drain_bytes as u64;
    assert!(node.store.stats().overlay_bytes > drain);
    let mut steps = 0;
    while node.store.stats().overlay_bytes > drain {
        assert!(!node.store.is_counted(), "it did not wait for the count");
        node.store.maintain().unwrap();
        steps += 1;
        assert!(steps < 1_000);
    }
    let (records, digest) = node.digest();
    let disk = disk.crash(Crash::KeepSynced, &mut |_| 0);
    assert_eq!((records, Node::open("a", &disk, 3).digest().1), (20_000, digest));
}

/// A burst of the same few keys, so that the overlay never fills.
#[test]
fn a_burst_is_drained_when_it_is_over_or_when_the_log_cannot_wait() {
    let config =
        StoreConfig { segment_bytes: 1 << 20, flush_log_bytes: 8 << 20, checkpoint_log_bytes: 1 << 30, ..config("a") };
    let config = StoreConfig { overlay_bytes_max: 64 << 20, overlay_drain_bytes: 32 << 20, ..config };
    let disk = Arc::new(MemoryDisk::new());
    let mut node = Node::try_open(config, disk, ViewPlace::Temporary, 1, "boot").unwrap();
    while node.store.maintain().unwrap() || !node.store.is_counted() {}
    let view_position = node.store.stats().view_position;
    let burst = |node: &mut Node| {
        for n in 0..40 {
            let _ = node.put(format!("k{n}").as_bytes(), &"v".repeat(40_000));
        }
        node.store.sync().unwrap();
        node.store.maintain().unwrap()
    };
    for _ in 0..4 {
        assert!(!burst(&mut node), "nothing is done beside a burst");
    }
    assert!(node.store.stats().overlay_bytes > 0);
    let mut calls = 0;
    while node.store.stats().overlay_bytes > 0 {
        node.store.maintain().unwrap();
        calls += 1;
        assert!(calls < 30, "it is over");
    }
    assert_eq!(node.store.stats().view_position, view_position, "it was too little log for a flush");
    for _ in 0..40 {
        burst(&mut node);
    }
    assert!(node.store.stats().view_position > view_position, "without a flush the log can never be trimmed");
}

struct Seeded(u64);

impl Seeded {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n.max(1)
    }
}
