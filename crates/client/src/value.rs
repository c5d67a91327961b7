//! A value of one of isle's six types.

use bytes::Bytes;
use isle_proto::v1;
use isle_proto::v1::value::Kind;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bytes(Bytes),
    String(String),
    I64(i64),
    F64(f64),
    Bool(bool),
    /// JSON text, kept as it was sent.
    Json(String),
}

impl From<Value> for v1::Value {
    fn from(value: Value) -> v1::Value {
        let kind = match value {
            Value::Bytes(bytes) => Kind::BytesValue(bytes),
            Value::String(text) => Kind::StringValue(text),
            Value::I64(number) => Kind::Int64Value(number),
            Value::F64(number) => Kind::DoubleValue(number),
            Value::Bool(truth) => Kind::BoolValue(truth),
            Value::Json(text) => Kind::JsonValue(text),
        };
        v1::Value { kind: Some(kind) }
    }
}

impl Value {
    /// `None` for a type that this version does not know.
    pub(crate) fn of_wire(value: v1::Value) -> Option<Value> {
        Some(match value.kind? {
            Kind::BytesValue(bytes) => Value::Bytes(bytes),
            Kind::StringValue(text) => Value::String(text),
            Kind::Int64Value(number) => Value::I64(number),
            Kind::DoubleValue(number) => Value::F64(number),
            Kind::BoolValue(truth) => Value::Bool(truth),
            Kind::JsonValue(text) => Value::Json(text),
        })
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::I64(number)
    }
}
