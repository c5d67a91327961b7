//! Any sound value of what is stored.

use std::collections::BTreeSet;

use isle_model::{
    Body, Counter, Covered, Epoch, Fate, Field, FieldKey, FieldName, Generation, Kind, Register, Sibling, Stated,
    Statement, Total, Value, ValueType, Write,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use isle_model::Row;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![1..5u64, 1..=u64::MAX]
}

fn incarnation() -> impl Strategy<Value = Incarnation> {
    number().prop_map(Incarnation)
}

fn dot() -> impl Strategy<Value = Dot> {
    (incarnation(), number()).prop_map(|(incarnation, seq)| Dot::new(incarnation, seq))
}

fn vector() -> impl Strategy<Value = Vector> {
    vec((incarnation(), number()), 0..4).prop_map(Vector::from_entries)
}

fn region() -> impl Strategy<Value = Region> {
    "[a-z0-9é-]{1,16}".prop_map(|name| Region::new(&name))
}

fn absorbed() -> impl Strategy<Value = Vec<(Region, Vector)>> {
    vec((region(), vector()), 0..3)
}

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![9 => vec(any::<u8>(), 1..12), 1 => vec(any::<u8>(), KEY_BYTES_MAX)].prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Value> {
    let bytes = vec(any::<u8>(), 0..20);
    let text = "\\PC{0,12}";
    prop_oneof![
        bytes.prop_map(Value::bytes),
        text.prop_map(|text| Value::string(&text)),
        text.prop_map(|text| Value { kind: ValueType::Json, bytes: text.into() }),
        any::<i64>().prop_map(Value::i64),
        any::<f64>().prop_map(Value::f64),
        any::<bool>().prop_map(Value::bool),
    ]
}

fn sibling() -> impl Strategy<Value = Sibling> {
    (dot(), any::<[u64; 3]>(), value()).prop_map(|(dot, [epoch, generation, hlc], value)| Sibling {
        dot,
        epoch: Epoch(epoch),
        generation: Generation(generation),
        hlc: Hlc(hlc),
        value,
    })
}

fn register() -> impl Strategy<Value = Field> {
    (vec(sibling(), 0..3), vector(), any::<u64>(), any::<u64>()).prop_map(|(siblings, seen, generation, epoch)| {
        Field::Register(Register::from_parts(siblings, seen, Generation(generation), Epoch(epoch)))
    })
}

fn counter() -> impl Strategy<Value = Field> {
    let total = (number(), number(), any::<i64>());
    let total = total.prop_map(|(a, b, total)| Total { seq: a.max(b), start: a.min(b), total });
    let covered = (number(), any::<i64>()).prop_map(|(seq, total)| Covered { seq, total });
    (vec((incarnation(), total), 0..3), vec((incarnation(), covered), 0..3), vector())
        .prop_map(|(totals, covered, seen)| Field::Counter(Counter::from_parts(totals, covered, seen)))
}

fn field_key() -> impl Strategy<Value = FieldKey> {
    let kind = prop_oneof![Just(Kind::Value), Just(Kind::Counter), Just(Kind::Home)];
    (kind, "\\PC{0,6}").prop_map(|(kind, name)| FieldKey { kind, name: FieldName::new(&name) })
}

fn field() -> impl Strategy<Value = (FieldKey, Field)> {
    (field_key(), register(), counter()).prop_map(|(key, register, counter)| match key.kind {
        Kind::Counter => (key, counter),
        Kind::Value | Kind::Home => (key, register),
    })
}

pub fn record() -> impl Strategy<Value = Record> {
    vec(field(), 0..4).prop_map(|fields| {
        let mut record = Record::new();
        fields.into_iter().for_each(|(key, field)| record.set(key, field));
        record
    })
}

pub fn ledger_entry() -> impl Strategy<Value = LedgerEntry> {
    let fate = prop_oneof![Just(Fate::Open), Just(Fate::Superseded), Just(Fate::Lost)];
    let what = (any::<u64>(), key(), field_key(), dot(), option::of(sibling()));
    let how = (option::of(dot()), any::<u64>(), region(), fate, option::of(dot()));
    (what, how).prop_map(|((keyspace, key, field, loser, value), (winner, seen_at, seen_in, fate, covered_by))| {
        let (keyspace, seen_at) = (KeyspaceId(keyspace), Hlc(seen_at));
        LedgerEntry { keyspace, key, field, loser, value, winner, seen_at, seen_in, fate, covered_by }
    })
}

fn body() -> impl Strategy<Value = Body> {
    let write = (key(), record(), vec(ledger_entry(), 0..3));
    prop_oneof![
        3 => write.prop_map(|(key, fields, ledger)| Body::Write(Write { key, fields, ledger })),
        1 => absorbed().prop_map(|absorbed| Body::Statement(Statement { absorbed })),
    ]
}

pub fn delta() -> impl Strategy<Value = Delta> {
    (dot(), option::of(dot()), any::<[u64; 3]>(), any::<u32>(), body()).prop_map(
        |(dot, prev, [keyspace, hlc, epoch], shard, body)| Delta {
            dot,
            prev,
            keyspace: KeyspaceId(keyspace),
            shard: ShardId(shard),
            hlc: Hlc(hlc),
            epoch: Epoch(epoch),
            body,
        },
    )
}

pub fn state_chunk() -> impl Strategy<Value = StateChunk> {
    let range = (vec(any::<u8>(), 0..8), option::of(key()));
    let holds = (absorbed(), vec((key(), record()), 0..3), vec(ledger_entry(), 0..2));
    (any::<[u64; 2]>(), any::<u32>(), (any::<bool>(), option::of(dot())), range, holds).prop_map(
        |([keyspace, taken_at], shard, (changes, last_own), (start, end), (absorbed, records, ledger))| StateChunk {
            keyspace: KeyspaceId(keyspace),
            shard: ShardId(shard),
            start: start.into(),
            end,
            absorbed,
            records,
            ledger,
            taken_at: Hlc(taken_at),
            changes,
            last_own,
        },
    )
}

fn row() -> impl Strategy<Value = (Incarnation, Row)> {
    (incarnation(), region(), option::of(incarnation()), vec(any::<u64>(), 0..5)).prop_map(
        |(incarnation, region, parent, left_at)| {
            let parent = parent.filter(|parent| *parent != incarnation);
            (incarnation, Row { region, parent, left_at })
        },
    )
}

pub fn entry() -> impl Strategy<Value = Entry> {
    let stream = || (any::<u64>(), any::<u32>());
    let forget = (stream(), key()).prop_map(|((keyspace, shard), key)| Entry::Forget {
        keyspace: KeyspaceId(keyspace),
        shard: ShardId(shard),
        key,
    });
    let heard = option::of((region(), stated()));
    let done =
        (stream(), absorbed(), heard, any::<bool>()).prop_map(|((keyspace, shard), cursors, heard, is_empty)| {
            Entry::StateDone { keyspace: KeyspaceId(keyspace), shard: ShardId(shard), cursors, heard, is_empty }
        });
    let begun = (stream(), region(), begun()).prop_map(|((keyspace, shard), from, begun)| Entry::StateBegun {
        keyspace: KeyspaceId(keyspace),
        shard: ShardId(shard),
        from,
        begun,
    });
    prop_oneof![
        vec(row(), 0..4).prop_map(Entry::Rows),
        delta().prop_map(Entry::Delta),
        delta().prop_map(Entry::DeltaAhead),
        forget,
        state_chunk().prop_map(Entry::StateChunk),
        done,
        begun,
        (region(), any::<bool>()).prop_map(|(region, expired)| Entry::Holder { region, expired }),
        stream().prop_map(|(keyspace, shard)| Entry::Purge { keyspace: KeyspaceId(keyspace), shard: ShardId(shard) }),
    ]
}

fn streams() -> impl Strategy<Value = Streams> {
    let said = || btree_map(region(), vector(), 0..3);
    (said(), btree_map(region(), stated(), 0..3), option::of(dot()))
        .prop_map(|(applied, heard, last_own)| Streams::from_parts(applied, heard, last_own))
}

fn stated() -> impl Strategy<Value = Stated> {
    (option::of(dot()), btree_map(region(), vector(), 0..3)).prop_map(|(dot, absorbed)| Stated { dot, absorbed })
}

fn begun() -> impl Strategy<Value = Begun> {
    (absorbed(), vec(any::<u8>(), 0..8), option::of(stated())).prop_map(|(pin, next, heard)| Begun {
        pin,
        next: Bytes::from(next),
        heard,
    })
}

fn transfers() -> impl Strategy<Value = Transfers> {
    (btree_map(region(), begun(), 0..3), vector()).prop_map(|(open, shown)| Transfers { open, shown })
}

pub fn meta() -> impl Strategy<Value = Meta> {
    let position = any::<u64>().prop_map(LogPosition);
    let seqs = vec(any::<u64>(), 1..5);
    let all = vec(((any::<u64>(), any::<u32>()), (streams(), transfers(), any::<bool>())), 0..3);
    let facts = (any::<u64>().prop_map(Hlc), proptest::collection::btree_set(region(), 0..3));
    (position, vec(row(), 0..4), option::of(incarnation()), seqs, all, facts).prop_map(
        |(position, rows, last_incarnation, last_seqs, all, (hlc_high, expired))| {
            let mut tree = IncarnationTree::new();
            for (incarnation, row) in rows {
                // Of two rows for one incarnation the first is its row.
                let _ = tree.insert(incarnation, row);
            }
            let shards = last_seqs.len() as u32;
            let (mut streams, mut transfers, mut purging) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
            for ((keyspace, shard), (cursors, left, is_purged)) in all {
                let at = (KeyspaceId(keyspace), ShardId(shard % shards));
                purging.extend(is_purged.then_some(at));
                streams.insert(at, cursors);
                transfers.insert(at, left);
            }
            Meta { position, tree, last_incarnation, last_seqs, streams, hlc_high, expired, transfers, purging }
        },
    )
}

pub fn view_mark() -> impl Strategy<Value = ViewMark> {
    let ids = ("\\PC{0,12}", "\\PC{0,12}");
    (any::<u64>(), ids, any::<bool>(), any::<u64>(), meta()).prop_map(
        |(generation, (boot_id, mount_id), clean, seal, meta)| ViewMark {
            generation,
            boot_id,
            mount_id,
            clean,
            seal,
            meta,
        },
    )
}

pub fn manifest() -> impl Strategy<Value = Manifest> {
    (any::<u64>(), any::<u64>(), any::<u64>(), meta()).prop_map(|(chunks, items, durable, meta)| Manifest {
        chunks,
        items,
        durable: LogPosition(durable),
        tree: meta.tree,
    })
}

pub fn checkpoint_chunk() -> impl Strategy<Value = Vec<(ViewKey, Held)>> {
    let of_record = (any::<u64>(), any::<u32>(), key(), record()).prop_map(|(keyspace, shard, key, record)| {
        (ViewKey::record(KeyspaceId(keyspace), ShardId(shard), &key), Held::Record(record.into()))
    });
    let of_entry = (any::<u32>(), ledger_entry()).prop_map(|(shard, entry)| {
        let key = ViewKey::ledger(entry.keyspace, ShardId(shard), &entry.key, entry.loser, &entry.field);
        (key, Held::Ledger(entry.into()))
    });
    vec(prop_oneof![of_record, of_entry], 0..4)
}
