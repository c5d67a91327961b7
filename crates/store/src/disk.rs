//! The one seam for every file operation of the store, sled's own excepted.
//!
//! Nothing is promised before it is synced: bytes by the file's `sync_data` or `sync_all`, names by `sync_dir` of their
//! directory. What may be kept of the rest after a crash is for [`MemoryDisk`] to try out; what to do about it is for
//! the callers.

mod memory;
mod scratch;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

pub use memory::{Crash, MemoryDisk};
pub(crate) use scratch::ScratchDisk;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// A new, empty file to read and write; what was there under that name is emptied.
    Create,
    ReadWrite,
    Read,
}

/// Files below a data directory. Paths are relative, with `/` between their parts; `""` is the data directory itself.
pub trait Disk: Send + Sync {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a directory and its parents, durably. One that exists already is fine.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    fn exists(&self, path: &str) -> io::Result<bool>;
    /// Atomic, but durable only after `sync_dir`. Replaces what is there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; durable only after `sync_dir`.
    fn remove(&self, path: &str) -> io::Result<()>;
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// Free space, in bytes; `None` where that is not known.
    fn free_bytes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let file = self.open(path, OpenMode::Read)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Replaces a small file so that a crash leaves either the old bytes or the new ones. Durable on return.
    fn write_atomic(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let aside = format!("{path}.tmp");
        let file = self.open(&aside, OpenMode::Create)?;
        file.write_at(bytes, 0)?;
        // The bytes before the name: a rename may reach the disk before the data of the file it names.
        file.sync_all()?;
        self.rename(&aside, path)?;
        self.sync_dir(parent(path))
    }
}

/// An open file. It stays readable after its name is removed or replaced.
pub trait DiskFile: Send + Sync {
    /// Fills as much of `buffer` as the file has from `offset` on; fewer bytes than asked for means its end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes`, growing the file where needed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Grows the file to `len` by writing zeros, and syncs them, so that later syncs of what is written over them have
    /// no metadata to move. Does nothing to a file that is as long already.
    fn preallocate(&self, len: u64) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
    fn sync_all(&self) -> io::Result<()>;

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// The directory part of a path.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Whether an error says that there is no space, which may pass, unlike the others.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A data directory of the file system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// Opens a data directory, making it if needed.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        let disk = Self { root };
        create_dir_durably(&disk.root)?;
        Ok(disk)
    }

    fn path(&self, path: &str) -> PathBuf {
        match path {
            "" => self.root.clone(),
            path => self.root.join(path),
        }
    }
}

/// A directory that was there already is left alone: whoever made it synced it.
fn create_dir_durably(path: &std::path::Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => std::path::Path::new("."),
    };
    create_dir_durably(above)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        done => done?,
    }
    File::open(above)?.sync_all()
}

impl Disk for RealDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        match mode {
            OpenMode::Create => options.read(true).write(true).create(true).truncate(true),
            OpenMode::ReadWrite => options.read(true).write(true),
            OpenMode::Read => options.read(true),
        };
        let file = options.open(self.path(path))?;
        #[cfg(feature = "faults")]
        return Ok(Arc::new(faults::Failing::new(RealFile(file), self.path(faults::FAIL_SYNC))));
        #[cfg(not(feature = "faults"))]
        Ok(Arc::new(RealFile(file)))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        create_dir_durably(&self.path(path))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.path(dir))? {
            // A name that is not UTF-8 is none of the store's.
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.path(path).try_exists()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(path))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir))?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }
}

/// A failing disk, for tests of the built binary: what a device does when it dies cannot be had otherwise.
#[cfg(feature = "faults")]
mod faults {
    use super::{DiskFile, RealFile};
    use std::io;
    use std::path::PathBuf;

    /// While the data directory has a file of this name, the next sync of data fails, does nothing, and takes it away.
    pub(super) const FAIL_SYNC: &str = "FAIL_SYNC";

    pub(super) struct Failing {
        file: RealFile,
        fail_sync: PathBuf,
    }

    impl Failing {
        pub(super) fn new(file: RealFile, fail_sync: PathBuf) -> Self {
            Self { file, fail_sync }
        }
    }

    impl DiskFile for Failing {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.file.read_at(buffer, offset)
        }

        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            self.file.write_at(bytes, offset)
        }

        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }

        fn preallocate(&self, len: u64) -> io::Result<()> {
            self.file.preallocate(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            const EIO: i32 = 5;
            match std::fs::remove_file(&self.fail_sync) {
                Ok(()) => Err(io::Error::from_raw_os_error(EIO)),
                Err(_) => self.file.sync_data(),
            }
        }

        fn sync_all(&self) -> io::Result<()> {
            self.file.sync_all()
        }
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.0.read_at(&mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        const BLOCK: usize = 1 << 20;
        let zeros = vec![0; BLOCK];
        let mut at = self.len()?;
        while at < len {
            let bytes = (len - at).min(BLOCK as u64);
            self.0.write_all_at(&zeros[..bytes as usize], at)?;
            at += bytes;
        }
        self.0.sync_all()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn behaves(disk: &dyn Disk) {
        disk.create_dir("a/b").unwrap();
        let file = disk.open("a/b/x", OpenMode::Create).unwrap();
        file.write_at(b"hello", 3).unwrap();
        let mut buffer = [9; 16];
        assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 8);
        assert_eq!(&buffer[..8], b"\0\0\0hello");
        file.preallocate(5000).unwrap();
        assert_eq!(file.len().unwrap(), 5000);
        file.set_len(5).unwrap();
        file.set_len(8).unwrap();
        assert_eq!(disk.read("a/b/x").unwrap(), b"\0\0\0he\0\0\0");
        disk.rename("a/b/x", "a/b/y").unwrap();
        assert!(!disk.exists("a/b/x").unwrap());
        assert_eq!(disk.list("a/b").unwrap(), ["y"]);
        disk.write_atomic("a/b/y", b"new").unwrap();
        assert_eq!(disk.read("a/b/y").unwrap(), b"new");
        assert_eq!(file.len().unwrap(), 8, "an open file outlives its name");
        disk.remove("a/b/y").unwrap();
        assert_eq!(disk.read("a/b/y").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(disk.open("a/b/y", OpenMode::ReadWrite).is_err());
        assert_eq!(disk.list("a").unwrap(), ["b"]);
        disk.sync_dir("a/b").unwrap();
        assert!(disk.list("nowhere").is_err());
    }

    #[test]
    fn real_and_memory_disks_behave_alike() {
        let directory = tempfile::tempdir().unwrap();
        behaves(&RealDisk::open(directory.path().join("deep/data")).unwrap());
        behaves(&MemoryDisk::new());
    }
}
