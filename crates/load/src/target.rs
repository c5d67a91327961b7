//! What a benchmark needs of a store, behind one small trait.
//!
//! The law: a target does what it is asked in the way its own users would, or says that it cannot. Nothing is faked by something
//! slower or weaker: a stream is a stream, a batch one call, and every write is answered only when the store calls it done.

pub mod floor;
pub mod isle;

use async_trait::async_trait;
use bytes::Bytes;

use crate::record::Record;

/// Why an operation came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// The target has no such thing: leave it out, do not try again.
    #[error("{target} has no {what}")]
    Unsupported { target: &'static str, what: &'static str },
    /// Nobody answers there.
    #[error("{0}")]
    Unreachable(String),
    /// The store refused, or broke off.
    #[error("{0}")]
    Refused(String),
}

/// What became of some writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub applied: u64,
    pub refused: u64,
    /// The store's words for the first one that it refused.
    pub reason: Option<String>,
}

impl Answer {
    pub fn applied(applied: u64) -> Answer {
        Answer { applied, ..Answer::default() }
    }
}

/// What a store says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vitals {
    pub records: u64,
    /// Equal in two regions exactly when they hold the same.
    pub digest: Option<String>,
    pub conflicts: u64,
    /// On disk.
    pub view_bytes: u64,
    /// What of it is alive, as it is stored.
    pub view_live_bytes: Option<u64>,
    pub log_bytes: u64,
    pub peers: Vec<PeerVitals>,
}

/// One direction of replication.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerVitals {
    pub connected: bool,
    /// What the peer has not acked.
    pub lag_bytes: u64,
    /// Sent, as compressed.
    pub egress_bytes: u64,
}

/// A store at one endpoint.
#[async_trait]
pub trait Target: Send + Sync {
    fn name(&self) -> &'static str;

    /// What an answered write has behind it, for the report.
    fn durability(&self) -> &'static str;

    /// Whether it takes requests now.
    async fn ready(&self) -> Result<(), Fault>;

    /// So many lanes. Where the protocol carries many requests at once they share `connections`; elsewhere each has its own.
    async fn lanes(&self, count: usize, connections: usize) -> Result<Vec<Box<dyn Lane>>, Fault>;

    async fn vitals(&self) -> Result<Vitals, Fault> {
        Err(self.has_no("status"))
    }

    fn has_no(&self, what: &'static str) -> Fault {
        Fault::Unsupported { target: self.name(), what }
    }
}

/// Carries one request at a time, or one stream.
#[async_trait]
pub trait Lane: Send {
    fn target(&self) -> &'static str;

    async fn put(&mut self, record: &Record) -> Result<(), Fault>;

    /// The value, or nothing.
    async fn get(&mut self, key: &Bytes) -> Result<Option<Bytes>, Fault>;

    /// As many entries from a key on, in key order; says how many there were.
    async fn scan(&mut self, _start: &Bytes, _entries: usize) -> Result<usize, Fault> {
        Err(self.has_no("ordered scan"))
    }

    /// Only if the store, where it is asked, has nothing there yet. Says whether it was done.
    async fn put_if_absent(&mut self, _record: &Record) -> Result<bool, Fault> {
        Err(self.has_no("conditional put"))
    }

    /// Every live value of a key, the one that readers are shown first.
    async fn get_all(&mut self, key: &Bytes) -> Result<Vec<Bytes>, Fault> {
        Ok(self.get(key).await?.into_iter().collect())
    }

    /// One call that carries many writes.
    async fn put_batch(&mut self, _records: Vec<Record>) -> Result<Answer, Fault> {
        Err(self.has_no("batched put"))
    }

    /// Many requests of one write each, sent before the first is answered.
    async fn put_pipelined(&mut self, _records: Vec<Record>) -> Result<Answer, Fault> {
        Err(self.has_no("pipelining of its own (its lanes share connections already)"))
    }

    /// Opens a stream of batches.
    async fn open_stream(&mut self) -> Result<(Box<dyn Sender>, Box<dyn Answers>), Fault> {
        Err(self.has_no("stream of writes"))
    }

    fn has_no(&self, what: &'static str) -> Fault {
        Fault::Unsupported { target: self.target(), what }
    }
}

/// The sending half of a stream. Dropping it says that no more will come.
#[async_trait]
pub trait Sender: Send {
    async fn send(&mut self, records: Vec<Record>) -> Result<(), Fault>;
}

/// The receiving half: answers in the order of the writes, of one or more each.
#[async_trait]
pub trait Answers: Send {
    /// `None` at the end.
    async fn next(&mut self) -> Result<Option<Answer>, Fault>;
}
