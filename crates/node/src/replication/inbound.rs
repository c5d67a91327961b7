//! The receiving side of a subscription: dials a peer and takes in its own streams, in order, through the shard loops.
//!
//! The law it keeps: a cursor is acknowledged only once it is durable, and a gap is fetched again, never skipped. What cannot
//! be read is counted, and its stream is completed by state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered};
use isle_model::{KeyspaceId, Region, ShardId, Vector};
use isle_store::{Received, codec};
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::peer::{Connector, DeltaBatch, Fingerprints, PeerError, ToReceiver, ToSender};
use crate::replication::batch_codec::Unpacker;
use crate::replication::handshake::{Met, greeted, hello_for, learn, meet};
use crate::replication::schedule::Backoff;
use crate::shard_queue::{Absorption, Job, answer_of, delta_bytes};
use crate::shared::{Extent, LinkCommand, Shared, StreamKey};
use crate::{NodeError, PeerConfig};

/// Room for words to the sender. It reads them before anything else, so little is ever waiting.
const OUTGOING_MAX: usize = 64;

pub(crate) struct Inbound {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) peer: PeerConfig,
    pub(crate) commands: mpsc::UnboundedReceiver<LinkCommand>,
    pub(crate) rng: StdRng,
}

impl Inbound {
    /// Dials, takes in, and dials again, until the node stops.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let config = &self.shared.config;
        let mut backoff = Backoff::new(config.backoff_min, config.backoff_max);
        let Some(mut left) = self.shared.peers.get(&self.peer.region).map(|slot| slot.left.subscribe()) else { return };
        loop {
            let ended = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                _ = left.wait_for(|left| *left) => return,
                ended = self.session(&mut backoff) => ended,
            };
            self.note_down(&ended);
            if let PeerError::RegionReplaced { region, .. } = &ended
                && region == self.shared.me()
            {
                self.shared.stop_for_good(&ended.to_string());
                return;
            }
            if let PeerError::NoMember { region, revision } = &ended
                && region == self.shared.me()
                && self.shared.was_removed(*revision)
            {
                self.shared.stop_for_good(&format!("{ended}; its data directory is kept as it is"));
                return;
            }
            let wait = backoff.next(&mut self.rng);
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                _ = left.wait_for(|left| *left) => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn note_down(&self, why: &PeerError) {
        let Some(slot) = self.shared.peers.get(&self.peer.region) else { return };
        // A peer that does not take this incarnation's streams yet still answers for states: by them it is completed.
        if !matches!(why, PeerError::NotReady { .. }) {
            *slot.handle.lock() = None;
        }
        let mut link = slot.link.lock();
        if link.inbound {
            tracing::info!(peer = %self.peer.region, error = %why, "the link to the peer is down");
            link.set_inbound(false, self.shared.now());
        }
        link.last_error = Some(why.to_string());
        drop(link);
        self.shared.judge_clock();
        if let Some(counters) = self.shared.counters.peer(&self.peer.region) {
            counters.reconnects.add(1);
        }
    }

    /// One connection, from dialling to its end.
    async fn session(&mut self, backoff: &mut Backoff) -> PeerError {
        match self.connect().await {
            Ok(mut session) => {
                backoff.reset();
                match session.run(&mut self.commands).await {
                    Ok(never) => match never {},
                    Err(error) => error,
                }
            }
            Err(error) => error,
        }
    }

    async fn connect(&mut self) -> Result<Session, PeerError> {
        let patience = self.shared.config.silence_max;
        let late = |_| PeerError::Unreachable { reason: "it does not answer".to_owned() };
        let peer = timeout(patience, self.connector.connect(&self.peer)).await.map_err(late)??;
        let (outgoing, words) = mpsc::channel(OUTGOING_MAX);
        let hello = hello_for(&self.shared, &self.peer.region);
        let told = hello.keyspaces.clone();
        let mut stream = timeout(patience, peer.subscribe(hello, words)).await.map_err(late)??;
        let first = timeout(patience, stream.next()).await.map_err(late)?;
        let Some(ToReceiver::Hello(hello)) = first.transpose()? else {
            return Err(PeerError::Corrupt { reason: "its first message is no Hello".to_owned() });
        };
        let met = meet(&self.shared, &hello, Some(&self.peer.region))?;
        let slot = self.shared.peers.get(&self.peer.region);
        let Some(slot) = slot else { return Err(PeerError::Incompatible { reason: "it is no peer".to_owned() }) };
        // States may be asked of it from here on, even where its streams are not taken yet.
        *slot.handle.lock() = Some(peer);
        if met == Met::CompleteFirst {
            return Err(PeerError::NotReady { reason: "it comes back on a branch and is not complete".to_owned() });
        }
        greeted(&self.shared, &hello)?;
        let mut link = slot.link.lock();
        link.set_inbound(true, self.shared.now());
        link.last_error = None;
        drop(link);
        self.shared.repair.notify_one();
        tracing::info!(peer = %self.peer.region, "the link to the peer is up");
        Ok(Session {
            shared: self.shared.clone(),
            origin: self.peer.region.clone(),
            outgoing,
            stream,
            pending: FuturesOrdered::new(),
            taken_bytes: 0,
            refetching: BTreeSet::new(),
            probe: None,
            probes: 0,
            unpacker: Unpacker::default(),
            told,
            left_out: BTreeSet::new(),
        })
    }
}

type Pending = BoxFuture<'static, Result<Step, NodeError>>;

/// What has become durable, in the order it came.
enum Step {
    Taken {
        raw_bytes: u64,
        outcomes: Vec<(ShardId, Absorption)>,
    },
    /// Everything before the probe's answer is durable.
    Fresh {
        id: u64,
        /// But for these streams.
        waiting: Vec<StreamKey>,
    },
}

struct Session {
    shared: Arc<Shared>,
    origin: Region,
    outgoing: mpsc::Sender<ToSender>,
    stream: BoxStream<'static, Result<ToReceiver, PeerError>>,
    pending: FuturesOrdered<Pending>,
    /// Raw bytes of the batches that are durable here.
    taken_bytes: u64,
    /// Streams that were asked for again and have not come yet.
    refetching: BTreeSet<StreamKey>,
    probe: Option<(u64, std::time::Duration)>,
    probes: u64,
    unpacker: Unpacker,
    /// What the peer was told that this region means by each keyspace.
    told: Arc<Fingerprints>,
    /// Streams of which something came before this region held their keyspaces.
    left_out: BTreeSet<StreamKey>,
}

impl Session {
    async fn run(
        &mut self,
        commands: &mut mpsc::UnboundedReceiver<LinkCommand>,
    ) -> Result<std::convert::Infallible, PeerError> {
        let silence_max = self.shared.config.silence_max;
        let mut beat = tokio::time::interval(self.shared.config.heartbeat_interval);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_heard = Instant::now();
        let mut catalog = self.shared.catalog.subscribe();
        catalog.mark_changed();
        loop {
            tokio::select! {
                biased;
                Some(step) = self.pending.next(), if !self.pending.is_empty() => {
                    self.carry_on(step.map_err(not_taken)?).await?;
                }
                _ = catalog.changed() => self.tell().await?,
                Some(command) = commands.recv() => match command {
                    LinkCommand::Refetch(stream) => self.refetch(stream).await?,
                    LinkCommand::Ship(keyspace) => self.say(ToSender::Ship { keyspace }).await?,
                },
                message = self.stream.next() => {
                    let closed = || PeerError::Unreachable { reason: "it closed the stream".to_owned() };
                    let message = message.ok_or_else(closed)??;
                    self.hear(message).await?;
                    last_heard = Instant::now();
                }
                _ = beat.tick() => {
                    if last_heard.elapsed() > silence_max {
                        return Err(PeerError::Unreachable { reason: "it has fallen silent".to_owned() });
                    }
                    self.probe();
                }
            }
        }
    }

    async fn hear(&mut self, message: ToReceiver) -> Result<(), PeerError> {
        match message {
            ToReceiver::Hello(_) => Err(PeerError::Corrupt { reason: "it says Hello twice".to_owned() }),
            ToReceiver::Deltas(batch) => self.take(batch).await,
            ToReceiver::NeedsState { keyspace, shard, changes } => {
                self.refetching.remove(&(keyspace, shard));
                let extent = if changes { Extent::Changes } else { Extent::Complete };
                self.shared.want(&self.origin, (keyspace, shard), extent);
                Ok(())
            }
            ToReceiver::Heartbeat { caught_up, .. } => {
                if let Some(slot) = self.shared.peers.get(&self.origin) {
                    slot.link.lock().inbound_caught_up = caught_up;
                }
                Ok(())
            }
            ToReceiver::ProbeAnswer { id, wall_ms, waiting } => {
                self.compare_clocks(id, wall_ms);
                self.pending.push_back(Box::pin(async move { Ok(Step::Fresh { id, waiting }) }));
                Ok(())
            }
        }
    }

    /// Hands a batch to the shard loops, in order. What becomes of it is heard in `carry_on`.
    async fn take(&mut self, batch: DeltaBatch) -> Result<(), PeerError> {
        let corrupt = |reason: String| PeerError::Corrupt { reason };
        let encoded = self.unpacker.unpack(&batch).map_err(|error| corrupt(error.to_string()))?;
        learn(&self.shared, batch.rows)?;
        if let Some(counters) = self.shared.counters.peer(&self.origin) {
            counters.deltas_in.add(encoded.len() as u64);
        }
        let mut answers = Vec::new();
        for (shard, deltas) in self.sort(encoded)? {
            let bytes = deltas.iter().map(delta_bytes).sum();
            let queue = self.shared.queue(shard).ok_or_else(|| corrupt(format!("shard {} does not exist", shard.0)))?;
            let origin = self.origin.clone();
            let job = |answer| Job::Foreign { origin, deltas, answer };
            answers.push((shard, queue.submit(bytes, job).await.map_err(not_taken)?));
        }
        let raw_bytes = u64::from(batch.raw_len);
        self.pending.push_back(Box::pin(async move {
            let mut outcomes = Vec::new();
            for (shard, answer) in answers {
                outcomes.push((shard, answer_of(answer).await?));
            }
            Ok(Step::Taken { raw_bytes, outcomes })
        }));
        Ok(())
    }

    /// Decodes a batch and sorts it by shard. Streams that a state is being taken of are left out.
    fn sort(&mut self, encoded: Vec<Bytes>) -> Result<BTreeMap<ShardId, Vec<Received>>, PeerError> {
        let mut by_shard: BTreeMap<ShardId, Vec<Received>> = BTreeMap::new();
        let mut unreadable: BTreeSet<StreamKey> = BTreeSet::new();
        let tree = self.shared.store.tree();
        let known = self.shared.catalog.known();
        for bytes in encoded {
            let received = match codec::receive(bytes.clone()) {
                Ok(received) => received,
                Err(error) => {
                    unreadable.insert(self.quarantine(bytes, &error.to_string())?);
                    continue;
                }
            };
            let delta = &received.delta;
            let stream = (delta.keyspace, delta.shard);
            if tree.region(delta.dot.incarnation) != Some(&self.origin) {
                return Err(PeerError::Corrupt { reason: format!("delta {} is not of its own stream", delta.dot) });
            }
            if !known.is_for(self.shared.me(), delta.keyspace) {
                // The sender has not heard of a change that this region has. Nothing of it may be stored here.
                self.left_out.insert(stream);
                continue;
            }
            // Behind an unreadable delta its stream has a gap: the state brings the rest as well.
            let streams = || self.shared.store.streams(stream.0, stream.1);
            let waits = self.shared.queue(stream.1).is_some()
                && self.shared.completing.holds_back(&self.origin, stream, streams, tree.shard(stream.1));
            if waits || unreadable.contains(&stream) {
                continue;
            }
            by_shard.entry(delta.shard).or_default().push(received);
        }
        unreadable.into_iter().for_each(|stream| self.shared.want_state(&self.origin, stream));
        Ok(by_shard)
    }

    /// Keeps a delta aside that cannot be read, and says which stream is to be completed by state.
    fn quarantine(&self, bytes: Bytes, error: &str) -> Result<StreamKey, PeerError> {
        let corrupt = || PeerError::Corrupt { reason: format!("a delta cannot be read: {error}") };
        let head = codec::delta_head(bytes.clone()).map_err(|_| corrupt())?;
        let stream = (head.keyspace, head.shard);
        if self.shared.queue(head.shard).is_none() {
            return Err(corrupt());
        }
        self.shared.quarantine(&self.origin, stream, head.dot, bytes, error.to_owned());
        Ok(stream)
    }

    async fn carry_on(&mut self, step: Step) -> Result<(), PeerError> {
        match step {
            Step::Taken { raw_bytes, outcomes } => {
                let cursors = self.judge(&outcomes).await?;
                self.taken_bytes += raw_bytes;
                self.say(ToSender::Ack { cursors, bytes: self.taken_bytes }).await
            }
            Step::Fresh { id, waiting } => {
                if let Some((asked, at)) = self.probe
                    && asked == id
                {
                    self.probe = None;
                    // What stands still is not fresh, though all has come.
                    if self.shared.quarantined(&self.origin).is_empty()
                        && !self.shared.completing.has_left_out(&self.origin)
                        && let Some(slot) = self.shared.peers.get(&self.origin)
                    {
                        slot.link.lock().note_answer(at, &waiting);
                    }
                }
                Ok(())
            }
        }
    }

    /// Asks again for what is missing; returns what may be acknowledged.
    async fn judge(
        &mut self,
        outcomes: &[(ShardId, Absorption)],
    ) -> Result<Vec<(KeyspaceId, ShardId, Vector)>, PeerError> {
        let mut cursors = Vec::new();
        for (shard, outcome) in outcomes {
            for keyspace in &outcome.unknown {
                self.shared.want_state(&self.origin, (*keyspace, *shard));
            }
            for keyspace in &outcome.touched {
                if !outcome.gaps.contains(keyspace) {
                    self.refetching.remove(&(*keyspace, *shard));
                }
                let cursor = self.shared.store.durable_streams(*keyspace, *shard).cursor(&self.origin);
                cursors.push((*keyspace, *shard, cursor));
            }
            for keyspace in &outcome.gaps {
                let stream = (*keyspace, *shard);
                // While it is asked for, what else is on its way of this stream has the same gap.
                if !self.refetching.contains(&stream) && !outcome.unknown.contains(keyspace) {
                    self.refetch(stream).await?;
                }
            }
        }
        Ok(cursors)
    }

    /// Tells the peer what this region means by each keyspace by now, and asks again for what it left out and holds by now.
    async fn tell(&mut self) -> Result<(), PeerError> {
        let known = self.shared.catalog.known();
        if *known.fingerprints() != self.told {
            self.told = known.fingerprints().clone();
            self.say(ToSender::Keyspaces(self.told.clone())).await?;
        }
        self.left_out.retain(|stream| !known.is_gone_from(self.shared.me(), stream.0));
        self.refetching.retain(|stream| !known.is_gone_from(self.shared.me(), stream.0));
        let held = |stream: &StreamKey| known.is_for(self.shared.me(), stream.0);
        let wanted: Vec<StreamKey> = self.left_out.iter().copied().filter(held).collect();
        for stream in wanted {
            self.left_out.remove(&stream);
            self.refetch(stream).await?;
        }
        Ok(())
    }

    async fn refetch(&mut self, stream: StreamKey) -> Result<(), PeerError> {
        // What is not shipped as it is written does not come by this: it only says how far this region has come.
        if self.shared.catalog.known().ship_interval(stream.0).is_none() {
            self.refetching.insert(stream);
        }
        let after = self.shared.store.durable_streams(stream.0, stream.1).cursor(&self.origin);
        self.say(ToSender::Refetch { keyspace: stream.0, shard: stream.1, after }).await
    }

    /// The peer read its clock after the probe was sent: by what this clock then said it is at least so far behind, however
    /// long the answer was on its way.
    fn compare_clocks(&self, id: u64, wall_ms: u64) {
        let Some((asked, at)) = self.probe else { return };
        if asked != id || wall_ms == 0 {
            return;
        }
        let since = self.shared.now().saturating_sub(at).as_millis();
        let then = i128::from(self.shared.clock.wall_ms()) - i128::try_from(since).unwrap_or(i128::MAX);
        let ahead = (then - i128::from(wall_ms)).clamp(i64::MIN.into(), i64::MAX.into());
        if let Some(slot) = self.shared.peers.get(&self.origin) {
            slot.link.lock().clock_ahead_ms = i64::try_from(ahead).ok();
        }
        self.shared.judge_clock();
    }

    fn probe(&mut self) {
        // A probe that is not answered yet stands for this beat too, but the sender has to hear that somebody listens.
        let id = self.probe.map_or_else(
            || {
                self.probes += 1;
                self.probe = Some((self.probes, self.shared.now()));
                self.probes
            },
            |(id, _)| id,
        );
        // A full channel says that the sender has enough to hear.
        let _ = self.outgoing.try_send(ToSender::Probe { id });
    }

    async fn say(&mut self, word: ToSender) -> Result<(), PeerError> {
        let lost = |_| PeerError::Unreachable { reason: "it does not listen any more".to_owned() };
        match timeout(self.shared.config.silence_max, self.outgoing.send(word)).await {
            Ok(sent) => sent.map_err(|_| PeerError::Unreachable { reason: "it closed the stream".to_owned() }),
            Err(late) => Err(lost(late)),
        }
    }
}

fn not_taken(error: NodeError) -> PeerError {
    PeerError::NotReady { reason: format!("this node cannot take it: {error}") }
}
