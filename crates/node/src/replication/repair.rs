//! Makes whole what streams alone cannot: takes states where a log does not reach back, completes this region when its disk
//! was found behind, fetches from survivors what a lost region had sent to them and not to here, and offers its own state
//! where that holds what no stream will bring.
//!
//! The law it keeps: the vector of a transfer's *first* chunk is what the cursors move to, and only after its last; what the
//! sender streams of that shard meanwhile is not applied, and asked for again afterwards. A transfer of changes moves the cursor of
//! its sender's own stream alone, and is not for a region that is behind: what went while it lacked it is among no changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isle_model::{Dot, IncarnationTree, KeyspaceId, Region, Stated, Vector, planted};
use isle_store::{Begun, Received, codec};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::peer::{FetchRequest, Peer, PeerError, StateReply, StateRequest};
use crate::replication::batch_codec;
use crate::replication::handshake::learn;
use crate::shard_queue::{ChunkTaken, Job, answer_of, chunk_bytes, delta_bytes};
use crate::shared::{Extent, LinkCommand, Shared, StreamKey};
use crate::{NodeError, holdings, replication::link::Link};

const FETCH_BYTES: u32 = 1 << 20;
/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(10);
/// How often the work is looked for when nobody asks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a chunk that was outdated on arrival is asked for again before something else is tried.
const STALE_MAX: u32 = 16;
/// A loss is believed after so many times the wait before survivors are asked: what they can give comes first.
const OFFER_PATIENCE: u32 = 4;
/// When for so long every region has answered, what none of them has is lost.
const IN_VAIN_MAX: Duration = Duration::from_secs(10);
/// How long a region that joins gives the streams to bring what one complete state has not, before it takes another.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a transfer whose sender does not answer holds the streams back that it would move. After that it begins anew.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What of a stream is missing here.
#[derive(Debug, Default)]
struct Missing {
    /// Who has stated to have it.
    holders: Vec<Region>,
    /// Whether its region has it to send, once it is reached.
    is_on_its_way: bool,
}

#[derive(Debug, thiserror::Error)]
enum RepairError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("{0}")]
    Corrupt(String),
}

pub(crate) struct Repair {
    shared: Arc<Shared>,
    /// How far transfers have come. They go on after a broken link, and after a restart.
    transfers: BTreeMap<(Region, StreamKey), Begun>,
    /// Since when their senders have not answered.
    paused_since: BTreeMap<(Region, StreamKey), Duration>,
    /// Since when what a survivor has of a stream is missing here.
    missing_since: BTreeMap<(Region, StreamKey), Duration>,
    completions: BTreeMap<StreamKey, Completion>,
    shown: BTreeMap<StreamKey, Shown>,
}

/// What merged states showed that no cursor covers, and that no stream brings as far as can be told.
#[derive(Debug)]
struct Shown {
    dots: Vector,
    since: Duration,
    offered: bool,
}

/// How far this region's own completion has come, in one keyspace and shard.
#[derive(Debug, Default)]
struct Completion {
    /// Whose complete state has been taken.
    from: BTreeSet<Region>,
    /// When the last of them was.
    taken_at: Duration,
    /// Since when everybody answers and nobody has what is missing.
    in_vain_since: Option<Duration>,
}

impl Repair {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let mut transfers = BTreeMap::new();
        for (stream, left) in shared.store.transfers() {
            // What the last run left unfinished is finished.
            for (from, begun) in left.open.into_iter().filter(|(from, _)| shared.peers.contains(from)) {
                let extent = if begun.heard.is_some() { Extent::Changes } else { Extent::Complete };
                shared.want(&from, stream, extent);
                if !begun.next.is_empty() {
                    shared.completing.pin(&from, stream, begun.pin.clone());
                    transfers.insert((from, stream), begun);
                }
            }
        }
        Repair {
            shared,
            transfers,
            paused_since: BTreeMap::new(),
            missing_since: BTreeMap::new(),
            completions: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let shared = self.shared.clone();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.round() => {}
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = shared.repair.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn round(&mut self) {
        self.forget_gone();
        self.take_wanted().await;
        self.complete_self().await;
        self.give_up_paused();
        self.fetch_lost().await;
        self.offer_what_is_lost();
    }

    /// Offers complete states to the others where a transfer has shown what its origin will not send any more: it is in no log,
    /// and only by this region's state can they get it. Once offered and taken, they hold it as this region does.
    fn offer_what_is_lost(&mut self) {
        let (now, patience) = (self.shared.now(), OFFER_PATIENCE * self.shared.config.repair_after);
        let lost = self.lost();
        self.shown.retain(|stream, _| lost.contains_key(stream));
        for (stream, dots) in lost {
            let fresh = || Shown { dots: dots.clone(), since: now, offered: false };
            let shown = self.shown.entry(stream).or_insert_with(fresh);
            if shown.dots != dots {
                *shown = fresh();
            }
            if !shown.offered && now.saturating_sub(shown.since) >= patience {
                let (keyspace, shard) = (stream.0.0, stream.1.0);
                tracing::warn!(
                    keyspace,
                    shard,
                    "a lost region's writes are here by state alone: the others are offered it"
                );
                self.shared.offers.lock().extend(self.shared.peers.all().keys().map(|peer| (peer.clone(), stream)));
                shown.offered = true;
            }
        }
    }

    fn lost(&self) -> BTreeMap<StreamKey, Vector> {
        let tree = self.shared.store.tree();
        let is_lost = |stream: StreamKey, dots: &Vector| {
            let is_gone = |dot: Dot| {
                tree.region(dot.incarnation).is_none_or(|origin| self.will_not_send(origin, stream, dot, &tree))
            };
            !dots.is_empty() && dots.dots().all(is_gone)
        };
        let left = self.shared.store.transfers().into_iter().map(|(stream, left)| (stream, left.shown));
        left.filter(|(stream, dots)| is_lost(*stream, dots)).collect()
    }

    /// Takes the states that peers said are needed.
    async fn take_wanted(&mut self) {
        let wanted = self.shared.wanted.lock().clone();
        for ((from, stream), extent) in wanted {
            self.give_up_paused();
            if let Err(error) = self.take_state(&from, stream, extent).await {
                tracing::info!(%from, keyspace = stream.0.0, shard = stream.1.0, %error, "a state transfer waits");
            }
        }
    }

    /// Takes complete states until nothing is missing that this region once had.
    async fn complete_self(&mut self) {
        let owed: Vec<StreamKey> = self.shared.standing.lock().owed().keys().copied().collect();
        self.completions.retain(|stream, _| owed.contains(stream));
        for stream in owed {
            let mut unheard = false;
            let known = self.shared.catalog.known();
            let is_taking = known.is_taking(self.shared.me(), stream.0);
            // Who comes to hold it as well has no more than this region does.
            let may_have =
                |from: &&Region| known.takes_part(from, stream.0) && !(is_taking && known.is_taking(from, stream.0));
            let peers = self.shared.peers.all();
            for from in peers.keys().filter(may_have) {
                let completion = self.completions.entry(stream).or_default();
                if completion.from.contains(from) {
                    continue;
                }
                // What one state has left open the streams bring, unless their regions are gone.
                let is_patient = self.shared.now().saturating_sub(completion.taken_at) < JOIN_PATIENCE;
                let is_new = is_taking || self.shared.standing.lock().is_joining();
                if is_new && !completion.from.is_empty() && is_patient {
                    unheard = true;
                    break;
                }
                match self.take_state(from, stream, Extent::Complete).await {
                    Ok(()) => {
                        let now = self.shared.now();
                        let completion = self.completions.entry(stream).or_default();
                        completion.taken_at = now;
                        completion.from.insert(from.clone());
                    }
                    Err(error) => {
                        unheard |= !matches!(error, RepairError::Peer(PeerError::NotReady { .. }));
                        tracing::info!(%from, %error, "this region is behind and waits for a state");
                    }
                }
                if self.settled(stream) {
                    break;
                }
            }
            if unheard {
                self.completions.entry(stream).or_default().in_vain_since = None;
            } else if !self.settled(stream) {
                self.consider_lost(stream);
            }
        }
    }

    /// What nobody can give is lost: several disks were behind at once.
    fn consider_lost(&mut self, stream: StreamKey) {
        let completion = self.completions.entry(stream).or_default();
        let now = self.shared.now();
        let since = *completion.in_vain_since.get_or_insert(now);
        if completion.from.is_empty() || now.saturating_sub(since) < IN_VAIN_MAX {
            return;
        }
        let (keyspace, shard) = (stream.0.0, stream.1.0);
        tracing::error!(
            keyspace,
            shard,
            "no region holds all that this one once had; what is missing is taken for lost"
        );
        self.shared.standing.lock().settle(|at, _| at != stream);
    }

    fn settled(&self, stream: StreamKey) -> bool {
        let shared = &self.shared;
        let tree = shared.store.tree();
        let mut standing = shared.standing.lock();
        standing.settle(|at, stated| {
            shared.store.streams(at.0, at.1).is_behind(stated, tree.shard(at.1)) && !shared.is_shut_out(at.0)
        });
        !standing.owed().contains_key(&stream)
    }

    fn peer(&self, region: &Region) -> Result<Arc<dyn Peer>, PeerError> {
        let handle = self.shared.peers.get(region).and_then(|slot| slot.handle.lock().clone());
        handle.ok_or_else(|| PeerError::Unreachable { reason: format!("there is no link to {region}") })
    }

    /// Whether every other holder waits for this region: one that does not may forget a tombstone that a state taken now lacks.
    fn check_registered(&self, keyspace: KeyspaceId) -> Result<(), PeerError> {
        let known = self.shared.catalog.known();
        let mut unknown_to = self.shared.standing.lock().unknown_to(known.others(self.shared.me()));
        if known.is_taking(self.shared.me(), keyspace) {
            unknown_to.extend(holdings::unknown_to(&self.shared, &known, keyspace));
        }
        match unknown_to.first() {
            None => Ok(()),
            // Not that it has nothing to give: what it has is not lost.
            Some(member) => Err(PeerError::Unreachable { reason: format!("{member} does not know this region yet") }),
        }
    }

    /// Takes the state of one keyspace and shard, from where an earlier attempt left off.
    async fn take_state(&mut self, from: &Region, stream: StreamKey, extent: Extent) -> Result<(), RepairError> {
        let peer = self.peer(from)?;
        self.check_registered(stream.0)?;
        let is_behind = self.shared.standing.lock().owed().contains_key(&stream);
        let extent = if is_behind { Extent::Complete } else { extent };
        self.shared.completing.begin(from, stream);
        let taken = self.take_chunks(peer.as_ref(), from, stream, extent).await;
        self.shared.completing.pause(from, stream);
        let key = (from.clone(), stream);
        if taken.is_err() && self.transfers.contains_key(&key) {
            self.paused_since.entry(key).or_insert(self.shared.now());
            return taken;
        }
        let left_out = self.shared.completing.end(from, stream);
        match &taken {
            Ok(()) if extent == Extent::Changes => {
                let mut wanted = self.shared.wanted.lock();
                if wanted.get(&(from.clone(), stream)) == Some(&Extent::Changes) {
                    wanted.remove(&(from.clone(), stream));
                }
                drop(wanted);
                let moved = std::iter::once(from).chain(&left_out);
                self.ask_again_of(moved, stream);
            }
            Ok(()) => {
                // What others have to give is still to come: what no stream brings, and what they have stated.
                self.shared.wanted.lock().remove(&(from.clone(), stream));
                // All of them, since the cursors moved past statements, too.
                self.ask_again_of(self.shared.peers.all().keys(), stream);
            }
            Err(_) => self.ask_again_of(left_out.iter(), stream),
        }
        taken
    }

    /// Lets the streams go on that wait for a transfer whose sender has gone away.
    fn give_up_paused(&mut self) {
        let now = self.shared.now();
        let mut over: Vec<(Region, StreamKey)> = Vec::new();
        self.paused_since.retain(|key, _| self.transfers.contains_key(key));
        for key in self.transfers.keys() {
            let since = *self.paused_since.entry(key.clone()).or_insert(now);
            if now.saturating_sub(since) >= PAUSE_MAX {
                tracing::info!(from = %key.0, "a state transfer came to a halt and begins anew");
                over.push(key.clone());
            }
        }
        for (from, stream) in over {
            self.forget_transfer(&from, stream);
        }
    }

    /// Of a keyspace that is gone nobody gives a state any more.
    fn forget_gone(&mut self) {
        let known = self.shared.catalog.known();
        self.shared.forget_gone();
        let gone = self.transfers.keys().filter(|(_, stream)| known.is_gone_from(self.shared.me(), stream.0));
        for (from, stream) in gone.cloned().collect::<Vec<_>>() {
            self.forget_transfer(&from, stream);
        }
    }

    /// Of changes nothing is ever taken away: only complete states start over for them.
    fn forget_others(&mut self, from: &Region, stream: StreamKey, for_changes: bool) {
        let others = self
            .transfers
            .iter()
            .filter(|((other, at), begun)| *at == stream && other != from && (begun.heard.is_none() || !for_changes));
        let others: Vec<_> = others.map(|(key, _)| key.clone()).collect();
        for (other, _) in others {
            self.forget_transfer(&other, stream);
        }
    }

    /// The next attempt begins anew.
    fn forget_transfer(&mut self, from: &Region, stream: StreamKey) {
        let key = (from.clone(), stream);
        self.transfers.remove(&key);
        self.paused_since.remove(&key);
        let left_out = self.shared.completing.end(from, stream);
        self.ask_again_of(left_out.iter(), stream);
    }

    /// Goes on with the streams from where the cursors are.
    fn ask_again_of<'a>(&'a self, regions: impl Iterator<Item = &'a Region>, stream: StreamKey) {
        for slot in regions.filter_map(|region| self.shared.peers.get(region)) {
            // The link may be down: a new one begins from the cursors anyway.
            let _ = slot.commands.send(LinkCommand::Refetch(stream));
        }
    }

    async fn take_chunks(
        &mut self,
        peer: &dyn Peer,
        from: &Region,
        stream: StreamKey,
        extent: Extent,
    ) -> Result<(), RepairError> {
        let key = (from.clone(), stream);
        let of_changes = extent == Extent::Changes;
        if self.transfers.get(&key).is_some_and(|begun| begun.heard.is_some() != of_changes) {
            self.forget_transfer(from, stream);
            self.shared.completing.begin(from, stream);
        }
        let (mut stale, mut first_stated) = (0, None);
        // Whatever was in it before the break is not known any more either.
        let mut is_empty = of_changes && !self.transfers.contains_key(&key);
        // Of what was merged before a break, or a restart, it is not known how old it is.
        let asked_at = (!self.transfers.contains_key(&key)).then(|| self.shared.now());
        loop {
            let start = self.transfers.get(&key).map_or_else(Bytes::new, |begun| begun.next.clone());
            let cursor = || self.shared.store.durable_streams(stream.0, stream.1).cursor(from);
            let after = of_changes.then(cursor);
            let StateReply { rows, chunk } = self.ask_state(peer, stream, start.clone(), after).await?;
            learn(&self.shared, rows)?;
            let sound = (chunk.keyspace, chunk.shard) == stream
                && chunk.changes == of_changes
                && self.is_its_own(from, &chunk)
                && chunk.start == start
                && chunk.end.as_ref().is_none_or(|end| *end > start);
            if !sound {
                return Err(RepairError::Corrupt("the state is not what was asked for".to_owned()));
            }
            if !self.continues(&key, &chunk.absorbed) {
                // The sender itself has lost something since: what it sent before may not stand.
                self.transfers.remove(&key);
                continue;
            }
            let begun = begun_with(&chunk, from);
            if !self.transfers.contains_key(&key) {
                self.shared.completing.pin(from, stream, begun.pin.clone());
                first_stated = Some(stated_with(&chunk));
            }
            let has_records = !chunk.records.is_empty();
            is_empty &= !has_records && chunk.ledger.is_empty();
            let end = chunk.end.clone();
            match self.merge(from, stream, chunk, begun.clone()).await? {
                ChunkTaken::Merged => {}
                ChunkTaken::Stale if stale < STALE_MAX => {
                    stale += 1;
                    continue;
                }
                ChunkTaken::Stale => {
                    return Err(RepairError::Corrupt("its state stays older than what it states".to_owned()));
                }
            }
            if let Some(counters) = self.shared.counters.peer(from) {
                counters.state_chunks_in.add(1);
            }
            // This state may have brought back what another, older or newer, took away in its range: that starts over.
            if has_records || !of_changes {
                self.forget_others(from, stream, of_changes);
            }
            self.paused_since.remove(&key);
            if planted::is(planted::Bug::PinAtLast)
                && let Some(before) = self.transfers.get_mut(&key)
            {
                before.pin.clone_from(&begun.pin);
            }
            let begun = self.transfers.entry(key.clone()).or_insert(begun);
            match end {
                Some(end) => begun.next = end,
                None => break,
            }
        }
        let Some(done) = self.transfers.get(&key).cloned() else { return Ok(()) };
        // A statement in its stream would not come by itself where that is not shipped as it is written.
        let at_intervals = self.shared.catalog.known().ship_interval(stream.0).is_some();
        let heard = done.heard.or_else(|| first_stated.filter(|_| at_intervals));
        self.finish(stream, done.pin, heard.map(|heard| (from.clone(), heard)), is_empty).await?;
        self.transfers.remove(&key);
        if let (Some(at), Some(slot)) = (asked_at, self.shared.peers.get(from)) {
            slot.link.lock().note_state(stream, at);
        }
        Ok(())
    }

    /// Whether what a chunk says of its sender's own stream can be.
    fn is_its_own(&self, from: &Region, chunk: &isle_store::StateChunk) -> bool {
        let Some(dot) = chunk.last_own else { return true };
        let tree = self.shared.store.tree();
        let own = chunk.absorbed.iter().find(|(region, _)| region == from);
        let is_absorbed = own.is_some_and(|(_, own)| own.covers(dot, tree.shard(chunk.shard)));
        tree.region(dot.incarnation) == Some(from) && is_absorbed
    }

    async fn ask_state(
        &self,
        peer: &dyn Peer,
        stream: StreamKey,
        start: Bytes,
        changes_after: Option<Vector>,
    ) -> Result<StateReply, PeerError> {
        let (keyspace, shard) = stream;
        let asker_is_behind = self.shared.is_behind();
        let (asker, bytes_max) = (self.shared.me().clone(), self.shared.config.state_chunk_bytes);
        let ask = StateRequest { asker_is_behind, asker, keyspace, shard, start, bytes_max, changes_after };
        timeout(CALL_MAX, peer.state(ask)).await.map_err(late)?
    }

    /// Whether a chunk's vector covers that of the transfer's first.
    fn continues(&self, key: &(Region, StreamKey), absorbed: &[(Region, Vector)]) -> bool {
        let Some(begun) = self.transfers.get(key) else { return true };
        let tree = self.shared.store.tree();
        let lineage = tree.shard(key.1.1);
        begun.pin.iter().all(|(region, first)| {
            absorbed.iter().any(|(other, now)| other == region && now.covers_all(first, lineage))
        })
    }

    async fn merge(
        &self,
        from: &Region,
        stream: StreamKey,
        chunk: isle_store::StateChunk,
        begun: Begun,
    ) -> Result<ChunkTaken, RepairError> {
        let queue = self.queue(stream)?;
        let before = self.transfers.get(&(from.clone(), stream)).cloned();
        let (is_first, begun) = (before.is_none(), before.unwrap_or(begun));
        let (from, bytes, chunk) = (from.clone(), chunk_bytes(&chunk), Box::new(chunk));
        let answer = queue.submit(bytes, |answer| Job::Chunk { from, chunk, is_first, begun, answer }).await?;
        Ok(answer_of(answer).await?)
    }

    async fn finish(
        &self,
        stream: StreamKey,
        cursors: Vec<(Region, Vector)>,
        heard: Option<(Region, Stated)>,
        is_empty: bool,
    ) -> Result<(), RepairError> {
        let queue = self.queue(stream)?;
        let job = |answer| Job::StateDone { keyspace: stream.0, cursors, heard, is_empty, answer };
        let answer = queue.submit(256, job).await?;
        Ok(answer_of(answer).await?)
    }

    fn queue(&self, stream: StreamKey) -> Result<&crate::shard_queue::ShardQueue, RepairError> {
        let absent = || RepairError::Corrupt(format!("shard {} does not exist", stream.1.0));
        self.shared.queue(stream.1).ok_or_else(absent)
    }

    /// Fetches what survivors have stated to hold of streams whose region will not send it.
    async fn fetch_lost(&mut self) {
        let now = self.shared.now();
        let missing = self.missing();
        self.missing_since.retain(|what, _| missing.contains_key(what));
        for ((origin, stream), Missing { holders, is_on_its_way }) in missing {
            let since = *self.missing_since.entry((origin.clone(), stream)).or_insert(now);
            // What nobody was to have sooner is not asked of others sooner, since they have only a complete state to give.
            let interval = self.shared.catalog.known().ship_interval(stream.0).filter(|_| is_on_its_way);
            if now.saturating_sub(since) < self.shared.config.repair_after.max(interval.unwrap_or_default()) {
                continue;
            }
            for holder in holders {
                match self.fetch(&holder, &origin, stream).await {
                    Ok(()) => break,
                    Err(error) => tracing::info!(%holder, %origin, %error, "a survivor cannot give a lost stream"),
                }
            }
        }
    }

    /// Streams of which some holder has stated to have more than is here, and whose own region will not send it.
    fn missing(&self) -> BTreeMap<(Region, StreamKey), Missing> {
        let shared = &self.shared;
        let tree = shared.store.tree();
        let mut out: BTreeMap<(Region, StreamKey), Missing> = BTreeMap::new();
        for (stream, streams) in shared.store.all_streams() {
            if shared.is_gone(stream.0) {
                continue;
            }
            let lineage = tree.shard(stream.1);
            for (holder, said) in streams.heard().iter().filter(|(holder, _)| shared.peers.contains(holder)) {
                for (origin, vector) in &said.absorbed {
                    let cursor = streams.cursor(origin);
                    let lacks =
                        |dot: &Dot| !cursor.covers(*dot, lineage) && self.will_not_send(origin, stream, *dot, &tree);
                    let Some(lacked) = vector.dots().find(lacks) else { continue };
                    let missing = out.entry((origin.clone(), stream)).or_default();
                    missing.holders.push(holder.clone());
                    missing.is_on_its_way = self.is_of_its_line(origin, stream, lacked, &tree);
                }
            }
        }
        out
    }

    /// Of this region's own lost writes nobody sends anything by himself, nor has a region any that has handed a keyspace over.
    fn will_not_send(&self, origin: &Region, stream: StreamKey, dot: Dot, tree: &IncarnationTree) -> bool {
        let known = self.shared.catalog.known();
        let Some(slot) = self.shared.peers.get(origin) else { return true };
        if known.is_gone_from(origin, stream.0) {
            return true;
        }
        let link = slot.link.lock();
        match known.ship_interval(stream.0) {
            None => Link::will_not_send(&link),
            // It ships in its own time, and of that which its disk has lost it knows nothing.
            Some(_) => !link.inbound || !self.is_of_its_line(origin, stream, dot, tree),
        }
    }

    /// Whether a region still has a write of its own, as far as its incarnations tell.
    fn is_of_its_line(&self, origin: &Region, stream: StreamKey, dot: Dot, tree: &IncarnationTree) -> bool {
        let admitted = self.shared.standing.lock().admitted(origin);
        admitted
            .is_some_and(|now| now == dot.incarnation || tree.shard(stream.1).implied(now, dot.incarnation) >= dot.seq)
    }

    async fn fetch(&mut self, holder: &Region, origin: &Region, stream: StreamKey) -> Result<(), RepairError> {
        let peer = self.peer(holder)?;
        let (keyspace, shard) = stream;
        while !self.shared.is_gone(keyspace) {
            let (streams, tree) = (self.shared.store.streams(keyspace, shard), self.shared.store.tree());
            let after = streams.cursor(origin);
            if self.shared.completing.holds_back(origin, stream, || streams, tree.shard(shard)) {
                return Err(PeerError::NotReady { reason: "a state transfer comes first".to_owned() }.into());
            }
            let (asker, bytes_max) = (self.shared.me().clone(), FETCH_BYTES);
            let ask = FetchRequest { asker, origin: origin.clone(), keyspace, shard, after, bytes_max };
            let reply = timeout(CALL_MAX, peer.fetch(ask)).await.map_err(late)??;
            let encoded = batch_codec::unpack(&reply.batch).map_err(|error| RepairError::Corrupt(error.to_string()))?;
            learn(&self.shared, reply.batch.rows)?;
            let came = encoded.len();
            let whole = self.absorb(origin, stream, encoded).await?;
            if reply.needs_state || !whole {
                return self.take_state(holder, stream, Extent::Complete).await;
            }
            if !reply.more || came == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Absorbs fetched deltas; says whether there was no hole and nothing unreadable among them.
    async fn absorb(&self, origin: &Region, stream: StreamKey, encoded: Vec<Bytes>) -> Result<bool, RepairError> {
        if encoded.is_empty() {
            return Ok(true);
        }
        let tree = self.shared.store.tree();
        let mut deltas: Vec<Received> = Vec::with_capacity(encoded.len());
        for bytes in encoded {
            let received = match codec::receive(bytes.clone()) {
                Ok(received) => received,
                Err(error) => {
                    let dot = codec::delta_head(bytes.clone()).map(|head| head.dot);
                    let dot = dot.map_err(|error| RepairError::Corrupt(error.to_string()))?;
                    self.shared.quarantine(origin, stream, dot, bytes, error.to_string());
                    return Ok(false);
                }
            };
            let delta = &received.delta;
            if (delta.keyspace, delta.shard) != stream || tree.region(delta.dot.incarnation) != Some(origin) {
                return Err(RepairError::Corrupt(format!("delta {} is not of the stream asked for", delta.dot)));
            }
            deltas.push(received);
        }
        let bytes = deltas.iter().map(delta_bytes).sum();
        let origin = origin.clone();
        let answer = self.queue(stream)?.submit(bytes, |answer| Job::Foreign { origin, deltas, answer }).await?;
        let outcome = answer_of(answer).await?;
        Ok(outcome.gaps.is_empty() && outcome.unknown.is_empty())
    }
}

/// A transfer that begins with this chunk.
fn begun_with(chunk: &isle_store::StateChunk, from: &Region) -> Begun {
    let absorbed = &chunk.absorbed;
    if !chunk.changes {
        return Begun { next: Bytes::new(), pin: absorbed.clone(), heard: None };
    }
    let own = absorbed.iter().filter(|(region, _)| region == from).cloned();
    Begun { next: Bytes::new(), pin: own.collect(), heard: Some(stated_with(chunk)) }
}

/// What the sender could have stated before it read the chunk.
fn stated_with(chunk: &isle_store::StateChunk) -> Stated {
    Stated { dot: chunk.last_own, absorbed: chunk.absorbed.iter().cloned().collect() }
}

fn late(_: tokio::time::error::Elapsed) -> PeerError {
    PeerError::Unreachable { reason: "it does not answer".to_owned() }
}
