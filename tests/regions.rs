//! Regions join a running cluster of real processes, leave it, and are given up, while clients write.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use isle_client::{Client, Options, Retry, Value, WriteOptions, v1};
use serde_json::{Value as Json, json};
use support::{Process, done, eventually, failed, free_port, isle_at, serve_in};
use tempfile::TempDir;

/// Regions, in the order of their ports; their jurisdictions are their first two letters. The last joins.
const REGIONS: [&str; 4] = ["us-1", "eu-1", "ap-1", "sa-1"];

struct Cluster {
    dir: TempDir,
    first: u16,
    nodes: BTreeMap<&'static str, Process>,
}

impl Cluster {
    /// The first three.
    fn start() -> Cluster {
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let first = free_port(40);
            REGIONS.iter().for_each(|region| write_config(dir.path(), region, first));
            let nodes: Result<BTreeMap<_, _>, _> = REGIONS[..3]
                .iter()
                .map(|region| Ok((*region, serve_in(dir.path(), region, port_of(region, first))?)))
                .collect();
            match nodes {
                Ok(nodes) => return Cluster { dir, first, nodes },
                Err(lines) => drop::<Vec<String>>(lines),
            }
        }
        panic!("no ports are free for long enough")
    }

    fn start_region(&mut self, region: &'static str) {
        let node = serve_in(self.dir.path(), region, port_of(region, self.first)).unwrap();
        self.nodes.insert(region, node);
    }

    fn endpoint(&self, region: &str) -> String {
        format!("http://127.0.0.1:{}", port_of(region, self.first))
    }

    fn isle(&self, region: &str, arguments: &[&str]) -> std::process::Output {
        isle_at(&self.endpoint(region), arguments)
    }

    /// What a region says of all: they are these, they serve, and hold the same.
    fn agreed(&self, asked: &str, regions: &[&str]) -> Result<(), String> {
        let status = done(&self.isle(asked, &["status"]));
        let rows = status["regions"].as_array().unwrap();
        let names: Vec<&Json> = rows.iter().map(|row| &row["region"]).collect();
        let fits = names.len() == regions.len()
            && regions.iter().all(|region| names.contains(&&json!(region)))
            && rows.iter().all(|row| row["state"] == "SERVING" && row["digest"].is_string())
            && rows.iter().all(|row| row["digest"] == rows[0]["digest"]);
        if fits { Ok(()) } else { Err(status.to_string()) }
    }
}

fn port_of(region: &str, first: u16) -> u16 {
    first + 10 * REGIONS.iter().position(|other| *other == region).unwrap() as u16
}

/// The founders know each other and nobody else.
fn write_config(dir: &Path, region: &str, first: u16) {
    let mut text = format!("cluster = \"grows\"\nregion = \"{region}\"\njurisdiction = \"{}\"\n", &region[..2]);
    if region == REGIONS[3] {
        text.push_str("join = true\n");
    }
    for other in REGIONS[..3].iter().filter(|other| **other != region) {
        let port = port_of(other, first);
        text.push_str(&format!(
            "[[peers]]\nregion = \"{other}\"\njurisdiction = \"{}\"\nendpoint = \"http://127.0.0.1:{}\"\n\
             client_endpoint = \"http://127.0.0.1:{port}\"\n",
            &other[..2],
            port + 1
        ));
    }
    std::fs::write(dir.join(format!("{region}.toml")), text).unwrap();
}

/// Writes keys of a forwarded keyspace through one region until told to stop; returns those that were acknowledged.
async fn write_through(endpoint: String, name: &'static str, stop: Arc<AtomicBool>) -> Vec<String> {
    let options = Options { timeout: Duration::from_secs(2), retry: Retry::never(), ..Options::default() };
    let mut acked = Vec::new();
    let Ok(client) = Client::connect_with(&endpoint, options).await else { return acked };
    for n in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        let key = format!("{name}/{n}");
        if client.put("orders", key.clone().into_bytes(), Value::from("x"), WriteOptions::default()).await.is_ok() {
            acked.push(key);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    acked
}

#[test]
fn a_region_joins_another_leaves_and_a_third_is_given_up_while_clients_write() {
    let mut cluster = Cluster::start();
    eventually("the cluster is founded", || {
        let made = cluster.isle("us-1", &["keyspace", "create", "orders"]);
        let told = String::from_utf8_lossy(&made.stderr).into_owned();
        if made.status.success() || told.contains("KEYSPACE_EXISTS") { Ok(()) } else { Err(told) }
    });
    done(&cluster.isle("us-1", &["keyspace", "create", "europe", "--residency", "eu"]));
    for region in &REGIONS[..3] {
        eventually("every region has heard of them", || {
            let known = cluster.isle(region, &["keyspace", "get", "europe"]);
            if known.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&known.stderr).into_owned()) }
        });
    }
    done(&cluster.isle("eu-1", &["put", "europe", "k", "v"]));
    for n in 0..50 {
        done(&cluster.isle(REGIONS[n % 3], &["put", "orders", &format!("early/{n}"), "x"]));
    }

    let (stop, runtime) = (Arc::new(AtomicBool::new(false)), tokio::runtime::Runtime::new().unwrap());
    let writers: Vec<_> = REGIONS[..3]
        .iter()
        .map(|region| runtime.spawn(write_through(cluster.endpoint(region), region, stop.clone())))
        .collect();

    // One joins.
    cluster.start_region("sa-1");
    let early = failed(&cluster.isle("sa-1", &["get", "orders", "early/1", "--timeout", "1s"]), 1);
    assert_eq!(early["reason"], "NOT_SERVING");
    let (peer, client) = (format!("http://127.0.0.1:{}", port_of("sa-1", cluster.first) + 1), cluster.endpoint("sa-1"));
    let add = ["region", "add", "sa-1", "--jurisdiction", "sa", "--peer-endpoint", &peer, "--client-endpoint", &client];
    let added = done(&cluster.isle("us-1", &[&add[..], &["--wait", "60s"]].concat()));
    assert_eq!(added["state"], "SERVING");
    assert_eq!(failed(&cluster.isle("eu-1", &add), 1)["reason"], "REGION_EXISTS");
    for n in 0..50 {
        let found = done(&cluster.isle("sa-1", &["get", "orders", &format!("early/{n}")]));
        assert_eq!(found["found"], true, "early/{n}");
    }
    let refused = failed(&cluster.isle("sa-1", &["get", "europe", "k"]), 1);
    assert_eq!(refused["reason"], "RESIDENCY_VIOLATION");
    done(&cluster.isle("sa-1", &["put", "orders", "late/1", "x"]));

    // One leaves.
    assert_eq!(failed(&cluster.isle("us-1", &["region", "remove", "eu-1"]), 1)["reason"], "INCOMPATIBLE_SETTINGS");
    let removed = done(&cluster.isle("us-1", &["region", "remove", "ap-1", "--wait", "60s"]));
    assert_eq!(removed["state"], "REMOVED");
    assert_eq!(cluster.nodes.get_mut("ap-1").unwrap().ended(), Some(0));

    stop.store(true, Relaxed);
    let acked: Vec<String> = writers.into_iter().flat_map(|writer| runtime.block_on(writer).unwrap()).collect();
    let left = ["us-1", "eu-1", "sa-1"];
    for name in &REGIONS[..3] {
        assert!(acked.iter().any(|key| key.starts_with(name)), "nothing was written through {name}");
    }
    eventually("those that are left agree", || cluster.agreed("sa-1", &left));
    for region in left {
        let client = runtime.block_on(Client::connect(&cluster.endpoint(region))).unwrap();
        for key in acked.iter().map(String::as_str).chain(["late/1"]) {
            let entry =
                runtime.block_on(client.get("orders", key.as_bytes().to_vec(), v1::ReadOptions::default())).unwrap();
            assert!(entry.found, "{region} lacks {key}, which was acknowledged");
        }
    }
    // A key whose home has left is written on.
    for region in left {
        done(&cluster.isle(region, &["put", "orders", "ap-1/0", "anew"]));
    }

    // It starts again, and is told; it does not run on beside the others.
    cluster.start_region("ap-1");
    assert_eq!(cluster.nodes.get_mut("ap-1").unwrap().ended(), Some(0));

    // One is lost.
    assert_eq!(failed(&cluster.isle("us-1", &["region", "remove", "sa-1", "--lost"]), 1)["reason"], "REGION_IS_ALIVE");
    cluster.nodes.get_mut("sa-1").unwrap().kill();
    eventually("it is given up", || {
        let told = cluster.isle("us-1", &["region", "remove", "sa-1", "--lost"]);
        if told.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&told.stderr).into_owned()) }
    });
    eventually("the two agree", || cluster.agreed("eu-1", &["us-1", "eu-1"]));
    done(&cluster.isle("eu-1", &["keyspace", "create", "after-all"]));
}
