//! A region's disk is damaged below what was acknowledged: the node says where and takes no writes, the doctor names it and
//! sets it aside, and the region completes itself from its peers at its next start.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use support::{Process, REGIONS, dev, done, eventually, isle};

const HARMED: &str = REGIONS[1];

fn endpoint(cluster: &Process, region: usize) -> String {
    format!("http://127.0.0.1:{}", cluster.port as usize + 10 * region)
}

fn at(cluster: &Process, region: usize, arguments: &[&str]) -> Json {
    done(&support::isle_at(&endpoint(cluster, region), arguments))
}

/// Waits until all regions have the same digest, and this many records.
fn converged(cluster: &Process, records: u64) {
    eventually("convergence", || {
        let status = done(&cluster.isle(&["status"]));
        let regions = status["regions"].as_array().ok_or("no regions")?.clone();
        let same = regions.len() == REGIONS.len()
            && regions.iter().all(|region| {
                region["digest"].is_string() && region["digest"] == regions[0]["digest"] && region["records"] == records
            });
        if same { Ok(()) } else { Err(status.to_string()) }
    });
}

fn doctor(directory: &Path, arguments: &[&str]) -> (Option<i32>, Vec<Json>) {
    let mut command = isle();
    command.args(["--output", "json", "doctor", "--data-dir"]).arg(directory).args(arguments);
    let output = command.output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(directory.join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn put(cluster: &Process, region: usize, n: usize) {
    at(cluster, region, &["put", "default", &format!("key-{n:03}"), &format!("value {n} of region {region}")]);
}

#[test]
fn a_damaged_region_is_named_repaired_and_completed_by_its_peers() {
    let home = tempfile::tempdir().unwrap();
    let mut cluster = dev(Some(home.path()));
    for n in 0..60 {
        put(&cluster, n % REGIONS.len(), n);
    }
    converged(&cluster, 60);
    cluster.kill();
    drop(cluster);

    // The view is of no help: the log alone held what this region knew.
    let harmed = home.path().join(HARMED);
    std::fs::remove_file(harmed.join("VIEW")).unwrap();
    let segment = segments(&harmed)[0].clone();
    let mut bytes = std::fs::read(&segment).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let damaged = 4096 + (written - 4096) / 3;
    bytes[damaged] ^= 0x10;
    std::fs::write(&segment, bytes).unwrap();

    // It says where, and takes no writes.
    let refused = isle()
        .args(["serve", "--set", &format!("region={HARMED}"), "--set", "listen.client=127.0.0.1:0"])
        .args(["--set", "listen.peer=127.0.0.1:0", "--set", "listen.http=127.0.0.1:0", "--data-dir"])
        .arg(&harmed)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("fails its checksum, although it was durable"), "{said}");

    let (code, findings) = doctor(&harmed, &[]);
    assert_eq!(code, Some(1), "{findings:#?}");
    let damage = findings.iter().find(|finding| finding["severity"] == "damage").unwrap();
    assert_eq!(damage["part"], "log", "{damage}");
    let place: u64 = damage["place"].as_str().unwrap().strip_prefix("1:").unwrap().parse().unwrap();
    assert!(place <= damaged as u64 && damaged as u64 <= place + 512, "{place}, damaged at {damaged}");
    assert!(damage["advice"].as_str().unwrap().contains("--repair"));

    let (code, lines) = doctor(&harmed, &["--repair"]);
    assert_eq!(code, Some(0), "{lines:#?}");
    let aside = lines.last().unwrap()["aside"].as_str().unwrap().to_owned();
    assert!(Path::new(&aside).join("log").join(segment.file_name().unwrap()).exists(), "nothing is deleted");
    let (code, findings) = doctor(&harmed, &[]);
    assert_eq!(code, Some(0), "{findings:#?}");

    let cluster = dev(Some(home.path()));
    converged(&cluster, 60);
    for n in 0..60 {
        let shown = eventually("the region is complete", || {
            let output = support::isle_at(&endpoint(&cluster, 1), &["get", "default", &format!("key-{n:03}")]);
            let shown: Json = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
            if shown["found"] == true { Ok(shown) } else { Err(shown.to_string()) }
        });
        assert_eq!(shown["value"], format!("value {n} of region {}", n % REGIONS.len()));
    }
    // And it takes part again.
    for n in 60..66 {
        put(&cluster, n % REGIONS.len(), n);
    }
    converged(&cluster, 66);
}

#[test]
fn a_sound_directory_is_called_sound_and_a_running_one_is_not_touched() {
    let home = tempfile::tempdir().unwrap();
    let mut cluster = dev(Some(home.path()));
    put(&cluster, 0, 1);
    let directory = home.path().join(REGIONS[0]);
    let output = isle().args(["doctor", "--data-dir"]).arg(&directory).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("a node runs in"));
    assert_eq!(cluster.stop(), Some(0));
    let output = isle().args(["doctor", "--data-dir"]).arg(&directory).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.lines().all(|line| line.starts_with("sound")), "{said}");
}
