//! Every decoder of isle, as a function of bytes that somebody else made: what a peer, a client or a damaged disk may hold.
//!
//! ```text
//! stored      log entries, deltas, records, chunks, marks; log segments; checkpoints
//! wire        what peers and clients send; batches; statuses
//! tokens      of versions and of pages
//! corpus/     a folder a target: inputs that reach what random bytes do not
//! ```
//! The law it keeps: a decoder answers with an error or a sound value. It never panics, and what it allocates is in
//! proportion to what it was given: `check` counts every byte. Where a checksum or a MAC stands in front, a target also sets
//! it right, or nothing behind it would ever be reached.
//! `tests/corpus.rs` runs the corpus and its mutations; `just fuzz TARGET` looks for more, guided by coverage.

use std::path::{Path, PathBuf};

pub mod allocation;
mod repaired;
pub mod seeds;
mod stored;
mod tokens;
mod wire;

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Sound,
    Refused,
}

impl Verdict {
    fn of<T, E>(result: &Result<T, E>) -> Verdict {
        if result.is_ok() { Verdict::Sound } else { Verdict::Refused }
    }
}

pub struct Target {
    /// Of its corpus folder too.
    pub name: &'static str,
    pub run: fn(&[u8]) -> Verdict,
    /// The most that may be allocated at once: so many bytes for each byte of input, and so many in any case.
    pub factor: usize,
    pub slack: usize,
}

/// Twice what the largest part of a message takes for its two bytes, and as much again while a list grows.
const PARTS: usize = 600;
/// What comes from peers is weighed before it is decoded: 32 times, as much again while a list grows, and the model's own.
const WEIGHED: usize = 128;
const SMALL: usize = 256 << 10;
/// A block announces its size, and so much is reserved for it, and no more.
const BLOCK: usize = (32 << 20) + SMALL;

pub const TARGETS: &[Target] = &[
    Target { name: "log_entry", run: stored::log_entry, factor: PARTS, slack: SMALL },
    Target { name: "delta", run: stored::delta, factor: WEIGHED, slack: SMALL },
    Target { name: "record", run: stored::record, factor: PARTS, slack: SMALL },
    Target { name: "ledger_entry", run: stored::ledger_entry, factor: PARTS, slack: SMALL },
    Target { name: "state_chunk", run: stored::state_chunk, factor: WEIGHED, slack: SMALL },
    Target { name: "view_mark", run: stored::view_mark, factor: PARTS, slack: SMALL },
    Target { name: "log_segment", run: stored::log_segment, factor: 64, slack: 4 << 20 },
    Target { name: "checkpoint", run: stored::checkpoint, factor: PARTS, slack: BLOCK },
    Target { name: "version_token", run: tokens::version, factor: 64, slack: SMALL },
    Target { name: "page_token", run: tokens::page, factor: 64, slack: SMALL },
    Target { name: "delta_batch", run: wire::delta_batch, factor: 64, slack: BLOCK },
    Target { name: "peer_message", run: wire::peer_message, factor: 128, slack: BLOCK },
    Target { name: "client_message", run: wire::client_message, factor: PARTS, slack: SMALL },
    Target { name: "status", run: wire::status, factor: 128, slack: SMALL },
    Target { name: "config", run: wire::config, factor: 512, slack: 1 << 20 },
];

impl Target {
    /// Runs an input, and panics where it costs more than it may.
    pub fn check(&self, input: &[u8]) -> Verdict {
        let (verdict, peak) = allocation::peak_of(|| (self.run)(input));
        let most = self.factor * input.len() + self.slack;
        assert!(peak <= most, "{}: {} bytes of input made {peak} bytes, more than {most}", self.name, input.len());
        verdict
    }
}

/// The folder of a target's corpus.
pub fn corpus_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
