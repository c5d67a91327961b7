//! The store: a batch into log and overlay, and the overlay into the view.

use std::sync::Arc;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use isle_load::record::{Records, Shape};
use isle_model::write::{Writer, plan};
use isle_model::{Epoch, Hlc, Incarnation, KeyspaceId, Mutation, Precondition, Region, ShardId, Value};
use isle_store::disk::RealDisk;
use isle_store::{BootIdentity, ShardWriter, Store, StoreConfig, ViewPlace};
use tempfile::TempDir;

const KEYSPACE: KeyspaceId = KeyspaceId(1);
const BATCH: usize = 256;

struct Open {
    store: Arc<Store>,
    writer: ShardWriter,
    records: Records,
    next: u64,
    _directory: TempDir,
}

/// With one shard, so that every batch is one commit.
fn open() -> Open {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { region: Region::new("a"), shards: 1, ..StoreConfig::default() };
    let disk = Arc::new(RealDisk::open(directory.path().to_owned()).unwrap());
    let place = ViewPlace::Directory(directory.path().to_owned());
    let boot = BootIdentity { boot_id: "boot".to_owned(), mount_id: "mount".to_owned() };
    let (store, mut writers, _) = Store::open(config, disk, place, boot, Incarnation(1), &mut |_| {}).unwrap();
    let records = Records::new(Shape::default(), 1);
    Open { store, writer: writers.remove(0), records, next: 0, _directory: directory }
}

impl Open {
    /// Keys that nobody has written yet.
    fn made(&mut self) -> Vec<(Bytes, Mutation)> {
        let numbers = self.next..self.next + BATCH as u64;
        self.next = numbers.end;
        let records = numbers.map(|number| self.records.record(number));
        records.map(|record| (record.key, Mutation::Put { value: Value::bytes(record.value) })).collect()
    }

    fn commit(&mut self, puts: &[(Bytes, Mutation)]) {
        let region = self.store.region().clone();
        let mut batch = self.writer.begin();
        for (at, (key, mutation)) in puts.iter().enumerate() {
            let current = batch.newest(KEYSPACE, key).unwrap();
            let tree = batch.tree();
            let stamp = batch.stamp(Hlc::from_ms(self.next + at as u64), Epoch(0));
            let writer = Writer {
                region: &region,
                home: &region,
                takes_over: false,
                keyspace: KEYSPACE,
                stamp,
                lineage: tree.shard(ShardId(0)),
            };
            let write = plan(key, mutation, &Precondition::None, None, &current, writer).unwrap().unwrap();
            batch.write(KEYSPACE, write, stamp).unwrap();
        }
        let _ = batch.commit().unwrap();
    }

    fn drain(&self) {
        while self.store.maintain().unwrap() {}
    }
}

/// Plan, apply, append and publish, for 256 new keys; one sync for all.
#[divan::bench(sample_count = 50, sample_size = 4)]
fn commit_sync_publish(bencher: Bencher<'_, '_>) {
    let mut open = open();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        let puts = open.made();
        open.commit(&puts);
        let durable = open.store.sync().unwrap();
        // Full, the overlay would refuse; draining is the next benchmark's.
        if open.store.overlay_full() {
            open.drain();
        }
        durable
    });
}

/// The same 65,536 records out of the overlay into the view, in key order.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn drain_overlay(bencher: Bencher<'_, '_>) {
    const BATCHES: usize = 256;
    let filled = || {
        let mut open = open();
        for _ in 0..BATCHES {
            let puts = open.made();
            open.commit(&puts);
        }
        open.store.sync().unwrap();
        open
    };
    let counter = ItemsCount::new(BATCHES * BATCH);
    bencher.counter(counter).with_inputs(filled).bench_local_refs(|open| open.drain());
}
