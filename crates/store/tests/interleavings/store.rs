//! A store in small: a log and a disk of positions alone, the real overlay, the real sync thread, and around them what
//! `Store::commit`, `Store::sync` and `Memory::visible` do.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use isle_model::{KeyspaceId, Record, ShardId};
use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use shuttle::sync::{Mutex, RwLock};

use crate::log::{LogPosition, SyncError};
use crate::overlay::{Item, Overlay, pack};
use crate::primitives::lose_wake_ups;
use crate::sync_thread::SyncThread;
use crate::view_key::ViewKey;

const WRITERS: u64 = 2;
const WRITES: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    Nothing,
    LostWakeUps,
    LyingDisk,
    EarlyPublication,
    ReplyBeforePublication,
}

struct Store {
    planted: Planted,
    /// Where the log ends, as its append lock has it.
    appended: Mutex<u64>,
    /// What the disk would still have after a power cut.
    on_disk: AtomicU64,
    shard: RwLock<Overlay<u64>>,
    /// The last position that was staged with what is published.
    published: AtomicU64,
    /// How many syncs end well before one fails.
    syncs_left: AtomicU64,
    failed: AtomicBool,
}

fn key(n: u64) -> ViewKey {
    ViewKey::record(KeyspaceId(1), ShardId(0), &n.to_be_bytes())
}

impl Store {
    fn new(planted: Planted, syncs: u64) -> Arc<Store> {
        Arc::new(Store {
            planted,
            appended: Mutex::new(0),
            on_disk: AtomicU64::new(0),
            shard: RwLock::new(Overlay::new(Arc::new(AtomicUsize::new(0)))),
            published: AtomicU64::new(0),
            syncs_left: AtomicU64::new(syncs),
            failed: AtomicBool::new(false),
        })
    }

    /// The shard stays locked from the append to the staging. The key is the position.
    fn commit(&self, thread: &SyncThread) -> u64 {
        let mut shard = self.shard.write().unwrap();
        let end = {
            let mut appended = self.appended.lock().unwrap();
            *appended += 1;
            *appended
        };
        shard.stage(LogPosition(end), vec![(key(end), Item::Record(Arc::new(Record::new())))], end);
        if self.planted == Planted::EarlyPublication {
            while let Some(changes) = shard.due(LogPosition(end)) {
                note(shard.publish_next(pack(&changes)), &self.published);
            }
        }
        drop(shard);
        thread.appended(LogPosition(end));
        end
    }

    fn sync(&self) -> Result<LogPosition, SyncError> {
        assert!(!self.failed.load(Ordering::SeqCst), "a failed sync is tried again");
        if self.syncs_left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.failed.store(true, Ordering::SeqCst);
            return Err(SyncError { reason: "EIO".to_owned() });
        }
        let end = *self.appended.lock().unwrap();
        shuttle::thread::yield_now();
        if self.planted != Planted::LyingDisk {
            self.on_disk.fetch_max(end, Ordering::SeqCst);
        }
        if self.planted != Planted::ReplyBeforePublication {
            self.publish(end);
        }
        Ok(LogPosition(end))
    }

    fn publish(&self, durable: u64) {
        // As in `Memory::publish`: packed without the lock, and made visible batch by batch.
        let due = || self.shard.read().unwrap().due(LogPosition(durable));
        while let Some(changes) = due() {
            let packed = pack(&changes);
            note(self.shard.write().unwrap().publish_next(packed), &self.published);
        }
    }

    fn sees(&self, end: u64) -> bool {
        self.shard.read().unwrap().visible(&key(end)).is_some()
    }

    /// Whoever reads sees nothing that a power cut would take back.
    fn read(&self) {
        for end in (1..=WRITERS * WRITES).rev() {
            let seen = self.sees(end);
            let on_disk = self.on_disk.load(Ordering::SeqCst);
            assert!(!seen || on_disk >= end, "a reader is ahead of what is durable: {end} of {on_disk}");
        }
    }

    fn write(&self, thread: &SyncThread) {
        let end = self.commit(thread);
        if thread.wait_durable(LogPosition(end)).is_err() {
            assert!(self.failed.load(Ordering::SeqCst), "{end} fails, and no sync has");
            assert!(!self.sees(end), "{end} is seen, and may be lost");
            return;
        }
        let on_disk = self.on_disk.load(Ordering::SeqCst);
        assert!(on_disk >= end, "{end} is replied to before its fsync: {on_disk} is on the disk");
        assert!(self.sees(end), "the writer of {end} does not see what it was told");
    }
}

fn note(with: Option<u64>, published: &AtomicU64) {
    published.fetch_max(with.unwrap(), Ordering::SeqCst);
}

/// One schedule: writers and a reader beside the sync thread, and at the end everything is durable and visible.
pub fn run(planted: Planted) {
    let store = go(planted, u64::MAX);
    let all = WRITERS * WRITES;
    assert_eq!(store.published.load(Ordering::SeqCst), all);
    assert!((1..=all).all(|end| store.sees(end)));
}

/// The same with a disk that fails for good after so many syncs: everybody is told, and what is seen is on the disk.
pub fn run_failing(syncs: u64) {
    let store = go(Planted::Nothing, syncs);
    store.read();
}

fn go(planted: Planted, syncs: u64) -> Arc<Store> {
    lose_wake_ups(planted == Planted::LostWakeUps);
    let store = Store::new(planted, syncs);
    let sync = {
        let store = store.clone();
        Box::new(move || store.sync())
    };
    let told = Arc::new(AtomicU64::new(0));
    let on_durable = {
        let (store, told) = (store.clone(), told.clone());
        Box::new(move |durable: LogPosition| {
            if store.planted == Planted::ReplyBeforePublication {
                store.publish(durable.0);
            }
            told.fetch_max(durable.0, Ordering::SeqCst);
        })
    };
    let thread = SyncThread::start(LogPosition(0), sync, on_durable, Box::new(|_| ())).unwrap();
    let thread = Arc::new(thread);
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (store, thread) = (store.clone(), thread.clone());
            shuttle::thread::spawn(move || (0..WRITES).for_each(|_| store.write(&thread)))
        })
        .collect();
    let reader = {
        let store = store.clone();
        shuttle::thread::spawn(move || store.read())
    };
    for joined in writers.into_iter().chain([reader]) {
        joined.join().unwrap();
    }
    thread.stop();
    assert!(told.load(Ordering::SeqCst) <= store.on_disk.load(Ordering::SeqCst), "told more than is on the disk");
    store
}
