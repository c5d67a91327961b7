//! Conversions between the stored messages and the model, validated once: what comes out is sound.

use bytes::Bytes;
use isle_model::limits::{
    FIELD_NAME_BYTES_MAX, FIELDS_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX, VALUE_BYTES_MAX, VECTOR_ENTRIES_MAX,
};
use isle_model::{
    Body, Counter, Covered, Delta, Dot, Epoch, Fate, Field, FieldKey, FieldName, Generation, Hlc, Incarnation,
    KeyspaceId, Kind, LedgerEntry, Record, Region, Register, Row, ShardId, Sibling, Statement, Total, Value, ValueType,
    Vector, Write,
};

use crate::storage as s;

/// A message that decodes but makes no sense. Whoever sent or stored it is at fault; it is not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} is out of bounds")]
    OutOfBounds(&'static str),
    #[error("{0} has an unknown number {1}")]
    UnknownEnum(&'static str, i32),
    #[error("a record names a field twice, or one that does not fit its kind")]
    Fields,
    #[error(transparent)]
    Value(#[from] isle_model::BadValue),
}

pub fn dot(dot: Dot) -> s::Dot {
    s::Dot { incarnation: dot.incarnation.0, seq: dot.seq }
}

pub fn to_dot(from: s::Dot) -> Result<Dot, Unsound> {
    if from.incarnation == 0 || from.seq == 0 {
        return Err(Unsound::OutOfBounds("dot"));
    }
    Ok(Dot::new(Incarnation(from.incarnation), from.seq))
}

fn to_required_dot(from: Option<s::Dot>, what: &'static str) -> Result<Dot, Unsound> {
    to_dot(from.ok_or(Unsound::Missing(what))?)
}

pub fn vector(vector: &Vector) -> s::Vector {
    s::Vector { entries: vector.dots().map(dot).collect() }
}

pub fn to_vector(from: &s::Vector) -> Result<Vector, Unsound> {
    if from.entries.len() > VECTOR_ENTRIES_MAX {
        return Err(Unsound::OutOfBounds("vector"));
    }
    let entries = from.entries.iter().map(|e| to_dot(*e).map(|d| (d.incarnation, d.seq)));
    Ok(Vector::from_entries(entries.collect::<Result<Vec<_>, _>>()?))
}

fn to_optional_vector(from: &Option<s::Vector>) -> Result<Vector, Unsound> {
    from.as_ref().map_or(Ok(Vector::new()), to_vector)
}

pub fn row(incarnation: Incarnation, row: &Row) -> s::IncarnationRow {
    s::IncarnationRow {
        incarnation: incarnation.0,
        region: row.region.to_string(),
        parent: row.parent.map_or(0, |parent| parent.0),
        left_at: row.left_at.clone(),
    }
}

pub fn to_row(from: s::IncarnationRow) -> Result<(Incarnation, Row), Unsound> {
    if from.incarnation == 0 || from.incarnation == from.parent {
        return Err(Unsound::OutOfBounds("incarnation row"));
    }
    if from.left_at.len() > isle_model::limits::SHARDS_MAX as usize {
        return Err(Unsound::OutOfBounds("incarnation row's shards"));
    }
    let parent = (from.parent != 0).then_some(Incarnation(from.parent));
    Ok((Incarnation(from.incarnation), Row { region: to_region(&from.region)?, parent, left_at: from.left_at }))
}

pub fn to_rows(from: Vec<s::IncarnationRow>) -> Result<Vec<(Incarnation, Row)>, Unsound> {
    from.into_iter().map(to_row).collect()
}

pub fn to_region(name: &str) -> Result<Region, Unsound> {
    match name.len() {
        1..=NAME_BYTES_MAX => Ok(Region::new(name)),
        _ => Err(Unsound::OutOfBounds("region name")),
    }
}

pub fn value_type(kind: ValueType) -> s::ValueType {
    match kind {
        ValueType::Bytes => s::ValueType::Bytes,
        ValueType::String => s::ValueType::String,
        ValueType::I64 => s::ValueType::I64,
        ValueType::F64 => s::ValueType::F64,
        ValueType::Bool => s::ValueType::Bool,
        ValueType::Json => s::ValueType::Json,
    }
}

fn to_value_type(number: i32) -> Result<ValueType, Unsound> {
    Ok(match s::ValueType::try_from(number) {
        Ok(s::ValueType::Bytes) => ValueType::Bytes,
        Ok(s::ValueType::String) => ValueType::String,
        Ok(s::ValueType::I64) => ValueType::I64,
        Ok(s::ValueType::F64) => ValueType::F64,
        Ok(s::ValueType::Bool) => ValueType::Bool,
        Ok(s::ValueType::Json) => ValueType::Json,
        Ok(s::ValueType::Unspecified) | Err(_) => return Err(Unsound::UnknownEnum("value type", number)),
    })
}

pub(crate) fn kind(kind: Kind) -> s::Kind {
    match kind {
        Kind::Value => s::Kind::Value,
        Kind::Counter => s::Kind::Counter,
        Kind::Home => s::Kind::Home,
    }
}

fn to_kind(number: i32) -> Result<Kind, Unsound> {
    Ok(match s::Kind::try_from(number) {
        Ok(s::Kind::Value) => Kind::Value,
        Ok(s::Kind::Counter) => Kind::Counter,
        Ok(s::Kind::Home) => Kind::Home,
        Ok(s::Kind::Unspecified) | Err(_) => return Err(Unsound::UnknownEnum("kind", number)),
    })
}

pub fn sibling(sibling: &Sibling) -> s::Sibling {
    s::Sibling {
        dot: Some(dot(sibling.dot)),
        generation: sibling.generation.0,
        hlc: sibling.hlc.0,
        epoch: sibling.epoch.0,
        r#type: value_type(sibling.value.kind) as i32,
        value: sibling.value.bytes.clone(),
    }
}

pub fn to_sibling(from: s::Sibling) -> Result<Sibling, Unsound> {
    if from.value.len() > VALUE_BYTES_MAX {
        return Err(Unsound::OutOfBounds("value"));
    }
    Ok(Sibling {
        dot: to_required_dot(from.dot, "sibling's dot")?,
        epoch: Epoch(from.epoch),
        generation: Generation(from.generation),
        hlc: Hlc(from.hlc),
        value: Value::new(to_value_type(from.r#type)?, from.value)?,
    })
}

fn register(register: &Register) -> s::Register {
    s::Register {
        siblings: register.siblings().iter().map(sibling).collect(),
        seen: Some(vector(register.seen())),
        generation: register.generation().0,
        epoch: register.epoch().0,
    }
}

fn to_register(from: s::Register) -> Result<Register, Unsound> {
    let siblings = from.siblings.into_iter().map(to_sibling).collect::<Result<Vec<_>, _>>()?;
    let seen = to_optional_vector(&from.seen)?;
    Ok(Register::from_parts(siblings, seen, Generation(from.generation), Epoch(from.epoch)))
}

pub(crate) fn counter(counter: &Counter) -> s::Counter {
    let totals = counter.totals().iter().map(|(incarnation, t)| s::CounterTotal {
        incarnation: incarnation.0,
        seq: t.seq,
        start: t.start,
        total: t.total,
    });
    let covered = counter.covered().iter().map(|(incarnation, c)| s::CounterCovered {
        incarnation: incarnation.0,
        seq: c.seq,
        total: c.total,
    });
    s::Counter { totals: totals.collect(), covered: covered.collect(), seen: Some(vector(counter.seen())) }
}

fn to_counter(from: s::Counter) -> Result<Counter, Unsound> {
    if from.totals.len() > VECTOR_ENTRIES_MAX || from.covered.len() > VECTOR_ENTRIES_MAX {
        return Err(Unsound::OutOfBounds("counter"));
    }
    let sound = from.totals.iter().all(|t| t.incarnation != 0 && t.seq != 0 && t.start <= t.seq)
        && from.covered.iter().all(|c| c.incarnation != 0 && c.seq != 0);
    if !sound {
        return Err(Unsound::OutOfBounds("counter entry"));
    }
    let totals = from
        .totals
        .into_iter()
        .map(|t| (Incarnation(t.incarnation), Total { seq: t.seq, start: t.start, total: t.total }));
    let covered =
        from.covered.into_iter().map(|c| (Incarnation(c.incarnation), Covered { seq: c.seq, total: c.total }));
    Ok(Counter::from_parts(totals.collect(), covered.collect(), to_optional_vector(&from.seen)?))
}

fn fields(record: &Record) -> Vec<s::Field> {
    let one = |(key, field): &(FieldKey, Field)| s::Field {
        name: key.name.to_string(),
        kind: kind(key.kind) as i32,
        content: Some(match field {
            Field::Register(r) => s::field::Content::Register(register(r)),
            Field::Counter(c) => s::field::Content::Counter(counter(c)),
        }),
    };
    record.fields().iter().map(one).collect()
}

fn to_fields(from: Vec<s::Field>) -> Result<Record, Unsound> {
    // A merge of full records from every region may hold more fields than one region would let a client make.
    if from.len() > FIELDS_MAX * 64 {
        return Err(Unsound::OutOfBounds("fields"));
    }
    let one = |field: s::Field| {
        let key = to_field_key(field.kind, &field.name)?;
        let content = match field.content.ok_or(Unsound::Missing("field's content"))? {
            s::field::Content::Register(r) => Field::Register(to_register(r)?),
            s::field::Content::Counter(c) => Field::Counter(to_counter(c)?),
        };
        Ok((key, content))
    };
    let fields = from.into_iter().map(one).collect::<Result<Vec<_>, Unsound>>()?;
    Record::from_fields(fields).ok_or(Unsound::Fields)
}

fn to_field_key(number: i32, name: &str) -> Result<FieldKey, Unsound> {
    if name.len() > FIELD_NAME_BYTES_MAX {
        return Err(Unsound::OutOfBounds("field name"));
    }
    Ok(FieldKey { kind: to_kind(number)?, name: FieldName::new(name) })
}

pub fn record(record: &Record) -> s::Record {
    s::Record { fields: fields(record) }
}

pub fn to_record(from: s::Record) -> Result<Record, Unsound> {
    to_fields(from.fields)
}

pub fn to_key(key: Bytes) -> Result<Bytes, Unsound> {
    match key.len() {
        1..=KEY_BYTES_MAX => Ok(key),
        _ => Err(Unsound::OutOfBounds("key")),
    }
}

pub fn ledger_entry(entry: &LedgerEntry) -> s::LedgerEntry {
    s::LedgerEntry {
        keyspace: entry.keyspace.0,
        key: entry.key.clone(),
        field: entry.field.name.to_string(),
        kind: kind(entry.field.kind) as i32,
        loser: Some(dot(entry.loser)),
        value: entry.value.as_ref().map(sibling),
        winner: entry.winner.map(dot),
        seen_at: entry.seen_at.0,
        seen_in: entry.seen_in.to_string(),
        fate: match entry.fate {
            Fate::Open => s::Fate::Open,
            Fate::Superseded => s::Fate::Superseded,
            Fate::Lost => s::Fate::Lost,
        } as i32,
        covered_by: entry.covered_by.map(dot),
    }
}

pub fn to_ledger_entry(from: s::LedgerEntry) -> Result<LedgerEntry, Unsound> {
    Ok(LedgerEntry {
        keyspace: KeyspaceId(from.keyspace),
        key: to_key(from.key)?,
        field: to_field_key(from.kind, &from.field)?,
        loser: to_required_dot(from.loser, "loser")?,
        value: from.value.map(to_sibling).transpose()?,
        winner: from.winner.map(to_dot).transpose()?,
        seen_at: Hlc(from.seen_at),
        seen_in: to_region(&from.seen_in)?,
        fate: match s::Fate::try_from(from.fate) {
            Ok(s::Fate::Open) => Fate::Open,
            Ok(s::Fate::Superseded) => Fate::Superseded,
            Ok(s::Fate::Lost) => Fate::Lost,
            Ok(s::Fate::Unspecified) | Err(_) => return Err(Unsound::UnknownEnum("fate", from.fate)),
        },
        covered_by: from.covered_by.map(to_dot).transpose()?,
    })
}

pub fn ledger(entries: &[LedgerEntry]) -> Vec<s::LedgerEntry> {
    entries.iter().map(ledger_entry).collect()
}

pub fn to_ledger(from: Vec<s::LedgerEntry>) -> Result<Vec<LedgerEntry>, Unsound> {
    from.into_iter().map(to_ledger_entry).collect()
}

pub fn absorbed<'a>(entries: impl IntoIterator<Item = (&'a Region, &'a Vector)>) -> Vec<s::Absorbed> {
    let one = |(region, v): (&Region, &Vector)| s::Absorbed { region: region.to_string(), vector: Some(vector(v)) };
    entries.into_iter().map(one).collect()
}

pub fn to_absorbed(from: Vec<s::Absorbed>) -> Result<Vec<(Region, Vector)>, Unsound> {
    from.into_iter().map(|a| Ok((to_region(&a.region)?, to_optional_vector(&a.vector)?))).collect()
}

pub fn delta(delta: &Delta) -> s::Delta {
    s::Delta {
        dot: Some(dot(delta.dot)),
        prev: delta.prev.map(dot),
        keyspace: delta.keyspace.0,
        shard: delta.shard.0,
        hlc: delta.hlc.0,
        epoch: delta.epoch.0,
        body: Some(match &delta.body {
            Body::Write(write) => s::delta::Body::Write(s::Write {
                key: write.key.clone(),
                fields: fields(&write.fields),
                ledger: ledger(&write.ledger),
            }),
            Body::Statement(statement) => s::delta::Body::Statement(s::Statement {
                absorbed: absorbed(statement.absorbed.iter().map(|(r, v)| (r, v))),
            }),
        }),
    }
}

pub fn to_delta(from: s::Delta) -> Result<Delta, Unsound> {
    let body = match from.body.ok_or(Unsound::Missing("delta's body"))? {
        s::delta::Body::Write(write) => Body::Write(Write {
            key: to_key(write.key)?,
            fields: to_fields(write.fields)?,
            ledger: to_ledger(write.ledger)?,
        }),
        s::delta::Body::Statement(statement) => {
            Body::Statement(Statement { absorbed: to_absorbed(statement.absorbed)? })
        }
    };
    Ok(Delta {
        dot: to_required_dot(from.dot, "delta's dot")?,
        prev: from.prev.map(to_dot).transpose()?,
        keyspace: KeyspaceId(from.keyspace),
        shard: ShardId(from.shard),
        hlc: Hlc(from.hlc),
        epoch: Epoch(from.epoch),
        body,
    })
}
