//! Why the node did not do what it was asked. Each says what the caller should do now; the server's one table maps them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use isle_model::{BadToken, Epoch, FieldName, Incarnation, Kind, Region};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Nothing was appended. Try again after a while.
    #[error("the {what} is full; try again in {} ms", .retry_after.as_millis())]
    Overloaded { what: &'static str, retry_after: Duration },
    /// Nothing was appended. Writes resume when there is space.
    #[error("the disk is full; try again in {} ms", .retry_after.as_millis())]
    DiskFull { retry_after: Duration },
    /// Nothing was appended.
    #[error("the deadline passed before anything was done")]
    DeadlineExpired,
    /// The write may or may not take effect. Read, or repeat it if that does no harm.
    #[error("the outcome is unknown: {reason}")]
    OutcomeUnknown { reason: String },
    /// Nothing was appended, nor will be before the node is restarted.
    #[error("this node takes no more writes: {reason}")]
    WritesStopped { reason: String },
    /// Nothing was appended: its stamp would hide what others write meanwhile. Write in another region until the clock is set.
    #[error("this node's clock is {by_ms} ms ahead of most other regions'")]
    ClockAhead { by_ms: u64 },
    /// The node has stopped for good, or is stopping. Ask another region.
    #[error("this node has stopped: {reason}")]
    Stopped { reason: String },
    /// This region's disk was found behind what it once acknowledged. Ask another region until it has been completed.
    #[error("this region is being completed by the others; its disk was behind")]
    Completing,
    /// Nothing was appended. Ask another region.
    #[error("this region is leaving the cluster, and takes no more writes")]
    Leaving,
    /// Ask another region until it serves.
    #[error("this region is joining the cluster, and does not serve yet")]
    Joining,
    /// Ask another region until it has.
    #[error("this region may hold keyspace {keyspace:?} since lately, and does not have all of it yet")]
    TakingKeyspace { keyspace: String },
    #[error("there is no keyspace {name:?}; there are: {}", .known.join(", "))]
    UnknownKeyspace { name: String, known: Vec<String> },
    /// Ask one of the holders.
    #[error("this region may not hold keyspace {keyspace:?}; ask {}", listed(.holders))]
    ResidencyViolation { keyspace: String, holders: Vec<Region> },
    /// The home serialises the key's writes: ask it. Nothing was appended.
    #[error("the key's home is {home}")]
    NotHome { home: Region, endpoint: String, epoch: Epoch },
    /// The request was never sent. Try again, with any region.
    #[error("the key's home {home} cannot be reached: {reason}")]
    HomeUnreachable { home: Region, reason: String },
    /// Nothing was appended. Try again once more of the holders are connected.
    #[error("the write has to be confirmed by {needed} other holders, and {connected} are connected")]
    TooFewHolders { needed: u32, connected: u32 },
    /// What another region answered to a request that was forwarded to it.
    #[error("{}", .0.message)]
    Remote(Box<RemoteError>),
    #[error("{field}: {reason}")]
    BadField { field: &'static str, reason: String },
    #[error("{field}: {source}")]
    BadToken { field: &'static str, source: BadToken },
    /// The token names writes that this region has not heard of. Try again, or ask the region that gave it.
    #[error("this region has not reached what the token saw of incarnation {incarnation}")]
    SessionNotReached { incarnation: Incarnation },
    /// The read allows less. Ask another region, allow more, or try again.
    #[error("this region may be {} behind, the read allows {} ms", shown(.staleness), .bound.as_millis())]
    StalenessBoundExceeded { bound: Duration, staleness: Option<Duration> },
    #[error("field {name:?} is a live {there:?} field, not a {asked:?}")]
    WrongKind { name: FieldName, there: Kind, asked: Kind },
    #[error("the key exists")]
    KeyExists { current: Bytes },
    #[error("the record's version is not the one given")]
    VersionMismatch { current: Bytes },
    #[error("{what} is not there yet")]
    Unimplemented { what: &'static str },
    /// The storage could not be read.
    #[error("reading failed: {reason}")]
    ReadFailed { reason: String },
}

fn listed(regions: &[Region]) -> String {
    regions.iter().map(Region::as_str).collect::<Vec<_>>().join(", ")
}

/// An error of another region, told on as it came: code, reason and facts are the wire's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteError {
    pub code: i32,
    pub reason: String,
    pub message: String,
    pub facts: BTreeMap<String, String>,
    pub retry_after: Option<Duration>,
    /// The request's field at fault; empty where there is none.
    pub field: String,
}

/// How far behind; `None` where some region has not been heard since the start.
fn shown(staleness: &Option<Duration>) -> String {
    staleness.map_or_else(|| "any time".to_owned(), |span| format!("{} ms", span.as_millis()))
}
