//! Requests that another region has to serve: writes and strong reads of keys whose home is elsewhere.
//!
//! ```text
//! client ─▶ node: not the home ─ gate ─▶ the home's node ─▶ its shard loop ─▶ durable ─▶ the reply, as it is
//! ```
//! The law it keeps: one hop. Who is asked by another region serves or refuses, and never asks a third; who forwards follows a
//! refusal to the home that it names for as long as its caller waits. What was never sent is HOME_UNREACHABLE and may be tried again; what
//! was sent and not answered is OUTCOME_UNKNOWN.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use isle_model::metadata::{Keyspace, Step};
use isle_model::policy::Replication;
use isle_model::{Dot, Incarnation, IncarnationTree, KeyspaceId, Record, Region, Row, planted};
use tokio::time::Instant;

use crate::catalog::Known;
use crate::egress::{Gate, Verdict};
use crate::homes::{home_named_by, home_of};
use crate::peer::{ForwardError, ForwardRequest, Peer, ReadReply, ReadRequest};
use crate::peers::PeerSlot;
use crate::shard_loop::read_failed;
use crate::shared::StreamKey;
use crate::write_batch::Asked;
use crate::{GetReply, Node, NodeError, RequestContext, Versions, WriteReply};

/// The home answers within the caller's deadline less this: else the caller hears nothing of what became of it.
const MARGIN: Duration = Duration::from_millis(10);
/// So many times a refusal is followed to the home that it names without a pause. Then the home is moving, and its new one has
/// not heard of it yet: each pause is twice the one before, up to this.
const ROUNDS_AT_ONCE: u32 = 2;
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// What a refusal by a region that is not the home says on the wire.
const NOT_HOME: &str = "NOT_HOME";
/// And by one that may not hold the key.
const RESIDENCY_VIOLATION: &str = "RESIDENCY_VIOLATION";

/// What came of asking everybody for a key.
enum Found {
    Here(Box<GetReply>),
    At(Region),
    /// Where it was sought it names no home: everybody is to be asked.
    Nowhere,
}

/// A write that other holders have to confirm before it is acknowledged.
pub(crate) struct Wait {
    pub(crate) place: usize,
    pub(crate) stream: StreamKey,
    pub(crate) dot: Dot,
    pub(crate) holders: u32,
    /// One that has to be among them.
    pub(crate) region: Option<Region>,
}

impl Node {
    /// Sends writes of one keyspace to their home, together.
    pub(crate) async fn forward(
        &self,
        ctx: &RequestContext,
        home: &Region,
        keyspace: KeyspaceId,
        asked: &[Asked],
        versions: Versions,
    ) -> Vec<Result<WriteReply, NodeError>> {
        let all = |error: NodeError| asked.iter().map(|_| Err(error.clone())).collect();
        let (slot, peer) = match self.reach(home, keyspace) {
            Ok(reached) => reached,
            Err(error) => return all(error),
        };
        let Ok(_permit) = slot.forwards.try_acquire() else {
            return all(crate::shard_queue::overloaded());
        };
        let Some(timeout) = self.patience(ctx) else { return all(NodeError::DeadlineExpired) };
        let request = ForwardRequest {
            asker: self.shared.me().clone(),
            keyspace,
            writes: asked.iter().map(|asked| asked.request.clone()).collect(),
            versions,
            caller: ctx.caller.clone(),
            traceparent: ctx.traceparent.clone(),
            timeout,
        };
        let late = |_| Err(ForwardError::Lost { reason: format!("{home} did not answer in time") });
        // Later than the home's own deadline, so that what it says of it still counts.
        match tokio::time::timeout(timeout + MARGIN / 2, peer.forward(request)).await.unwrap_or_else(late) {
            Ok(replies) if replies.len() == asked.len() => replies,
            Ok(replies) => {
                let reason = format!("{home} answered {} of {} writes", replies.len(), asked.len());
                all(NodeError::OutcomeUnknown { reason })
            }
            Err(error) => all(error.of_write(home)),
        }
    }

    /// The connection to a region that a keyspace's requests may go to.
    fn reach(&self, home: &Region, keyspace: KeyspaceId) -> Result<(Arc<PeerSlot>, Arc<dyn Peer>), NodeError> {
        let unreachable = |reason: &str| NodeError::HomeUnreachable { home: home.clone(), reason: reason.to_owned() };
        let slot = self.shared.peers.get(home).ok_or_else(|| unreachable("it is no region of this cluster"))?;
        match Gate::to(&self.shared, home).judge(keyspace) {
            Verdict::Pass => {}
            Verdict::Wait => return Err(unreachable("it has not heard of a change of the keyspace yet")),
            Verdict::Never if self.shared.catalog.known().step(home, keyspace) == Some(Step::Handing) => {
                return Err(unreachable("it is handing the keyspace over"));
            }
            Verdict::Never => return Err(unreachable("it may not hold the keyspace")),
        }
        let peer = slot.handle.lock().clone().ok_or_else(|| unreachable("there is no connection to it"))?;
        Ok((slot, peer))
    }

    /// How long another region may take; `None` where the caller does not wait any more.
    pub(crate) fn patience(&self, ctx: &RequestContext) -> Option<Duration> {
        let Some(deadline) = ctx.deadline else { return Some(self.shared.config.forward_timeout) };
        let left = deadline.saturating_duration_since(Instant::now()).checked_sub(MARGIN)?;
        Some(left).filter(|left| !left.is_zero())
    }

    /// Until when a request is followed up.
    pub(crate) fn deadline(&self, ctx: &RequestContext) -> Instant {
        ctx.deadline.unwrap_or_else(|| Instant::now() + self.shared.config.forward_timeout)
    }

    /// Carries out what another region has forwarded.
    pub async fn serve_forward(
        &self,
        ctx: &RequestContext,
        request: ForwardRequest,
    ) -> Result<Vec<Result<WriteReply, NodeError>>, NodeError> {
        let name = self.name_for(&request.asker, request.keyspace)?;
        let named = request.writes.into_iter().map(|mut write| {
            write.keyspace.clone_from(&name);
            write
        });
        let ctx = RequestContext { hops: ctx.hops.max(1), ..ctx.clone() };
        Ok(self.write_batch(&ctx, named.collect(), request.versions).await)
    }

    /// Shows another region a record as it is here.
    pub async fn serve_read(&self, request: ReadRequest) -> Result<ReadReply, NodeError> {
        self.name_for(&request.asker, request.keyspace)?;
        self.shared.check_serving()?;
        let known = self.shared.catalog.known();
        let held = known.keyspace(request.keyspace).ok_or_else(|| known.unknown(&request.keyspace.0.to_string()))?;
        let record = self.shared.store.get(request.keyspace, &request.key).map_err(read_failed)?.unwrap_or_default();
        // Read after the record: it names everything that the record does.
        let tree = self.shared.store.tree();
        let lineage = tree.shard(self.shared.shard_of(request.keyspace, &request.key));
        let home = home_named_by(held, &known.metadata.members, &request.key, &record, lineage);
        Ok(ReadReply { rows: rows_of(&record, &tree), home, record: Arc::unwrap_or_clone(record) })
    }

    /// The keyspace's name, if the asker may have to do with it.
    fn name_for(&self, asker: &Region, keyspace: KeyspaceId) -> Result<String, NodeError> {
        let known = self.shared.catalog.known();
        let found = known.keyspace(keyspace).ok_or_else(|| known.unknown(&keyspace.0.to_string()))?;
        if !known.is_for(asker, keyspace) {
            let holders = known.metadata.holders(keyspace).cloned().collect();
            return Err(NodeError::ResidencyViolation { keyspace: found.name.clone(), holders });
        }
        Ok(found.name.clone())
    }

    /// Reads a key where its writes are serialised.
    pub(crate) async fn get_at_home(
        &self,
        ctx: &RequestContext,
        keyspace: KeyspaceId,
        key: &Bytes,
    ) -> Result<GetReply, NodeError> {
        let mut home = self.presumed_home(keyspace, key)?;
        let mut patience = Patience::until(self.deadline(ctx));
        loop {
            let asked = match home {
                Some(_) if planted::is(planted::Bug::StrongFromHere) => return self.own_reply(keyspace, key),
                Some(at) if at == *self.shared.me() => match self.presumed_home(keyspace, key)? {
                    Some(here) if here == at => return self.own_reply(keyspace, key),
                    // Its old home says so, and its last word has not come yet: what is here is older.
                    Some(_) => Ok(Found::At(at)),
                    None => Ok(Found::Nowhere),
                },
                Some(at) => self.get_from(ctx, at, keyspace, key).await,
                None => self.get_wherever_it_is(ctx, keyspace, key).await,
            };
            let (next, refusal) = match asked {
                Ok(Found::Here(reply)) => return Ok(*reply),
                Ok(Found::At(home)) => (Some(home), None),
                Ok(Found::Nowhere) => (None, None),
                Err(error) if self.awaits_heirs(keyspace, &error) => (self.presumed_home(keyspace, key)?, Some(error)),
                Err(error) => return Err(error),
            };
            home = next;
            if !patience.another_round().await {
                let home = home.unwrap_or_else(|| self.shared.me().clone());
                let moving = || NodeError::HomeUnreachable { home, reason: "it is moving; try again".to_owned() };
                return Err(refusal.unwrap_or_else(moving));
            }
        }
    }

    /// Whether a home that was not reached hands its keys over, so that they have another before long; or has done so, and the region
    /// that was asked knew before this one.
    pub(crate) fn awaits_heirs(&self, keyspace: KeyspaceId, refusal: &NodeError) -> bool {
        match refusal {
            NodeError::HomeUnreachable { home, .. } => {
                let step = self.shared.catalog.known().step(home, keyspace);
                step.is_some_and(|step| step != Step::Taking)
            }
            NodeError::Remote(remote) => remote.reason == RESIDENCY_VIOLATION,
            _ => false,
        }
    }

    async fn get_from(
        &self,
        ctx: &RequestContext,
        at: Region,
        keyspace: KeyspaceId,
        key: &Bytes,
    ) -> Result<Found, NodeError> {
        let reply = self.read_from(ctx, &at, keyspace, key).await?;
        match &reply.home {
            Some(home) if *home == at => Ok(Found::Here(Box::new(self.reply_from(at, keyspace, key, reply)?))),
            Some(home) => Ok(Found::At(home.clone())),
            None => Ok(Found::Nowhere),
        }
    }

    /// Where the key lives as far as this region knows; `None` where that may be anywhere, or nowhere.
    fn presumed_home(&self, keyspace: KeyspaceId, key: &[u8]) -> Result<Option<Region>, NodeError> {
        let known = self.shared.catalog.known();
        let held = known.keyspace(keyspace).ok_or_else(|| known.unknown(&keyspace.0.to_string()))?;
        let record = self.shared.store.get(keyspace, key).map_err(read_failed)?.unwrap_or_default();
        let (tree, members) = (self.shared.store.tree(), &known.metadata.members);
        let lineage = tree.shard(self.shared.shard_of(keyspace, key));
        let home = home_named_by(held, members, key, &record, lineage);
        Ok(home.or_else(|| held.home_of(key, members)))
    }

    /// A key that is not here may have been created in any region: all are asked. What all of them have together is what there is.
    async fn get_wherever_it_is(
        &self,
        ctx: &RequestContext,
        keyspace: KeyspaceId,
        key: &Bytes,
    ) -> Result<Found, NodeError> {
        let known = self.shared.catalog.known();
        // One that joins has taken no write.
        let may_have = |peer: &&Region| known.takes_part(peer, keyspace) && !known.is_taking(peer, keyspace);
        let others: Vec<&Region> = known.others(self.shared.me()).filter(may_have).collect();
        let asked = others.iter().map(|other| self.read_from(ctx, other, keyspace, key));
        let replies = join_all(asked).await;
        let shard = self.shared.shard_of(keyspace, key);
        let own = self.shared.store.get(keyspace, key).map_err(read_failed)?.unwrap_or_default();
        let mut all = Arc::unwrap_or_clone(own);
        for (other, reply) in others.into_iter().zip(replies) {
            let reply = reply?;
            if reply.home.as_ref() == Some(other) {
                return Ok(Found::Here(Box::new(self.reply_from(other.clone(), keyspace, key, reply)?)));
            }
            self.learn_rows(other, &reply)?;
            all.merge(&reply.record, self.shared.store.tree().shard(shard));
        }
        // By all that is known together it may live somewhere, though nobody has said "here": its home is moving.
        let held = known.keyspace(keyspace).ok_or_else(|| known.unknown(&keyspace.0.to_string()))?;
        let tree = self.shared.store.tree();
        let home = home_named_by(held, &known.metadata.members, key, &all, tree.shard(shard));
        match home.filter(|home| home != self.shared.me()) {
            Some(home) => Ok(Found::At(home)),
            None => {
                let reply = self.get_reply(keyspace, key, &all, self.shared.me().clone(), Some(Duration::ZERO));
                Ok(Found::Here(Box::new(reply)))
            }
        }
    }

    async fn read_from(
        &self,
        ctx: &RequestContext,
        region: &Region,
        keyspace: KeyspaceId,
        key: &Bytes,
    ) -> Result<ReadReply, NodeError> {
        let (slot, peer) = self.reach(region, keyspace)?;
        let Ok(_permit) = slot.forwards.try_acquire() else { return Err(crate::shard_queue::overloaded()) };
        let timeout = self.patience(ctx).ok_or(NodeError::DeadlineExpired)?;
        let request = ReadRequest { asker: self.shared.me().clone(), keyspace, key: key.clone(), timeout };
        let late = |_| Err(ForwardError::Lost { reason: "it did not answer in time".to_owned() });
        let reply = tokio::time::timeout(timeout, peer.read(request)).await.unwrap_or_else(late);
        reply.map_err(|error| error.of_read(region))
    }

    fn own_reply(&self, keyspace: KeyspaceId, key: &Bytes) -> Result<GetReply, NodeError> {
        let record = self.shared.store.get(keyspace, key).map_err(read_failed)?.unwrap_or_default();
        Ok(self.get_reply(keyspace, key, &record, self.shared.me().clone(), Some(Duration::ZERO)))
    }

    fn reply_from(
        &self,
        region: Region,
        keyspace: KeyspaceId,
        key: &Bytes,
        reply: ReadReply,
    ) -> Result<GetReply, NodeError> {
        self.learn_rows(&region, &reply)?;
        Ok(self.get_reply(keyspace, key, &reply.record, region, Some(Duration::ZERO)))
    }

    /// Learns what a record from elsewhere names.
    fn learn_rows(&self, region: &Region, reply: &ReadReply) -> Result<(), NodeError> {
        crate::replication::handshake::learn(&self.shared, reply.rows.iter().cloned())
            .map_err(|error| NodeError::ReadFailed { reason: format!("what {region} answered: {error}") })?;
        let tree = self.shared.store.tree();
        match reply.record.incarnations().find(|incarnation| !tree.contains(*incarnation)) {
            Some(incarnation) => Err(NodeError::SessionNotReached { incarnation }),
            None => Ok(()),
        }
    }

    /// A key moves only to a region that can hear of it.
    pub(crate) fn connected(&self, to: &Region) -> Result<Region, NodeError> {
        let is_up = self.shared.peers.get(to).is_some_and(|slot| slot.link.lock().outbound);
        let reason = || "it is not connected, and could not take over".to_owned();
        if is_up || to == self.shared.me() {
            Ok(to.clone())
        } else {
            Err(NodeError::HomeUnreachable { home: to.clone(), reason: reason() })
        }
    }

    /// How many other holders have to confirm a write of the keyspace. An error where too few are connected.
    pub(crate) fn holders_waited_for(&self, known: &Known, keyspace: &Keyspace) -> Result<u32, NodeError> {
        let Replication::Sync(needed) = keyspace.policy.replication else { return Ok(0) };
        let peers = self.shared.peers.all();
        let holders = peers.iter().filter(|(region, _)| known.counts_for(region, keyspace.id));
        let agrees = |region: &Region| Gate::to(&self.shared, region).passes(keyspace.id);
        let connected = holders.filter(|(region, slot)| slot.link.lock().outbound && agrees(region)).count() as u32;
        if connected < needed { Err(NodeError::TooFewHolders { needed, connected }) } else { Ok(needed) }
    }

    /// Waits until each write is confirmed by as many holders as it has to be. Returns those that were not in time.
    pub(crate) async fn await_holders(&self, ctx: &RequestContext, mut waits: Vec<Wait>) -> Vec<Wait> {
        let deadline = self.deadline(ctx);
        // A new home has to hear of it, however seldom the keyspace's changes are shipped.
        let known = self.shared.catalog.known();
        let at_intervals = |wait: &&Wait| known.ship_interval(wait.stream.0).is_some();
        for (id, to) in
            waits.iter().filter(at_intervals).filter_map(|wait| Some((wait.stream.0, wait.region.as_ref()?)))
        {
            self.shared.shipping.hasten(&self.shared, id, std::iter::once(to));
        }
        let mut stirred = self.shared.confirmations.subscribe();
        loop {
            stirred.mark_unchanged();
            waits.retain(|wait| !self.is_confirmed(wait));
            if waits.is_empty() || tokio::time::timeout_at(deadline, stirred.changed()).await.is_err() {
                return waits;
            }
        }
    }

    fn is_confirmed(&self, wait: &Wait) -> bool {
        let known = self.shared.catalog.known();
        let tree = self.shared.store.tree();
        let lineage = tree.shard(wait.stream.1);
        let has = |slot: &PeerSlot| {
            let link = slot.link.lock();
            let cursors = link.confirmed.as_ref().map(|confirmed| &confirmed.cursors);
            cursors.and_then(|cursors| cursors.get(&wait.stream)).is_some_and(|v| v.covers(wait.dot, lineage))
        };
        let peers = self.shared.peers.all();
        let holders = peers.iter().filter(|(region, _)| known.counts_for(region, wait.stream.0));
        let confirmed: Vec<&Region> = holders.filter(|(_, slot)| has(slot)).map(|(region, _)| region).collect();
        confirmed.len() >= wait.holders as usize
            && wait.region.as_ref().is_none_or(|region| confirmed.contains(&region))
    }

    /// Where a write of a forwarded keyspace goes, by what is published here. The home's shard loop has the last word.
    pub(crate) fn home_of_request(
        &self,
        known: &Known,
        keyspace: &Keyspace,
        asked: &Asked,
    ) -> Result<Region, NodeError> {
        if let Some(told) = &asked.told {
            return Ok(told.clone());
        }
        let (id, key) = (keyspace.id, &asked.request.key);
        let record = self.shared.store.get(id, key).map_err(read_failed)?.unwrap_or_default();
        let tree = self.shared.store.tree();
        let lineage = tree.shard(self.shared.shard_of(id, key));
        let (members, named, me) = (&known.metadata.members, asked.request.home.as_ref(), self.shared.me());
        Ok(home_of(keyspace, members, key, &record, lineage, named, me))
    }
}

/// How long a request follows a home that moves.
pub(crate) struct Patience {
    deadline: Instant,
    rounds: u32,
    pause: Duration,
}

impl Patience {
    pub(crate) fn until(deadline: Instant) -> Patience {
        Patience { deadline, rounds: 0, pause: PAUSE_MIN }
    }

    /// Pauses where that helps; says whether there is time left.
    pub(crate) async fn another_round(&mut self) -> bool {
        self.rounds += 1;
        if self.rounds > ROUNDS_AT_ONCE {
            tokio::time::sleep_until((Instant::now() + self.pause).min(self.deadline)).await;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        Instant::now() < self.deadline
    }
}

impl ForwardError {
    fn of_write(self, home: &Region) -> NodeError {
        match self {
            ForwardError::NotSent { reason } => NodeError::HomeUnreachable { home: home.clone(), reason },
            ForwardError::Lost { reason } => NodeError::OutcomeUnknown { reason: format!("{home}: {reason}") },
            ForwardError::Refused(error) => NodeError::Remote(error),
        }
    }

    /// A read that was lost has done nothing.
    fn of_read(self, region: &Region) -> NodeError {
        match self {
            ForwardError::NotSent { reason } | ForwardError::Lost { reason } => {
                NodeError::HomeUnreachable { home: region.clone(), reason }
            }
            ForwardError::Refused(error) => NodeError::Remote(error),
        }
    }
}

/// The home that a refusal names.
pub(crate) fn home_named(error: &NodeError) -> Option<Region> {
    match error {
        NodeError::NotHome { home, .. } => Some(home.clone()),
        NodeError::Remote(error) if error.reason == NOT_HOME => error.facts.get("home").map(|home| Region::new(home)),
        _ => None,
    }
}

/// The rows of every incarnation that a record names, and of their ancestors.
fn rows_of(record: &Record, tree: &IncarnationTree) -> Vec<(Incarnation, Row)> {
    let named: std::collections::BTreeSet<Incarnation> = record.incarnations().collect();
    let wanted = tree.rows().filter(|(row, _)| named.iter().any(|incarnation| tree.descends(*incarnation, *row)));
    wanted.map(|(incarnation, row)| (incarnation, row.clone())).collect()
}
