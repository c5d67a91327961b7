//! Residency, judged by every byte that crosses every link: no key and no value of a restricted keyspace is on one that it may not
//! cross, however it is written, forwarded, read, deleted, or sent as a state.
//!
//! What is written is random: nothing packs it, so that it would be seen as it is; on the allowed links it is.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod support;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use isle_client::{Client, Options, Retry, Value, WriteOptions, v1};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use support::tap::Tap;
use support::{Process, eventually, serve_with};
use tempfile::TempDir;

/// Regions, and their jurisdictions.
const REGIONS: [(&str, &str); 3] = [("eu-1", "eu"), ("us-1", "us"), ("ap-1", "ap")];
const RESTRICTED: &str = "restricted";
const NARROWED: &str = "narrowed";
const SEED: u64 = 0x1517;
const RECORDS: usize = 200;
/// What is looked for of a secret: long enough that chance never makes it.
const WINDOW: usize = 16;

struct Cluster {
    taps: BTreeMap<(&'static str, &'static str), Tap>,
    dir: TempDir,
    nodes: BTreeMap<&'static str, Process>,
}

impl Cluster {
    fn start() -> Cluster {
        let pairs = REGIONS.iter().flat_map(|from| REGIONS.iter().map(|to| (from.0, to.0))).filter(|(a, b)| a != b);
        let taps = pairs.map(|pair| (pair, Tap::new())).collect();
        let mut cluster = Cluster { taps, dir: tempfile::tempdir().unwrap(), nodes: BTreeMap::new() };
        REGIONS.iter().for_each(|(region, _)| cluster.start_region(region));
        cluster
    }

    fn start_region(&mut self, region: &'static str) {
        let config = self.dir.path().join(format!("{region}.toml"));
        std::fs::write(&config, self.config(region)).unwrap();
        let node = serve_with(&self.data_dir(region), Some(&config), &[&format!("region={region}")]);
        for ((_, to), tap) in &self.taps {
            if *to == region {
                tap.lead_to(node.port + 1);
            }
        }
        self.nodes.insert(region, node);
    }

    fn data_dir(&self, region: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(region);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn config(&self, region: &'static str) -> String {
        let mut text = String::new();
        for (other, jurisdiction) in REGIONS {
            if other == region {
                text = format!("cluster = \"tapped\"\njurisdiction = \"{jurisdiction}\"\n{text}");
            } else {
                let endpoint = &self.taps[&(region, other)].endpoint;
                text.push_str(&format!(
                    "[[peers]]\nregion = \"{other}\"\njurisdiction = \"{jurisdiction}\"\nendpoint = \"{endpoint}\"\n"
                ));
            }
        }
        text + "[[keyspaces]]\nid = 1\nname = \"default\"\n[[keyspaces]]\nid = 2\nname = \"restricted\"\n\
                scope = \"affine\"\nresidency = \"eu,region:us-1\"\nreplication = \"sync(1)\"\n"
    }

    /// The region comes back with an empty disk, and has to be given everything.
    fn wipe(&mut self, region: &'static str) {
        self.nodes.get_mut(region).unwrap().kill();
        remove(&self.data_dir(region));
        self.start_region(region);
    }

    async fn client(&self, region: &str) -> Client {
        let options = Options { retry: Retry::never(), ..Options::default() };
        Client::connect_with(&self.nodes[region].endpoint, options).await.unwrap()
    }

    /// Waits until a region has so many records of a keyspace.
    fn await_records(&self, region: &str, keyspace: &str, records: u64) {
        eventually(&format!("{records} records of {keyspace} in {region}"), || {
            let status = support::done(&self.nodes[region].isle(&["status"]));
            let of_region = |row: &serde_json::Value| row["region"] == region;
            let row = status["regions"].as_array().unwrap().iter().find(|row| of_region(row)).cloned().unwrap();
            let found = row["keyspaces"].as_array().into_iter().flatten().find(|ks| ks["name"] == keyspace);
            let found = found.and_then(|keyspace| keyspace["records"].as_u64());
            if found == Some(records) { Ok(()) } else { Err(format!("{row}")) }
        });
    }

    /// Waits until every region knows that nobody comes to hold a keyspace any more, or ceases to.
    fn await_in_force(&self, keyspace: &str) {
        for region in self.nodes.values() {
            eventually(&format!("the residency of {keyspace} is in force"), || {
                let shown = support::done(&region.isle(&["keyspace", "get", keyspace]));
                let changing = &shown["holders_changing"];
                if changing.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(changing.to_string()) }
            });
        }
    }

    /// How many of the windows are in the files of a region.
    fn on_disk(&self, region: &str, windows: &HashSet<[u8; WINDOW]>) -> usize {
        let mut files = vec![self.data_dir(region)];
        let mut seen = HashSet::new();
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if let Ok(bytes) = std::fs::read(&path) {
                seen.extend(bytes.windows(WINDOW).filter_map(|window| windows.get(window)).copied());
            }
        }
        seen.len()
    }

    /// How many of the windows are on the links between two regions.
    fn seen_between(&self, a: &str, b: &str, windows: &HashSet<[u8; WINDOW]>) -> usize {
        let of_pair = |pair: &(&str, &str)| *pair == (a, b) || *pair == (b, a);
        let mut seen = HashSet::new();
        for (_, tap) in self.taps.iter().filter(|(pair, _)| of_pair(pair)) {
            let captured = tap.captured.lock().unwrap();
            let found = captured.windows(WINDOW).filter_map(|window| windows.get(window));
            seen.extend(found.copied());
        }
        seen.len()
    }
}

fn remove(path: &Path) {
    std::fs::remove_dir_all(path).unwrap();
}

/// What must not be seen.
struct Secrets {
    rng: StdRng,
    windows: HashSet<[u8; WINDOW]>,
}

impl Secrets {
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.rng.fill_bytes(&mut bytes);
        self.windows.extend(bytes.chunks_exact(WINDOW).map(|window| <[u8; WINDOW]>::try_from(window).unwrap()));
        bytes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_of_restricted_data_crosses_a_link_that_it_may_not() {
    println!("seed {SEED}");
    let mut cluster = Cluster::start();
    let mut secrets = Secrets { rng: StdRng::seed_from_u64(SEED), windows: HashSet::new() };
    let keys: Vec<Vec<u8>> = (0..RECORDS).map(|_| secrets.bytes(48)).collect();
    // The links first: what is confirmed by another holder waits for one.
    let (eu, us, ap) = (cluster.client("eu-1").await, cluster.client("us-1").await, cluster.client("ap-1").await);
    let first = secrets.bytes(256);
    let mut tries = 0;
    while let Err(error) =
        eu.put(RESTRICTED, keys[0].clone(), Value::Bytes(first.clone().into()), WriteOptions::default()).await
    {
        tries += 1;
        assert!(error.reason == "HOME_UNREACHABLE" && tries < 600, "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    for key in &keys[1..] {
        let value = Value::Bytes(secrets.bytes(256).into());
        eu.put(RESTRICTED, key.clone(), value, WriteOptions::default()).await.unwrap();
    }
    cluster.await_records("us-1", RESTRICTED, RECORDS as u64);
    // Forwarded, and read where the home is.
    for key in &keys[..RECORDS / 2] {
        let value = Value::Bytes(secrets.bytes(256).into());
        let written = us.put(RESTRICTED, key.clone(), value, WriteOptions::default()).await.unwrap();
        assert_eq!(written.served_by, "eu-1");
        let strong = v1::ReadOptions { consistency: v1::Consistency::Strong.into(), ..Default::default() };
        assert!(us.get(RESTRICTED, key.clone(), strong).await.unwrap().found);
    }
    for key in &keys[RECORDS - 20..] {
        us.delete(RESTRICTED, key.clone(), WriteOptions::default()).await.unwrap();
    }
    // Whoever may not hold it is told who may, and neither takes it nor passes it on.
    let refused = ap.put(RESTRICTED, keys[0].clone(), Value::from("x"), WriteOptions::default()).await.unwrap_err();
    assert_eq!(refused.reason, "RESIDENCY_VIOLATION", "{refused}");
    assert_eq!(refused.facts["regions"], "eu-1,us-1");
    let refused = ap.get(RESTRICTED, keys[0].clone(), v1::ReadOptions::default()).await.unwrap_err();
    assert_eq!(refused.reason, "RESIDENCY_VIOLATION", "{refused}");
    // What everybody may hold flows on everywhere.
    for n in 0..50 {
        us.put("default", format!("open-{n}"), Value::from("for all"), WriteOptions::default()).await.unwrap();
    }
    cluster.await_records("ap-1", "default", 50);
    // A holder, and one that is none, come back with nothing.
    cluster.wipe("us-1");
    cluster.await_records("us-1", RESTRICTED, RECORDS as u64 - 20);
    cluster.wipe("ap-1");
    cluster.await_records("ap-1", "default", 50);

    let (before, after) = narrow(&mut cluster, &eu, &mut secrets.rng).await;
    assert!(cluster.seen_between("eu-1", "ap-1", &before) > before.len() / 2, "it was held there");
    for pair in [("eu-1", "ap-1"), ("us-1", "ap-1")] {
        assert_eq!(cluster.seen_between(pair.0, pair.1, &after), 0, "between {pair:?}, after it was narrowed");
    }

    let windows = &secrets.windows;
    assert_eq!(cluster.seen_between("eu-1", "ap-1", windows), 0, "between eu and ap");
    assert_eq!(cluster.seen_between("us-1", "ap-1", windows), 0, "between us and ap");
    let allowed = cluster.seen_between("eu-1", "us-1", windows);
    assert!(allowed > windows.len() / 2, "only {allowed} of {} are seen where they are allowed", windows.len());
}

/// Writes a keyspace that every region holds, lets ap-1 hold it no more, and writes on. Returns what was written before, and what after.
async fn narrow(
    cluster: &mut Cluster,
    eu: &Client,
    rng: &mut StdRng,
) -> (HashSet<[u8; WINDOW]>, HashSet<[u8; WINDOW]>) {
    let [mut before, mut after] =
        [(); 2].map(|()| Secrets { rng: StdRng::seed_from_u64(rng.next_u64()), windows: HashSet::new() });
    support::done(&cluster.nodes["eu-1"].isle(&["keyspace", "create", NARROWED]));
    let put = async |at: &Client, secrets: &mut Secrets| {
        let (key, value) = (secrets.bytes(48), Value::Bytes(secrets.bytes(256).into()));
        at.put(NARROWED, key, value, WriteOptions::default()).await
    };
    for _ in 0..RECORDS {
        put(eu, &mut before).await.unwrap();
    }
    cluster.await_records("ap-1", NARROWED, RECORDS as u64);
    assert!(cluster.on_disk("ap-1", &before.windows) > before.windows.len() / 2, "it is held there");
    let (us, ap) = (cluster.client("us-1").await, cluster.client("ap-1").await);
    // It is the home of some, which the others write on.
    let homed: Vec<Vec<u8>> = (0..20).map(|_| before.bytes(48)).collect();
    for key in &homed {
        ap.put(NARROWED, key.clone(), Value::from("x"), WriteOptions::default()).await.unwrap();
    }
    let changed =
        support::done(&cluster.nodes["us-1"].isle(&["keyspace", "update", NARROWED, "--residency", "eu,region:us-1"]));
    let expected = serde_json::json!([{ "region": "ap-1", "step": "HANDING" }]);
    assert_eq!(changed["holders_changing"], expected);
    for _ in 0..RECORDS {
        put(eu, &mut after).await.unwrap();
    }
    for key in &homed {
        us.put(NARROWED, key.clone(), Value::Bytes(after.bytes(256).into()), WriteOptions::default()).await.unwrap();
    }
    cluster.await_in_force(NARROWED);
    assert_eq!(cluster.on_disk("ap-1", &before.windows), 0, "its files are rid of it");
    let refused = ap.get(NARROWED, homed[0].clone(), v1::ReadOptions::default()).await.unwrap_err();
    assert_eq!(refused.reason, "RESIDENCY_VIOLATION", "{refused}");
    cluster.wipe("ap-1");
    for _ in 0..RECORDS {
        put(&us, &mut after).await.unwrap();
    }
    cluster.await_records("eu-1", NARROWED, 3 * RECORDS as u64 + 20);
    cluster.await_records("ap-1", "default", 50);
    (before.windows, after.windows)
}
