//! The single writer of one shard: everything that changes the shard passes through here, in one order.
//!
//! ```text
//! queue ─ drain what waits ─▶ Batch ─ plan each on the newest state ─ commit ─▶ completions ─ durable ≥ end ─▶ answers
//! ```
//! The law it keeps: no answer goes out before the log is durable up to what the answer saw, refusals included. The loop does
//! not wait for the fsync: the next batch is planned on this one's state while it is synced.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isle_model::metadata::Keyspace;
use isle_model::{
    Admission, Delta, Epoch, FieldKey, Hlc, Incarnation, KeyspaceId, Lineage, Mutation, Record, Region, Vector,
    planted, write,
};
use isle_store::{AppendError, Batch, Begun, CommitError, LogPosition, ReadError, Received, ShardWriter, StateChunk};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use crate::NodeError;
use crate::catalog::Known;
use crate::durability::{Durable, until_durable};
use crate::homes::{home_is_replaced, home_of, home_of_new};
use crate::shard_queue::{Absorption, Answer, ChunkTaken, Job, Queued, WriteAsk, WriteOutcomes, Written};
use crate::shared::Shared;

/// How often a loop that waits for the overlay looks again.
const DRAIN_POLL: Duration = Duration::from_millis(2);
/// How long a caller should wait for disk space.
const DISK_RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) struct ShardLoop {
    shared: Arc<Shared>,
    writer: ShardWriter,
    waiting: mpsc::UnboundedReceiver<Queued>,
    completions: mpsc::UnboundedSender<Completion>,
    /// Up to where this shard's newest state reaches into the log.
    last_end: LogPosition,
}

/// Answers that wait for the log to be durable up to `end`.
struct Completion {
    end: LogPosition,
    answers: Vec<Ready>,
    /// Given back with the answers: the queue's bound counts what is unanswered.
    _permits: Vec<OwnedSemaphorePermit>,
}

/// An answer, made but not given.
enum Ready {
    Writes(Answer<WriteOutcomes>, WriteOutcomes),
    Foreign(Answer<Absorption>, Result<Absorption, NodeError>),
    Chunk(Answer<ChunkTaken>, Result<ChunkTaken, NodeError>),
    Done(Answer<()>, Result<(), NodeError>),
    Count(Answer<u64>, Result<u64, NodeError>),
}

impl Ready {
    /// Gives the answer. Whoever does not wait for it any more does not need it.
    fn give(self) {
        match self {
            Ready::Writes(answer, outcomes) => drop(answer.send(Ok(outcomes))),
            Ready::Foreign(answer, result) => drop(answer.send(result)),
            Ready::Chunk(answer, result) => drop(answer.send(result)),
            Ready::Done(answer, result) => drop(answer.send(result)),
            Ready::Count(answer, result) => drop(answer.send(result)),
        }
    }

    fn fail(self, error: &NodeError) {
        let error = error.clone();
        match self {
            Ready::Writes(answer, _) => drop(answer.send(Err(error))),
            Ready::Foreign(answer, _) => drop(answer.send(Err(error))),
            Ready::Chunk(answer, _) => drop(answer.send(Err(error))),
            Ready::Done(answer, _) => drop(answer.send(Err(error))),
            Ready::Count(answer, _) => drop(answer.send(Err(error))),
        }
    }
}

impl ShardLoop {
    /// The loop, and the task that gives its answers. Both end when the queue is closed and empty.
    pub(crate) fn new(
        shared: Arc<Shared>,
        writer: ShardWriter,
        waiting: mpsc::UnboundedReceiver<Queued>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (completions, due) = mpsc::unbounded_channel();
        let mark = shared.durability.subscribe();
        let last_end = shared.store.appended();
        (ShardLoop { shared, writer, waiting, completions, last_end }, give_answers(due, mark))
    }

    pub(crate) async fn run(mut self, mut closing: watch::Receiver<bool>) {
        loop {
            let first = tokio::select! {
                biased;
                job = self.waiting.recv() => job,
                _ = closing.wait_for(|closing| *closing), if !self.waiting.is_closed() => {
                    // What was accepted is carried out; nothing more is accepted.
                    self.waiting.close();
                    continue;
                }
            };
            let Some(first) = first else { return };
            self.wait_for_overlay().await;
            let jobs = self.take_waiting(first);
            self.carry_out(jobs);
        }
    }

    /// While the overlay is full the queue fills, and callers are refused.
    async fn wait_for_overlay(&self) {
        while self.shared.store.overlay_full() && self.shared.durability.failure().is_none() {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }

    fn take_waiting(&mut self, first: Queued) -> Vec<Queued> {
        let config = &self.shared.config;
        let mut bytes = first.bytes;
        let mut jobs = vec![first];
        while jobs.len() < config.batch_items_max && bytes < config.batch_bytes_max {
            let Ok(next) = self.waiting.try_recv() else { break };
            bytes += next.bytes;
            jobs.push(next);
        }
        jobs
    }

    fn carry_out(&mut self, jobs: Vec<Queued>) {
        let mut answers = Vec::with_capacity(jobs.len());
        let mut permits = Vec::with_capacity(jobs.len());
        if let Some(reason) = self.shared.durability.failure() {
            let error = NodeError::WritesStopped { reason: reason.to_string() };
            jobs.into_iter().map(|queued| queued.job).for_each(|job| refuse(job, &error));
            return;
        }
        let mut batch = self.writer.begin();
        for Queued { job, permit, .. } in jobs {
            permits.push(permit);
            answers.push(plan(&self.shared, &mut batch, job));
        }
        // A batch that changes nothing still answers by what this shard's batches in flight have left.
        let end = if batch.is_empty() { Ok(self.last_end) } else { batch.commit().map(|unsynced| unsynced.end) };
        match end {
            Ok(end) => self.await_sync(Completion { end, answers, _permits: permits }),
            Err(error) => {
                let error = self.refusal(error);
                answers.into_iter().for_each(|answer| answer.fail(&error));
            }
        }
    }

    fn await_sync(&mut self, completion: Completion) {
        if completion.end > self.last_end {
            self.shared.counters.batches.add(1);
            self.shared.appended.notify_one();
        }
        self.last_end = self.last_end.max(completion.end);
        if planted::is(planted::Bug::ReplyBeforeSync) {
            completion.answers.into_iter().for_each(Ready::give);
            return;
        }
        // The other end goes only after this one; what it drops at shutdown answers as unknown.
        drop(self.completions.send(completion));
    }

    fn refusal(&self, error: CommitError) -> NodeError {
        let error = match error {
            CommitError::Spoiled { reason } => return NodeError::ReadFailed { reason },
            CommitError::Append(error) => error,
        };
        match error {
            AppendError::DiskFull => {
                self.shared.counters.refused.add(1);
                NodeError::DiskFull { retry_after: DISK_RETRY_AFTER }
            }
            AppendError::TooLarge { .. } => {
                NodeError::BadField { field: "value", reason: "the batch is larger than a log segment".to_owned() }
            }
            AppendError::Poisoned { reason } => {
                self.shared.durability.failed(&reason);
                NodeError::WritesStopped { reason }
            }
            // Some of it may be found at the next start.
            AppendError::Failed { reason } => {
                self.shared.durability.failed(&reason);
                NodeError::OutcomeUnknown { reason }
            }
        }
    }
}

async fn give_answers(mut due: mpsc::UnboundedReceiver<Completion>, mut mark: watch::Receiver<Durable>) {
    while let Some(completion) = due.recv().await {
        match until_durable(&mut mark, completion.end).await {
            Ok(()) => completion.answers.into_iter().for_each(Ready::give),
            Err(reason) => {
                let error = NodeError::OutcomeUnknown { reason: reason.to_string() };
                completion.answers.into_iter().for_each(|answer| answer.fail(&error));
            }
        }
    }
}

fn refuse(job: Job, error: &NodeError) {
    let error = error.clone();
    match job {
        Job::Writes { answer, .. } => drop(answer.send(Err(error))),
        Job::Foreign { answer, .. } => drop(answer.send(Err(error))),
        Job::Chunk { answer, .. } => drop(answer.send(Err(error))),
        Job::StateDone { answer, .. } => drop(answer.send(Err(error))),
        Job::Statement { answer, .. } | Job::Purge { answer, .. } | Job::Forget { answer, .. } => {
            drop(answer.send(Err(error)));
        }
    }
}

/// Plans one job into the batch.
fn plan(shared: &Shared, batch: &mut Batch<'_>, job: Job) -> Ready {
    match job {
        Job::Writes { asks, answer } => {
            let (now, known) = (Instant::now(), shared.catalog.known());
            let outcomes = asks.iter().map(|ask| plan_write(shared, &known, batch, ask, now)).collect();
            Ready::Writes(answer, outcomes)
        }
        Job::Foreign { origin, deltas, answer } => Ready::Foreign(answer, absorb(shared, batch, &origin, deltas)),
        Job::Chunk { from, chunk, is_first, begun, answer } => {
            Ready::Chunk(answer, take_chunk(shared, batch, &from, *chunk, is_first, begun))
        }
        Job::StateDone { keyspace, cursors, heard, is_empty, answer } => {
            let open = check_held(shared, keyspace);
            let done = || batch.state_done(keyspace, cursors, heard, is_empty).map_err(read_failed);
            Ready::Done(answer, open.and_then(|()| done()))
        }
        Job::Statement { mut keyspaces, mut again, answer } => {
            let known = shared.catalog.known();
            let states = |keyspace: &KeyspaceId| known.has_to_state(shared.me(), *keyspace);
            keyspaces.retain(states);
            again.retain(states);
            again.iter().for_each(|keyspace| batch.restate(*keyspace));
            Ready::Count(answer, state(shared, batch, &keyspaces))
        }
        Job::Purge { keyspaces, answer } => Ready::Count(answer, Ok(purge(shared, batch, &keyspaces))),
        Job::Forget { keyspace, keys, holders, answer } => {
            Ready::Count(answer, forget(shared, batch, keyspace, keys, &holders))
        }
    }
}

fn plan_write(
    shared: &Shared,
    known: &Known,
    batch: &mut Batch<'_>,
    ask: &WriteAsk,
    now: Instant,
) -> Result<Written, NodeError> {
    if ask.deadline.is_some_and(|deadline| deadline <= now) {
        shared.counters.refused.add(1);
        return Err(NodeError::DeadlineExpired);
    }
    // What is written after this region was told to leave may reach nobody.
    if known.is_leaving(shared.me()) {
        return Err(NodeError::Leaving);
    }
    let keyspace = known.keyspace(ask.keyspace).ok_or_else(|| known.unknown(&ask.keyspace.0.to_string()))?;
    // What was held when the write came may be held no more.
    if keyspace.step(shared.me()).is_some() {
        return Err(known.not_held(shared.me(), keyspace));
    }
    let current = batch.newest(ask.keyspace, &ask.key).map_err(read_failed)?;
    let tree = batch.tree();
    let lineage = tree.shard(shared.shard_of(ask.keyspace, &ask.key));
    if keyspace.policy.is_forwarded()
        && !current.is_live()
        && let Some(incarnation) = unheard_home(batch, ask, lineage)
        && tree.region(incarnation).is_some_and(|region| known.metadata.members.contains_key(region))
    {
        return Err(NodeError::SessionNotReached { incarnation });
    }
    // Asked of the newest state: what was decided when the write came may have been overtaken.
    let home = home_of_write(shared, known, keyspace, ask, &current, lineage)?;
    let stamp = batch.stamp(shared.tick(), ask.epoch.max(Epoch(keyspace.epoch)));
    let takes_over = home_is_replaced(keyspace, &known.metadata.members, &current, lineage);
    let writer = write::Writer { region: shared.me(), home: &home, takes_over, keyspace: ask.keyspace, stamp, lineage };
    let found = current.is_live();
    let planned = write::plan(&ask.key, &ask.mutation, &ask.precondition, ask.context.as_ref(), &current, writer);
    let (record, refused, dot) = match planned {
        Ok(Some(write)) => {
            shared.counters.writes.add(1);
            (batch.write(ask.keyspace, write, stamp).map_err(read_failed)?, None, Some(stamp.dot))
        }
        // What was there may be a write that was not confirmed in time, and is asked for again.
        Ok(None) => (current, None, batch.streams(ask.keyspace).last_own()),
        Err(refused) => (current, Some(refused), None),
    };
    let moved = matches!(ask.mutation, Mutation::Move { .. });
    let found = if moved { dot == Some(stamp.dot) } else { found };
    Ok(Written { record, tree, refused, found, dot })
}

/// Whose write, not heard of here, gave a key its home, as far as the write's context tells: a key that seems to be nowhere, so that
/// this region would make it, is somewhere else, unless it went with its region.
fn unheard_home(batch: &mut Batch<'_>, ask: &WriteAsk, lineage: Lineage<'_>) -> Option<Incarnation> {
    let named = ask.context.as_ref()?.get(&FieldKey::home())?.shown?;
    let absorbed = batch.streams(ask.keyspace).absorbed(lineage);
    (!absorbed.covers(named, lineage)).then_some(named.incarnation)
}

/// The home that the record has or gets. An error where that is another region, and serialises the key's writes.
fn home_of_write(
    shared: &Shared,
    known: &Known,
    keyspace: &Keyspace,
    ask: &WriteAsk,
    current: &Record,
    lineage: Lineage<'_>,
) -> Result<Region, NodeError> {
    let (members, me) = (&known.metadata.members, shared.me());
    if !keyspace.policy.is_forwarded() {
        return Ok(home_of_new(keyspace, members, &ask.key, ask.home.as_ref(), me));
    }
    let home = home_of(keyspace, members, &ask.key, current, lineage, ask.home.as_ref(), me);
    if home == *me || planted::is(planted::Bug::TakeForeignHome) {
        Ok(home)
    } else {
        Err(shared.not_home(home, Epoch(keyspace.epoch)))
    }
}

fn absorb(
    shared: &Shared,
    batch: &mut Batch<'_>,
    origin: &Region,
    deltas: Vec<Received>,
) -> Result<Absorption, NodeError> {
    let mut out = Absorption::default();
    let (tree, known) = (batch.tree(), shared.catalog.known());
    for received in deltas {
        let Delta { keyspace, shard, hlc, dot, .. } = received.delta;
        if !known.is_for(shared.me(), keyspace) {
            // It was on its way when its keyspace was deleted, or when this region ceased to hold it.
            continue;
        }
        if shared.completing.covers(origin, (keyspace, shard), dot, tree.shard(shard)) {
            // It was on its way when the transfer began. Its stream is asked for again when that is over.
            continue;
        }
        let follows = shared.hear(hlc);
        let admission = if follows { batch.foreign(origin, received) } else { batch.foreign_ahead(origin, received) };
        match admission {
            Ok(Admission::Apply) => {
                shared.counters.hlc_too_far_ahead.add(u64::from(!follows));
                out.applied += 1;
                note(&mut out.touched, keyspace);
            }
            Ok(Admission::Duplicate) => note(&mut out.touched, keyspace),
            Ok(Admission::Gap { .. }) => note(&mut out.gaps, keyspace),
            Err(error @ (ReadError::UnknownIncarnation(_) | ReadError::Misplaced { .. })) => {
                shared.quarantine(origin, (keyspace, shard), dot, Bytes::new(), error.to_string());
                note(&mut out.unknown, keyspace);
            }
            Err(error) => return Err(read_failed(error)),
        }
    }
    Ok(out)
}

fn note(list: &mut Vec<KeyspaceId>, keyspace: KeyspaceId) {
    if !list.contains(&keyspace) {
        list.push(keyspace);
    }
}

fn take_chunk(
    shared: &Shared,
    batch: &mut Batch<'_>,
    from: &Region,
    chunk: StateChunk,
    is_first: bool,
    begun: Begun,
) -> Result<ChunkTaken, NodeError> {
    check_held(shared, chunk.keyspace)?;
    if outdated(batch, from, &chunk) {
        return Ok(ChunkTaken::Stale);
    }
    let hlc = shared.tick();
    let (keyspace, end) = (chunk.keyspace, chunk.end.clone());
    let note = |batch: &mut Batch<'_>, next| {
        let begun = Begun { next, ..begun.clone() };
        batch.state_begun(keyspace, from.clone(), begun).map_err(read_failed)
    };
    if is_first {
        note(batch, Bytes::new())?;
    }
    batch.state_chunk(chunk, hlc).map_err(read_failed)?;
    if let Some(next) = end {
        note(batch, next)?;
    }
    Ok(ChunkTaken::Merged)
}

/// Whether the sender has stated, in what was absorbed here, more than its chunk was made of. This region may have forgotten
/// tombstones by that statement, and the chunk would bring back what they covered.
fn outdated(batch: &mut Batch<'_>, from: &Region, chunk: &StateChunk) -> bool {
    let tree = batch.tree();
    let lineage = tree.shard(chunk.shard);
    let nothing = Vector::new();
    let streams = batch.streams(chunk.keyspace);
    let Some(stated) = streams.stated_by(from) else { return false };
    stated.iter().any(|(origin, stated)| {
        let absorbed = chunk.absorbed.iter().find(|(region, _)| region == origin).map_or(&nothing, |(_, v)| v);
        !absorbed.covers_all(stated, lineage)
    })
}

fn state(shared: &Shared, batch: &mut Batch<'_>, keyspaces: &[KeyspaceId]) -> Result<u64, NodeError> {
    let mut made = 0;
    for keyspace in keyspaces {
        let hlc: Hlc = shared.tick();
        made += u64::from(batch.statement(*keyspace, hlc).map_err(read_failed)?);
    }
    shared.counters.statements.add(made);
    Ok(made)
}

/// Asked of the newest there is to know: what waits here may be of a keyspace that was deleted since, or is held here no more.
fn check_held(shared: &Shared, keyspace: KeyspaceId) -> Result<(), NodeError> {
    let known = shared.catalog.known();
    if known.is_for(shared.me(), keyspace) { Ok(()) } else { Err(known.unknown(&keyspace.0.to_string())) }
}

fn purge(shared: &Shared, batch: &mut Batch<'_>, keyspaces: &[KeyspaceId]) -> u64 {
    let known = shared.catalog.known();
    let mut purged = 0;
    for keyspace in keyspaces.iter().filter(|keyspace| known.is_gone_from(shared.me(), **keyspace)) {
        purged += u64::from(batch.purge(*keyspace));
    }
    purged
}

fn forget(
    shared: &Shared,
    batch: &mut Batch<'_>,
    keyspace: KeyspaceId,
    keys: Vec<Bytes>,
    holders: &[Region],
) -> Result<u64, NodeError> {
    let mut gone = 0;
    for key in keys {
        gone += u64::from(batch.forget(keyspace, key, holders).map_err(read_failed)?);
    }
    shared.counters.tombstones_forgotten.add(gone);
    Ok(gone)
}

pub(crate) fn read_failed(error: ReadError) -> NodeError {
    NodeError::ReadFailed { reason: error.to_string() }
}
