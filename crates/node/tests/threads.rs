//! The production drive: a real directory, the storage's own threads, a runtime with workers.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use cluster::put;
use isle_model::{Incarnation, Region, TokenKey};
use isle_node::peer::{Connector, Peer, PeerError};
use isle_node::{
    Consistency, GetRequest, Node, NodeConfig, NodeError, NodeState, Parts, PeerConfig, RequestContext, SyncDriver,
    SystemClock,
};
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
    start_over(directory, incarnation).0
}

fn start_over(directory: &Path, incarnation: u64) -> (Arc<Node>, Arc<Store>) {
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
    let parts = Parts {
        store: store.clone(),
        writers,
        clock,
        connector,
        egress: Arc::default(),
        seed: 1,
        sync: SyncDriver::Threads,
    };
    (Node::start(config, parts).unwrap(), store)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
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
    until("the records are never counted", || node.status().digest.is_some()).await;
    assert_eq!(node.status().records, 3200);
    node.shutdown().await;
}

/// A value in the view that is not what was written is refused, not served; and the node ends itself, so that it is started
/// anew and builds its view from checkpoint and log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_view_is_named_and_gone_after_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path(), 1);
    put(&node, "key", "value").await.unwrap();
    node.shutdown().await;
    drop(node);
    let (node, store) = start_over(directory.path(), 2);
    until("the records are never counted", || node.status().digest.is_some()).await;
    store.damage_view(isle_model::KeyspaceId(1), b"key");
    let ask = || GetRequest { consistency: Consistency::Eventual, keyspace: "default".to_owned(), key: "key".into() };
    let ctx = RequestContext::default();
    let refused = node.get(&ctx, ask()).await;
    assert!(matches!(refused, Err(NodeError::ReadFailed { .. })), "{refused:?}");
    until("it goes on", || matches!(node.status().state, NodeState::Stopped { .. })).await;
    node.shutdown().await;
    drop((node, store));
    let node = start(directory.path(), 3);
    assert!(node.get(&ctx, ask()).await.unwrap().reading.is_some());
    node.shutdown().await;
}
