//! The tour of the README, against the real binary.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value as Json, json};
use support::{Process, REGIONS, dev, done, eventually, failed, isle_at};

const KEYSPACES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/keyspaces.toml");
const CITIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/cities.jsonl");
/// Tokyo, as GeoNames knows it.
const TOKYO: &str = "1850147";

fn endpoint(cluster: &Process, region: usize) -> String {
    format!("http://127.0.0.1:{}", cluster.port + 10 * region as u16)
}

fn get(cluster: &Process, region: usize, key: &str) -> Json {
    done(&isle_at(&endpoint(cluster, region), &["get", "default", key]))
}

/// All three serve, hold the same, and owe each other nothing.
fn agreed(cluster: &Process, records: u64) -> Result<Json, String> {
    let status = done(&cluster.isle(&["status"]));
    let regions = status["regions"].as_array().unwrap();
    let one_digest = regions.iter().all(|r| r["digest"].is_string() && r["digest"] == regions[0]["digest"]);
    let all_there = regions.iter().all(|r| r["records"] == json!(records) && r["state"] == "SERVING");
    let peers = || regions.iter().flat_map(|r| r["peers"].as_array().unwrap());
    let no_lag = peers().all(|peer| peer["lag_bytes"] == 0 && peer["lag_seconds"] == 0.0 && peer["state"] == "LIVE");
    let agreed = regions.len() == 3 && one_digest && all_there && no_lag && peers().count() == 6;
    if agreed { Ok(status.clone()) } else { Err(status.to_string()) }
}

#[test]
fn cities_imported_during_a_cut_are_everywhere_after_healing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cities.jsonl");
    std::fs::copy(CITIES, &file).unwrap();
    let cities = std::fs::read_to_string(&file).unwrap().lines().count() as u64;
    let mut cluster = dev(None);
    let eu = endpoint(&cluster, 1);

    let bounded = |span: &str| isle_at(&eu, &["get", "default", "note", "--consistency", span]);
    eventually("word from both others, by which age is measured", || match bounded("bounded=1h") {
        read if read.status.success() => Ok(()),
        read => Err(String::from_utf8_lossy(&read.stderr).into_owned()),
    });

    // eu-west-1 is alone: it may not even hear of the cities by way of the third region.
    for other in ["us-east-1", "ap-southeast-1"] {
        done(&cluster.isle(&["link", "cut", "eu-west-1", other]));
    }
    let imported = done(&cluster.isle(&["import", "default", file.to_str().unwrap(), "--key", "id"]));
    assert_eq!(imported["imported"], json!(cities));

    let tokyo = eventually("the city in the other connected region", || match get(&cluster, 2, TOKYO) {
        found if found["found"] == true => Ok(found),
        missing => Err(missing.to_string()),
    });
    assert_eq!(tokyo["value"]["name"], "Tokyo");
    assert!(tokyo["value"]["population"].is_i64() && tokyo["value"]["latitude"].is_f64());
    assert_eq!((&tokyo["home"], &tokyo["served_by"]), (&json!(REGIONS[0]), &json!(REGIONS[2])));

    // A cut link costs no availability: the lonely region has no cities, and takes writes.
    assert_eq!(get(&cluster, 1, TOKYO)["found"], false);
    done(&isle_at(&endpoint(&cluster, 1), &["put", "default", "note", "written alone"]));
    assert_eq!(get(&cluster, 1, "note")["value"], "written alone");

    // Whoever allows little age only is told how old it is, and not shown.
    eventually("a read that is too old", || match bounded("bounded=200ms").status.success() {
        true => Err("it is served".to_owned()),
        false => Ok(()),
    });
    assert_eq!(failed(&bounded("bounded=200ms"), 1)["reason"], "STALENESS_BOUND_EXCEEDED");
    assert_eq!(done(&bounded("bounded=1h"))["value"], "written alone");

    done(&cluster.isle(&["link", "heal"]));
    let status = eventually("agreement", || agreed(&cluster, cities + 1));
    assert_eq!(status["cluster"], "dev");
    assert_eq!(get(&cluster, 0, "note")["value"], "written alone");
    assert_eq!(get(&cluster, 1, TOKYO)["value"], tokyo["value"]);
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn keyspaces_are_made_by_hand_and_from_the_example_file() {
    let cluster = dev(None);
    let made = done(&cluster.isle(&["keyspace", "create", "sessions", "--scope", "global", "--label", "team=web"]));
    assert_eq!(made["policy"]["writes"], "anywhere");
    done(&cluster.isle(&["put", "sessions", "u1", "signed in"]));
    assert_eq!(done(&cluster.isle(&["get", "sessions", "u1"]))["value"], "signed in");

    let apply = ["keyspace", "apply", "-f", KEYSPACES];
    let check = [&apply[..], &["--check"]].concat();
    assert_eq!(failed(&cluster.isle(&check), 1)["reason"], "DRIFT");
    let applied = cluster.isle(&apply);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    assert!(cluster.isle(&check).status.success());
    let listed = cluster.isle(&["keyspace", "list"]);
    let names: Vec<Json> = String::from_utf8(listed.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Json>(line).unwrap()["name"].clone())
        .collect();
    assert_eq!(names, ["carts", "customers-eu", "default", "sessions"]);

    // Two regions give their copies up, and one gets its own back.
    let narrow = |residency: &str, region: usize, reason: Option<&str>| {
        done(&cluster.isle(&["keyspace", "update", "sessions", "--residency", residency]));
        eventually("the residency is in force", || {
            let shown = done(&cluster.isle(&["keyspace", "get", "sessions"]));
            let is_over = shown["holders_changing"].as_array().is_some_and(Vec::is_empty);
            let got = isle_at(&endpoint(&cluster, region), &["get", "sessions", "u1"]);
            let is_served = match reason {
                None => got.status.success() && done(&got)["value"] == "signed in",
                Some(reason) => !got.status.success() && failed(&got, 1)["reason"] == reason,
            };
            if is_over && is_served { Ok(()) } else { Err(format!("{shown}: {got:?}")) }
        });
    };
    narrow("eu", 2, Some("RESIDENCY_VIOLATION"));
    narrow("eu,region:ap-southeast-1", 2, None);
    let nobody = failed(&cluster.isle(&["keyspace", "update", "sessions", "--residency", "region:us-east-1"]), 1);
    assert_eq!(nobody["reason"], "INCOMPATIBLE_SETTINGS");
}

/// Every region has heard of a keyspace.
fn known_everywhere(cluster: &Process, name: &str) {
    for region in 0..3 {
        eventually("the keyspace in every region", || {
            let got = isle_at(&endpoint(cluster, region), &["keyspace", "get", name]);
            if got.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&got.stderr).into_owned()) }
        });
    }
}

#[test]
fn writes_find_the_home_of_their_key_and_follow_it_when_it_moves() {
    let cluster = dev(None);
    let at = |region: usize, arguments: &[&str]| isle_at(&endpoint(&cluster, region), arguments);
    let (us, eu, ap) = (REGIONS[0], REGIONS[1], REGIONS[2]);
    done(&at(0, &["keyspace", "create", "orders"]));
    done(&at(2, &["keyspace", "apply", "-f", KEYSPACES]));
    known_everywhere(&cluster, "orders");
    known_everywhere(&cluster, "carts");

    assert_eq!(done(&at(1, &["put", "orders", "o-1", "placed"]))["home"], eu);
    // Nobody else may have heard of the order: whoever asks for the newest gets it all the same.
    let read = done(&at(2, &["get", "orders", "o-1", "--consistency", "strong"]));
    assert_eq!((&read["value"], &read["served_by"]), (&json!("placed"), &json!(eu)));
    eventually("the order in the other region", || match done(&at(0, &["get", "orders", "o-1"])) {
        found if found["found"] == true => Ok(()),
        missing => Err(missing.to_string()),
    });
    let forwarded = done(&at(0, &["put", "orders", "o-1", "paid"]));
    assert_eq!((&forwarded["served_by"], &forwarded["home"]), (&json!(eu), &json!(eu)));
    assert_eq!(done(&at(1, &["get", "orders", "o-1"]))["value"], "paid");
    assert_eq!(done(&at(0, &["put", "orders", "o-2", "placed", "--home", ap]))["served_by"], ap);

    let moved = done(&at(0, &["move", "orders", "--key", "o-1", "--to", ap]));
    assert_eq!((&moved["moved"], &moved["home"]), (&json!(1), &json!(ap)));
    assert_eq!(done(&at(1, &["put", "orders", "o-1", "sent"]))["served_by"], ap);

    // A home map: who a key belongs to is told by its name.
    assert_eq!(done(&at(0, &["put", "carts", "eu/7", "a book"]))["served_by"], eu);
    assert_eq!(done(&at(2, &["move", "carts", "--prefix", "eu/", "--to", us]))["moved"], 1);
    eventually("the new map in every region", || match done(&at(1, &["put", "carts", "eu/8", "a pen"])) {
        written if written["served_by"] == us => Ok(()),
        written => Err(written.to_string()),
    });
    assert_eq!(done(&at(1, &["put", "carts", "eu/7", "two books"]))["served_by"], us);

    // Its home out of reach, an order can be read and not written; what is created meanwhile lives where it was created.
    for other in [us, eu] {
        done(&cluster.isle(&["link", "cut", ap, other]));
    }
    let refused = eventually("the cut is noticed", || {
        let put = at(0, &["put", "orders", "o-1", "lost", "--timeout", "5s"]);
        let error = failed(&put, 1);
        if error["reason"] == "HOME_UNREACHABLE" { Ok(error) } else { Err(error.to_string()) }
    });
    assert_eq!(refused["facts"]["home"], ap);
    assert_eq!(done(&at(0, &["get", "orders", "o-1"]))["value"], "sent");
    assert_eq!(done(&at(0, &["put", "orders", "o-3", "placed"]))["served_by"], us);
    done(&cluster.isle(&["link", "heal"]));
    eventually("the home is back", || {
        let put = at(0, &["put", "orders", "o-1", "delivered"]);
        if put.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&put.stderr).into_owned()) }
    });
    eventually("agreement", || agreed(&cluster, 5));
}

#[test]
fn a_region_behind_a_cut_link_is_completed_by_a_survivor() {
    let cluster = dev(None);
    done(&cluster.isle(&["link", "cut", "us-east-1", "eu-west-1"]));
    done(&cluster.isle(&["put", "default", "k", "by way of ap-southeast-1"]));
    eventually("the write behind the cut link", || match get(&cluster, 1, "k") {
        found if found["found"] == true => Ok(()),
        missing => Err(missing.to_string()),
    });
}

#[test]
fn concurrent_writes_on_both_sides_of_a_cut_end_in_one_digest_and_are_counted() {
    let cluster = dev(None);
    for other in ["us-east-1", "ap-southeast-1"] {
        done(&cluster.isle(&["link", "cut", "eu-west-1", other]));
    }
    for (region, name) in REGIONS.iter().enumerate() {
        let text = format!("of {name}");
        done(&isle_at(&endpoint(&cluster, region), &["put", "default", "same", &text]));
        done(&isle_at(&endpoint(&cluster, region), &["incr", "default", "visits", "n", "2"]));
    }
    done(&cluster.isle(&["link", "heal"]));
    let status = eventually("agreement", || agreed(&cluster, 2));
    let shown: Vec<Json> = (0..3).map(|region| get(&cluster, region, "same")).collect();
    assert!(shown.iter().all(|entry| entry["value"] == shown[0]["value"]), "{shown:?}");
    assert!(shown[0]["conflict"] == true, "{shown:?}");
    assert!(status["regions"].as_array().unwrap().iter().all(|r| r["conflicts"].as_u64() > Some(0)), "{status}");
    for region in 0..3 {
        assert_eq!(get(&cluster, region, "visits")["value"], json!({ "n": 6 }));
    }
}

#[test]
fn a_killed_cluster_has_every_acked_write_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = dev(Some(dir.path()));
    for region in 0..3 {
        let key = format!("k{region}");
        done(&isle_at(&endpoint(&cluster, region), &["put", "default", &key, "acked"]));
    }
    cluster.kill();
    let cluster = dev(Some(dir.path()));
    for region in 0..3 {
        assert_eq!(get(&cluster, region, &format!("k{region}"))["value"], "acked");
    }
    eventually("agreement", || agreed(&cluster, 3));
}

#[test]
fn links_that_do_not_exist_are_refused() {
    let cluster = dev(None);
    let error = failed(&cluster.isle(&["link", "cut", "us-east-1", "mars"]), 1);
    assert_eq!((&error["code"], &error["reason"]), (&json!("INVALID_ARGUMENT"), &json!("INVALID_FIELD")));
    assert!(error["message"].as_str().unwrap().contains("mars"));
    let slow = cluster.isle(&["link", "slow", "us-east-1", "eu-west-1", "--one-way", "--delay", "80ms"]);
    assert!(slow.status.success());
    let lines: Vec<Json> =
        String::from_utf8(slow.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let slowed: Vec<&Json> = lines.iter().filter(|link| link["delay_ms"] == 80).collect();
    assert_eq!((lines.len(), slowed.len()), (6, 1));
    assert_eq!((&slowed[0]["from"], &slowed[0]["to"]), (&json!("us-east-1"), &json!("eu-west-1")));
}
