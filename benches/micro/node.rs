//! A whole node in one process: queue, shard loop, log, sync and answer; no gRPC.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use divan::Bencher;
use divan::counter::ItemsCount;
use isle_load::record::{Records, Shape};
use isle_model::{Incarnation, Mutation, Region, TokenKey, Value};
use isle_node::peer::{Connector, Peer, PeerError};
use isle_node::{Node, NodeConfig, Parts, PeerConfig, RequestContext, SyncDriver, SystemClock, WriteRequest};
use isle_store::disk::RealDisk;
use isle_store::{BootIdentity, Store, StoreConfig, ViewPlace};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

struct Alone;

#[async_trait]
impl Connector for Alone {
    async fn connect(&self, _: &PeerConfig) -> Result<Arc<dyn Peer>, PeerError> {
        Err(PeerError::Unreachable { reason: "there is nobody else".to_owned() })
    }
}

fn start(directory: &Path) -> Arc<Node> {
    let region = Region::new("a");
    let (store, writers, _) = Store::open(
        StoreConfig { region: region.clone(), ..StoreConfig::default() },
        Arc::new(RealDisk::open(directory.to_owned()).unwrap()),
        ViewPlace::Directory(directory.to_owned()),
        BootIdentity { boot_id: "boot".to_owned(), mount_id: "mount".to_owned() },
        Incarnation(1),
        &mut |_| {},
    )
    .unwrap();
    let config = NodeConfig { region, token_key: TokenKey::new([1; 32]), ..NodeConfig::default() };
    let (clock, connector) = (Arc::new(SystemClock::new()), Arc::new(Alone));
    Node::start(
        config,
        Parts { store, writers, clock, connector, egress: Arc::default(), seed: 1, sync: SyncDriver::Threads },
    )
    .unwrap()
}

async fn put_all(node: &Arc<Node>, requests: Vec<WriteRequest>) {
    let mut writing = JoinSet::new();
    for request in requests {
        let node = node.clone();
        writing.spawn(async move { node.write(&RequestContext::default(), request).await });
    }
    while let Some(written) = writing.join_next().await {
        written.unwrap().unwrap();
    }
}

fn request(records: &mut Records, number: u64) -> WriteRequest {
    let record = records.record(number);
    let mutation = Mutation::Put { value: Value::bytes(record.value) };
    WriteRequest::new("default", record.key, mutation)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// So many puts at once, durable, on one thread beside the storage's own.
#[divan::bench(args = [1, 16, 256], sample_count = 50, sample_size = 4)]
fn put(bencher: Bencher<'_, '_>, at_once: u64) {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let node = runtime.block_on(async { start(directory.path()) });
    let (mut records, mut next) = (Records::new(Shape::default(), 1), 0);
    bencher
        .counter(ItemsCount::new(at_once))
        .with_inputs(|| {
            next += at_once;
            (next - at_once..next).map(|number| request(&mut records, number)).collect::<Vec<_>>()
        })
        .bench_local_values(|requests| runtime.block_on(put_all(&node, requests)));
    runtime.block_on(node.shutdown());
}
