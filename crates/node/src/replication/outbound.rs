//! The sending side of a subscription: this region's own streams, tailed from the log, to one peer.
//!
//! The law it keeps: a stream is shipped without a hole. The first delta of a stream that goes out names a predecessor that the
//! peer has, or the peer is told to take a state; nothing of that stream goes out until it says from where to go on.
//! What is sent and not confirmed is bounded, so a slow peer costs this node nothing but log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use isle_model::{Dot, Incarnation, IncarnationTree, KeyspaceId, Region, Row, ShardId, Streams, Vector, planted};
use isle_store::{LogItem, LogPosition, TailError};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::catalog::Known;
use crate::egress::{Gate, Verdict};
use crate::egress_meter::{Cause, PeerEgress};
use crate::peer::{Absorbed, Hello, PeerError, ToReceiver, ToSender};
use crate::peers::PeerSlot;
use crate::replication::batch_codec::{BatchBuilder, Packer, wire_bytes};
use crate::shared::{Confirmed, Shared, StreamKey};
use crate::shipping;

/// About how much goes into one batch, raw.
const BATCH_BYTES: usize = 256 << 10;
/// With this much waiting, a batch goes out though an earlier one is unconfirmed.
const BACKLOG_BYTES: u64 = 32 << 10;
/// Otherwise small batches wait for the confirmation of the one before, but no longer than this: on a busy link
/// deltas travel, and compress, together; on an idle one nothing waits. (Nagle, RFC 896.)
const GATHER_MAX: Duration = Duration::from_millis(4);

pub(crate) type Outgoing = mpsc::Sender<Result<ToReceiver, PeerError>>;

pub(crate) struct Outbound {
    shared: Arc<Shared>,
    peer: Region,
    /// What the peer has, or has been sent.
    sent: BTreeMap<StreamKey, Vector>,
    /// Streams that wait for the peer to take a state.
    waiting: BTreeSet<StreamKey>,
    /// Where the first of them began to wait: the peer's state will reach at least here.
    hold: Option<LogPosition>,
    /// Keyspaces that wait for the two to mean the same by them, and where in the log what is for the peer begins.
    held_back: BTreeMap<KeyspaceId, LogPosition>,
    /// Streams that the peer has to take as a state whatever the log holds.
    overdue: BTreeSet<StreamKey>,
    /// Streams that are not shipped as they are written, and of which the peer is to take what has changed.
    changed: BTreeSet<StreamKey>,
    /// Those that it was told of.
    shipping: BTreeSet<StreamKey>,
    scanned: LogPosition,
    /// Whether it was checked, at the end of the log, that nothing is missing that the log does not hold.
    verified: bool,
    known_rows: BTreeSet<Incarnation>,
    in_flight: VecDeque<InFlight>,
    /// Streams of which the peer has taken a batch and not all that was in it: it could not apply some, and asks again or
    /// takes a state. Up to where it is known to have them.
    short: BTreeMap<StreamKey, (LogPosition, Dot)>,
    sent_bytes: u64,
    acked_bytes: u64,
    acked: BTreeMap<StreamKey, Vector>,
    last_sent: Option<Instant>,
    probes: VecDeque<(u64, LogPosition)>,
    packer: Packer,
    egress: Arc<PeerEgress>,
}

/// A batch that is sent and not confirmed.
struct InFlight {
    /// The log between these positions is in it.
    from: LogPosition,
    upto: LogPosition,
    /// The sum of raw bytes of this subscription, with it.
    sum: u64,
    /// The last of each stream in it.
    last: BTreeMap<StreamKey, Dot>,
}

impl Outbound {
    pub(crate) fn new(shared: Arc<Shared>, hello: &Hello) -> Self {
        let peer = hello.region.clone();
        let sent: BTreeMap<StreamKey, Vector> =
            hello.cursors.iter().map(|(keyspace, shard, vector)| ((*keyspace, *shard), vector.clone())).collect();
        let scanned = start(&shared, &peer, &sent);
        let overdue = if shared.standing.lock().is_expired(&peer) {
            shared.stream_keys().into_iter().collect()
        } else {
            BTreeSet::new()
        };
        restate_what_was_missed(&shared, hello);
        Outbound {
            known_rows: hello.rows.iter().map(|(incarnation, _)| *incarnation).collect(),
            acked: sent.clone(),
            sent,
            waiting: BTreeSet::new(),
            hold: None,
            held_back: BTreeMap::new(),
            overdue,
            changed: BTreeSet::new(),
            shipping: BTreeSet::new(),
            scanned,
            verified: false,
            in_flight: VecDeque::new(),
            short: BTreeMap::new(),
            sent_bytes: 0,
            acked_bytes: 0,
            last_sent: None,
            probes: VecDeque::new(),
            packer: Packer::new(),
            egress: shared.peers.egress.to(&peer),
            shared,
            peer,
        }
    }

    pub(crate) async fn run(
        mut self,
        outgoing: Outgoing,
        mut incoming: BoxStream<'static, Result<ToSender, PeerError>>,
        mut stop: watch::Receiver<bool>,
        mut subscription: watch::Receiver<u64>,
    ) {
        let generation = *subscription.borrow_and_update();
        self.set_up(true);
        // It may have less than it once confirmed: its disk was restored.
        self.note_confirmed(None);
        let mut durable = self.shared.durability.subscribe();
        let mut catalog = self.shared.catalog.subscribe();
        // What was learned since the peer greeted counts as well.
        catalog.mark_changed();
        let mut due = self.shared.shipping.subscribe();
        due.mark_changed();
        let mut heartbeat = tokio::time::interval(self.shared.config.heartbeat_interval);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_heard = Instant::now();
        loop {
            let wakes_at = self.sends_at();
            let told = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                _ = subscription.wait_for(|now| *now != generation) => break,
                message = incoming.next() => match message {
                    Some(Ok(message)) => {
                        last_heard = Instant::now();
                        self.hear(message);
                        Ok(())
                    }
                    Some(Err(error)) => Err(error),
                    None => break,
                },
                permit = outgoing.reserve(), if self.has_word() || wakes_at.is_some_and(|at| at <= Instant::now()) => {
                    let Ok(permit) = permit else { break };
                    self.say(permit)
                }
                _ = catalog.changed() => {
                    self.forget_gone();
                    self.let_go();
                    // What the log does not hold of a keyspace that is new to the peer shows only when its end is looked at again.
                    self.verified = false;
                    Ok(())
                }
                _ = due.changed() => {
                    self.take_up_shipments();
                    Ok(())
                }
                () = sleep_until(wakes_at), if wakes_at.is_some_and(|at| at > Instant::now()) => Ok(()),
                _ = durable.changed(), if wakes_at.is_none() => Ok(()),
                _ = heartbeat.tick() => {
                    self.let_go();
                    self.take_up_offers();
                    self.take_up_shipments();
                    self.beat(&outgoing);
                    if last_heard.elapsed() > self.shared.config.silence_max {
                        Err(PeerError::Unreachable { reason: "it has fallen silent".to_owned() })
                    } else {
                        Ok(())
                    }
                }
            };
            if let Err(error) = told {
                tracing::info!(peer = %self.peer, %error, "a subscription of the peer ends");
                // Best effort: the receiver learns why, or finds the stream closed.
                let _ = outgoing.try_send(Err(error));
                break;
            }
        }
        if *subscription.borrow() == generation {
            self.set_up(false);
        }
    }

    fn set_up(&self, up: bool) {
        let Some(slot) = self.shared.peers.get(&self.peer) else { return };
        let mut link = slot.link.lock();
        link.set_outbound(up, self.shared.now());
        link.needs_state = !self.waiting.is_empty();
    }

    fn hear(&mut self, message: ToSender) {
        match message {
            ToSender::Ack { cursors, bytes } => self.confirm(cursors, bytes),
            ToSender::Probe { id } => {
                // One answer is all that a receiver waits for.
                if self.probes.len() < 16 {
                    self.probes.push_back((id, self.shared.store.durable()));
                }
            }
            ToSender::Refetch { keyspace, shard, after } => self.go_back((keyspace, shard), after),
            ToSender::Keyspaces(said) => {
                if let Some(slot) = self.shared.peers.get(&self.peer) {
                    *slot.said.lock() = said;
                }
                self.let_go();
                self.verified = false;
            }
            ToSender::Ship { keyspace } => {
                if self.shared.catalog.known().is_for(&self.peer, keyspace) {
                    self.shared.shipping.hasten(&self.shared, keyspace, std::iter::once(&self.peer));
                }
            }
        }
    }

    fn confirm(&mut self, cursors: Vec<(KeyspaceId, ShardId, Vector)>, bytes: u64) {
        let tree = self.shared.store.tree();
        // Of a stream that is not there nothing is remembered.
        for (keyspace, shard, vector) in cursors {
            if !self.ships((keyspace, shard)) {
                continue;
            }
            self.acked.entry((keyspace, shard)).or_default().join(&vector, tree.shard(shard));
        }
        self.acked_bytes = self.acked_bytes.max(bytes.min(self.sent_bytes));
        let mut position = None;
        // The cursors count too: a batch that was lost on its way, and fetched again, is missing in the peer's sum for good.
        while self.in_flight.front().is_some_and(|batch| self.is_confirmed(batch, &tree))
            && let Some(batch) = self.in_flight.pop_front()
        {
            self.acked_bytes = self.acked_bytes.max(batch.sum);
            position = Some(batch.upto);
            for (stream, dot) in batch.last {
                self.short.entry(stream).or_insert((batch.from, dot)).1 = dot;
            }
        }
        let acked = &self.acked;
        self.short.retain(|stream, (_, dot)| acked.get(stream).is_none_or(|v| !v.covers(*dot, tree.shard(stream.1))));
        self.note_confirmed(position);
    }

    fn is_confirmed(&self, batch: &InFlight, tree: &IncarnationTree) -> bool {
        let has = |(stream, dot): (&StreamKey, &Dot)| {
            self.acked.get(stream).is_some_and(|vector| vector.covers(*dot, tree.shard(stream.1)))
        };
        batch.sum <= self.acked_bytes || batch.last.iter().all(has)
    }

    /// Moves the position that the log need not keep for this peer.
    fn note_confirmed(&self, position: Option<LogPosition>) {
        let position = if self.in_flight.is_empty() { Some(self.scanned) } else { position };
        let slot = self.shared.peers.get(&self.peer);
        let short = self.short.values().map(|(from, _)| *from);
        let held = self.hold.into_iter().chain(short).chain(self.held_back.values().copied());
        let Some(slot) = slot else { return };
        let mut link = slot.link.lock();
        match (position, &mut link.confirmed) {
            (Some(position), confirmed) => {
                let position = held.fold(position, LogPosition::min);
                *confirmed = Some(Confirmed { position, cursors: self.acked.clone() });
            }
            // Whoever waits for a write to be confirmed asks the cursors.
            (None, Some(confirmed)) => confirmed.cursors.clone_from(&self.acked),
            (None, None) => {}
        }
        drop(link);
        self.shared.confirmations.send_replace(());
    }

    /// Whether the stream is there, and for this peer.
    fn ships(&self, stream: StreamKey) -> bool {
        // While the two do not agree on the keyspace nothing of it leaves, and what the peer says of it still counts.
        self.shared.queue(stream.1).is_some() && self.shared.catalog.known().is_for(&self.peer, stream.0)
    }

    fn gate(&self) -> Gate {
        Gate::to(&self.shared, &self.peer)
    }

    /// Goes back for what was held back and may leave by now.
    fn let_go(&mut self) {
        if self.held_back.is_empty() {
            return;
        }
        let gate = self.gate();
        let (mut from, before) = (self.scanned, self.scanned);
        self.held_back.retain(|keyspace, position| match gate.judge(*keyspace) {
            Verdict::Wait => true,
            Verdict::Never => false,
            Verdict::Pass => {
                from = from.min(*position);
                false
            }
        });
        if from < before {
            self.verified = false;
            self.scanned = from.max(self.shared.store.oldest());
            self.in_flight.clear();
        }
    }

    /// The peer confirms nothing of keyspaces that are gone or are not for it any more, and takes no states of them: nothing waits for
    /// it to.
    fn forget_gone(&mut self) {
        let known = self.shared.catalog.known();
        let is_there = |stream: &StreamKey| known.is_for(&self.peer, stream.0);
        let waited = self.waiting.len() + self.overdue.len();
        self.sent.retain(|stream, _| is_there(stream));
        self.acked.retain(|stream, _| is_there(stream));
        self.short.retain(|stream, _| is_there(stream));
        self.held_back.retain(|keyspace, _| known.is_for(&self.peer, *keyspace));
        self.waiting.retain(is_there);
        self.overdue.retain(is_there);
        // What is missing of one that is shipped as it is written by now shows when the end of the log is looked at.
        let at_intervals = |stream: &StreamKey| is_there(stream) && known.ship_interval(stream.0).is_some();
        self.changed.retain(at_intervals);
        self.shipping.retain(at_intervals);
        self.in_flight.iter_mut().for_each(|batch| batch.last.retain(|stream, _| is_there(stream)));
        if self.waiting.len() + self.overdue.len() < waited {
            self.stop_holding();
        }
        self.note_confirmed(None);
    }

    fn go_back(&mut self, stream: StreamKey, after: Vector) {
        if !self.ships(stream) {
            return;
        }
        if let Some(counters) = self.shared.counters.peer(&self.peer) {
            counters.refetches.add(1);
        }
        self.acked.entry(stream).or_default().join(&after, self.shared.store.tree().shard(stream.1));
        self.sent.insert(stream, after);
        self.short.remove(&stream);
        self.overdue.remove(&stream);
        let at_intervals = self.shared.catalog.known().ship_interval(stream.0).is_some();
        if self.shipping.remove(&stream) && at_intervals && !self.waiting.contains(&stream) {
            // It has heard with the changes what a statement would say. Of its stream the log brings nothing.
            self.note_confirmed(None);
            self.take_up_shipments();
            return;
        }
        // Of a statement that the state took it past it has heard nothing, and waits with its tombstones for one.
        self.shared.restate.lock().insert(stream);
        // A state reaches at least to where its stream began to wait; anything else is sought in the whole log.
        let from = match self.waiting.remove(&stream) {
            true => {
                self.shared.offers.lock().remove(&(self.peer.clone(), stream));
                self.hold.unwrap_or(self.shared.store.oldest())
            }
            false => self.shared.store.oldest(),
        };
        self.scanned = self.scanned.min(from);
        self.in_flight.clear();
        self.verified = false;
        self.stop_holding();
        // A state may have brought the peer all there is of the stream, so that it never confirms any more of it.
        self.note_confirmed(None);
    }

    /// Once no stream waits for a state any more.
    fn stop_holding(&mut self) {
        if self.waiting.is_empty() {
            self.hold = None;
            if self.overdue.is_empty() && self.shared.welcome_back(&self.peer) {
                tracing::info!(peer = %self.peer, "a holder long away is back");
            }
        }
        self.set_up(true);
    }

    /// When the next batch may go out; `None` where there is nothing to send, or no window for it.
    fn sends_at(&self) -> Option<Instant> {
        let store = &self.shared.store;
        let durable = store.durable();
        let window = self.sent_bytes - self.acked_bytes < self.shared.config.unacked_bytes_max;
        if self.scanned >= durable || !window {
            return None;
        }
        let now = Instant::now();
        let hurry = self.in_flight.is_empty() || store.log_bytes_between(self.scanned, durable) >= BACKLOG_BYTES;
        Some(if hurry { now } else { self.last_sent.map_or(now, |at| at + GATHER_MAX) })
    }

    /// Whether there is something to say besides deltas.
    fn has_word(&self) -> bool {
        let probe = self.answers_probe();
        let unverified = !self.verified && self.scanned >= self.shared.store.durable();
        probe || unverified || !self.overdue.is_empty() || !self.changed.is_empty()
    }

    /// Whether everything has been sent that was there when the oldest probe came, but for streams that the answer names: what is held
    /// back has not, and whether the log has all of it is to be known first.
    fn answers_probe(&self) -> bool {
        self.held_back.is_empty()
            && self.verified
            && self.probes.front().is_some_and(|(_, position)| *position <= self.scanned)
    }

    fn say(&mut self, permit: mpsc::Permit<'_, Result<ToReceiver, PeerError>>) -> Result<(), PeerError> {
        if let Some(stream) = self.overdue.pop_first() {
            permit.send(Ok(self.needs_state(stream, false)));
            return Ok(());
        }
        if let Some(stream) = self.changed.pop_first() {
            permit.send(Ok(self.has_changed(stream)));
            return Ok(());
        }
        if self.answers_probe()
            && let Some((id, _)) = self.probes.pop_front()
        {
            let waiting = self.not_sent();
            permit.send(Ok(ToReceiver::ProbeAnswer { id, wall_ms: self.shared.clock.wall_ms(), waiting }));
            return Ok(());
        }
        if !self.verified {
            // Only what was durable before the log's end was read counts: the rest is on its way.
            let streams = self.shared.store.all_streams();
            if self.scanned >= self.shared.store.durable() {
                match self.missing_beyond_log(&streams) {
                    Some(stream) => permit.send(Ok(self.lacks_log(stream))),
                    None => self.verified = true,
                }
                return Ok(());
            }
        }
        if let Some(message) = self.next_batch()? {
            permit.send(Ok(message));
        }
        Ok(())
    }

    /// Streams of which the peer lacks something that is not on its way.
    fn not_sent(&self) -> Vec<StreamKey> {
        let slot = self.shared.peers.get(&self.peer);
        let lacked = slot.map(|slot| shipping::lacked_by(&self.shared, &self.peer, &slot)).unwrap_or_default();
        let told = self.waiting.iter().chain(&self.overdue).chain(&self.changed).chain(&self.shipping);
        let all: BTreeSet<StreamKey> = told.copied().chain(lacked).collect();
        all.into_iter().collect()
    }

    /// The peer is told to take what has changed of a stream since its cursor.
    fn has_changed(&mut self, stream: StreamKey) -> ToReceiver {
        self.shipping.insert(stream);
        self.shared.shipping.note_told(&self.peer, stream, self.shared.now());
        ToReceiver::NeedsState { keyspace: stream.0, shard: stream.1, changes: true }
    }

    /// What the log does not hold any more is among what has changed, unless the peer is not waited for when tombstones go.
    fn lacks_log(&mut self, stream: StreamKey) -> ToReceiver {
        let changes = !self.shared.standing.lock().is_expired(&self.peer);
        self.needs_state(stream, changes)
    }

    fn needs_state(&mut self, (keyspace, shard): StreamKey, changes: bool) -> ToReceiver {
        tracing::info!(peer = %self.peer, keyspace = keyspace.0, shard = shard.0, "the log does not reach back to the peer");
        self.waiting.insert((keyspace, shard));
        let now = self.shared.store.durable();
        self.hold = Some(self.hold.map_or(now, |hold| hold.min(now)));
        self.set_up(true);
        ToReceiver::NeedsState { keyspace, shard, changes }
    }

    /// A stream whose last delta the peer does not have, though the whole log has been read.
    fn missing_beyond_log(&self, streams: &[(StreamKey, Arc<Streams>)]) -> Option<StreamKey> {
        let tree = self.shared.store.tree();
        let nothing = Vector::new();
        let (gate, known) = (self.gate(), self.shared.catalog.known());
        let lacks = |(stream, streams): &&(StreamKey, Arc<Streams>)| {
            let have = self.sent.get(stream).unwrap_or(&nothing);
            let lacking = streams.last_own().is_some_and(|dot| !have.covers(dot, tree.shard(stream.1)));
            let is_shipped_later = known.ship_interval(stream.0).is_some();
            lacking && !is_shipped_later && !self.waiting.contains(stream) && gate.passes(stream.0)
        };
        streams.iter().find(lacks).map(|(stream, _)| *stream)
    }

    fn next_batch(&mut self) -> Result<Option<ToReceiver>, PeerError> {
        // Before the gate is asked: what it lets pass must not go ahead of what it held back.
        self.let_go();
        let durable = self.shared.store.durable();
        let tail = match self.shared.store.tail(self.scanned, BATCH_BYTES) {
            Ok(tail) => tail,
            Err(TailError::Trimmed { oldest }) => {
                self.scanned = oldest;
                return Ok(None);
            }
            Err(error) => return Err(PeerError::NotReady { reason: error.to_string() }),
        };
        let mut builder = BatchBuilder::default();
        let (from, mut read_to) = (self.scanned, self.scanned);
        let mut last = BTreeMap::new();
        let mut raw: BTreeMap<KeyspaceId, u64> = BTreeMap::new();
        let mut broken = None;
        let (tree, gate, known) = (self.shared.store.tree(), self.gate(), self.shared.catalog.known());
        for item in &tail.items {
            match self.offer(item, &tree, &gate, &known) {
                Offer::Ship => {
                    builder.push(&item.encoded);
                    *raw.entry(item.head.keyspace).or_default() += item.encoded.len() as u64;
                    last.insert((item.head.keyspace, item.head.shard), item.head.dot);
                }
                Offer::Skip => {}
                // What precedes goes out first; this item is then met again.
                Offer::Broken(stream) => {
                    broken = Some(stream);
                    break;
                }
            }
            read_to = item.end;
        }
        self.scanned = match broken {
            Some(_) => read_to,
            // What is left up to the durable mark are notes of the log itself.
            None if tail.upto <= self.scanned => self.scanned.max(durable),
            None => tail.upto,
        };
        match broken {
            Some(stream) if builder.count() == 0 => Ok(Some(self.lacks_log(stream))),
            _ => self.ship(builder, from, last, &raw),
        }
    }

    fn ship(
        &mut self,
        builder: BatchBuilder,
        from: LogPosition,
        last: BTreeMap<StreamKey, Dot>,
        raw_of: &BTreeMap<KeyspaceId, u64>,
    ) -> Result<Option<ToReceiver>, PeerError> {
        if builder.count() == 0 {
            self.note_confirmed(None);
            return Ok(None);
        }
        let (raw, count) = (builder.bytes() as u64, builder.count());
        let rows = self.unknown_rows();
        let batch = builder
            .finish_in(&mut self.packer, rows)
            .map_err(|error| PeerError::Corrupt { reason: error.to_string() })?;
        self.sent_bytes += raw;
        self.in_flight.push_back(InFlight { from, upto: self.scanned, sum: self.sent_bytes, last });
        self.last_sent = Some(Instant::now());
        self.egress.note_parts(raw_of, Cause::Delta, wire_bytes(&batch));
        if let Some(counters) = self.shared.counters.peer(&self.peer) {
            counters.deltas_out.add(u64::from(count));
        }
        Ok(Some(ToReceiver::Deltas(batch)))
    }

    /// Rows that the peer may not know: they go ahead of what uses them.
    fn unknown_rows(&mut self) -> Vec<(Incarnation, Row)> {
        let tree = self.shared.store.tree();
        if tree.len() == self.known_rows.len() {
            return Vec::new();
        }
        let new: Vec<(Incarnation, Row)> = tree
            .rows()
            .filter(|(incarnation, _)| !self.known_rows.contains(incarnation))
            .map(|(incarnation, row)| (incarnation, row.clone()))
            .collect();
        self.known_rows.extend(new.iter().map(|(incarnation, _)| *incarnation));
        new
    }

    /// Offers stand until the peer goes on from a state, over broken links too.
    fn take_up_offers(&mut self) {
        let offers = self.shared.offers.lock();
        let mine = offers.iter().filter(|(region, _)| *region == self.peer).map(|(_, stream)| *stream);
        let gate = self.gate();
        self.overdue.extend(mine.filter(|stream| !self.waiting.contains(stream) && gate.passes(stream.0)));
    }

    /// What is due stays so until the peer has it.
    fn take_up_shipments(&mut self) {
        let (gate, known) = (self.gate(), self.shared.catalog.known());
        let due = self.shared.shipping.due_to(&self.peer).into_iter();
        let may_go = |stream: &StreamKey| known.ship_interval(stream.0).is_some() && gate.passes(stream.0);
        self.changed.extend(due.filter(|stream| !self.shipping.contains(stream) && may_go(stream)));
    }

    fn beat(&self, outgoing: &Outgoing) {
        let lag_bytes = self.shared.peers.get(&self.peer).map_or(0, |slot| lag_of(&self.shared, &self.peer, &slot).0);
        let caught_up = self.scanned >= self.shared.store.durable() && self.waiting.is_empty();
        // A receiver that takes nothing at the moment will hear the next one.
        let _ = outgoing.try_send(Ok(ToReceiver::Heartbeat { lag_bytes, caught_up }));
    }
}

/// What to do with one delta of the log.
enum Offer {
    Ship,
    Skip,
    Broken(StreamKey),
}

impl Outbound {
    fn offer(&mut self, item: &LogItem, tree: &IncarnationTree, gate: &Gate, known: &Known) -> Offer {
        let head = &item.head;
        let stream = (head.keyspace, head.shard);
        if !item.own || self.waiting.contains(&stream) || known.ship_interval(head.keyspace).is_some() {
            return Offer::Skip;
        }
        let lineage = tree.shard(head.shard);
        let verdict = gate.judge(head.keyspace);
        if verdict != Verdict::Pass {
            let is_new = self.sent.get(&stream).is_none_or(|sent| !sent.covers(head.dot, lineage));
            if verdict == Verdict::Wait && is_new {
                self.held_back.entry(head.keyspace).or_insert(self.scanned);
            }
            return Offer::Skip;
        }
        let sent = self.sent.entry(stream).or_default();
        if sent.covers(head.dot, lineage) {
            return Offer::Skip;
        }
        let is_gap = head.prev.is_some_and(|prev| !sent.covers(prev, lineage));
        if is_gap && !planted::is(planted::Bug::SkipGap) {
            return Offer::Broken(stream);
        }
        sent.add(head.dot, lineage);
        Offer::Ship
    }
}

/// A peer that has not heard this region's last statement may have been taken past it by a state.
fn restate_what_was_missed(shared: &Shared, hello: &Hello) {
    let heard = |stream: StreamKey| {
        let of_stream = |(keyspace, shard, _): &&Absorbed| (*keyspace, *shard) == stream;
        hello.stated.iter().find(of_stream).map(|(_, _, stated)| stated.iter().cloned().collect::<BTreeMap<_, _>>())
    };
    for (stream, streams) in shared.store.all_streams() {
        if let Some(said) = streams.stated_by(shared.me())
            && heard(stream).as_ref() != Some(said)
        {
            shared.restate.lock().insert(stream);
        }
    }
}

/// How far a peer is behind: in bytes of log, and by the age of the oldest it has not confirmed. Zero exactly if it has every
/// delta of this region's own: what else the log holds, notes and others' deltas, is not for it.
pub(crate) fn lag_of(shared: &Shared, peer: &Region, slot: &PeerSlot) -> (u64, Duration) {
    let store = &shared.store;
    let (durable, tree) = (store.durable(), store.tree());
    let confirmed = {
        let link = slot.link.lock();
        let has = |(stream, dot): (StreamKey, Dot)| {
            let cursors = link.confirmed.as_ref().map(|confirmed| &confirmed.cursors);
            cursors.and_then(|cursors| cursors.get(&stream)).is_some_and(|v| v.covers(dot, tree.shard(stream.1)))
        };
        let streams = store.all_streams();
        let known = shared.catalog.known();
        let is_streamed = |id| known.is_for(peer, id) && known.ship_interval(id).is_none();
        let shipped = streams.iter().filter(|(stream, _)| is_streamed(stream.0));
        if shipped.filter_map(|(stream, streams)| Some((*stream, streams.last_own()?))).all(has) {
            return (0, Duration::ZERO);
        }
        link.confirmed.as_ref().map_or(store.oldest(), |confirmed| confirmed.position)
    };
    (store.log_bytes_between(confirmed, durable), shared.ages.lock().lag(confirmed, durable, shared.now()))
}

/// From where to read the log for a peer with these cursors.
fn start(shared: &Shared, peer: &Region, cursors: &BTreeMap<StreamKey, Vector>) -> LogPosition {
    let oldest = shared.store.oldest();
    let Some(slot) = shared.peers.get(peer) else { return oldest };
    let link = slot.link.lock();
    let Some(confirmed) = &link.confirmed else { return oldest };
    let (tree, known) = (shared.store.tree(), shared.catalog.known());
    let nothing = Vector::new();
    let still_has = confirmed
        .cursors
        .iter()
        .filter(|(stream, _)| known.is_for(peer, stream.0))
        .all(|(stream, acked)| cursors.get(stream).unwrap_or(&nothing).covers_all(acked, tree.shard(stream.1)));
    // A peer whose disk was restored has less than it confirmed: for it the log is read from its beginning.
    if still_has { confirmed.position.max(oldest) } else { oldest }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
