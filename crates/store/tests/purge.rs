//! A keyspace is purged: nothing of it is there from its entry on, whoever dies meanwhile and whatever else goes on, and the
//! other keyspaces hold what they held.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use isle_model::write::{Writer, plan};
use isle_model::{
    Epoch, Hlc, Incarnation, KeyspaceId, Mutation, Precondition, Record, Region, ShardId, Streams, Value,
};
use isle_store::disk::{Crash, Disk, MemoryDisk};
use isle_store::{
    BootIdentity, ReadError, RecoveryReport, SET_ASIDE, ShardWriter, Store, StoreConfig, ViewPlace, codec,
};

const GONE: KeyspaceId = KeyspaceId(1);
const KEPT: KeyspaceId = KeyspaceId(2);
const SHARDS: u32 = 2;
const STEPS_MAX: u64 = 100_000;

struct Node {
    store: Arc<Store>,
    writers: Vec<ShardWriter>,
    report: RecoveryReport,
    clock: u64,
}

/// All that a store has of a keyspace.
#[derive(Debug, Default, PartialEq)]
struct Holds {
    records: BTreeMap<Bytes, Arc<Record>>,
    tombstones: usize,
    ledger: usize,
    streams: Vec<(ShardId, Streams)>,
    digest: u128,
}

fn config() -> StoreConfig {
    StoreConfig {
        region: Region::new("a"),
        shards: SHARDS,
        segment_bytes: 1 << 16,
        overlay_drain_bytes: 1 << 20,
        overlay_bytes_max: 1 << 22,
        checkpoint_log_bytes: 1 << 26,
        flush_log_bytes: 1 << 26,
        view_cache_bytes: 1 << 20,
        view_rebuild_bytes_min: u64::MAX,
        disk_reserve_bytes: 0,
        ..StoreConfig::default()
    }
}

impl Node {
    fn open_as(region: &str, disk: &MemoryDisk, place: ViewPlace, incarnation: u64) -> Node {
        let config = StoreConfig { region: Region::new(region), ..config() };
        Node::open_with(config, disk, place, incarnation)
    }

    fn open_with(config: StoreConfig, disk: &MemoryDisk, place: ViewPlace, incarnation: u64) -> Node {
        let boot = BootIdentity { boot_id: "boot".to_owned(), mount_id: "mount".to_owned() };
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let (store, writers, report) =
            Store::open(config, disk, place, boot, Incarnation(incarnation), &mut |_| ()).unwrap();
        Node { store, writers, report, clock: incarnation * 1_000_000 }
    }

    /// With its view at a place that outlives it.
    fn open(disk: &MemoryDisk, root: &Path, incarnation: u64) -> Node {
        Node::open_as("a", disk, ViewPlace::Directory(root.to_owned()), incarnation)
    }

    /// As after a power cut: the view is built from checkpoint and log.
    fn restore(disk: &MemoryDisk, incarnation: u64) -> Node {
        Node::open_as("a", disk, ViewPlace::Temporary, incarnation)
    }

    fn try_mutate(&mut self, keyspace: KeyspaceId, key: &str, mutation: Mutation) -> Result<(), ReadError> {
        self.clock += 1;
        let key = Bytes::copy_from_slice(key.as_bytes());
        let shard = ShardId::of(keyspace, &key, SHARDS);
        let region = self.store.region().clone();
        let mut batch = self.writers[shard.0 as usize].begin();
        let current = batch.newest(keyspace, &key)?;
        let tree = batch.tree();
        let stamp = batch.stamp(Hlc::from_ms(self.clock), Epoch(0));
        let writer =
            Writer { region: &region, home: &region, takes_over: false, keyspace, stamp, lineage: tree.shard(shard) };
        if let Some(write) = plan(&key, &mutation, &Precondition::None, None, &current, writer).unwrap() {
            batch.write(keyspace, write, stamp)?;
        }
        let _ = batch.commit().unwrap();
        Ok(())
    }

    fn put(&mut self, keyspace: KeyspaceId, key: &str, value: &str) {
        self.try_mutate(keyspace, key, Mutation::Put { value: Value::string(value) }).unwrap();
    }

    fn delete(&mut self, keyspace: KeyspaceId, key: &str) {
        self.try_mutate(keyspace, key, Mutation::Delete).unwrap();
    }

    fn pull(&mut self, from: &Node) {
        self.store.learn_rows(from.store.tree().rows().map(|(i, row)| (i, row.clone()))).unwrap();
        for item in from.store.tail(Default::default(), usize::MAX).unwrap().items.into_iter().filter(|item| item.own) {
            let delta = codec::decode_delta(item.encoded).unwrap();
            let mut batch = self.writers[delta.shard.0 as usize].begin();
            batch.foreign(from.store.region(), delta).unwrap();
            let _ = batch.commit().unwrap();
        }
    }

    /// Records, tombstones and conflicts in both keyspaces.
    fn fill(&mut self, keys: usize) {
        let mut other = Node::open_as("b", &MemoryDisk::new(), ViewPlace::Temporary, 900);
        for keyspace in [GONE, KEPT] {
            for n in 0..keys {
                self.put(keyspace, &format!("key-{n:05}"), &format!("value {n} of {}", keyspace.0));
            }
            for n in 0..keys / 10 {
                other.put(keyspace, &format!("key-{n:05}"), "another");
                self.delete(keyspace, &format!("key-{:05}", keys / 2 + n));
                let mut batch = other.writers[0].begin();
                batch.statement(keyspace, Hlc(1)).unwrap();
                let _ = batch.commit().unwrap();
            }
        }
        other.store.sync().unwrap();
        self.pull(&other);
        self.store.sync().unwrap();
    }

    fn purge(&mut self) -> usize {
        let mut purged = 0;
        for writer in &mut self.writers {
            let mut batch = writer.begin();
            purged += usize::from(batch.purge(GONE));
            let _ = batch.commit().unwrap();
        }
        purged
    }

    fn settle(&self) {
        while self.store.maintain().unwrap() {}
    }

    fn steps(&self, most: u64) {
        for _ in 0..most {
            self.store.maintain().unwrap();
        }
    }

    fn maintain_until(&self, what: &str, done: impl Fn(&Store) -> bool) {
        for _ in 0..STEPS_MAX {
            if done(&self.store) {
                return;
            }
            self.store.maintain().unwrap();
        }
        panic!("it never comes: {what}");
    }

    fn maintain_until_purged(&self) {
        self.maintain_until("the end of the purge", |store| store.is_counted() && store.purging().is_empty());
        self.settle();
    }

    fn holds(&self, keyspace: KeyspaceId) -> Holds {
        self.maintain_until("the count", Store::is_counted);
        let stats = self.store.stats();
        let counted = stats.keyspaces.iter().find(|found| found.id == keyspace);
        let mut holds = Holds { digest: counted.map_or(0, |found| found.digest.unwrap()), ..Holds::default() };
        for shard in (0..SHARDS).map(ShardId) {
            let chunk = self.store.state_chunk(keyspace, shard, b"", usize::MAX).unwrap();
            holds.records.extend(chunk.records.into_iter().map(|(key, record)| (key, Arc::new(record))));
        }
        let live = holds.records.values().filter(|record| record.is_live()).count();
        assert_eq!(counted.map_or(0, |found| found.records), live as u64, "records are counted as they are");
        let scanned = self.store.scan(keyspace, b"", None, usize::MAX, usize::MAX).unwrap().rows.len();
        assert_eq!(scanned, live);
        holds.tombstones = holds.records.len() - live;
        holds.ledger = self.store.ledger(keyspace, usize::MAX).unwrap().len();
        let streams = self.store.all_streams().into_iter().filter(|((of, _), _)| *of == keyspace);
        // Whether there is news to state is assumed after a restart.
        let stored = |streams: &Streams| {
            Streams::from_parts(streams.applied().clone(), streams.heard().clone(), streams.last_own())
        };
        holds.streams = streams.map(|((_, shard), streams)| (shard, stored(&streams))).collect();
        holds
    }

    /// Nothing of the one keyspace is there, and all of the other.
    fn check(&self, kept: &Holds) {
        assert_eq!(self.holds(GONE), Holds::default());
        let found = |key: &[u8]| self.store.get(GONE, key).unwrap();
        assert!(found(b"key-00001").is_none() && found(b"late-1").is_none());
        assert!(self.store.kept().iter().all(|(keyspace, _)| *keyspace != GONE));
        assert!(self.store.stats().keyspaces.iter().all(|found| found.id != GONE));
        for shard in (0..SHARDS).map(ShardId) {
            assert_eq!(self.store.tombstones(GONE, shard, b"", usize::MAX).unwrap(), []);
            assert_eq!(self.store.streams(GONE, shard), Streams::new());
        }
        assert_eq!(self.holds(KEPT), *kept);
        assert_eq!(self.store.stats().conflicts_open, kept.ledger as u64);
    }

    /// And the disk holds nothing of it.
    fn check_swept(&self, kept: &Holds) {
        self.maintain_until_purged();
        self.check(kept);
        let stored = kept.records.len() as u64;
        assert_eq!(self.store.stats().view_live_bytes.unwrap() > 0, stored > 0);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { _ = std::fs::copy(path, target).unwrap() }
    }
}

/// What the death of the process leaves at this moment.
fn image(disk: &MemoryDisk, root: &Path) -> (MemoryDisk, tempfile::TempDir) {
    let view = tempfile::tempdir().unwrap();
    copy(root, view.path());
    (disk.crash(Crash::Process, &mut |_| 0), view)
}

#[test]
fn a_purged_keyspace_is_gone_once_that_is_durable_and_from_the_disk_soon() {
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let mut node = Node::open(&disk, root.path(), 1);
    node.fill(3_000);
    node.settle();
    node.store.rebuild_view();
    node.maintain_until("the rebuild", |store| store.stats().view_rebuilds == 1);
    // Some of it is in the overlay alone, and some not durable yet.
    (0..500).for_each(|n| node.put(GONE, &format!("late-{n}"), "value"));
    node.store.sync().unwrap();
    let (kept, before) = (node.holds(KEPT), node.store.stats());
    assert!(kept.tombstones > 0 && kept.ledger > 0 && kept.streams.len() == 2, "{kept:?}");
    node.put(GONE, "unsynced", "value");

    assert_eq!(node.purge(), 2);
    assert_eq!(node.purge(), 0, "it is under way");
    assert!(node.store.get(GONE, b"key-00000").unwrap().is_some(), "nothing is seen that is not durable");
    assert!(node.writers[0].begin().newest(GONE, b"key-00000").unwrap().is_empty());
    let refused = node.try_mutate(GONE, "key-00001", Mutation::Put { value: Value::string("x") });
    assert!(matches!(refused, Err(ReadError::Purging { .. })), "{refused:?}");
    node.store.sync().unwrap();
    node.check(&kept);
    assert_eq!(node.store.purging(), [GONE].into());
    let refused = node.try_mutate(GONE, "key-00001", Mutation::Put { value: Value::string("x") });
    assert!(matches!(refused, Err(ReadError::Purging { .. })), "{refused:?}");
    let purged = node.store.durable();

    node.check_swept(&kept);
    let after = node.store.stats();
    assert_eq!(after.overlay_bytes, 0);
    assert!(after.view_live_bytes.unwrap() < before.view_live_bytes.unwrap() * 6 / 10, "{after:?}");
    assert!(after.checkpoint_position >= purged && after.view_position >= purged, "{after:?}");
    node.store.trim(node.store.durable()).unwrap();
    assert!(node.store.log_bytes() <= 1 << 16, "the log that held it is gone: {}", node.store.log_bytes());
    node.store.rebuild_view();
    node.maintain_until("the rebuild", |store| store.stats().view_rebuilds == 2);
    let rebuilt = node.store.stats();
    assert!(rebuilt.view_bytes < before.view_bytes * 7 / 10, "{} of {}", rebuilt.view_bytes, before.view_bytes);
    assert_eq!(rebuilt.view_live_bytes, after.view_live_bytes);
    node.check_swept(&kept);

    let restored = Node::restore(&disk.crash(Crash::KeepSynced, &mut |_| 0), 2);
    assert_eq!(restored.report.checkpoint_items as usize, kept.records.len() + kept.ledger, "it is in no checkpoint");
    restored.check_swept(&kept);
    assert_eq!(restored.store.stats().view_live_bytes, after.view_live_bytes, "what is left counts the same");
    node.store.close().unwrap();
    drop(node);
    let reopened = Node::open(&disk, root.path(), 3);
    assert!(reopened.report.view_reused);
    reopened.check_swept(&kept);
}

/// Steps of the upkeep behind a purge, and whatever the process leaves when it dies there: the view, older and newer than its
/// mark, half swept, over the log from below the purge.
#[test]
fn wherever_the_process_dies_nothing_comes_back_and_nothing_else_goes() {
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let mut node = Node::open(&disk, root.path(), 1);
    node.fill(4_000);
    node.settle();
    let kept = node.holds(KEPT);
    node.purge();
    node.store.sync().unwrap();
    let (mut incarnation, mut under_way, mut over) = (10, 0, 0);
    for step in 0.. {
        let was_over = node.store.purging().is_empty();
        if step % 5 == 0 || was_over {
            let (disk, view) = image(&disk, root.path());
            incarnation += 1;
            let mut died = Node::open(&disk, view.path(), incarnation);
            assert!(died.report.view_reused);
            under_way += u64::from(!died.store.purging().is_empty());
            over += u64::from(died.store.purging().is_empty());
            died.check(&kept);
            died.check_swept(&kept);
            assert_eq!(died.purge(), 0, "there is nothing to purge");
        }
        if !node.store.maintain().unwrap() && was_over {
            break;
        }
    }
    assert!(under_way > 3 && over > 0, "{under_way} purges went on, {over} were over");
}

/// A mark and a checkpoint are made while the sweep is under way, of after the entry: whoever starts from them does not meet it.
#[test]
fn a_mark_and_a_checkpoint_from_the_midst_of_a_purge_go_on_with_it() {
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let mut node = Node::open(&disk, root.path(), 1);
    node.fill(4_000);
    node.settle();
    node.store.close().unwrap();
    drop(node);
    let (mut marked, mut checkpointed) = (0, 0);
    let tight = StoreConfig { flush_log_bytes: 1 << 14, checkpoint_log_bytes: 1 << 16, ..config() };
    let place = ViewPlace::Directory(root.path().to_owned());
    let mut node = Node::open_with(tight, &disk, place, 2);
    node.maintain_until("the count", Store::is_counted);
    node.purge();
    (0..400).for_each(|n| node.put(KEPT, &format!("meanwhile-{n}"), &"v".repeat(300)));
    node.store.sync().unwrap();
    let (kept, purged) = (node.holds(KEPT), node.store.durable());
    for run in 0..40 {
        let stats = node.store.stats();
        let is_under_way = !node.store.purging().is_empty();
        // A clean close marks what there is at this step; a power cut leaves the newest checkpoint, and the log.
        let (closed, view) = image(&disk, root.path());
        let died = Node::open(&closed, view.path(), 100 + run);
        died.steps(run % 3);
        died.store.close().unwrap();
        marked += u64::from(!died.store.purging().is_empty());
        drop(died);
        let reopened = Node::open(&closed, view.path(), 200 + run);
        assert!(reopened.report.view_reused);
        reopened.check(&kept);
        reopened.check_swept(&kept);
        if stats.checkpoint_position >= purged {
            let restored = Node::restore(&disk.crash(Crash::KeepSynced, &mut |_| 0), 300 + run);
            checkpointed += u64::from(!restored.store.purging().is_empty());
            restored.check(&kept);
            restored.check_swept(&kept);
        }
        if !node.store.maintain().unwrap() && !is_under_way {
            break;
        }
    }
    assert!(marked > 0 && checkpointed > 0, "{marked} marks, {checkpointed} checkpoints named the purge");
}

/// Of each shard all is there or nothing: the entry is durable or it is not.
#[test]
fn a_power_cut_at_any_write_leaves_all_of_a_shard_or_nothing() {
    let (mut cut_short, mut incarnation) = (0, 10);
    for changes in 0..STEPS_MAX {
        let disk = MemoryDisk::new();
        let mut node = Node::restore(&disk, 1);
        node.fill(60);
        let (all, kept) = (node.holds(GONE), node.holds(KEPT));
        disk.fail_after(Some(changes));
        for writer in &mut node.writers {
            let mut batch = writer.begin();
            batch.purge(GONE);
            let _ = batch.commit();
            let _ = node.store.sync();
        }
        for _ in 0..40 {
            let _ = node.store.maintain();
        }
        let failed = disk.is_failing();
        drop(node);
        for how in [Crash::KeepSynced, Crash::KeepSome, Crash::Process] {
            let mut random = changes;
            let left = disk.crash(how, &mut |most| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (random >> 33) % most.max(1)
            });
            left.fail_after(None);
            incarnation += 1;
            let mut node = Node::restore(&left, incarnation);
            assert_eq!(node.holds(KEPT), kept, "after {changes} changes");
            let purged = node.holds(GONE);
            for shard in (0..SHARDS).map(ShardId) {
                let of = |holds: &Holds| -> Vec<Bytes> {
                    holds.records.keys().filter(|key| ShardId::of(GONE, key, SHARDS) == shard).cloned().collect()
                };
                assert!(of(&purged).is_empty() || of(&purged) == of(&all), "a part of it is there, after {changes}");
                let has_streams = purged.streams.iter().any(|(of, _)| *of == shard);
                assert_eq!(has_streams, !of(&purged).is_empty());
            }
            cut_short += u64::from(!purged.records.is_empty());
            node.purge();
            node.store.sync().unwrap();
            node.check_swept(&kept);
        }
        if !failed {
            assert!(cut_short > 1, "no cut fell before the purge was durable");
            return;
        }
    }
    panic!("it never ends");
}

/// The purge falls into whatever goes on behind the writes, at several of its steps.
#[test]
fn a_purge_in_the_midst_of_a_drain_a_checkpoint_and_a_rebuild_is_whole() {
    for going_on in ["count", "drain", "checkpoint", "rebuild"] {
        for steps in [1, 4] {
            let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
            let mut node = Node::open(&disk, root.path(), 1);
            node.fill(4_000);
            if going_on != "drain" {
                node.settle();
            }
            if going_on == "count" {
                node.store.close().unwrap();
                drop(node);
                node = Node::open(&disk, root.path(), 2);
            }
            let wait = |node: &Node| match going_on {
                "drain" => {
                    let full = node.store.stats().overlay_bytes;
                    node.maintain_until("the drain", |store| store.stats().overlay_bytes < full);
                }
                "rebuild" => node.store.rebuild_view(),
                _ => {}
            };
            if going_on == "checkpoint" {
                // What a first purge has asked for: that of a keyspace which nobody misses.
                node.put(KeyspaceId(3), "key", "value");
                for writer in &mut node.writers {
                    let mut batch = writer.begin();
                    batch.purge(KeyspaceId(3));
                    let _ = batch.commit().unwrap();
                }
                node.store.sync().unwrap();
                node.maintain_until("the sweep", |store| store.purging().is_empty());
                node.maintain_until("the checkpoint", |_| disk.exists("checkpoints/writing").unwrap());
            }
            wait(&node);
            node.steps(steps);
            let is_counting = !node.store.is_counted();
            node.purge();
            node.store.sync().unwrap();
            if going_on == "count" {
                assert!(is_counting, "it is counted within {steps} steps");
            }
            // What changes elsewhere meanwhile is kept.
            (0..200).for_each(|n| node.put(KEPT, &format!("meanwhile-{n}"), "value"));
            node.store.sync().unwrap();
            let kept = node.holds(KEPT);
            let (died, view) = image(&disk, root.path());
            node.check_swept(&kept);
            if going_on == "rebuild" {
                node.maintain_until("the rebuild", |store| store.stats().view_rebuilds > 0);
                node.check_swept(&kept);
            }
            let counted = node.store.stats().view_live_bytes;
            let died = Node::open(&died, view.path(), 3);
            died.check(&kept);
            died.check_swept(&kept);
            let restored = Node::restore(&disk.crash(Crash::KeepSynced, &mut |_| 0), 4);
            restored.check_swept(&kept);
            node.store.close().unwrap();
            drop(node);
            let reopened = Node::open(&disk, root.path(), 5);
            reopened.check_swept(&kept);
            assert_eq!(reopened.store.stats().view_live_bytes, counted, "{going_on}, {steps} steps");
        }
    }
}

/// As a region does that was no holder any more, and becomes one again.
#[test]
fn what_comes_of_a_keyspace_behind_its_purge_stays_over_a_replay_and_brings_nothing_back() {
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let mut node = Node::open(&disk, root.path(), 1);
    node.fill(300);
    node.settle();
    let kept = node.holds(KEPT);
    let (old, _) = image(&disk, root.path());
    node.purge();
    node.store.sync().unwrap();
    node.check_swept(&kept);
    (0..20).for_each(|n| node.put(GONE, &format!("new-{n}"), "value"));
    node.delete(GONE, "key-00003");
    node.store.sync().unwrap();
    let new = node.holds(GONE);
    assert_eq!((new.records.len(), new.streams.len(), new.ledger), (20, 2, 0), "{new:?}");
    // The mark from before the purge, over the log and the view of after: all of it is replayed over what it has led to.
    let (died, view) = image(&disk, root.path());
    died.write_atomic("VIEW", &old.read("VIEW").unwrap()).unwrap();
    let replayed = Node::open(&died, view.path(), 2);
    assert!(replayed.report.view_reused && replayed.report.entries_replayed > 100, "{:?}", replayed.report);
    assert_eq!((replayed.holds(GONE), replayed.holds(KEPT)), (new, kept));
    assert!(replayed.store.purging().is_empty());
}

/// Files, log and checkpoints among them, that hold these bytes.
fn files_with(disk: &MemoryDisk, root: &Path, wanted: &[u8]) -> Vec<String> {
    let mut files = Vec::new();
    for directory in ["log", "checkpoints"] {
        let names = disk.list(directory).unwrap_or_default();
        files.extend(
            names.iter().map(|name| (format!("{directory}/{name}"), disk.read(&format!("{directory}/{name}")))),
        );
    }
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        match path.is_dir() {
            true => left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path())),
            false => files.push((format!("view: {}", path.display()), std::fs::read(&path))),
        }
    }
    let holds = |bytes: &Vec<u8>| bytes.windows(wanted.len()).any(|window| window == wanted);
    let found = files.into_iter().filter(|(_, bytes)| bytes.as_ref().is_ok_and(holds));
    found.map(|(name, _)| name).collect()
}

/// sled keeps what is taken out in its file, the log keeps what was written, and so does the last checkpoint.
#[test]
fn no_file_holds_what_was_purged_once_it_is_scrubbed() {
    for is_rebuilding in [false, true] {
        let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
        let mut node = Node::open(&disk, root.path(), 1);
        node.fill(1_000);
        node.settle();
        let kept = node.holds(KEPT);
        assert!(!files_with(&disk, root.path(), b" of 1").is_empty(), "what is looked for is to be found");
        if is_rebuilding {
            // It copies some of what is purged before that is taken out.
            node.store.rebuild_view();
            node.steps(2);
        }
        node.purge();
        node.store.sync().unwrap();
        node.maintain_until("the end of the purge", |store| store.purging().is_empty());
        assert!(!files_with(&disk, root.path(), b" of 1").is_empty(), "to take it out is not enough");
        let scrub = node.store.scrub().unwrap();
        assert!(!node.store.is_scrubbed(&scrub));
        node.maintain_until("the end of the scrub", |store| {
            store.trim(store.durable()).unwrap();
            store.is_scrubbed(&scrub)
        });
        assert_eq!(files_with(&disk, root.path(), b" of 1"), [""; 0], "rebuilding: {is_rebuilding}");
        assert!(
            files_with(&disk, root.path(), b" of 2").iter().any(|name| name.starts_with("view")),
            "the rest is there"
        );
        node.check(&kept);
        let aside = root.path().join(format!("{SET_ASIDE}1"));
        std::fs::create_dir(&aside).unwrap();
        assert!(!node.store.is_scrubbed(&scrub), "what the doctor set aside may hold it");
        assert_eq!(node.store.set_aside(), Some(format!("{SET_ASIDE}1")));
        std::fs::remove_dir(&aside).unwrap();
        assert!(node.store.is_scrubbed(&scrub));
        let again = node.store.scrub().unwrap();
        assert!(!node.store.is_scrubbed(&again), "each is of its own moment");
        let (died, view) = image(&disk, root.path());
        drop(node);
        Node::open(&died, view.path(), 2).check(&kept);
    }
}
