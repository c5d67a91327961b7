//! A disk laid over another one, which it leaves as it is: what is written stays in memory. For trying out what recovery would
//! make of a directory.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile, MemoryDisk, OpenMode, parent};

#[derive(Clone)]
pub(crate) struct ScratchDisk {
    below: Arc<dyn Disk>,
    above: MemoryDisk,
    /// Names that the disk below has and this one has not, or has anew.
    hidden: Arc<Mutex<BTreeSet<String>>>,
}

impl ScratchDisk {
    pub(crate) fn over(below: Arc<dyn Disk>) -> ScratchDisk {
        ScratchDisk { below, above: MemoryDisk::new(), hidden: Arc::default() }
    }

    fn is_hidden(&self, path: &str) -> bool {
        self.hidden.lock().contains(path)
    }

    fn hide(&self, path: &str) {
        self.hidden.lock().insert(path.to_owned());
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.above.create_dir(parent(path))?;
        self.hide(path);
        self.above.open(path, OpenMode::Create)
    }

    /// The file in memory, with the bytes of the one below.
    fn copy_up(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let bytes = self.below.read(path)?;
        let file = self.create(path)?;
        file.write_at(&bytes, 0)?;
        Ok(file)
    }
}

impl Disk for ScratchDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if mode == OpenMode::Create {
            return self.create(path);
        }
        if self.is_hidden(path) || self.above.exists(path)? {
            return self.above.open(path, mode);
        }
        let below = self.below.open(path, OpenMode::Read)?;
        Ok(Arc::new(ScratchFile { disk: self.clone(), path: path.to_owned(), file: Mutex::new((below, false)) }))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.above.create_dir(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let path = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        let mut names = BTreeSet::new();
        if self.below.exists(dir)? {
            names.extend(self.below.list(dir)?.into_iter().filter(|name| !self.is_hidden(&path(name))));
        }
        if self.above.exists(dir)? {
            names.extend(self.above.list(dir)?);
        }
        Ok(names.into_iter().collect())
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        Ok(self.above.exists(path)? || (!self.is_hidden(path) && self.below.exists(path)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if !self.above.exists(from)? {
            self.copy_up(from)?;
        }
        self.hide(from);
        self.hide(to);
        self.above.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.hide(path);
        if self.above.exists(path)? { self.above.remove(path) } else { Ok(()) }
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.above.create_dir(dir)?;
        self.above.sync_dir(dir)
    }
}

/// The file below until it is written to, then a copy of it.
struct ScratchFile {
    disk: ScratchDisk,
    path: String,
    file: Mutex<(Arc<dyn DiskFile>, bool)>,
}

impl ScratchFile {
    fn to_read(&self) -> Arc<dyn DiskFile> {
        self.file.lock().0.clone()
    }

    fn to_write(&self) -> io::Result<Arc<dyn DiskFile>> {
        let mut file = self.file.lock();
        if !file.1 {
            *file = (self.disk.copy_up(&self.path)?, true);
        }
        Ok(file.0.clone())
    }
}

impl DiskFile for ScratchFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.to_read().read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.to_write()?.write_at(bytes, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.to_read().len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.len()? == len { Ok(()) } else { self.to_write()?.set_len(len) }
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.to_write()?.preallocate(len)
    }

    /// What is below is synced by whoever wrote it, and what is above is never meant to last.
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_over_a_disk_is_seen_and_leaves_it_as_it_is() {
        let below = MemoryDisk::new();
        below.create_dir("log").unwrap();
        for name in ["log/a", "log/b", "VIEW"] {
            below.write_atomic(name, name.as_bytes()).unwrap();
        }
        let disk = ScratchDisk::over(Arc::new(below.clone()));
        let file = disk.open("log/a", OpenMode::ReadWrite).unwrap();
        file.write_at(b"LOG", 0).unwrap();
        disk.remove("log/b").unwrap();
        disk.write_atomic("VIEW", b"new").unwrap();
        disk.write_atomic("log/c", b"c").unwrap();
        assert_eq!(disk.read("log/a").unwrap(), b"LOG/a");
        assert_eq!(disk.read("VIEW").unwrap(), b"new");
        assert!(disk.open("log/b", OpenMode::Read).is_err() && !disk.exists("log/b").unwrap());
        assert_eq!(disk.list("log").unwrap(), ["a", "c"]);
        assert_eq!(below.list("log").unwrap(), ["a", "b"]);
        assert_eq!((below.read("log/a").unwrap(), below.read("VIEW").unwrap()), (b"log/a".to_vec(), b"VIEW".to_vec()));
    }
}
