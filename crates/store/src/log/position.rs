use std::fmt;

/// A place in the commit log of one node: the segment's number in the upper 32 bits, the byte in its file in the lower.
///
/// Positions are totally ordered as the log is. An entry is named by the position just after it, so `durable >= entry.end`
/// says that it is safe. Segment numbers may leave gaps. Positions never leave their node; position 0 lies before
/// everything.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition(pub u64);

impl LogPosition {
    pub const ZERO: LogPosition = LogPosition(0);

    pub fn new(segment: u32, offset: u32) -> Self {
        Self(u64::from(segment) << 32 | u64::from(offset))
    }

    pub fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn offset(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment(), self.offset())
    }
}

impl fmt::Debug for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogPosition({self})")
    }
}
