//! One generation of the view: sled, holding records, tombstones and the ledger as of some log position or later.
//!
//! The view is thrown away and rebuilt whenever its disk may not hold what it should; nothing here is a promise. It is
//! filled by single inserts in key order: batches cost more (the measurements are in the design's facts).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use isle_model::{LedgerEntry, Record};

use crate::codec::{self, DecodeError};
use crate::overlay::Item;
use crate::view_key::{LEDGER, RECORDS, ViewKey};

/// Where the view lives. sled's own I/O does not pass through `Disk`.
#[derive(Clone, Debug)]
pub enum ViewPlace {
    /// `view-N/` below the data directory.
    Directory(PathBuf),
    /// A temporary place, never used again: for simulation, where a crash must not let sled flush.
    Temporary,
}

#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    #[error("the view fails: {0}")]
    Sled(#[from] sled::Error),
    #[error("the view's file cannot be synced: {0}")]
    Sync(#[from] std::io::Error),
    #[error("the view holds an entry that does not decode: {0}")]
    Decode(#[from] DecodeError),
}

pub(crate) struct View {
    db: sled::Db,
    records: sled::Tree,
    tombstones: sled::Tree,
    ledger: sled::Tree,
    directory: Option<PathBuf>,
}

pub(crate) fn directory_of(root: &Path, generation: u64) -> PathBuf {
    root.join(format!("view-{generation}"))
}

impl View {
    pub(crate) fn open(place: &ViewPlace, generation: u64, cache_bytes: u64) -> Result<View, ViewError> {
        let config = sled::Config::default().flush_every_ms(None).cache_capacity(cache_bytes);
        let (config, directory) = match place {
            ViewPlace::Directory(root) => {
                let directory = directory_of(root, generation);
                (config.path(&directory), Some(directory))
            }
            ViewPlace::Temporary => (config.temporary(true), None),
        };
        let db = config.open()?;
        Ok(View {
            records: db.open_tree("records")?,
            tombstones: db.open_tree("tombstones")?,
            ledger: db.open_tree("ledger")?,
            db,
            directory,
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }

    pub(crate) fn record(&self, key: &ViewKey) -> Result<Option<Arc<Record>>, ViewError> {
        let found = self.records.get(key.in_tree())?;
        found.map(|bytes| Ok(Arc::new(codec::decode_record(to_bytes(&bytes))?))).transpose()
    }

    pub(crate) fn ledger_entry(&self, key: &ViewKey) -> Result<Option<Arc<LedgerEntry>>, ViewError> {
        let found = self.ledger.get(key.in_tree())?;
        found.map(|bytes| Ok(Arc::new(codec::decode_ledger_entry(to_bytes(&bytes))?))).transpose()
    }

    /// Items of [start, end), in key order. Both keys are of one tree.
    pub(crate) fn range(
        &self,
        start: &ViewKey,
        end: &ViewKey,
    ) -> impl Iterator<Item = Result<(ViewKey, Item), ViewError>> + use<> {
        let tree = start.tree();
        let from = if tree == LEDGER { &self.ledger } else { &self.records };
        let bounds = start.in_tree().to_vec()..end.in_tree().to_vec();
        let rows = (start < end).then(|| from.range(bounds));
        rows.into_iter().flatten().map(move |row| {
            let (key, bytes) = row?;
            let item = match tree {
                LEDGER => Item::Ledger(Arc::new(codec::decode_ledger_entry(to_bytes(&bytes))?)),
                _ => Item::Record(Arc::new(codec::decode_record(to_bytes(&bytes))?)),
            };
            Ok((ViewKey::from_tree(tree, &key), item))
        })
    }

    /// Keys of tombstones after `after` and below `end`, in key order.
    pub(crate) fn tombstones(&self, after: &ViewKey, end: &ViewKey, most: usize) -> Result<Vec<ViewKey>, ViewError> {
        let bounds =
            (std::ops::Bound::Excluded(after.in_tree().to_vec()), std::ops::Bound::Excluded(end.in_tree().to_vec()));
        if after >= end {
            return Ok(Vec::new());
        }
        let rows = self.tombstones.range(bounds).take(most);
        rows.map(|row| Ok(ViewKey::from_tree(RECORDS, &row?.0))).collect()
    }

    /// Every key and item of the view, in key order, records before the ledger.
    pub(crate) fn after(&self, after: Option<&ViewKey>, most: usize) -> Result<Vec<(ViewKey, Item)>, ViewError> {
        let mut out = Vec::new();
        for tree in [RECORDS, LEDGER] {
            let start = match after {
                Some(key) if key.tree() > tree => continue,
                Some(key) if key.tree() == tree => key.successor(),
                _ => ViewKey::first(tree),
            };
            for row in self.range(&start, &ViewKey::last(tree)).take(most - out.len()) {
                out.push(row?);
            }
        }
        Ok(out)
    }

    pub(crate) fn put(&self, key: &ViewKey, item: &Item) -> Result<(), ViewError> {
        match item {
            Item::Record(record) => {
                self.records.insert(key.in_tree(), codec::encode_record(record).as_ref())?;
                match record.is_live() {
                    true => self.tombstones.remove(key.in_tree())?,
                    false => self.tombstones.insert(key.in_tree(), &[])?,
                };
            }
            Item::Ledger(entry) => {
                self.ledger.insert(key.in_tree(), codec::encode_ledger_entry(entry).as_ref())?;
            }
            Item::Gone => {
                self.records.remove(key.in_tree())?;
                self.tombstones.remove(key.in_tree())?;
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn damage(&self, key: &ViewKey) {
        self.records.insert(key.in_tree(), b"\xff\xff").expect("a temporary view takes inserts");
    }

    /// sled's flush, and then a real sync of its file: sled 0.34 flushes by sync_file_range, which is not durable.
    pub(crate) fn flush(&self) -> Result<(), ViewError> {
        self.db.flush()?;
        if let Some(directory) = &self.directory {
            File::open(directory.join("db"))?.sync_all()?;
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }
}

fn to_bytes(bytes: &sled::IVec) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
