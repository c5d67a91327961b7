//! A value: bytes with a type tag. The store never looks inside; the tag tells a client how to show them.

use bytes::Bytes;

/// The type of a value. The numbers are stored: they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ValueType {
    Bytes = 1,
    String = 2,
    /// 8 bytes, little endian, two's complement.
    I64 = 3,
    /// 8 bytes, little endian, IEEE 754.
    F64 = 4,
    /// 1 byte, 0 or 1.
    Bool = 5,
    /// UTF-8 JSON text.
    Json = 6,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Value {
    pub kind: ValueType,
    pub bytes: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    #[error("a {kind:?} value holds {len} bytes, which is not its size")]
    Size { kind: ValueType, len: usize },
    #[error("a {kind:?} value is not UTF-8")]
    NotText { kind: ValueType },
    #[error("a bool value is neither 0 nor 1")]
    NotBool,
}

impl Value {
    pub fn string(text: &str) -> Value {
        Value { kind: ValueType::String, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    pub fn bytes(bytes: impl Into<Bytes>) -> Value {
        Value { kind: ValueType::Bytes, bytes: bytes.into() }
    }

    pub fn i64(number: i64) -> Value {
        Value { kind: ValueType::I64, bytes: Bytes::copy_from_slice(&number.to_le_bytes()) }
    }

    pub fn f64(number: f64) -> Value {
        Value { kind: ValueType::F64, bytes: Bytes::copy_from_slice(&number.to_le_bytes()) }
    }

    pub fn bool(truth: bool) -> Value {
        Value { kind: ValueType::Bool, bytes: Bytes::from_static(if truth { &[1] } else { &[0] }) }
    }

    pub fn json(text: &str) -> Value {
        Value { kind: ValueType::Json, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    /// A value as it came from outside, checked against its tag. (That JSON text parses is the server's to check.)
    pub fn new(kind: ValueType, bytes: Bytes) -> Result<Value, BadValue> {
        let len = bytes.len();
        match kind {
            ValueType::I64 | ValueType::F64 if len != 8 => return Err(BadValue::Size { kind, len }),
            ValueType::Bool if len != 1 => return Err(BadValue::Size { kind, len }),
            ValueType::Bool if bytes[0] > 1 => return Err(BadValue::NotBool),
            ValueType::String | ValueType::Json if std::str::from_utf8(&bytes).is_err() => {
                return Err(BadValue::NotText { kind });
            }
            _ => {}
        }
        Ok(Value { kind, bytes })
    }
}
