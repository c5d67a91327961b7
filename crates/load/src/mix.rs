//! The core workloads of YCSB, A to F, in their published proportions.
//!
//! The law: the operations follow from the seed alone and not from how fast they were answered, so every target gets the same ones
//! in the same order.

use clap::ValueEnum;
use serde::Serialize;

use crate::chooser::{Chooser, Distribution};
use crate::random::Random;

/// YCSB's `maxscanlength`; lengths are uniform from 1.
const SCAN_ENTRIES_MAX: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Core {
    /// Update heavy: half reads, half updates
    A,
    /// Read mostly: 95 % reads, 5 % updates
    B,
    /// Read only
    C,
    /// Read latest: 95 % reads of the newest, 5 % inserts
    D,
    /// Short ranges: 95 % scans, 5 % inserts
    E,
    /// Read-modify-write: half reads, half of those that write back
    F,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Read,
    Update,
    Insert,
    Scan,
    ReadModifyWrite,
}

/// One operation, about a record's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub kind: Kind,
    pub number: u64,
    /// Of a scan: how many entries; 0 otherwise.
    pub entries: u64,
}

impl Core {
    /// Shares of a hundred.
    pub fn proportions(self) -> &'static [(Kind, u64)] {
        match self {
            Core::A => &[(Kind::Read, 50), (Kind::Update, 50)],
            Core::B => &[(Kind::Read, 95), (Kind::Update, 5)],
            Core::C => &[(Kind::Read, 100)],
            Core::D => &[(Kind::Read, 95), (Kind::Insert, 5)],
            Core::E => &[(Kind::Scan, 95), (Kind::Insert, 5)],
            Core::F => &[(Kind::Read, 50), (Kind::ReadModifyWrite, 50)],
        }
    }

    pub fn distribution(self) -> Distribution {
        match self {
            Core::D => Distribution::Latest,
            _ => Distribution::Zipfian,
        }
    }
}

/// An endless row of operations.
#[derive(Debug)]
pub struct Mix {
    core: Core,
    chooser: Chooser,
    random: Random,
    records: u64,
    unsettled: u64,
}

impl Mix {
    /// Over `records` that are there already. The newest `unsettled` inserts are never asked for: they may still be on their way.
    pub fn new(core: Core, distribution: Distribution, records: u64, unsettled: u64, seed: u64) -> Mix {
        let records = records.max(1);
        let unsettled = unsettled.min(records - 1);
        let chooser = Chooser::new(distribution, records - unsettled);
        Mix { core, chooser, random: Random::of(seed, "mix"), records, unsettled }
    }

    fn kind(&mut self) -> Kind {
        let mut drawn = self.random.below(100);
        for (kind, share) in self.core.proportions() {
            if drawn < *share {
                return *kind;
            }
            drawn -= share;
        }
        unreachable!("the shares make a hundred")
    }

    fn existing(&mut self) -> u64 {
        let settled = self.records - self.unsettled;
        self.chooser.choose(settled, &mut self.random)
    }
}

impl Iterator for Mix {
    type Item = Operation;

    fn next(&mut self) -> Option<Operation> {
        let kind = self.kind();
        let number = match kind {
            Kind::Insert => {
                self.records += 1;
                self.records - 1
            }
            _ => self.existing(),
        };
        let entries = if kind == Kind::Scan { 1 + self.random.below(SCAN_ENTRIES_MAX) } else { 0 };
        Some(Operation { kind, number, entries })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const CORES: [Core; 6] = [Core::A, Core::B, Core::C, Core::D, Core::E, Core::F];

    fn mix(core: Core) -> Mix {
        Mix::new(core, core.distribution(), 1_000, 16, 9)
    }

    #[test]
    fn shares_make_a_hundred_and_are_kept() {
        for core in CORES {
            assert_eq!(core.proportions().iter().map(|(_, share)| share).sum::<u64>(), 100);
            let mut counts = BTreeMap::new();
            mix(core).take(100_000).for_each(|operation| *counts.entry(operation.kind).or_insert(0u64) += 1);
            assert_eq!(counts.len(), core.proportions().len(), "{core:?}");
            for (kind, share) in core.proportions() {
                assert!(counts[kind].abs_diff(share * 1_000) < 600, "{core:?} {kind:?}: {}", counts[kind]);
            }
        }
    }

    #[test]
    fn inserts_are_new_and_reads_are_of_what_settled() {
        for core in [Core::D, Core::E] {
            let mut there = 1_000;
            for operation in mix(core).take(50_000) {
                if operation.kind == Kind::Insert {
                    assert_eq!(operation.number, there);
                    there += 1;
                } else {
                    assert!(operation.number < there - 16);
                }
            }
        }
    }

    #[test]
    fn scans_have_a_length_and_nothing_else_has() {
        for operation in mix(Core::E).take(10_000) {
            let scans = operation.kind == Kind::Scan;
            assert_eq!((1..=SCAN_ENTRIES_MAX).contains(&operation.entries), scans);
        }
    }

    #[test]
    fn the_seed_decides_everything() {
        let made =
            |seed| -> Vec<Operation> { Mix::new(Core::A, Distribution::Zipfian, 50, 0, seed).take(100).collect() };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
    }
}
