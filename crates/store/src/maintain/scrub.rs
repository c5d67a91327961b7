//! The disk is rid of what is gone: sled keeps what is taken out of it in its file until it uses the space again, and the log and the
//! last checkpoint have what was written.
//!
//! ```text
//! scrub ─▶ the log is cut ─▶ a checkpoint, and the view built anew (maintain) ─▶ the log is trimmed (whoever trims it) ─▶ is_scrubbed
//! ```
//! The law it keeps: what was gone when a scrub began is in no file of the data directory when that is over.

use super::{Maintenance, ViewPlace};
use crate::log::{LogPosition, SyncError};
use crate::store::Store;

/// How the names of directories begin that the doctor has set damaged parts aside in.
pub const SET_ASIDE: &str = "damaged-";

/// What the disk is being rid of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrub {
    /// Up to where the log, and checkpoints, may hold it.
    position: LogPosition,
    /// The view that holds it is replaced when it has been built anew so often.
    rebuilds: u64,
}

impl Store {
    /// Has the disk be rid of whatever is gone by now: the log up to here, checkpoints and the view's file hold it until they are made
    /// anew without it. The log has to be trimmed as well; `is_scrubbed` says when all is done.
    pub fn scrub(&self) -> Result<Scrub, SyncError> {
        let position = self.log.cut()?;
        self.sync()?;
        let mut state = self.maintenance.lock();
        // What it has copied before something was purged stays in its file.
        state.abandon_rebuild(&"it is to hold nothing that is purged");
        let scrub = Scrub { position, rebuilds: state.rebuilds + 1 };
        state.rebuild_asked = true;
        state.scrub = Some(scrub);
        Ok(scrub)
    }

    /// Whether no file holds any more what was gone when a scrub began.
    pub fn is_scrubbed(&self, scrub: &Scrub) -> bool {
        let state = self.maintenance.lock();
        let is_view_new = state.rebuilds >= scrub.rebuilds && state.retired.is_none();
        let is_anew = is_view_new && state.checkpoint_position >= scrub.position;
        is_anew && self.log.oldest() >= scrub.position && self.left_behind(&state).is_none()
    }

    /// A part of the data directory that nothing is read from any more, and that may hold what is gone: a view that is not removed yet,
    /// or what the doctor has set aside, which is for people to look at and to remove.
    fn left_behind(&self, state: &Maintenance) -> Option<String> {
        let mut names = self.disk.list("").unwrap_or_default();
        if let ViewPlace::Directory(root) = &state.place {
            let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
            names.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        let in_use = [state.generation, state.generation + 1].map(|generation| format!("view-{generation}"));
        let is_old_view = |name: &str| name.starts_with("view-") && !in_use.iter().any(|used| used == name);
        names.into_iter().find(|name| is_old_view(name) || name.starts_with(SET_ASIDE))
    }

    /// What the doctor has set aside, if anything: it may hold what is gone, and a scrub is not over until it is removed.
    pub fn set_aside(&self) -> Option<String> {
        self.left_behind(&self.maintenance.lock()).filter(|name| name.starts_with(SET_ASIDE))
    }

    /// Asks for what a scrub needs until it has come about: a full disk may have ended an earlier attempt.
    pub(super) fn pursue_scrub(&self, state: &mut Maintenance) {
        let Some(Scrub { position, rebuilds }) = state.scrub else { return };
        let (needs_view, needs_checkpoint) = (state.rebuilds < rebuilds, state.checkpoint_position < position);
        let is_on_its_way = state.checkpoint.is_some() || state.pass.as_ref().is_some_and(|pass| pass.checkpoint);
        state.rebuild_asked |= needs_view && state.rebuild.is_none() && state.retry_in == 0;
        state.checkpoint_asked |= needs_checkpoint && !is_on_its_way;
        state.scrub = state.scrub.filter(|_| needs_view || needs_checkpoint);
    }
}
