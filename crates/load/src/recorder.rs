//! What happened while a load ran: counts, latencies by kind, and writes a tenth of a second, so that a stall shows.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::latency::Latency;
use crate::mix::Kind;
use crate::target::{Answer, Fault};

/// Of one bucket of the timeline.
pub const BUCKET: Duration = Duration::from_millis(100);
/// If so many operations were refused and none was done, the rest would fare no better.
const HOPELESS: u64 = 1_000;

#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    last: Instant,
    measured: Measured,
}

/// What came of a load.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// From the start to the last answer.
    pub seconds: f64,
    /// Operations that were done. A batch counts as what it carried.
    pub applied: u64,
    pub refused: u64,
    /// Reads of records that were not there.
    pub missing: u64,
    /// The store's words for the first one that it refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Milliseconds of a call: of a message, where many operations travel in one.
    #[serde(rename = "latency_ms")]
    pub latency: BTreeMap<Kind, Latency>,
    /// Operations done in each tenth of a second.
    pub timeline: Vec<u64>,
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.applied as f64 / self.seconds } else { 0.0 }
    }

    /// Over all kinds.
    pub fn overall(&self) -> Latency {
        let mut all = Latency::default();
        self.latency.values().for_each(|one| all.merge(one));
        all
    }

    /// The longest row of whole buckets without a single answer.
    pub fn longest_stall(&self) -> Duration {
        let stalls = self.timeline.split(|count| *count > 0).map(<[u64]>::len);
        BUCKET * u32::try_from(stalls.max().unwrap_or_default()).unwrap_or(u32::MAX)
    }
}

impl Recorder {
    pub fn start(now: Instant) -> Recorder {
        Recorder { began: now, last: now, measured: Measured::default() }
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    /// `due` is when the operation should have begun: in an open loop that may be long before it could.
    pub fn note(&mut self, kind: Kind, due: Instant, now: Instant, count: u64, outcome: Result<Done, Fault>) {
        let measured = &mut self.measured;
        self.last = now;
        match outcome {
            Ok(done) => {
                measured.latency.entry(kind).or_default().note(now.saturating_duration_since(due));
                let bucket = (now.saturating_duration_since(self.began).as_millis() / BUCKET.as_millis()) as usize;
                if measured.timeline.len() <= bucket {
                    measured.timeline.resize(bucket + 1, 0);
                }
                measured.timeline[bucket] += done.answer.applied;
                measured.applied += done.answer.applied;
                measured.refused += done.answer.refused;
                measured.missing += u64::from(done.missing);
                measured.reason = measured.reason.take().or(done.answer.reason);
            }
            Err(fault) => {
                measured.refused += count;
                measured.reason.get_or_insert_with(|| fault.to_string());
            }
        }
    }

    pub fn done(&self) -> u64 {
        self.measured.applied + self.measured.refused
    }

    pub fn is_hopeless(&self) -> bool {
        self.measured.applied == 0 && self.measured.refused >= HOPELESS
    }

    pub fn finish(mut self) -> Measured {
        self.measured.seconds = (self.last - self.began).as_secs_f64();
        self.measured
    }
}

/// What one call did.
#[derive(Debug, Default)]
pub struct Done {
    pub answer: Answer,
    /// It was a read, and there was nothing.
    pub missing: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn done(applied: u64) -> Result<Done, Fault> {
        Ok(Done { answer: Answer::applied(applied), missing: false })
    }

    #[test]
    fn a_stall_shows_in_the_timeline() {
        let began = Instant::now();
        let mut recorder = Recorder::start(began);
        for ms in [10, 50, 120, 750] {
            let now = began + Duration::from_millis(ms);
            recorder.note(Kind::Insert, now, now, 2, done(2));
        }
        let measured = recorder.finish();
        assert_eq!(measured.timeline, [4, 2, 0, 0, 0, 0, 0, 2]);
        assert_eq!(measured.longest_stall(), Duration::from_millis(500));
        assert_eq!((measured.applied, measured.seconds), (8, 0.75));
    }

    #[test]
    fn latency_counts_from_when_it_was_due() {
        let began = Instant::now();
        let mut recorder = Recorder::start(began);
        recorder.note(Kind::Read, began, began + Duration::from_millis(300), 1, done(1));
        let latency = &recorder.finish().latency[&Kind::Read];
        assert!((latency.at(0.5) - 300.0).abs() < 1.0);
    }

    #[test]
    fn what_is_refused_is_counted_with_its_reason() {
        let began = Instant::now();
        let mut recorder = Recorder::start(began);
        for fact in ["full", "still full"] {
            recorder.note(Kind::Insert, began, began, 500, Err(Fault::Refused(fact.to_owned())));
        }
        assert!(recorder.is_hopeless());
        let measured = recorder.finish();
        assert_eq!((measured.refused, measured.reason.as_deref()), (1_000, Some("full")));
    }
}
