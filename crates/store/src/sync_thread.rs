//! The thread that syncs the log in production, one group commit after the other.
//!
//! It syncs whenever something was appended since its last sync began, and tells what is durable from its own thread.
//! Whoever appends calls `appended`; nobody has to wait here. What to sync with is handed in, so that whatever must
//! happen between the sync and the news of it can.

use std::io;
use std::sync::Arc;

use crate::group_commit::{GroupCommit, WaitState};
use crate::log::{LogPosition, SyncError};
use crate::primitives::{Condvar, JoinHandle, Mutex, spawn};

pub type Sync = Box<dyn Fn() -> Result<LogPosition, SyncError> + Send>;
pub type OnDurable = Box<dyn Fn(LogPosition) + Send + std::marker::Sync>;
pub type OnFailed = Box<dyn Fn(&SyncError) + Send + std::marker::Sync>;

/// Stops, after a last sync of what was appended, when it is dropped.
pub struct SyncThread {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    progressed: Condvar,
}

struct State {
    group: GroupCommit,
    stopping: bool,
    stopped: bool,
}

impl SyncThread {
    /// `durable` is where the log stands now; `sync` makes everything appended durable and returns where that ends.
    pub fn start(
        durable: LogPosition,
        sync: Sync,
        on_durable: OnDurable,
        on_failed: OnFailed,
    ) -> io::Result<SyncThread> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { group: GroupCommit::new(durable), stopping: false, stopped: false }),
            wake: Condvar::new(),
            progressed: Condvar::new(),
        });
        let thread = spawn("isle-log-sync", {
            let shared = shared.clone();
            move || shared.run(&sync, &on_durable, &on_failed)
        })?;
        Ok(SyncThread { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The log ends there now.
    pub fn appended(&self, end: LogPosition) {
        self.shared.state.lock().group.appended(end);
        self.shared.wake.notify_one();
    }

    /// Blocks until a position that was reported as appended is durable, or cannot become so.
    pub fn wait_durable(&self, end: LogPosition) -> Result<(), SyncError> {
        let mut state = self.shared.state.lock();
        loop {
            match state.group.wait(end) {
                WaitState::Durable => return Ok(()),
                WaitState::Failed(reason) => return Err(SyncError { reason }),
                WaitState::Pending if state.stopped => {
                    return Err(SyncError { reason: "the sync thread has stopped".to_owned() });
                }
                WaitState::Pending => self.shared.progressed.wait(&mut state),
            }
        }
    }

    /// Syncs what was appended and ends the thread.
    pub fn stop(&self) {
        self.shared.state.lock().stopping = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the sync thread had panicked");
        }
        self.shared.state.lock().stopped = true;
        self.shared.progressed.notify_all();
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self, sync: &Sync, on_durable: &OnDurable, on_failed: &OnFailed) {
        while self.next_sync() {
            match sync() {
                Ok(durable) => {
                    self.state.lock().group.synced(durable);
                    self.progressed.notify_all();
                    on_durable(durable);
                }
                Err(error) => {
                    self.state.lock().group.failed(&error.reason);
                    self.progressed.notify_all();
                    on_failed(&error);
                }
            }
        }
    }

    /// Waits until there is something to sync; `false` means the end.
    fn next_sync(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.group.next_sync().is_some() {
                return true;
            }
            if state.stopping {
                return false;
            }
            self.wake.wait(&mut state);
        }
    }
}
