//! What a read and a write bring back.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use isle_proto::v1;

use crate::Value;

/// What a key holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The unnamed field: what `put` writes.
    pub value: Option<Value>,
    pub fields: BTreeMap<String, Value>,
    pub counters: BTreeMap<String, i64>,
}

/// A record as the region that answered sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    pub found: bool,
    pub key: Bytes,
    pub record: Record,
    /// Hand it back as `if_version` or `context`.
    pub version: Bytes,
    /// Whether some field has more than one live value.
    pub conflict: bool,
    pub home: String,
    pub served_by: String,
    /// How far the answer may be behind the other regions; unset until that is known.
    pub staleness: Option<Duration>,
}

/// A durable write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub version: Bytes,
    pub home: String,
    pub served_by: String,
    /// Whether it is the outcome of an earlier call with the same request id.
    pub replayed: bool,
    /// Of an increment: the counter afterwards.
    pub value: Option<i64>,
    /// Of a delete: whether there was something.
    pub found: Option<bool>,
}

impl Record {
    fn of_wire(record: v1::Record) -> Record {
        let field = |(name, value)| Some((name, Value::of_wire(value)?));
        Record {
            value: record.value.and_then(Value::of_wire),
            fields: record.fields.into_iter().filter_map(field).collect(),
            counters: record.counters,
        }
    }
}

impl Entry {
    pub(crate) fn of_wire(found: bool, entry: Option<v1::Entry>, header: Option<&v1::ResponseHeader>) -> Entry {
        let entry = entry.unwrap_or_default();
        let header = header.cloned().unwrap_or_default();
        Entry {
            found,
            key: entry.key,
            record: entry.record.map(Record::of_wire).unwrap_or_default(),
            version: entry.version,
            conflict: entry.conflict,
            home: if entry.home.is_empty() { header.home } else { entry.home },
            served_by: header.served_by,
            staleness: header.staleness.and_then(|span| Duration::try_from(span).ok()),
        }
    }
}

impl Written {
    pub(crate) fn of_wire(header: Option<v1::ResponseHeader>, version: Bytes, replayed: bool) -> Written {
        let header = header.unwrap_or_default();
        Written { version, home: header.home, served_by: header.served_by, replayed, ..Written::default() }
    }

    pub(crate) fn of_item(applied: v1::WriteApplied, header: Option<&v1::ResponseHeader>) -> Written {
        let mut written = Written::of_wire(header.cloned(), applied.version, applied.replayed);
        written.value = applied.value;
        written.found = applied.found;
        written
    }
}
