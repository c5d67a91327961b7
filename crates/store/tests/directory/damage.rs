//! A bit flipped anywhere, a tail torn off, a checkpoint cut: it is named, or it is harmless.
//!
//! Harmless means that every key reads as it was acknowledged. A read that fails has named the damage; the next start then
//! builds the view anew, and shows everything. Whatever does not open is repaired, and what is then served is of the past of
//! that key: what is missing is for the region's peers.

use isle_store::OpenError;
use tempfile::TempDir;

use super::doctor::{examine, repair};
use super::*;

/// A directory as it lay there, and what was acknowledged.
struct Image {
    directory: TempDir,
    writes: Writes,
}

impl Image {
    /// Stopped cleanly, or died and was copied as the page cache had it.
    fn new(seed: u64, is_clean: bool) -> Image {
        let home = tempfile::tempdir().unwrap();
        let (live, writes) = lived(home.path(), seed, 400);
        live.store.maintain().unwrap();
        if is_clean {
            live.store.close().unwrap();
        } else {
            // The log falls idle, and says so.
            (0..3).for_each(|_| _ = live.store.maintain().unwrap());
        }
        let directory = tempfile::tempdir().unwrap();
        copy(home.path(), directory.path());
        Image { directory, writes }
    }

    fn copied(&self) -> TempDir {
        let copied = tempfile::tempdir().unwrap();
        copy(self.directory.path(), copied.path());
        copied
    }

    /// Then the view is of no use, and the checkpoint is needed: the log before it is trimmed.
    fn without_mark(self) -> Image {
        std::fs::remove_file(self.directory.path().join("VIEW")).unwrap();
        self
    }

    /// The files of a part, with the bytes that hold something.
    fn part(&self, of: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let root = self.directory.path();
        let all = files(root).into_iter().map(|(path, bytes)| (path.strip_prefix(root).unwrap().to_owned(), bytes));
        all.filter(|(path, bytes)| path.starts_with(of) && bytes.iter().any(|byte| *byte != 0)).collect()
    }
}

#[derive(Debug, Default)]
struct Outcomes {
    harmless: u64,
    rebuilt: u64,
    read_failed: u64,
    refused: u64,
}

/// What a damaged directory does: served as acknowledged, or named.
fn outcome(image: &Image, root: &Path, what: &str, outcomes: &mut Outcomes) {
    let acked = after(&image.writes);
    match Live::at(root, 2) {
        Ok(live) => {
            let reads: Vec<_> = (0..KEYS).map(key_of).map(|key| (live.get(&key), acked.get(&key))).collect();
            for (read, wanted) in &reads {
                assert!(read.as_ref().is_err() || read.as_ref().ok().unwrap().as_ref() == *wanted, "{what}: {read:?}");
            }
            if reads.iter().all(|(read, _)| read.is_ok()) {
                outcomes.rebuilt += u64::from(!live.report.view_reused);
                outcomes.harmless += u64::from(live.report.view_reused);
                return;
            }
            outcomes.read_failed += 1;
            assert!(live.store.view_failure().is_some(), "{what}");
            // The node tends its store, which marks the view as failed.
            let _ = live.store.maintain();
            drop(live);
            let again = Live::at(root, 3).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(!again.report.view_reused && again.shown() == acked, "{what}");
        }
        Err(error) => {
            outcomes.refused += 1;
            assert!(matches!(error, OpenError::Log(_) | OpenError::CheckpointLost { .. }), "{what}: {error}");
            assert!(!examine(root).is_sound(), "{what}: the doctor finds nothing, and yet: {error}");
            repair(root, 4);
            let live = Live::at(root, 5).unwrap_or_else(|error| panic!("{what}, repaired: {error}"));
            for (key, value) in live.shown() {
                assert!(image.writes.contains(&(key.clone(), Some(value))), "{what}: {key} was never that");
            }
        }
    }
}

/// One way to damage one part of a directory.
struct Kind {
    name: &'static str,
    image: Image,
    part: Vec<(PathBuf, Vec<u8>)>,
    harm: fn(&mut Seeded, &mut Vec<u8>),
    outcomes: Outcomes,
}

impl Kind {
    fn new(name: &'static str, image: Image, of: &str, harm: fn(&mut Seeded, &mut Vec<u8>)) -> Kind {
        let part = image.part(of);
        assert!(!part.is_empty(), "{name}: there is no {of} to be damaged");
        Kind { name, image, part, harm, outcomes: Outcomes::default() }
    }

    fn all() -> Vec<Kind> {
        let closed = || Image::new(11, true);
        let killed = || Image::new(11, false);
        vec![
            Kind::new("log, closed", closed(), "log", flip_some_bit),
            Kind::new("log, killed", killed(), "log", flip_some_bit),
            Kind::new("checkpoint, not needed", closed(), "checkpoints", flip_some_bit),
            Kind::new("checkpoint, needed", killed().without_mark(), "checkpoints", flip_some_bit),
            Kind::new("checkpoint, cut", killed().without_mark(), "checkpoints", cut_off),
            Kind::new("view, closed", closed(), "view-1", flip_some_bit),
            Kind::new("view, killed", killed(), "view-1", flip_some_bit),
            Kind::new("mark, closed", closed(), "VIEW", flip_some_bit),
            Kind::new("mark, killed", killed(), "VIEW", flip_some_bit),
        ]
    }

    fn try_out(&mut self, n: u64) {
        let mut rng = Seeded::new(n);
        let (path, bytes) = &self.part[rng.below(self.part.len() as u64) as usize];
        let mut harmed_bytes = bytes.clone();
        (self.harm)(&mut rng, &mut harmed_bytes);
        let harmed = self.image.copied();
        std::fs::write(harmed.path().join(path), harmed_bytes).unwrap();
        let what = format!("{}, trial {n}: {}", self.name, path.display());
        outcome(&self.image, harmed.path(), &what, &mut self.outcomes);
    }
}

/// Where there is something: zeros that are nobody's say little.
#[allow(clippy::ptr_arg, reason = "one of several ways to harm a file")]
fn flip_some_bit(rng: &mut Seeded, bytes: &mut Vec<u8>) {
    loop {
        let at = rng.below(bytes.len() as u64) as usize;
        if bytes[at] != 0 {
            bytes[at] ^= 1 << rng.below(8);
            return;
        }
    }
}

fn cut_off(rng: &mut Seeded, bytes: &mut Vec<u8>) {
    bytes.truncate(rng.below(bytes.len() as u64) as usize);
}

/// Of a view, what sled took for a torn write of its own was served as it had been before, without a word.
#[test]
fn whatever_is_damaged_is_named_or_harmless() {
    let mut kinds = Kind::all();
    let count = kinds.len() as u64;
    scenario("damage", 9 * count, 25 * count, |n| {
        kinds[(n % count) as usize].try_out(n);
        1
    });
    for Kind { name, outcomes, .. } in &kinds {
        println!("{name}: {outcomes:?}");
        let Outcomes { harmless, rebuilt, read_failed, refused } = *outcomes;
        let as_expected = match *name {
            "log, closed" | "log, killed" => refused > 0,
            "checkpoint, needed" | "checkpoint, cut" => refused > 0 && harmless + rebuilt + read_failed == 0,
            "checkpoint, not needed" => refused == 0,
            _ => refused == 0 && rebuilt > 0,
        };
        assert!(as_expected, "{name}: {outcomes:?}");
    }
}

/// What was appended and never synced reached the disk in part. The view is of before the power cut, and is built anew.
#[test]
fn a_torn_tail_keeps_what_was_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let (mut live, writes) = lived(home.path(), 17, 120);
    let durable = live.store.durable();
    let mut rng = Seeded::new(3);
    let mut unsynced = Writes::new();
    while live.store.appended().segment() == durable.segment() && unsynced.len() < 8 {
        let (key, value) = nth(&mut rng, 1_000 + unsynced.len());
        assert!(live.write(&key, value.as_deref(), 5_000));
        unsynced.push((key, value));
    }
    let end = live.store.appended();
    assert_eq!(end.segment(), durable.segment(), "another seed");
    let segment = format!("log/{:016x}.seg", end.segment());
    let directory = tempfile::tempdir().unwrap();
    copy(home.path(), directory.path());
    let image = Image { directory, writes };
    scenario("torn-tails", 40, 200, |n| {
        let mut rng = Seeded::new(n);
        let torn = image.copied();
        let path = torn.path().join(&segment);
        let mut bytes = std::fs::read(&path).unwrap();
        let cut = u64::from(durable.offset()) + rng.below(u64::from(end.offset() - durable.offset()));
        match rng.below(3) {
            0 => bytes.truncate(cut as usize),
            1 => bytes[cut as usize..].fill(0),
            _ => bytes[cut as usize..end.offset() as usize].iter_mut().for_each(|byte| *byte = rng.below(256) as u8),
        }
        std::fs::write(&path, bytes).unwrap();
        let disk = Arc::new(RealDisk::open(torn.path().to_owned()).unwrap());
        let live = Live::open(disk, torn.path(), "another boot", 2).unwrap_or_else(|e| panic!("{n}, {cut}: {e}"));
        assert!(!live.report.view_reused);
        let all: Writes = image.writes.iter().chain(&unsynced).cloned().collect();
        let shown = live.shown();
        let is_prefix = (image.writes.len()..=all.len()).any(|upto| after(&all[..upto]) == shown);
        assert!(is_prefix, "{n}: torn at {cut}");
        1
    });
}
