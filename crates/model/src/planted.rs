//! Bugs put in on purpose, to prove that the tests find them. Without the feature `planted`, which only dev-dependencies
//! enable, `is` is a constant `false` and nothing of this is compiled in.

/// One bug, each breaking a law of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// Replies before the commit log is fsynced (law 5).
    ReplyBeforeSync = 1,
    /// Forgets tombstones without hearing that every holder has absorbed them (law 6).
    ForgetEarly = 2,
    /// Applies a delta whose predecessor is missing: a gap is skipped (contiguity).
    SkipGap = 3,
}

impl Bug {
    pub const ALL: [Bug; 3] = [Bug::ReplyBeforeSync, Bug::ForgetEarly, Bug::SkipGap];
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants a bug for the whole process, or takes the planted one out.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |b| b as u8), std::sync::atomic::Ordering::SeqCst);
}

/// Whether this bug is planted.
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::SeqCst) == bug as u8
}

/// Whether this bug is planted.
#[cfg(not(feature = "planted"))]
pub const fn is(_: Bug) -> bool {
    false
}
