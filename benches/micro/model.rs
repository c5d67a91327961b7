//! The merge, as a reader's region does it for every delta that comes.

use bytes::Bytes;
use divan::{Bencher, black_box};
use isle_model::write::{Site, Writer, apply, plan};
use isle_model::{
    Dot, Epoch, Hlc, Incarnation, IncarnationTree, KeyspaceId, Mutation, Precondition, Record, Region, Row, ShardId,
    Stamp, Value, Write,
};

pub const KEYSPACE: KeyspaceId = KeyspaceId(1);
const SHARD: ShardId = ShardId(0);

/// Two regions, one incarnation each.
pub fn tree() -> IncarnationTree {
    let mut tree = IncarnationTree::new();
    for (incarnation, region) in [(1, "a"), (2, "b")] {
        let row = Row { region: Region::new(region), parent: None, left_at: Vec::new() };
        tree.insert(Incarnation(incarnation), row).unwrap();
    }
    tree
}

pub fn key() -> Bytes {
    Bytes::from_static(b"user00000000000000000001")
}

fn stamp(incarnation: u64, seq: u64) -> Stamp {
    Stamp { dot: Dot::new(Incarnation(incarnation), seq), hlc: Hlc::from_ms(1_000 + seq), epoch: Epoch(0) }
}

/// A put of 128 bytes as a region would plan it.
pub fn put(tree: &IncarnationTree, region: &str, incarnation: u64, seq: u64, current: &Record) -> Write {
    let region = Region::new(region);
    let stamp = stamp(incarnation, seq);
    let writer = Writer {
        region: &region,
        home: &region,
        takes_over: false,
        keyspace: KEYSPACE,
        stamp,
        lineage: tree.shard(SHARD),
    };
    let mutation = Mutation::Put { value: Value::bytes(vec![7; 128]) };
    plan(&key(), &mutation, &Precondition::None, None, current, writer).unwrap().unwrap()
}

#[divan::bench]
fn plan_put(bencher: Bencher<'_, '_>) {
    let tree = tree();
    let first = put(&tree, "a", 1, 1, &Record::new());
    bencher.bench(|| put(&tree, "a", 1, 2, black_box(&first.fields)));
}

/// The usual case: a newer value covers the one that is there.
#[divan::bench]
fn merge_superseding(bencher: Bencher<'_, '_>) {
    let tree = tree();
    let current = put(&tree, "a", 1, 1, &Record::new()).fields;
    let newer = put(&tree, "a", 1, 2, &current).fields;
    bencher.with_inputs(|| current.clone()).bench_values(|mut record| {
        record.merge(black_box(&newer), tree.shard(SHARD));
        record
    });
}

/// A conflict: both values stay, and a ledger entry is made.
#[divan::bench]
fn apply_concurrent(bencher: Bencher<'_, '_>) {
    let tree = tree();
    let here = put(&tree, "a", 1, 1, &Record::new()).fields;
    let there = put(&tree, "b", 2, 1, &Record::new());
    let region = Region::new("a");
    let site = Site { region: &region, keyspace: KEYSPACE, hlc: Hlc::from_ms(2_000), lineage: tree.shard(SHARD) };
    let applied = apply(&here, there.clone(), site);
    assert_eq!(applied.ledger.len(), 1, "a conflict has an entry");
    bencher.with_inputs(|| there.clone()).bench_values(|there| apply(black_box(&here), there, site));
}
