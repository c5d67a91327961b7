//! What the commands print: text for people, or one JSON object a line with the fields that programs may rely on.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD};
use bytes::Bytes;
use isle_client::policy::{Policy, SETTINGS};
use isle_client::{Entry, Error, HolderChange, HolderStep, Keyspace, Record, Value, Violation, Written};
use serde_json::{Map, Value as Json, json};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one object a line.
    Json,
}

/// Prints a line. A reader that has gone away (`isle scan … | head`) is no fault: the process ends as others do.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => done,
    }
}

pub fn entry(entry: &Entry, key: &[u8]) -> Json {
    json!({
        "found": entry.found,
        "key": bytes(key),
        "value": if entry.found { record(&entry.record) } else { Json::Null },
        "version": version(&entry.version),
        "home": entry.home,
        "served_by": entry.served_by,
        "staleness_ms": entry.staleness.map(|span| span.as_millis() as u64),
        "conflict": entry.conflict,
    })
}

pub fn written(written: &Written) -> Json {
    let mut out = json!({
        "version": version(&written.version),
        "home": written.home,
        "served_by": written.served_by,
        "replayed": written.replayed,
    });
    if let Some(value) = written.value {
        out["value"] = value.into();
    }
    if let Some(found) = written.found {
        out["found"] = found.into();
    }
    out
}

/// Every setting is there, `null` where it is not set; id and etag are `null` of what a dry run would make.
pub fn keyspace(keyspace: &Keyspace) -> Json {
    json!({
        "name": keyspace.name,
        "id": Some(keyspace.id).filter(|id| *id > 0),
        "etag": Some(&keyspace.etag).filter(|etag| !etag.is_empty()),
        "policy": policy(&keyspace.policy),
        "holders_changing": keyspace.holders_changing.iter().map(holder_change).collect::<Vec<_>>(),
    })
}

fn holder_change(change: &HolderChange) -> Json {
    json!({ "region": change.region, "step": holder_step(change.step) })
}

/// `HANDING` of `HOLDER_STEP_HANDING`.
pub fn holder_step(step: HolderStep) -> &'static str {
    step.as_str_name().trim_start_matches("HOLDER_STEP_")
}

/// What a region does that comes to hold a keyspace, or ceases to.
pub fn holder_doing(region: &str, step: HolderStep) -> String {
    let doing = match step {
        HolderStep::Taking => "takes the data, and serves none of it yet",
        HolderStep::Handing => "hands over what it took; the narrower residency is not in force yet",
        HolderStep::Purging => "purges its copy; the narrower residency is not in force yet",
        HolderStep::Unspecified => "is at a step that this isle does not know",
    };
    format!("{region} {doing}")
}

/// Each setting in its text form, but for what JSON can say itself.
pub fn policy(policy: &Policy) -> Json {
    let mut out: Map<String, Json> = SETTINGS.iter().map(|name| ((*name).to_owned(), Json::Null)).collect();
    for (name, text) in policy.settings() {
        out.insert(name.to_owned(), text.into());
    }
    out.insert("value_bytes_max".to_owned(), policy.value_bytes_max.into());
    out.insert("labels".to_owned(), json!(policy.labels));
    Json::Object(out)
}

pub fn error(error: &Error) -> Json {
    let mut inner = json!({ "code": code(error.code), "reason": error.reason, "message": error.message });
    if let Some(field) = error.field() {
        inner["field"] = field.into();
    }
    if error.violations.len() > 1 || error.reason == "INCOMPATIBLE_SETTINGS" {
        let row = |bad: &Violation| json!({ "field": bad.field, "rule": bad.rule });
        inner["violations"] = error.violations.iter().map(row).collect();
    }
    if let Some(after) = error.retry_after {
        inner["retry_after_ms"] = (after.as_millis() as u64).into();
    }
    if !error.facts.is_empty() {
        inner["facts"] = json!(error.facts);
    }
    json!({ "error": inner })
}

/// A failure that no server spoke of.
pub fn failure(reason: &str, message: &str) -> Json {
    json!({ "error": { "code": "FAILED_PRECONDITION", "reason": reason, "message": message } })
}

/// A plain value, or an object of the named fields (and of the unnamed one under `""`, where there are both).
pub fn record(record: &Record) -> Json {
    if let (Some(plain), true, true) = (&record.value, record.fields.is_empty(), record.counters.is_empty()) {
        return value(plain);
    }
    let mut out = Map::new();
    if let Some(plain) = &record.value {
        out.insert(String::new(), value(plain));
    }
    for (name, field) in &record.fields {
        out.insert(name.clone(), value(field));
    }
    for (name, total) in &record.counters {
        out.insert(name.clone(), (*total).into());
    }
    Json::Object(out)
}

pub fn value(from: &Value) -> Json {
    match from {
        Value::Bytes(raw) => bytes(raw),
        Value::String(text) => text.as_str().into(),
        Value::I64(number) => (*number).into(),
        // JSON has no NaN and no infinities.
        Value::F64(number) if !number.is_finite() => number.to_string().into(),
        Value::F64(number) => (*number).into(),
        Value::Bool(truth) => (*truth).into(),
        Value::Json(text) => serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into()),
    }
}

/// Text, or `{"base64": …}` for what is not UTF-8.
pub fn bytes(raw: &[u8]) -> Json {
    match std::str::from_utf8(raw) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": BASE64.encode(raw) }),
    }
}

/// A version token as it is shown and taken back by `--if-version`.
pub fn version(token: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(token)
}

pub fn parse_version(text: &str) -> Result<Bytes, String> {
    let token = URL_SAFE_NO_PAD.decode(text.trim()).map_err(|_| "not a version that isle printed".to_owned())?;
    if token.is_empty() { Err("a version is not empty".to_owned()) } else { Ok(Bytes::from(token)) }
}

/// The bytes of a plain value as `get` prints them; anything else is shown as JSON.
pub fn plain(record_read: &Record) -> Vec<u8> {
    match (&record_read.value, record_read.fields.is_empty() && record_read.counters.is_empty()) {
        (Some(Value::Bytes(raw)), true) => raw.to_vec(),
        (Some(Value::String(text) | Value::Json(text)), true) => text.clone().into_bytes(),
        _ => record(record_read).to_string().into_bytes(),
    }
}

/// `INVALID_ARGUMENT` and the like, as gRPC names its codes.
pub fn code(code: tonic::Code) -> String {
    let camel = format!("{code:?}");
    let mut out = String::new();
    for (at, letter) in camel.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_plain_value_stands_alone_and_fields_make_an_object() {
        let plain = Record { value: Some(Value::from("v")), ..Record::default() };
        assert_eq!(record(&plain), json!("v"));
        let fields = [("f".to_owned(), Value::I64(3))].into();
        let counters = [("n".to_owned(), 7)].into();
        assert_eq!(record(&Record { value: None, fields, counters }), json!({ "f": 3, "n": 7 }));
    }

    #[test]
    fn what_is_not_text_is_base64() {
        assert_eq!(bytes(b"k"), json!("k"));
        assert_eq!(bytes(&[0xff]), json!({ "base64": "/w==" }));
    }

    #[test]
    fn numbers_that_json_lacks_are_text() {
        assert_eq!(value(&Value::F64(f64::NAN)), json!("NaN"));
        assert_eq!(value(&Value::F64(1.5)), json!(1.5));
        assert_eq!(value(&Value::Json("[1,".to_owned())), json!("[1,"));
        assert_eq!(value(&Value::Json("[1]".to_owned())), json!([1]));
    }

    #[test]
    fn a_missing_key_has_every_field() {
        let shown = entry(&Entry::default(), b"k");
        let names: Vec<&String> = shown.as_object().unwrap().keys().collect();
        let promised = ["found", "key", "value", "version", "home", "served_by", "staleness_ms", "conflict"];
        assert_eq!(names, promised);
        assert_eq!(shown["found"], json!(false));
    }

    #[test]
    fn a_policy_shows_every_setting_in_order() {
        let shown = policy(&Policy { labels: [("team".to_owned(), "a".to_owned())].into(), ..Policy::default() });
        let names: Vec<&String> = shown.as_object().unwrap().keys().collect();
        assert_eq!(names, SETTINGS.iter().collect::<Vec<_>>());
        assert_eq!((&shown["ttl"], &shown["home"]), (&Json::Null, &json!("creator")));
        assert_eq!((&shown["value_bytes_max"], &shown["labels"]), (&json!(1 << 20), &json!({ "team": "a" })));
    }

    #[test]
    fn codes_are_named_as_grpc_names_them() {
        assert_eq!(code(tonic::Code::InvalidArgument), "INVALID_ARGUMENT");
        assert_eq!(code(tonic::Code::Ok), "OK");
    }

    #[test]
    fn a_version_is_taken_back_as_it_was_shown() {
        assert_eq!(parse_version(&version(&[1, 255, 3])).unwrap(), Bytes::from_static(&[1, 255, 3]));
        assert!(parse_version("").is_err() && parse_version("!").is_err());
    }
}
