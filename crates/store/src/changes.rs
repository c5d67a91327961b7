//! What has changed since somebody's cursor: the other way to bring a peer up to date, where not every delta is to be shipped, or the
//! log does not reach back.
//!
//! The law it keeps: a chunk of changes has every field in its range that a write of this region's is in which the cursor does not
//! cover. No tombstone can be missing: none is forgotten before its peer has absorbed all of it.

use bytes::Bytes;
use isle_model::{Dot, KeyspaceId, LedgerEntry, Lineage, Record, ShardId, Vector};

use crate::changed_keys::ChangedKeys;
use crate::entry::StateChunk;
use crate::memory::{ReadError, Rows};
use crate::overlay::Item;
use crate::store::{BYTES_AHEAD, ROWS_AHEAD, Store};
use crate::view_key::{RECORDS, ViewKey};

/// So many records are looked at for one chunk, and about so many bytes of them, however few have changed: whoever asks waits for it.
const LOOKED_AT_MAX: usize = 16 << 10;
const LOOKED_AT_BYTES_MAX: usize = 8 << 20;
/// Entries of the ledger that are read at once.
const LEDGER_ROWS: usize = 64;

/// Some changed records, and where to look on.
#[derive(Default)]
struct Found {
    records: Vec<(Bytes, Record)>,
    bytes: usize,
    looked_at_bytes: usize,
    next: Option<Bytes>,
}

impl Store {
    /// What has changed of the keys from `start` on since a peer's cursor of this region's own stream, about `bytes_max` of it. It may
    /// be nothing, though there is more behind its end.
    pub fn changes_chunk(
        &self,
        keyspace: KeyspaceId,
        shard: ShardId,
        start: &[u8],
        have: &Vector,
        bytes_max: usize,
    ) -> Result<StateChunk, ReadError> {
        // As in a complete state: taken before the read.
        let streams = self.durable_streams(keyspace, shard);
        let absorbed: Vec<_> = streams.applied().clone().into_iter().collect();
        let tree = self.tree();
        let lineage = tree.shard(shard);
        let listed = {
            let shard = self.memory.shard(shard).read();
            let known = shard.changed.get(&keyspace).filter(|changed| changed.knows(have, lineage));
            known.map(|changed| changed.lacked(start, have, lineage).take(LOOKED_AT_MAX + 1).cloned().collect())
        };
        let found = match listed {
            Some(keys) => self.changed_of(keyspace, shard, keys, have, lineage, bytes_max)?,
            None => self.changed_in_range(keyspace, shard, start, have, lineage, bytes_max)?,
        };
        let ledger = self.changed_ledger((keyspace, shard), start, &found, have, lineage)?;
        if self.durable_streams(keyspace, shard).is_behind(&absorbed, lineage) {
            return Err(ReadError::Purged { keyspace, shard });
        }
        Ok(StateChunk {
            keyspace,
            shard,
            start: Bytes::copy_from_slice(start),
            end: found.next,
            absorbed,
            records: found.records,
            ledger,
            taken_at: isle_model::Hlc::default(),
            changes: true,
            last_own: streams.last_own(),
        })
    }

    fn changed_of(
        &self,
        keyspace: KeyspaceId,
        shard: ShardId,
        keys: Vec<Bytes>,
        have: &Vector,
        lineage: Lineage<'_>,
        bytes_max: usize,
    ) -> Result<Found, ReadError> {
        let mut found = Found::default();
        for (at, key) in keys.into_iter().enumerate() {
            if at == LOOKED_AT_MAX || found.is_full(bytes_max) {
                found.next = Some(key);
                break;
            }
            if let Some(record) = self.memory.visible(shard, &ViewKey::record(keyspace, shard, &key))? {
                found.take(key, &record, self, have, lineage);
            }
        }
        Ok(found)
    }

    fn changed_in_range(
        &self,
        keyspace: KeyspaceId,
        shard: ShardId,
        start: &[u8],
        have: &Vector,
        lineage: Lineage<'_>,
        bytes_max: usize,
    ) -> Result<Found, ReadError> {
        let (mut found, mut looked_at) = (Found::default(), 0);
        let end = ViewKey::end(RECORDS, keyspace, shard);
        let mut from = Some(ViewKey::record(keyspace, shard, start));
        while let Some(at) = from.take() {
            if looked_at >= LOOKED_AT_MAX || found.is_full(bytes_max) {
                found.next = Some(at.user_key());
                break;
            }
            let Rows { rows, next } = self.memory.visible_range(shard, &at, &end, ROWS_AHEAD, bytes_max)?;
            looked_at += rows.len().max(1);
            from = next;
            for (key, item) in rows {
                if let Item::Record(record) = item {
                    found.take(key.user_key(), &record, self, have, lineage);
                }
            }
        }
        Ok(found)
    }

    /// Entries of the changed keys that go with those changes: of losers that a write of this region's has covered, or was.
    fn changed_ledger(
        &self,
        (keyspace, shard): (KeyspaceId, ShardId),
        start: &[u8],
        found: &Found,
        have: &Vector,
        lineage: Lineage<'_>,
    ) -> Result<Vec<LedgerEntry>, ReadError> {
        let (Some((first, _)), Some((last, _))) = (found.records.first(), found.records.last()) else {
            return Ok(Vec::new());
        };
        debug_assert!(**first >= *start);
        let is_new = |dot: Dot| lineage.region(dot.incarnation) == Some(self.region()) && !have.covers(dot, lineage);
        let end = ViewKey::ledger_from(keyspace, shard, &[last, &b"\0"[..]].concat());
        let mut from = Some(ViewKey::ledger_from(keyspace, shard, first));
        let mut entries = Vec::new();
        while let Some(at) = from.take() {
            let Rows { rows, next } = self.memory.visible_range(shard, &at, &end, LEDGER_ROWS, BYTES_AHEAD)?;
            from = next;
            for (_, item) in rows {
                let Item::Ledger(entry) = item else { continue };
                match found.records.binary_search_by(|(key, _)| key.cmp(&entry.key)) {
                    Ok(_) if is_new(entry.loser) || entry.covered_by.is_some_and(is_new) => {
                        entries.push(LedgerEntry::clone(&entry));
                    }
                    Ok(_) => {}
                    // Of keys in between there may be any number.
                    Err(behind) => {
                        let listed = found.records.get(behind);
                        from = listed.map(|(key, _)| ViewKey::ledger_from(keyspace, shard, key));
                        break;
                    }
                }
            }
        }
        Ok(entries)
    }

    /// From now on it is kept which keys of these keyspaces this region writes, and of no others.
    pub fn note_changes_of(&self, keyspaces: &[KeyspaceId]) {
        for shard in &self.memory.shards {
            let is_so = {
                let shard = shard.read();
                let changed: Vec<&KeyspaceId> = shard.changed.keys().collect();
                changed.iter().all(|noted| keyspaces.contains(noted)) && changed.len() == keyspaces.len()
            };
            if is_so {
                continue;
            }
            let mut shard = shard.write();
            let shard = &mut *shard;
            shard.changed.retain(|keyspace, _| keyspaces.contains(keyspace));
            for keyspace in keyspaces {
                // What is staged and not published yet was not noted.
                let streams = &shard.streams;
                let written = || streams.get(keyspace).map(|s| s.cursor(&self.memory.region)).unwrap_or_default();
                shard.changed.entry(*keyspace).or_insert_with(|| ChangedKeys::since(written()));
            }
        }
    }

    /// How many keys a peer lacks something of that this region wrote, by its cursor of this region's stream; `None` where that would
    /// take looking at every record.
    pub fn keys_changed(&self, keyspace: KeyspaceId, shard: ShardId, have: &Vector) -> Option<u64> {
        let tree = self.tree();
        let lineage = tree.shard(shard);
        let shard = self.memory.shard(shard).read();
        let known = shard.changed.get(&keyspace).filter(|changed| changed.knows(have, lineage));
        known.map(|changed| changed.lacked(b"", have, lineage).count() as u64)
    }

    /// Whether there are any such keys.
    pub fn has_changes(&self, keyspace: KeyspaceId, shard: ShardId, have: &Vector) -> Option<bool> {
        let tree = self.tree();
        let lineage = tree.shard(shard);
        let shard = self.memory.shard(shard).read();
        let known = shard.changed.get(&keyspace).filter(|changed| changed.knows(have, lineage));
        known.map(|changed| changed.lacked(b"", have, lineage).next().is_some())
    }

    /// Forgets which keys were written, where everybody has those writes.
    pub fn forget_changes(&self, keyspace: KeyspaceId, shard: ShardId, have: &Vector) {
        let tree = self.tree();
        let is_news = {
            let lineage = tree.shard(shard);
            let shard = self.memory.shard(shard).read();
            // What somebody says to have that was never written here is nothing to go by.
            let written =
                shard.published.get(&keyspace).map(|streams| streams.cursor(self.region())).unwrap_or_default();
            let changed = shard.changed.get(&keyspace);
            changed.is_some_and(|changed| changed.would_forget(have, lineage)) && written.covers_all(have, lineage)
        };
        if !is_news {
            return;
        }
        if let Some(changed) = self.memory.shard(shard).write().changed.get_mut(&keyspace) {
            changed.forget(have, tree.shard(shard));
        }
    }
}

impl Found {
    fn is_full(&self, bytes_max: usize) -> bool {
        self.bytes >= bytes_max || self.looked_at_bytes >= LOOKED_AT_BYTES_MAX
    }

    fn take(&mut self, key: Bytes, record: &Record, store: &Store, have: &Vector, lineage: Lineage<'_>) {
        self.looked_at_bytes += key.len() + record.size();
        let changed = record.changed_since(store.region(), have, lineage);
        if !changed.is_empty() {
            self.bytes += key.len() + changed.size();
            self.records.push((key, changed));
        }
    }
}
