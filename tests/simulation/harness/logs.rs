//! What the regions' logs have held, in their order: every delta that was ever durable anywhere, and who logged it when.
//!
//! The law it keeps: no dot ever names two things.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use isle_model::{Delta, Dot, ShardId};
use isle_node::Node;
use isle_store::{LogPosition, TailError, codec};

use super::SITES;
use super::history::History;

/// A dot counts in its shard.
pub type DeltaId = (ShardId, Dot);

#[derive(Default)]
pub struct Logs {
    deltas: BTreeMap<DeltaId, Delta>,
    sites: [SiteLog; SITES.len()],
}

#[derive(Default)]
pub struct SiteLog {
    /// In the log's order; each once, however often the log was read.
    pub order: Vec<(DeltaId, LogPosition)>,
    known: BTreeSet<DeltaId>,
    read_to: LogPosition,
    highest: LogPosition,
    /// Whether something was trimmed before it was read.
    pub has_holes: bool,
}

impl Logs {
    pub fn deltas(&self) -> &BTreeMap<DeltaId, Delta> {
        &self.deltas
    }

    pub fn of(&self, site: usize) -> &SiteLog {
        &self.sites[site]
    }

    pub fn has_logged(&self, site: usize, id: DeltaId) -> bool {
        self.sites[site].known.contains(&id)
    }

    /// The log will be read from its beginning again: what a crash has left may be more than what was read before.
    pub fn restarted(&mut self, site: usize) {
        self.sites[site].read_to = LogPosition(0);
    }

    /// Reads what a node's log has durably gained.
    pub fn collect(&mut self, site: usize, node: &Node, history: &History) {
        loop {
            let log = &mut self.sites[site];
            match node.store().tail(log.read_to, 1 << 20) {
                Ok(tail) => {
                    let is_end = tail.upto <= log.read_to;
                    log.read_to = log.read_to.max(tail.upto);
                    log.highest = log.highest.max(tail.upto);
                    for item in tail.items {
                        self.see(site, item.end, item.encoded, history);
                    }
                    if is_end {
                        return;
                    }
                }
                Err(TailError::Trimmed { oldest }) if oldest > log.read_to => {
                    log.has_holes |= oldest > log.highest;
                    log.read_to = oldest;
                }
                Err(error) => return history.violation(format!("the log of {site} cannot be read: {error}")),
            }
        }
    }

    fn see(&mut self, site: usize, end: LogPosition, encoded: Bytes, history: &History) {
        let delta = match codec::decode_delta(encoded) {
            Ok(delta) => delta,
            Err(error) => return history.violation(format!("{site} logged what does not decode: {error}")),
        };
        let id = (delta.shard, delta.dot);
        if self.sites[site].known.insert(id) {
            self.sites[site].order.push((id, end));
        }
        match self.deltas.get(&id) {
            Some(before) if *before != delta => {
                history.violation(format!("{id:?} names two deltas: {before:?} and {delta:?}"));
            }
            Some(_) => {}
            None => drop(self.deltas.insert(id, delta)),
        }
    }
}
