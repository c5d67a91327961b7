//! What may go wrong in a run.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mix {
    /// Links delay, clocks differ.
    Calm,
    /// Links are cut, one way too, and slowed; clocks jump, by up to an hour; a region may be away beyond the log's budget; deltas
    /// come twice, late, in another order, or not at all.
    Partitions,
    /// The same, and nodes crash; disks keep what they promised.
    Crashes,
    /// The same, and disks have acknowledged syncs that they did not do.
    Lying,
    /// As `Crashes`, and disks are full, slow, or fail: at a write or at a sync.
    Disks,
    /// As `Crashes`, and regions are away for longer than their tombstones are waited for.
    Away,
    /// As `Crashes`, and one region comes back from an old copy of its directory.
    Restored,
    /// As `Crashes`, and one region's directory is copied and started beside it.
    Cloned,
    /// As `Crashes`, and the keys of one keyspace have homes: their writes are forwarded, and some reads are the home's.
    Homed,
    /// As `Crashes`, and one region leaves the cluster and joins it again with an empty disk, over and over.
    Members,
    /// As `Homed`, and one region may hold the keyspaces, and may not, and may again.
    Holders,
    /// As `Homed`, and the keyspaces are shipped at intervals, some of the time.
    Warm,
    /// The same, and one region comes back from an old copy of its directory.
    WarmRestored,
}

impl Mix {
    pub const ALL: [Mix; 13] = [
        Mix::Calm,
        Mix::Partitions,
        Mix::Crashes,
        Mix::Lying,
        Mix::Disks,
        Mix::Away,
        Mix::Restored,
        Mix::Cloned,
        Mix::Homed,
        Mix::Members,
        Mix::Holders,
        Mix::Warm,
        Mix::WarmRestored,
    ];

    /// Whether what was acknowledged is on the disk.
    pub fn is_honest(self) -> bool {
        !matches!(self, Mix::Lying | Mix::Restored | Mix::Cloned | Mix::WarmRestored)
    }

    /// Whether the other keyspace's keys have homes.
    pub fn is_homed(self) -> bool {
        matches!(self, Mix::Homed | Mix::Holders | Mix::Warm)
    }

    /// Whether only one region's directory may go back in time: what the others have logged is kept.
    pub fn has_victim(self) -> bool {
        matches!(self, Mix::Restored | Mix::Cloned | Mix::WarmRestored)
    }

    /// Whether the tiers of the keyspaces change.
    pub fn is_warm(self) -> bool {
        matches!(self, Mix::Warm | Mix::WarmRestored)
    }
}
