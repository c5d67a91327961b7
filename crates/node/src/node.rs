//! One region's node: takes requests, and owns the tasks that carry them out.
//!
//! A write goes through its shard's queue and is answered once durable; a read sees what is published. Every task is owned
//! here and ends with `shutdown`.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use isle_model::metadata::{Keyspace, Metadata};
use isle_model::{
    Context, FieldKey, IncarnationTree, KeyspaceId, Mutation, Precondition, Record, Region, ShardId, Value, WriteError,
    write,
};
use isle_store::{ShardWriter, Store};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::catalog::Known;
use crate::clock::Clock;
use crate::cluster::{self, Damaged, Storage};
use crate::config::ConfigFaults;
use crate::counters::Counters;
use crate::egress_meter::EgressMeter;
use crate::forward::Wait;
use crate::homes;
use crate::members::{Members, peers_of};
use crate::peer::{
    Connector, FetchReply, FetchRequest, Hello, MetadataReply, MetadataRequest, PeerError, StateReply, StateRequest,
    ToReceiver, ToSender,
};
use crate::peers::{PeerSlot, Peers};
use crate::replication::handshake::{Met, hello_for, meet};
use crate::replication::outbound::Outbound;
use crate::replication::repair::Repair;
use crate::replication::serving::{FetchHints, serve_fetch, serve_state};
use crate::shard_loop::ShardLoop;
use crate::shard_queue::{self, ShardQueue, WriteAsk, WriteOutcomes, Written, answer_of};
use crate::shared::Shared;
use crate::status::{NodeStatus, status};
use crate::{
    NodeConfig, NodeError, PeerConfig, PreconditionAsked, RequestContext, Versions, WriteReply, WriteRequest,
    maintenance,
};

/// Messages waiting for a subscriber. A batch is at most about 256 KiB, but for single large deltas.
const OUTGOING_MAX: usize = 8;

/// Who drives fsync and upkeep of the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncDriver {
    /// Production: the storage's own threads.
    Threads,
    /// Simulation: tasks, with an awaited random delay, up to this, between append and fsync. No thread is started.
    Task { delay_max: Duration },
}

/// What a node is made of.
pub struct Parts {
    pub store: Arc<Store>,
    pub writers: Vec<ShardWriter>,
    pub clock: Arc<dyn Clock>,
    pub connector: Arc<dyn Connector>,
    /// Counts what leaves for the other regions; the connector counts into it as well.
    pub egress: Arc<EgressMeter>,
    /// Of all chance in the node.
    pub seed: u64,
    pub sync: SyncDriver,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigFaults),
    #[error("the storage is of region {store}, the configuration of {config}")]
    Region { store: Region, config: Region },
    #[error("the storage has {store} shards, the configuration says {config}")]
    Shards { store: usize, config: u32 },
    #[error("the storage's threads do not start: {0}")]
    Threads(String),
    #[error(transparent)]
    Metadata(#[from] Damaged),
}

pub struct Node {
    pub(crate) shared: Arc<Shared>,
    hints: FetchHints,
    tasks: Mutex<Tasks>,
}

struct Tasks {
    /// Links, repair and upkeep: they end first.
    links: JoinSet<()>,
    /// Shard loops and what answers for them: they end when their queues are empty.
    loops: JoinSet<()>,
    closing: watch::Sender<bool>,
    /// What syncs in a simulation: ends last.
    sync: JoinSet<()>,
    stop_sync: watch::Sender<bool>,
    threads: Option<isle_store::Threads>,
}

impl Node {
    pub fn start(config: NodeConfig, parts: Parts) -> Result<Arc<Node>, StartError> {
        let Parts { store, writers, clock, connector, egress, seed, sync } = parts;
        config.validate()?;
        if *store.region() != config.region {
            return Err(StartError::Region { store: store.region().clone(), config: config.region });
        }
        if writers.len() != config.shards as usize {
            return Err(StartError::Shards { store: writers.len(), config: config.shards });
        }
        let founders = config.regions().cloned().collect();
        let group = cluster::Group::new(Storage::open(store.disk().clone(), &config.region, founders)?);
        let (queues, waiting): (Vec<_>, Vec<_>) =
            (0..config.shards).map(|shard| ShardQueue::new(ShardId(shard), config.queue_bytes_max)).unzip();
        let peers = Peers::new(egress);
        let mut commanded = Vec::new();
        for (peer, joined) in peers_of(&config, &group.storage().metadata()) {
            let (slot, commands) = PeerSlot::new(peer, joined, &config, clock.monotonic());
            peers.insert(slot.clone());
            commanded.push((slot, commands));
        }
        let has_threads = sync == SyncDriver::Threads;
        let shared = Arc::new(Shared::new(config, store, clock, group, queues, peers, has_threads));
        let mut tasks = Tasks {
            links: JoinSet::new(),
            loops: JoinSet::new(),
            closing: watch::Sender::new(false),
            sync: JoinSet::new(),
            stop_sync: watch::Sender::new(false),
            threads: None,
        };
        tasks.start_sync(&shared, sync, seed)?;
        for (writer, waiting) in writers.into_iter().zip(waiting) {
            let (shard_loop, answers) = ShardLoop::new(shared.clone(), writer, waiting);
            tasks.loops.spawn(shard_loop.run(tasks.closing.subscribe()));
            tasks.loops.spawn(answers);
        }
        let stop = || shared.stop.subscribe();
        // Before the links: what transfers that go on hold back must not come first.
        let repair = Repair::new(shared.clone());
        let members = Members::new(shared.clone(), connector, seed, commanded);
        tasks.links.spawn(members.run(stop()));
        tasks.links.spawn(cluster::run(shared.clone(), rng_of(seed, "metadata"), stop()));
        tasks.links.spawn(repair.run(stop()));
        tasks.links.spawn(maintenance::Upkeep::new(shared.clone()).run(stop()));
        tasks.links.spawn(maintenance::pulse(shared.clone(), stop()));
        Ok(Arc::new(Node { shared, hints: FetchHints::default(), tasks: Mutex::new(tasks) }))
    }

    pub fn config(&self) -> &NodeConfig {
        &self.shared.config
    }

    /// Members and keyspaces, as this node knows them last.
    pub fn metadata(&self) -> Arc<Metadata> {
        self.shared.catalog.known().metadata.clone()
    }

    /// Whether this region is on its way out of the cluster, or out of it.
    pub fn has_left(&self) -> bool {
        self.shared.catalog.known().is_leaving(self.shared.me()) && !self.shared.standing.lock().is_joining()
    }

    /// The other regions, and how they are reached.
    pub fn peers(&self) -> Vec<PeerConfig> {
        self.shared.peers.all().values().map(|slot| slot.config.clone()).collect()
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    pub fn egress(&self) -> &Arc<EgressMeter> {
        &self.shared.peers.egress
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.shared.store
    }

    /// May take a moment while the storage is being maintained.
    pub fn status(&self) -> NodeStatus {
        status(&self.shared)
    }

    /// The deltas of a peer that cannot be applied, the newest of each stream that stands still at one.
    pub fn quarantined(&self, peer: &Region) -> Vec<crate::Quarantined> {
        self.shared.quarantined(peer)
    }

    /// Waits until the node has stopped by itself; says why. It has to be restarted, or has been replaced.
    pub async fn stopped(&self) -> String {
        let mut fatal = self.shared.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.as_deref().unwrap_or_default().to_owned(),
            Err(_) => "the node is gone".to_owned(),
        }
    }

    pub async fn write(&self, ctx: &RequestContext, request: WriteRequest) -> Result<WriteReply, NodeError> {
        let known = self.shared.catalog.known();
        if known.named(&request.keyspace).is_some_and(|keyspace| keyspace.policy.is_forwarded()) {
            let mut replies = self.write_batch(ctx, vec![request], Versions::Shown).await;
            return replies.pop().expect("a batch of one has one reply");
        }
        let (subject, ask) = self.check(ctx, request)?;
        let answered = self.queue(subject.shard, vec![ask])?;
        let mut outcomes = outcomes_by(ctx.deadline, answered).await?;
        let written = outcomes.pop().expect("the shard loop answers every write of a job")?;
        let wait = subject.wait(0, &written);
        let reply = self.reply(&subject, written, Versions::Shown)?;
        let is_late = match wait {
            Some(wait) => !self.await_holders(ctx, vec![wait]).await.is_empty(),
            None => false,
        };
        if is_late { Err(unconfirmed()) } else { Ok(reply) }
    }

    /// Checks a write. An error means that nothing was or will be appended.
    pub(crate) fn check(&self, ctx: &RequestContext, request: WriteRequest) -> Result<(Subject, WriteAsk), NodeError> {
        self.checked(ctx, request).inspect_err(|error| self.count_refusals(error, 1))
    }

    fn checked(&self, ctx: &RequestContext, request: WriteRequest) -> Result<(Subject, WriteAsk), NodeError> {
        let known = self.shared.catalog.known();
        let held = self.keyspace(&known, &request.keyspace)?;
        let (keyspace, policy) = (held.id, &held.policy);
        self.shared.check_serving()?;
        if !request.request_id.is_empty() {
            return Err(NodeError::Unimplemented { what: "request_id" });
        }
        if ctx.is_expired() {
            return Err(NodeError::DeadlineExpired);
        }
        if let Some(reason) = self.shared.durability.failure() {
            return Err(NodeError::WritesStopped { reason: reason.to_string() });
        }
        if let Some(by_ms) = self.shared.clock_ahead() {
            return Err(NodeError::ClockAhead { by_ms });
        }
        let bad = |error: WriteError| refusal(error, Bytes::new());
        write::check_key(&request.key).map_err(bad)?;
        request.mutation.check().map_err(bad)?;
        check_values(&request.mutation, policy.value_bytes_max)?;
        check_home(&known, held, &request)?;
        let holders = self.holders_waited_for(&known, held)?;
        let (precondition, context) = match (request.precondition, request.context) {
            (PreconditionAsked::None, context) => (Precondition::None, context.map(|token| ("context", token))),
            (PreconditionAsked::Absent, context) => (Precondition::Absent, context.map(|token| ("context", token))),
            (PreconditionAsked::Version(token), _) => (Precondition::Version, Some(("if_version", token))),
        };
        let context =
            context.map(|(field, token)| self.decode_token(field, keyspace, &request.key, &token)).transpose()?;
        let incremented = match &request.mutation {
            Mutation::Increment { field, .. } => Some(FieldKey::counter(field.as_str())),
            _ => None,
        };
        let shard = self.shared.shard_of(keyspace, &request.key);
        let has_homes = policy.home.is_some();
        let moved_to = match &request.mutation {
            Mutation::Move { to } => Some(self.connected(to)?).filter(|to| to != self.shared.me()),
            _ => None,
        };
        let subject = Subject { keyspace, shard, key: request.key.clone(), incremented, holders, moved_to, has_homes };
        let WriteRequest { key, mutation, home, epoch, .. } = request;
        let deadline = ctx.deadline;
        Ok((subject, WriteAsk { keyspace, key, mutation, precondition, context, home, epoch, deadline }))
    }

    /// Puts writes of one shard into its queue: as many, from the first on, as there is room for.
    pub(crate) fn queue(
        &self,
        shard: ShardId,
        asks: Vec<WriteAsk>,
    ) -> Result<shard_queue::Answered<WriteOutcomes>, NodeError> {
        let asked = asks.len();
        let Some(queue) = self.shared.queue(shard) else {
            return Err(NodeError::Stopped { reason: "it has no shards".to_owned() });
        };
        let (taken, answered) = queue.offer(asks).inspect_err(|error| self.count_refusals(error, asked))?;
        self.count_refusals(&shard_queue::overloaded(), asked - taken);
        Ok(answered)
    }

    pub(crate) fn count_refusals(&self, error: &NodeError, count: usize) {
        if matches!(error, NodeError::Overloaded { .. } | NodeError::DeadlineExpired | NodeError::ClockAhead { .. }) {
            self.shared.counters.refused.add(count as u64);
        }
    }

    pub(crate) fn reply(
        &self,
        subject: &Subject,
        written: Written,
        versions: Versions,
    ) -> Result<WriteReply, NodeError> {
        let Written { record, tree, refused, found, .. } = written;
        let version = || self.version(&record, &tree, subject.keyspace, &subject.key);
        if let Some(error) = refused {
            return Err(refusal(error, version()));
        }
        let shown = versions == Versions::Shown;
        let home = || record.home_and_epoch(tree.shard(subject.shard));
        let (home, home_epoch) = if shown && subject.has_homes { home() } else { None }.unzip();
        Ok(WriteReply {
            version: if shown { version() } else { Bytes::new() },
            home,
            home_epoch: home_epoch.unwrap_or_default(),
            served_by: self.shared.me().clone(),
            replayed: false,
            found,
            value: subject.incremented.as_ref().and_then(|field| record.counter(field)).map(isle_model::Counter::value),
        })
    }

    /// A keyspace that this region holds.
    pub(crate) fn keyspace<'a>(&self, known: &'a Known, name: &str) -> Result<&'a Keyspace, NodeError> {
        let keyspace = known.named(name).ok_or_else(|| known.unknown(name))?;
        match keyspace.is_held_by(self.shared.me(), &known.metadata.members) {
            true => Ok(keyspace),
            false => Err(known.not_held(self.shared.me(), keyspace)),
        }
    }

    pub(crate) fn version(&self, record: &Record, tree: &IncarnationTree, keyspace: KeyspaceId, key: &[u8]) -> Bytes {
        let lineage = tree.shard(self.shared.shard_of(keyspace, key));
        Bytes::from(Context::of(record, lineage).encode(&self.shared.config.token_key, keyspace, key))
    }

    fn decode_token(
        &self,
        field: &'static str,
        keyspace: KeyspaceId,
        key: &[u8],
        token: &[u8],
    ) -> Result<Context, NodeError> {
        let context = Context::decode(&self.shared.config.token_key, keyspace, key, token)
            .map_err(|source| NodeError::BadToken { field, source })?;
        let tree = self.shared.store.tree();
        let unknown = context.incarnations().find(|incarnation| !tree.contains(*incarnation));
        match unknown {
            Some(incarnation) => Err(NodeError::SessionNotReached { incarnation }),
            None => Ok(context),
        }
    }

    /// The sending side of a peer's subscription.
    pub fn subscribe(
        &self,
        hello: Hello,
        incoming: BoxStream<'static, Result<ToSender, PeerError>>,
    ) -> Result<BoxStream<'static, Result<ToReceiver, PeerError>>, PeerError> {
        if *self.shared.stop.borrow() {
            return Err(PeerError::Stopping);
        }
        let met = meet(&self.shared, &hello, None)?;
        let ours = hello_for(&self.shared, &hello.region);
        let answer = Ok(ToReceiver::Hello(Box::new(ours)));
        if met == Met::CompleteFirst {
            // It learns from the answer what it has lost, and comes again once it is complete.
            let reason = "this incarnation is a branch; it is admitted once it is complete".to_owned();
            return Ok(futures::stream::iter([answer, Err(PeerError::NotReady { reason })]).boxed());
        }
        let Some(slot) = self.shared.peers.get(&hello.region) else {
            return Err(PeerError::Incompatible { reason: format!("{} is no peer", hello.region) });
        };
        slot.subscription.send_modify(|generation| *generation += 1);
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        let outbound = Outbound::new(self.shared.clone(), &hello);
        let task = outbound.run(outgoing, incoming, self.shared.stop.subscribe(), slot.subscription.subscribe());
        let mut tasks = self.tasks.lock();
        while tasks.links.try_join_next().is_some() {}
        tasks.links.spawn(task);
        let messages = futures::stream::unfold(messages, |mut messages| async move {
            messages.recv().await.map(|message| (message, messages))
        });
        Ok(futures::stream::iter([answer]).chain(messages).boxed())
    }

    pub async fn serve_fetch(&self, request: FetchRequest) -> Result<FetchReply, PeerError> {
        serve_fetch(&self.shared, &self.hints, &request)
    }

    pub async fn serve_state(&self, request: StateRequest) -> Result<StateReply, PeerError> {
        serve_state(&self.shared, &request)
    }

    pub async fn serve_metadata(&self, request: MetadataRequest) -> Result<MetadataReply, PeerError> {
        cluster::serve(&self.shared, request).await
    }

    /// Carries out what was accepted, syncs, and closes the storage. A second call finds nothing left to do.
    pub async fn shutdown(&self) {
        self.shared.stop.send_replace(true);
        self.shared.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            fatal.get_or_insert_with(|| Arc::from("it is shutting down"));
            first
        });
        let mut links = std::mem::take(&mut self.tasks.lock().links);
        while links.join_next().await.is_some() {}
        let mut loops = {
            let mut tasks = self.tasks.lock();
            tasks.closing.send_replace(true);
            std::mem::take(&mut tasks.loops)
        };
        while loops.join_next().await.is_some() {}
        let (mut sync, threads) = {
            let mut tasks = self.tasks.lock();
            tasks.stop_sync.send_replace(true);
            (std::mem::take(&mut tasks.sync), tasks.threads.take())
        };
        while sync.join_next().await.is_some() {}
        let closed = self
            .shared
            .off_loop(move |shared| {
                // The threads first: they hold the storage, and must not sync what is being closed.
                drop(threads);
                shared.store.close()
            })
            .await;
        if let Some(Err(error)) = closed {
            tracing::warn!(%error, "the storage did not close cleanly; the next start recovers it from the log");
        }
    }
}

/// What a write is about, for its reply.
pub(crate) struct Subject {
    keyspace: KeyspaceId,
    pub(crate) shard: ShardId,
    key: Bytes,
    incremented: Option<FieldKey>,
    /// How many other holders have to confirm it.
    holders: u32,
    /// The new home, which has to.
    moved_to: Option<Region>,
    has_homes: bool,
}

impl Subject {
    /// What has to be waited for before the write is acknowledged, if anything.
    pub(crate) fn wait(&self, place: usize, written: &Written) -> Option<Wait> {
        let dot = written.dot.filter(|_| self.holders > 0 || self.moved_to.is_some())?;
        let (stream, region) = ((self.keyspace, self.shard), self.moved_to.clone());
        Some(Wait { place, stream, dot, holders: self.holders, region })
    }
}

/// Waits for the outcomes of queued writes, no longer than their deadline.
pub(crate) async fn outcomes_by(
    deadline: Option<Instant>,
    answered: shard_queue::Answered<WriteOutcomes>,
) -> Result<WriteOutcomes, NodeError> {
    let Some(deadline) = deadline else { return answer_of(answered).await };
    tokio::time::timeout_at(deadline, answer_of(answered)).await.unwrap_or_else(|_| {
        Err(NodeError::OutcomeUnknown { reason: "the deadline passed while the commit was awaited".to_owned() })
    })
}

impl Tasks {
    fn start_sync(&mut self, shared: &Arc<Shared>, driver: SyncDriver, seed: u64) -> Result<(), StartError> {
        match driver {
            SyncDriver::Threads => {
                let durability = shared.durability.clone();
                let on_durable = Box::new(move |position| durability.reached(position));
                let durability = shared.durability.clone();
                let on_failed = Box::new(move |error: &isle_store::SyncError| durability.failed(&error.reason));
                let threads = shared.store.start_threads(on_durable, on_failed);
                self.threads = Some(threads.map_err(|error| StartError::Threads(error.to_string()))?);
            }
            SyncDriver::Task { delay_max } => {
                let (rng, stop) = (rng_of(seed, "sync"), self.stop_sync.subscribe());
                self.sync.spawn(maintenance::sync_by_task(shared.clone(), delay_max, rng, stop));
                self.sync.spawn(maintenance::maintain_by_task(shared.clone(), self.stop_sync.subscribe()));
            }
        }
        Ok(())
    }
}

/// Chance of its own for each task, so that one drawing more changes nothing for the others.
pub(crate) fn rng_of(seed: u64, name: &str) -> StdRng {
    // Fixed keys: the same seed gives the same history in every process.
    StdRng::seed_from_u64(BuildHasherDefault::<DefaultHasher>::default().hash_one((seed, name)))
}

pub(crate) fn unconfirmed() -> NodeError {
    NodeError::OutcomeUnknown {
        reason: "it is durable here, and too few other holders confirmed it in time".to_owned(),
    }
}

pub(crate) fn check_home(known: &Known, keyspace: &Keyspace, request: &WriteRequest) -> Result<(), NodeError> {
    let Some(home) = &request.home else { return Ok(()) };
    match homes::fault_of(keyspace, &known.metadata.members, &request.key, home) {
        Some(reason) => Err(NodeError::BadField { field: "write.home", reason }),
        None => Ok(()),
    }
}

/// A keyspace may allow less than isle does.
fn check_values(mutation: &Mutation, most: u32) -> Result<(), NodeError> {
    let too_long = |value: &Value| value.bytes.len() > most as usize;
    let is_over = match mutation {
        Mutation::Put { value } => too_long(value),
        Mutation::Patch { set, .. } => set.iter().any(|(_, value)| too_long(value)),
        Mutation::Increment { .. } | Mutation::Delete | Mutation::Move { .. } => false,
    };
    let reason = || format!("is longer than the {most} bytes that the keyspace allows");
    if is_over { Err(NodeError::BadField { field: "value", reason: reason() }) } else { Ok(()) }
}

pub(crate) fn refusal(error: WriteError, current: Bytes) -> NodeError {
    match error {
        WriteError::BadField { field, reason } => NodeError::BadField { field, reason },
        WriteError::WrongKind { name, there, asked } => NodeError::WrongKind { name, there, asked },
        WriteError::KeyExists => NodeError::KeyExists { current },
        WriteError::VersionMismatch => NodeError::VersionMismatch { current },
    }
}
