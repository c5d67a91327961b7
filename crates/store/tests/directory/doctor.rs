//! The doctor names what is damaged, touches nothing unless asked, and leaves a directory that opens.

use isle_store::doctor::{Doctor, DoctorError, Examination, Finding, Severity};
use tempfile::TempDir;

use super::*;

fn call(root: &Path, scratch: &TempDir) -> Doctor {
    Doctor::call(root, boot("boot"), scratch.path()).unwrap()
}

pub fn examine(root: &Path) -> Examination {
    let scratch = tempfile::tempdir().unwrap();
    call(root, &scratch).examine(&mut |_| ()).unwrap()
}

pub fn repair(root: &Path, incarnation: u64) -> Vec<String> {
    let scratch = tempfile::tempdir().unwrap();
    let doctor = call(root, &scratch);
    let examination = doctor.examine(&mut |_| ()).unwrap();
    doctor.repair(examination, "damaged-0", Incarnation(incarnation)).unwrap().actions
}

fn damages(examination: &Examination) -> Vec<&Finding> {
    examination.findings.iter().filter(|finding| finding.severity == Severity::Damage).collect()
}

/// The one thing that is damaged, in words.
#[track_caller]
fn named(root: &Path) -> String {
    let examination = examine(root);
    let [finding] = damages(&examination)[..] else { panic!("{:#?}", examination.findings) };
    assert!(!finding.advice.is_empty(), "{finding:?}");
    format!("{} {}: {}", finding.part, finding.place, finding.what)
}

#[track_caller]
fn is_sound_and_shows(root: &Path, incarnation: u64, writes: &Writes) {
    let examination = examine(root);
    assert!(examination.is_sound(), "{:#?}", examination.findings);
    let live = Live::at(root, incarnation).unwrap();
    assert!(live.shown() == after(writes), "it shows something else");
    live.store.close().unwrap();
}

fn closed(count: usize) -> (TempDir, Writes) {
    let directory = tempfile::tempdir().unwrap();
    let (live, writes) = lived(directory.path(), 7, count);
    live.store.close().unwrap();
    (directory, writes)
}

fn segments(root: &Path) -> Vec<PathBuf> {
    files(&root.join("log")).into_keys().collect()
}

#[test]
fn a_sound_directory_is_called_so_and_left_as_it_is() {
    let (directory, writes) = closed(400);
    let before = files(directory.path());
    let examination = examine(directory.path());
    assert!(examination.is_sound(), "{:#?}", examination.findings);
    let said: Vec<&str> = examination.findings.iter().map(|finding| finding.what.as_str()).collect();
    for part in ["region a's, with 2 shards", "the checkpoint of", "every checksum right", "agrees with checkpoint"] {
        assert!(said.iter().any(|what| what.contains(part)), "{part}: {said:#?}");
    }
    assert!(files(directory.path()) == before, "an examination changes nothing");
    is_sound_and_shows(directory.path(), 2, &writes);
}

#[test]
fn a_directory_in_use_is_not_examined_and_another_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let none = Doctor::call(directory.path(), boot("boot"), scratch.path());
    assert!(matches!(none, Err(DoctorError::NoData { .. })));
    let (live, _) = lived(directory.path(), 1, 10);
    let refused = Doctor::call(directory.path(), boot("boot"), scratch.path());
    assert!(matches!(refused, Err(DoctorError::Running { .. })));
    drop(live);
}

#[test]
fn a_torn_tail_is_a_note_and_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (mut live, writes) = lived(directory.path(), 3, 60);
    let durable = live.store.durable();
    assert!(live.write("key-00", Some("never synced"), 9_000));
    let torn = tempfile::tempdir().unwrap();
    copy(directory.path(), torn.path());
    let name = format!("log/{:016x}.seg", durable.segment());
    flip(&torn.path().join(name), u64::from(durable.offset() + 30) * 8);
    let examination = examine(torn.path());
    assert!(examination.is_sound(), "{:#?}", examination.findings);
    assert!(examination.findings.iter().any(|finding| finding.what.contains("torn write")));
    assert!(Live::at(torn.path(), 2).unwrap().shown() == after(&writes));
}

/// Everything was in the view when the node stopped: what the log has lost since is not needed.
#[test]
fn a_log_damaged_after_a_clean_close_costs_nothing() {
    let (directory, writes) = closed(300);
    let root = directory.path();
    for (incarnation, segment) in [(10, 0), (20, 1)] {
        let path = segments(root)[segment].clone();
        flip(&path, 8 * 4_200);
        assert!(named(root).contains("fails its checksum, although it was durable up to"));
        repair(root, incarnation);
        assert!(root.join("damaged-0/log").join(path.file_name().unwrap()).exists());
        is_sound_and_shows(root, incarnation + 1, &writes);
    }
}

/// The view was flushed below the damage, or is not trusted: the log is cut, and what is left is what it said up to there.
#[test]
fn a_log_damaged_above_every_state_is_cut_there() {
    let directory = tempfile::tempdir().unwrap();
    let (live, writes) = lived(directory.path(), 5, 40);
    live.store.close().unwrap();
    drop(live);
    let root = directory.path();
    std::fs::remove_file(root.join("VIEW")).unwrap();
    let path = segments(root)[0].clone();
    let half = std::fs::metadata(&path).unwrap().len() / 2;
    flip(&path, 8 * half);
    let said = named(root);
    assert!(said.starts_with("log 1:") && said.contains("fails its checksum"), "{said}");
    assert!(Live::at(root, 2).is_err());
    let actions = repair(root, 3);
    assert!(actions.iter().any(|action| action.contains("cut the log at 1:")), "{actions:#?}");
    let live = Live::at(root, 4).unwrap();
    let shown = live.shown();
    let kept = (0..writes.len()).find(|n| after(&writes[..*n]) == shown);
    assert!(kept.is_some_and(|kept| kept > 5 && kept < writes.len()), "a prefix of what was written: {kept:?}");
}

type Harm = fn(&Path);

fn is_checkpoint(path: &str) -> bool {
    path.ends_with(".ckpt")
}

fn is_view(path: &str) -> bool {
    path.contains("view-") && path.ends_with("/db")
}

#[test]
fn every_part_that_is_damaged_is_named_set_aside_and_done_without() {
    let (directory, writes) = closed(400);
    let cases: [(&str, Harm); 6] = [
        ("checkpoint", |root| flip(&only(root, is_checkpoint), 8 * 900)),
        ("view", |root| flip(&only(root, is_view), 8 * 700)),
        ("view VIEW", |root| std::fs::write(root.join("VIEW"), b"\xff\xff").unwrap()),
        ("directory FORMAT", |root| std::fs::write(root.join("FORMAT"), b"isle dat").unwrap()),
        ("directory IDENTITY", |root| flip(&root.join("IDENTITY"), 8 * 7)),
        ("directory IDENTITY", |root| std::fs::remove_file(root.join("IDENTITY")).unwrap()),
    ];
    for (name, harm) in cases {
        let harmed = tempfile::tempdir().unwrap();
        copy(directory.path(), harmed.path());
        harm(harmed.path());
        assert!(named(harmed.path()).starts_with(name), "{name}: {}", named(harmed.path()));
        repair(harmed.path(), 10);
        is_sound_and_shows(harmed.path(), 11, &writes);
    }
}

#[test]
fn a_directory_of_another_version_is_not_repaired() {
    let (directory, _) = closed(20);
    std::fs::write(directory.path().join("FORMAT"), "isle data directory, format 2\n").unwrap();
    assert!(named(directory.path()).contains("format 2"));
    let scratch = tempfile::tempdir().unwrap();
    let doctor = call(directory.path(), &scratch);
    let examination = doctor.examine(&mut |_| ()).unwrap();
    assert!(matches!(doctor.repair(examination, "damaged-0", Incarnation(2)), Err(DoctorError::OtherVersion)));
}

#[test]
fn where_nothing_sound_is_left_the_region_begins_anew() {
    let (directory, _) = closed(400);
    let root = directory.path();
    std::fs::remove_file(root.join("VIEW")).unwrap();
    std::fs::remove_file(only(root, |path| path.ends_with(".ckpt"))).unwrap();
    let examination = examine(root);
    let named = damages(&examination).iter().any(|one| one.what.contains("no sound checkpoint or view reaches that"));
    assert!(named, "{:#?}", examination.findings);
    assert!(Live::at(root, 2).is_err());
    repair(root, 3);
    is_sound_and_shows(root, 4, &Writes::new());
    assert!(root.join("damaged-0/log").is_dir());
}

/// A record that the view holds and the log does not tell.
#[test]
fn a_view_that_says_something_else_than_the_log_is_found_out() {
    let (directory, writes) = closed(50);
    let other = tempfile::tempdir().unwrap();
    let (mut live, _) = lived(other.path(), 7, 50);
    assert!(live.write("key-01", Some("never logged here"), 99_000));
    live.store.close().unwrap();
    drop(live);
    let root = directory.path();
    std::fs::remove_dir_all(root.join("view-1")).unwrap();
    copy(&other.path().join("view-1"), &root.join("view-1"));
    assert!(named(root).contains("differs from checkpoint and log in"), "{}", named(root));
    repair(root, 10);
    is_sound_and_shows(root, 11, &writes);
}

/// An old segment that no recovery reads is damaged: a peer that needs it was refused for ever, and takes a state now.
#[test]
fn a_log_damaged_where_only_peers_read_it_is_passed_over() {
    let (directory, writes) = closed(300);
    let root = directory.path();
    let path = segments(root)[0].clone();
    flip(&path, 8 * 4_200);
    let live = Live::at(root, 2).unwrap();
    assert!(live.shown() == after(&writes), "the view has all of it");
    let (mut at, mut skipped, mut items) = (live.store.oldest(), 0, 0);
    while at < live.store.durable() {
        match live.store.tail(at, 4_096) {
            Ok(tail) if tail.upto > at => {
                items += tail.items.len();
                at = tail.upto;
            }
            Ok(_) => break,
            Err(isle_store::TailError::Trimmed { oldest }) => {
                assert!(oldest > at, "it gets on");
                at = oldest;
                skipped += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(skipped == 1 && items > 0, "{skipped} damaged segments passed over, {items} entries read");
}
