//! What goes on behind the writes, in bounded steps: draining the overlay into the view, counting what was there at start,
//! flushing the view and marking how far it holds, checkpoints, building a view anew that has outgrown what it holds.
//!
//! A pass walks the overlay once, in key order. When it ends, everything that was published when it began is in the view;
//! a flush then lets the mark say so, and a checkpoint may be scanned from the view alone. While a burst goes on no pass begins,
//! as long as overlay and log have room: the burst has the machine for itself, and the later pass costs less for each record,
//! since neighbours in key order share sled's pages.

mod scrub;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use isle_model::{IncarnationTree, ShardId};

use crate::checkpoint::{self, CheckpointError, CheckpointWriter};
use crate::log::LogPosition;
use crate::memory::{Census, Tally, put_all};
use crate::meta::{Meta, ViewMark};
use crate::open::write_mark;
use crate::overlay::Item;
use crate::packed::Packed;
use crate::purge::Sweep;
use crate::rebuild::{Rebuild, Size};
use crate::store::Store;
use crate::view::{View, ViewError, ViewPlace, some_of};
use crate::view_key::{RECORDS, ViewKey};

pub use scrub::{SET_ASIDE, Scrub};

/// Items drained, counted or written in one step.
const STEP_ITEMS: usize = 1024;
/// Calls with nothing else to do that find the overlay below its threshold, and no burst, before it is drained all the same.
const PATIENCE: u32 = 5;
/// So much log from one such call to the next, which rests for a tenth of a second in between, is a burst.
const BURST_BYTES: u64 = 512 << 10;
/// Calls that find the log where it was before the view is flushed, so that a later start has little to replay.
const IDLE_CALLS: u32 = 50;
/// Calls after a failed rebuild before the next is tried, twice as many after each that fails: a minute and a half at rest, and up
/// to a day.
const RETRY_CALLS: u32 = 1_000;
const RETRY_CALLS_MAX: u32 = 1 << 20;
/// A store that never quite rests may spend on rebuilds about what its writes have cost the view anyway.
const WRITTEN_PER_LIVE_BYTE: u64 = 2;
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
    /// A checkpoint is due whatever log there is since the last: the one there is, and the log, hold what was purged.
    checkpoint_asked: bool,
    sweep: Option<Sweep>,
    scrub: Option<Scrub>,
    /// Draining and what goes on beside it take turns.
    turn: bool,
    /// And so do a checkpoint, a rebuild and a sweep.
    walk_turn: bool,
    place: ViewPlace,
    rebuild: Option<Rebuild>,
    rebuild_asked: bool,
    pub(crate) rebuilds: u64,
    retry_in: u32,
    retry_calls: u32,
    /// A view that was replaced, while somebody may still read from it.
    retired: Option<Arc<View>>,
    /// What the view holds, keys and values as they are stored, as far as it is counted.
    live: i64,
    /// The size of its file when it was last flushed.
    view_bytes: u64,
    /// What was put into it since it was built or opened.
    written_bytes: u64,
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
    /// A checkpoint follows.
    checkpoint: bool,
}

impl Maintenance {
    pub(crate) fn new(mark: ViewMark, checkpoint_position: LogPosition, place: ViewPlace, live: i64) -> Self {
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
            checkpoint_asked: false,
            sweep: None,
            scrub: None,
            turn: false,
            walk_turn: false,
            place,
            rebuild: None,
            rebuild_asked: false,
            rebuilds: 0,
            retry_in: 0,
            retry_calls: RETRY_CALLS,
            retired: None,
            live,
            view_bytes: 0,
            written_bytes: 0,
            patience: 0,
            idle_at: LogPosition::default(),
            idle_calls: 0,
            is_burst: false,
        }
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        u64::try_from(self.live).unwrap_or_default()
    }

    /// The replaced view, once it is nobody else's. Nobody can get hold of it any more, so that it stays so.
    fn released(&mut self) -> Option<Arc<View>> {
        self.retired.take_if(|view| Arc::strong_count(view) == 1)
    }

    fn abandon_rebuild(&mut self, why: &dyn std::fmt::Display) {
        let Some(rebuild) = self.rebuild.take() else { return };
        tracing::warn!(%why, "building the view anew is given up; the one there is serves on");
        rebuild.abandon();
        self.retry_later();
    }

    fn retry_later(&mut self) {
        self.retry_in = self.retry_calls;
        self.retry_calls = self.retry_calls.saturating_mul(2).min(RETRY_CALLS_MAX);
    }
}

impl Store {
    /// One bounded step; says whether there is more to do at once.
    pub fn maintain(&self) -> Result<bool, MaintainError> {
        let mut state = self.maintenance.lock();
        let released = state.released();
        let done = self.maintain_with(&mut state);
        drop(state);
        // Without the lock: to remove a large file takes a while.
        drop(released);
        done
    }

    fn maintain_with(&self, state: &mut Maintenance) -> Result<bool, MaintainError> {
        if state.closed {
            return Ok(false);
        }
        state.retry_in = state.retry_in.saturating_sub(1);
        self.watch_space();
        self.note_idle(state)?;
        if self.short_of_space.load(Ordering::Relaxed) {
            state.abandon_rebuild(&"the disk has less free space than its reserve");
            // sled latches a full disk's error: it is not written until there is space again.
            return Ok(false);
        }
        // No space for the next segment is no fault yet: the append that needs it will say so.
        if let Err(error) = self.log.prepare_next() {
            tracing::debug!(%error, "the next log segment is not ready");
        }
        if let Some(reason) = self.view_failure() {
            self.give_view_up(state, &reason);
            return Ok(false);
        }
        let done = self.step(state);
        self.watch_view(state, done)
    }

    /// After an error of its own the view is not written any more, and not trusted at the next start.
    fn watch_view<T>(&self, state: &mut Maintenance, done: Result<T, MaintainError>) -> Result<T, MaintainError> {
        if let Some(reason) = self.view_failure() {
            self.give_view_up(state, &reason);
        }
        done
    }

    fn give_view_up(&self, state: &mut Maintenance, reason: &str) {
        if std::mem::replace(&mut state.given_up, true) {
            return;
        }
        tracing::error!(%reason, "the view is not written any more, and is built anew at the next start");
        state.pass = None;
        self.abandon_checkpoint(state);
        // What is copied from a view that has failed may be damaged as well.
        state.abandon_rebuild(&reason);
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

    /// A count, a checkpoint or a rebuild walks the whole view: it must not hold up the draining of a burst, nor that the walk.
    fn step(&self, state: &mut Maintenance) -> Result<bool, MaintainError> {
        self.pursue_scrub(state);
        if state.rebuild_asked {
            self.begin_rebuild(state)?;
        }
        let is_sweeping = state.sweep.is_some() || self.next_sweep().is_some();
        let walking = !self.is_counted() || state.checkpoint.is_some() || state.rebuild.is_some() || is_sweeping;
        let checkpoint = state.checkpoint_asked && state.checkpoint.is_none();
        let crowded = self.memory.overlay_bytes() >= self.config.overlay_drain_bytes;
        // A walk may last for minutes: it does not keep the log from being trimmed.
        let is_due = crowded || checkpoint || self.flush_is_due(state) || (!walking && self.pass_is_due(state));
        if state.pass.is_none() && is_due {
            state.patience = 0;
            state.checkpoint_asked &= !checkpoint;
            state.pass = Some(Pass { meta: self.published_meta(), shard: 0, after: None, checkpoint });
        }
        state.turn = !state.turn;
        match state.pass.take() {
            None if !walking => return self.rebuild_at_rest(state),
            Some(mut pass) if !walking || state.turn => match self.drain_some(state, &mut pass)? {
                true => self.after_pass(state, &pass)?,
                false => state.pass = Some(pass),
            },
            pass => {
                state.pass = pass;
                self.walk_some(state)?;
            }
        }
        Ok(true)
    }

    fn walk_some(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        if self.count_some(state)? {
            return Ok(());
        }
        state.walk_turn = !state.walk_turn;
        if let Some(sweep) = state.sweep.take().or_else(|| self.next_sweep()) {
            state.sweep = Some(sweep);
            if state.walk_turn || (state.checkpoint.is_none() && state.rebuild.is_none()) {
                return self.sweep_some(state);
            }
        }
        // A checkpoint is not put off by a rebuild, for the log is trimmed behind it, and need not be over before the swap: it goes on
        // from the key where it is, in the view that holds the same by then.
        if state.rebuild.is_some() && (state.walk_turn || state.checkpoint.is_none()) {
            return self.rebuild_some(state);
        }
        self.write_checkpoint(state)
    }

    fn next_sweep(&self) -> Option<Sweep> {
        let mut shards = self.memory.shards.iter().zip(0..);
        shards.find_map(|(shard, at)| Some(Sweep::new(*shard.read().published_purging.first()?, ShardId(at))))
    }

    /// Takes some of what was purged out of the overlay, and out of the view and the one that is to take its place.
    fn sweep_some(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        let Some(mut sweep) = state.sweep.take() else { return Ok(()) };
        let view = self.memory.view.load();
        let Some(keys) = sweep.next(&self.memory, &view, STEP_ITEMS)? else {
            // Once for all that go at once. The next pass begins behind the last removal, so that its meta names no purge.
            state.checkpoint_asked |= self.next_sweep().is_none();
            return Ok(());
        };
        for key in &keys {
            let by = view.remove(key)?;
            state.live += by;
            state.written_bytes += by.unsigned_abs();
        }
        if let Some(rebuild) = &mut state.rebuild
            && let Err(error) = rebuild.remove(&keys)
        {
            state.abandon_rebuild(&error);
        }
        state.sweep = Some(sweep);
        Ok(())
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
        let (items, census) = {
            let shard = shard.read();
            (shard.overlay.next_to_drain(pass.after.as_ref(), STEP_ITEMS), shard.census.clone())
        };
        self.note_rows(state)?;
        state.live += put_all(&self.memory.view.load(), &items, &census)?;
        state.written_bytes += items.iter().map(|(key, item)| bytes_of(key, item)).sum::<u64>();
        // In both before it leaves the overlay: whichever a reader looks in after that, it is there.
        if let Some(rebuild) = &mut state.rebuild
            && let Err(error) = rebuild.put(&items)
        {
            state.abandon_rebuild(&error);
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

    fn after_pass(&self, state: &mut Maintenance, pass: &Pass) -> Result<(), MaintainError> {
        let meta = &pass.meta;
        if pass.checkpoint || self.flush_is_due(state) {
            self.view_flush(state, meta)?;
        }
        let since = self.log.bytes_between(state.checkpoint_position, meta.position);
        if (pass.checkpoint || since >= self.config.checkpoint_log_bytes) && state.checkpoint.is_none() {
            // The view holds all that was published at the meta's position; what it holds beyond is replayed over harmlessly.
            state.checkpoint = Some(CheckpointWriter::begin(self.disk.as_ref(), meta.clone())?);
        }
        if state.checkpoint.is_none() && self.may_rebuild(state, false) {
            self.begin_rebuild(state)?;
        }
        Ok(())
    }

    /// Flushes the view, syncs its file, and marks how far it holds.
    fn view_flush(&self, state: &mut Maintenance, meta: &Meta) -> Result<(), MaintainError> {
        let view = self.memory.view.load();
        state.seal = view.flush()?;
        state.view_bytes = view.bytes();
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
        write_mark(self.disk.as_ref(), &mark).map_err(MaintainError::Mark)
    }

    /// Builds the view anew as soon as that can be done, though it has not outgrown what it holds.
    pub fn rebuild_view(&self) {
        self.maintenance.lock().rebuild_asked = true;
    }

    /// When there is nothing else to do. Says whether there is now.
    fn rebuild_at_rest(&self, state: &mut Maintenance) -> Result<bool, MaintainError> {
        let is_idle = state.idle_calls >= IDLE_CALLS;
        let is_paid_for = state.written_bytes >= state.live_bytes().saturating_mul(WRITTEN_PER_LIVE_BYTE);
        if (is_idle || (is_paid_for && !state.is_burst)) && self.may_rebuild(state, true) {
            self.begin_rebuild(state)?;
        }
        Ok(state.rebuild.is_some())
    }

    fn may_rebuild(&self, state: &Maintenance, at_rest: bool) -> bool {
        let size = self.view_size(state);
        let is_due = size.bytes >= self.config.view_rebuild_bytes_min && size.has_outgrown(at_rest);
        is_due && state.retry_in == 0 && self.is_counted() && self.has_room_for(size.copy_bytes())
    }

    fn view_size(&self, state: &Maintenance) -> Size {
        let born_bytes = self.memory.view.load().born_bytes();
        Size { bytes: state.view_bytes, live_bytes: state.live_bytes(), born_bytes }
    }

    fn has_room_for(&self, bytes: u64) -> bool {
        let free = self.disk.free_bytes().unwrap_or_default();
        free.is_none_or(|free| free >= self.config.disk_reserve_bytes.saturating_add(bytes))
    }

    /// One at a time, and only of what has been counted: how much the new view has to hold is known then.
    fn begin_rebuild(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        if state.rebuild.is_some() || state.retired.is_some() || !self.is_counted() {
            return Ok(());
        }
        state.rebuild_asked = false;
        // Where a mark could not be written at the end of an earlier attempt, the next generation may be what it names: that must
        // not be removed before it is known to count no more.
        self.mark_view(state, &state.marked, false).inspect_err(|_| state.retry_in = RETRY_CALLS)?;
        let old = self.memory.view.load();
        let begun = Rebuild::begin(&old, &state.place, state.generation + 1, self.config.view_cache_bytes);
        match begun {
            Ok(rebuild) => state.rebuild = Some(rebuild),
            Err(error) => {
                tracing::warn!(%error, "the view cannot be built anew; the one there is serves on");
                state.retry_later();
                return Ok(());
            }
        }
        let (bytes, live_bytes, generation) = (old.bytes(), state.live_bytes(), state.generation + 1);
        tracing::info!(bytes, live_bytes, generation, "the view is built anew");
        Ok(())
    }

    /// Copies some of the view into the one that is to take its place.
    fn rebuild_some(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        let Some(rebuild) = &mut state.rebuild else { return Ok(()) };
        let items = self.memory.view.load().packed_after(rebuild.after(), STEP_ITEMS)?;
        match rebuild.copy(&items) {
            Ok(false) => Ok(()),
            Ok(true) => self.swap_view(state),
            Err(error) => {
                state.abandon_rebuild(&error);
                Ok(())
            }
        }
    }

    /// The new view holds what the old one does. It is on the disk before the mark names it, and is marked before anybody writes
    /// to it alone: a process that dies in between finds one of the two whole, and the log from where its mark says.
    fn swap_view(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        let Some(rebuild) = &mut state.rebuild else { return Ok(()) };
        if rebuild.live_bytes() != state.live {
            let why = format!("it holds {} bytes of {}", rebuild.live_bytes(), state.live);
            state.abandon_rebuild(&why);
            return Ok(());
        }
        let seal = match rebuild.finish() {
            Ok(seal) => seal,
            Err(error) => {
                state.abandon_rebuild(&error);
                return Ok(());
            }
        };
        let Some(view) = state.rebuild.take().map(Rebuild::into_view) else { return Ok(()) };
        let (old_generation, old_seal) = (state.generation, state.seal);
        (state.generation, state.seal) = (old_generation + 1, seal);
        // What the old view's mark says is in the new one, and what has been drained since is replayed over harmlessly.
        if let Err(error) = self.mark_view(state, &state.marked, false) {
            // The mark may name either of the two by now: both stay.
            (state.generation, state.seal) = (old_generation, old_seal);
            state.retry_later();
            return Err(error);
        }
        let view = Arc::new(view);
        let old = self.memory.view.swap(view.clone());
        old.retire();
        tracing::info!(
            bytes_before = old.bytes(),
            bytes = view.bytes(),
            generation = state.generation,
            "the view is new"
        );
        state.retired = Some(old);
        (state.view_bytes, state.written_bytes) = (view.bytes(), 0);
        state.retry_calls = RETRY_CALLS;
        state.rebuilds += 1;
        Ok(())
    }

    fn write_checkpoint(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        let Some(writer) = state.checkpoint.as_mut() else { return Ok(()) };
        let items = self.memory.view.load().after(writer.after(), STEP_ITEMS)?;
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
    fn count_some(&self, state: &mut Maintenance) -> Result<bool, MaintainError> {
        if self.is_counted() {
            return Ok(false);
        }
        // Published state must not change between the reading and the moving of the frontier.
        let mut shards: Vec<_> = self.memory.shards.iter().map(|shard| shard.write()).collect();
        let Census::Upto(frontier) = shards[0].census.clone() else { return Ok(false) };
        let start = frontier.as_ref().map_or(ViewKey::first(RECORDS), ViewKey::successor);
        let last = ViewKey::last(RECORDS);
        let mut sizes = Vec::new();
        let sized = self.memory.view.load().sized_range(&start, &last);
        let in_view = sized.map(|row| row.map(|(row, bytes)| (row, sizes.push(bytes)).0));
        let (in_view, mut upto) = some_of(in_view, STEP_ITEMS)?;
        in_view.iter().for_each(|(key, item)| self.memory.keys.note_known(key, item));
        let sizes: Vec<_> = in_view.iter().map(|(key, _)| key.clone()).zip(sizes).collect();
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
                let shard = &mut shards[self.memory.shard_of(key.keyspace(), &key.user_key()).0 as usize];
                if !shard.published_purging.contains(&key.keyspace()) {
                    shard.tallies.entry(key.keyspace()).or_default().add(tally);
                }
            }
        }
        let counted = sizes.iter().filter(|(key, _)| upto.as_ref().is_none_or(|upto| key <= upto));
        state.live += counted.map(|(_, bytes)| *bytes as i64).sum::<i64>();
        if upto.is_none() {
            self.memory.keys.all_known();
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
        state.abandon_rebuild(&"the store is closed");
        self.sync().map_err(|error| MaintainError::Log(error.to_string()))?;
        let done = self.close_view(&mut state);
        // The log is closed whatever has become of the view: it is the log that counts.
        let view = self.watch_view(&mut state, done);
        self.log.close().map_err(|error| MaintainError::Log(error.to_string()))?;
        view
    }

    /// Everything that is published goes into the view.
    fn drain(&self, state: &mut Maintenance) -> Result<Meta, MaintainError> {
        let mut pass = Pass { meta: self.published_meta(), shard: 0, after: None, checkpoint: false };
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
        state.seal = self.memory.view.load().flush()?;
        self.mark_view(state, &meta, true)?;
        state.view_position = meta.position;
        state.marked = meta;
        Ok(())
    }
}

/// What an item takes in the view.
fn bytes_of(key: &ViewKey, item: &Packed) -> u64 {
    (key.in_tree().len() + item.stored_bytes()) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use isle_model::write::{Writer, plan};
    use isle_model::{Epoch, Hlc, Incarnation, KeyspaceId, Mutation, Precondition, Region, ShardId, Value};

    use super::*;
    use crate::disk::MemoryDisk;
    use crate::{BootIdentity, ShardWriter, StoreConfig};

    const KEYSPACE: KeyspaceId = KeyspaceId(1);

    fn put(writer: &mut ShardWriter, key: &'static str, value: &str) {
        let (shard, region, key) = (ShardId(0), Region::new("a"), Bytes::from(key));
        let mut batch = writer.begin();
        let (tree, stamp) = (batch.tree(), batch.stamp(Hlc(1_000), Epoch::default()));
        let by = Writer {
            region: &region,
            home: &region,
            takes_over: false,
            keyspace: KEYSPACE,
            stamp,
            lineage: tree.shard(shard),
        };
        let (put, current) = (Mutation::Put { value: Value::string(value) }, batch.newest(KEYSPACE, &key).unwrap());
        let write = plan(&key, &put, &Precondition::None, None, &current, by).unwrap().unwrap();
        batch.write(KEYSPACE, write, stamp).unwrap();
        let _ = batch.commit().unwrap();
    }

    /// Where a drain meets it, or the copy, or the last flush.
    #[test]
    fn a_new_view_that_fails_is_given_up_and_the_old_one_serves_on() {
        for steps in 0..=3 {
            let root = tempfile::tempdir().unwrap();
            let boot = BootIdentity { boot_id: "boot".to_owned(), mount_id: "1".to_owned() };
            let config =
                StoreConfig { region: Region::new("a"), shards: 1, overlay_drain_bytes: 1, ..StoreConfig::default() };
            let place = ViewPlace::Directory(root.path().to_owned());
            let (store, mut writers, _) =
                Store::open(config, Arc::new(MemoryDisk::new()), place, boot, Incarnation(1), &mut |_| ()).unwrap();
            put(&mut writers[0], "a", "old");
            store.sync().unwrap();
            while store.maintain().unwrap() {}
            store.rebuild_view();
            for _ in 0..=steps {
                store.maintain().unwrap();
            }
            store.maintenance.lock().rebuild.as_ref().expect("it is not done yet").break_down();
            if steps == 0 {
                put(&mut writers[0], "b", "new");
                store.sync().unwrap();
            }
            while store.maintain().unwrap() {}
            assert!(store.maintenance.lock().rebuild.is_none());
            assert_eq!((store.stats().view_rebuilds, store.view_failure()), (0, None), "after {steps} steps");
            assert!(!root.path().join("view-2").exists());
            assert!(store.maintenance.lock().retry_in > 0, "it is not tried again at once");
            put(&mut writers[0], "a", "new");
            store.sync().unwrap();
            while store.maintain().unwrap() {}
            assert_eq!(store.memory.overlay_bytes(), 0);
            assert!(store.get(KEYSPACE, b"a").unwrap().is_some());
            store.rebuild_view();
            while store.maintain().unwrap() {}
            assert_eq!(store.stats().view_rebuilds, 1, "the next is none the worse for it");
        }
    }
}
