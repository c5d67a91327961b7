//! A voter's storage: openraft's own suite, crashes between any two operations of the disk, damage, and the stored form.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use isle_model::metadata::{Command, Metadata};
use isle_model::policy::{Member, Members, Policy, Scope};
use isle_model::{KeyspaceId, Region};
use isle_store::disk::{Crash, Disk, MemoryDisk};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{
    CommittedLeaderId, Entry, EntryPayload, LogId, Membership, RaftLogReader, RaftSnapshotBuilder, StorageError, Vote,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::document::{Document, FILE};
use super::runtime::Owner;
use super::storage::{Machine, Storage};
use super::{Types, Voter, voter_id};
use crate::catalog::Catalog;

fn regions() -> [Region; 2] {
    ["eu", "us"].map(Region::new)
}

fn open(disk: &MemoryDisk) -> Storage {
    Storage::open(Arc::new(disk.clone()), &regions()[0], regions().into()).unwrap()
}

fn machine(storage: &Storage) -> Machine {
    Machine { storage: storage.clone(), catalog: Arc::new(Catalog::new(Metadata::default())) }
}

struct Fresh;

impl StoreBuilder<Types, Storage, Machine> for Fresh {
    async fn build(&self) -> Result<((), Storage, Machine), StorageError<u64>> {
        let storage = open(&MemoryDisk::new());
        let machine = machine(&storage);
        Ok(((), storage, machine))
    }
}

#[test]
fn openrafts_own_suite_passes() {
    // It starts tasks by way of the runtime.
    let owner = Owner::new(StdRng::seed_from_u64(1));
    futures::executor::block_on(owner.own(async { Suite::test_all(Fresh) })).unwrap();
}

fn id(term: u64, index: u64) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn entry(term: u64, index: u64, payload: EntryPayload<Types>) -> Entry<Types> {
    Entry { log_id: id(term, index), payload }
}

fn create(name: &str) -> EntryPayload<Types> {
    EntryPayload::Normal(Command::Create { name: name.to_owned(), policy: Policy::of_scope(Scope::Global) })
}

fn founding() -> Vec<Entry<Types>> {
    let voters = regions().map(|region| (voter_id(&region, 0), Voter { region }));
    let membership =
        Membership::new(vec![voters.iter().map(|voter| voter.0).collect()], std::collections::BTreeMap::from(voters));
    let members: Members =
        regions().map(|region| (region, Member { jurisdiction: "eu".to_owned(), ..Member::default() })).into();
    let keyspaces = vec![(KeyspaceId(1), "default".to_owned(), Policy::default())];
    vec![
        entry(0, 0, EntryPayload::Membership(membership)),
        entry(1, 1, EntryPayload::Blank),
        entry(1, 2, EntryPayload::Normal(Command::Found { members, keyspaces })),
    ]
}

/// What a voter does in its life, step by step. Says how many steps were promised.
async fn live(storage: &Storage) -> usize {
    let (mut log, mut machine) = (storage.clone(), machine(storage));
    let mut done = 0;
    macro_rules! step {
        ($step:expr) => {
            if $step.await.is_err() {
                return done;
            }
            done += 1;
        };
    }
    step!(log.blocking_append(founding()));
    step!(log.save_vote(&Vote::new_committed(1, 1)));
    step!(machine.apply(founding()));
    for index in 3..9 {
        let more = [entry(1, index, create(&format!("ks-{index}")))];
        step!(log.blocking_append(more.clone()));
        step!(machine.apply(more));
    }
    step!(log.blocking_append([entry(1, 9, create("never")), entry(1, 10, create("either"))]));
    step!(log.truncate(id(1, 9)));
    step!(log.save_vote(&Vote::new(2, 7)));
    step!(async { machine.get_snapshot_builder().await.build_snapshot().await });
    step!(log.purge(id(1, 7)));
    step!(log.blocking_append([entry(2, 9, create("last"))]));
    done
}

/// What a voter holds after so many steps.
async fn document_after(steps: usize) -> Document {
    let disk = MemoryDisk::new();
    // Five operations of the disk a step: create, write, sync, rename, sync of the directory.
    disk.fail_after(Some(5 * steps as u64));
    let storage = open(&disk);
    assert_eq!(live(&storage).await, steps);
    storage.document()
}

#[tokio::test]
async fn a_crash_between_any_two_operations_loses_nothing_promised() {
    let disk = MemoryDisk::new();
    let all = live(&open(&disk)).await;
    for operations in 0..=5 * all as u64 {
        for how in [Crash::KeepSynced, Crash::KeepSome, Crash::Process] {
            let disk = MemoryDisk::new();
            disk.fail_after(Some(operations));
            let done = live(&open(&disk)).await;
            let mut rng = StdRng::seed_from_u64(operations);
            let after = disk.crash(how, &mut |n| rng.random_range(0..n));
            let found = open(&after).document();
            let (promised, begun) = (document_after(done).await, document_after((done + 1).min(all)).await);
            assert!(found == promised || found == begun, "after {operations} operations, {how:?}: {found:?}");
        }
    }
}

#[tokio::test]
async fn what_was_applied_is_there_after_a_restart() {
    let disk = MemoryDisk::new();
    let storage = open(&disk);
    live(&storage).await;
    let again = open(&disk.crash(Crash::KeepSynced, &mut |_| 0));
    assert_eq!(again.metadata(), storage.metadata());
    assert_eq!(again.metadata().keyspaces.len(), 7);
    let mut log = again.clone();
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(2, 7)));
    let left: Vec<u64> =
        log.try_get_log_entries(0..100).await.unwrap().iter().map(|entry| entry.log_id.index).collect();
    assert_eq!(left, [8, 9]);
    let (applied, membership) = machine(&again).applied_state().await.unwrap();
    assert_eq!((applied, membership.voter_ids().count()), (Some(id(1, 8)), 2));
}

#[tokio::test]
async fn a_leader_has_to_be_elected_again_after_a_restart() {
    let storage = open(&MemoryDisk::new());
    let (me, other) = (voter_id(&regions()[0], 0), voter_id(&regions()[1], 0));
    for (saved, read) in [
        (Vote::new_committed(3, me), Vote::new(3, me)),
        (Vote::new(4, me), Vote::new(4, me)),
        (Vote::new_committed(5, other), Vote::new_committed(5, other)),
    ] {
        storage.clone().save_vote(&saved).await.unwrap();
        assert_eq!(storage.clone().read_vote().await.unwrap(), Some(read));
    }
}

#[tokio::test]
async fn a_change_that_cannot_be_written_has_not_happened() {
    let disk = MemoryDisk::new();
    let storage = open(&disk);
    live(&storage).await;
    let before = storage.document();
    disk.fail_writes(true);
    assert!(storage.clone().save_vote(&Vote::new(9, 9)).await.is_err());
    assert!(machine(&storage).apply([entry(2, 9, create("last"))]).await.is_err());
    assert_eq!(storage.document(), before);
    assert_eq!(storage.metadata().keyspaces.len(), 7);
}

#[tokio::test]
async fn damage_anywhere_is_found_and_the_way_out_is_named() {
    let disk = MemoryDisk::new();
    live(&open(&disk)).await;
    let sound = disk.read(FILE).unwrap();
    for at in (0..sound.len()).step_by(5) {
        for damaged in [sound[..at].to_vec(), [&sound[..at], &[sound[at] ^ 1], &sound[at + 1..]].concat()] {
            assert!(Document::decode(&damaged).is_err(), "byte {at}");
        }
    }
    disk.write_atomic(FILE, &sound[..sound.len() / 2]).unwrap();
    let refused = Storage::open(Arc::new(disk), &regions()[0], regions().into()).err().unwrap().to_string();
    assert!(refused.contains("METADATA") && refused.contains("move the file away"), "{refused}");
}

/// Frozen: what a node has stored once is read for ever.
#[tokio::test]
async fn the_stored_form_is_the_one_it_always_was() {
    let disk = MemoryDisk::new();
    let storage = open(&disk);
    live(&storage).await;
    let stored = String::from_utf8(disk.read(FILE).unwrap()).unwrap();
    assert_eq!(Document::decode(FROZEN.as_bytes()).unwrap(), storage.document());
    assert_eq!(stored, FROZEN);
    // Before what the founders gave was noted.
    let mut before = storage.document();
    before.snapshot.as_mut().unwrap().metadata.founded_id_max = 0;
    assert_eq!(Document::decode(FROZEN_BEFORE.as_bytes()).unwrap(), before);
}

const FROZEN: &str = include_str!("../../tests/fixtures/METADATA.2");
const FROZEN_BEFORE: &str = include_str!("../../tests/fixtures/METADATA.1");
