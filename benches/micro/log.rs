//! The commit log on a real disk: an append by itself, and with the sync that an answer waits for.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use isle_store::disk::RealDisk;
use isle_store::log::{CommitLog, LogOptions, LogPosition};
use tempfile::TempDir;

/// An encoded put of 128 bytes.
const PAYLOAD_BYTES: usize = 230;
/// So often is it trimmed, that a long run takes no more disk than a few segments.
const TRIM_EVERY_BYTES: u64 = 256 << 20;

struct Open {
    log: CommitLog,
    trimmed: LogPosition,
    // Goes last.
    _directory: TempDir,
}

fn open() -> Open {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(directory.path().to_owned()).unwrap());
    let visit = |_| Ok::<(), Infallible>(());
    let (log, _) = CommitLog::open(disk, &LogOptions::new(1), visit, &mut |_| {}).unwrap();
    Open { trimmed: log.appended(), log, _directory: directory }
}

impl Open {
    fn append(&mut self, batch: &[Bytes]) {
        self.log.append(batch).unwrap();
        let end = self.log.appended();
        if self.log.bytes_between(self.trimmed, end) > TRIM_EVERY_BYTES {
            self.log.sync().unwrap();
            self.log.trim(end).unwrap();
            self.trimmed = end;
        }
    }
}

fn batch(size: usize) -> Vec<Bytes> {
    vec![Bytes::from(vec![7; PAYLOAD_BYTES]); size]
}

#[divan::bench(args = [1, 16, 256])]
fn append(bencher: Bencher<'_, '_>, size: usize) {
    let (mut open, batch) = (open(), batch(size));
    bencher.counter(ItemsCount::new(size)).bench_local(|| open.append(&batch));
}

#[divan::bench(args = [1, 16, 256], sample_count = 50, sample_size = 20)]
fn append_and_sync(bencher: Bencher<'_, '_>, size: usize) {
    let (mut open, batch) = (open(), batch(size));
    bencher.counter(ItemsCount::new(size)).bench_local(|| {
        open.append(&batch);
        open.log.sync().unwrap()
    });
}
