//! openraft's storage: the document in memory, and its file, which is replaced at each change before openraft hears that it is
//! done.
//!
//! The law it keeps: what is in memory is what is on disk. A change that could not be written has not happened.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::{self, Cursor};
use std::ops::RangeBounds;
use std::sync::Arc;

use isle_model::Region;
use isle_model::metadata::Metadata;
use isle_store::disk::Disk;
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    Entry, LogId, LogState, OptionalSend, RaftLogReader, RaftSnapshotBuilder, RaftTypeConfig, Snapshot, SnapshotMeta,
    StorageError, StorageIOError, StoredMembership, Vote,
};
use parking_lot::Mutex;

use super::document::{Applied, Damaged, Document, FILE, StoredSnapshot};
use super::{Types, Voter, voter_id};
use crate::catalog::Catalog;

type Result<T> = std::result::Result<T, StorageError<u64>>;

/// Clones share one file.
#[derive(Clone)]
pub(crate) struct Storage {
    me: Region,
    disk: Arc<dyn Disk>,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    document: Document,
    applied: Applied,
}

impl Storage {
    /// Reads the file. Where there is none, the regions of the configuration are the founders.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        me: &Region,
        founders: BTreeSet<Region>,
    ) -> std::result::Result<Storage, Damaged> {
        let damaged = |error: io::Error| Damaged { fact: error.to_string() };
        let document = match disk.exists(FILE).map_err(damaged)? {
            true => Document::decode(&disk.read(FILE).map_err(damaged)?)?,
            false => Document { founders, ..Document::default() },
        };
        let applied = document.replay();
        Ok(Storage { me: me.clone(), disk, inner: Arc::new(Mutex::new(Inner { document, applied })) })
    }

    /// As far as it is known here that the cluster has agreed.
    pub(crate) fn metadata(&self) -> Metadata {
        self.inner.lock().applied.metadata.clone()
    }

    pub(crate) fn founders(&self) -> BTreeSet<Region> {
        self.inner.lock().document.founders.clone()
    }

    /// Takes the founders of a cluster that is there already for its own, and the place in it that it was given.
    pub(crate) fn adopt(&self, founders: BTreeSet<Region>, joined: u64) -> io::Result<()> {
        self.change(|document| (document.founders, document.joined) = (founders, joined))
    }

    /// The command that let this region in; 0 of a founder, and while that is not known.
    pub(crate) fn joined(&self) -> u64 {
        self.inner.lock().document.joined
    }

    /// This region, as a voter.
    pub(crate) fn voter(&self) -> u64 {
        voter_id(&self.me, self.inner.lock().document.joined)
    }

    /// Whether it has neither voted nor heard of anything.
    pub(crate) fn is_empty(&self) -> bool {
        let inner = self.inner.lock();
        inner.document.last().is_none() && inner.document.vote.is_none()
    }

    #[cfg(test)]
    pub(super) fn document(&self) -> Document {
        self.inner.lock().document.clone()
    }

    /// Writes what is known, to find out whether it can be.
    pub(crate) fn rewrite(&self) -> io::Result<()> {
        self.change(|_| {})
    }

    fn change(&self, change: impl FnOnce(&mut Document)) -> io::Result<()> {
        self.change_applied(|document, _| change(document))
    }

    /// Both change together, and only once the file has.
    fn change_applied<T>(&self, change: impl FnOnce(&mut Document, &mut Applied) -> T) -> io::Result<T> {
        let mut inner = self.inner.lock();
        let (mut document, mut applied) = (inner.document.clone(), inner.applied.clone());
        let out = change(&mut document, &mut applied);
        self.disk.write_atomic(FILE, &document.encode())?;
        (inner.document, inner.applied) = (document, applied);
        Ok(out)
    }
}

impl RaftLogReader<Types> for Storage {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>> {
        let inner = self.inner.lock();
        Ok(inner.document.log.iter().filter(|entry| range.contains(&entry.log_id.index)).cloned().collect())
    }
}

impl RaftLogStorage<Types> for Storage {
    type LogReader = Storage;

    async fn get_log_state(&mut self) -> Result<LogState<Types>> {
        let inner = self.inner.lock();
        Ok(LogState { last_purged_log_id: inner.document.purged, last_log_id: inner.document.last() })
    }

    async fn get_log_reader(&mut self) -> Storage {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<()> {
        let saved = self.change(|document| document.vote = Some(*vote));
        saved.map_err(|error| StorageIOError::write_vote(&error).into())
    }

    /// Asked for at the start alone. A leader does not go on as such then: its directory may be an older copy, and it would give
    /// other entries the places of those that it has forgotten, under one and the same leadership. It has to be elected again,
    /// and is not by those who have more.
    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>> {
        let me = self.voter();
        let vote = self.inner.lock().document.vote;
        Ok(vote.map(|vote| match vote.leader_id().voted_for() {
            Some(leader) if leader == me => Vote::new(vote.leader_id().term, leader),
            _ => vote,
        }))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<()>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let appended = self.change(|document| document.log.extend(entries));
        appended.map_err(|error| StorageIOError::write_logs(&error))?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, since: LogId<u64>) -> Result<()> {
        let cut = self.change(|document| document.log.retain(|entry| entry.log_id.index < since.index));
        cut.map_err(|error| StorageIOError::write_logs(&error).into())
    }

    async fn purge(&mut self, upto: LogId<u64>) -> Result<()> {
        let purged = self.change(|document| {
            document.log.retain(|entry| entry.log_id.index > upto.index);
            document.purged = document.purged.max(Some(upto));
        });
        purged.map_err(|error| StorageIOError::write_logs(&error).into())
    }
}

/// Applies what the cluster has agreed on, and tells the catalog.
pub(crate) struct Machine {
    pub(crate) storage: Storage,
    pub(crate) catalog: Arc<Catalog>,
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Picture;

    async fn applied_state(&mut self) -> Result<(Option<LogId<u64>>, StoredMembership<u64, Voter>)> {
        let inner = self.storage.inner.lock();
        Ok((inner.document.applied, inner.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<<Types as RaftTypeConfig>::R>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let outcomes = self.storage.change_applied(|document, applied| {
            let apply = |entry: Entry<Types>| {
                document.applied = Some(entry.log_id);
                applied.apply(&entry)
            };
            entries.into_iter().map(apply).collect()
        });
        let outcomes = outcomes.map_err(|error| StorageIOError::write_state_machine(&error))?;
        self.catalog.learn(self.storage.metadata());
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Picture {
        let inner = self.storage.inner.lock();
        let last_log_id = inner.document.applied;
        let meta = SnapshotMeta {
            last_log_id,
            last_membership: inner.applied.membership.clone(),
            // The same state has the same bytes wherever it is written.
            snapshot_id: last_log_id.map_or_else(|| "nothing".to_owned(), |id| id.to_string()),
        };
        let taken = StoredSnapshot { meta, metadata: inner.applied.metadata.clone() };
        Picture { storage: self.storage.clone(), taken }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, Voter>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<()> {
        let unread = |error| StorageIOError::read_snapshot(Some(meta.signature()), &error);
        let metadata: Metadata = serde_json::from_slice(snapshot.get_ref()).map_err(unread)?;
        let installed = self.storage.change_applied(|document, applied| {
            *applied = Applied { metadata: metadata.clone(), membership: meta.last_membership.clone() };
            document.applied = meta.last_log_id;
            document.snapshot = Some(StoredSnapshot { meta: meta.clone(), metadata });
        });
        installed.map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), &error))?;
        self.catalog.learn(self.storage.metadata());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>> {
        Ok(self.storage.inner.lock().document.snapshot.as_ref().map(StoredSnapshot::open))
    }
}

impl StoredSnapshot {
    fn open(&self) -> Snapshot<Types> {
        let bytes = serde_json::to_vec(&self.metadata).expect("its maps have names and numbers for keys");
        Snapshot { meta: self.meta.clone(), snapshot: Box::new(Cursor::new(bytes)) }
    }
}

/// The state at the moment in which a snapshot was asked for.
pub(crate) struct Picture {
    storage: Storage,
    taken: StoredSnapshot,
}

impl RaftSnapshotBuilder<Types> for Picture {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>> {
        let taken = self.taken.clone();
        let stored = self.storage.change(|document| {
            // One that came from the leader meanwhile may be newer.
            let there = document.snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id);
            if taken.meta.last_log_id >= there {
                document.snapshot = Some(taken);
            }
        });
        let signature = Some(self.taken.meta.signature());
        stored.map_err(|error| StorageIOError::write_snapshot(signature, &error))?;
        Ok(self.taken.open())
    }
}
