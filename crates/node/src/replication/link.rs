//! What one peer is to this node: LIVE, LAGGING, NEEDS_STATE or DOWN. Pure: it is told what happened and when.
//!
//! Two links join a pair of regions: the peer pulls from here (outbound), and here is pulled from the peer (inbound).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use isle_store::LogPosition;

use crate::shared::{Confirmed, StreamKey};

/// A peer that has not confirmed what is older than this is LAGGING, and slows nobody.
const LIVE_LAG_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It confirms within a second.
    Live,
    Lagging,
    /// The log does not reach back to what it has: it is taking a state.
    NeedsState,
    Down,
}

#[derive(Debug)]
pub(crate) struct Link {
    /// Whether the peer subscribes here.
    pub(crate) outbound: bool,
    pub(crate) inbound: bool,
    pub(crate) needs_state: bool,
    /// What the peer has confirmed; `None` until it first subscribed to this process.
    pub(crate) confirmed: Option<Confirmed>,
    /// Whether the peer, as a sender, said last that everything it has is sent.
    pub(crate) inbound_caught_up: bool,
    /// When the probe was sent whose answer was absorbed last: what is read here is at most this old.
    pub(crate) fresh_as_of: Option<Duration>,
    /// Streams of which the peer said with its last answer that it has not sent all, and as of when they were fresh, if ever.
    pub(crate) behind: BTreeMap<StreamKey, Option<Duration>>,
    /// How far this node's wall clock is ahead of the peer's, at least; `None` until it has said, and while the link is down.
    pub(crate) clock_ahead_ms: Option<i64>,
    /// When either link was last up, or this node started.
    pub(crate) last_up: Duration,
    pub(crate) last_error: Option<String>,
}

impl Link {
    pub(crate) fn new(now: Duration) -> Self {
        Link {
            outbound: false,
            inbound: false,
            needs_state: false,
            confirmed: None,
            inbound_caught_up: false,
            fresh_as_of: None,
            behind: BTreeMap::new(),
            clock_ahead_ms: None,
            last_up: now,
            last_error: None,
        }
    }

    pub(crate) fn set_outbound(&mut self, up: bool, now: Duration) {
        self.outbound = up;
        self.last_up = now;
    }

    pub(crate) fn set_inbound(&mut self, up: bool, now: Duration) {
        self.inbound = up;
        self.inbound_caught_up = false;
        self.clock_ahead_ms = None;
        self.last_up = now;
    }

    /// An answer to the probe of then was absorbed: all has come by it, but for these streams.
    pub(crate) fn note_answer(&mut self, at: Duration, behind: &[StreamKey]) {
        let since = |stream: &StreamKey| self.behind.get(stream).copied().unwrap_or(self.fresh_as_of);
        self.behind = behind.iter().map(|stream| (*stream, since(stream))).collect();
        self.fresh_as_of = Some(at);
    }

    /// All that a stream had then has come by a state.
    pub(crate) fn note_state(&mut self, stream: StreamKey, at: Duration) {
        if let Some(fresh) = self.behind.get_mut(&stream) {
            *fresh = Some(fresh.map_or(at, |before| before.max(at)));
        }
    }

    pub(crate) fn stream_fresh_as_of(&self, stream: StreamKey) -> Option<Duration> {
        self.behind.get(&stream).copied().unwrap_or(self.fresh_as_of)
    }

    /// `lag` is the age of the oldest durable position that the peer has not confirmed.
    pub(crate) fn state(&self, lag: Duration) -> LinkState {
        match self {
            Link { outbound: false, .. } => LinkState::Down,
            Link { needs_state: true, .. } => LinkState::NeedsState,
            _ if lag > LIVE_LAG_MAX => LinkState::Lagging,
            _ => LinkState::Live,
        }
    }

    /// How long the peer has been away.
    pub(crate) fn away(&self, now: Duration) -> Duration {
        if self.outbound || self.inbound { Duration::ZERO } else { now.saturating_sub(self.last_up) }
    }

    /// Whether what is missing of the peer's own streams will not come from it: it is gone, or has sent all it has.
    pub(crate) fn will_not_send(&self) -> bool {
        !self.inbound || self.inbound_caught_up
    }
}

/// How much a dead peer may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogBudget {
    pub(crate) bytes: u64,
    pub(crate) age: Duration,
}

impl LogBudget {
    /// Whether the log goes on waiting for a peer that is so far behind.
    pub(crate) fn waits(&self, lag_bytes: u64, lag: Duration) -> bool {
        lag_bytes <= self.bytes && lag <= self.age
    }
}

/// When which position had become durable: a bounded memory that grows coarser as it fills.
#[derive(Debug, Default)]
pub(crate) struct AgeMarks {
    marks: VecDeque<(LogPosition, Duration)>,
}

impl AgeMarks {
    const MOST: usize = 512;

    /// Everything up to `position` was durable at `now`.
    pub(crate) fn note(&mut self, position: LogPosition, now: Duration) {
        if self.marks.back().is_some_and(|(last, _)| *last >= position) {
            return;
        }
        if self.marks.len() >= Self::MOST {
            let mut at = 0;
            // Of each pair the later goes: an age is then said too high rather than too low.
            self.marks.retain(|_| {
                at += 1;
                at % 2 == 1
            });
        }
        self.marks.push_back((position, now));
    }

    /// The age of the oldest that lies above `confirmed`; zero if nothing does.
    pub(crate) fn lag(&self, confirmed: LogPosition, durable: LogPosition, now: Duration) -> Duration {
        if confirmed >= durable {
            return Duration::ZERO;
        }
        let first_missed = self.marks.partition_point(|(position, _)| *position <= confirmed);
        self.marks.get(first_missed).map_or(Duration::ZERO, |(_, at)| now.saturating_sub(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_link_goes_through_its_states() {
        let mut link = Link::new(s(0));
        assert_eq!(link.state(s(0)), LinkState::Down);
        link.set_outbound(true, s(1));
        assert_eq!(link.state(s(0)), LinkState::Live);
        assert_eq!(link.state(s(2)), LinkState::Lagging);
        link.needs_state = true;
        assert_eq!(link.state(s(2)), LinkState::NeedsState);
        link.set_outbound(false, s(5));
        assert_eq!((link.state(s(0)), link.away(s(9))), (LinkState::Down, s(4)));
    }

    #[test]
    fn a_stream_is_as_fresh_as_the_last_answer_that_did_not_name_it() {
        let stream = |shard| (isle_model::KeyspaceId(1), isle_model::ShardId(shard));
        let mut link = Link::new(s(0));
        link.note_answer(s(1), &[stream(0)]);
        assert_eq!((link.stream_fresh_as_of(stream(0)), link.stream_fresh_as_of(stream(1))), (None, Some(s(1))));
        link.note_answer(s(2), &[]);
        link.note_answer(s(3), &[stream(0)]);
        link.note_answer(s(9), &[stream(0)]);
        assert_eq!(link.stream_fresh_as_of(stream(0)), Some(s(2)), "since then it is said to be behind");
        link.note_state(stream(0), s(7));
        link.note_state(stream(0), s(5));
        link.note_answer(s(10), &[stream(0)]);
        assert_eq!((link.stream_fresh_as_of(stream(0)), link.fresh_as_of), (Some(s(7)), Some(s(10))));
    }

    #[test]
    fn a_peer_beyond_either_budget_is_not_waited_for() {
        let budget = LogBudget { bytes: 100, age: s(10) };
        assert!(budget.waits(100, s(10)));
        assert!(!budget.waits(101, s(0)));
        assert!(!budget.waits(0, s(11)));
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_unconfirmed() {
        let mut marks = AgeMarks::default();
        for n in 1..=10 {
            marks.note(LogPosition(n), s(n));
        }
        assert_eq!(marks.lag(LogPosition(10), LogPosition(10), s(20)), s(0));
        assert_eq!(marks.lag(LogPosition(4), LogPosition(10), s(20)), s(15));
        assert_eq!(marks.lag(LogPosition(0), LogPosition(10), s(20)), s(19));
    }

    #[test]
    fn marks_are_bounded_and_err_towards_older() {
        let mut marks = AgeMarks::default();
        for n in 1..=100_000 {
            marks.note(LogPosition(n), s(n));
        }
        assert!(marks.marks.len() <= AgeMarks::MOST);
        // What was missed first is still remembered, however coarse the rest has become.
        assert!(marks.lag(LogPosition(0), LogPosition(100_000), s(100_000)) >= s(99_990));
    }
}
