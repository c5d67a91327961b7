//! Group commit, its thread and the overlay under a scheduler that tries out interleavings: no reply before its fsync, no
//! wake-up that gets lost, no reader ahead of what is durable.
//!
//! The sources are the store's own, compiled here over the scheduler's locks and threads in place of the operating system's.
//! So that the tests are known to see what they look for, the locks can be made to lose wake-ups, the disk to lie, and the
//! writer to publish too early: each is found.
#![allow(clippy::unwrap_used, dead_code, unused_imports)]

mod primitives;
mod store;

#[path = "../../src/group_commit.rs"]
mod group_commit;
#[path = "../../src/overlay.rs"]
mod overlay;
#[path = "../../src/sync_thread.rs"]
mod sync_thread;
#[path = "../../src/view_key.rs"]
mod view_key;

mod log {
    pub use isle_store::log::{LogPosition, SyncError};
}

/// What waits to be drained, without its encoding: that is no matter of order.
mod packed {
    use std::sync::Arc;

    use crate::overlay::Item;
    use crate::view_key::ViewKey;

    #[derive(Clone)]
    pub(crate) enum Packed {
        Record { value: Arc<[u8]> },
        Gone,
    }

    impl Packed {
        pub(crate) fn of(_: &ViewKey, item: &Item) -> Packed {
            match item {
                Item::Record(_) => Packed::Record { value: Arc::new([0]) },
                _ => Packed::Gone,
            }
        }

        pub(crate) fn bytes(&self) -> usize {
            1
        }

        pub(crate) fn is_same(&self, other: &Packed) -> bool {
            match (self, other) {
                (Packed::Record { value: a }, Packed::Record { value: b }) => Arc::ptr_eq(a, b),
                _ => false,
            }
        }
    }
}

use std::panic::{AssertUnwindSafe, catch_unwind};

use store::{Planted, run, run_failing};

const SCHEDULES: usize = 10_000;
/// Forced switches between threads in one schedule: most bugs need two or three (Burckhardt et al., 2010).
const SWITCHES: usize = 3;

fn explore(planted: Planted) {
    shuttle::check_random(move || run(planted), SCHEDULES);
    shuttle::check_pct(move || run(planted), SCHEDULES, SWITCHES);
}

#[test]
fn no_reply_comes_before_its_fsync_no_wake_up_is_lost_and_no_reader_is_ahead() {
    explore(Planted::Nothing);
}

#[test]
fn a_failed_fsync_is_told_to_everybody_and_never_tried_again() {
    for syncs in 0..3 {
        shuttle::check_random(move || run_failing(syncs), SCHEDULES / 3);
        shuttle::check_pct(move || run_failing(syncs), SCHEDULES / 3, SWITCHES);
    }
}

#[test]
fn a_planted_bug_is_found() {
    let (early, ahead) = ("replied to before its fsync", "ahead of what is durable");
    for (planted, says) in [
        (Planted::LostWakeUps, ["deadlock"; 2]),
        (Planted::LyingDisk, [early, ahead]),
        (Planted::EarlyPublication, [ahead; 2]),
        (Planted::ReplyBeforePublication, ["does not see what it was told"; 2]),
    ] {
        let found = catch_unwind(AssertUnwindSafe(|| explore(planted)));
        let panic = found.expect_err(&format!("{planted:?} is not found"));
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        assert!(says.iter().any(|says| text.contains(says)), "{planted:?} is found as something else: {text}");
    }
}
