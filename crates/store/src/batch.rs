//! A shard's writer, and the batches it commits. Nothing of a batch takes effect, and no dot is used up, until its commit
//! succeeds: dropping it drops everything.

use std::sync::Arc;

use bytes::Bytes;
use isle_model::{
    Admission, Body, Delta, Dot, Epoch, Hlc, IncarnationTree, KeyspaceId, Record, Region, ShardId, Stamp, Stated,
    Streams, Vector, Write,
};

use crate::codec;
use crate::entry::{Entry, Received, StateChunk};
use crate::log::{AppendError, LogPosition};
use crate::memory::{ReadError, Workspace, all_known};
use crate::meta::Begun;
use crate::store::Store;

/// The single writer of one shard. Whoever owns it is the shard loop.
pub struct ShardWriter {
    store: Arc<Store>,
    shard: ShardId,
}

/// Appended, and not yet promised: it is durable once the log is synced up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what is not synced may not be acknowledged"]
pub struct Unsynced {
    pub end: LogPosition,
}

impl ShardWriter {
    pub(crate) fn new(store: Arc<Store>, shard: ShardId) -> Self {
        ShardWriter { store, shard }
    }

    pub fn shard(&self) -> ShardId {
        self.shard
    }

    pub fn begin(&mut self) -> Batch<'_> {
        let tree = self.store.tree();
        let work = Workspace::new(&self.store.memory, self.shard);
        Batch { store: &self.store, work, tree, payloads: Vec::new(), bytes: 0, spoiled: None }
    }
}

pub struct Batch<'a> {
    store: &'a Store,
    work: Workspace,
    tree: Arc<IncarnationTree>,
    payloads: Vec<Bytes>,
    bytes: usize,
    /// Why an operation stopped half-way: what it had changed by then cannot be told from what the others changed.
    spoiled: Option<String>,
}

/// Nothing of the batch has taken effect, unless the append says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error("reading what is stored failed in the middle of an operation, so that its batch is dropped: {reason}")]
    Spoiled { reason: String },
}

impl Batch<'_> {
    /// The newest state of a key: this batch's, unsynced batches', the overlay's, the view's. Empty where there is none.
    pub fn newest(&mut self, keyspace: KeyspaceId, key: &[u8]) -> Result<Arc<Record>, ReadError> {
        self.work.record(&self.store.memory, keyspace, key)
    }

    pub fn streams(&mut self, keyspace: KeyspaceId) -> &Streams {
        self.work.streams(&self.store.memory, keyspace)
    }

    pub fn tree(&self) -> Arc<IncarnationTree> {
        self.tree.clone()
    }

    /// What the next own delta of this shard will carry.
    pub fn stamp(&self, hlc: Hlc, epoch: Epoch) -> Stamp {
        Stamp { dot: self.next_dot(), hlc, epoch }
    }

    /// Writes an own delta; returns the record after it.
    pub fn write(&mut self, keyspace: KeyspaceId, write: Write, stamp: Stamp) -> Result<Arc<Record>, ReadError> {
        self.own(keyspace, stamp.hlc, stamp.epoch, Body::Write(write))
    }

    /// States in the own stream what has been absorbed, if that is news.
    pub fn statement(&mut self, keyspace: KeyspaceId, hlc: Hlc) -> Result<bool, ReadError> {
        let Some(statement) = self.streams(keyspace).statement() else { return Ok(false) };
        self.own(keyspace, hlc, Epoch::default(), Body::Statement(statement))?;
        Ok(true)
    }

    /// The next statement is made though it says nothing new: a peer got past the last one by a state.
    pub fn restate(&mut self, keyspace: KeyspaceId) {
        self.work.streams(&self.store.memory, keyspace).restate();
    }

    /// Applies another region's delta, if it is next in its stream. Its own lost deltas, too, come back to a region so.
    pub fn foreign(&mut self, origin: &Region, received: impl Into<Received>) -> Result<Admission, ReadError> {
        let received = received.into();
        let stamp = received.delta.hlc;
        let admission = self.take(origin, received, false)?;
        if admission == Admission::Apply {
            self.store.memory.note_hlc(stamp);
        }
        Ok(admission)
    }

    /// As `foreign`, for a delta whose stamp is too far ahead: the clock does not follow it, at the next start neither.
    pub fn foreign_ahead(&mut self, origin: &Region, received: impl Into<Received>) -> Result<Admission, ReadError> {
        self.take(origin, received.into(), true)
    }

    fn take(&mut self, origin: &Region, received: Received, ahead: bool) -> Result<Admission, ReadError> {
        let Received { delta, encoded } = received;
        self.work.check_open(delta.keyspace)?;
        let lineage = self.tree.shard(self.work.shard);
        if let Some(unknown) = all_known(lineage, delta.incarnations().into_iter()) {
            return Err(ReadError::UnknownIncarnation(Dot::new(unknown, 0)));
        }
        let admission = self.work.streams(&self.store.memory, delta.keyspace).admit(origin, &delta, lineage);
        if admission == Admission::Apply {
            let applied = self.work.delta(&self.store.memory, &self.tree, delta, false);
            self.whole(applied)?;
            self.append(codec::entry_of_delta(&encoded, ahead));
        }
        Ok(admission)
    }

    /// Forgets a tombstone that every holder has absorbed; says whether it did.
    pub fn forget(&mut self, keyspace: KeyspaceId, key: Bytes, holders: &[Region]) -> Result<bool, ReadError> {
        self.work.check_open(keyspace)?;
        let record = self.newest(keyspace, &key)?;
        let lineage = self.tree.shard(self.work.shard);
        let me = &self.store.memory.region;
        let streams = self.work.streams(&self.store.memory, keyspace);
        if record.is_empty() || !streams.may_forget(&record, holders, me, lineage) {
            return Ok(false);
        }
        let forgotten = self.work.forget(&self.store.memory, keyspace, &key);
        self.whole(forgotten)?;
        self.push(&Entry::Forget { keyspace, shard: self.work.shard, key });
        Ok(true)
    }

    /// Merges a complete state of a range of keys, or what has changed in it.
    pub fn state_chunk(&mut self, chunk: StateChunk, taken_at: Hlc) -> Result<(), ReadError> {
        self.work.check_open(chunk.keyspace)?;
        let chunk = StateChunk { taken_at, ..chunk };
        let lineage = self.tree.shard(self.work.shard);
        let of_records = chunk.records.iter().flat_map(|(_, record)| record.incarnations());
        let of_vectors = chunk.absorbed.iter().flat_map(|(_, v)| v.entries().iter().map(|e| e.0));
        if let Some(unknown) = all_known(lineage, of_records.chain(of_vectors)) {
            return Err(ReadError::UnknownIncarnation(Dot::new(unknown, 0)));
        }
        let merged = self.work.state_chunk(&self.store.memory, &self.tree, &chunk);
        self.whole(merged)?;
        self.store.memory.note_hlc(taken_at);
        self.push(&Entry::StateChunk(chunk));
        Ok(())
    }

    /// Notes how far a state transfer has come: before its first chunk is merged, so that after a crash it is known to be
    /// unfinished, and behind each, never before it, so that it goes on from what was merged.
    pub fn state_begun(&mut self, keyspace: KeyspaceId, from: Region, begun: Begun) -> Result<(), ReadError> {
        self.work.check_open(keyspace)?;
        self.work.state_begun(&self.store.memory, keyspace, &from, &begun);
        self.push(&Entry::StateBegun { keyspace, shard: self.work.shard, from, begun });
        Ok(())
    }

    /// Moves the cursors to where a state transfer was pinned, after its last chunk. `heard` is whose state it was, and what that
    /// region had absorbed by then, where that is to count as a statement of its; `is_empty`, whether nothing was in it.
    pub fn state_done(
        &mut self,
        keyspace: KeyspaceId,
        cursors: Vec<(Region, Vector)>,
        heard: Option<(Region, Stated)>,
        is_empty: bool,
    ) -> Result<(), ReadError> {
        self.work.check_open(keyspace)?;
        self.work.state_done(&self.store.memory, &self.tree, keyspace, &cursors, heard.as_ref(), is_empty);
        self.push(&Entry::StateDone { keyspace, shard: self.work.shard, cursors, heard, is_empty });
        Ok(())
    }

    /// Lets a keyspace go from this shard, whatever is known of it; says whether anything is. Nothing of it is there from here on,
    /// nor taken in until the disk holds nothing of it either: that goes on behind the writes.
    pub fn purge(&mut self, keyspace: KeyspaceId) -> bool {
        let is_here = self.work.keeps(&self.store.memory, keyspace);
        if is_here {
            self.work.purge(keyspace);
            self.push(&Entry::Purge { keyspace, shard: self.work.shard });
        }
        is_here
    }

    /// Whether there is nothing to commit, and nothing that a commit would refuse.
    pub fn is_empty(&self) -> bool {
        self.payloads.is_empty() && self.spoiled.is_none()
    }

    /// Bytes that the commit will append.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn len(&self) -> usize {
        self.payloads.len()
    }

    /// Appends the whole batch in one write. On an error nothing has taken effect.
    pub fn commit(self) -> Result<Unsynced, CommitError> {
        match self.spoiled {
            Some(reason) => Err(CommitError::Spoiled { reason }),
            None => Ok(self.store.commit(self.work, &self.payloads)?),
        }
    }

    /// Notes an operation that failed after it had changed something. What is refused beforehand changes nothing.
    fn whole<T>(&mut self, result: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(error @ ReadError::View(_)) = &result {
            self.spoiled.get_or_insert_with(|| error.to_string());
        }
        result
    }

    fn next_dot(&self) -> Dot {
        Dot::new(self.store.incarnation(), self.work.seq + 1)
    }

    fn own(&mut self, keyspace: KeyspaceId, hlc: Hlc, epoch: Epoch, body: Body) -> Result<Arc<Record>, ReadError> {
        self.work.check_open(keyspace)?;
        let prev = self.streams(keyspace).last_own();
        let delta = Delta { dot: self.next_dot(), prev, keyspace, shard: self.work.shard, hlc, epoch, body };
        let payload = codec::entry_of_own(&delta);
        let applied = self.work.delta(&self.store.memory, &self.tree, delta, true);
        let record = self.whole(applied)?;
        self.store.memory.note_hlc(hlc);
        self.append(payload);
        Ok(record)
    }

    fn push(&mut self, entry: &Entry) {
        self.append(codec::encode_entry(entry));
    }

    fn append(&mut self, payload: Bytes) {
        self.bytes += payload.len();
        self.payloads.push(payload);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use isle_model::write::{Writer, plan};
    use isle_model::{Incarnation, Mutation, Precondition, Value};

    use super::*;
    use crate::disk::MemoryDisk;
    use crate::view_key::ViewKey;
    use crate::{BootIdentity, StoreConfig, ViewPlace};

    const KEYSPACE: KeyspaceId = KeyspaceId(1);

    fn write_of(batch: &mut Batch<'_>, key: &Bytes, shard: ShardId) -> (Write, Stamp) {
        let (tree, region) = (batch.tree(), Region::new("a"));
        let stamp = batch.stamp(Hlc(1_000), Epoch::default());
        let writer = Writer {
            region: &region,
            home: &region,
            takes_over: false,
            keyspace: KEYSPACE,
            stamp,
            lineage: tree.shard(shard),
        };
        let put = Mutation::Put { value: Value::string("new") };
        let current = batch.newest(KEYSPACE, key).unwrap();
        (plan(key, &put, &Precondition::None, None, &current, writer).unwrap().unwrap(), stamp)
    }

    /// A state of two keys, of which the second cannot be read here: the first was changed by then, and was committed together
    /// with a bystander's write of the same batch, without the log saying so.
    #[test]
    fn a_batch_with_an_operation_that_stopped_half_way_is_dropped_whole() {
        let (boot_id, mount_id) = ("boot".to_owned(), "1".to_owned());
        let config =
            StoreConfig { region: Region::new("a"), shards: 1, overlay_drain_bytes: 1, ..StoreConfig::default() };
        let disk = Arc::new(MemoryDisk::new());
        let boot = BootIdentity { boot_id, mount_id };
        let (store, mut writers, _) =
            Store::open(config, disk, ViewPlace::Temporary, boot, Incarnation(1), &mut |_| ()).unwrap();
        let (shard, [first, second, bystander]) = (ShardId(0), ["a", "b", "c"].map(Bytes::from));
        let mut batch = writers[0].begin();
        for key in [&first, &second] {
            let (write, stamp) = write_of(&mut batch, key, shard);
            batch.write(KEYSPACE, write, stamp).unwrap();
        }
        let end = batch.commit().unwrap().end;
        assert!(store.sync().unwrap() >= end);
        while store.maintain().unwrap() {}
        store.memory.view.load().damage(&ViewKey::record(KEYSPACE, shard, &second));

        let before = store.get(KEYSPACE, &first).unwrap();
        let nothing = StateChunk {
            keyspace: KEYSPACE,
            shard,
            start: Bytes::new(),
            end: None,
            absorbed: store.streams(KEYSPACE, shard).applied().clone().into_iter().collect(),
            records: Vec::new(),
            ledger: Vec::new(),
            taken_at: Hlc(0),
            changes: false,
            last_own: None,
        };
        let mut batch = writers[0].begin();
        let (write, stamp) = write_of(&mut batch, &bystander, shard);
        batch.write(KEYSPACE, write, stamp).unwrap();
        assert!(matches!(batch.state_chunk(nothing, Hlc(2_000)), Err(ReadError::View(_))));
        assert!(matches!(batch.commit(), Err(CommitError::Spoiled { .. })));
        store.sync().unwrap();
        assert_eq!(store.get(KEYSPACE, &first).unwrap(), before);
        assert_eq!(store.get(KEYSPACE, &bystander).unwrap(), None);
    }
}
