//! What goes on behind the writes, in bounded steps: draining the overlay into the view, counting what was there at start,
//! flushing the view and marking how far it holds, checkpoints.
//!
//! A pass walks the overlay once, in key order. When it ends, everything that was published when it began is in the view;
//! a flush then lets the mark say so, and a checkpoint may be scanned from the view alone. While a burst goes on no pass begins,
//! as long as overlay and log have room: the burst has the machine for itself, and the later pass costs less for each record,
//! since neighbours in key order share sled's pages.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use isle_model::IncarnationTree;

use crate::checkpoint::{self, CheckpointError, CheckpointWriter};
use crate::codec;
use crate::log::LogPosition;
use crate::memory::{Census, Tally};
use crate::meta::{Meta, ViewMark};
use crate::overlay::Item;
use crate::store::Store;
use crate::view::{ViewError, some_of};
use crate::view_key::{RECORDS, ViewKey};

/// Items drained, counted or written in one step.
const STEP_ITEMS: usize = 1024;
/// Calls with nothing else to do that find the overlay below its threshold, and no burst, before it is drained all the same.
const PATIENCE: u32 = 5;
/// So much log from one such call to the next, which rests for a tenth of a second in between, is a burst.
const BURST_BYTES: u64 = 512 << 10;
/// Calls that find the log where it was before the view is flushed, so that a later start has little to replay.
const IDLE_CALLS: u32 = 50;
pub(crate) const VIEW_FILE: &str = "VIEW";

#[derive(Debug, thiserror::Error)]
pub enum MaintainError {
    #[error(transparent)]
    View(#[from] ViewError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("the view's mark cannot be written: {0}")]
    Mark(std::io::Error),
    #[error("the log cannot be tended: {0}")]
    Log(String),
}

pub(crate) struct Maintenance {
    pub(crate) generation: u64,
    pub(crate) boot_id: String,
    pub(crate) mount_id: String,
    /// How far the view is known to be on the disk: what a restart replays from.
    pub(crate) view_position: LogPosition,
    /// What the mark says.
    marked: Meta,
    seal: u64,
    /// A failed view is marked as such.
    given_up: bool,
    /// The newest checkpoint; nothing may be trimmed above it.
    pub(crate) checkpoint_position: LogPosition,
    /// Nothing is written any more: the mark calls the view clean.
    closed: bool,
    pass: Option<Pass>,
    checkpoint: Option<CheckpointWriter>,
    /// Draining and what goes on beside it take turns.
    turn: bool,
    patience: u32,
    idle_at: LogPosition,
    idle_calls: u32,
    /// The log has grown much since the last call.
    is_burst: bool,
}

/// A walk through the overlay.
struct Pass {
    /// Everything published when it began.
    meta: Meta,
    shard: usize,
    after: Option<ViewKey>,
}

impl Maintenance {
    pub(crate) fn new(mark: ViewMark, checkpoint_position: LogPosition) -> Self {
        Maintenance {
            generation: mark.generation,
            boot_id: mark.boot_id,
            mount_id: mark.mount_id,
            view_position: mark.meta.position,
            marked: mark.meta,
            seal: mark.seal,
            given_up: false,
            checkpoint_position,
            closed: false,
            pass: None,
            checkpoint: None,
            turn: false,
            patience: 0,
            idle_at: LogPosition::default(),
            idle_calls: 0,
            is_burst: false,
        }
    }
}

impl Store {
    /// One bounded step; says whether there is more to do at once.
    pub fn maintain(&self) -> Result<bool, MaintainError> {
        let mut state = self.maintenance.lock();
        if state.closed {
            return Ok(false);
        }
        self.watch_space();
        self.note_idle(&mut state)?;
        if self.short_of_space.load(Ordering::Relaxed) {
            // sled latches a full disk's error: it is not written until there is space again.
            return Ok(false);
        }
        // No space for the next segment is no fault yet: the append that needs it will say so.
        if let Err(error) = self.log.prepare_next() {
            tracing::debug!(%error, "the next log segment is not ready");
        }
        if let Some(reason) = self.view_failure() {
            self.give_view_up(&mut state, reason);
            return Ok(false);
        }
        let done = self.step(&mut state);
        self.watch_view(&mut state, done)
    }

    /// After an error of its own the view is not written any more, and not trusted at the next start.
    fn watch_view<T>(&self, state: &mut Maintenance, done: Result<T, MaintainError>) -> Result<T, MaintainError> {
        if let Some(reason) = self.view_failure() {
            self.give_view_up(state, reason);
        }
        done
    }

    fn give_view_up(&self, state: &mut Maintenance, reason: &str) {
        if std::mem::replace(&mut state.given_up, true) {
            return;
        }
        state.pass = None;
        self.abandon_checkpoint(state);
        state.boot_id.clear();
        state.seal = 0;
        if let Err(error) = self.mark_view(state, &state.marked, false) {
            tracing::error!(%reason, %error, "the view has failed, and that cannot be marked");
        }
    }

    fn abandon_checkpoint(&self, state: &mut Maintenance) {
        if let Some(writer) = state.checkpoint.take() {
            writer.abandon(self.disk.as_ref());
        }
    }

    /// A count or a checkpoint walks the whole view: it must not hold up the draining of a burst, nor that the walk.
    fn step(&self, state: &mut Maintenance) -> Result<bool, MaintainError> {
        let walking = !self.is_counted() || state.checkpoint.is_some();
        let crowded = self.memory.overlay_bytes() >= self.config.overlay_drain_bytes;
        // A walk may last for minutes: it does not keep the log from being trimmed.
        let is_due = crowded || self.flush_is_due(state) || (!walking && self.pass_is_due(state));
        if state.pass.is_none() && is_due {
            state.patience = 0;
            state.pass = Some(Pass { meta: self.published_meta(), shard: 0, after: None });
        }
        state.turn = !state.turn;
        match state.pass.take() {
            None if !walking => return Ok(false),
            Some(mut pass) if !walking || state.turn => match self.drain_some(state, &mut pass)? {
                true => self.after_pass(state, pass.meta)?,
                false => state.pass = Some(pass),
            },
            pass => {
                state.pass = pass;
                if !self.count_some()? {
                    self.write_checkpoint(state)?;
                }
            }
        }
        Ok(true)
    }

    fn watch_space(&self) {
        let free = self.disk.free_bytes().unwrap_or_default();
        let short = free.is_some_and(|free| free < self.config.disk_reserve_bytes);
        if short != self.short_of_space.swap(short, Ordering::Relaxed) {
            tracing::warn!(short, ?free, reserve = self.config.disk_reserve_bytes, "free space crossed the reserve");
        }
    }

    /// Notes an idle log's durable end.
    fn note_idle(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        let end = self.log.appended();
        state.idle_calls = if end == state.idle_at { state.idle_calls.saturating_add(1) } else { 0 };
        if end == state.idle_at && end == self.log.durable() && self.is_poisoned().is_none() {
            self.log.note_idle().map_err(|error| MaintainError::Log(error.to_string()))?;
        }
        state.is_burst = self.log.bytes_between(state.idle_at, end) >= BURST_BYTES;
        state.idle_at = self.log.appended();
        Ok(())
    }

    fn pass_is_due(&self, state: &mut Maintenance) -> bool {
        let holds_some = self.memory.overlay_bytes() > 0;
        if !holds_some && !self.has_moved(state) {
            return false;
        }
        let may_wait = state.is_burst && !self.flush_is_due(state);
        state.patience = if may_wait { 0 } else { state.patience + 1 };
        state.patience > PATIENCE && (holds_some || self.flush_is_due(state))
    }

    fn has_moved(&self, state: &Maintenance) -> bool {
        state.view_position.0 != self.published.load(Ordering::Acquire)
    }

    fn flush_is_due(&self, state: &Maintenance) -> bool {
        let idle = state.idle_calls >= IDLE_CALLS && self.has_moved(state);
        idle || self.log.bytes_between(state.view_position, self.durable()) >= self.config.flush_log_bytes
    }

    /// Says whether the pass is at its end.
    fn drain_some(&self, state: &mut Maintenance, pass: &mut Pass) -> Result<bool, MaintainError> {
        let Some(shard) = self.memory.shards.get(pass.shard) else { return Ok(true) };
        let items = shard.read().overlay.next_to_drain(pass.after.as_ref(), STEP_ITEMS);
        self.note_rows(state)?;
        for (key, item) in &items {
            self.memory.view.put(key, item)?;
        }
        shard.write().overlay.drained(&items);
        match items.last() {
            Some((key, _)) if items.len() == STEP_ITEMS => pass.after = Some(key.clone()),
            _ => {
                pass.after = None;
                pass.shard += 1;
            }
        }
        Ok(false)
    }

    /// The mark knows every incarnation that the view names, before it names it. A replay starts below what the view holds,
    /// and what it meets there of later incarnations would otherwise count as concurrent with what they had seen.
    fn note_rows(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        let tree = self.tree();
        if tree.len() == state.marked.tree.len() {
            return Ok(());
        }
        let known = Meta { tree: IncarnationTree::clone(&tree), ..state.marked.clone() };
        self.mark_view(state, &known, false)?;
        state.marked = known;
        Ok(())
    }

    fn after_pass(&self, state: &mut Maintenance, meta: Meta) -> Result<(), MaintainError> {
        if self.flush_is_due(state) {
            self.view_flush(state, &meta)?;
        }
        let since = self.log.bytes_between(state.checkpoint_position, meta.position);
        if since >= self.config.checkpoint_log_bytes && state.checkpoint.is_none() {
            // The view holds all that was published at the meta's position; what it holds beyond is replayed over harmlessly.
            state.checkpoint = Some(CheckpointWriter::begin(self.disk.as_ref(), meta)?);
        }
        Ok(())
    }

    /// Flushes the view, syncs its file, and marks how far it holds.
    fn view_flush(&self, state: &mut Maintenance, meta: &Meta) -> Result<(), MaintainError> {
        state.seal = self.memory.view.flush()?;
        self.mark_view(state, meta, false)?;
        state.view_position = meta.position;
        state.marked = meta.clone();
        Ok(())
    }

    fn mark_view(&self, state: &Maintenance, meta: &Meta, clean: bool) -> Result<(), MaintainError> {
        let mark = ViewMark {
            generation: state.generation,
            boot_id: state.boot_id.clone(),
            mount_id: state.mount_id.clone(),
            clean,
            seal: state.seal,
            meta: meta.clone(),
        };
        self.disk.write_atomic(VIEW_FILE, &codec::encode_view_mark(&mark)).map_err(MaintainError::Mark)
    }

    fn write_checkpoint(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        let Some(writer) = state.checkpoint.as_mut() else { return Ok(()) };
        let items = self.memory.view.after(writer.after(), STEP_ITEMS)?;
        if !items.is_empty() {
            let written = writer.write(&items);
            return self.give_up_on_error(state, written);
        }
        let Some(writer) = state.checkpoint.take() else { return Ok(()) };
        // Both are asked for now that the last item is read: they cover all that the items are of.
        let tree = IncarnationTree::clone(&self.tree());
        let position = writer.finish(self.disk.as_ref(), self.durable(), tree)?;
        state.checkpoint_position = position;
        checkpoint::remove_others(self.disk.as_ref(), position)?;
        Ok(())
    }

    /// A checkpoint that cannot be written, on a full disk, is dropped; a later one takes its place.
    fn give_up_on_error(
        &self,
        state: &mut Maintenance,
        written: Result<(), CheckpointError>,
    ) -> Result<(), MaintainError> {
        if let Err(error) = written {
            self.abandon_checkpoint(state);
            return Err(error.into());
        }
        Ok(())
    }

    /// Counts some of what was there at start. Says whether it is still at it.
    fn count_some(&self) -> Result<bool, MaintainError> {
        if self.is_counted() {
            return Ok(false);
        }
        // Published state must not change between the reading and the moving of the frontier.
        let mut shards: Vec<_> = self.memory.shards.iter().map(|shard| shard.write()).collect();
        let Census::Upto(frontier) = shards[0].census.clone() else { return Ok(false) };
        let start = frontier.as_ref().map_or(ViewKey::first(RECORDS), ViewKey::successor);
        let last = ViewKey::last(RECORDS);
        let (in_view, mut upto) = some_of(self.memory.view.range(&start, &last), STEP_ITEMS)?;
        in_view.iter().for_each(|(key, item)| self.memory.view.note_known(key, item));
        let mut rows: BTreeMap<ViewKey, Item> = in_view.into_iter().collect();
        for shard in &shards {
            // Of the overlay, too, only so much at a time: it may hold many times what the view does.
            let above = shard.overlay.range(&start, upto.as_ref().map_or(&last, |upto| upto));
            let (above, cut_at) = some_of(above.map(|(key, packed)| Ok((key.clone(), packed.item()?))), STEP_ITEMS)?;
            upto = cut_at.or(upto);
            rows.extend(above);
            if let Some((key, packed)) = upto.as_ref().and_then(|upto| Some((upto, shard.overlay.visible(upto)?))) {
                rows.insert(key.clone(), packed.item()?);
            }
        }
        for (key, item) in rows.iter().filter(|(key, _)| upto.as_ref().is_none_or(|upto| *key <= upto)) {
            if let Item::Record(record) = item {
                let tally = Tally::of(key.keyspace(), &key.user_key(), record);
                let shard = self.memory.shard_of(key.keyspace(), &key.user_key());
                shards[shard.0 as usize].tallies.entry(key.keyspace()).or_default().add(tally);
            }
        }
        if upto.is_none() {
            self.memory.view.all_known();
        }
        let census = upto.map_or(Census::Done, |key| Census::Upto(Some(key)));
        shards.iter_mut().for_each(|shard| shard.census = census.clone());
        Ok(true)
    }

    /// Syncs, drains, flushes and marks the view clean: the next start has nothing to replay. What is written afterwards is
    /// refused. Closing twice is fine.
    pub fn close(&self) -> Result<(), MaintainError> {
        let mut state = self.maintenance.lock();
        if std::mem::replace(&mut state.closed, true) || self.is_poisoned().is_some() {
            return Ok(());
        }
        self.abandon_checkpoint(&mut state);
        self.sync().map_err(|error| MaintainError::Log(error.to_string()))?;
        let done = self.close_view(&mut state);
        // The log is closed whatever has become of the view: it is the log that counts.
        let view = self.watch_view(&mut state, done);
        self.log.close().map_err(|error| MaintainError::Log(error.to_string()))?;
        view
    }

    /// Everything that is published goes into the view.
    fn drain(&self, state: &mut Maintenance) -> Result<Meta, MaintainError> {
        let mut pass = Pass { meta: self.published_meta(), shard: 0, after: None };
        while !self.drain_some(state, &mut pass)? {}
        Ok(pass.meta)
    }

    /// For the doctor, who reads the view alone.
    pub(crate) fn drain_all(&self) -> Result<(), MaintainError> {
        self.drain(&mut self.maintenance.lock()).map(|_| ())
    }

    /// Writes a checkpoint of everything that is published, whatever log there is since the last.
    pub(crate) fn checkpoint_now(&self) -> Result<(), MaintainError> {
        let mut state = self.maintenance.lock();
        self.abandon_checkpoint(&mut state);
        let meta = self.drain(&mut state)?;
        self.view_flush(&mut state, &meta)?;
        state.checkpoint = Some(CheckpointWriter::begin(self.disk.as_ref(), meta)?);
        while state.checkpoint.is_some() {
            self.write_checkpoint(&mut state)?;
        }
        Ok(())
    }

    /// A view that has failed, or has no space, is left as it is marked: the next start replays the log, or rebuilds it.
    fn close_view(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        if self.view_failure().is_some() || self.short_of_space.load(Ordering::Relaxed) {
            return Ok(());
        }
        let meta = self.drain(state)?;
        state.seal = self.memory.view.flush()?;
        self.mark_view(state, &meta, true)?;
        state.view_position = meta.position;
        state.marked = meta;
        Ok(())
    }
}
