//! A file system of its own in an image, mounted by a loop device: it can lose its power, and it can be filled up.
//!
//! What was not synced when the power went is gone, as on a real disk: the cut drops everything that only memory holds.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::budget::Skipped;

#[derive(Clone, Copy, Debug)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

/// A file system, mounted or not. It is unmounted when it goes.
pub struct Volume {
    image: PathBuf,
    at: PathBuf,
    is_mounted: bool,
}

impl Volume {
    /// Makes and mounts one. Where that is refused the scenario is skipped.
    pub fn new(directory: &Path, file_system: FileSystem, bytes: u64) -> Result<Volume> {
        let mut volume =
            Volume { image: directory.join("volume.img"), at: directory.join("volume"), is_mounted: false };
        std::fs::create_dir_all(&volume.at)?;
        File::create(&volume.image)?.set_len(bytes)?;
        let mut make = match file_system {
            FileSystem::Ext4 => command("mkfs.ext4", &["-q", "-F"]),
            FileSystem::Xfs => command("mkfs.xfs", &["-q", "-f"]),
        };
        let made = run(make.arg(&volume.image));
        made.and_then(|()| volume.mount()).map_err(|why| Skipped(format!("no volume of its own: {why:#}")))?;
        Ok(volume)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    pub fn mount(&mut self) -> Result<()> {
        run(command("mount", &["-o", "loop"]).arg(&self.image).arg(&self.at))?;
        self.is_mounted = true;
        Ok(())
    }

    pub fn unmount(&mut self) -> Result<()> {
        run(command("umount", &[]).arg(&self.at))?;
        self.is_mounted = false;
        Ok(())
    }

    /// Cuts its power: from here on nothing reaches the image, and whatever had not reached it is lost with the unmount.
    pub fn cut_power(&self) -> Result<()> {
        let root = File::open(&self.at)?;
        shutdown(&root).context("FS_IOC_SHUTDOWN")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Whoever still has a file open here is about to be killed; then it goes by itself.
        if self.is_mounted && self.unmount().is_err() {
            let _ = run(command("umount", &["--lazy"]).arg(&self.at));
        }
    }
}

/// Without writing the journal's pending transactions first: what fsync has not been asked for is lost.
#[allow(unsafe_code, reason = "no safe wrapper of this ioctl exists; it reads one integer, which outlives the call")]
fn shutdown(root: &File) -> rustix::io::Result<()> {
    // _IOR('X', 125, u32), as ext4 and xfs both know it.
    const FS_IOC_SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: the operation takes a pointer to a u32 and only reads it, which is what `Setter` passes.
    unsafe { rustix::ioctl::ioctl(root, rustix::ioctl::Setter::<FS_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
}

/// Tools of administration are not on everybody's path.
fn command(program: &str, arguments: &[&str]) -> Command {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let found = places.iter().map(|place| Path::new(place).join(program)).find(|path| path.exists());
    let mut command = Command::new(found.unwrap_or_else(|| program.into()));
    command.args(arguments);
    command
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| program.clone())?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
