//! The commit log against torn writes, damage, power cuts, full and failing disks.
#![allow(clippy::unwrap_used)]

mod damage;
mod faults;
mod power;
mod reading;
mod threads;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use isle_store::disk::{Disk, MemoryDisk, OpenMode};
use isle_store::log::{CommitLog, Entry, LogError, LogOptions, LogPosition, RecoveryReport};

/// Where the frames of a segment start, and what the note takes that every batch starts with.
const HEADER: u32 = 4096;
const NOTE: u32 = 24;

fn options(incarnation: u64) -> LogOptions {
    LogOptions { segment_bytes: LogOptions::SEGMENT_BYTES_MIN, recent_bytes: 4096, ..LogOptions::new(incarnation) }
}

struct Opened {
    log: CommitLog,
    report: RecoveryReport,
    entries: Vec<Entry>,
}

fn try_open(disk: &MemoryDisk, options: &LogOptions) -> Result<Opened, LogError> {
    let mut entries = Vec::new();
    let visit = |entry| {
        entries.push(entry);
        Ok::<(), Infallible>(())
    };
    let (log, report) = CommitLog::open(Arc::new(disk.clone()), options, visit, &mut |_| ())?;
    Ok(Opened { log, report, entries })
}

fn open(disk: &MemoryDisk, incarnation: u64) -> Opened {
    try_open(disk, &options(incarnation)).unwrap()
}

fn payload(size: usize, fill: u8) -> Bytes {
    Bytes::from(vec![fill; size])
}

fn payloads(entries: &[Entry]) -> Vec<Bytes> {
    entries.iter().map(|entry| entry.payload.clone()).collect()
}

/// Everything that is durable, read as a follower does.
fn read_all(log: &CommitLog, bytes_max: usize) -> Vec<Entry> {
    let mut after = log.oldest();
    let mut all = Vec::new();
    loop {
        let entries = log.read(after, bytes_max).unwrap();
        let Some(last) = entries.last() else { return all };
        after = last.end;
        all.extend(entries);
    }
}

/// The log's files as they are now.
fn image(disk: &MemoryDisk) -> Vec<(String, Vec<u8>)> {
    let names = disk.list("log").unwrap();
    names.into_iter().map(|name| format!("log/{name}")).map(|path| (path.clone(), disk.read(&path).unwrap())).collect()
}

/// A disk that durably holds such files.
fn disk_with(files: &[(String, Vec<u8>)]) -> MemoryDisk {
    let disk = MemoryDisk::new();
    disk.create_dir("log").unwrap();
    for (path, bytes) in files {
        let file = disk.open(path, OpenMode::Create).unwrap();
        file.write_at(bytes, 0).unwrap();
        file.sync_all().unwrap();
    }
    disk.sync_dir("log").unwrap();
    disk
}

fn at(segment: u32, offset: u32) -> LogPosition {
    LogPosition::new(segment, offset)
}
