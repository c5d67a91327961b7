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

fn rows(output: &std::process::Output) -> Vec<Json> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What people see.
fn text(node: &support::Process, arguments: &[&str]) -> String {
    let output = isle().args(["--endpoint", &node.endpoint]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_keyspace_is_created_shown_changed_and_deleted_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(dir.path(), &[]);
    let create = ["keyspace", "create", "carts", "--home", "hash", "--label", "team=a", "--value-bytes-max", "64KiB"];
    let would = done(&node.isle(&[&create[..], &["--dry-run"]].concat()));
    assert_eq!(
        (&would["dry_run"], &would["id"], &would["policy"]["home"]),
        (&json!(true), &Json::Null, &json!("hash"))
    );
    let made = done(&node.isle(&create));
    assert_eq!((&made["name"], &made["dry_run"]), (&json!("carts"), &json!(false)));
    assert_eq!(
        (&made["policy"]["value_bytes_max"], &made["policy"]["labels"]),
        (&json!(65536), &json!({ "team": "a" }))
    );
    let shown = done(&node.isle(&["keyspace", "get", "carts"]));
    assert_eq!((&shown["policy"], &shown["etag"]), (&made["policy"], &made["etag"]));
    let listed = rows(&node.isle(&["keyspace", "list"]));
    assert_eq!(listed.iter().map(|row| row["name"].clone()).collect::<Vec<_>>(), [json!("carts"), json!("default")]);

    let etag = made["etag"].as_str().unwrap();
    let changed = done(&node.isle(&["keyspace", "update", "carts", "--writes", "anywhere", "--etag", etag]));
    assert_eq!(changed["changes"], json!([{ "setting": "writes", "from": "forward", "to": "anywhere" }]));
    assert_eq!(changed["policy"]["labels"], json!({ "team": "a" }), "what is not given stays");
    let stale = failed(&node.isle(&["keyspace", "delete", "carts", "--yes", "--etag", etag]), 1);
    assert_eq!((&stale["code"], &stale["reason"]), (&json!("ABORTED"), &json!("ETAG_MISMATCH")));
    // Nobody sits at this terminal, and silence is no yes.
    let unasked = failed(&node.isle(&["keyspace", "delete", "carts"]), 2);
    assert!(unasked["message"].as_str().unwrap().contains("all of its data"), "{unasked}");
    assert_eq!(done(&node.isle(&["keyspace", "delete", "carts", "--dry-run"]))["deleted"], false);
    assert_eq!(done(&node.isle(&["keyspace", "delete", "carts", "--yes"]))["deleted"], true);
    assert_eq!(failed(&node.isle(&["keyspace", "get", "carts"]), 1)["reason"], "KEYSPACE_NOT_FOUND");
}

#[test]
fn a_keyspace_is_created_shown_changed_and_deleted_for_people() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(dir.path(), &[]);
    let would = text(&node, &["keyspace", "create", "carts", "--scope", "global", "--dry-run"]);
    assert!(would.starts_with("would create carts\n") && would.contains("scope              global\n"), "{would}");
    assert_eq!(text(&node, &["keyspace", "create", "carts", "--scope", "global"]), "created carts (id 2)\n");
    let shown = text(&node, &["keyspace", "get", "carts"]);
    assert!(shown.contains("\nid                 2\n") && shown.contains("\nwrites             anywhere\n"), "{shown}");
    let listed = text(&node, &["keyspace", "list"]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.contains("carts    2   global  none     anywhere"), "{listed}");
    let update = ["keyspace", "update", "carts", "--label", "team=a", "--read-default", "bounded(2s)"];
    let changes = "read_default eventual → bounded(2s), labels none → team=a\n";
    assert_eq!(text(&node, &[&update[..], &["--dry-run"]].concat()), format!("would change carts: {changes}"));
    assert_eq!(text(&node, &update), format!("changed carts: {changes}"));
    assert_eq!(text(&node, &update), "carts is so already\n");
    assert_eq!(text(&node, &["keyspace", "delete", "carts", "--yes"]), "deleted carts (id 2) and all of its data\n");
}

#[test]
fn faults_of_keyspace_commands_are_named_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(dir.path(), &[]);
    let unread = failed(&node.isle(&["keyspace", "create", "carts", "--tier", "lukewarm", "--ttl", "soon"]), 2);
    let said = unread["message"].as_str().unwrap();
    assert!(said.contains("--tier: ") && said.contains("--ttl: "), "{said}");
    let local = ["keyspace", "create", "carts", "--scope", "local", "--home", "hash", "--replication", "sync(1)"];
    let mixed = failed(&node.isle(&local), 1);
    assert_eq!((&mixed["code"], &mixed["reason"]), (&json!("INVALID_ARGUMENT"), &json!("INCOMPATIBLE_SETTINGS")));
    let fields: Vec<_> = mixed["violations"].as_array().unwrap().iter().map(|row| row["field"].clone()).collect();
    assert_eq!(fields, [json!("keyspace.policy.home"), json!("keyspace.policy.replication")]);
    let later = failed(&node.isle(&["keyspace", "create", "carts", "--tier", "cold(1d)", "--ttl", "1h"]), 1);
    assert_eq!((&later["reason"], &later["facts"]["field"]), (&json!("NOT_SERVED"), &json!("tier,ttl")));
    assert_eq!(failed(&node.isle(&["keyspace", "update", "default"]), 2)["reason"], "BAD_USAGE");
    assert_eq!(rows(&node.isle(&["keyspace", "list"])).len(), 1);
}

#[test]
fn a_file_of_keyspaces_is_applied_once_and_drift_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(&dir.path().join("data"), &[]);
    let file = dir.path().join("keyspaces.toml");
    let path = file.to_str().unwrap();
    let write = |carts: &str| {
        let text =
            format!("[[keyspace]]\nname = \"carts\"\n{carts}\n[[keyspace]]\nname = \"web\"\nscope = \"global\"\n");
        std::fs::write(&file, text).unwrap();
    };
    write("home = \"hash\"\nlabels = { team = \"a\" }");
    let apply = ["keyspace", "apply", "-f", path];
    let with = |flag: &'static str| [&apply[..], &[flag]].concat();
    let summary = |rows: &[Json]| rows.last().unwrap().clone();
    let counts = |create: u64, change: u64, leave: u64, applied: bool| json!({ "create": create, "change": change, "leave": leave, "unlisted": 1, "applied": applied });

    // Neither a check nor a dry run makes anything.
    let drifted = node.isle(&with("--check"));
    assert_eq!(failed(&drifted, 1)["reason"], "DRIFT");
    assert_eq!(summary(&rows(&node.isle(&with("--dry-run")))), counts(2, 0, 0, false));
    assert_eq!(rows(&node.isle(&["keyspace", "list"])).len(), 1);

    let first = rows(&node.isle(&apply));
    assert_eq!(
        first.iter().map(|row| row["action"].clone()).collect::<Vec<_>>()[..3],
        ["create", "create", "unlisted"]
    );
    assert_eq!((&first[0]["name"], &first[0]["policy"]["home"]), (&json!("carts"), &json!("hash")));
    assert_eq!(summary(&first), counts(2, 0, 0, true));
    let etags =
        || rows(&node.isle(&["keyspace", "list"])).into_iter().map(|row| row["etag"].clone()).collect::<Vec<_>>();
    let made = etags();
    assert_eq!(summary(&rows(&node.isle(&apply))), counts(0, 0, 2, true));
    assert_eq!(etags(), made, "the second time nothing changes");
    assert_eq!(summary(&rows(&node.isle(&with("--check")))), counts(0, 0, 2, false));

    // What somebody changed by hand, and what the file leaves out from now on, is made what the file says.
    done(&node.isle(&["keyspace", "update", "web", "--value-bytes-max", "100"]));
    write("home = \"hash\"");
    let plan = text(&node, &with("--dry-run"));
    let expected = "change    carts    labels team=a → none\n\
                    change    web      value_bytes_max 100 → 1048576\n\
                    unlisted  default  not in the file, left alone\n\
                    would create 0, change 2, leave 0\n";
    assert_eq!(plan, expected);
    let drifted = failed(&node.isle(&with("--check")), 1);
    assert!(drifted["message"].as_str().unwrap().starts_with("2 of 2 keyspaces are not what"), "{drifted}");
    assert_eq!(summary(&rows(&node.isle(&apply))), counts(0, 2, 0, true));
    assert_eq!(node.isle(&with("--check")).status.code(), Some(0));
    assert_eq!(done(&node.isle(&["keyspace", "get", "carts"]))["policy"]["labels"], json!({}));
}

#[test]
fn every_fault_of_a_file_of_keyspaces_is_named_and_nothing_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(&dir.path().join("data"), &[]);
    let file = dir.path().join("k.toml");
    let path = file.to_str().unwrap();
    let text = "[[keyspace]]\nname = \"good\"\n[[keyspace]]\nname = \"misspelt\"\nteir = \"hot\"\n\
                [[keyspace]]\nname = \"later\"\nttl = \"1h\"\n[[keyspace]]\nname = \"mix\"\nscope = \"local\"\n\
                home = \"hash\"\nreplication = \"sync(1)\"\n[[keyspace]]\nname = \"default\"\nscope = \"global\"\n";
    std::fs::write(&file, text).unwrap();
    for flags in [&[][..], &["--check"], &["--dry-run"]] {
        let refused = failed(&node.isle(&[&["keyspace", "apply", "-f", path], flags].concat()), 2);
        let said = refused["message"].as_str().unwrap();
        assert!(said.starts_with(&format!("{path} has 6 fault(s):")), "{said}");
        let faults =
            ["5: unknown key \"teir\"", "8: ttl: ", "12: home: ", "13: replication: ", "16: scope: ", "14: home: "];
        for fault in faults {
            assert!(said.contains(&format!("{path}:{fault}")), "{fault} is missing in: {said}");
        }
    }
    assert_eq!(rows(&node.isle(&["keyspace", "list"])).len(), 1);
    let away = isle_at("http://127.0.0.1:1", &["keyspace", "apply", "-f", path]);
    assert!(failed(&away, 2)["message"].as_str().unwrap().contains("teir"), "the file is wrong, whoever is away");
    assert_eq!(failed(&node.isle(&["keyspace", "apply", "-f", "/nowhere.toml"]), 2)["reason"], "BAD_USAGE");
}
