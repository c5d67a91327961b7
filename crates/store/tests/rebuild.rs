//! A view that has outgrown what it holds is built anew beside itself while the store goes on: nothing is lost or missed meanwhile,
//! whoever reads, writes, or dies.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use isle_model::write::{Writer, plan};
use isle_model::{Epoch, Hlc, Incarnation, KeyspaceId, Mutation, Precondition, Reading, Region, ShardId, Value};
use isle_store::disk::{Crash, Disk, MemoryDisk};
use isle_store::{BootIdentity, RecoveryReport, ShardWriter, Store, StoreConfig, ViewPlace};

const KS: KeyspaceId = KeyspaceId(1);
const SHARDS: u32 = 2;
/// Of calls that a test waits for something in.
const CALLS_MAX: u64 = 100_000;

type Shown = BTreeMap<String, String>;

struct Node {
    store: Arc<Store>,
    writers: Vec<ShardWriter>,
    report: RecoveryReport,
    clock: u64,
}

impl Node {
    /// Another's, to read from.
    fn reader(&self) -> Node {
        Node { store: self.store.clone(), writers: Vec::new(), report: RecoveryReport::default(), clock: 0 }
    }
}

/// Rebuilds are asked for, unless a test has it otherwise.
fn config() -> StoreConfig {
    StoreConfig {
        region: Region::new("a"),
        shards: SHARDS,
        segment_bytes: 1 << 18,
        overlay_drain_bytes: 1 << 14,
        overlay_bytes_max: 1 << 22,
        checkpoint_log_bytes: 1 << 21,
        flush_log_bytes: 1 << 20,
        view_cache_bytes: 1 << 20,
        view_rebuild_bytes_min: u64::MAX,
        disk_reserve_bytes: 0,
        ..StoreConfig::default()
    }
}

impl Node {
    fn open_with(config: StoreConfig, disk: &MemoryDisk, place: ViewPlace, boot: &str, incarnation: u64) -> Node {
        let boot = BootIdentity { boot_id: boot.to_owned(), mount_id: "mount".to_owned() };
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let (store, writers, report) =
            Store::open(config, disk, place, boot, Incarnation(incarnation), &mut |_| ()).unwrap();
        Node { store, writers, report, clock: incarnation * 1_000_000 }
    }

    fn open(disk: &MemoryDisk, root: &Path, incarnation: u64) -> Node {
        Node::open_with(config(), disk, ViewPlace::Directory(root.to_owned()), "boot", incarnation)
    }

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
    }

    fn put(&mut self, key: &str, value: &str) {
        self.mutate(key, Mutation::Put { value: Value::string(value) });
    }

    fn forget(&mut self, key: &str) -> bool {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let mut batch = self.writers[ShardId::of(KS, &key, SHARDS).0 as usize].begin();
        let forgotten = batch.forget(KS, key, &[Region::new("a")]).unwrap();
        let _ = batch.commit().unwrap();
        forgotten
    }

    fn settle(&self) {
        while self.store.maintain().unwrap() {}
    }

    /// Maintains the store until it has built the view anew once more, and what it replaces is gone.
    fn rebuild(&self) {
        let before = self.rebuilds();
        self.store.rebuild_view();
        self.maintain_until(|| self.rebuilds() > before);
        self.store.maintain().unwrap();
    }

    fn maintain_until(&self, done: impl Fn() -> bool) {
        for _ in 0..CALLS_MAX {
            if done() {
                return;
            }
            self.store.maintain().unwrap();
        }
        panic!("it never comes");
    }

    fn rebuilds(&self) -> u64 {
        self.store.stats().view_rebuilds
    }

    fn digest(&self) -> (u64, u128) {
        self.settle();
        let keyspace = &self.store.stats().keyspaces[0];
        (keyspace.records, keyspace.digest.unwrap())
    }

    fn shown(&self) -> Shown {
        let (mut shown, mut start) = (Shown::new(), Bytes::new());
        loop {
            let page = self.store.scan(KS, &start, None, 100, 1 << 20).unwrap();
            shown.extend(page.rows.iter().map(|(key, record)| (text(key), self.value_of(key, record).unwrap())));
            match page.next {
                Some(next) => start = next,
                None => return shown,
            }
        }
    }

    /// Keys that the view lists as tombstones, and keys of records that are dead.
    fn tombstones(&self) -> (Vec<Bytes>, Vec<Bytes>) {
        let (mut listed, mut dead) = (Vec::new(), Vec::new());
        for shard in (0..SHARDS).map(ShardId) {
            let found = self.store.tombstones(KS, shard, b"", usize::MAX).unwrap();
            listed.extend(found.into_iter().map(|(key, _)| key));
            let state = self.store.state_chunk(KS, shard, b"", usize::MAX).unwrap();
            dead.extend(state.records.into_iter().filter(|(_, record)| !record.is_live()).map(|(key, _)| key));
        }
        (listed, dead)
    }

    fn get(&self, key: &str) -> Option<String> {
        let record = self.store.get(KS, key.as_bytes()).unwrap()?;
        self.value_of(key.as_bytes(), &record)
    }

    fn value_of(&self, key: &[u8], record: &isle_model::Record) -> Option<String> {
        let reading = Reading::of(record, self.store.tree().shard(ShardId::of(KS, key, SHARDS)));
        let (_, siblings) = reading.values.first()?;
        Some(text(&siblings[0].value.bytes))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn views(root: &Path) -> Vec<String> {
    let names = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut views: Vec<String> = names.filter(|name| name.starts_with("view-")).collect();
    views.sort();
    views
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { _ = std::fs::copy(path, target).unwrap() }
    }
}

fn image_of(root: &Path) -> tempfile::TempDir {
    let image = tempfile::tempdir().unwrap();
    copy(root, image.path());
    image
}

#[test]
fn a_view_that_has_outgrown_what_it_holds_is_built_anew_once_the_store_rests() {
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let open = |bytes_min, incarnation| {
        let config = StoreConfig { view_rebuild_bytes_min: bytes_min, ..config() };
        let place = ViewPlace::Directory(root.path().to_owned());
        Node::open_with(config, &disk, place, &format!("boot {incarnation}"), incarnation)
    };
    let mut node = open(u64::MAX, 1);
    for round in 0..8 {
        for n in 0..8_000 {
            node.put(&format!("key-{}", n * 7_919 % 8_000), &format!("{round} {}", "x".repeat(500)));
            if n % 100 == 0 {
                node.store.sync().unwrap();
                node.store.maintain().unwrap();
            }
        }
    }
    node.store.sync().unwrap();
    let (shown, digest, outgrown) = (node.shown(), node.digest(), node.store.stats());
    let live = outgrown.view_live_bytes.unwrap();
    assert!(live > 8_000 * 500 && live < 8_000 * 700, "{live}");
    assert!(outgrown.view_bytes * 2 > live * 5, "{} of {live} is too little for a test", outgrown.view_bytes);
    (0..500).for_each(|_| _ = node.store.maintain().unwrap());
    assert_eq!((node.rebuilds(), views(root.path())), (0, vec!["view-1".to_owned()]), "it is below what is asked for");
    node.store.close().unwrap();
    drop(node);

    let node = open(1 << 20, 2);
    assert!(node.report.view_reused, "{:?}", node.report);
    node.maintain_until(|| node.rebuilds() == 1);
    let stats = node.store.stats();
    assert_eq!(stats.view_live_bytes, Some(live), "counted as it was kept");
    assert!(stats.view_bytes * 2 <= live * 5, "{} of {live}", stats.view_bytes);
    (0..500).for_each(|_| _ = node.store.maintain().unwrap());
    assert_eq!((node.rebuilds(), views(root.path())), (1, vec!["view-2".to_owned()]), "once is enough");
    assert_eq!((node.shown(), node.digest()), (shown.clone(), digest));
    node.store.close().unwrap();
    drop(node);

    let node = open(1 << 20, 3);
    assert!(node.report.view_reused, "{:?}", node.report);
    assert_eq!((node.shown(), node.digest()), (shown, digest));
    node.maintain_until(|| node.store.is_counted());
    assert_eq!(node.store.stats().view_live_bytes, Some(live));
    (0..500).for_each(|_| _ = node.store.maintain().unwrap());
    assert_eq!((node.rebuilds(), views(root.path())), (0, vec!["view-2".to_owned()]), "a start alone is no reason");
}

/// Written, written over, deleted, and forgotten before, behind and where the copy is.
#[test]
fn what_changes_while_the_view_is_built_anew_is_in_the_new_one() {
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let mut node = Node::open(&disk, root.path(), 1);
    for n in 0..6_000 {
        node.put(&format!("key-{n:04}"), &format!("old {n}"));
    }
    for n in 0..300 {
        node.mutate(&format!("key-{:04}", n * 20), Mutation::Delete);
    }
    node.store.sync().unwrap();
    node.settle();
    node.store.rebuild_view();
    let mut n = 0;
    while node.rebuilds() == 0 {
        n += 1;
        assert!(n < 10_000);
        for at in n * 10..n * 10 + 10 {
            let key = |at: u64| format!("key-{:04}", at * 37 % 7_000);
            node.put(&key(at), &format!("new {n} {}", "x".repeat(600)));
            node.mutate(&key(at + 3_000), Mutation::Delete);
            node.forget(&format!("key-{:04}", at % 300 * 20));
        }
        node.store.sync().unwrap();
        node.store.maintain().unwrap();
        if n == 10 {
            assert_eq!(views(root.path()), ["view-1", "view-2"], "it is in the midst of it");
        }
    }
    assert!(n > 20, "{n} rounds were too few to meet anything");
    let (shown, digest) = (node.shown(), node.digest());
    let (listed, dead) = node.tombstones();
    assert!(!dead.is_empty() && listed == dead, "{} tombstones are listed of {}", listed.len(), dead.len());
    let killed = image_of(root.path());
    let killed_disk = disk.crash(Crash::Process, &mut |_| 0);
    let open = node.store.stats();
    node.store.close().unwrap();
    drop(node);
    for (disk, root) in [(&disk, root.path()), (&killed_disk, killed.path())] {
        let node = Node::open(disk, root, 2);
        assert!(node.report.view_reused, "{:?}", node.report);
        assert_eq!(views(root), ["view-2"]);
        assert_eq!((node.shown(), node.digest()), (shown.clone(), digest));
        assert_eq!(node.store.stats().conflicts_open, open.conflicts_open);
    }
}

/// The disk takes no change after so many, and then the process dies, or the power goes: between any two of them.
#[test]
fn wherever_it_dies_one_of_the_two_views_counts_and_holds_all_of_it() {
    let (mut reused_old, mut reused_new) = (0, 0);
    for changes in 0.. {
        let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
        let mut node = Node::open(&disk, root.path(), 1);
        for n in 0..3_000 {
            node.put(&format!("key-{n}"), &format!("value {n}"));
        }
        node.store.sync().unwrap();
        node.settle();
        for n in 0..400 {
            // Enough to be drained while the new view is built: the replay meets it in the view.
            node.put(&format!("key-{n}"), &format!("newer {n} {}", "x".repeat(200)));
        }
        node.store.sync().unwrap();
        let shown = node.shown();
        node.store.rebuild_view();
        disk.fail_after(Some(changes));
        let done = (0..2_000).find_map(|_| match node.store.maintain() {
            Ok(_) => (node.rebuilds() > 0).then_some(true),
            Err(_) => Some(false),
        });
        // It goes on for a while with whichever it has, as its next flush would.
        let is_whole = done == Some(true) && node.store.maintain().is_ok();
        for (how, boot) in [(Crash::Process, "boot"), (Crash::KeepSynced, "next boot"), (Crash::KeepSome, "next boot")]
        {
            let (image, disk) = (image_of(root.path()), disk.crash(how, &mut |n| changes % n));
            let place = ViewPlace::Directory(image.path().to_owned());
            let node = Node::open_with(config(), &disk, place, boot, 2);
            assert_eq!(node.shown(), shown, "{how:?} after {changes} changes");
            assert_eq!(views(image.path()).len(), 1, "{how:?} after {changes} changes");
            if how == Crash::Process {
                assert!(node.report.view_reused, "after {changes} changes: {:?}", node.report);
                let is_new = views(image.path()) == ["view-2"];
                reused_new += u64::from(is_new);
                reused_old += u64::from(!is_new);
            }
        }
        if is_whole {
            break;
        }
        assert!(changes < 200);
    }
    assert!(reused_old > 0 && reused_new > 1, "{reused_old} {reused_new}");
}

/// A reader that has missed a key in the overlay looks in a view that has it, whichever serves by then.
#[test]
fn readers_never_miss_what_is_acknowledged_while_views_are_swapped() {
    const KEYS: u64 = 64;
    const REBUILDS: u64 = 40;
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let place = ViewPlace::Directory(root.path().to_owned());
    // Whatever is published is drained at once.
    let config = StoreConfig { overlay_drain_bytes: 1, checkpoint_log_bytes: 1 << 18, ..config() };
    let mut node = Node::open_with(config, &disk, place, "boot", 1);
    let key = |n: u64| format!("key-{:02}", n % KEYS);
    (0..KEYS).for_each(|n| node.put(&key(n), "0"));
    node.store.sync().unwrap();
    node.maintain_until(|| node.store.is_counted());
    let acked: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let (over, reader) = (AtomicBool::new(false), node.reader());
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let (acked, over, reader, key) = (&acked, &over, &reader, &key);
        scope.spawn(move || {
            let _ends = Ends(over);
            for n in 1.. {
                if over.load(SeqCst) {
                    return;
                }
                node.put(&key(n), &n.to_string());
                node.store.sync().unwrap();
                acked[(n % KEYS) as usize].store(n, SeqCst);
            }
        });
        for at in 0..2 {
            scope.spawn(move || {
                let _ends = Ends(over);
                for n in (at * 7).. {
                    if over.load(SeqCst) {
                        return;
                    }
                    let wanted = acked[(n % KEYS) as usize].load(SeqCst);
                    let found: u64 = reader.get(&key(n)).expect("every key is there").parse().unwrap();
                    assert!(found >= wanted, "{} reads as {found}, and {wanted} was acknowledged", key(n));
                    if n % 50 == 0 {
                        let wanted: Vec<u64> = acked.iter().map(|acked| acked.load(SeqCst)).collect();
                        let shown = reader.shown();
                        for (n, wanted) in wanted.iter().enumerate() {
                            let found: u64 = shown[&key(n as u64)].parse().unwrap();
                            assert!(found >= *wanted, "a scan shows {found}, and {wanted} was acknowledged");
                        }
                    }
                }
            });
        }
        let _ends = Ends(over);
        for _ in 0..CALLS_MAX {
            if reader.rebuilds() == REBUILDS || over.load(SeqCst) {
                break;
            }
            reader.store.rebuild_view();
            reader.store.maintain().unwrap();
        }
    });
    assert!(reader.rebuilds() >= REBUILDS);
    assert!(views(root.path()).len() <= 2);
}

#[test]
fn where_the_new_view_cannot_be_built_the_old_one_serves_on() {
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let mut node = Node::open(&disk, root.path(), 1);
    node.put("key", "value");
    node.store.sync().unwrap();
    node.settle();
    std::fs::write(root.path().join("view-2"), "in the way").unwrap();
    node.store.rebuild_view();
    (0..100).for_each(|_| _ = node.store.maintain().unwrap());
    assert_eq!((node.rebuilds(), node.store.view_failure()), (0, None));
    node.put("key", "newer");
    node.store.sync().unwrap();
    node.settle();
    assert_eq!(node.get("key").as_deref(), Some("newer"));
    std::fs::remove_file(root.path().join("view-2")).unwrap();
    node.rebuild();
    assert_eq!(views(root.path()), ["view-2"]);
    assert_eq!(node.get("key").as_deref(), Some("newer"));
}

/// Of an earlier attempt, whose mark could not be written.
#[test]
fn nothing_that_lies_where_the_new_view_goes_is_taken_for_its_own() {
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let mut node = Node::open(&disk, root.path(), 1);
    for key in ["kept", "gone"] {
        node.put(key, "old");
    }
    node.store.sync().unwrap();
    node.settle();
    (0..100).for_each(|_| _ = node.store.maintain().unwrap());
    copy(&root.path().join("view-1"), &root.path().join("view-2"));
    node.put("kept", "newer");
    node.mutate("gone", Mutation::Delete);
    node.store.sync().unwrap();
    node.settle();
    assert!(node.forget("gone"));
    node.store.sync().unwrap();
    node.rebuild();
    assert_eq!(views(root.path()), ["view-2"]);
    assert_eq!(node.shown(), [("kept".to_owned(), "newer".to_owned())].into());
}

/// A node with many records, in the midst of building its view anew.
fn in_the_midst(disk: &MemoryDisk, place: ViewPlace, config: StoreConfig) -> Node {
    let mut node = Node::open_with(config, disk, place, "boot", 1);
    for n in 0..5_000 {
        node.put(&format!("key-{n}"), "value");
    }
    node.store.sync().unwrap();
    node.settle();
    node.store.rebuild_view();
    (0..3).for_each(|_| assert!(node.store.maintain().unwrap()));
    assert_eq!(node.rebuilds(), 0);
    node
}

#[test]
fn a_close_in_the_midst_leaves_the_old_view_clean_and_nothing_else() {
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let node = in_the_midst(&disk, ViewPlace::Directory(root.path().to_owned()), config());
    assert_eq!(views(root.path()), ["view-1", "view-2"]);
    let shown = node.shown();
    node.store.close().unwrap();
    assert_eq!(views(root.path()), ["view-1"]);
    drop(node);
    let node = Node::open_with(config(), &disk, ViewPlace::Directory(root.path().to_owned()), "another boot", 2);
    assert!(node.report.view_reused, "{:?}", node.report);
    assert_eq!(node.shown(), shown);
}

#[test]
fn a_disk_that_fills_up_meanwhile_has_its_space_back() {
    let (disk, root) = (MemoryDisk::new(), tempfile::tempdir().unwrap());
    let config = StoreConfig { disk_reserve_bytes: 1 << 20, ..config() };
    let mut node = in_the_midst(&disk, ViewPlace::Directory(root.path().to_owned()), config);
    disk.set_capacity(Some(disk.used() + (1 << 19)));
    node.store.maintain().unwrap();
    assert_eq!(views(root.path()), ["view-1"]);
    disk.set_capacity(None);
    node.settle();
    node.put("key-1", "newer");
    node.store.sync().unwrap();
    node.rebuild();
    assert_eq!(views(root.path()), ["view-2"]);
    assert_eq!(node.get("key-1").as_deref(), Some("newer"));
}

#[test]
fn a_temporary_view_is_built_anew_as_well() {
    let disk = MemoryDisk::new();
    let node = in_the_midst(&disk, ViewPlace::Temporary, config());
    let shown = node.shown();
    node.maintain_until(|| node.rebuilds() == 1);
    assert_eq!(node.shown(), shown);
    node.rebuild();
    assert_eq!((node.rebuilds(), node.shown()), (2, shown));
}
