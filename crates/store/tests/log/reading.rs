//! Reading, trimming, and where the log starts.

use super::*;
use isle_store::log::ReadError;

/// Twenty batches over several segments; where each entry ends.
fn fill(log: &CommitLog) -> Vec<LogPosition> {
    let mut ends = Vec::new();
    for fill in 0..20 {
        ends.extend(log.append(&[payload(9_000, fill), payload(10, fill)]).unwrap().ends);
        log.sync().unwrap();
    }
    ends
}

#[test]
fn readers_see_what_is_durable_and_no_more() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 7).log;
    assert!(log.read(LogPosition::ZERO, 100).unwrap().is_empty());
    let first = log.append(&[payload(10, 1), payload(10, 2)]).unwrap();
    assert!(log.read(LogPosition::ZERO, 100).unwrap().is_empty());
    assert_eq!(log.sync().unwrap(), first.end);
    log.append(&[payload(10, 3)]).unwrap();
    let entries = log.read(LogPosition::ZERO, 100).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.end).collect::<Vec<_>>(), first.ends);
    assert_eq!((entries[0].start, entries[0].incarnation), (at(1, HEADER + NOTE), 7));
    assert_eq!(log.read(LogPosition::ZERO, 1).unwrap().len(), 1, "at least one");
    assert_eq!(log.read(first.ends[0], 100).unwrap(), entries[1..]);
    assert!(log.read(first.end, 100).unwrap().is_empty());
    assert!(log.durable() < log.appended());
}

#[test]
fn files_and_memory_read_the_same() {
    let disk = MemoryDisk::new();
    let in_files = open(&disk, 1).log;
    let ends = fill(&in_files);
    let options = LogOptions { recent_bytes: 8 << 20, ..options(1) };
    let in_memory = try_open(&MemoryDisk::new(), &options).unwrap().log;
    assert_eq!(fill(&in_memory), ends);
    for after in [LogPosition::ZERO].iter().chain(&ends) {
        for bytes_max in [1, 9_011, 50_000, usize::MAX] {
            let read = |log: &CommitLog| log.read(*after, bytes_max).unwrap();
            assert_eq!(read(&in_files), read(&in_memory), "{bytes_max} bytes after {after}");
        }
    }
    assert!(ends.last().unwrap().segment() >= 3, "several segments");
    assert_eq!(payloads(&open(&disk, 2).entries), payloads(&read_all(&in_memory, 1)));
}

#[test]
fn trimming_removes_whole_segments_below_and_says_what_is_left() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    let ends = fill(&log);
    let all = read_all(&log, 1 << 20);
    assert_eq!(log.bytes(), log.bytes_between(LogPosition::ZERO, log.appended()));
    let middle = ends[ends.len() / 2];
    assert_eq!(log.bytes(), log.bytes_between(LogPosition::ZERO, middle) + log.bytes_between(middle, log.appended()));
    log.trim(middle).unwrap();
    assert_eq!(disk.list("log").unwrap()[0], format!("{:016x}.seg", middle.segment()));
    let oldest = log.oldest();
    assert!(oldest > LogPosition::ZERO && oldest <= middle && ends.contains(&oldest));
    let left: Vec<Entry> = all.iter().filter(|entry| entry.end > oldest).cloned().collect();
    assert_eq!(read_all(&log, 1 << 20), left);
    assert_eq!(log.bytes(), log.bytes_between(oldest, log.appended()));
    assert!(matches!(log.read(LogPosition::ZERO, 1), Err(ReadError::Trimmed { oldest: named }) if named == oldest));
    drop(log);
    let error = try_open(&disk, &options(2)).err().unwrap();
    assert!(
        matches!(error, LogError::Trimmed { replay_from: LogPosition::ZERO, oldest: named } if named == oldest),
        "{error}"
    );
    let from_there = LogOptions { replay_from: middle, ..options(2) };
    let opened = try_open(&disk, &from_there).unwrap();
    assert_eq!(opened.log.oldest(), oldest);
    let above: Vec<Entry> = all.into_iter().filter(|entry| entry.end > middle).collect();
    assert_eq!(opened.entries, above);
}

#[test]
fn a_wholly_trimmed_log_still_knows_where_it_ends() {
    let disk = MemoryDisk::new();
    fill(&open(&disk, 1).log);
    let opened = open(&disk, 2);
    let end = opened.report.end;
    opened.log.trim(LogPosition(u64::MAX)).unwrap();
    assert_eq!(disk.list("log").unwrap().len(), 1);
    for incarnation in 3..6 {
        let from_end = LogOptions { replay_from: end, ..options(incarnation) };
        let opened = try_open(&disk, &from_end).unwrap();
        assert_eq!((opened.report.end, opened.log.oldest(), opened.entries.len()), (end, end, 0));
        opened.log.trim(LogPosition(u64::MAX)).unwrap();
    }
}

#[test]
fn a_segment_is_kept_until_the_next_durably_says_where_it_ended() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    let end = log.append(&[payload(40_000, 1)]).unwrap().end;
    log.sync().unwrap();
    log.append(&[payload(40_000, 2)]).unwrap();
    log.trim(end).unwrap();
    assert_eq!(log.oldest(), LogPosition::ZERO);
    log.sync().unwrap();
    log.trim(end).unwrap();
    assert_eq!(log.oldest(), end);
}

#[test]
fn a_damaged_entry_is_named_when_it_is_read() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    let ends = fill(&log);
    let damaged = ends[6];
    let path = format!("log/{:016x}.seg", damaged.segment());
    let file = disk.open(&path, OpenMode::ReadWrite).unwrap();
    file.write_at(&[0xFF], u64::from(damaged.offset()) - 10).unwrap();
    let error = log.read(ends[5], 100).unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { position } if position < damaged && position >= ends[5]), "{error}");
    assert_eq!(log.read(ends[4], 1).unwrap()[0].end, ends[5], "what is before it is read");
}

#[test]
fn a_log_that_lost_its_end_says_so_and_does_not_reuse_positions() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    log.append(&[payload(1, 1)]).unwrap();
    log.close().unwrap();
    let end = log.durable();
    let known = LogOptions { replay_from: at(40, 5000), known_durable: at(41, 5000), ..options(2) };
    let opened = try_open(&disk, &known).unwrap();
    assert_eq!(opened.report.end, end);
    assert!(opened.log.append(&[payload(2, 2)]).unwrap().end > known.known_durable);
    opened.log.sync().unwrap();
    assert_eq!(payloads(&read_all(&opened.log, 100)), [payload(1, 1), payload(2, 2)]);
}

#[test]
fn a_log_that_is_gone_altogether_is_missed() {
    let known = LogOptions { known_durable: at(41, 5000), ..options(1) };
    let error = try_open(&MemoryDisk::new(), &known).err().unwrap();
    assert!(matches!(error, LogError::Gone { known } if known == at(41, 5000)), "{error}");
}

#[test]
fn recovery_tells_its_progress() {
    let disk = MemoryDisk::new();
    fill(&open(&disk, 1).log);
    let mut seen = Vec::new();
    let visit = |_| Ok::<(), Infallible>(());
    CommitLog::open(Arc::new(disk), &options(2), visit, &mut |progress| seen.push(progress)).unwrap();
    assert!(seen.is_sorted_by_key(|progress| progress.done));
    let last = seen.last().unwrap();
    assert!(last.done == last.total && last.total > 180_000);
}
