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
//! born    bytes of the file when it was built, u64 LE | crc32
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
use crate::known_keys::KnownKeys;
use crate::overlay::Item;
use crate::packed::{Packed, pack, repack, unpack, unpack_row};
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
    /// How large its file was when it was built in another's place; 0 where it was not.
    born_bytes: u64,
    faults: Arc<Faults>,
    keys: Arc<KnownKeys>,
    /// It goes, and its directory with it, once nobody reads from it any more.
    retired: AtomicBool,
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
                tracing::error!(%error, "a view fails");
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
const BORN: &[u8] = b"born";
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
        let view = View::over(directory, cache_bytes, Arc::default())?;
        if view.faults.watch(|| Ok(view.trees().records.iter().next().transpose()?.is_none()))? {
            view.keys.all_known();
        }
        Ok(view)
    }

    /// An empty view that is to take this one's place. What a failed attempt has left where it goes is removed.
    pub(crate) fn successor(&self, place: &ViewPlace, generation: u64, cache_bytes: u64) -> Result<View, ViewError> {
        let directory = match place {
            ViewPlace::Directory(root) => Some(directory_of(root, generation)),
            ViewPlace::Temporary => None,
        };
        if let Some(left) = directory.as_deref().filter(|left| left.exists()) {
            std::fs::remove_dir_all(left)?;
        }
        View::over(directory, cache_bytes, self.keys.clone())
    }

    fn over(directory: Option<PathBuf>, cache_bytes: u64, keys: Arc<KnownKeys>) -> Result<View, ViewError> {
        let trees = catch(|| Trees::open(directory.as_deref(), cache_bytes))?;
        let (seal, retired, faults) = (AtomicU64::new(0), AtomicBool::new(false), Arc::default());
        let mut view = View { trees: Some(trees), directory, seal, born_bytes: 0, faults, keys, retired };
        let (seal, born_bytes) = view.faults.watch(|| Ok((view.trees().number(SEAL)?, view.trees().number(BORN)?)))?;
        view.seal.store(seal, Ordering::Release);
        view.born_bytes = born_bytes;
        Ok(view)
    }

    pub(crate) fn keys(&self) -> &Arc<KnownKeys> {
        &self.keys
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

    /// How large its file was when it was built in another's place; 0 where it was not.
    pub(crate) fn born_bytes(&self) -> u64 {
        self.born_bytes
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.faults.watch(|| Ok(self.trees().db.size_on_disk()?)).unwrap_or(0)
    }

    pub(crate) fn record(&self, key: &ViewKey) -> Result<Option<Arc<Record>>, ViewError> {
        if self.keys.denies(key) {
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
        self: &Arc<Self>,
        start: &ViewKey,
        end: &ViewKey,
    ) -> impl Iterator<Item = Result<Row, ViewError>> + use<> {
        self.rows(start, end, |_, tree, key, stored| unpack_row(tree, key, stored))
    }

    /// The same, with how many bytes each takes here.
    pub(crate) fn sized_range(
        self: &Arc<Self>,
        start: &ViewKey,
        end: &ViewKey,
    ) -> impl Iterator<Item = Result<(Row, usize), ViewError>> + use<> {
        self.rows(start, end, |_, tree, key, stored| Ok((unpack_row(tree, key, stored)?, key.len() + stored.len())))
    }

    /// An iterator holds on to its view: what a retired one keeps beside its file goes with it.
    fn rows<T>(
        self: &Arc<Self>,
        start: &ViewKey,
        end: &ViewKey,
        read: ReadRow<T>,
    ) -> impl Iterator<Item = Result<T, ViewError>> + use<T> {
        let (view, tree) = (self.clone(), start.tree());
        let from = if tree == LEDGER { &self.trees().ledger } else { &self.trees().records };
        let bounds = start.in_tree().to_vec()..end.in_tree().to_vec();
        let begin = || self.faults.watch(|| Ok(from.range(bounds))).ok();
        let mut rows = (start < end).then(begin).flatten();
        std::iter::from_fn(move || {
            let next = view.faults.watch(|| match rows.as_mut().and_then(Iterator::next).transpose()? {
                Some((key, stored)) => read(&view, tree, &key, &stored).map(Some),
                None => Ok(None),
            });
            // After an error there is no next row to be had.
            if next.is_err() {
                rows = None;
            }
            next.transpose()
        })
    }

    /// Keys after `after` and below `end`, of one tree, in key order. Values are not looked at, damaged ones neither.
    pub(crate) fn key_range(&self, after: &ViewKey, end: &ViewKey, most: usize) -> Result<Vec<ViewKey>, ViewError> {
        let tree = after.tree();
        let bounds =
            (std::ops::Bound::Excluded(after.in_tree().to_vec()), std::ops::Bound::Excluded(end.in_tree().to_vec()));
        if after >= end {
            return Ok(Vec::new());
        }
        self.faults.watch(|| {
            let from = if tree == LEDGER { &self.trees().ledger } else { &self.trees().records };
            from.range(bounds).keys().take(most).map(|key| Ok(ViewKey::from_tree(tree, &key?))).collect()
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
    pub(crate) fn after(self: &Arc<Self>, after: Option<&ViewKey>, most: usize) -> Result<Vec<Row>, ViewError> {
        let rows = bounds_after(after).flat_map(|(start, end)| self.range(&start, &end));
        Ok(some_of(rows, most)?.0)
    }

    /// The same, as they are stored.
    pub(crate) fn packed_after(
        self: &Arc<Self>,
        after: Option<&ViewKey>,
        most: usize,
    ) -> Result<Vec<(ViewKey, Packed)>, ViewError> {
        let repacked: ReadRow<_> =
            |view, tree, key, stored| repack(tree, key, stored, |key| !view.keys.denies_tombstone(key));
        let rows = bounds_after(after).flat_map(|(start, end)| self.rows(&start, &end, repacked));
        let (mut some, mut bytes) = (Vec::new(), 0);
        for row in rows {
            let (key, packed) = row?;
            bytes += packed.bytes();
            some.push((key, packed));
            if some.len() == most || bytes >= SOME_BYTES {
                break;
            }
        }
        Ok(some)
    }

    /// Returns by how many bytes what it holds, keys and values, has become more.
    pub(crate) fn put(&self, key: &ViewKey, item: &Packed) -> Result<i64, ViewError> {
        self.keys.expect(key);
        // What was never a tombstone is none to be taken out.
        let was_dead = !self.keys.denies_tombstone(key);
        if matches!(item, Packed::Record { is_live: false, .. }) {
            self.keys.expect_tombstone(key);
        }
        self.faults.watch(|| self.trees().put(key.in_tree(), item, was_dead))
    }

    /// Takes a key out, whatever it holds. Returns by how many bytes what the view holds has become more: never by any.
    pub(crate) fn remove(&self, key: &ViewKey) -> Result<i64, ViewError> {
        let may_be_dead = !self.keys.denies_tombstone(key);
        self.faults.watch(|| self.trees().remove(key.tree(), key.in_tree(), may_be_dead))
    }

    /// It is of no use any more: once nobody reads from it, it goes, and its directory with it.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// From here on it fails, as if sled had panicked.
    #[cfg(test)]
    pub(crate) fn break_down(&self) {
        self.faults.panicked.store(true, Ordering::Release);
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
            self.trees().set_number(SEAL, seal)?;
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

    /// Flushes what has been built here, and notes how large it is.
    pub(crate) fn flush_built(&mut self) -> Result<u64, ViewError> {
        self.flush()?;
        self.born_bytes = self.faults.watch(|| Ok(self.trees().db.size_on_disk()?))?;
        self.faults.watch(|| self.trees().set_number(BORN, self.born_bytes))?;
        self.flush()
    }

    /// Removed first: what sled still writes to it is not wanted, and nobody waits for its lock.
    fn remove_retired(&self) {
        let directory = self.directory.as_ref().filter(|_| self.retired.load(Ordering::Acquire));
        if let Some(directory) = directory
            && let Err(error) = std::fs::remove_dir_all(directory)
        {
            tracing::warn!(%error, directory = %directory.display(), "a view that is not used any more cannot be removed");
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.remove_retired();
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

    fn number(&self, of: &[u8]) -> Result<u64, ViewError> {
        let Some(stored) = self.seals.get(of)? else { return Ok(0) };
        let number = unpack(0, of, &stored)?;
        let number = number.as_ref().try_into().map_err(|_| ViewError::Checksum { bytes: stored.len() })?;
        Ok(u64::from_le_bytes(number))
    }

    fn set_number(&self, of: &[u8], number: u64) -> Result<(), ViewError> {
        self.seals.insert(of, pack(0, of, &number.to_le_bytes()))?;
        Ok(())
    }

    fn put(&self, key: &[u8], item: &Packed, was_dead: bool) -> Result<i64, ViewError> {
        let replaced = match item {
            Packed::Record { value, is_live } => {
                // What a kill leaves of the two writes may be the first alone: an entry in the list of tombstones too many costs a
                // look, and a tombstone that is not in it is never forgotten.
                if !is_live {
                    self.tombstones.insert(key, &[])?;
                }
                let replaced = self.records.insert(key, &value[..])?;
                if *is_live && was_dead {
                    self.tombstones.remove(key)?;
                }
                replaced
            }
            Packed::Ledger(value) => self.ledger.insert(key, &value[..])?,
            Packed::Gone => {
                let replaced = self.records.remove(key)?;
                self.tombstones.remove(key)?;
                replaced
            }
        };
        let before = replaced.map_or(0, |value| key.len() + value.len());
        let after = if matches!(item, Packed::Gone) { 0 } else { key.len() + item.stored_bytes() };
        Ok(after as i64 - before as i64)
    }

    fn remove(&self, tree: u8, key: &[u8], may_be_dead: bool) -> Result<i64, ViewError> {
        let removed = match tree {
            LEDGER => self.ledger.remove(key)?,
            _ => {
                // First, for whoever sweeps after a kill looks for records.
                if may_be_dead {
                    self.tombstones.remove(key)?;
                }
                self.records.remove(key)?
            }
        };
        Ok(-removed.map_or(0, |value| (key.len() + value.len()) as i64))
    }
}

/// The ranges, each of one tree, that are left of the view after a key.
fn bounds_after(after: Option<&ViewKey>) -> impl Iterator<Item = (ViewKey, ViewKey)> {
    [RECORDS, LEDGER].into_iter().filter_map(move |tree| {
        let start = match after {
            Some(key) if key.tree() > tree => return None,
            Some(key) if key.tree() == tree => key.successor(),
            _ => ViewKey::first(tree),
        };
        Some((start, ViewKey::last(tree)))
    })
}

pub(crate) type Row = (ViewKey, Item);

/// Makes something of a row: of its tree, its key in there, and what is stored.
type ReadRow<T> = fn(&View, u8, &[u8], &[u8]) -> Result<T, ViewError>;

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
        let view = Arc::new(View::open(&ViewPlace::Temporary, 1, 1 << 20).unwrap());
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
