//! Full and failing disks.

use super::*;
use isle_store::disk::Crash;
use isle_store::log::{AppendError, PAYLOAD_BYTES_MAX};

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_space() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    disk.set_capacity(Some(disk.used()));
    let mut written = Vec::new();
    let refused = loop {
        let next = payload(1000, written.len() as u8);
        match log.append(std::slice::from_ref(&next)) {
            Ok(_) => written.push(next),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, AppendError::DiskFull);
    assert!(written.len() > 50);
    assert_eq!(log.append(&[payload(1000, 0)]).unwrap_err(), AppendError::DiskFull);
    // What fits still goes in, and falling idle needs no new segment.
    log.note_idle().unwrap();
    assert_eq!(payloads(&read_all(&log, 5000)), written);
    disk.set_capacity(None);
    let next = payload(1000, 77);
    log.append(std::slice::from_ref(&next)).unwrap();
    log.sync().unwrap();
    written.push(next);
    let after = disk.crash(Crash::KeepSynced, &mut |_| 0);
    assert_eq!(payloads(&open(&after, 2).entries), written);
}

#[test]
fn an_entry_leaves_room_for_the_note_that_follows_it() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    disk.set_capacity(Some(disk.used()));
    let room = LogOptions::SEGMENT_BYTES_MIN - HEADER - NOTE - 8;
    assert_eq!(log.append(&[payload(room as usize, 1)]).unwrap_err(), AppendError::DiskFull);
    let end = log.append(&[payload((room - NOTE) as usize, 1)]).unwrap().end;
    assert_eq!(log.note_idle().unwrap(), at(1, LogOptions::SEGMENT_BYTES_MIN));
    assert_eq!(end.offset() + NOTE, LogOptions::SEGMENT_BYTES_MIN);
    log.close().unwrap();
    assert_eq!(open(&disk, 2).entries.len(), 1);
}

#[test]
fn a_log_opens_on_a_full_disk_for_reading() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    log.append(&[payload(1000, 1)]).unwrap();
    log.close().unwrap();
    disk.set_capacity(Some(disk.used()));
    let opened = open(&disk, 2);
    assert_eq!(opened.entries.len(), 1);
    assert_eq!(read_all(&opened.log, 100).len(), 1);
    assert_eq!(opened.log.append(&[payload(1, 1)]).unwrap_err(), AppendError::DiskFull);
    opened.log.note_idle().unwrap();
    disk.set_capacity(None);
    opened.log.append(&[payload(1, 2)]).unwrap();
    opened.log.sync().unwrap();
    assert_eq!(read_all(&opened.log, 100).len(), 2);
    opened.log.close().unwrap();
    assert_eq!(open(&disk, 3).entries.len(), 2);
}

#[test]
fn a_failed_sync_ends_writing_for_good() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    let durable = log.append(&[payload(10, 1)]).unwrap().end;
    log.sync().unwrap();
    log.append(&[payload(10, 2)]).unwrap();
    disk.fail_syncs(true);
    let reason = log.sync().unwrap_err().reason;
    disk.fail_syncs(false);
    let syncs = disk.syncs();
    assert_eq!(log.sync().unwrap_err().reason, reason, "the reason is kept");
    assert_eq!(disk.syncs(), syncs, "it is never retried");
    assert_eq!(log.append(&[payload(10, 3)]).unwrap_err(), AppendError::Poisoned { reason: reason.clone() });
    assert_eq!(log.poisoned(), Some(reason));
    assert_eq!(log.durable(), durable);
    assert!(log.note_idle().is_err() && log.close().is_err() && log.prepare_next().is_err());
    assert_eq!(read_all(&log, 100).len(), 1, "what was durable is still read");
}

#[test]
fn a_failed_write_ends_writing_for_good() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    disk.fail_writes(true);
    assert!(matches!(log.append(&[payload(10, 1)]), Err(AppendError::Failed { .. })));
    disk.fail_writes(false);
    assert!(matches!(log.append(&[payload(10, 1)]), Err(AppendError::Poisoned { .. })));
    assert_eq!(open(&disk, 2).entries, []);
}

#[test]
fn limits_are_kept_and_what_is_below_them_fits() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    let too_large = payload(PAYLOAD_BYTES_MAX + 1, 1);
    let refused = log.append(&[payload(1, 1), too_large]).unwrap_err();
    assert_eq!(refused, AppendError::TooLarge { bytes: PAYLOAD_BYTES_MAX + 1 });
    assert_eq!(log.appended(), LogPosition::ZERO, "nothing of it was written");
    log.append(&[payload(1, 1), payload(PAYLOAD_BYTES_MAX, 2), payload(3, 3)]).unwrap();
    log.sync().unwrap();
    assert_eq!(
        read_all(&log, 10).iter().map(|entry| entry.payload.len()).collect::<Vec<_>>(),
        [1, PAYLOAD_BYTES_MAX, 3]
    );
    log.append(&[payload(9, 9)]).unwrap();
    log.close().unwrap();
    assert_eq!(open(&disk, 2).entries.len(), 4);
}

#[test]
fn a_closed_log_takes_nothing_and_keeps_no_spare_space() {
    let disk = MemoryDisk::new();
    let log = open(&disk, 1).log;
    log.append(&[payload(30_000, 1)]).unwrap();
    log.prepare_next().unwrap();
    assert_eq!(disk.list("log").unwrap().len(), 2);
    log.close().unwrap();
    assert!(matches!(log.append(&[payload(1, 1)]), Err(AppendError::Poisoned { .. })));
    assert_eq!(read_all(&log, 100).len(), 1);
    assert_eq!(disk.used(), u64::from(HEADER) + log.bytes());
    let opened = open(&disk.crash(Crash::KeepSynced, &mut |_| 0), 2);
    assert_eq!((opened.entries.len(), opened.report.end), (1, log.durable()));
}

/// Made in one go, its zeros held up every commit for a tenth of a second and more.
#[test]
fn the_next_segment_is_made_while_the_current_one_fills() {
    const MIB: usize = 1 << 20;
    let disk = MemoryDisk::new();
    let log = try_open(&disk, &LogOptions { segment_bytes: 16 << 20, ..options(1) }).unwrap().log;
    let mut made = Vec::new();
    for fill in 0..15 {
        log.append(&[payload(MIB, fill)]).unwrap();
        log.sync().unwrap();
        log.prepare_next().unwrap();
        made.push((disk.used() as usize / MIB).saturating_sub(16));
    }
    assert_eq!(made[..3], [0; 3], "mostly empty");
    assert!(made.windows(2).all(|pair| pair[1] - pair[0] <= 3), "{made:?}");
    assert_eq!(made[11..], [16; 4], "whole before it is needed: {made:?}");
}

/// Nobody looks at the disk between two appends of a burst: where a segment was made of the reserve, a restart had nothing to
/// make its own of.
#[test]
fn segments_leave_the_reserve_alone_and_a_start_takes_it() {
    let disk = MemoryDisk::new();
    let reserving = |incarnation| LogOptions { reserve_bytes: 100_000, ..options(incarnation) };
    let log = try_open(&disk, &reserving(1)).unwrap().log;
    disk.set_capacity(Some(disk.used() + 150_000));
    let refused = (0..).find_map(|fill| log.append(&[payload(10_000, fill)]).err()).unwrap();
    assert_eq!(refused, AppendError::DiskFull);
    assert_eq!(log.prepare_next(), Err(AppendError::DiskFull));
    log.sync().unwrap();
    let disk = disk.crash(Crash::KeepSynced, &mut |_| 0);
    let log = try_open(&disk, &reserving(2)).unwrap().log;
    log.append(&[payload(10, 1)]).unwrap();
    disk.set_capacity(None);
    (0..20).for_each(|fill| drop(log.append(&[payload(10_000, fill)]).unwrap()));
}
