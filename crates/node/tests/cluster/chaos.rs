//! Random histories: writes anywhere, links cut and healed, nodes crashed with what was synced, disks restored from copies. In
//! the end everything is healed, and the regions must agree; and where every disk was honest, counters must be exact.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Cluster, delete, increment, put};
use isle_node::{Node, NodeError, NodeState, WriteReply};
use isle_store::disk::{Crash, MemoryDisk};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

const REGIONS: [&str; 3] = ["a", "b", "c"];

/// What increments of one counter are known to have done.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    acked: i64,
    unknown: i64,
}

type Sums = Arc<Mutex<BTreeMap<String, Sum>>>;

/// What may go wrong besides links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Crashes keep exactly what was synced.
    Honest,
    /// Disks are restored from older copies, too; logs are trimmed early.
    Restored,
}

struct Chaos {
    rng: StdRng,
    mix: Mix,
    cluster: Cluster,
    backups: BTreeMap<&'static str, MemoryDisk>,
    sums: Sums,
    writes: JoinSet<()>,
}

fn settle(sums: &Sums, key: &str, amount: i64, outcome: &Result<WriteReply, NodeError>) {
    let mut sums = sums.lock();
    let sum = sums.entry(key.to_owned()).or_default();
    sum.unknown -= amount;
    match outcome {
        Ok(_) => sum.acked += amount,
        Err(NodeError::OutcomeUnknown { .. }) => sum.unknown += amount,
        Err(_) => {}
    }
}

impl Chaos {
    fn new(seed: u64, mix: Mix) -> Self {
        let cluster = Cluster::tuned(&REGIONS, |node, store| {
            node.log_budget_bytes = 128 << 10;
            store.segment_bytes = 64 << 10;
            store.checkpoint_log_bytes = 64 << 10;
            store.flush_log_bytes = 64 << 10;
        });
        let rng = StdRng::seed_from_u64(seed);
        Chaos { rng, mix, cluster, backups: BTreeMap::new(), sums: Sums::default(), writes: JoinSet::new() }
    }

    fn write(&mut self) {
        let region = *REGIONS.choose(&mut self.rng).unwrap();
        let node: Arc<Node> = self.cluster.node(region).clone();
        let (key, kind) = (format!("key-{}", self.rng.random_range(0..30)), self.rng.random_range(0..10));
        let value = "v".repeat(self.rng.random_range(1..1500));
        let (amount, sums) = (self.rng.random_range(1..10), self.sums.clone());
        match kind {
            0..6 => drop(self.writes.spawn(async move { drop(put(&node, &key, &value).await) })),
            6..8 => drop(self.writes.spawn(async move { drop(delete(&node, &key).await) })),
            _ => {
                let counter = format!("counter-{}", amount % 3);
                // Until it is answered, and for good if its node crashes, nobody knows what became of it.
                sums.lock().entry(counter.clone()).or_default().unknown += amount;
                self.writes.spawn(async move {
                    let outcome = increment(&node, &counter, amount).await;
                    settle(&sums, &counter, amount, &outcome);
                });
            }
        }
    }

    async fn restart(&mut self) {
        let region = *REGIONS.choose(&mut self.rng).unwrap();
        // The crash falls among writes that are appended and not yet synced.
        (0..10).for_each(|_| self.write());
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..3))).await;
        // Whoever waits for an answer of the crashed node is gone with it.
        self.writes.abort_all();
        self.cluster.crash(region);
        if self.mix == Mix::Restored
            && self.rng.random_bool(0.3)
            && let Some(backup) = self.backups.get(region)
        {
            self.cluster.disks.insert(region.to_owned(), backup.crash(Crash::KeepSynced, &mut |_| 0));
        }
        self.cluster.start(region);
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..70 => {
                for _ in 0..self.rng.random_range(1..20) {
                    self.write();
                }
            }
            70..80 => {
                let (a, b) = [("a", "b"), ("b", "c"), ("a", "c")][self.rng.random_range(0..3)];
                self.cluster.cut(a, b);
            }
            80..88 => self.cluster.heal(),
            88..94 => self.restart().await,
            94..97 => {
                let region = *REGIONS.choose(&mut self.rng).unwrap();
                let copy = self.cluster.disks[region].crash(Crash::KeepSynced, &mut |_| 0);
                self.backups.insert(region, copy);
            }
            _ => tokio::time::sleep(Duration::from_secs(self.rng.random_range(1..8))).await,
        }
        let pause = Duration::from_millis(self.rng.random_range(0..40));
        tokio::time::sleep(pause).await;
    }

    /// What keeps the regions from agreeing, in words; `None` if they agree.
    fn difference(&self) -> Option<String> {
        let all: Vec<_> = self.cluster.nodes.values().map(|node| node.status()).collect();
        let agree = all.iter().all(|s| {
            s.digest.is_some()
                && s.digest == all[0].digest
                && s.records == all[0].records
                && s.state == NodeState::Serving
        });
        (!agree).then(|| {
            let words = all.iter().map(|s| {
                let peers: Vec<_> = s.peers.iter().map(|p| (p.state, p.lag_bytes, p.last_error.clone())).collect();
                format!("{}: {:?} {} records, digest {:?}, peers {peers:?}", s.region, s.state, s.records, s.digest)
            });
            words.collect::<Vec<_>>().join("\n")
        })
    }

    /// Heals everything, and returns what the history was, as far as two runs of one seed must agree on it.
    async fn finish(mut self, seed: u64) -> String {
        let mix = self.mix;
        self.cluster.heal();
        while self.writes.join_next().await.is_some() {}
        let deadline = Instant::now() + Duration::from_secs(180);
        while let Some(difference) = self.difference() {
            assert!(Instant::now() < deadline, "seed {seed}, {mix:?}: the regions do not agree\n{difference}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if mix == Mix::Honest {
            let sums = self.sums.lock().clone();
            for (key, sum) in sums {
                let value = increment(self.cluster.node("a"), &key, 0).await.unwrap().value.unwrap();
                let possible = sum.acked..=sum.acked + sum.unknown;
                assert!(possible.contains(&value), "seed {seed}: {key} is {value}, not in {possible:?}");
            }
        }
        let history: Vec<String> = self
            .cluster
            .nodes
            .values()
            .map(|node| {
                format!("{:?} {:?} {}", node.status().digest, node.store().appended(), node.counters().batches.get())
            })
            .collect();
        self.cluster.shutdown().await;
        history.join(", ")
    }
}

pub fn run(seed: u64, mix: Mix) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut chaos = Chaos::new(seed, mix);
        let steps = chaos.rng.random_range(20..120);
        for _ in 0..steps {
            chaos.step().await;
        }
        chaos.finish(seed).await
    })
}
