//! What regions say that they have sent each other, beside what the links have seen of it; and how little of it a warm keyspace needs.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use isle_client::{Client, Value, WriteOptions};
use serde_json::Value as Json;
use support::tap::Tap;
use support::{Process, done, eventually, serve_with};
use tempfile::TempDir;

const REGIONS: [&str; 3] = ["eu-1", "us-1", "ap-1"];
const KEYSPACES: [&str; 2] = ["default", "reports"];
const KEYS: usize = 400;
const ROUNDS: usize = 12;
const AT_ONCE: usize = 50;
/// How far a region's own counters may be from what the links have seen.
const TOLERANCE: f64 = 0.03;

struct Cluster {
    taps: BTreeMap<(&'static str, &'static str), Tap>,
    nodes: BTreeMap<&'static str, Process>,
    _dir: TempDir,
}

impl Cluster {
    fn start() -> Cluster {
        let pairs = REGIONS.iter().flat_map(|from| REGIONS.iter().map(|to| (*from, *to))).filter(|(a, b)| a != b);
        let taps: BTreeMap<_, _> = pairs.map(|pair| (pair, Tap::new())).collect();
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = BTreeMap::new();
        for region in REGIONS {
            let mut text = "cluster = \"metered\"\n".to_owned();
            for other in REGIONS.iter().filter(|other| **other != region) {
                let endpoint = &taps[&(region, *other)].endpoint;
                text.push_str(&format!(
                    "[[peers]]\nregion = \"{other}\"\nendpoint = \"{endpoint}\"\negress_usd_per_gb = 0.02\n"
                ));
            }
            text.push_str(
                "[[keyspaces]]\nid = 1\nname = \"default\"\n[[keyspaces]]\nid = 2\nname = \"reports\"\ntier = \"warm(1h)\"\n\
                 labels = \"team=web\"\n",
            );
            let (config, data_dir) = (dir.path().join(format!("{region}.toml")), dir.path().join(region));
            std::fs::create_dir_all(&data_dir).unwrap();
            std::fs::write(&config, text).unwrap();
            let node = serve_with(&data_dir, Some(&config), &[&format!("region={region}")]);
            taps.iter().filter(|((_, to), _)| *to == region).for_each(|(_, tap)| tap.lead_to(node.port + 1));
            nodes.insert(region, node);
        }
        Cluster { taps, nodes, _dir: dir }
    }

    /// Bytes that the links have seen from one region to another.
    fn crossed(&self, from: &'static str, to: &'static str) -> u64 {
        self.taps[&(from, to)].there.load(Ordering::Relaxed) + self.taps[&(to, from)].back.load(Ordering::Relaxed)
    }

    /// Of each link, what its sender says that it has sent, and what was seen on it.
    fn sent(&self) -> BTreeMap<(&'static str, &'static str), (u64, u64)> {
        let said = self.said();
        let of = |link: &(&'static str, &'static str)| {
            let rows = said.iter().filter(|row| row["from"] == link.0 && row["to"] == link.1);
            let ours = rows.map(|row| row["bytes"].as_u64().unwrap()).sum();
            (*link, (ours, self.crossed(link.0, link.1)))
        };
        self.taps.keys().map(of).collect()
    }

    /// What every region says of itself.
    fn statuses(&self) -> Vec<Json> {
        let own = |(region, node): (&&str, &Process)| {
            let status = done(&node.isle(&["status"]));
            status["regions"].as_array().unwrap().iter().find(|one| one["region"] == **region).unwrap().clone()
        };
        self.nodes.iter().map(own).collect()
    }

    /// What regions say that they have sent, by their own counters.
    fn said(&self) -> Vec<Json> {
        let own = |(region, node): (&&str, &Process)| {
            let output = node.isle(&["egress"]);
            assert!(output.status.success());
            let text = String::from_utf8(output.stdout).unwrap();
            let rows = text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
            rows.filter(|row| row["from"] == **region).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(own).collect()
    }
}

/// 256 bytes or so, as an app would write them: some of it changes, most of it is alike.
fn document(key: usize, round: usize) -> String {
    format!(
        "{{\"id\":{key},\"user\":\"user-{:05}\",\"status\":\"{}\",\"score\":{},\"updated_at\":\"2026-11-27T10:{:02}:{:02}Z\",\
         \"address\":{{\"street\":\"{} Main Street\",\"city\":\"Springfield\",\"zip\":\"{:05}\"}},\"tags\":[\"web\",\"mobile\",\"beta\"],\"flags\":{}}}",
        key * 7919 % 100_000,
        ["open", "paid", "sent"][round % 3],
        (key * 31 + round * 17) % 1000,
        round % 60,
        key % 60,
        key,
        key * 13 % 100_000,
        round
    )
}

async fn write(client: &Client, keyspace: &str) -> u64 {
    let mut written = 0;
    for round in 0..ROUNDS {
        let documents: Vec<String> = (0..KEYS).map(|key| document(key, round)).collect();
        written += documents.iter().map(|document| document.len() as u64).sum::<u64>();
        for (at, some) in documents.chunks(AT_ONCE).enumerate() {
            let put = |(n, document): (usize, &String)| {
                let (key, value) = (format!("key-{:05}", at * AT_ONCE + n), Value::String(document.clone()));
                client.put(keyspace, key, value, WriteOptions::default())
            };
            futures::future::try_join_all(some.iter().enumerate().map(put)).await.unwrap();
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_regions_say_that_they_send_is_what_the_links_have_seen() {
    let cluster = Cluster::start();
    let linked = || {
        let regions = cluster.statuses();
        let is_up = |peer: &Json| peer["state"] == "LIVE" && peer["connected"] == true;
        let all = regions.iter().all(|region| {
            let peers = region["peers"].as_array().unwrap();
            peers.len() == 2 && peers.iter().all(is_up)
        });
        all.then_some(()).ok_or_else(|| format!("{regions:?}"))
    };
    eventually("all links are up", linked);
    // What was written to a link before its far end was up went nowhere.
    let before = cluster.sent();
    let client = Client::connect(&cluster.nodes["eu-1"].endpoint).await.unwrap();
    let mut written = BTreeMap::new();
    for keyspace in KEYSPACES {
        written.insert(keyspace, write(&client, keyspace).await);
    }
    let shipped = client.ship("reports").await.unwrap();
    assert!(shipped.iter().all(|one| one.is_done && one.keys == Some(KEYS as u64)), "{shipped:?}");
    let agree = || {
        let regions = cluster.statuses();
        let digests: Vec<_> = regions.iter().map(|region| region["digest"].clone()).collect();
        let alike = digests.iter().all(|digest| digest.is_string() && *digest == digests[0]);
        (alike && regions[0]["records"] == 2 * KEYS).then_some(()).ok_or_else(|| format!("{regions:?}"))
    };
    eventually("the regions agree", agree);

    // The two are read one after the other, while heartbeats go on.
    eventually("each region counts what the links have seen", || {
        for (link, (ours, seen)) in cluster.sent() {
            let (from, to) = link;
            let (ours, seen) = (ours - before[&link].0, seen - before[&link].1);
            let off = (ours as f64 - seen as f64).abs() / seen as f64;
            if off > TOLERANCE {
                return Err(format!("{from} says that it sent {to} {ours} bytes, and the links have seen {seen}"));
            }
        }
        Ok(())
    });
    let said = cluster.said();
    let bytes = |keyspace: &str, cause: &str| {
        let of = |row: &&Json| row["from"] == "eu-1" && row["keyspace"] == keyspace && row["cause"] == cause;
        said.iter().filter(of).map(|row| row["bytes"].as_u64().unwrap()).sum::<u64>()
    };
    let (hot, warm) = (bytes("default", "delta"), bytes("reports", "warm"));
    let per_peer = |bytes: u64, keyspace| bytes as f64 / 2.0 / written[keyspace] as f64;
    println!(
        "bytes on the wire a peer and written byte: hot {:.3}, warm {:.3}",
        per_peer(hot, "default"),
        per_peer(warm, "reports")
    );
    assert!(warm > 0 && warm * 4 < hot, "hot {hot}, warm {warm}");
    assert_eq!(bytes("reports", "delta"), 0);
    assert!(said.iter().all(|row| row["usd"].is_f64()), "each has a price");
    let metrics = metrics_of(&cluster.nodes["eu-1"]);
    let row = "isle_egress_bytes_total{peer=\"us-1\",keyspace=\"reports\",cause=\"warm\",label_team=\"web\"}";
    assert!(metrics.contains(row), "{metrics}");
}

fn metrics_of(node: &Process) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", node.port + 2)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: isle\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
