//! Group commit: one sync makes durable whatever was appended before it began, and everyone who waits for any of that is
//! served by it.
//!
//! The law: a position is called durable only after a sync that began when it was appended already has ended well; at
//! most one sync is under way; after a failure there is never another. This is the state alone, without I/O, threads or
//! a clock. `SyncThread` drives it in production, a task with an awaited delay in simulation, a scheduler in tests.

use crate::log::LogPosition;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitState {
    Durable,
    Pending,
    /// It may or may not be durable; that shows when the log is opened again.
    Failed(String),
}

#[derive(Clone, Debug, Default)]
pub struct GroupCommit {
    appended: LogPosition,
    durable: LogPosition,
    syncing: Option<LogPosition>,
    failed: Option<String>,
}

impl GroupCommit {
    /// Starts with a log that is durable up to its end.
    pub fn new(durable: LogPosition) -> Self {
        Self { appended: durable, durable, syncing: None, failed: None }
    }

    /// The log ends there now. Appenders may report in any order.
    pub fn appended(&mut self, end: LogPosition) {
        self.appended = self.appended.max(end);
    }

    /// What a sync that begins now makes durable; `None` if there is nothing to do, or one is under way, or one failed.
    /// Whoever gets a position must answer with `synced` or `failed`.
    pub fn next_sync(&mut self) -> Option<LogPosition> {
        if self.syncing.is_some() || self.failed.is_some() || self.appended <= self.durable {
            return None;
        }
        self.syncing = Some(self.appended);
        self.syncing
    }

    /// The sync under way ended well, at what was asked for or above.
    pub fn synced(&mut self, durable: LogPosition) {
        let asked = self.syncing.take();
        debug_assert!(asked.is_some_and(|asked| durable >= asked), "{durable:?} ends no sync of {asked:?}");
        self.durable = self.durable.max(durable);
        // The log may have got further than its appenders have reported.
        self.appended = self.appended.max(durable);
    }

    /// The sync under way failed: it may not be retried.
    pub fn failed(&mut self, reason: impl Into<String>) {
        self.syncing = None;
        self.failed.get_or_insert(reason.into());
    }

    pub fn wait(&self, end: LogPosition) -> WaitState {
        match &self.failed {
            _ if end <= self.durable => WaitState::Durable,
            Some(reason) => WaitState::Failed(reason.clone()),
            None => WaitState::Pending,
        }
    }

    pub fn durable(&self) -> LogPosition {
        self.durable
    }

    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(position: u64) -> LogPosition {
        LogPosition(position)
    }

    #[test]
    fn one_sync_serves_all_that_came_before_it() {
        let mut group = GroupCommit::new(at(10));
        assert_eq!(group.next_sync(), None);
        group.appended(at(30));
        group.appended(at(20));
        assert_eq!(group.next_sync(), Some(at(30)));
        group.appended(at(40));
        assert_eq!(group.next_sync(), None, "one at a time");
        group.synced(at(30));
        assert_eq!((group.wait(at(30)), group.wait(at(40))), (WaitState::Durable, WaitState::Pending));
        assert_eq!(group.next_sync(), Some(at(40)));
    }

    #[test]
    fn a_failed_sync_is_never_retried() {
        let mut group = GroupCommit::new(at(0));
        group.appended(at(10));
        assert!(group.next_sync().is_some());
        group.failed("EIO");
        group.appended(at(20));
        assert_eq!(group.next_sync(), None);
        assert_eq!(group.wait(at(10)), WaitState::Failed("EIO".to_owned()));
        assert_eq!(group.wait(at(0)), WaitState::Durable);
    }

    proptest! {
        /// Against a disk that knows what really is synced: nothing is called durable that is not, and when the syncs
        /// keep ending, everything becomes durable.
        #[test]
        fn durable_is_what_the_disk_has(steps in proptest::collection::vec(0..4u8, 1..200)) {
            let mut group = GroupCommit::new(at(0));
            let (mut end, mut on_disk, mut under_way) = (0, 0, None);
            for step in steps {
                match step {
                    0 | 1 => { end += 1; group.appended(at(end)) }
                    2 => if let Some(upto) = group.next_sync() {
                        prop_assert!(under_way.is_none() && upto == at(end));
                        under_way = Some(end);
                    }
                    _ => if let Some(upto) = under_way.take() { on_disk = upto; group.synced(at(upto)) }
                }
                prop_assert_eq!(group.durable(), at(on_disk));
            }
            if let Some(upto) = under_way { group.synced(at(upto)) }
            if let Some(upto) = group.next_sync() { group.synced(upto) }
            prop_assert_eq!(group.durable(), at(end));
        }
    }
}
