//! What may go wrong in a run.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mix {
    /// Links delay, clocks differ.
    Calm,
    /// Links are cut, one way too, and slowed; clocks jump; a region may be away beyond the log's budget; deltas come twice, late,
    /// in another order, or not at all.
    Partitions,
    /// The same, and nodes crash; disks keep what they promised.
    Crashes,
    /// The same, and disks have acknowledged syncs that they did not do.
    Lying,
}

impl Mix {
    pub const ALL: [Mix; 4] = [Mix::Calm, Mix::Partitions, Mix::Crashes, Mix::Lying];

    /// Whether what was acknowledged is on the disk.
    pub fn is_honest(self) -> bool {
        self != Mix::Lying
    }
}
