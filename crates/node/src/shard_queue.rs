//! What waits for a shard: bounded in bytes, from acceptance to reply.
//!
//! Clients are refused at once when their share is full, before anything is appended; replication waits, which holds back the
//! peer that sends. The two have shares of their own, so that neither starves the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isle_model::{
    Context, Dot, Epoch, IncarnationTree, KeyspaceId, Mutation, Precondition, Record, Region, ShardId, Stated, Vector,
    WriteError,
};
use isle_store::{Begun, Received, StateChunk};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::NodeError;

/// How long a refused caller should wait: a full queue is worked off in about this time.
const RETRY_AFTER: Duration = Duration::from_millis(50);

pub(crate) type Answer<T> = oneshot::Sender<Result<T, NodeError>>;
pub(crate) type Answered<T> = oneshot::Receiver<Result<T, NodeError>>;

pub(crate) enum Job {
    /// Writes that came together are answered together: one wake-up a batch, not a request.
    Writes {
        asks: Vec<WriteAsk>,
        answer: Answer<WriteOutcomes>,
    },
    /// Deltas of one region's streams, in order.
    Foreign {
        origin: Region,
        deltas: Vec<Received>,
        answer: Answer<Absorption>,
    },
    /// A piece of the state of `from`, or of what has changed there.
    Chunk {
        from: Region,
        chunk: Box<StateChunk>,
        is_first: bool,
        /// The transfer, as it began.
        begun: Begun,
        answer: Answer<ChunkTaken>,
    },
    StateDone {
        keyspace: KeyspaceId,
        cursors: Vec<(Region, Vector)>,
        /// Whose state it was, and what that region had absorbed, where that counts as a statement.
        heard: Option<(Region, Stated)>,
        /// Whether nothing was in it.
        is_empty: bool,
        answer: Answer<()>,
    },
    Statement {
        keyspaces: Vec<KeyspaceId>,
        /// Those that are stated though there is no news.
        again: Vec<KeyspaceId>,
        answer: Answer<u64>,
    },
    /// What is here of keyspaces that are gone goes.
    Purge {
        keyspaces: Vec<KeyspaceId>,
        answer: Answer<u64>,
    },
    Forget {
        keyspace: KeyspaceId,
        keys: Vec<Bytes>,
        holders: Arc<[Region]>,
        answer: Answer<u64>,
    },
}

pub(crate) struct WriteAsk {
    pub(crate) keyspace: KeyspaceId,
    pub(crate) key: Bytes,
    pub(crate) mutation: Mutation,
    pub(crate) precondition: Precondition,
    pub(crate) context: Option<Context>,
    /// What a key that this creates is to have as its home.
    pub(crate) home: Option<Region>,
    /// Of a move.
    pub(crate) epoch: Epoch,
    pub(crate) deadline: Option<Instant>,
}

/// What a write left, or found: the record after it, or the one it was refused on.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) record: Arc<Record>,
    pub(crate) tree: Arc<IncarnationTree>,
    pub(crate) refused: Option<WriteError>,
    /// Whether something was live before; of a move, whether the home was another one.
    pub(crate) found: bool,
    /// The newest write of this region that the outcome rests on: this one, or what it found.
    pub(crate) dot: Option<Dot>,
}

/// One a write, in their order.
pub(crate) type WriteOutcomes = Vec<Result<Written, NodeError>>;

/// What became of a batch of another region's deltas, keyspace by keyspace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Absorption {
    pub(crate) applied: u64,
    pub(crate) touched: Vec<KeyspaceId>,
    /// Streams with a delta whose predecessor is missing.
    pub(crate) gaps: Vec<KeyspaceId>,
    /// Streams with a delta that names what is unknown here.
    pub(crate) unknown: Vec<KeyspaceId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkTaken {
    Merged,
    /// The sender has since stated more than the chunk was made of: ask for it again.
    Stale,
}

pub(crate) struct Queued {
    pub(crate) job: Job,
    pub(crate) bytes: usize,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// The way in.
pub(crate) struct ShardQueue {
    pub(crate) shard: ShardId,
    jobs: mpsc::UnboundedSender<Queued>,
    clients: Arc<Semaphore>,
    replication: Arc<Semaphore>,
    bytes_max: u32,
}

impl ShardQueue {
    pub(crate) fn new(shard: ShardId, bytes_max: u32) -> (Self, mpsc::UnboundedReceiver<Queued>) {
        let (jobs, waiting) = mpsc::unbounded_channel();
        let share = || Arc::new(Semaphore::new(bytes_max as usize));
        (ShardQueue { shard, jobs, clients: share(), replication: share(), bytes_max }, waiting)
    }

    /// Takes as many of a client's writes, from the first on, as there is room for, and says how many; the rest is refused. An
    /// error where there is room for none.
    pub(crate) fn offer(&self, mut asks: Vec<WriteAsk>) -> Result<(usize, Answered<WriteOutcomes>), NodeError> {
        let room = self.clients.available_permits();
        let mut bytes = 0;
        let fits = |ask: &WriteAsk| {
            // One item larger than the whole queue takes all of it.
            let needed = if bytes == 0 { self.permits(ask.bytes()) as usize } else { bytes + ask.bytes() };
            bytes += ask.bytes();
            needed <= room
        };
        let taken = asks.iter().map(fits).take_while(|fits| *fits).count();
        asks.truncate(taken);
        let bytes = asks.iter().map(WriteAsk::bytes).sum();
        let permit = self.clients.clone().try_acquire_many_owned(self.permits(bytes));
        let Some(permit) = permit.ok().filter(|_| taken > 0) else { return Err(overloaded()) };
        let (answer, answered) = oneshot::channel();
        self.send(Job::Writes { asks, answer }, bytes, permit)?;
        Ok((taken, answered))
    }

    /// Waits for room, then for nothing: the answer comes later.
    pub(crate) async fn submit<T>(
        &self,
        bytes: usize,
        job: impl FnOnce(Answer<T>) -> Job,
    ) -> Result<Answered<T>, NodeError> {
        let permit = self.replication.clone().acquire_many_owned(self.permits(bytes)).await;
        let permit = permit.map_err(|_| stopped())?;
        let (answer, answered) = oneshot::channel();
        self.send(job(answer), bytes, permit)?;
        Ok(answered)
    }

    fn send(&self, job: Job, bytes: usize, permit: OwnedSemaphorePermit) -> Result<(), NodeError> {
        self.jobs.send(Queued { job, bytes, permit }).map_err(|_| stopped())
    }

    /// One item larger than the whole queue takes all of it.
    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max)
    }
}

/// Waits for the answer of a submitted job. A job that vanished may have been carried out.
pub(crate) async fn answer_of<T>(answered: Answered<T>) -> Result<T, NodeError> {
    answered.await.unwrap_or_else(|_| {
        Err(NodeError::OutcomeUnknown { reason: "the node stopped before the commit was durable".to_owned() })
    })
}

pub(crate) fn overloaded() -> NodeError {
    NodeError::Overloaded { what: "shard's queue", retry_after: RETRY_AFTER }
}

fn stopped() -> NodeError {
    NodeError::Stopped { reason: "it is shutting down".to_owned() }
}

impl WriteAsk {
    fn bytes(&self) -> usize {
        let mutation = match &self.mutation {
            Mutation::Put { value } => value.bytes.len(),
            Mutation::Delete | Mutation::Move { .. } => 0,
            Mutation::Increment { field, .. } => 8 + field.as_str().len(),
            Mutation::Patch { set, remove } => {
                let set = set.iter().map(|(name, value)| 32 + name.as_str().len() + value.bytes.len());
                let remove = remove.iter().map(|name| 32 + name.as_str().len());
                set.chain(remove).sum()
            }
        };
        256 + self.key.len() + mutation
    }
}

/// About how many bytes a delta takes in memory and in the log.
pub(crate) fn delta_bytes(received: &Received) -> usize {
    match &received.delta.body {
        isle_model::Body::Write(write) => 128 + write.key.len() + write.fields.size() + 256 * write.ledger.len(),
        isle_model::Body::Statement(statement) => 128 + 48 * statement.absorbed.len(),
    }
}

pub(crate) fn chunk_bytes(chunk: &StateChunk) -> usize {
    let records: usize = chunk.records.iter().map(|(key, record)| 64 + key.len() + record.size()).sum();
    let ledger = chunk.ledger.iter().map(|e| 256 + e.key.len() + e.value.as_ref().map_or(0, |v| v.value.bytes.len()));
    256 + records + ledger.sum::<usize>()
}
