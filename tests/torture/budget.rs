//! What a scenario may use, and where it says how it went.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::report::Tally;

pub struct Budget {
    pub rng: StdRng,
    /// A long run: its scenarios last as long as the issue they answer asks for, if there is time.
    pub is_long: bool,
    /// Its part of all the time.
    pub share: Duration,
    began: Instant,
    rounds_min: u64,
    tally: Tally,
    notes: Vec<String>,
    directory: Option<TempDir>,
}

/// The scenario cannot run on this machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skipped(pub String);

impl Budget {
    /// `share`: none for the short version, which has `rounds_min` rounds.
    pub fn new(seed: u64, share: Option<Duration>, rounds_min: u64) -> Budget {
        Budget {
            rng: StdRng::seed_from_u64(seed),
            is_long: share.is_some(),
            share: share.unwrap_or_default(),
            began: Instant::now(),
            rounds_min,
            tally: Tally::default(),
            notes: Vec::new(),
            directory: None,
        }
    }

    /// Where the scenario keeps its files. They go with it, but for those of one that lost something.
    pub fn directory(&mut self) -> Result<PathBuf> {
        let directory = TempDir::with_prefix("isle-torture-")?;
        let path = directory.path().to_owned();
        self.directory = Some(directory);
        Ok(path)
    }

    /// Begins another round, if there is time for one.
    pub fn next_round(&mut self) -> bool {
        let goes_on = self.tally.tried < self.rounds_min || (self.is_long && self.began.elapsed() < self.share);
        self.tally.tried += u64::from(goes_on);
        goes_on
    }

    /// The round is over, and all is there.
    pub fn survived(&mut self) {
        self.tally.survived += 1;
    }

    pub fn rounds(&self) -> u64 {
        self.tally.tried
    }

    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// What did not survive is lost. Its files are kept, to be looked at.
    pub fn lost(&mut self, why: String) {
        self.tally.tried = self.tally.tried.max(1);
        self.notes.push(why);
        if let Some(kept) = self.directory.take().map(TempDir::keep) {
            self.notes.push(format!("its files: {}", kept.display()));
        }
    }

    /// Rounds that were begun and did not end well are lost.
    pub fn end(self) -> (Tally, Vec<String>) {
        let lost = self.tally.tried - self.tally.survived;
        (Tally { lost, ..self.tally }, self.notes)
    }
}
