//! Bugs put in on purpose, to prove that the tests find them. Without the feature `planted`, which only dev-dependencies
//! enable, `is` is a constant `false` and nothing of this is compiled in.

/// One bug, each breaking a law of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Bug {
    /// Replies before the commit log is fsynced (law 5).
    ReplyBeforeSync = 1,
    /// Forgets tombstones without hearing that every holder has absorbed them (law 6).
    ForgetEarly = 2,
    /// Applies a delta whose predecessor is missing: a gap is skipped (contiguity).
    SkipGap = 3,
    /// Merging takes what came last (law 1).
    MergeTakesLast = 4,
    /// Shows the sibling with the latest clock, whatever its generation (law 2).
    ClockFirst = 5,
    /// A write does not cover what its client had seen: it is taken for concurrent with it (law 3).
    IgnoreContext = 6,
    /// A sibling that loses is not noted in the ledger (law 4).
    LoseLoser = 7,
    /// Recovery skips entries of the log.
    SkipInReplay = 8,
    /// Goes on talking to an incarnation that has been replaced (fencing).
    AdmitReplaced = 9,
    /// A transfer's cursors move without its last chunk (state transfer).
    CursorBeforeLast = 10,
    /// What a complete state does not list is kept (complete state).
    KeepUnlisted = 11,
    /// A delta that cannot be read is passed over: cursors and statements go on above it (quarantine).
    PassUnreadable = 12,
    /// A change of the metadata is acknowledged before most regions have it (metadata).
    ChangeBeforeCommit = 13,
    /// A region takes a write of a key whose home is elsewhere (homes).
    TakeForeignHome = 14,
    /// A strong read is served from what the region has that was asked (strong reads).
    StrongFromHere = 15,
    /// A region that may hold a keyspace no more purges it without handing it over (narrowing).
    SkipHanding = 16,
    /// A region that comes to hold a keyspace serves it before it has all of it (widening).
    ServeHalf = 17,
    /// A region says that it is rid of a keyspace before it is (narrowing).
    GoneAtOnce = 18,
    /// That a key has changed is forgotten once one peer has it, not once all have (warm).
    ForgetChange = 19,
    /// A shipment's cursor moves to where its last piece was read, not its first (warm).
    PinAtLast = 20,
}

impl Bug {
    pub const ALL: [Bug; 20] = [
        Bug::ReplyBeforeSync,
        Bug::ForgetEarly,
        Bug::SkipGap,
        Bug::MergeTakesLast,
        Bug::ClockFirst,
        Bug::IgnoreContext,
        Bug::LoseLoser,
        Bug::SkipInReplay,
        Bug::AdmitReplaced,
        Bug::CursorBeforeLast,
        Bug::KeepUnlisted,
        Bug::PassUnreadable,
        Bug::ChangeBeforeCommit,
        Bug::TakeForeignHome,
        Bug::StrongFromHere,
        Bug::SkipHanding,
        Bug::ServeHalf,
        Bug::GoneAtOnce,
        Bug::ForgetChange,
        Bug::PinAtLast,
    ];
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
