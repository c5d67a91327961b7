//! The two threads of a store in production: one syncs the log, one tends what goes on behind the writes.
//! The simulation runs neither: it calls `sync` and `maintain` from tasks of its own, where a crash can fall in between.

use std::io;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::store::Store;
use crate::sync_thread::{OnDurable, OnFailed, SyncThread};

/// How long the maintenance thread rests when there is nothing to do.
const REST: Duration = Duration::from_millis(100);

/// Stops both threads when it is dropped, after a last sync.
pub struct Threads {
    sync: Arc<SyncThread>,
    stopping: Arc<(Mutex<bool>, Condvar)>,
    maintenance: Option<JoinHandle<()>>,
}

impl Store {
    /// Starts the threads. `on_durable` is called from the sync thread after each sync, when its writes are visible already.
    pub fn start_threads(self: &Arc<Self>, on_durable: OnDurable, on_failed: OnFailed) -> io::Result<Threads> {
        let store = self.clone();
        let sync = SyncThread::start(self.durable(), Box::new(move || store.sync()), on_durable, on_failed)?;
        let sync = Arc::new(sync);
        let _ = self.sync_thread.set(Arc::downgrade(&sync));
        sync.appended(self.appended());
        let stopping = Arc::new((Mutex::new(false), Condvar::new()));
        let maintenance = std::thread::Builder::new().name("isle-maintenance".to_owned()).spawn({
            let (store, stopping) = (Arc::downgrade(self), stopping.clone());
            move || tend(&store, &stopping)
        })?;
        Ok(Threads { sync, stopping, maintenance: Some(maintenance) })
    }
}

fn tend(store: &Weak<Store>, stopping: &(Mutex<bool>, Condvar)) {
    let (stop, wake) = stopping;
    loop {
        let more = match store.upgrade() {
            None => return,
            Some(store) => store.maintain().unwrap_or_else(|error| {
                tracing::error!(%error, "maintenance failed; the log keeps what the view does not get");
                false
            }),
        };
        let mut stop = stop.lock();
        if !*stop && !more {
            wake.wait_for(&mut stop, REST);
        }
        if *stop {
            return;
        }
    }
}

impl Threads {
    pub fn stop(&mut self) {
        *self.stopping.0.lock() = true;
        self.stopping.1.notify_all();
        if let Some(thread) = self.maintenance.take()
            && thread.join().is_err()
        {
            tracing::error!("the maintenance thread had panicked");
        }
        self.sync.stop();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}
