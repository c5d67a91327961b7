//! The production drive: a real directory, the storage's own threads, a runtime with workers.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use cluster::put;
use isle_model::{Incarnation, Region, TokenKey};
use isle_node::peer::{Connector, Peer, PeerError};
use isle_node::{Node, NodeConfig, Parts, PeerConfig, SyncDriver, SystemClock};
use isle_store::disk::RealDisk;
use isle_store::{BootIdentity, Store, StoreConfig, ViewPlace};

struct Alone;

#[async_trait]
impl Connector for Alone {
    async fn connect(&self, _: &PeerConfig) -> Result<Arc<dyn Peer>, PeerError> {
        Err(PeerError::Unreachable { reason: "there is nobody else".to_owned() })
    }
}

fn start(directory: &Path, incarnation: u64) -> Arc<Node> {
    let region = Region::new("a");
    let storage = StoreConfig { region: region.clone(), segment_bytes: 4 << 20, ..StoreConfig::default() };
    let (store, writers, _) = Store::open(
        storage,
        Arc::new(RealDisk::open(directory.to_owned()).unwrap()),
        ViewPlace::Directory(directory.to_owned()),
        BootIdentity { boot_id: "boot".to_owned(), mount_id: "mount".to_owned() },
        Incarnation(incarnation),
        &mut |_| {},
    )
    .unwrap();
    let config = NodeConfig { region, token_key: TokenKey::new([1; 32]), ..NodeConfig::default() };
    let (clock, connector) = (Arc::new(SystemClock::new()), Arc::new(Alone));
    Node::start(config, Parts { store, writers, clock, connector, seed: 1, sync: SyncDriver::Threads }).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_clean_restart() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path(), 1);
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let node = node.clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    put(&node, &format!("key-{writer}-{n}"), "value").await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let batches = node.counters().batches.get();
    assert!(batches < 3200, "writes share their fsyncs ({batches} batches)");
    node.shutdown().await;
    drop(node);
    let node = start(directory.path(), 2);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while node.status().digest.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "the records are never counted");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(node.status().records, 3200);
    node.shutdown().await;
}
