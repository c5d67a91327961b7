//! The log on a real file system, under the sync thread and readers that follow it.

use super::*;
use isle_store::disk::RealDisk;
use isle_store::sync_thread::SyncThread;
use parking_lot::Mutex;

fn open_real(disk: &RealDisk, incarnation: u64) -> (Arc<CommitLog>, Vec<Entry>) {
    let mut entries = Vec::new();
    let visit = |entry| {
        entries.push(entry);
        Ok::<(), Infallible>(())
    };
    let (log, report) = CommitLog::open(Arc::new(disk.clone()), &options(incarnation), visit, &mut |_| ()).unwrap();
    assert!(report.cuts.is_empty());
    (Arc::new(log), entries)
}

fn sync_thread(log: &Arc<CommitLog>, on_durable: impl Fn(LogPosition) + Send + Sync + 'static) -> SyncThread {
    let syncing = log.clone();
    let on_failed = Box::new(|error: &isle_store::log::SyncError| panic!("{error}"));
    SyncThread::start(log.durable(), Box::new(move || syncing.sync()), Box::new(on_durable), on_failed).unwrap()
}

#[test]
fn a_real_log_is_as_it_was_after_every_reopen() {
    let directory = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(directory.path().to_owned()).unwrap();
    let mut expected = Vec::new();
    for incarnation in 1..=4 {
        let (log, entries) = open_real(&disk, incarnation);
        assert_eq!(entries, expected);
        for fill in 0..30 {
            log.append(&[payload(3_000, fill), payload(0, 0)]).unwrap();
            log.prepare_next().unwrap();
        }
        log.sync().unwrap();
        assert_eq!(read_all(&log, 1 << 20).len(), expected.len() + 60);
        expected = read_all(&log, 10_000);
        if incarnation % 2 == 0 {
            log.close().unwrap();
        }
    }
}

#[test]
fn writers_readers_and_the_sync_thread_agree() {
    let directory = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(directory.path().to_owned()).unwrap();
    let (log, _) = open_real(&disk, 1);
    let news: Arc<Mutex<Vec<LogPosition>>> = Arc::default();
    let thread = sync_thread(&log, {
        let news = news.clone();
        move |durable| news.lock().push(durable)
    });
    const WRITERS: u8 = 3;
    const BATCHES: usize = 100;
    let followed = std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (log, thread) = (&log, &thread);
            scope.spawn(move || {
                for batch in 0..BATCHES {
                    let end = log.append(&[payload(batch * 7, writer), payload(1, writer)]).unwrap().end;
                    thread.appended(end);
                    thread.wait_durable(end).unwrap();
                    assert!(log.durable() >= end);
                    log.prepare_next().unwrap();
                }
            });
        }
        let follower = scope.spawn(|| {
            let mut followed: Vec<Entry> = Vec::new();
            while followed.len() < usize::from(WRITERS) * BATCHES * 2 {
                let after = followed.last().map_or(LogPosition::ZERO, |entry| entry.end);
                followed.extend(log.read(after, 2_000).unwrap());
                std::thread::yield_now();
            }
            followed
        });
        follower.join().unwrap()
    });
    thread.stop();
    assert!(news.lock().is_sorted() && news.lock().last() == Some(&log.durable()));
    assert!(followed.is_sorted_by_key(|entry| entry.end));
    drop((thread, log));
    assert_eq!(open_real(&disk, 2).1, followed);
}

#[test]
fn stopping_syncs_what_was_appended() {
    let directory = tempfile::tempdir().unwrap();
    let (log, _) = open_real(&RealDisk::open(directory.path().to_owned()).unwrap(), 1);
    let thread = sync_thread(&log, |_| ());
    let end = log.append(&[payload(10, 1)]).unwrap().end;
    thread.appended(end);
    thread.stop();
    assert_eq!(log.durable(), end);
    thread.wait_durable(end).unwrap();
    let late = log.append(&[payload(10, 1)]).unwrap().end;
    thread.appended(late);
    assert!(thread.wait_durable(late).is_err(), "nobody syncs any more");
}

#[test]
fn a_failed_sync_wakes_those_who_wait() {
    let disk = MemoryDisk::new();
    let log = Arc::new(open(&disk, 1).log);
    let failures: Arc<Mutex<Vec<String>>> = Arc::default();
    let (syncing, failing) = (log.clone(), failures.clone());
    let thread = SyncThread::start(
        log.durable(),
        Box::new(move || syncing.sync()),
        Box::new(|durable| panic!("{durable} is not durable")),
        Box::new(move |error| failing.lock().push(error.reason.clone())),
    )
    .unwrap();
    disk.fail_syncs(true);
    let end = log.append(&[payload(10, 1)]).unwrap().end;
    thread.appended(end);
    let error = thread.wait_durable(end).unwrap_err();
    thread.stop();
    assert_eq!(*failures.lock(), [error.reason]);
}
