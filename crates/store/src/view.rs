//! One generation of the view: sled, holding records, tombstones and the ledger as of some log position or later.
//!
//! The view is thrown away and rebuilt whenever its disk may not hold what it should; nothing here is a promise. It is
//! filled by single inserts in key order: batches cost more (the measurements are in the design's facts).
//!
//! sled takes a damaged log of its own for a torn one: it opens without a word and shows what was there before. So every
//! flush is sealed by a number that is written last, and that the view's mark knows: where it is missing, so may be
//! anything. Each value carries a checksum over its key and itself, and whatever sled panics at is an error here.
//!
//! ```text
//! value   as `packed` has it
//! seal    number, u64 LE | crc32
//! ```

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use isle_model::{LedgerEntry, Record};
use rustix::fs::FlockOperation;

use crate::codec::{self, DecodeError};
use crate::key_filter::KeyFilter;
use crate::overlay::Item;
use crate::packed::{Packed, pack, unpack, unpack_row};
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
    #[error("the view's entry of a key fails its checksum ({} bytes)", .bytes)]
    Checksum { bytes: usize },
    #[error("the view does not hold what its mark says was flushed (seal {found} of {marked})")]
    Unsealed { found: u64, marked: u64 },
    #[error("the view's storage gave up: {0}")]
    Panicked(String),
    /// It is not asked again: after a panic inside nobody knows what it holds locked.
    #[error("the view has failed before: {0}")]
    Failed(String),
}

impl ViewError {
    /// What is stored is not what was written, or cannot be asked for any more.
    fn is_damage(&self) -> bool {
        match self {
            ViewError::Sled(error) => matches!(error, sled::Error::Corruption { .. }),
            ViewError::Sync(_) | ViewError::Failed(_) => false,
            _ => true,
        }
    }
}

pub(crate) struct View {
    /// `None` only while it is dropped.
    trees: Option<Trees>,
    directory: Option<PathBuf>,
    /// The number that the last flush was sealed by.
    seal: AtomicU64,
    faults: Arc<Faults>,
    /// Keys of records, of those on their way here too.
    records: KeyFilter,
    /// Keys of those that are tombstones.
    tombstones: KeyFilter,
}

struct Trees {
    db: sled::Db,
    records: sled::Tree,
    tombstones: sled::Tree,
    ledger: sled::Tree,
    seals: sled::Tree,
}

/// What went wrong with a view, for good: it is built anew at the next start.
#[derive(Default)]
struct Faults {
    first: OnceLock<String>,
    /// The first of what a full or failing disk does not explain.
    damage: OnceLock<String>,
    panicked: AtomicBool,
}

impl Faults {
    /// Runs what asks sled, and remembers the first thing that goes wrong.
    fn watch<T>(&self, ask: impl FnOnce() -> Result<T, ViewError>) -> Result<T, ViewError> {
        if self.panicked.load(Ordering::Acquire) {
            return Err(ViewError::Failed(self.first.get().cloned().unwrap_or_default()));
        }
        let done = catch(ask);
        if let Err(error) = &done {
            self.panicked.fetch_or(matches!(error, ViewError::Panicked(_)), Ordering::AcqRel);
            if error.is_damage() {
                let _ = self.damage.set(error.to_string());
            }
            if self.first.set(error.to_string()).is_ok() {
                tracing::error!(%error, "the view is damaged, and built anew at the next start");
            }
        }
        done
    }
}

fn catch<T>(ask: impl FnOnce() -> Result<T, ViewError>) -> Result<T, ViewError> {
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(ViewError::Panicked(text.unwrap_or_default()))
    })
}

const SEAL: &[u8] = b"seal";
/// About so much is read at once, for an item may be a thousand times as large as another. It is far below the most that a
/// checkpoint's chunk may have, whatever the last item adds.
const SOME_BYTES: usize = 8 << 20;
const RELEASE_POLL: Duration = Duration::from_millis(1);
/// Five seconds: sled's threads have at most a segment to write.
const RELEASE_POLLS_MAX: u32 = 5_000;

pub(crate) fn directory_of(root: &Path, generation: u64) -> PathBuf {
    root.join(format!("view-{generation}"))
}

impl View {
    pub(crate) fn open(place: &ViewPlace, generation: u64, cache_bytes: u64) -> Result<View, ViewError> {
        let directory = match place {
            ViewPlace::Directory(root) => Some(directory_of(root, generation)),
            ViewPlace::Temporary => None,
        };
        let trees = catch(|| Trees::open(directory.as_deref(), cache_bytes))?;
        let (records, tombstones) = (KeyFilter::default(), KeyFilter::default());
        let (seal, faults) = (AtomicU64::new(0), Arc::default());
        let view = View { trees: Some(trees), directory, seal, faults, records, tombstones };
        let seal = view.faults.watch(|| view.trees().seal())?;
        view.seal.store(seal, Ordering::Release);
        if view.faults.watch(|| Ok(view.trees().records.iter().next().transpose()?.is_none()))? {
            view.all_known();
        }
        Ok(view)
    }

    fn trees(&self) -> &Trees {
        self.trees.as_ref().expect("only drop takes it")
    }

    /// Checks that what was flushed is still there: everything that was written before the seal of that number.
    pub(crate) fn check_sealed(&self, marked: u64) -> Result<(), ViewError> {
        let found = self.seal.load(Ordering::Acquire);
        if marked > 0 && found >= marked { Ok(()) } else { Err(ViewError::Unsealed { found, marked }) }
    }

    /// What first went wrong here, if anything did.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.faults.first.get().map(String::as_str)
    }

    /// What shows that it is damaged, if anything does.
    pub(crate) fn damaged(&self) -> Option<&str> {
        self.faults.damage.get().map(String::as_str)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.faults.watch(|| Ok(self.trees().db.size_on_disk()?)).unwrap_or(0)
    }

    pub(crate) fn record(&self, key: &ViewKey) -> Result<Option<Arc<Record>>, ViewError> {
        if self.denies(key) {
            return Ok(None);
        }
        self.faults.watch(|| {
            let found = self.trees().records.get(key.in_tree())?;
            found
                .map(|stored| Ok(Arc::new(codec::decode_record(unpack(RECORDS, key.in_tree(), &stored)?)?)))
                .transpose()
        })
    }

    pub(crate) fn ledger_entry(&self, key: &ViewKey) -> Result<Option<Arc<LedgerEntry>>, ViewError> {
        self.faults.watch(|| {
            let found = self.trees().ledger.get(key.in_tree())?;
            let entry =
                |stored: sled::IVec| Ok(Arc::new(codec::decode_ledger_entry(unpack(LEDGER, key.in_tree(), &stored)?)?));
            found.map(entry).transpose()
        })
    }

    /// Items of [start, end), in key order. Both keys are of one tree.
    pub(crate) fn range(
        &self,
        start: &ViewKey,
        end: &ViewKey,
    ) -> impl Iterator<Item = Result<(ViewKey, Item), ViewError>> + use<> {
        let tree = start.tree();
        let from = if tree == LEDGER { self.trees().ledger.clone() } else { self.trees().records.clone() };
        let bounds = start.in_tree().to_vec()..end.in_tree().to_vec();
        let faults = self.faults.clone();
        let begin = move || faults.watch(|| Ok(from.range(bounds))).ok();
        let mut rows = (start < end).then(begin).flatten();
        let faults = self.faults.clone();
        std::iter::from_fn(move || {
            let next = faults.watch(|| match rows.as_mut().and_then(Iterator::next).transpose()? {
                Some((key, stored)) => unpack_row(tree, &key, &stored).map(Some),
                None => Ok(None),
            });
            // After an error there is no next row to be had.
            if next.is_err() {
                rows = None;
            }
            next.transpose()
        })
    }

    /// Keys of tombstones after `after` and below `end`, in key order.
    pub(crate) fn tombstones(&self, after: &ViewKey, end: &ViewKey, most: usize) -> Result<Vec<ViewKey>, ViewError> {
        let bounds =
            (std::ops::Bound::Excluded(after.in_tree().to_vec()), std::ops::Bound::Excluded(end.in_tree().to_vec()));
        if after >= end {
            return Ok(Vec::new());
        }
        self.faults.watch(|| {
            let rows = self.trees().tombstones.range(bounds).take(most);
            rows.map(|row| Ok(ViewKey::from_tree(RECORDS, &row?.0))).collect()
        })
    }

    /// The next keys and items of the view, in key order, records before the ledger, as many of up to `most` as are read at
    /// once. None are left where none are returned.
    pub(crate) fn after(&self, after: Option<&ViewKey>, most: usize) -> Result<Vec<Row>, ViewError> {
        let ranges = [RECORDS, LEDGER].into_iter().filter_map(|tree| {
            let start = match after {
                Some(key) if key.tree() > tree => return None,
                Some(key) if key.tree() == tree => key.successor(),
                _ => ViewKey::first(tree),
            };
            Some(self.range(&start, &ViewKey::last(tree)))
        });
        Ok(some_of(ranges.flatten(), most)?.0)
    }

    pub(crate) fn put(&self, key: &ViewKey, item: &Packed) -> Result<(), ViewError> {
        self.expect(key);
        // What was never a tombstone is none to be taken out.
        let was_dead = !self.tombstones.denies(key.in_tree());
        if matches!(item, Packed::Record { is_live: false, .. }) {
            self.tombstones.note(key.in_tree());
        }
        self.faults.watch(|| self.trees().put(key.in_tree(), item, was_dead))
    }

    /// Whether a key is a record's, and neither here nor on its way.
    pub(crate) fn denies(&self, key: &ViewKey) -> bool {
        key.tree() == RECORDS && self.records.denies(key.in_tree())
    }

    /// An item of this key is staged, and will be put here.
    pub(crate) fn expect(&self, key: &ViewKey) {
        if key.tree() == RECORDS {
            self.records.note(key.in_tree());
        }
    }

    /// Of what was here at the start.
    pub(crate) fn note_known(&self, key: &ViewKey, item: &Item) {
        self.expect(key);
        if matches!(item, Item::Record(record) if !record.is_live()) {
            self.tombstones.note(key.in_tree());
        }
    }

    /// Every record that was here at the start has been noted.
    pub(crate) fn all_known(&self) {
        self.records.complete();
        self.tombstones.complete();
    }

    #[cfg(any(test, feature = "faults"))]
    pub(crate) fn damage(&self, key: &ViewKey) {
        self.trees().records.insert(key.in_tree(), b"\xff\xff").expect("a view that is sound takes inserts");
    }

    /// sled's flush, and then a real sync of its file: sled 0.34 flushes by sync_file_range, which is not durable. Returns
    /// the seal that it was given, for the mark.
    pub(crate) fn flush(&self) -> Result<u64, ViewError> {
        let seal = self.seal.load(Ordering::Acquire) + 1;
        self.faults.watch(|| {
            self.trees().set_seal(seal)?;
            self.trees().db.flush()?;
            if let Some(directory) = &self.directory {
                File::open(directory.join("db"))?.sync_all()?;
                File::open(directory)?.sync_all()?;
            }
            Ok(())
        })?;
        self.seal.store(seal, Ordering::Release);
        Ok(seal)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let trees = self.trees.take();
        if self.faults.panicked.load(Ordering::Acquire) {
            // Its locks may be held for ever, and what it would flush is not wanted.
            std::mem::forget(trees);
        } else {
            // sled flushes when it is dropped: a damaged one may panic only now.
            let done = catch(|| {
                drop(trees);
                Ok(())
            });
            if let Err(error) = done {
                tracing::error!(%error, "the view cannot be closed");
            }
            if let Some(directory) = &self.directory
                && let Err(error) = await_release(&directory.join("db"))
            {
                tracing::warn!(%error, "the view's file is still held");
            }
        }
    }
}

/// sled's own threads may hold its file locked for a moment after it is dropped. Who opens it next, in this process, would take
/// it for one that cannot be opened, and build another.
#[allow(clippy::disallowed_methods, reason = "sled's files are outside the seam, and a simulation has none")]
fn await_release(path: &Path) -> std::io::Result<()> {
    // A view that is being replaced is removed first.
    let Ok(file) = File::open(path) else { return Ok(()) };
    let mut held = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    for _ in 0..RELEASE_POLLS_MAX {
        if held.is_ok() {
            break;
        }
        std::thread::sleep(RELEASE_POLL);
        held = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    }
    Ok(held?)
}

impl Trees {
    fn open(directory: Option<&Path>, cache_bytes: u64) -> Result<Trees, ViewError> {
        let config = sled::Config::default().flush_every_ms(None).cache_capacity(cache_bytes);
        let config = match directory {
            Some(directory) => config.path(directory),
            None => config.temporary(true),
        };
        let db = config.open()?;
        Ok(Trees {
            records: db.open_tree("records")?,
            tombstones: db.open_tree("tombstones")?,
            ledger: db.open_tree("ledger")?,
            seals: db.open_tree("seals")?,
            db,
        })
    }

    fn seal(&self) -> Result<u64, ViewError> {
        let Some(stored) = self.seals.get(SEAL)? else { return Ok(0) };
        let number = unpack(0, SEAL, &stored)?;
        let number = number.as_ref().try_into().map_err(|_| ViewError::Checksum { bytes: stored.len() })?;
        Ok(u64::from_le_bytes(number))
    }

    fn set_seal(&self, seal: u64) -> Result<(), ViewError> {
        self.seals.insert(SEAL, pack(0, SEAL, &seal.to_le_bytes()))?;
        Ok(())
    }

    fn put(&self, key: &[u8], item: &Packed, was_dead: bool) -> Result<(), ViewError> {
        match item {
            Packed::Record { value, is_live } => {
                // What a kill leaves of the two writes may be the first alone: an entry in the list of tombstones too many costs a
                // look, and a tombstone that is not in it is never forgotten.
                if !is_live {
                    self.tombstones.insert(key, &[])?;
                }
                self.records.insert(key, &value[..])?;
                if *is_live && was_dead {
                    self.tombstones.remove(key)?;
                }
            }
            Packed::Ledger(value) => _ = self.ledger.insert(key, &value[..])?,
            Packed::Gone => {
                self.records.remove(key)?;
                self.tombstones.remove(key)?;
            }
        }
        Ok(())
    }
}

pub(crate) type Row = (ViewKey, Item);

/// Up to `most` of some rows and about as many bytes as are read at once, and the last of them where that is not all.
pub(crate) fn some_of(
    rows: impl Iterator<Item = Result<Row, ViewError>>,
    most: usize,
) -> Result<(Vec<Row>, Option<ViewKey>), ViewError> {
    let (mut some, mut bytes) = (Vec::new(), 0);
    for row in rows {
        let (key, item) = row?;
        bytes += item.bytes();
        some.push((key.clone(), item));
        if some.len() == most || bytes >= SOME_BYTES {
            return Ok((some, Some(key)));
        }
    }
    Ok((some, None))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use isle_model::{
        Dot, Epoch, Field, FieldKey, Generation, Hlc, Incarnation, KeyspaceId, Register, ShardId, Sibling, Value,
        Vector,
    };

    fn record(bytes: usize) -> Record {
        let dot = Dot::new(Incarnation(1), 1);
        let value = Value::bytes(vec![7; bytes]);
        let sibling = Sibling { dot, epoch: Epoch(0), generation: Generation(1), hlc: Hlc(1), value };
        let register = Register::from_parts(vec![sibling], Vector::of(dot), Generation(1), Epoch(0));
        Record::from_fields(vec![(FieldKey::value(""), Field::Register(register))]).unwrap()
    }

    /// A checkpoint's chunk held a thousand records, however large: with values of 1 MiB it was more than what is read back as one.
    #[test]
    fn what_is_read_of_a_view_at_once_is_bounded_in_bytes() {
        let view = View::open(&ViewPlace::Temporary, 1, 1 << 20).unwrap();
        let keys: Vec<_> = (0..20u8).map(|n| ViewKey::record(KeyspaceId(1), ShardId(0), &[n])).collect();
        for key in &keys {
            view.put(key, &Packed::of(key, &Item::Record(record(1 << 20).into()))).unwrap();
        }
        let (mut after, mut read) = (None, Vec::new());
        loop {
            let some = view.after(after.as_ref(), 1024).unwrap();
            assert!(some.len() <= SOME_BYTES >> 20, "{} items of 1 MiB", some.len());
            let Some((last, _)) = some.last() else { break };
            after = Some(last.clone());
            read.extend(some.into_iter().map(|(key, _)| key));
        }
        assert_eq!(read, keys);
    }
}
