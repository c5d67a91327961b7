//! The rows of DESIGN's table of numbers. Each run is written as the command line that repeats it by hand.

use crate::goals::{Figure, Goal, Wanted};
use crate::stores::Store;

use Figure::{Latency, Named, PerSecond};
use Wanted::{AtLeast, AtMost};

/// How much is done. `full` is what figures are quoted from, `quick` shows that everything runs.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Writes of a burst.
    pub burst: u64,
    pub unary: u64,
    pub one_in_flight: u64,
    /// Keys of the sustained load, and of the restart.
    pub keys: u64,
    pub ycsb_records: u64,
    pub ycsb_operations: u64,
    pub egress_updates: u64,
    pub reads: u64,
    pub lag_samples: u64,
    pub outage_seconds: u64,
    pub outage_rate: u64,
    pub conflict_keys: u64,
}

impl Scale {
    pub fn full() -> Scale {
        Scale {
            burst: 1_000_000,
            unary: 500_000,
            one_in_flight: 20_000,
            keys: 10_000_000,
            ycsb_records: 1_000_000,
            ycsb_operations: 10_000_000,
            egress_updates: 100_000,
            reads: 1_000_000,
            lag_samples: 1_000,
            outage_seconds: 30,
            outage_rate: 20_000,
            conflict_keys: 2_000,
        }
    }

    pub fn quick() -> Scale {
        Scale {
            burst: 50_000,
            unary: 20_000,
            one_in_flight: 1_000,
            keys: 50_000,
            ycsb_records: 10_000,
            ycsb_operations: 20_000,
            egress_updates: 1_000,
            reads: 20_000,
            lag_samples: 100,
            outage_seconds: 2,
            outage_rate: 2_000,
            conflict_keys: 200,
        }
    }
}

/// One target's part in a row.
#[derive(Clone, Debug)]
pub struct Run {
    pub store: Store,
    /// What tables and charts call it.
    pub label: &'static str,
    /// The workload and its flags.
    pub command: String,
}

#[derive(Clone, Debug)]
pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    pub runs: Vec<Run>,
    pub goals: Vec<Goal>,
}

fn run(store: Store, label: &'static str, command: impl Into<String>) -> Run {
    Run { store, label, command: command.into() }
}

/// `isle`'s figure over another's.
fn ratio(text: &'static str, figure: Figure, theirs: &'static str, wanted: Wanted, limit: f64) -> Goal {
    versus(text, ("isle", figure), (theirs, figure), wanted, limit)
}

fn versus(
    text: &'static str,
    ours: (&'static str, Figure),
    theirs: (&'static str, Figure),
    wanted: Wanted,
    limit: f64,
) -> Goal {
    Goal { text, ours, theirs: Some(theirs), wanted, limit }
}

fn alone(text: &'static str, figure: Figure, wanted: Wanted, limit: f64) -> Goal {
    Goal { text, ours: ("isle", figure), theirs: None, wanted, limit }
}

pub fn all(scale: Scale) -> Vec<Row> {
    vec![
        unary(scale),
        one_in_flight(scale),
        burst("burst-streamed", "a burst of durable puts, streamed", "--mode streamed", scale),
        burst("burst-batched", "a burst of durable puts, batched", "--mode batched --batch 100", scale),
        sustained(scale),
        ycsb_a(scale),
        three_regions(scale),
        three_regions_streamed(scale),
        lag_idle(scale),
        lag_busy(scale),
        lag_saturated(scale),
        outage(scale),
        egress(scale),
        reads(scale),
        conflicts(scale),
        restart(scale),
    ]
}

fn unary(scale: Scale) -> Row {
    let command = format!("burst --mode unary --in-flight 256 --operations {}", scale.unary);
    Row {
        name: "unary",
        title: "unary durable puts, 256 in flight",
        runs: vec![
            run(Store::Isle, "isle", &command),
            run(Store::Floor, "floor", &command),
            run(Store::Etcd, "etcd", &command),
            run(Store::Redis, "redis", &command),
        ],
        goals: vec![
            ratio("puts a second, of the floor's", PerSecond, "floor", AtLeast, 0.9),
            ratio("puts a second, of etcd's", PerSecond, "etcd", AtLeast, 2.0),
            // 12 ms where etcd has 28: the machine decides the milliseconds, so the ratio is what is kept.
            ratio("p99, of etcd's", Latency(0.99), "etcd", AtMost, 0.43),
        ],
    }
}

fn one_in_flight(scale: Scale) -> Row {
    let command = format!("burst --mode unary --in-flight 1 --operations {}", scale.one_in_flight);
    Row {
        name: "one-in-flight",
        title: "unary durable puts, 1 in flight",
        runs: vec![
            run(Store::Isle, "isle", &command),
            run(Store::Floor, "floor", &command),
            run(Store::Etcd, "etcd", &command),
        ],
        goals: vec![ratio("p50, of the floor's", Latency(0.5), "floor", AtMost, 1.2)],
    }
}

/// isle and the floor in one mode, and the others in the fastest that each has.
fn burst(name: &'static str, title: &'static str, mode: &str, scale: Scale) -> Row {
    let of = |mode: &str| format!("burst {mode} --operations {}", scale.burst);
    Row {
        name,
        title,
        runs: vec![
            run(Store::Isle, "isle", of(mode)),
            run(Store::Floor, "floor", of(mode)),
            run(Store::Redis, "redis pipelined", of("--mode pipelined --batch 16")),
            run(Store::Etcd, "etcd batched", of("--mode batched --batch 100")),
        ],
        goals: vec![
            ratio("puts a second, of Redis' with pipeline 16", PerSecond, "redis pipelined", AtLeast, 1.0),
            ratio("puts a second, of etcd's in transactions of 100", PerSecond, "etcd batched", AtLeast, 3.0),
        ],
    }
}

fn sustained(scale: Scale) -> Row {
    let command = format!("burst --mode batched --batch 1000 --in-flight 4 --operations {}", scale.keys);
    Row {
        name: "sustained",
        title: "sustained puts of unique keys",
        runs: vec![run(Store::Isle, "isle", &command), run(Store::Sled, "sled", &command)],
        goals: vec![
            ratio("puts a second, of sled's alone", PerSecond, "sled", AtLeast, 0.5),
            // Bounded: the overlay (512 MiB), sled's cache (64 MiB), the queues, and room for what the allocator keeps.
            alone("peak memory, in bytes", Named("server_peak_rss_bytes"), AtMost, 1_073_741_824.0),
        ],
    }
}

fn ycsb_a(scale: Scale) -> Row {
    let Scale { ycsb_records, ycsb_operations, .. } = scale;
    let command = format!("ycsb --core a --records {ycsb_records} --operations {ycsb_operations}");
    Row {
        name: "ycsb-a",
        title: "YCSB A: half reads, half updates, zipfian",
        runs: vec![
            run(Store::Isle, "isle", format!("{command} --settle")),
            run(Store::Etcd, "etcd", &command),
            run(Store::Redis, "redis", &command),
        ],
        goals: vec![
            alone("view on disk, of the live encoded bytes", Named("settled_view_bytes_per_encoded_byte"), AtMost, 2.5),
            alone(
                "directory without log, of the live encoded bytes",
                Named("settled_bytes_beside_log_per_encoded_byte"),
                AtMost,
                4.0,
            ),
            alone("peak memory, in bytes", Named("server_peak_rss_bytes"), AtMost, 1_073_741_824.0),
        ],
    }
}

fn three_regions(scale: Scale) -> Row {
    let command = format!("burst --mode unary --in-flight 256 --operations {}", scale.unary);
    Row {
        name: "three-regions",
        title: "unary durable puts, three regions replicating",
        runs: vec![
            run(Store::Isle, "isle", format!("{command} --regions 3")),
            run(Store::Floor, "floor", &command),
            run(Store::Keydb, "keydb", format!("{command} --regions 3")),
        ],
        goals: vec![ratio("puts a second, of the floor's in one region", PerSecond, "floor", AtLeast, 0.4)],
    }
}

fn three_regions_streamed(scale: Scale) -> Row {
    let operations = scale.burst;
    Row {
        name: "three-regions-streamed",
        title: "a burst of durable puts, streamed, three regions replicating",
        runs: vec![
            run(Store::Isle, "isle", format!("burst --mode streamed --operations {operations} --regions 3")),
            run(
                Store::Keydb,
                "keydb pipelined",
                format!("burst --mode pipelined --batch 16 --operations {operations} --regions 3"),
            ),
        ],
        goals: vec![ratio(
            "puts a second, of KeyDB's, which syncs nothing",
            PerSecond,
            "keydb pipelined",
            AtLeast,
            1.0,
        )],
    }
}

fn lag_idle(scale: Scale) -> Row {
    lag("lag", "from a put here to a read there, idle", format!("lag --samples {}", scale.lag_samples))
}

fn lag_busy(scale: Scale) -> Row {
    let command = format!("lag --samples {} --background 5000", scale.lag_samples);
    lag("lag-busy", "from a put here to a read there, beside 5,000 puts a second", command)
}

fn lag(name: &'static str, title: &'static str, command: String) -> Row {
    Row {
        name,
        title,
        runs: vec![run(Store::Isle, "isle", command)],
        goals: vec![
            alone("p50, of two fdatasyncs", Named("p50_per_two_syncs"), AtMost, 1.5),
            alone("p99, of two fdatasyncs", Named("p99_per_two_syncs"), AtMost, 2.0),
        ],
    }
}

fn lag_saturated(scale: Scale) -> Row {
    let command = format!("lag --samples {} --background max", scale.lag_samples);
    Row {
        name: "lag-saturated",
        title: "from a put here to a read there, beside as many puts as the region takes",
        runs: vec![run(Store::Isle, "isle", command)],
        goals: vec![alone("p99, in milliseconds", Latency(0.99), AtMost, 250.0)],
    }
}

fn outage(scale: Scale) -> Row {
    let Scale { outage_seconds, outage_rate, ycsb_records, .. } = scale;
    let command = format!(
        "recovery --regions 2 --records {ycsb_records} --outage-seconds {outage_seconds} --outage-rate {outage_rate}"
    );
    Row {
        name: "outage",
        title: "catching up after an outage",
        runs: vec![run(Store::Isle, "isle", command)],
        goals: vec![
            alone("deltas caught up a second", Named("catch_up_deltas_per_second"), AtLeast, 200_000.0),
            alone("writes refused meanwhile", Named("outage_writes_refused"), AtMost, 0.0),
            // Random values do not compress: more than they are, with what names them, would be a copy of everything.
            alone("bytes sent for each missed one", Named("egress_bytes_per_peer_per_written_byte"), AtMost, 1.5),
        ],
    }
}

fn egress(scale: Scale) -> Row {
    let updates = scale.egress_updates;
    Row {
        name: "egress",
        title: "bytes between regions, JSON updates of 256 bytes at 5,000 a second",
        runs: vec![run(
            Store::Isle,
            "isle",
            format!("burst --regions 2 --mode unary --rate 5000 --value json --value-bytes 256 --operations {updates}"),
        )],
        goals: vec![alone(
            "bytes sent to a peer for each one written",
            Named("egress_bytes_per_peer_per_written_byte"),
            AtMost,
            0.35,
        )],
    }
}

fn reads(scale: Scale) -> Row {
    let Scale { ycsb_records, reads, .. } = scale;
    let command = format!("ycsb --core c --in-flight 256 --records {ycsb_records} --operations {reads}");
    Row {
        name: "reads",
        title: "local reads, 256 in flight",
        runs: vec![
            run(Store::Isle, "isle", &command),
            run(Store::Floor, "floor", &command),
            run(Store::Etcd, "etcd", &command),
            run(Store::Redis, "redis", &command),
        ],
        goals: vec![ratio("reads a second, of a bare echo's", PerSecond, "floor", AtLeast, 0.85)],
    }
}

fn conflicts(scale: Scale) -> Row {
    let command = format!("conflict --keys {}", scale.conflict_keys);
    Row {
        name: "conflicts",
        title: "one key written in two regions at the same moment",
        runs: vec![run(Store::Isle, "isle", &command), run(Store::Keydb, "keydb", &command)],
        goals: vec![
            alone("values that vanished silently", Named("values_vanished_silently"), AtMost, 0.0),
            alone("keys that stay different", Named("keys_that_differ"), AtMost, 0.0),
        ],
    }
}

fn restart(scale: Scale) -> Row {
    Row {
        name: "restart",
        title: "from the start of a process to its first answer",
        runs: vec![run(Store::Isle, "isle", format!("recovery --records {}", scale.keys))],
        goals: vec![alone(
            "records a second into a view that is built anew",
            Named("rebuilt_records_per_second"),
            AtLeast,
            150_000.0,
        )],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use super::*;
    use crate::peers::parse;

    #[test]
    fn every_run_is_a_command_that_means_something() {
        for scale in [Scale::full(), Scale::quick()] {
            for row in all(scale) {
                row.runs.iter().for_each(|run| parse(&run.command).unwrap().check().unwrap());
            }
        }
    }

    #[test]
    fn goals_are_about_runs_of_their_row() {
        let mut names = HashSet::new();
        for row in all(Scale::quick()) {
            assert!(names.insert(row.name), "two rows are called {}", row.name);
            let labels: Vec<&str> = row.runs.iter().map(|run| run.label).collect();
            for goal in &row.goals {
                let theirs = goal.theirs.map(|(label, _)| label);
                assert!(
                    std::iter::once(goal.ours.0).chain(theirs).all(|label| labels.contains(&label)),
                    "{}",
                    row.name
                );
            }
        }
    }
}
