//! A real node, and everything that strangers, clients gone wrong and peers gone wrong may send it. Whatever comes, it answers
//! with a clear error, loses nothing, holds no more memory than it may, panics nowhere, and goes on serving others.
#![allow(clippy::unwrap_used)]

mod clients;
mod peers;
mod senders;
#[path = "../support/mod.rs"]
mod support;

use std::net::TcpListener;
use std::time::Duration;

use isle_client::{Client, Options, Retry, Value, WriteOptions, v1};
use isle_model::KeyspaceId;
use support::{Process, serve_with};
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt;

const KS: KeyspaceId = KeyspaceId(1);
const SHARDS: u32 = 4;
/// The region that the victim takes for a peer, and that the tests play.
const EVIL: &str = "evil";
/// What an attack may cost beyond what the node held before: a few of the largest messages there are, unpacked.
const MEMORY_MAX: u64 = 400 << 20;

struct Victim {
    node: Process,
    client: Client,
    /// Where it expects its peer.
    evil_port: u16,
    dir: TempDir,
    resident_before: u64,
}

impl Victim {
    async fn new() -> Victim {
        let dir = tempfile::tempdir().unwrap();
        let evil_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = dir.path().join("isle.toml");
        let peer = format!("[[peers]]\nregion = \"{EVIL}\"\nendpoint = \"http://127.0.0.1:{evil_port}\"\n");
        std::fs::write(&file, peer).unwrap();
        let node = serve_with(&dir.path().join("data"), Some(&file), &["limits.receive_timeout=2s"]);
        let options = Options { retry: Retry::never(), ..Options::default() };
        let client = Client::connect_with(&node.endpoint, options).await.unwrap();
        client.put("default", "before", Value::from("kept"), WriteOptions::default()).await.unwrap();
        let resident_before = resident(&node);
        Victim { node, client, evil_port, dir, resident_before }
    }

    /// Raw HTTP/2, with nothing that keeps to gRPC.
    async fn channel(&self) -> Channel {
        Channel::from_shared(self.node.endpoint.clone()).unwrap().connect().await.unwrap()
    }

    async fn peer_channel(&self) -> Channel {
        let endpoint = format!("http://127.0.0.1:{}", self.node.port + 1);
        Channel::from_shared(endpoint).unwrap().connect().await.unwrap()
    }

    /// Others are served on: what was there is there, and new writes are taken, in good time.
    async fn serves_on(&self) {
        let all = async {
            let read = self.client.get("default", "before", v1::ReadOptions::default()).await.unwrap();
            assert_eq!(read.record.value, Some(Value::from("kept")));
            self.client.put("default", "after", Value::from("taken"), WriteOptions::default()).await.unwrap();
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("others wait for more than 10 s");
    }

    /// It serves on, has not grown beyond what it may, and has panicked nowhere.
    async fn is_unharmed(&mut self) {
        self.serves_on().await;
        let grown = most_resident(&self.node).saturating_sub(self.resident_before);
        assert!(grown <= MEMORY_MAX, "it grew by {} MiB", grown >> 20);
        let said = self.node.said();
        let panics: Vec<&String> = said.iter().filter(|line| line.contains("panicked")).collect();
        assert!(panics.is_empty(), "{panics:#?}");
    }

    /// What it says of its peer.
    async fn last_error(&self) -> String {
        let region = self.client.status().await.unwrap().region.unwrap();
        region.peers.iter().find(|peer| peer.region == EVIL).unwrap().last_error.clone()
    }

    /// Waits until what it says of its peer holds this.
    async fn blames_its_peer(&self, fact: &str) {
        let mut last = String::new();
        let said = async {
            while !last.contains(fact) {
                last = self.last_error().await;
                tokio::task::yield_now().await;
            }
        };
        let late = tokio::time::timeout(support::PATIENCE, said).await.is_err();
        assert!(!late, "it says of its peer {last:?}, and not {fact:?}");
    }
}

fn resident(node: &Process) -> u64 {
    memory(node, "VmRSS:")
}

fn most_resident(node: &Process) -> u64 {
    memory(node, "VmHWM:")
}

/// In bytes.
fn memory(node: &Process, row: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
    let row = status.lines().find_map(|line| line.strip_prefix(row)).unwrap();
    row.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("not in isle's words: {status:?}"));
    assert_eq!(info.domain, "isle.v1");
    info.reason
}
