//! A cluster in one process: real nodes and stores, disks in memory, links of channels that can be cut. Time is tokio's own,
//! paused, so that a test waits for conditions and never for the clock.
#![allow(clippy::unwrap_used, dead_code)]

pub mod chaos;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use isle_model::{FieldName, Incarnation, KeyspaceId, Mutation, Region, ShardId, TokenKey, Value};
use isle_node::peer::{
    Connector, FetchReply, FetchRequest, ForwardError, ForwardRequest, Hello, MetadataReply, MetadataRequest, Peer,
    PeerError, ReadReply, ReadRequest, StateReply, StateRequest, ToReceiver, ToSender, Unpacker,
};
use isle_node::{
    Clock, Consistency, GetReply, GetRequest, Node, NodeConfig, NodeError, Parts, PeerConfig, RemoteError,
    RequestContext, SyncDriver, WriteReply, WriteRequest,
};
use isle_store::disk::{Crash, MemoryDisk};
use isle_store::{BootIdentity, Store, StoreConfig, ViewPlace};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub const KEYSPACE: KeyspaceId = KeyspaceId(1);
pub const SHARDS: u32 = 2;

struct TestClock {
    origin: Instant,
    /// How far its wall time is ahead.
    skew_ms: Arc<AtomicU64>,
}

impl Clock for TestClock {
    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + self.origin.elapsed().as_millis() as u64 + self.skew_ms.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}

type Pair = (String, String);

fn pair(a: &str, b: &str) -> Pair {
    if a < b { (a.to_owned(), b.to_owned()) } else { (b.to_owned(), a.to_owned()) }
}

#[derive(Clone)]
struct Network {
    nodes: Arc<Mutex<BTreeMap<String, Weak<Node>>>>,
    cuts: Arc<watch::Sender<BTreeSet<Pair>>>,
    /// How many chunks of state may still be asked for, in the whole cluster.
    chunks_left: Arc<AtomicU64>,
    /// What becomes of the messages that a region sends.
    tampers: Arc<Mutex<BTreeMap<String, Tamper>>>,
}

pub type Tamper = Arc<dyn Fn(ToReceiver) -> ToReceiver + Send + Sync>;

struct Dialler {
    network: Network,
    from: String,
}

struct Line {
    network: Network,
    ends: Pair,
    to: String,
    cuts: watch::Receiver<BTreeSet<Pair>>,
}

fn unreachable() -> PeerError {
    PeerError::Unreachable { reason: "the link is cut".to_owned() }
}

impl Line {
    fn node(&self) -> Result<Arc<Node>, PeerError> {
        if self.cuts.borrow().contains(&self.ends) {
            return Err(unreachable());
        }
        self.network.nodes.lock().get(&self.to).and_then(Weak::upgrade).ok_or_else(unreachable)
    }

    fn cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut cuts, ends) = (self.cuts.clone(), self.ends.clone());
        async move {
            let _ = cuts.wait_for(|cuts| cuts.contains(&ends)).await;
        }
    }
}

#[async_trait]
impl Connector for Dialler {
    async fn connect(&self, peer: &PeerConfig) -> Result<Arc<dyn Peer>, PeerError> {
        let to = peer.region.as_str().to_owned();
        let ends = pair(&self.from, &to);
        let line = Line { network: self.network.clone(), ends, to, cuts: self.network.cuts.subscribe() };
        line.node()?;
        Ok(Arc::new(line))
    }
}

#[async_trait]
impl Peer for Line {
    async fn subscribe(
        &self,
        hello: Hello,
        outgoing: mpsc::Receiver<ToSender>,
    ) -> Result<BoxStream<'static, Result<ToReceiver, PeerError>>, PeerError> {
        let words = futures::stream::unfold(outgoing, |mut outgoing| async move {
            outgoing.recv().await.map(|word| (Ok(word), outgoing))
        });
        let messages = self.node()?.subscribe(hello, words.take_until(Box::pin(self.cut())).boxed())?;
        let (tampers, from) = (self.network.tampers.clone(), self.to.clone());
        let mut unpacker = Unpacker::default();
        let messages = messages.map(move |message| {
            let message = match message? {
                ToReceiver::Deltas(batch) => ToReceiver::Deltas(unpacker.alone(batch)?),
                other => other,
            };
            Ok(match tampers.lock().get(&from).cloned() {
                Some(tamper) => tamper(message),
                None => message,
            })
        });
        Ok(messages.take_until(Box::pin(self.cut())).boxed())
    }

    async fn fetch(&self, request: FetchRequest) -> Result<FetchReply, PeerError> {
        self.node()?.serve_fetch(request).await
    }

    async fn state(&self, request: StateRequest) -> Result<StateReply, PeerError> {
        let left = &self.network.chunks_left;
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return Err(PeerError::NotReady { reason: "no more chunks are to be had".to_owned() });
        }
        self.node()?.serve_state(request).await
    }

    async fn metadata(&self, request: MetadataRequest) -> Result<MetadataReply, PeerError> {
        let node = self.node()?;
        tokio::select! {
            biased;
            () = self.cut() => Err(unreachable()),
            reply = node.serve_metadata(request) => reply,
        }
    }

    async fn forward(&self, request: ForwardRequest) -> Result<Vec<Result<WriteReply, NodeError>>, ForwardError> {
        let node = self.node().map_err(|error| ForwardError::NotSent { reason: error.to_string() })?;
        let deadline = Some(Instant::now() + request.timeout);
        let ctx = RequestContext { deadline, ..RequestContext::default() };
        let served = node.serve_forward(&ctx, request);
        tokio::select! {
            replies = served => replies.map_err(refused),
            () = self.cut() => Err(ForwardError::Lost { reason: "the link was cut".to_owned() }),
        }
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadReply, ForwardError> {
        let node = self.node().map_err(|error| ForwardError::NotSent { reason: error.to_string() })?;
        tokio::select! {
            reply = node.serve_read(request) => reply.map_err(refused),
            () = self.cut() => Err(ForwardError::Lost { reason: "the link was cut".to_owned() }),
        }
    }
}

/// As the wire has it, as far as a node looks at it.
fn refused(error: NodeError) -> ForwardError {
    let mut remote = RemoteError { message: error.to_string(), ..RemoteError::default() };
    if let NodeError::NotHome { home, .. } = &error {
        remote.reason = "NOT_HOME".to_owned();
        remote.facts.insert("home".to_owned(), home.to_string());
    }
    ForwardError::Refused(Box::new(remote))
}

pub struct Cluster {
    network: Network,
    pub disks: BTreeMap<String, MemoryDisk>,
    pub nodes: BTreeMap<String, Arc<Node>>,
    regions: Vec<String>,
    starts: u64,
    origin: Instant,
    skews: BTreeMap<String, Arc<AtomicU64>>,
    /// Changed before nodes are started.
    pub tune: fn(&mut NodeConfig, &mut StoreConfig),
}

impl Cluster {
    pub fn new(regions: &[&str]) -> Self {
        Self::tuned(regions, |_, _| {})
    }

    pub fn tuned(regions: &[&str], tune: fn(&mut NodeConfig, &mut StoreConfig)) -> Self {
        let network = Network {
            nodes: Arc::default(),
            cuts: Arc::new(watch::Sender::new(BTreeSet::new())),
            chunks_left: Arc::new(AtomicU64::new(u64::MAX)),
            tampers: Arc::default(),
        };
        let regions: Vec<String> = regions.iter().map(|region| (*region).to_owned()).collect();
        let disks = regions.iter().map(|region| (region.clone(), MemoryDisk::new())).collect();
        let (nodes, starts, origin) = (BTreeMap::new(), 0, Instant::now());
        let skews = regions.iter().map(|region| (region.clone(), Arc::default())).collect();
        let mut cluster = Cluster { network, disks, nodes, regions: regions.clone(), starts, origin, skews, tune };
        regions.iter().for_each(|region| cluster.start(region));
        cluster
    }

    /// Starts a region that is in none of the others' configurations, and wants to join them.
    pub fn start_joining(&mut self, region: &str) {
        self.disks.insert(region.to_owned(), MemoryDisk::new());
        self.skews.entry(region.to_owned()).or_default();
        self.start(region);
    }

    pub fn start(&mut self, region: &str) {
        self.starts += 1;
        let mut config = NodeConfig {
            region: Region::new(region),
            join: !self.regions.iter().any(|founder| founder == region),
            shards: SHARDS,
            token_key: TokenKey::new([7; 32]),
            peers: self
                .regions
                .iter()
                .filter(|other| *other != region)
                .map(|other| PeerConfig {
                    region: Region::new(other),
                    jurisdiction: String::new(),
                    client_endpoint: String::new(),
                    endpoint: other.clone(),
                })
                .collect(),
            ..NodeConfig::default()
        };
        let mut storage = StoreConfig {
            region: Region::new(region),
            shards: SHARDS,
            segment_bytes: 256 << 10,
            checkpoint_log_bytes: 256 << 10,
            flush_log_bytes: 256 << 10,
            overlay_bytes_max: 8 << 20,
            overlay_drain_bytes: 64 << 10,
            disk_reserve_bytes: 0,
            ..StoreConfig::default()
        };
        (self.tune)(&mut config, &mut storage);
        let boot = BootIdentity { boot_id: format!("boot {}", self.starts), mount_id: String::new() };
        let (store, writers, _) = Store::open(
            storage,
            Arc::new(self.disks[region].clone()),
            ViewPlace::Temporary,
            boot,
            Incarnation(1000 + self.starts),
            &mut |_| {},
        )
        .unwrap();
        let connector = Arc::new(Dialler { network: self.network.clone(), from: region.to_owned() });
        let clock = Arc::new(TestClock { origin: self.origin, skew_ms: self.skews[region].clone() });
        let sync = SyncDriver::Task { delay_max: Duration::from_millis(2) };
        let parts = Parts { store, writers, clock, connector, egress: Arc::default(), seed: self.starts, sync };
        let node = Node::start(config, parts).unwrap();
        self.network.nodes.lock().insert(region.to_owned(), Arc::downgrade(&node));
        self.nodes.insert(region.to_owned(), node);
    }

    /// Power loss: exactly what was synced stays. The node's tasks are gone with it.
    pub fn crash(&mut self, region: &str) {
        let disk = self.disks[region].crash(Crash::KeepSynced, &mut |_| 0);
        self.network.nodes.lock().remove(region);
        self.nodes.remove(region);
        self.disks.insert(region.to_owned(), disk);
    }

    pub fn cut(&self, a: &str, b: &str) {
        self.network.cuts.send_modify(|cuts| {
            cuts.insert(pair(a, b));
        });
    }

    pub fn heal(&self) {
        self.network.cuts.send_replace(BTreeSet::new());
    }

    /// Sets how far a region's wall clock is ahead.
    pub fn skew(&self, region: &str, ms: u64) {
        self.skews[region].store(ms, Ordering::Relaxed);
    }

    pub fn allow_chunks(&self, chunks: u64) {
        self.network.chunks_left.store(chunks, Ordering::Relaxed);
    }

    pub fn tamper(&self, region: &str, with: Option<Tamper>) {
        let mut tampers = self.network.tampers.lock();
        match with {
            Some(tamper) => tampers.insert(region.to_owned(), tamper),
            None => tampers.remove(region),
        };
    }

    pub fn node(&self, region: &str) -> &Arc<Node> {
        &self.nodes[region]
    }

    pub async fn put(&self, region: &str, key: &str, value: &str) -> Result<WriteReply, NodeError> {
        put(self.node(region), key, value).await
    }

    pub async fn read(&self, region: &str, key: &str, consistency: Consistency) -> Result<GetReply, NodeError> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let request = GetRequest { keyspace: "default".to_owned(), key, consistency };
        self.node(region).get(&RequestContext::default(), request).await
    }

    pub async fn get(&self, region: &str, key: &str) -> Option<String> {
        let reading = self.read(region, key, Consistency::Eventual).await.unwrap().reading?;
        let (_, siblings) = reading.values.first()?;
        Some(String::from_utf8(siblings[0].value.bytes.to_vec()).unwrap())
    }

    /// Waits until all regions have one digest, known and equal, and at least `records` records.
    pub async fn converge(&self, records: u64) {
        until("the regions agree", || {
            let all: Vec<_> = self.nodes.values().map(|node| node.status()).collect();
            all.iter().all(|s| s.digest.is_some() && s.digest == all[0].digest && s.records == records)
        })
        .await;
    }

    pub async fn shutdown(self) {
        for node in self.nodes.values() {
            node.shutdown().await;
        }
    }
}

pub fn write_request(key: &str, mutation: Mutation) -> WriteRequest {
    WriteRequest::new("default", Bytes::copy_from_slice(key.as_bytes()), mutation)
}

pub fn put_of(value: &str) -> Mutation {
    Mutation::Put { value: Value::string(value) }
}

pub async fn put(node: &Node, key: &str, value: &str) -> Result<WriteReply, NodeError> {
    node.write(&RequestContext::default(), write_request(key, put_of(value))).await
}

pub async fn increment(node: &Node, key: &str, amount: i64) -> Result<WriteReply, NodeError> {
    let mutation = Mutation::Increment { field: FieldName::new("n"), amount };
    node.write(&RequestContext::default(), write_request(key, mutation)).await
}

pub async fn delete(node: &Node, key: &str) -> Result<WriteReply, NodeError> {
    node.write(&RequestContext::default(), write_request(key, Mutation::Delete)).await
}

/// Records of a region that are not live any more and not yet forgotten.
pub fn tombstones(node: &Node) -> usize {
    let count = |shard| node.store().tombstones(KEYSPACE, ShardId(shard), b"", 1000).unwrap().len();
    (0..SHARDS).map(count).sum()
}

/// Waits for a condition, in simulated time.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "not within two minutes: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
