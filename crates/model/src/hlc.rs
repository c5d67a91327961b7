//! A hybrid logical clock: wall time that never runs backwards and is ahead of everything its node has seen.
//! Source: Kulkarni et al., "Logical Physical Clocks" (2014).
//!
//! It only breaks ties between truly concurrent writes. A stamp from too far ahead is merged but never advances this clock:
//! one region with a broken clock must not drag the others along.

use std::fmt;

/// Milliseconds since the Unix epoch in the upper 48 bits, a counter in the lower 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc(pub u64);

impl Hlc {
    pub fn from_ms(ms: u64) -> Hlc {
        Hlc(ms.min((1 << 48) - 1) << 16)
    }

    pub fn ms(self) -> u64 {
        self.0 >> 16
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ms(), self.0 & 0xffff)
    }
}

/// What came of hearing a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Taken,
    /// The stamp is this many milliseconds ahead of the wall clock, which is more than allowed.
    TooFarAhead {
        by_ms: u64,
    },
}

/// One node's clock. The wall time is always an argument.
#[derive(Clone, Debug, Default)]
pub struct HlcClock {
    last: Hlc,
}

impl HlcClock {
    pub fn new(last: Hlc) -> Self {
        HlcClock { last }
    }

    pub fn last(&self) -> Hlc {
        self.last
    }

    /// A stamp for a new write: higher than every stamp given or taken before.
    pub fn tick(&mut self, now_ms: u64) -> Hlc {
        self.last = Hlc::from_ms(now_ms).max(Hlc(self.last.0.saturating_add(1)));
        self.last
    }

    /// Hears a stamp of another region.
    pub fn hear(&mut self, stamp: Hlc, now_ms: u64, drift_ms_max: u64) -> Heard {
        let by_ms = stamp.ms().saturating_sub(now_ms);
        if by_ms > drift_ms_max {
            return Heard::TooFarAhead { by_ms };
        }
        self.last = self.last.max(stamp);
        Heard::Taken
    }
}
