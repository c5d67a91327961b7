//! What two nodes say to each other, and the seams through which they do: `Connector` dials, `Peer` is the dialled one.
//!
//! ```text
//! receiver (dials)                                     sender (is dialled)
//!    Hello: its rows, its cursors of the sender's streams ──▶
//!        ◀── Hello, then Deltas, NeedsState, Heartbeat, ProbeAnswer
//!    Ack, Probe, Refetch ──▶
//! ```
//! Each pair of regions has two such subscriptions, one each way. `fetch`, `state` and `metadata` are calls of their own.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use isle_model::{Incarnation, KeyspaceId, Record, Region, Row, ShardId, Vector};
use isle_store::StateChunk;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

pub use crate::catalog::Fingerprints;
pub use crate::replication::batch_codec::Unpacker;
use crate::{NodeError, PeerConfig, RemoteError, Versions, WriteReply, WriteRequest};

/// The version of this conversation. Nodes of different versions do not talk.
pub const PROTOCOL: u32 = 4;
/// What this build may write. A tag is used only once every peer announces the level that brought it.
pub const FEATURE_LEVEL: u32 = 2;

/// What a region has absorbed of each region's stream in one keyspace and shard.
pub type Absorbed = (KeyspaceId, ShardId, Vec<(Region, Vector)>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub protocol: u32,
    pub cluster: String,
    pub region: Region,
    pub incarnation: Incarnation,
    /// Every row known here: they travel ahead of whatever uses them.
    pub rows: Vec<(Incarnation, Row)>,
    pub feature_level: u32,
    pub shards: u32,
    /// What I mean by each keyspace.
    pub keyspaces: Arc<Fingerprints>,
    /// What I have, durably, of your own streams.
    pub cursors: Vec<(KeyspaceId, ShardId, Vector)>,
    /// What I have heard you state that you absorbed.
    pub stated: Vec<Absorbed>,
    /// What I have absorbed of everybody's streams: by this a replaced disk shows that it has been completed.
    pub absorbed: Vec<Absorbed>,
}

/// Deltas, one after another, each preceded by its length (u32, little endian), compressed by zstd: those of a subscription into
/// one frame, which is flushed behind each batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaBatch {
    /// Rows that the receiver may not know: to be learnt before the deltas are looked at.
    pub rows: Vec<(Incarnation, Row)>,
    pub count: u32,
    pub raw_len: u32,
    /// CRC-32 of the raw bytes.
    pub crc: u32,
    pub zstd: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToReceiver {
    Hello(Box<Hello>),
    Deltas(DeltaBatch),
    /// The log does not reach back to your cursor of this stream, or its keyspace is not shipped as it is written: take a state, then
    /// `Refetch`.
    NeedsState {
        keyspace: KeyspaceId,
        shard: ShardId,
        /// What has changed since your cursor is enough.
        changes: bool,
    },
    Heartbeat {
        /// Bytes of log that you have not confirmed.
        lag_bytes: u64,
        /// Whether everything durable here has been sent.
        caught_up: bool,
    },
    /// Everything that was durable here when the probe came has been sent before this.
    ProbeAnswer {
        id: u64,
        /// The sender's wall clock as it answered, in milliseconds since the Unix epoch; 0 where it does not say.
        wall_ms: u64,
        /// But for these, of which there are changes that wait to be shipped.
        waiting: Vec<(KeyspaceId, ShardId)>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToSender {
    /// What is durable here.
    Ack {
        cursors: Vec<(KeyspaceId, ShardId, Vector)>,
        /// The sum of `raw_len` of all batches of this subscription that are durable here: opens the window.
        bytes: u64,
    },
    Probe {
        id: u64,
    },
    /// What I mean by each keyspace from now on.
    Keyspaces(Arc<Fingerprints>),
    /// Ship what waits of this keyspace now.
    Ship {
        keyspace: KeyspaceId,
    },
    /// Send this stream again from what follows `after`.
    Refetch {
        keyspace: KeyspaceId,
        shard: ShardId,
        after: Vector,
    },
}

/// Asks a survivor for another region's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    pub asker: Region,
    pub origin: Region,
    pub keyspace: KeyspaceId,
    pub shard: ShardId,
    pub after: Vector,
    pub bytes_max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchReply {
    /// Its rows stand in the batch.
    pub batch: DeltaBatch,
    pub more: bool,
    /// The survivor holds more than its log can tell: take its state.
    pub needs_state: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRequest {
    /// Whether the asker's disk was found behind: then one that is behind as well may answer.
    pub asker_is_behind: bool,
    pub asker: Region,
    pub keyspace: KeyspaceId,
    pub shard: ShardId,
    /// Where the chunk starts, inclusive.
    pub start: Bytes,
    pub bytes_max: u32,
    /// The asker's cursor of the stream of the one that is asked, if what has changed since is enough.
    pub changes_after: Option<Vector>,
}

#[derive(Clone, Debug)]
pub struct StateReply {
    pub rows: Vec<(Incarnation, Row)>,
    pub chunk: StateChunk,
}

/// Writes of one keyspace whose home is the one who is asked.
#[derive(Clone, Debug)]
pub struct ForwardRequest {
    pub asker: Region,
    pub keyspace: KeyspaceId,
    /// Their keyspace's name may be empty: it is known by its id.
    pub writes: Vec<WriteRequest>,
    pub versions: Versions,
    /// The client, as the asker knows it.
    pub caller: Arc<str>,
    pub traceparent: Option<String>,
    /// How long the asker waits.
    pub timeout: Duration,
}

/// Asks for a record as its home has it.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    pub asker: Region,
    pub keyspace: KeyspaceId,
    pub key: Bytes,
    pub timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct ReadReply {
    /// Of everything that the record names.
    pub rows: Vec<(Incarnation, Row)>,
    /// Empty where there is none.
    pub record: Record,
    /// By the one who answers; `None` where nothing is live.
    pub home: Option<Region>,
}

/// What became of a request to another region.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("it was never sent: {reason}")]
    NotSent { reason: String },
    /// It may have been carried out.
    #[error("it was not answered: {reason}")]
    Lost { reason: String },
    #[error("{}", .0.message)]
    Refused(Box<RemoteError>),
}

/// What a region's voter asks another's about the cluster's metadata. What is asked means something to the two voters only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataRequest {
    pub asker: Region,
    pub incarnation: Incarnation,
    /// Whom the asker means to reach.
    pub to: Region,
    pub body: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataReply {
    pub body: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Dial again after a while.
    #[error("the peer cannot be reached: {reason}")]
    Unreachable { reason: String },
    /// The peer cannot answer this now. Ask again after a while, or somebody else.
    #[error("the peer is not ready: {reason}")]
    NotReady { reason: String },
    /// The two do not belong together. Somebody has to change a configuration.
    #[error("the peer does not fit: {reason}")]
    Incompatible { reason: String },
    /// The asker's incarnation is not the one that goes on for its region: it has to stop.
    #[error("region {region} goes on as incarnation {admitted}; incarnation {refused} is replaced")]
    RegionReplaced { region: Region, admitted: Incarnation, refused: Incarnation },
    /// The asker is no region of the cluster, as of this revision of its metadata: it has left, or was given up, or is not let in yet.
    #[error("{region} is no region of the cluster (revision {revision} of its metadata)")]
    NoMember { region: Region, revision: u64 },
    /// What came is not what was agreed.
    #[error("the peer sent what it should not: {reason}")]
    Corrupt { reason: String },
    #[error("the node is stopping")]
    Stopping,
}

#[async_trait]
pub trait Connector: Send + Sync {
    async fn connect(&self, peer: &PeerConfig) -> Result<Arc<dyn Peer>, PeerError>;
}

#[async_trait]
pub trait Peer: Send + Sync {
    /// Subscribes to the peer's own streams. Its first message is its Hello.
    async fn subscribe(
        &self,
        hello: Hello,
        outgoing: mpsc::Receiver<ToSender>,
    ) -> Result<BoxStream<'static, Result<ToReceiver, PeerError>>, PeerError>;
    async fn fetch(&self, request: FetchRequest) -> Result<FetchReply, PeerError>;
    async fn state(&self, request: StateRequest) -> Result<StateReply, PeerError>;
    /// One reply a write, in their order.
    async fn forward(&self, request: ForwardRequest) -> Result<Vec<Result<WriteReply, NodeError>>, ForwardError>;
    async fn read(&self, request: ReadRequest) -> Result<ReadReply, ForwardError>;
    /// Of the errors, `NotReady`, `Incompatible` and `Stopping` say that nothing was done.
    async fn metadata(&self, request: MetadataRequest) -> Result<MetadataReply, PeerError>;
}
