//! The commands as a shell meets them: what they print, and what they exit with.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value as Json, json};
use support::{done, failed, isle, isle_at, serve};

#[test]
fn values_of_every_type_come_back_as_they_were_typed() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(dir.path(), &[]);
    for (kind, typed, shown) in [
        ("string", "ä b", json!("ä b")),
        ("i64", "-7", json!(-7)),
        ("f64", "2.5", json!(2.5)),
        ("bool", "true", json!(true)),
        ("json", "{\"a\": [1, null]}", json!({"a": [1, null]})),
        ("bytes", "raw", json!("raw")),
    ] {
        let written = done(&node.isle(&["put", "default", kind, typed, "--type", kind]));
        assert_eq!((&written["served_by"], &written["home"]), (&json!("solo"), &json!("solo")));
        assert_eq!(written["replayed"], false);
        let read = done(&node.isle(&["get", "default", kind]));
        assert_eq!((&read["value"], &read["found"]), (&shown, &json!(true)), "{kind}");
        assert_eq!(read["version"], written["version"]);
    }
}

#[test]
fn a_value_that_is_not_text_is_read_from_stdin_and_shown_as_base64() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(dir.path(), &[]);
    let mut put = isle()
        .args(["--endpoint", &node.endpoint, "put", "default", "k", "-", "--type", "bytes"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    put.stdin.take().unwrap().write_all(&[0xff, 0, 1]).unwrap();
    assert!(put.wait().unwrap().success());
    assert_eq!(done(&node.isle(&["get", "default", "k"]))["value"], json!({ "base64": "/wAB" }));
    let raw = isle().args(["--endpoint", &node.endpoint, "get", "default", "k"]).output().unwrap();
    assert_eq!(raw.stdout, [0xff, 0, 1, b'\n']);
}

#[test]
fn documents_are_patched_counted_scanned_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(dir.path(), &[]);
    done(&node.isle(&["patch", "default", "d1", "name=Ulm", "size:i64=3"]));
    done(&node.isle(&["patch", "default", "d1", "size:i64=4"]));
    done(&node.isle(&["patch", "default", "d1", "--remove", "name"]));
    let counted = done(&node.isle(&["incr", "default", "d1", "visits", "-2"]));
    assert_eq!(counted["value"], -2);
    done(&node.isle(&["put", "default", "other", "x"]));
    done(&node.isle(&["put", "default", "d2", "y"]));
    let scan = node.isle(&["scan", "default", "--prefix", "d"]);
    let rows: Vec<Json> =
        String::from_utf8(scan.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.iter().map(|row| row["key"].clone()).collect::<Vec<_>>(), [json!("d1"), json!("d2")]);
    assert_eq!(rows[0]["value"], json!({ "size": 4, "visits": -2 }));
    assert_eq!(done(&node.isle(&["delete", "default", "d1"]))["found"], true);
    assert_eq!(done(&node.isle(&["delete", "default", "d1"]))["found"], false);
    assert_eq!(done(&node.isle(&["get", "default", "d1"]))["found"], false);
    let missing = isle().args(["--endpoint", &node.endpoint, "get", "default", "d1"]).output().unwrap();
    assert!(missing.status.success() && missing.stdout.is_empty());
}

#[test]
fn conditions_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(dir.path(), &[]);
    let first = done(&node.isle(&["put", "default", "k", "1", "--if-absent"]));
    let exists = failed(&node.isle(&["put", "default", "k", "2", "--if-absent"]), 1);
    assert_eq!((&exists["code"], &exists["reason"]), (&json!("ALREADY_EXISTS"), &json!("KEY_EXISTS")));
    let version = first["version"].as_str().unwrap();
    done(&node.isle(&["put", "default", "k", "2", "--if-version", version]));
    let stale = failed(&node.isle(&["put", "default", "k", "3", "--if-version", version]), 1);
    assert_eq!((&stale["code"], &stale["reason"]), (&json!("ABORTED"), &json!("VERSION_MISMATCH")));
    assert_eq!(done(&node.isle(&["get", "default", "k"]))["value"], "2");
}

#[test]
fn an_import_is_exported_again_and_harmless_to_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(&dir.path().join("data"), &[]);
    let file = dir.path().join("in.jsonl");
    let lines: Vec<String> = (0..1200).map(|n| format!("{{\"id\":\"k{n:04}\",\"n\":{n}}}")).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let path = file.to_str().unwrap();
    for _ in 0..2 {
        assert_eq!(done(&node.isle(&["import", "default", path, "--key", "id"]))["imported"], 1200);
        assert!(!dir.path().join("in.jsonl.isle-cursor").exists());
    }
    let exported = node.isle(&["export", "default", "--key", "id"]);
    assert_eq!(String::from_utf8(exported.stdout).unwrap().lines().collect::<Vec<_>>(), lines);
}

#[test]
fn a_broken_line_stops_an_import_and_the_next_run_goes_on_behind_what_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(&dir.path().join("data"), &[]);
    let file = dir.path().join("in.jsonl");
    let mut lines: Vec<String> = (0..600).map(|n| format!("{{\"id\":\"k{n}\"}}")).collect();
    lines[550] = "{".to_owned();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let path = file.to_str().unwrap();
    let error = failed(&node.isle(&["import", "default", path, "--key", "id"]), 1);
    assert!(error["message"].as_str().unwrap().contains("line 551"), "{error}");
    lines[550] = "{\"id\":\"k550\"}".to_owned();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let rest = done(&node.isle(&["import", "default", path, "--key", "id"]));
    assert_eq!((&rest["imported"], &rest["resumed_behind"]), (&json!(100), &json!(500)));
    assert_eq!(done(&node.isle(&["status"]))["regions"][0]["records"], 600);
}

#[test]
fn exit_codes_tell_usage_from_failure() {
    assert_eq!(isle().args(["put", "default"]).output().unwrap().status.code(), Some(2));
    assert_eq!(isle().args(["put", "default", "k", "x", "--type", "i64"]).output().unwrap().status.code(), Some(2));
    // Nobody listens on port 1.
    let refused = isle_at("http://127.0.0.1:1", &["get", "default", "k"]);
    let error = failed(&refused, 1);
    assert_eq!((&error["code"], &error["reason"]), (&json!("UNAVAILABLE"), &json!("UNREACHABLE")));
}

#[test]
fn serve_refuses_a_bad_config_and_names_every_fault() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("isle.toml");
    std::fs::write(&file, "region = \"eu\"\ncolour = 1\n[listen]\nclient = \"0.0.0.0:7400\"\n").unwrap();
    let refused = isle().args(["serve", "--config"]).arg(&file).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    for fault in ["isle.toml:2: unknown key \"colour\"", "isle.toml:4: 0.0.0.0:7400 is not loopback", "data_dir"] {
        assert!(said.contains(fault), "{fault} is missing in: {said}");
    }
}
