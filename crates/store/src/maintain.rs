//! What goes on behind the writes, in bounded steps: draining the overlay into the view, counting what was there at start,
//! flushing the view and marking how far it holds, checkpoints.
//!
//! A pass walks the overlay once, in key order. When it ends, everything that was published when it began is in the view;
//! a flush then lets the mark say so, and a checkpoint may be scanned from the view alone.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use crate::checkpoint::{self, CheckpointError, CheckpointWriter};
use crate::codec;
use crate::log::LogPosition;
use crate::memory::{Census, Tally};
use crate::meta::{Meta, ViewMark};
use crate::overlay::Item;
use crate::store::Store;
use crate::view::ViewError;
use crate::view_key::{RECORDS, ViewKey};

/// Items drained, counted or written in one step.
const STEP_ITEMS: usize = 1024;
/// Calls that find the overlay below its threshold before it is drained all the same.
const PATIENCE: u32 = 5;
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
    /// The newest checkpoint; nothing may be trimmed above it.
    pub(crate) checkpoint_position: LogPosition,
    /// A view that has failed stays failed: sled latches its errors. The next start rebuilds it.
    pub(crate) view_failed: Option<String>,
    pass: Option<Pass>,
    checkpoint: Option<CheckpointWriter>,
    patience: u32,
    idle_at: LogPosition,
}

/// A walk through the overlay.
struct Pass {
    /// Everything published when it began.
    meta: Meta,
    shard: usize,
    after: Option<ViewKey>,
}

impl Maintenance {
    pub(crate) fn new(mark: &ViewMark, checkpoint_position: LogPosition) -> Self {
        Maintenance {
            generation: mark.generation,
            boot_id: mark.boot_id.clone(),
            mount_id: mark.mount_id.clone(),
            view_position: mark.meta.position,
            checkpoint_position,
            view_failed: None,
            pass: None,
            checkpoint: None,
            patience: 0,
            idle_at: LogPosition::default(),
        }
    }
}

impl Store {
    /// One bounded step; says whether there is more to do at once.
    pub fn maintain(&self) -> Result<bool, MaintainError> {
        let mut state = self.maintenance.lock();
        self.watch_space();
        self.prepare_log(&mut state)?;
        if self.short_of_space.load(Ordering::Relaxed) {
            // sled latches a full disk's error: it is not written until there is space again.
            return Ok(false);
        }
        if state.view_failed.is_some() {
            return Ok(false);
        }
        let done = self.step(&mut state);
        if let Err(MaintainError::View(error)) = &done {
            state.view_failed = Some(error.to_string());
        }
        done
    }

    fn step(&self, state: &mut Maintenance) -> Result<bool, MaintainError> {
        if self.count_some()? {
            return Ok(true);
        }
        if state.pass.is_some() {
            self.drain_some(state)?;
            return Ok(true);
        }
        if state.checkpoint.is_some() {
            self.write_checkpoint(state)?;
            // A checkpoint must not hold up the draining of a burst: they take turns.
            return Ok(true);
        }
        if self.pass_is_due(state) {
            state.patience = 0;
            state.pass = Some(Pass { meta: self.published_meta(), shard: 0, after: None });
            return Ok(true);
        }
        Ok(false)
    }

    fn watch_space(&self) {
        let free = self.disk.free_bytes().unwrap_or_default();
        let short = free.is_some_and(|free| free < self.config.disk_reserve_bytes);
        if short != self.short_of_space.swap(short, Ordering::Relaxed) {
            tracing::warn!(short, ?free, reserve = self.config.disk_reserve_bytes, "free space crossed the reserve");
        }
    }

    /// Makes the next segment ready before it is needed, and notes an idle log's durable end.
    fn prepare_log(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        // No space for the next segment is no fault yet: the append that needs it will say so.
        if let Err(error) = self.log.prepare_next() {
            tracing::debug!(%error, "the next log segment is not ready");
        }
        let end = self.log.appended();
        if end == state.idle_at && end == self.log.durable() && self.is_poisoned().is_none() {
            self.log.note_idle().map_err(|error| MaintainError::Log(error.to_string()))?;
        }
        state.idle_at = self.log.appended();
        Ok(())
    }

    fn pass_is_due(&self, state: &mut Maintenance) -> bool {
        let bytes = self.memory.overlay_bytes();
        let nothing_new = state.view_position.0 == self.published.load(Ordering::Acquire);
        if bytes >= self.config.overlay_drain_bytes {
            return true;
        }
        if nothing_new && bytes == 0 {
            return false;
        }
        state.patience += 1;
        state.patience > PATIENCE && (bytes > 0 || self.flush_is_due(state.view_position))
    }

    fn flush_is_due(&self, from: LogPosition) -> bool {
        self.log.bytes_between(from, self.durable()) >= self.config.flush_log_bytes
    }

    fn drain_some(&self, state: &mut Maintenance) -> Result<(), MaintainError> {
        let Some(pass) = state.pass.as_mut() else { return Ok(()) };
        let Some(shard) = self.memory.shards.get(pass.shard) else {
            return match state.pass.take() {
                Some(pass) => self.after_pass(state, pass.meta),
                None => Ok(()),
            };
        };
        let items = shard.read().overlay.next_to_drain(pass.after.as_ref(), STEP_ITEMS);
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
        Ok(())
    }

    fn after_pass(&self, state: &mut Maintenance, meta: Meta) -> Result<(), MaintainError> {
        if self.flush_is_due(state.view_position) {
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
        self.memory.view.flush()?;
        self.mark_view(state, meta, false)?;
        state.view_position = meta.position;
        Ok(())
    }

    fn mark_view(&self, state: &Maintenance, meta: &Meta, clean: bool) -> Result<(), MaintainError> {
        let mark = ViewMark {
            generation: state.generation,
            boot_id: state.boot_id.clone(),
            mount_id: state.mount_id.clone(),
            clean,
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
        let position = writer.finish(self.disk.as_ref())?;
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
            if let Some(writer) = state.checkpoint.take() {
                writer.abandon(self.disk.as_ref());
            }
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
        let in_view = self.memory.view.range(&start, &ViewKey::last(RECORDS)).take(STEP_ITEMS);
        let mut rows = in_view.collect::<Result<BTreeMap<ViewKey, Item>, ViewError>>()?;
        let upto = rows.keys().next_back().filter(|_| rows.len() == STEP_ITEMS).cloned();
        let end = upto.as_ref().map_or(ViewKey::last(RECORDS), ViewKey::successor);
        for shard in &shards {
            rows.extend(shard.overlay.range(&start, &end).map(|(key, item)| (key.clone(), item.clone())));
        }
        for (key, item) in &rows {
            if let Item::Record(record) = item {
                let tally = Tally::of(key.keyspace(), &key.user_key(), record);
                let shard = self.memory.shard_of(key.keyspace(), &key.user_key());
                shards[shard.0 as usize].tallies.entry(key.keyspace()).or_default().add(tally);
            }
        }
        let census = upto.map_or(Census::Done, |key| Census::Upto(Some(key)));
        shards.iter_mut().for_each(|shard| shard.census = census.clone());
        Ok(true)
    }

    /// Syncs, drains, flushes and marks the view clean: the next start has nothing to replay.
    pub fn close(&self) -> Result<(), MaintainError> {
        if self.is_poisoned().is_some() {
            return Ok(());
        }
        self.sync().map_err(|error| MaintainError::Log(error.to_string()))?;
        let mut state = self.maintenance.lock();
        if let Some(writer) = state.checkpoint.take() {
            writer.abandon(self.disk.as_ref());
        }
        if state.view_failed.is_none() {
            let meta = self.published_meta();
            state.pass = Some(Pass { meta: meta.clone(), shard: 0, after: None });
            while state.pass.is_some() {
                self.drain_some(&mut state)?;
            }
            self.memory.view.flush()?;
            self.mark_view(&state, &meta, true)?;
            state.view_position = meta.position;
        }
        self.log.close().map_err(|error| MaintainError::Log(error.to_string()))
    }
}
