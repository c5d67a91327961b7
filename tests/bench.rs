//! `isle bench` as a shell meets it: what it counts, and that nothing of it is left. How fast it was is nobody's business here.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use serde_json::{Value as Json, json};
use support::isle;

/// The outcomes, behind the line of settings.
fn bench(directory: &Path, arguments: &[&str]) -> Vec<Json> {
    let output =
        isle().args(["--output", "json", "bench"]).args(arguments).arg("--directory").arg(directory).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    let mut lines = out.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    assert!(lines.next().unwrap()["machine"]["cores"].as_u64() > Some(0));
    lines.collect()
}

fn left_in(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn a_burst_writes_every_record_once_at_isle_and_at_the_floor() {
    let directory = tempfile::tempdir().unwrap();
    for (mode, calls) in [("unary", 1_500), ("streamed", 15), ("batched", 15)] {
        let burst = ["burst", "--target", "isle,floor", "--mode", mode, "--operations", "1500", "--warm-up", "100"];
        let outcomes = bench(directory.path(), &burst);
        let targets: Vec<&Json> = outcomes.iter().map(|outcome| &outcome["target"]).collect();
        assert_eq!(targets, ["isle", "floor"]);
        for outcome in &outcomes {
            assert_eq!((&outcome["applied"], &outcome["refused"]), (&json!(1_500), &json!(0)), "{outcome}");
            assert_eq!(outcome["latency_ms"]["insert"]["count"], calls, "{outcome}");
            let timeline = outcome["timeline"].as_array().unwrap();
            assert_eq!(timeline.iter().map(|count| count.as_u64().unwrap()).sum::<u64>(), 1_500);
        }
    }
    assert_eq!(left_in(directory.path()), 0, "the servers' directories go with them");
}

#[test]
fn no_value_vanishes_and_no_key_differs_after_conflicts() {
    let directory = tempfile::tempdir().unwrap();
    let outcomes = bench(directory.path(), &["conflict", "--keys", "60"]);
    let figures = &outcomes[0]["figures"];
    let concurrent = figures["keys_written_concurrently"].as_f64().unwrap();
    assert!(concurrent > 0.0, "{figures}");
    assert_eq!((&figures["keys_that_differ"], &figures["values_vanished_silently"]), (&json!(0.0), &json!(0.0)));
    assert_eq!(figures["conflicts_in_ledger"], concurrent, "{figures}");
}

#[test]
fn a_mix_reads_what_was_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let ycsb = ["ycsb", "--core", "d", "--records", "500", "--operations", "1000"];
    let outcomes = bench(directory.path(), &ycsb);
    assert_eq!((&outcomes[0]["applied"], &outcomes[0]["missing"]), (&json!(1_000), &json!(0)));
}

#[test]
fn what_cannot_be_meant_is_bad_usage() {
    for arguments in [["burst", "--key-bytes", "3"], ["burst", "--in-flight", "0"], ["lag", "--regions", "1"]] {
        let output = isle().arg("bench").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let output = isle().args(["bench", "burst", "--target", "floor", "--mode", "pipelined"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("floor has no pipelining"));
}
