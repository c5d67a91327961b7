//! Stored formats: what is encoded comes back, nothing that comes from outside makes a decoder panic, and the bytes of
//! version 1 never change.
#![allow(clippy::unwrap_used)]

mod arbitrary;
mod frozen;
mod hostile;
mod round_trip;

use std::sync::Arc;

use super::*;

/// What a chunk of a checkpoint holds, in a form that can be compared.
#[derive(Clone, Debug, PartialEq)]
enum Held {
    Record(Arc<Record>),
    Ledger(Arc<LedgerEntry>),
}

fn items(held: &[(ViewKey, Held)]) -> Vec<(ViewKey, Item)> {
    let item = |held: &Held| match held {
        Held::Record(record) => Item::Record(record.clone()),
        Held::Ledger(entry) => Item::Ledger(entry.clone()),
    };
    held.iter().map(|(key, one)| (key.clone(), item(one))).collect()
}

fn encode_chunk(held: &[(ViewKey, Held)]) -> Bytes {
    encode_checkpoint_chunk(&items(held))
}

fn decode_chunk(bytes: Bytes) -> Result<Vec<(ViewKey, Held)>, DecodeError> {
    let held = |(key, item)| match item {
        Item::Record(record) => (key, Held::Record(record)),
        Item::Ledger(entry) => (key, Held::Ledger(entry)),
        Item::Gone => unreachable!("a checkpoint holds nothing that is gone"),
    };
    Ok(decode_checkpoint_chunk(bytes)?.into_iter().map(held).collect())
}

fn head_of(delta: &Delta) -> DeltaHead {
    DeltaHead {
        dot: delta.dot,
        prev: delta.prev,
        keyspace: delta.keyspace,
        shard: delta.shard,
        hlc: delta.hlc,
        is_statement: matches!(delta.body, isle_model::Body::Statement(_)),
    }
}
