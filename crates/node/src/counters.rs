//! What the node counts. Plain atomics: the server exposes them, nothing in the node decides by them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isle_model::Region;
use parking_lot::RwLock;

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted of one peer.
#[derive(Debug, Default)]
pub struct PeerCounters {
    pub deltas_out: Counter,
    /// Deltas it sent, duplicates included.
    pub deltas_in: Counter,
    pub reconnects: Counter,
    pub refetches: Counter,
    pub state_chunks_in: Counter,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub writes: Counter,
    pub reads: Counter,
    /// Requests refused because a queue or the disk was full, or a deadline had passed.
    pub refused: Counter,
    /// Commits, and the writes in them.
    pub batches: Counter,
    pub hlc_too_far_ahead: Counter,
    /// Deltas that could not be applied, each time they came.
    pub quarantined: Counter,
    pub tombstones_forgotten: Counter,
    pub statements: Counter,
    /// Of every region that is or was a peer in this run.
    peers: RwLock<BTreeMap<Region, Arc<PeerCounters>>>,
}

impl Counters {
    /// Counts what passes from and to a region from now on.
    pub(crate) fn note_peer(&self, region: &Region) {
        self.peers.write().entry(region.clone()).or_default();
    }

    pub fn peers(&self) -> BTreeMap<Region, Arc<PeerCounters>> {
        self.peers.read().clone()
    }

    pub fn peer(&self, region: &Region) -> Option<Arc<PeerCounters>> {
        self.peers.read().get(region).cloned()
    }
}
