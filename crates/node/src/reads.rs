//! Reads: of what this region has published, or at the key's home where that is not new enough.
//!
//! The law it keeps: a read is never older than it allows. Age is measured on this node's clock alone.

use std::time::Duration;

use bytes::Bytes;
use isle_model::metadata::Keyspace;
use isle_model::policy::ReadDefault;
use isle_model::{Epoch, KeyspaceId, Reading, Record, Region, write};

use crate::catalog::Known;
use crate::node::refusal;
use crate::shard_loop::read_failed;
use crate::{Consistency, GetReply, GetRequest, Node, NodeError, RequestContext, ScanReply, ScanRequest, ScanRow};

impl Node {
    pub async fn get(&self, ctx: &RequestContext, request: GetRequest) -> Result<GetReply, NodeError> {
        write::check_key(&request.key).map_err(|error| refusal(error, Bytes::new()))?;
        match self.readable(ctx, &request.keyspace, request.consistency)? {
            Readable::AtHome { keyspace, .. } => self.get_at_home(ctx, keyspace, &request.key).await,
            Readable::Here { keyspace, staleness } => {
                let record = self.shared.store.get(keyspace, &request.key).map_err(read_failed)?.unwrap_or_default();
                Ok(self.get_reply(keyspace, &request.key, &record, self.shared.me().clone(), staleness))
            }
        }
    }

    pub(crate) fn get_reply(
        &self,
        keyspace: KeyspaceId,
        key: &[u8],
        record: &Record,
        served_by: Region,
        staleness: Option<Duration>,
    ) -> GetReply {
        let tree = self.shared.store.tree();
        let mut reading = Reading::of(record, tree.shard(self.shared.shard_of(keyspace, key)));
        let known = self.shared.catalog.known();
        if known.keyspace(keyspace).is_none_or(|keyspace| keyspace.policy.home.is_none()) {
            (reading.home, reading.home_epoch) = (None, Epoch::default());
        }
        GetReply {
            version: self.version(record, &tree, keyspace, key),
            served_by,
            home: reading.home.clone(),
            home_epoch: reading.home_epoch,
            staleness,
            reading: reading.found().then_some(reading),
        }
    }

    pub async fn get_batch(&self, ctx: &RequestContext, requests: Vec<GetRequest>) -> Vec<Result<GetReply, NodeError>> {
        futures::future::join_all(requests.into_iter().map(|request| self.get(ctx, request))).await
    }

    /// Live records of [start, end) in key order. Not a snapshot.
    pub async fn scan(&self, ctx: &RequestContext, request: ScanRequest) -> Result<ScanReply, NodeError> {
        let (keyspace, staleness) = match self.readable(ctx, &request.keyspace, request.consistency)? {
            Readable::Here { keyspace, staleness } => (keyspace, staleness),
            Readable::AtHome { bound: Some((bound, staleness)), .. } => {
                return Err(NodeError::StalenessBoundExceeded { bound, staleness });
            }
            Readable::AtHome { bound: None, .. } => {
                let reason = "a scan's keys have no one home; ask for eventual or bounded".to_owned();
                return Err(NodeError::BadField { field: "read.consistency", reason });
            }
        };
        let (start, end) = (&request.start, request.end.as_deref());
        let page =
            self.shared.store.scan(keyspace, start, end, request.limit, request.bytes_max).map_err(read_failed)?;
        let tree = self.shared.store.tree();
        let rows = page.rows.into_iter().map(|(key, record)| ScanRow {
            reading: Reading::of(&record, tree.shard(self.shared.shard_of(keyspace, &key))),
            version: self.version(&record, &tree, keyspace, &key),
            key,
        });
        Ok(ScanReply { rows: rows.collect(), next: page.next, served_by: self.shared.me().clone(), staleness })
    }

    /// Where a read is served, by what was asked and what the keyspace's policy says.
    fn readable(&self, ctx: &RequestContext, keyspace: &str, consistency: Consistency) -> Result<Readable, NodeError> {
        self.shared.check_serving()?;
        if ctx.is_expired() {
            return Err(NodeError::DeadlineExpired);
        }
        let known = self.shared.catalog.known();
        let Keyspace { id, policy, .. } = self.keyspace(&known, keyspace)?;
        let keyspace = *id;
        let asked = match (consistency, policy.read_default) {
            (Consistency::Default, ReadDefault::Eventual) => Consistency::Eventual,
            (Consistency::Default, ReadDefault::Session) => Consistency::Session,
            (Consistency::Default, ReadDefault::Bounded(bound)) => Consistency::Bounded(bound),
            (Consistency::Default, ReadDefault::Strong) => Consistency::Strong,
            (asked, _) => asked,
        };
        // Measured before the read: what is absorbed in between makes it fresher than is said, never older.
        let staleness = self.staleness(&known, keyspace);
        self.shared.counters.reads.add(1);
        match asked {
            Consistency::Default | Consistency::Eventual => Ok(Readable::Here { keyspace, staleness }),
            Consistency::Bounded(bound) if staleness.is_some_and(|staleness| staleness <= bound) => {
                Ok(Readable::Here { keyspace, staleness })
            }
            Consistency::Bounded(bound) if policy.is_forwarded() => {
                Ok(Readable::AtHome { keyspace, bound: Some((bound, staleness)) })
            }
            Consistency::Bounded(bound) => Err(NodeError::StalenessBoundExceeded { bound, staleness }),
            Consistency::Session => Err(NodeError::Unimplemented { what: "consistency=session" }),
            Consistency::Strong if policy.is_forwarded() => Ok(Readable::AtHome { keyspace, bound: None }),
            Consistency::Strong => {
                let reason =
                    "strong reads need a keyspace with writes=forward: of any other no region has seen all".to_owned();
                Err(NodeError::BadField { field: "read.consistency", reason })
            }
        }
    }

    /// How old what is read here may be, by the holder that was heard last of all; `None` until all were heard.
    fn staleness(&self, known: &Known, keyspace: KeyspaceId) -> Option<Duration> {
        let now = self.shared.now();
        let peers = self.shared.peers.all();
        let holders = peers.iter().filter(|(region, _)| known.takes_part(region, keyspace));
        let mut ages = holders.map(|(_, slot)| {
            let fresh = self.shared.fresh_as_of(slot, keyspace);
            fresh.map(|at| now.saturating_sub(at))
        });
        ages.try_fold(Duration::ZERO, |oldest, age| Some(oldest.max(age?)))
    }
}

/// Where a read is served.
enum Readable {
    Here {
        keyspace: KeyspaceId,
        /// How old what is read here may be.
        staleness: Option<Duration>,
    },
    AtHome {
        keyspace: KeyspaceId,
        /// What was allowed and what it is here, where that is why.
        bound: Option<(Duration, Option<Duration>)>,
    },
}
