//! Facts of a node that are in no record: they survive a crash, a checkpoint and the trimming of the log below it.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use isle_model::write::{Writer, plan};
use isle_model::{Epoch, Hlc, Incarnation, KeyspaceId, Mutation, Precondition, Record, Region, ShardId, Value, Vector};
use isle_store::disk::{Crash, MemoryDisk};
use isle_store::{Begun, BootIdentity, LogPosition, ShardWriter, StateChunk, Store, StoreConfig, ViewPlace, codec};

const KS: KeyspaceId = KeyspaceId(1);
const SHARD: ShardId = ShardId(0);

struct Node {
    store: Arc<Store>,
    writer: ShardWriter,
}

fn open(region: &str, disk: &MemoryDisk, incarnation: u64) -> Node {
    let config = StoreConfig {
        region: Region::new(region),
        shards: 1,
        segment_bytes: 1 << 16,
        checkpoint_log_bytes: 1 << 16,
        flush_log_bytes: 1 << 16,
        disk_reserve_bytes: 0,
        ..StoreConfig::default()
    };
    let boot = BootIdentity { boot_id: incarnation.to_string(), mount_id: String::new() };
    let disk = Arc::new(disk.clone());
    let (store, mut writers, _) =
        Store::open(config, disk, ViewPlace::Temporary, boot, Incarnation(incarnation), &mut |_| ()).unwrap();
    Node { store, writer: writers.pop().unwrap() }
}

/// Opens what a power cut leaves.
fn after_crash(node: Node, disk: &mut MemoryDisk, incarnation: u64) -> Node {
    let region = node.store.region().as_str().to_owned();
    drop(node);
    *disk = disk.crash(Crash::KeepSynced, &mut |_| 0);
    open(&region, disk, incarnation)
}

impl Node {
    fn put(&mut self, key: &str, value: &str, stamp: Hlc) {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let region = self.store.region().clone();
        let mut batch = self.writer.begin();
        let current = batch.newest(KS, &key).unwrap();
        let tree = batch.tree();
        let stamp = batch.stamp(stamp, Epoch(0));
        let writer = Writer {
            region: &region,
            home: &region,
            takes_over: false,
            keyspace: KS,
            stamp,
            lineage: tree.shard(SHARD),
        };
        let put = Mutation::Put { value: Value::string(value) };
        let write = plan(&key, &put, &Precondition::None, None, &current, writer).unwrap().unwrap();
        batch.write(KS, write, stamp).unwrap();
        let _ = batch.commit().unwrap();
    }

    fn learn(&self, other: &Node) {
        self.store.learn_rows(other.store.tree().rows().map(|(i, row)| (i, row.clone()))).unwrap();
    }

    /// Takes in the other's own stream; says of each delta whether its stamp is to be followed.
    fn pull(&mut self, other: &Node, follows: bool) {
        self.learn(other);
        for item in other.store.tail(LogPosition::default(), 1 << 30).unwrap().items {
            let delta = codec::decode_delta(item.encoded).unwrap();
            let mut batch = self.writer.begin();
            match follows {
                true => batch.foreign(other.store.region(), delta).unwrap(),
                false => batch.foreign_ahead(other.store.region(), delta).unwrap(),
            };
            let _ = batch.commit().unwrap();
        }
        self.store.sync().unwrap();
    }

    fn take(&mut self, chunk: &StateChunk) {
        let mut batch = self.writer.begin();
        batch.state_chunk(chunk.clone(), Hlc::from_ms(1)).unwrap();
        let _ = batch.commit().unwrap();
        self.store.sync().unwrap();
    }

    /// Writes until the log's beginning, and with it every entry so far, is trimmed away behind a checkpoint.
    fn outgrow_the_log(&mut self) {
        let upto = self.store.durable();
        for n in 0..400 {
            self.put(&format!("filler-{}", n % 7), &"x".repeat(1000), Hlc::from_ms(2));
            self.store.sync().unwrap();
            while self.store.maintain().unwrap() {}
        }
        self.store.trim(self.store.durable()).unwrap();
        assert!(self.store.oldest() > upto, "the log still reaches back");
    }
}

#[test]
fn the_highest_stamp_given_or_followed_survives() {
    let (mut disk, mut node) = (MemoryDisk::new(), None);
    let (mut other, mut broken) = (open("b", &MemoryDisk::new(), 20), open("c", &MemoryDisk::new(), 30));
    other.put("key", "x", Hlc::from_ms(900));
    other.store.sync().unwrap();
    broken.put("key", "y", Hlc::from_ms(1_000_000));
    broken.store.sync().unwrap();
    for (run, trimmed) in [(1, false), (2, true)] {
        let mut a = node.take().unwrap_or_else(|| open("a", &disk, run));
        a.put("key", "z", Hlc::from_ms(700));
        a.pull(&other, true);
        a.pull(&broken, false);
        if trimmed {
            a.outgrow_the_log();
        }
        let a = after_crash(a, &mut disk, 10 + run);
        assert_eq!(a.store.hlc_high(), Hlc::from_ms(900), "trimmed: {trimmed}");
        assert!(a.store.get(KS, b"key").unwrap().is_some_and(|record| record.is_live()));
        node = Some(a);
    }
}

#[test]
fn a_holder_given_up_stays_so_until_it_is_welcomed() {
    let mut disk = MemoryDisk::new();
    let mut a = open("a", &disk, 1);
    a.store.note_holder(&Region::new("b"), true).unwrap();
    a.store.note_holder(&Region::new("c"), true).unwrap();
    a.store.note_holder(&Region::new("c"), false).unwrap();
    a.store.sync().unwrap();
    a = after_crash(a, &mut disk, 2);
    assert_eq!(a.store.expired_holders(), [Region::new("b")].into());
    a.outgrow_the_log();
    a = after_crash(a, &mut disk, 3);
    assert_eq!(a.store.expired_holders(), [Region::new("b")].into());
    a.store.note_holder(&Region::new("b"), false).unwrap();
    a.store.sync().unwrap();
    assert!(after_crash(a, &mut disk, 4).store.expired_holders().is_empty());
}

#[test]
fn a_transfer_is_open_until_its_pin_is_reached_and_what_it_showed_until_the_stream_has_come() {
    let mut disk = MemoryDisk::new();
    let mut a = open("a", &disk, 1);
    let mut b = open("b", &MemoryDisk::new(), 20);
    let from = Region::new("b");
    b.put("first", "x", Hlc::from_ms(5));
    b.store.sync().unwrap();
    let stream = (KS, SHARD);
    let pin: Vec<(Region, Vector)> = b.store.streams(KS, SHARD).applied().clone().into_iter().collect();
    a.learn(&b);
    let mut batch = a.writer.begin();
    let begun = Begun { pin: pin.clone(), next: Bytes::from("m"), heard: None };
    batch.state_begun(KS, from.clone(), begun.clone()).unwrap();
    let _ = batch.commit().unwrap();
    // The chunk is read after the pin was, and shows more.
    b.put("second", "y", Hlc::from_ms(6));
    b.store.sync().unwrap();
    let chunk = b.store.state_chunk(KS, SHARD, b"", 1 << 20).unwrap();
    a.take(&chunk);

    a = after_crash(a, &mut disk, 2);
    let (at, left) = a.store.transfers().pop().unwrap();
    assert_eq!((at, left.open.get(&from)), (stream, Some(&begun)));
    a.outgrow_the_log();
    a = after_crash(a, &mut disk, 3);
    let (_, left) = a.store.transfers().pop().unwrap();
    assert_eq!(left.open.get(&from), Some(&begun));
    let dots = |record: &Record| record.dots().max().unwrap();
    let second = dots(&b.store.get(KS, b"second").unwrap().unwrap());
    assert_eq!(left.shown, Vector::of(second));

    let mut batch = a.writer.begin();
    batch.state_done(KS, pin, None, false).unwrap();
    let _ = batch.commit().unwrap();
    a.store.sync().unwrap();
    let (_, left) = a.store.transfers().pop().unwrap();
    assert!(left.open.is_empty());
    assert_eq!(left.shown, Vector::of(second), "the cursors stay below what was shown");
    a.pull(&b, true);
    assert!(a.store.transfers().is_empty(), "the stream has brought the rest");
    assert!(after_crash(a, &mut disk, 4).store.transfers().is_empty());
}
