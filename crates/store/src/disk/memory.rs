//! A disk in memory that knows what it has promised: for every file the bytes written and the bytes synced, for every
//! directory the names as they are and as they were last synced.
//!
//! A crash is a copy of what the disk would hold afterwards, so that whatever still runs on the old one cannot reach the
//! new one. Everything is deterministic: the only choice, what a crash keeps of the unsynced, is the caller's generator's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile, OpenMode, parent};

const SECTOR: u64 = 512;
/// How many syncs a lying disk can take back.
const SYNCS_KEPT: usize = 64;
const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// What a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Power loss: exactly what was synced.
    KeepSynced,
    /// Power loss: what was synced and a random choice of the sectors, lengths and directory changes since.
    KeepSome,
    /// Power loss under a disk that acknowledged its last syncs without doing them.
    Lying { syncs: usize },
    /// The process died, the machine did not: everything written, synced or not, and a power loss may still follow.
    Process,
}

type Sector = Arc<[u8; SECTOR as usize]>;
type FileId = u64;
type Names = BTreeMap<String, FileId>;

/// Sectors that are not here hold zeros.
#[derive(Clone, Default)]
struct Image {
    len: u64,
    sectors: BTreeMap<u64, Sector>,
}

#[derive(Clone, Default)]
struct Inode {
    now: Image,
    synced: Image,
    dirty: BTreeSet<u64>,
    handles: usize,
}

#[derive(Clone, Default)]
struct Directory {
    now: Names,
    synced: Names,
    /// The listing after every change since the last sync: a journalling file system keeps a prefix of them.
    since: Vec<Names>,
}

/// What a sync of a file replaced.
#[derive(Clone)]
struct Replaced {
    len: u64,
    sectors: Vec<(u64, Option<Sector>)>,
}

#[derive(Clone)]
enum Undo {
    File { id: FileId, replaced: Replaced },
    Directory { path: String, names: Names },
}

#[derive(Clone, Default)]
struct State {
    files: BTreeMap<FileId, Inode>,
    directories: BTreeMap<String, Directory>,
    undo: VecDeque<Undo>,
    next_id: FileId,
    capacity: Option<u64>,
    fail_writes: bool,
    fail_syncs: bool,
    changes_left: Option<u64>,
    syncs: u64,
}

/// Clones share the disk.
#[derive(Clone)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

impl Default for MemoryDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDisk {
    pub fn new() -> Self {
        Self::with(State { directories: BTreeMap::from([(String::new(), Directory::default())]), ..State::default() })
    }

    fn with(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The disk as a crash at this moment leaves it. `random(n)` is asked for numbers below `n`. Faults are not carried
    /// over, the capacity is.
    pub fn crash(&self, how: Crash, random: &mut dyn FnMut(u64) -> u64) -> MemoryDisk {
        let mut state = self.state.lock().clone();
        state.fail_writes = false;
        state.fail_syncs = false;
        state.changes_left = None;
        for inode in state.files.values_mut() {
            inode.handles = 0;
        }
        match how {
            Crash::Process => return Self::with(state),
            Crash::KeepSynced => {}
            Crash::KeepSome => state.keep_some(random),
            Crash::Lying { syncs } => state.take_back(syncs),
        }
        state.lose_unsynced();
        Self::with(state)
    }

    /// At most so many bytes of files; growing beyond fails with ENOSPC.
    pub fn set_capacity(&self, capacity: Option<u64>) {
        self.state.lock().capacity = capacity;
    }

    /// Every change to a file or a directory fails with EIO.
    pub fn fail_writes(&self, fail: bool) {
        self.state.lock().fail_writes = fail;
    }

    /// Every sync fails with EIO, and syncs nothing.
    pub fn fail_syncs(&self, fail: bool) {
        self.state.lock().fail_syncs = fail;
    }

    /// Whether writes or syncs fail.
    pub fn is_failing(&self) -> bool {
        let state = self.state.lock();
        state.fail_writes || state.fail_syncs
    }

    /// So many more changes and syncs are done, then each fails with EIO: a crash that follows falls between any two.
    pub fn fail_after(&self, changes: Option<u64>) {
        self.state.lock().changes_left = changes;
    }

    /// The bytes that all files are long.
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// How many syncs were asked for, of files and directories.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }
}

impl Image {
    fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let end = self.len.min(offset.saturating_add(buffer.len() as u64));
        let bytes = end.saturating_sub(offset) as usize;
        for (sector, within, range) in pieces(offset, bytes) {
            let target = &mut buffer[range];
            match self.sectors.get(&sector) {
                Some(data) => target.copy_from_slice(&data[within..within + target.len()]),
                None => target.fill(0),
            }
        }
        bytes
    }

    fn set(&mut self, sector: u64, data: Option<Sector>) {
        match data {
            Some(data) => self.sectors.insert(sector, data),
            None => self.sectors.remove(&sector),
        };
    }

    /// What lies beyond the end reads as zeros when the file grows again. Returns the sectors that changed.
    fn clear_beyond_end(&mut self) -> Vec<u64> {
        let whole = self.len.div_ceil(SECTOR);
        let beyond: Vec<u64> = self.sectors.split_off(&whole).into_keys().collect();
        let mut changed = beyond;
        let within = (self.len % SECTOR) as usize;
        if let Some(last) = self.sectors.get_mut(&(self.len / SECTOR))
            && last[within..].iter().any(|byte| *byte != 0)
        {
            Arc::make_mut(last)[within..].fill(0);
            changed.push(self.len / SECTOR);
        }
        changed
    }
}

/// The pieces of a range, sector by sector: the sector, where in it the piece starts, and the piece's place in the range.
fn pieces(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == bytes {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % SECTOR) as usize;
        let piece = (SECTOR as usize - within).min(bytes - done);
        let range = done..done + piece;
        done += piece;
        Some((at / SECTOR, within, range))
    })
}

impl Inode {
    fn write(&mut self, bytes: &[u8], offset: u64) {
        self.now.len = self.now.len.max(offset + bytes.len() as u64);
        for (sector, within, range) in pieces(offset, bytes.len()) {
            let data = self.now.sectors.entry(sector).or_insert_with(|| Arc::new([0; SECTOR as usize]));
            Arc::make_mut(data)[within..within + range.len()].copy_from_slice(&bytes[range]);
            self.dirty.insert(sector);
        }
    }

    fn set_len(&mut self, len: u64) {
        self.now.len = len;
        self.dirty.extend(self.now.clear_beyond_end());
    }

    fn sync(&mut self) -> Option<Replaced> {
        if self.dirty.is_empty() && self.now.len == self.synced.len {
            return None;
        }
        let len = std::mem::replace(&mut self.synced.len, self.now.len);
        let mut sectors = Vec::with_capacity(self.dirty.len());
        for sector in std::mem::take(&mut self.dirty) {
            sectors.push((sector, self.synced.sectors.get(&sector).cloned()));
            self.synced.set(sector, self.now.sectors.get(&sector).cloned());
        }
        Some(Replaced { len, sectors })
    }

    fn keep_some(&mut self, random: &mut dyn FnMut(u64) -> u64) {
        if self.now.len != self.synced.len && random(2) == 0 {
            self.synced.len = self.now.len;
        }
        for sector in std::mem::take(&mut self.dirty) {
            if random(2) == 0 {
                self.synced.set(sector, self.now.sectors.get(&sector).cloned());
            }
        }
        self.synced.clear_beyond_end();
    }
}

impl State {
    fn keep_some(&mut self, random: &mut dyn FnMut(u64) -> u64) {
        for inode in self.files.values_mut() {
            inode.keep_some(random);
        }
        for directory in self.directories.values_mut() {
            if let Some(kept) = random(directory.since.len() as u64 + 1).checked_sub(1) {
                directory.synced = directory.since[kept as usize].clone();
            }
        }
    }

    fn take_back(&mut self, syncs: usize) {
        for _ in 0..syncs {
            match self.undo.pop_back() {
                Some(Undo::File { id, replaced }) => {
                    let Some(inode) = self.files.get_mut(&id) else { continue };
                    inode.synced.len = replaced.len;
                    for (sector, data) in replaced.sectors {
                        inode.synced.set(sector, data);
                    }
                }
                Some(Undo::Directory { path, names }) => {
                    if let Some(directory) = self.directories.get_mut(&path) {
                        directory.synced = names;
                    }
                }
                None => return,
            }
        }
    }

    fn lose_unsynced(&mut self) {
        self.undo.clear();
        for inode in self.files.values_mut() {
            inode.now = inode.synced.clone();
            inode.dirty.clear();
        }
        for directory in self.directories.values_mut() {
            directory.now = directory.synced.clone();
            directory.since.clear();
        }
        self.drop_unreachable();
    }

    /// Forgets files that no listing names, not even one that a crash may bring back, and nobody has open.
    fn drop_unreachable(&mut self) {
        let mut reachable = BTreeSet::new();
        for directory in self.directories.values() {
            let listings = [&directory.now, &directory.synced].into_iter().chain(&directory.since);
            reachable.extend(listings.flat_map(|names| names.values().copied()));
        }
        for undo in &self.undo {
            if let Undo::Directory { names, .. } = undo {
                reachable.extend(names.values().copied());
            }
        }
        self.files.retain(|id, inode| inode.handles > 0 || reachable.contains(id));
    }

    fn remember(&mut self, undo: Undo) {
        self.undo.push_back(undo);
        if self.undo.len() > SYNCS_KEPT {
            self.undo.pop_front();
        }
    }

    fn used(&self) -> u64 {
        let ids: BTreeSet<FileId> =
            self.directories.values().flat_map(|directory| directory.now.values().copied()).collect();
        ids.iter().filter_map(|id| self.files.get(id)).map(|inode| inode.now.len).sum()
    }

    fn check_write(&mut self) -> io::Result<()> {
        match self.fail_writes || self.is_spent() {
            true => Err(io::Error::from_raw_os_error(EIO)),
            false => Ok(()),
        }
    }

    fn begin_sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        match self.fail_syncs || self.is_spent() {
            true => Err(io::Error::from_raw_os_error(EIO)),
            false => Ok(()),
        }
    }

    fn is_spent(&mut self) -> bool {
        match &mut self.changes_left {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn check_growth(&self, id: FileId, len: u64) -> io::Result<()> {
        let growth = len.saturating_sub(self.inode(id).now.len);
        match self.capacity {
            Some(capacity) if growth > 0 && self.used() + growth > capacity => {
                Err(io::Error::from_raw_os_error(ENOSPC))
            }
            _ => Ok(()),
        }
    }

    fn inode(&self, id: FileId) -> &Inode {
        self.files.get(&id).expect("a file that is open or named is kept")
    }

    fn inode_mut(&mut self, id: FileId) -> &mut Inode {
        self.files.get_mut(&id).expect("a file that is open or named is kept")
    }

    fn directory(&self, path: &str) -> io::Result<&Directory> {
        self.directories.get(path).ok_or_else(|| not_found(path))
    }

    fn lookup(&self, path: &str) -> io::Result<FileId> {
        let names = &self.directory(parent(path))?.now;
        names.get(name(path)).copied().ok_or_else(|| not_found(path))
    }

    fn change(&mut self, dir: &str, change: impl FnOnce(&mut Names)) -> io::Result<()> {
        self.check_write()?;
        let directory = self.directories.get_mut(dir).ok_or_else(|| not_found(dir))?;
        change(&mut directory.now);
        directory.since.push(directory.now.clone());
        Ok(())
    }

    fn create(&mut self, path: &str) -> io::Result<FileId> {
        if let Ok(id) = self.lookup(path) {
            self.check_write()?;
            self.inode_mut(id).set_len(0);
            return Ok(id);
        }
        let id = self.next_id;
        self.change(parent(path), |names| {
            names.insert(name(path).to_owned(), id);
        })?;
        self.next_id += 1;
        self.files.insert(id, Inode::default());
        Ok(id)
    }
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{path} is not there"))
}

impl Disk for MemoryDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        let id = match mode {
            OpenMode::Create => state.create(path)?,
            OpenMode::ReadWrite | OpenMode::Read => state.lookup(path)?,
        };
        state.inode_mut(id).handles += 1;
        Ok(Arc::new(MemoryFile { state: self.state.clone(), id, writable: mode != OpenMode::Read }))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_write()?;
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            state.directories.entry(path[..end].to_owned()).or_default();
        }
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        let files = state.directory(dir)?.now.keys().cloned();
        let below = state.directories.keys().filter(|path| !path.is_empty() && parent(path) == dir);
        let mut names: Vec<String> = files.chain(below.map(|path| name(path).to_owned())).collect();
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let state = self.state.lock();
        Ok(state.directories.contains_key(path) || state.lookup(path).is_ok())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.lookup(from)?;
        if parent(from) != parent(to) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a rename stays within its directory"));
        }
        state.change(parent(from), |names| {
            names.remove(name(from));
            names.insert(name(to).to_owned(), id);
        })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.lookup(path)?;
        state.change(parent(path), |names| {
            names.remove(name(path));
        })
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin_sync()?;
        let directory = state.directories.get_mut(dir).ok_or_else(|| not_found(dir))?;
        directory.since.clear();
        let names = std::mem::replace(&mut directory.synced, directory.now.clone());
        if names != directory.now {
            state.remember(Undo::Directory { path: dir.to_owned(), names });
        }
        state.drop_unreachable();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        let state = self.state.lock();
        Ok(state.capacity.map(|capacity| capacity.saturating_sub(state.used())))
    }
}

struct MemoryFile {
    state: Arc<Mutex<State>>,
    id: FileId,
    writable: bool,
}

impl MemoryFile {
    fn check_writable(&self) -> io::Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file is open for reading")),
        }
    }

    fn sync(&self, state: &mut State) -> io::Result<()> {
        state.begin_sync()?;
        let id = self.id;
        if let Some(replaced) = state.inode_mut(id).sync() {
            state.remember(Undo::File { id, replaced });
        }
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.state.lock().inode(self.id).now.read(buffer, offset))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.state.lock();
        state.check_write()?;
        state.check_growth(self.id, offset + bytes.len() as u64)?;
        state.inode_mut(self.id).write(bytes, offset);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().inode(self.id).now.len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.state.lock();
        state.check_write()?;
        state.check_growth(self.id, len)?;
        state.inode_mut(self.id).set_len(len);
        Ok(())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.state.lock();
        state.check_write()?;
        state.check_growth(self.id, len)?;
        if state.inode(self.id).now.len < len {
            state.inode_mut(self.id).set_len(len);
        }
        self.sync(&mut state)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(&mut self.state.lock())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(&mut self.state.lock())
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        if let Some(inode) = self.state.lock().files.get_mut(&self.id) {
            inode.handles -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn never(_: u64) -> u64 {
        panic!("nothing to choose")
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_no_more() {
        let disk = MemoryDisk::new();
        let file = disk.open("x", OpenMode::Create).unwrap();
        file.write_at(&[1; 2000], 0).unwrap();
        file.sync_data().unwrap();
        assert!(!disk.crash(Crash::KeepSynced, &mut never).exists("x").unwrap(), "its name was not synced");
        disk.sync_dir("").unwrap();
        file.write_at(&[2; 2000], 1000).unwrap();
        disk.open("y", OpenMode::Create).unwrap();
        disk.rename("x", "z").unwrap();
        let after = disk.crash(Crash::KeepSynced, &mut never);
        assert_eq!(after.list("").unwrap(), ["x"]);
        assert_eq!(after.read("x").unwrap(), [1; 2000]);
        let after = disk.crash(Crash::Process, &mut never);
        assert_eq!(after.list("").unwrap(), ["y", "z"]);
        assert_eq!(after.read("z").unwrap().len(), 3000);
        let after = after.crash(Crash::KeepSynced, &mut never);
        assert_eq!(after.list("").unwrap(), ["x"], "a power loss may follow the death of a process");
    }

    #[test]
    fn a_crash_may_keep_any_unsynced_sector() {
        let disk = MemoryDisk::new();
        let file = disk.open("x", OpenMode::Create).unwrap();
        file.preallocate(2048).unwrap();
        disk.sync_dir("").unwrap();
        file.write_at(&[7; 2048], 0).unwrap();
        let mut turn = 0;
        let after = disk.crash(Crash::KeepSome, &mut |n| {
            turn += 1;
            turn % n
        });
        let bytes = after.read("x").unwrap();
        assert_eq!(&bytes[..1024], [[0; 512], [7; 512]].concat());
        assert_eq!(disk.read("x").unwrap(), [7; 2048], "the old disk is as it was");
    }

    #[test]
    fn a_lying_disk_takes_syncs_back() {
        let disk = MemoryDisk::new();
        let file = disk.open("x", OpenMode::Create).unwrap();
        disk.sync_dir("").unwrap();
        for round in 1..=3 {
            file.write_at(&[round; 600], 0).unwrap();
            file.set_len(600 + u64::from(round)).unwrap();
            file.sync_data().unwrap();
        }
        let read = |syncs| disk.crash(Crash::Lying { syncs }, &mut never).read("x");
        assert_eq!(&read(0).unwrap()[..600], [3; 600]);
        assert_eq!(&read(1).unwrap()[..600], [2; 600]);
        assert_eq!(read(2).unwrap().len(), 601);
        assert_eq!(read(3).unwrap().len(), 0);
        assert!(read(4).is_err());
    }

    #[test]
    fn faults_are_injected_and_go_away() {
        let disk = MemoryDisk::new();
        let file = disk.open("x", OpenMode::Create).unwrap();
        disk.set_capacity(Some(1000));
        assert!(super::super::is_full(&file.write_at(&[1; 1001], 0).unwrap_err()));
        file.write_at(&[1; 1000], 0).unwrap();
        disk.fail_syncs(true);
        assert!(file.sync_data().is_err() && disk.sync_dir("").is_err());
        disk.fail_writes(true);
        assert!(file.write_at(&[1], 0).is_err() && disk.remove("x").is_err());
        let after = disk.crash(Crash::Process, &mut never);
        after.remove("x").unwrap();
        assert_eq!(after.used(), 0);
    }
}
