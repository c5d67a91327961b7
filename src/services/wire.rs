//! Values, records and options between the wire and the model. What comes in is checked here, once.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use isle_model::{Hlc, IncarnationTree, Reading, Region, Sibling, Value, ValueType};
use isle_node::Consistency;
use isle_proto::v1;
use isle_proto::v1::value::Kind;
use tonic::Status;

use crate::status_table::{bad_field, not_served};

pub fn to_value(value: Option<v1::Value>, field: &'static str) -> Result<Value, Status> {
    let kind = value.and_then(|value| value.kind).ok_or_else(|| bad_field(field, "a value is needed"))?;
    Ok(match kind {
        Kind::BytesValue(bytes) => Value::bytes(bytes),
        Kind::StringValue(text) => Value { kind: ValueType::String, bytes: text.into() },
        Kind::Int64Value(number) => Value::i64(number),
        Kind::DoubleValue(number) => Value::f64(number),
        Kind::BoolValue(truth) => Value::bool(truth),
        Kind::JsonValue(text) => {
            serde_json::from_str::<serde::de::IgnoredAny>(&text)
                .map_err(|error| bad_field(field, format!("is not JSON: {error}")))?;
            Value { kind: ValueType::Json, bytes: text.into() }
        }
    })
}

/// A stored value is sound by its tag; one that is not after all is shown as its bytes, never hidden.
pub fn value(from: &Value) -> v1::Value {
    let raw = || Kind::BytesValue(from.bytes.clone());
    let text = || String::from_utf8(from.bytes.to_vec());
    let eight = || <[u8; 8]>::try_from(from.bytes.as_ref());
    let kind = match from.kind {
        ValueType::Bytes => raw(),
        ValueType::String => text().map_or_else(|_| raw(), Kind::StringValue),
        ValueType::Json => text().map_or_else(|_| raw(), Kind::JsonValue),
        ValueType::I64 => eight().map_or_else(|_| raw(), |bytes| Kind::Int64Value(i64::from_le_bytes(bytes))),
        ValueType::F64 => eight().map_or_else(|_| raw(), |bytes| Kind::DoubleValue(f64::from_le_bytes(bytes))),
        ValueType::Bool => Kind::BoolValue(from.bytes.first() == Some(&1)),
    };
    v1::Value { kind: Some(kind) }
}

/// What `version` shows: the highest sibling of each field.
pub fn record(reading: &Reading) -> v1::Record {
    let mut out = v1::Record { value: None, fields: BTreeMap::new(), counters: BTreeMap::new() };
    for (name, siblings) in &reading.values {
        let Some(highest) = siblings.first() else { continue };
        match name.as_str() {
            "" => out.value = Some(value(&highest.value)),
            name => _ = out.fields.insert(name.to_owned(), value(&highest.value)),
        }
    }
    out.counters = reading.counters.iter().map(|(name, total)| (name.as_str().to_owned(), *total)).collect();
    out
}

/// Every live value, the shown one of each field first.
pub fn siblings(reading: &Reading, tree: &IncarnationTree) -> Vec<v1::Sibling> {
    let of_field = |(name, siblings): &(isle_model::FieldName, Vec<Sibling>)| {
        let name = name.as_str().to_owned();
        let rows = siblings.iter().enumerate();
        rows.map(|(at, found)| sibling(&name, found, at == 0, tree)).collect::<Vec<_>>()
    };
    reading.values.iter().flat_map(of_field).collect()
}

fn sibling(field: &str, from: &Sibling, current: bool, tree: &IncarnationTree) -> v1::Sibling {
    v1::Sibling {
        field: field.to_owned(),
        value: Some(value(&from.value)),
        dot: from.dot.to_string(),
        region: tree.region(from.dot.incarnation).map(Region::to_string).unwrap_or_default(),
        write_time: Some(time(from.hlc)),
        home_epoch: from.epoch.0,
        current,
    }
}

fn time(hlc: Hlc) -> prost_types::Timestamp {
    (SystemTime::UNIX_EPOCH + Duration::from_millis(hlc.ms())).into()
}

pub fn span(from: Duration) -> Option<prost_types::Duration> {
    from.try_into().ok()
}

pub fn name_of(region: Option<&Region>) -> String {
    region.map(Region::to_string).unwrap_or_default()
}

pub fn consistency(read: Option<v1::ReadOptions>) -> Result<Consistency, Status> {
    let Some(read) = read else { return Ok(Consistency::Default) };
    if !read.session_token.is_empty() {
        return Err(not_served("read.session_token"));
    }
    let bound = read.max_staleness.map(Duration::try_from).transpose();
    let bound = bound.map_err(|_| bad_field("read.max_staleness", "is negative"))?;
    match (v1::Consistency::try_from(read.consistency), bound) {
        (Ok(v1::Consistency::Bounded), Some(bound)) if !bound.is_zero() => Ok(Consistency::Bounded(bound)),
        (Ok(v1::Consistency::Bounded), _) => Err(bad_field("read.max_staleness", "has to be above zero")),
        (Ok(_), Some(_)) => Err(bad_field("read.max_staleness", "is for BOUNDED alone")),
        (Ok(v1::Consistency::Unspecified), None) => Ok(Consistency::Default),
        (Ok(v1::Consistency::Eventual), None) => Ok(Consistency::Eventual),
        (Ok(v1::Consistency::Session), None) => Ok(Consistency::Session),
        (Ok(v1::Consistency::Strong), None) => Ok(Consistency::Strong),
        (Err(_), _) => Err(bad_field("read.consistency", format!("{} is unknown", read.consistency))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_type_comes_back_as_it_was_sent() {
        let kinds = [
            Kind::BytesValue(bytes::Bytes::from_static(&[0xff, 0])),
            Kind::StringValue("ä".to_owned()),
            Kind::Int64Value(i64::MIN),
            Kind::DoubleValue(-0.5),
            Kind::BoolValue(true),
            Kind::JsonValue("{\"a\": [1, null]}".to_owned()),
        ];
        for kind in kinds {
            let sent = v1::Value { kind: Some(kind) };
            assert_eq!(value(&to_value(Some(sent.clone()), "value").unwrap()), sent);
        }
    }

    #[test]
    fn a_missing_value_and_bad_json_are_refused() {
        assert_eq!(to_value(None, "value").unwrap_err().code(), tonic::Code::InvalidArgument);
        let bad = v1::Value { kind: Some(Kind::JsonValue("{".to_owned())) };
        assert!(to_value(Some(bad), "value").unwrap_err().message().contains("is not JSON"));
    }

    #[test]
    fn what_is_not_served_yet_is_refused() {
        let token = v1::ReadOptions { session_token: "x".into(), ..v1::ReadOptions::default() };
        assert_eq!(consistency(Some(token)).unwrap_err().code(), tonic::Code::Unimplemented);
        assert_eq!(consistency(None).unwrap(), Consistency::Default);
    }
}
