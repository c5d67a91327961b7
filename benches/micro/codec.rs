//! A delta as bytes: what log, stream and snapshot hold.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use isle_model::{Body, Delta, Dot, Epoch, Hlc, Incarnation, Record, ShardId};
use isle_store::codec;

use crate::model::{KEYSPACE, put, tree};

fn delta() -> Delta {
    Delta {
        dot: Dot::new(Incarnation(1), 2),
        prev: Some(Dot::new(Incarnation(1), 1)),
        keyspace: KEYSPACE,
        shard: ShardId(0),
        hlc: Hlc::from_ms(1_002),
        epoch: Epoch(0),
        body: Body::Write(put(&tree(), "a", 1, 2, &Record::new())),
    }
}

#[divan::bench]
fn encode_delta(bencher: Bencher<'_, '_>) {
    let delta = delta();
    let bytes = codec::encode_delta(&delta).len();
    bencher.counter(BytesCount::new(bytes)).bench(|| codec::encode_delta(black_box(&delta)));
}

#[divan::bench]
fn decode_delta(bencher: Bencher<'_, '_>) {
    let delta = delta();
    let encoded = codec::encode_delta(&delta);
    assert_eq!(codec::decode_delta(encoded.clone()).unwrap(), delta);
    bencher.counter(BytesCount::new(encoded.len())).bench(|| codec::decode_delta(black_box(encoded.clone())).unwrap());
}

/// What a sender does with each delta of its log.
#[divan::bench]
fn head_of_delta(bencher: Bencher<'_, '_>) {
    let encoded = codec::encode_delta(&delta());
    bencher.bench(|| codec::delta_head(black_box(encoded.clone())).unwrap());
}
