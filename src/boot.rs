//! What the store has to know of the machine: whether it is the boot and the mount of last time. Where the kernel does
//! not say, the answer is one that was never given before: then a view is built anew, which is slow and always right.

use std::path::Path;

use isle_model::Incarnation;
use isle_store::BootIdentity;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// STATX_MNT_ID_UNIQUE, since Linux 6.8: unlike STATX_MNT_ID it is not used again after an unmount.
const MOUNT_ID_UNIQUE: u32 = 0x4000;

/// Of the file system that holds a directory.
pub fn identity(directory: &Path) -> BootIdentity {
    BootIdentity {
        boot_id: boot_id().unwrap_or_else(never_before),
        mount_id: mount_id(directory).unwrap_or_else(never_before),
    }
}

fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string(BOOT_ID).ok()?.trim().to_owned();
    (!id.is_empty()).then_some(id)
}

fn mount_id(directory: &Path) -> Option<String> {
    let asked = StatxFlags::from_bits_retain(MOUNT_ID_UNIQUE);
    let found = statx(CWD, directory, AtFlags::empty(), asked).ok()?;
    (found.stx_mask & MOUNT_ID_UNIQUE != 0).then(|| found.stx_mnt_id.to_string())
}

fn never_before() -> String {
    format!("unknown {:032x}", StdRng::from_os_rng().random::<u128>())
}

/// A new run of the node. Never zero.
pub fn incarnation() -> Incarnation {
    Incarnation(StdRng::from_os_rng().random_range(1..=u64::MAX))
}

/// A seed for everything in a node that is left to chance.
pub fn seed() -> u64 {
    StdRng::from_os_rng().random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_never_the_same() {
        assert_ne!(never_before(), never_before());
    }

    #[test]
    fn one_boot_and_mount_have_one_boot_id() {
        let here = Path::new(".");
        assert_eq!(boot_id(), boot_id());
        assert_eq!(mount_id(here), mount_id(here));
    }
}
