//! Torn writes are cut and reported, corruption is refused and named, and nothing comes back that should not.

use super::*;
use proptest::prelude::*;

/// What recovery must leave usable, whatever it cut.
fn goes_on(disk: &MemoryDisk, opened: Opened, what: &str) {
    let kept = opened.entries;
    let more = payload(33, 0xEE);
    opened.log.append(std::slice::from_ref(&more)).unwrap();
    opened.log.sync().unwrap();
    drop(opened.log);
    let again = open(disk, 98);
    let expected: Vec<Bytes> = payloads(&kept).into_iter().chain([more]).collect();
    assert_eq!(payloads(&again.entries), expected, "{what}");
    assert!(again.report.cuts.is_empty(), "{what}: {:?}", again.report.cuts);
    assert_eq!(payloads(&read_all(&again.log, 100)), expected, "{what}");
}

/// Two durable entries, then two batches that were never synced; where each entry ends.
fn log_with_unsynced_tail() -> (MemoryDisk, Vec<LogPosition>) {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    let mut ends = log.append(&[payload(100, 1), payload(0, 0)]).unwrap().ends;
    log.sync().unwrap();
    ends.extend(log.append(&[payload(61, 2), payload(7, 3)]).unwrap().ends);
    ends.extend(log.append(&[payload(0, 0), payload(704, 4)]).unwrap().ends);
    (disk, ends)
}

#[test]
fn a_tail_torn_at_any_byte_keeps_what_was_durable_and_nothing_by_halves() {
    let (disk, ends) = log_with_unsynced_tail();
    let files = image(&disk);
    let whole = open(&disk, 2).entries;
    let (durable, end) = (ends[1].offset() as usize, ends[5].offset() as usize);
    for cut in durable..=end {
        let mut torn = files.clone();
        torn[0].1[cut..].fill(0);
        // Padding is zeros anyway: a frame that misses no more is whole.
        let is_whole = |entry_end: &&LogPosition| {
            let upto = entry_end.offset() as usize;
            torn[0].1[..upto] == files[0].1[..upto]
        };
        let kept = ends.iter().take_while(is_whole).count();
        assert!(kept >= 2, "cut at {cut}");
        let disk = disk_with(&torn);
        let opened = open(&disk, 2);
        assert_eq!(opened.entries, whole[..kept], "cut at {cut}");
        goes_on(&disk, opened, &format!("cut at {cut}"));
    }
}

#[test]
fn sound_frames_after_a_torn_one_do_not_come_back() {
    let (disk, ends) = log_with_unsynced_tail();
    let files = image(&disk);
    let (from, upto) = (ends[1].offset() as usize, ends[4].offset() as usize);
    for torn in (from..upto).step_by(8) {
        let mut torn_files = files.clone();
        let before = torn_files[0].1[torn..torn + 8].to_vec();
        torn_files[0].1[torn..torn + 8].fill(0);
        if torn_files[0].1[torn..torn + 8] == before {
            continue;
        }
        let disk = disk_with(&torn_files);
        let opened = open(&disk, 2);
        let kept = ends.iter().filter(|end| end.offset() as usize <= torn).count();
        assert_eq!(opened.entries.len(), kept, "torn at {torn}");
        let [cut] = opened.report.cuts[..] else { panic!("torn at {torn}: {:?}", opened.report.cuts) };
        assert!(cut.position.offset() as usize <= torn && cut.position >= ends[kept - 1], "torn at {torn}: {cut:?}");
        assert_eq!(u64::from(cut.position.offset()) + cut.bytes, u64::from(ends[5].offset()), "torn at {torn}");
        goes_on(&disk, opened, &format!("torn at {torn}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_flipped_bit_is_refused_below_a_note_and_cut_above(byte in any::<prop::sample::Index>(), bit in 0..8u8) {
        let disk = MemoryDisk::new();
        let log = open(&disk, 1).log;
        let mut starts = Vec::new();
        let mut noted = log.durable();
        for fill in 1..=4 {
            noted = log.durable();
            let end = log.append(&[payload(40, fill)]).unwrap().end;
            starts.extend([at(end.segment(), end.offset() - 48 - NOTE), at(end.segment(), end.offset() - 48)]);
            log.sync().unwrap();
        }
        let mut files = image(&disk);
        let written = (log.durable().offset() - HEADER) as usize;
        let damaged = HEADER as usize + byte.index(written);
        files[0].1[damaged] ^= 1 << bit;
        let frame = *starts.iter().rfind(|start| start.offset() as usize <= damaged).unwrap();
        let disk = disk_with(&files);
        match try_open(&disk, &options(2)) {
            Err(LogError::Corrupt { position, noted: named }) => {
                prop_assert_eq!((position, named), (frame, noted));
                prop_assert!(frame < noted);
                prop_assert_eq!(image(&disk), files, "nothing is changed");
            }
            Ok(opened) => {
                prop_assert!(frame >= noted, "{frame} is below {noted}");
                prop_assert_eq!(opened.report.cuts[0].position, frame);
                goes_on(&disk, opened, "flipped");
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_note_written_when_idle_protects_the_last_batch() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    let end = log.append(&[payload(40, 1)]).unwrap().end;
    log.note_idle().unwrap();
    let syncs = disk.syncs();
    log.note_idle().unwrap();
    assert_eq!(disk.syncs(), syncs, "once is enough");
    let mut files = image(&disk);
    files[0].1[end.offset() as usize - 10] ^= 1;
    let error = try_open(&disk_with(&files), &options(2)).err().unwrap();
    assert!(
        matches!(error, LogError::Corrupt { position, noted } if position == at(1, HEADER + NOTE) && noted == end),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "commit log at 1:4120 fails its checksum, although it was durable up to 1:4168: repair it from a peer"
    );
}

#[test]
fn a_durable_frame_that_vanished_is_corruption_too() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    log.append(&[payload(40, 1)]).unwrap();
    log.note_idle().unwrap();
    let mut files = image(&disk);
    files[0].1[HEADER as usize..(HEADER + NOTE + 48) as usize].fill(0);
    let error = try_open(&disk_with(&files), &options(2)).err().unwrap();
    assert!(matches!(error, LogError::Corrupt { position, .. } if position == at(1, HEADER)), "{error}");
}

#[test]
fn what_a_peer_has_seen_is_never_a_torn_write() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    let end = log.append(&[payload(40, 1)]).unwrap().end;
    log.sync().unwrap();
    let mut files = image(&disk);
    files[0].1[end.offset() as usize - 1] ^= 1;
    let known = LogOptions { known_durable: end, ..options(2) };
    assert!(matches!(try_open(&disk_with(&files), &known), Err(LogError::Corrupt { noted, .. }) if noted == end));
    let opened = try_open(&disk_with(&files), &options(2)).unwrap();
    assert_eq!(opened.report.cuts.len(), 1, "without that knowledge it cannot be told from a torn write");
}

#[test]
fn a_later_run_vouches_for_what_it_recovered() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    let end = log.append(&[payload(40, 1)]).unwrap().end;
    log.sync().unwrap();
    drop(log);
    drop(open(&disk, 2));
    let mut files = image(&disk);
    files[0].1[end.offset() as usize - 1] ^= 1;
    let error = try_open(&disk_with(&files), &options(3)).err().unwrap();
    assert!(matches!(error, LogError::Corrupt { noted, .. } if noted == end), "{error}");
}

/// The frames of an older use of the very same segment, still on the disk behind the end of the newer one.
#[test]
fn stale_frames_never_read_as_sound() {
    let old = MemoryDisk::new();
    let log = open(&old, 1).log;
    for fill in 1..=5 {
        log.append(&[payload(100, fill)]).unwrap();
        log.sync().unwrap();
    }
    let new = MemoryDisk::new();
    let log = open(&new, 2).log;
    let end = log.append(&[payload(100, 9)]).unwrap().end;
    log.sync().unwrap();
    let mut files = image(&new);
    let stale = image(&old);
    files[0].1[end.offset() as usize..].copy_from_slice(&stale[0].1[end.offset() as usize..]);
    let disk = disk_with(&files);
    let opened = open(&disk, 3);
    assert_eq!(payloads(&opened.entries), [payload(100, 9)]);
    assert_eq!(opened.report.cuts[0].position, end);
    goes_on(&disk, opened, "stale");
}

#[test]
fn a_damaged_header_is_refused_and_an_unfinished_one_removed() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    log.append(&[payload(40, 1)]).unwrap();
    log.sync().unwrap();
    let mut files = image(&disk);
    files[0].1[20] ^= 1;
    assert!(matches!(try_open(&disk_with(&files), &options(2)), Err(LogError::CorruptHeader { segment: 1 })));
    let mut files = image(&disk);
    files.push(("log/0000000000000002.seg".to_owned(), vec![0; 30_000]));
    let disk = disk_with(&files);
    let opened = open(&disk, 2);
    assert_eq!((opened.entries.len(), opened.report.cuts.len()), (1, 0));
    assert_eq!(disk.list("log").unwrap(), ["0000000000000001.seg", "0000000000000003.seg"]);
}

#[test]
fn a_missing_segment_is_named() {
    let disk = MemoryDisk::new();
    for incarnation in 1..=3 {
        let log = open(&disk, incarnation).log;
        log.append(&[payload(40, 1)]).unwrap();
        log.close().unwrap();
    }
    let mut files = image(&disk);
    files.remove(1);
    let error = try_open(&disk_with(&files), &options(4)).err().unwrap();
    assert!(matches!(error, LogError::Missing { missing: 2, segment: 3 }), "{error}");
}

#[test]
fn a_refused_entry_ends_recovery() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    log.append(&[payload(40, 1)]).unwrap();
    log.close().unwrap();
    let refuse = |_| Err("no such keyspace");
    let error = CommitLog::open(Arc::new(disk), &options(2), refuse, &mut |_| ()).err().unwrap();
    assert_eq!(error.to_string(), "commit log entry at 1:4120 was refused: no such keyspace");
}
