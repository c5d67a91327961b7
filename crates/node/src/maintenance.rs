//! What a node does by the clock: watches the log, purges what is gone, states what it has absorbed, forgets tombstones, trims the log.
//!
//! In a simulation, which has no threads, it also syncs and maintains the storage: with an awaited random delay between append
//! and fsync, so that a crash can fall between them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use isle_model::{KeyspaceId, Region};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::watch;

use crate::NodeError;
use crate::replication::link::LogBudget;
use crate::shard_queue::{Job, answer_of};
use crate::shared::{Shared, StreamKey};

const PULSE: Duration = Duration::from_millis(100);
const TOMBSTONES_A_ROUND: usize = 512;
/// A peer that is away for longer does not keep the log from being rid of what may not be in it.
const SCRUB_AWAY_MAX: Duration = Duration::from_secs(10);
/// Simulation: how often the storage is maintained.
const MAINTAIN_EVERY: Duration = Duration::from_millis(20);
const MAINTAIN_STEPS_MAX: usize = 64;

/// Notes how the durable mark moves, and whether it ever will again.
pub(crate) async fn pulse(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(PULSE);
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            _ = tick.tick() => {}
        }
        shared.ages.lock().note(shared.store.durable(), shared.now());
        if let Some(reason) = shared.store.is_poisoned() {
            shared.durability.failed(&reason);
        }
        // What is read and written over a damaged view fails key by key. Started anew, the node builds another.
        if let Some(damage) = shared.store.view_damage() {
            shared.stop_for_good(&format!("its view is damaged, and is built anew at the next start: {damage}"));
        }
    }
}

pub(crate) struct Upkeep {
    shared: Arc<Shared>,
    /// How far the tombstones of each shard have been looked through.
    looked: BTreeMap<StreamKey, Bytes>,
}

impl Upkeep {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Upkeep { shared, looked: BTreeMap::new() }
    }

    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut tick = tokio::time::interval(self.shared.config.statement_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                _ = tick.tick() => {}
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                done = self.round() => if let Err(error) = done {
                    tracing::debug!(%error, "upkeep waits for its next round");
                },
            }
        }
    }

    async fn round(&mut self) -> Result<(), NodeError> {
        if let Err(error) = self.purge().await {
            tracing::debug!(%error, "what is gone stays for another round");
        }
        self.expire_the_long_away();
        self.trim().await;
        crate::shipping::look(&self.shared);
        // A region that is behind has nothing to state, nor the right to forget.
        if self.shared.is_behind() {
            return Ok(());
        }
        self.state().await?;
        self.forget().await
    }

    /// Whatever is here of keyspaces that the cluster has deleted goes, and of those that this region has handed over, also where it was
    /// away meanwhile. What a shard has taken in since the last round goes in the next.
    async fn purge(&self) -> Result<(), NodeError> {
        let known = self.shared.catalog.known();
        let gone: Vec<StreamKey> = self
            .shared
            .store
            .kept()
            .into_iter()
            .filter(|(keyspace, _)| known.is_gone_from(self.shared.me(), *keyspace))
            .collect();
        for queue in &self.shared.queues {
            let here = gone.iter().filter(|(_, shard)| *shard == queue.shard);
            let keyspaces: Vec<KeyspaceId> = here.map(|(keyspace, _)| *keyspace).collect();
            if keyspaces.is_empty() {
                continue;
            }
            let named = keyspaces.clone();
            let answer = queue.submit(512, |answer| Job::Purge { keyspaces, answer }).await?;
            if answer_of(answer).await? > 0 {
                tracing::info!(shard = queue.shard.0, keyspaces = ?named, "what is gone is purged");
            }
        }
        Ok(())
    }

    /// Only on the side of the majority: of two sides that gave each other up, each would have forgotten deletes that the
    /// other's state then brings back.
    fn expire_the_long_away(&self) {
        let now = self.shared.now();
        let peers = self.shared.peers.all();
        let aways: Vec<(&Region, Duration)> =
            peers.iter().map(|(region, slot)| (region, slot.link.lock().away(now))).collect();
        let here = 1 + aways.iter().filter(|(_, away)| away.is_zero()).count();
        if 2 * here <= aways.len() + 1 {
            return;
        }
        for (region, away) in aways {
            if away > self.shared.config.tombstone_horizon && self.shared.expire(region) {
                tracing::warn!(%region, "a holder is away beyond the tombstone horizon and is not waited for");
            }
        }
    }

    async fn state(&self) -> Result<(), NodeError> {
        if self.shared.peers.all().is_empty() {
            return Ok(());
        }
        for queue in &self.shared.queues {
            let known = self.shared.catalog.known();
            let ids = || {
                let all = known.metadata.keyspaces.keys().copied();
                all.filter(|id| known.has_to_state(self.shared.me(), *id))
            };
            let again: Vec<KeyspaceId> = {
                let mut restate = self.shared.restate.lock();
                ids().filter(|id| restate.remove(&(*id, queue.shard))).collect()
            };
            let has_news = |id: &KeyspaceId| {
                again.contains(id) || self.shared.store.streams(*id, queue.shard).statement().is_some()
            };
            let keyspaces: Vec<KeyspaceId> = ids().filter(has_news).collect();
            if !keyspaces.is_empty() {
                let answer = queue.submit(512, |answer| Job::Statement { keyspaces, again, answer }).await?;
                answer_of(answer).await?;
            }
        }
        Ok(())
    }

    async fn forget(&mut self) -> Result<(), NodeError> {
        let (shared, known) = (self.shared.clone(), self.shared.catalog.known());
        // Nor has a region in what it does not have all of.
        let whole = |stream: &StreamKey| !known.is_taking(shared.me(), stream.0);
        for stream in shared.stream_keys().into_iter().filter(whole) {
            let holders = self.holders(stream.0);
            let keys = self.forgettable(stream, &holders)?;
            if keys.is_empty() {
                continue;
            }
            let Some(queue) = self.shared.queue(stream.1) else { continue };
            let bytes = keys.iter().map(|key| 64 + key.len()).sum();
            let keyspace = stream.0;
            let answer = queue.submit(bytes, |answer| Job::Forget { keyspace, keys, holders, answer }).await?;
            answer_of(answer).await?;
        }
        Ok(())
    }

    /// Every region whose statement is waited for before a tombstone of the keyspace is forgotten.
    fn holders(&self, keyspace: KeyspaceId) -> Arc<[Region]> {
        let known = self.shared.catalog.known();
        let standing = self.shared.standing.lock();
        let peers = self.shared.peers.all();
        let copies = peers.keys().filter(|region| known.takes_part(region, keyspace));
        let waited_for = copies.filter(|region| !standing.is_expired(region));
        std::iter::once(self.shared.me()).chain(waited_for).cloned().collect()
    }

    /// The next tombstones of a shard that may go, as far as can be told from outside its loop.
    fn forgettable(&mut self, stream: StreamKey, holders: &[Region]) -> Result<Vec<Bytes>, NodeError> {
        let (keyspace, shard) = stream;
        let store = &self.shared.store;
        let after = self.looked.get(&stream).cloned().unwrap_or_default();
        let found =
            store.tombstones(keyspace, shard, &after, TOMBSTONES_A_ROUND).map_err(crate::shard_loop::read_failed)?;
        match found.last().filter(|_| found.len() >= TOMBSTONES_A_ROUND) {
            Some((last, _)) => self.looked.insert(stream, next_key(last)),
            None => self.looked.remove(&stream),
        };
        let (streams, tree) = (store.durable_streams(keyspace, shard), store.tree());
        let may_go = |record: &isle_model::Record| {
            !record.is_empty() && streams.may_forget(record, holders, self.shared.me(), tree.shard(shard))
        };
        Ok(found.into_iter().filter(|(_, record)| may_go(record)).map(|(key, _)| key).collect())
    }

    /// Trims the log below what every peer has, but waits for none beyond its budget.
    async fn trim(&self) {
        let done = self.shared.off_loop(|shared| shared.store.trim(floor(shared))).await;
        if let Some(Err(error)) = done {
            tracing::warn!(%error, "the log cannot be trimmed");
        }
    }
}

fn next_key(key: &Bytes) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    Bytes::from(next)
}

fn floor(shared: &Shared) -> isle_store::LogPosition {
    let store = &shared.store;
    let budget = LogBudget { bytes: shared.config.log_budget_bytes, age: shared.config.log_budget_age };
    let (durable, oldest, now) = (store.durable(), store.oldest(), shared.now());
    let ages = shared.ages.lock();
    let peers = shared.peers.all();
    let is_scrubbing = shared.scrubbing.load(Ordering::Relaxed);
    let waited_for = peers.values().filter_map(|slot| {
        // What may not be here any more does not stay for the sake of one that is away: it gets the state of what may.
        if is_scrubbing && slot.link.lock().away(now) >= SCRUB_AWAY_MAX {
            return None;
        }
        let confirmed = slot.link.lock().confirmed.as_ref().map_or(oldest, |confirmed| confirmed.position);
        let waits = budget.waits(store.log_bytes_between(confirmed, durable), ages.lag(confirmed, durable, now));
        waits.then_some(confirmed)
    });
    waited_for.fold(durable, isle_store::LogPosition::min)
}

/// Simulation: syncs what is appended, some random while after.
pub(crate) async fn sync_by_task(
    shared: Arc<Shared>,
    delay_max: Duration,
    mut rng: StdRng,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            biased;
            () = shared.appended.notified() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        while shared.store.appended() > shared.store.durable() {
            tokio::time::sleep(rng.random_range(Duration::ZERO..=delay_max)).await;
            match shared.store.sync() {
                Ok(durable) => shared.durability.reached(durable),
                Err(error) => {
                    shared.durability.failed(&error.to_string());
                    return;
                }
            }
        }
    }
}

/// Simulation: drains, flushes and checkpoints, step by step.
pub(crate) async fn maintain_by_task(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(MAINTAIN_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            _ = tick.tick() => {}
        }
        for _ in 0..MAINTAIN_STEPS_MAX {
            match shared.store.maintain() {
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, "the storage cannot be maintained");
                    break;
                }
            }
        }
    }
}
