//! Values as they are typed.

use std::io::Read;

use bytes::Bytes;
use clap::ValueEnum;
use isle_client::Value;
use serde_json::Value as Json;

use super::Failure;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Type {
    #[default]
    String,
    Bytes,
    I64,
    F64,
    Bool,
    Json,
}

/// A value of this type. `-` stands for all of stdin.
pub fn parse(text: &str, kind: Type) -> Result<Value, Failure> {
    let raw = if text == "-" { stdin()? } else { text.as_bytes().to_vec() };
    of_bytes(raw, kind).map_err(Failure::Usage)
}

fn stdin() -> Result<Vec<u8>, Failure> {
    let mut raw = Vec::new();
    std::io::stdin().lock().read_to_end(&mut raw)?;
    Ok(raw)
}

fn of_bytes(raw: Vec<u8>, kind: Type) -> Result<Value, String> {
    if kind == Type::Bytes {
        return Ok(Value::Bytes(Bytes::from(raw)));
    }
    let text = String::from_utf8(raw).map_err(|_| "the value is not UTF-8; give --type bytes".to_owned())?;
    let bad = |what: &str| format!("{text:?} is not {what}");
    Ok(match kind {
        Type::I64 => Value::I64(text.trim().parse().map_err(|_| bad("a whole number of 64 bits"))?),
        Type::F64 => Value::F64(text.trim().parse().map_err(|_| bad("a number"))?),
        Type::Bool => Value::Bool(text.trim().parse().map_err(|_| bad("true or false"))?),
        Type::Json => {
            serde_json::from_str::<serde::de::IgnoredAny>(&text).map_err(|error| format!("not JSON: {error}"))?;
            Value::Json(text)
        }
        Type::String | Type::Bytes => Value::String(text),
    })
}

/// The field that a JSON member becomes. Null is no value: `None`.
pub fn of_json(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => return None,
        Json::Bool(truth) => Value::Bool(*truth),
        Json::String(text) => Value::String(text.clone()),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Value::I64(whole),
            (None, Some(real)) if !number.is_u64() => Value::F64(real),
            // Beyond 63 bits: kept digit by digit.
            _ => Value::Json(number.to_string()),
        },
        Json::Array(_) | Json::Object(_) => Value::Json(json.to_string()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_read_by_their_type() {
        let read = |text: &str, kind| of_bytes(text.as_bytes().to_vec(), kind);
        assert_eq!(read("7", Type::String).unwrap(), Value::from("7"));
        assert_eq!(read("-7", Type::I64).unwrap(), Value::I64(-7));
        assert_eq!(read("1e3", Type::F64).unwrap(), Value::F64(1000.0));
        assert_eq!(read("true", Type::Bool).unwrap(), Value::Bool(true));
        assert_eq!(read("[1, 2]", Type::Json).unwrap(), Value::Json("[1, 2]".to_owned()));
        for (text, kind) in
            [("x", Type::I64), ("yes", Type::Bool), ("{", Type::Json), ("9223372036854775808", Type::I64)]
        {
            assert!(read(text, kind).is_err(), "{text} was taken");
        }
        assert!(of_bytes(vec![0xff], Type::String).is_err());
    }

    #[test]
    fn members_keep_their_type() {
        assert_eq!(of_json(&json!(3)), Some(Value::I64(3)));
        assert_eq!(of_json(&json!(3.5)), Some(Value::F64(3.5)));
        assert_eq!(of_json(&json!(u64::MAX)), Some(Value::Json(u64::MAX.to_string())));
        assert_eq!(of_json(&json!({"a": [1]})), Some(Value::Json("{\"a\":[1]}".to_owned())));
        assert_eq!(of_json(&json!(null)), None);
    }
}
