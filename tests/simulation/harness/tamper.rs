//! Between two nodes, above the real gRPC: batches of deltas come twice, come again later, change places, or are lost in the
//! middle of their streams; in some runs deltas come that cannot be read; calls for states and fetches are lost on the way back.
//!
//! Only what a stream's own `prev` shows is lost, a batch whose every stream goes on in the next, and only once a subscription:
//! what is then sent again arrives. (No real link loses a message and lives.)

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use isle_model::{Body, KeyspaceId, ShardId};
use isle_node::peer::{
    Connector, DeltaBatch, FetchReply, FetchRequest, ForwardError, ForwardRequest, Hello, MetadataReply,
    MetadataRequest, Peer, PeerError, ReadReply, ReadRequest, StateReply, StateRequest, ToReceiver, ToSender, Unpacker,
};
use isle_node::{NodeError, PeerConfig, WriteReply};
use isle_store::codec;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::mpsc;

use super::history::History;

/// How many batches of the past may come again.
const OLD_MAX: usize = 4;

/// A connector whose connections are tampered with, until clients stop.
pub struct Tampering {
    pub inner: Arc<dyn Connector>,
    /// How often something is done to a batch.
    pub rate: f64,
    /// Whether deltas may arrive that cannot be read.
    pub spoils: bool,
    pub rng: Arc<Mutex<StdRng>>,
    pub history: Arc<History>,
}

#[async_trait]
impl Connector for Tampering {
    async fn connect(&self, peer: &PeerConfig) -> Result<Arc<dyn Peer>, PeerError> {
        let inner = self.inner.connect(peer).await?;
        let chance =
            Chance { rate: self.rate, spoils: self.spoils, rng: self.rng.clone(), history: self.history.clone() };
        Ok(Arc::new(Tampered { inner, chance }))
    }
}

#[derive(Clone)]
struct Chance {
    rate: f64,
    spoils: bool,
    rng: Arc<Mutex<StdRng>>,
    history: Arc<History>,
}

impl Chance {
    fn strikes(&self) -> bool {
        !self.history.is_closed() && self.rng.lock().random_bool(self.rate)
    }

    fn below(&self, n: usize) -> usize {
        self.rng.lock().random_range(0..n)
    }

    /// An answer may be lost on its way back: whoever asked cannot tell that from a call that never arrived.
    fn deliver<T>(&self, answer: Result<T, PeerError>) -> Result<T, PeerError> {
        match self.strikes() {
            true => Err(PeerError::Unreachable { reason: "the answer is lost".to_owned() }),
            false => answer,
        }
    }
}

struct Tampered {
    inner: Arc<dyn Peer>,
    chance: Chance,
}

#[async_trait]
impl Peer for Tampered {
    async fn subscribe(
        &self,
        hello: Hello,
        outgoing: mpsc::Receiver<ToSender>,
    ) -> Result<BoxStream<'static, Result<ToReceiver, PeerError>>, PeerError> {
        let asks_again = Arc::new(AtomicBool::new(false));
        let incoming = self.inner.subscribe(hello, watched(outgoing, asks_again.clone())).await?;
        let mut mangler =
            Mangler { chance: self.chance.clone(), held: None, may_lose: true, asks_again, old: VecDeque::new() };
        let mut unpacker = Unpacker::default();
        let alone = move |message| match message {
            Ok(ToReceiver::Deltas(batch)) => unpacker.alone(batch).map(ToReceiver::Deltas),
            other => other,
        };
        let incoming = incoming.map(alone);
        Ok(incoming.flat_map(move |message| futures::stream::iter(mangler.pass(message))).boxed())
    }

    async fn fetch(&self, request: FetchRequest) -> Result<FetchReply, PeerError> {
        self.chance.deliver(self.inner.fetch(request).await)
    }

    async fn state(&self, request: StateRequest) -> Result<StateReply, PeerError> {
        self.chance.deliver(self.inner.state(request).await)
    }

    // The transport delivers a call once or not at all, and what it says of that is the connector's.

    async fn forward(&self, request: ForwardRequest) -> Result<Vec<Result<WriteReply, NodeError>>, ForwardError> {
        self.inner.forward(request).await
    }

    async fn read(&self, request: ReadRequest) -> Result<ReadReply, ForwardError> {
        self.inner.read(request).await
    }

    async fn metadata(&self, request: MetadataRequest) -> Result<MetadataReply, PeerError> {
        self.chance.deliver(self.inner.metadata(request).await)
    }
}

/// The receiver's words to the sender, passed on.
fn watched(mut words: mpsc::Receiver<ToSender>, asks_again: Arc<AtomicBool>) -> mpsc::Receiver<ToSender> {
    let (passed, out) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(word) = words.recv().await {
            asks_again.fetch_or(matches!(word, ToSender::Refetch { .. }), Ordering::Relaxed);
            if passed.send(word).await.is_err() {
                return;
            }
        }
    });
    out
}

type Message = Result<ToReceiver, PeerError>;

/// What is done to one subscription's batches.
struct Mangler {
    chance: Chance,
    /// Waits for the next batch, to change places with it or to be lost.
    held: Option<DeltaBatch>,
    may_lose: bool,
    /// Whether the receiver has asked for anything again.
    asks_again: Arc<AtomicBool>,
    old: VecDeque<DeltaBatch>,
}

impl Mangler {
    fn pass(&mut self, message: Message) -> Vec<Message> {
        let out = match message {
            Ok(ToReceiver::Deltas(batch)) => self.pass_batch(batch),
            // A probe's answer says that all before it was sent: nothing is held back beyond it.
            other => self.held.take().map(deltas).into_iter().chain([other]).collect(),
        };
        let sent = out.iter().filter_map(|message| match message {
            Ok(ToReceiver::Deltas(batch)) => Some(batch.clone()),
            _ => None,
        });
        self.old.extend(sent);
        let extra = self.old.len().saturating_sub(OLD_MAX);
        self.old.drain(..extra);
        out
    }

    fn pass_batch(&mut self, batch: DeltaBatch) -> Vec<Message> {
        if let Some(held) = self.held.take() {
            self.may_lose &= !self.asks_again.load(Ordering::Relaxed);
            if self.may_lose && self.chance.below(2) == 0 && streams(&held).is_subset(&streams(&batch)) {
                self.may_lose = false;
                return vec![deltas(batch)];
            }
            return vec![deltas(batch), deltas(held)];
        }
        if !self.chance.strikes() {
            return vec![deltas(batch)];
        }
        match (self.chance.below(4), self.old.len()) {
            (0, _) if self.chance.spoils => vec![deltas(spoiled(&batch).unwrap_or(batch))],
            (0 | 1, _) => {
                self.held = Some(batch);
                Vec::new()
            }
            (2, 1..) => {
                let old = self.old[self.chance.below(self.old.len())].clone();
                vec![deltas(batch), deltas(old)]
            }
            _ => vec![deltas(batch.clone()), deltas(batch)],
        }
    }
}

fn deltas(batch: DeltaBatch) -> Message {
    Ok(ToReceiver::Deltas(batch))
}

/// The batch with one of its deltas made unreadable, where that can be done without touching its head.
fn spoiled(batch: &DeltaBatch) -> Option<DeltaBatch> {
    let mut items = items(batch);
    let (at, spoiled) = items.iter().enumerate().find_map(|(at, item)| Some((at, unreadable(item)?)))?;
    items[at] = spoiled;
    let mut raw = BytesMut::new();
    for item in &items {
        raw.put_u32_le(item.len() as u32);
        raw.extend_from_slice(item);
    }
    let zstd = Bytes::from(zstd::bulk::compress(&raw, 1).expect("bytes can be compressed"));
    Some(DeltaBatch { raw_len: raw.len() as u32, crc: crc32fast::hash(&raw), zstd, ..batch.clone() })
}

fn unreadable(item: &Bytes) -> Option<Bytes> {
    let head = codec::delta_head(item.clone()).ok().filter(|head| !head.is_statement)?;
    (0..item.len()).rev().find_map(|at| {
        let mut bytes = item.to_vec();
        bytes[at] ^= 0xff;
        let bytes = Bytes::from(bytes);
        let same = codec::delta_head(bytes.clone()).is_ok_and(|other| other == head);
        let reads = codec::decode_delta(bytes.clone()).is_ok_and(|delta| matches!(delta.body, Body::Write(_)));
        (same && !reads).then_some(bytes)
    })
}

/// The streams that a batch has deltas of.
fn streams(batch: &DeltaBatch) -> BTreeSet<(KeyspaceId, ShardId)> {
    let head = |item: Bytes| codec::delta_head(item).expect("a sound delta");
    items(batch).into_iter().map(head).map(|head| (head.keyspace, head.shard)).collect()
}

fn items(batch: &DeltaBatch) -> Vec<Bytes> {
    let raw = zstd::bulk::decompress(&batch.zstd, batch.raw_len as usize).expect("a sound batch");
    let mut raw = Bytes::from(raw);
    let mut out = Vec::new();
    while raw.has_remaining() {
        let length = raw.get_u32_le() as usize;
        out.push(raw.split_to(length));
    }
    out
}
