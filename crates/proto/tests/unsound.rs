//! What decodes but makes no sense is refused, and what repeats itself is set in order: what comes out of `convert` is sound.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use isle_model::Incarnation;
use isle_model::limits::{FIELD_NAME_BYTES_MAX, KEY_BYTES_MAX, SHARDS_MAX, VALUE_BYTES_MAX, VECTOR_ENTRIES_MAX};
use isle_proto::convert::{self, Unsound};
use isle_proto::storage as s;
use proptest::prelude::*;

fn dot(incarnation: u64, seq: u64) -> s::Dot {
    s::Dot { incarnation, seq }
}

fn sibling(seq: u64) -> s::Sibling {
    s::Sibling { dot: Some(dot(1, seq)), r#type: s::ValueType::Bytes as i32, ..Default::default() }
}

fn register(siblings: Vec<s::Sibling>) -> Option<s::field::Content> {
    Some(s::field::Content::Register(s::Register { siblings, ..Default::default() }))
}

fn counter(totals: Vec<s::CounterTotal>, covered: Vec<s::CounterCovered>) -> Option<s::field::Content> {
    Some(s::field::Content::Counter(s::Counter { totals, covered, seen: None }))
}

fn total(incarnation: u64, seq: u64, start: u64) -> s::CounterTotal {
    s::CounterTotal { incarnation, seq, start, total: 1 }
}

fn field(name: &str, kind: s::Kind, content: Option<s::field::Content>) -> s::Field {
    s::Field { name: name.to_owned(), kind: kind as i32, content }
}

fn record(fields: Vec<s::Field>) -> Result<isle_model::Record, Unsound> {
    convert::to_record(s::Record { fields })
}

fn write(key: Vec<u8>) -> s::Delta {
    let body = s::delta::Body::Write(s::Write { key: key.into(), ..Default::default() });
    s::Delta { dot: Some(dot(1, 1)), body: Some(body), ..Default::default() }
}

#[test]
fn no_dot_is_zero() {
    for zero in [dot(0, 0), dot(0, 1), dot(1, 0)] {
        assert_eq!(convert::to_dot(zero), Err(Unsound::OutOfBounds("dot")));
        assert!(convert::to_vector(&s::Vector { entries: vec![dot(1, 1), zero] }).is_err());
        assert!(convert::to_sibling(s::Sibling { dot: Some(zero), ..sibling(1) }).is_err());
        assert!(convert::to_delta(s::Delta { dot: Some(zero), ..write(vec![1]) }).is_err());
        assert!(convert::to_delta(s::Delta { prev: Some(zero), ..write(vec![1]) }).is_err());
    }
    assert!(convert::to_dot(dot(u64::MAX, u64::MAX)).is_ok());
}

#[test]
fn a_field_comes_once_and_fits_its_kind() {
    let one = || register(vec![sibling(1)]);
    assert!(record(vec![field("a", s::Kind::Value, one()), field("a", s::Kind::Home, one())]).is_ok());
    assert_eq!(
        record(vec![field("a", s::Kind::Value, one()), field("a", s::Kind::Value, one())]),
        Err(Unsound::Fields)
    );
    assert_eq!(record(vec![field("a", s::Kind::Counter, one())]), Err(Unsound::Fields));
    assert_eq!(record(vec![field("a", s::Kind::Value, counter(vec![], vec![]))]), Err(Unsound::Fields));
    assert_eq!(record(vec![field("a", s::Kind::Home, counter(vec![], vec![]))]), Err(Unsound::Fields));
    assert_eq!(record(vec![field("a", s::Kind::Unspecified, one())]), Err(Unsound::UnknownEnum("kind", 0)));
    assert_eq!(
        record(vec![s::Field { kind: 4, ..field("a", s::Kind::Value, one()) }]),
        Err(Unsound::UnknownEnum("kind", 4))
    );
    assert_eq!(record(vec![field("a", s::Kind::Value, None)]), Err(Unsound::Missing("field's content")));
}

#[test]
fn every_limit_holds_and_none_is_off_by_one() {
    let key = |len: usize| convert::to_delta(write(vec![7; len]));
    assert!(key(0).is_err() && key(1).is_ok() && key(KEY_BYTES_MAX).is_ok() && key(KEY_BYTES_MAX + 1).is_err());
    let name = |len: usize| record(vec![field(&"n".repeat(len), s::Kind::Value, register(vec![]))]);
    assert!(name(0).is_ok() && name(FIELD_NAME_BYTES_MAX).is_ok() && name(FIELD_NAME_BYTES_MAX + 1).is_err());
    let value = |len: usize| convert::to_sibling(s::Sibling { value: vec![0; len].into(), ..sibling(1) });
    assert!(value(VALUE_BYTES_MAX).is_ok() && value(VALUE_BYTES_MAX + 1).is_err());
    let vector = |len: usize| convert::to_vector(&s::Vector { entries: vec![dot(1, 1); len] });
    assert!(vector(VECTOR_ENTRIES_MAX).is_ok() && vector(VECTOR_ENTRIES_MAX + 1).is_err());
    let row = |left_at: usize| {
        let row = s::IncarnationRow { incarnation: 1, region: "a".to_owned(), parent: 0, left_at: vec![1; left_at] };
        convert::to_row(row)
    };
    assert!(row(0).is_ok() && row(SHARDS_MAX as usize).is_ok() && row(SHARDS_MAX as usize + 1).is_err());
}

#[test]
fn a_row_has_an_incarnation_a_region_and_another_parent() {
    let row = |incarnation, region: &str, parent| {
        convert::to_row(s::IncarnationRow { incarnation, region: region.to_owned(), parent, left_at: vec![] })
    };
    assert!(row(1, "a", 0).is_ok() && row(1, "a", 2).is_ok());
    assert!(row(0, "a", 2).is_err() && row(1, "a", 1).is_err() && row(1, "", 0).is_err());
}

#[test]
fn a_counter_entry_begins_no_later_than_it_ends() {
    let of = |totals, covered| record(vec![field("n", s::Kind::Counter, counter(totals, covered))]);
    assert!(of(vec![total(1, 2, 2)], vec![]).is_ok());
    assert!(of(vec![total(1, 2, 3)], vec![]).is_err());
    assert!(of(vec![total(0, 2, 1)], vec![]).is_err());
    assert!(of(vec![total(1, 0, 0)], vec![]).is_err());
    assert!(of(vec![], vec![s::CounterCovered { incarnation: 1, seq: 0, total: 1 }]).is_err());
    assert!(of(vec![total(1, 2, 1); VECTOR_ENTRIES_MAX + 1], vec![]).is_err());
}

#[test]
fn a_value_is_what_its_type_says() {
    let of = |kind: s::ValueType, bytes: &'static [u8]| {
        convert::to_sibling(s::Sibling { r#type: kind as i32, value: Bytes::from_static(bytes), ..sibling(1) })
    };
    assert!(of(s::ValueType::I64, b"12345678").is_ok() && of(s::ValueType::I64, b"1234567").is_err());
    assert!(of(s::ValueType::F64, b"").is_err());
    assert!(of(s::ValueType::Bool, b"\x01").is_ok() && of(s::ValueType::Bool, b"\x02").is_err());
    assert!(of(s::ValueType::String, b"\xff").is_err() && of(s::ValueType::Json, b"\xff").is_err());
    assert!(of(s::ValueType::Unspecified, b"").is_err());
}

#[test]
fn what_a_delta_cannot_do_without_is_missed() {
    assert!(convert::to_delta(write(vec![1])).is_ok());
    assert_eq!(convert::to_delta(s::Delta { body: None, ..write(vec![1]) }), Err(Unsound::Missing("delta's body")));
    assert_eq!(convert::to_delta(s::Delta { dot: None, ..write(vec![1]) }), Err(Unsound::Missing("delta's dot")));
}

proptest! {
    /// However often an incarnation comes, and in whatever order: its highest entry counts, as in the model.
    #[test]
    fn a_vector_is_set_in_order(entries in proptest::collection::vec((1..6u64, 1..9u64), 0..20)) {
        let stored = s::Vector { entries: entries.iter().map(|(incarnation, seq)| dot(*incarnation, *seq)).collect() };
        let vector = convert::to_vector(&stored).unwrap();
        for incarnation in 1..6 {
            let highest = entries.iter().filter(|e| e.0 == incarnation).map(|e| e.1).max().unwrap_or(0);
            prop_assert_eq!(vector.get(Incarnation(incarnation)), highest);
        }
        prop_assert!(vector.entries().windows(2).all(|w| w[0].0 < w[1].0));
    }

    /// Siblings and counter entries that come twice do not count twice.
    #[test]
    fn what_comes_twice_counts_once(seqs in proptest::collection::vec(1..5u64, 1..12)) {
        let record = record(vec![
            field("n", s::Kind::Counter, counter(seqs.iter().map(|seq| total(1, *seq, 1)).collect(), vec![])),
            field("v", s::Kind::Value, register(seqs.iter().map(|seq| sibling(*seq)).collect())),
        ]).unwrap();
        let distinct: std::collections::BTreeSet<u64> = seqs.iter().copied().collect();
        let siblings = record.register(&isle_model::FieldKey::value("v")).unwrap().siblings();
        prop_assert!(siblings.iter().map(|s| s.dot.seq).eq(distinct.iter().copied()));
        let totals = record.counter(&isle_model::FieldKey::counter("n")).unwrap().totals();
        prop_assert_eq!(totals.len(), 1);
        prop_assert_eq!(Some(&totals[0].1.seq), distinct.last());
    }
}
