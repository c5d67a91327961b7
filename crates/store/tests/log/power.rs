//! Power cuts and process deaths at any moment of a random history, between any two operations on the disk.
//!
//! The reference is the list of what was appended. After every crash the log must hand out a prefix of it, unchanged and
//! at the same positions, with everything in it that was durable.

use super::*;
use isle_store::disk::Crash;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

struct History {
    seed: u64,
    random: StdRng,
    disk: MemoryDisk,
    incarnation: u64,
    log: CommitLog,
    written: Vec<Entry>,
    trimmed: LogPosition,
    /// What recovery has handed out or a sync has covered.
    safe: LogPosition,
    crashes: u64,
    cuts: usize,
}

impl History {
    fn new(seed: u64) -> Self {
        let disk = MemoryDisk::new();
        let log = open(&disk, 1).log;
        let random = StdRng::seed_from_u64(seed);
        let (trimmed, safe) = (LogPosition::ZERO, LogPosition::ZERO);
        Self { seed, random, disk, incarnation: 1, log, written: Vec::new(), trimmed, safe, crashes: 0, cuts: 0 }
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..50 => self.append(),
            50..75 => self.sync(),
            75..80 => drop(self.log.note_idle().map(|durable| self.safe = self.safe.max(durable))),
            80..85 => drop(self.log.prepare_next()),
            85..88 => self.trim(),
            88..90 => self.reopen_after_close(),
            // The power goes in the middle of what comes next.
            90..95 => self.disk.fail_after(Some(self.random.random_range(0..12))),
            _ => self.crash(),
        }
        if self.log.poisoned().is_some() {
            self.crash();
        }
    }

    fn append(&mut self) {
        let count = self.random.random_range(1..5);
        let size_max = [50, 3_000, 30_000][self.random.random_range(0..3)];
        let batch: Vec<Bytes> =
            (0..count).map(|_| payload(self.random.random_range(0..size_max), self.random.random())).collect();
        let Ok(appended) = self.log.append(&batch) else { return };
        for (payload, end) in batch.into_iter().zip(appended.ends) {
            let start = at(end.segment(), end.offset() - 8 - (payload.len() as u32).next_multiple_of(8));
            self.written.push(Entry { start, end, incarnation: self.incarnation, payload });
        }
    }

    fn sync(&mut self) {
        if let Ok(durable) = self.log.sync() {
            self.safe = durable;
            self.check_reading();
        }
    }

    fn trim(&mut self) {
        let durable: Vec<LogPosition> =
            self.written.iter().map(|entry| entry.end).filter(|end| *end <= self.log.durable()).collect();
        if let Some(below) = durable.get(self.random.random_range(0..durable.len().max(1))) {
            self.trimmed = self.trimmed.max(*below);
            // It may fail where the power goes.
            drop(self.log.trim(*below));
        }
    }

    fn check_reading(&mut self) {
        let bytes_max = self.random.random_range(1..100_000);
        let (oldest, durable) = (self.log.oldest(), self.log.durable());
        let expected: Vec<&Entry> =
            self.written.iter().filter(|entry| entry.end > oldest && entry.end <= durable).collect();
        assert_eq!(read_all(&self.log, bytes_max).iter().collect::<Vec<_>>(), expected, "seed {}", self.seed);
    }

    fn reopen_after_close(&mut self) {
        if self.log.close().is_ok() {
            self.safe = self.log.durable();
            self.disk.fail_after(None);
            self.reopen(Crash::Process);
        }
    }

    fn crash(&mut self) {
        let how = match self.random.random_range(0..10) {
            0..2 => Crash::KeepSynced,
            2..8 => Crash::KeepSome,
            8 => Crash::Lying { syncs: self.random.random_range(1..8) },
            _ => Crash::Process,
        };
        self.crashes += 1;
        self.lose_power(how);
        // The power goes again while the log is recovered, now and then more than once.
        while self.random.random_bool(0.4) {
            self.disk.fail_after(Some(self.random.random_range(0..15)));
            let opened = self.try_open();
            if let Err(error) = &opened {
                assert!(matches!(error, LogError::Io { .. }), "seed {}: {error}", self.seed);
            }
            drop(opened);
            self.lose_power(Crash::KeepSome);
        }
        self.reopen(how);
    }

    fn lose_power(&mut self, how: Crash) {
        self.disk = self.disk.crash(how, &mut |n| self.random.random_range(0..n));
        if matches!(how, Crash::Lying { .. }) {
            self.safe = LogPosition::ZERO;
        }
    }

    fn try_open(&mut self) -> Result<Opened, LogError> {
        self.incarnation += 1;
        try_open(&self.disk, &LogOptions { replay_from: self.trimmed, ..options(self.incarnation) })
    }

    fn reopen(&mut self, how: Crash) {
        let seed = self.seed;
        let opened = self.try_open().unwrap_or_else(|error| panic!("seed {seed}, {how:?}: {error}"));
        let end = opened.report.end;
        let had: Vec<&Entry> = self.written.iter().filter(|entry| entry.end > self.trimmed).collect();
        let kept = opened.entries.len();
        assert!(kept <= had.len(), "seed {seed}, {how:?}: {kept} of {}", had.len());
        assert_eq!(opened.entries.iter().collect::<Vec<_>>(), had[..kept], "seed {seed}, {how:?}");
        for lost in &had[kept..] {
            assert!(lost.end > self.safe, "seed {seed}, {how:?}: lost {} below {}", lost.end, self.safe);
        }
        assert!(end >= self.safe, "seed {seed}, {how:?}: ends at {end} below {}", self.safe);
        self.written.retain(|entry| entry.end <= end);
        self.safe = end;
        self.cuts += opened.report.cuts.len();
        self.log = opened.log;
        self.check_reading();
    }
}

#[test]
fn every_durable_entry_survives_any_history_of_crashes() {
    let (mut crashes, mut cuts, mut segments) = (0, 0, 0);
    for seed in 0..400 {
        let mut history = History::new(seed);
        for _ in 0..150 {
            history.step();
        }
        history.crash();
        crashes += history.crashes;
        cuts += history.cuts;
        segments += u64::from(history.log.appended().segment());
    }
    // The histories must reach what they are for.
    assert!(crashes > 3_000 && cuts > 300 && segments > 4_000, "{crashes} crashes, {cuts} cuts, {segments} segments");
}

#[test]
fn a_process_that_died_loses_nothing_even_if_the_power_goes_later() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    for fill in 0..8 {
        log.append(&[payload(20_000, fill)]).unwrap();
    }
    let died = disk.crash(Crash::Process, &mut |_| 0);
    let recovered = open(&died, 2).entries;
    assert_eq!(recovered.len(), 8);
    let cut = died.crash(Crash::KeepSynced, &mut |_| 0);
    assert_eq!(open(&cut, 3).entries, recovered, "what was handed out stays");
}

/// The tail of a segment vanished whole, so that it ends in zeros like any other, and the next one is sound.
#[test]
fn a_vanished_tail_before_a_sound_segment_is_missed() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    log.append(&[payload(10, 1)]).unwrap();
    let durable = log.sync().unwrap();
    log.append(&[payload(30_000, 2)]).unwrap();
    log.append(&[payload(40_000, 3)]).unwrap();
    let mut files = image(&disk);
    assert_eq!(files.len(), 2);
    files[0].1[durable.offset() as usize..].fill(0);
    let disk = disk_with(&files);
    let opened = open(&disk, 2);
    assert_eq!(payloads(&opened.entries), [payload(10, 1)]);
    assert_eq!(opened.report.cuts[0].position, durable);
}
