//! Three regions with TLS, every cable in the test's hands: one way is lost, a cable is cut, a region falls into a black
//! hole for long while clients write on both sides, another one is killed meanwhile. The hole is known within 3 s, every
//! region goes on taking writes, and within 10 s of healing all agree on everything that was acked.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::budget::Budget;
use crate::cable::Way;
use crate::cluster::{Cluster, REGIONS};
use crate::contest::Contest;
use crate::history::History;
use crate::load::{Load, Shape};
use crate::node::{PATIENCE, eventually};

const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// The short version runs unoptimised beside whatever else a machine builds.
const KNOWN_WITHIN_IF_SLOW: Duration = Duration::from_secs(6);
const CONVERGED_WITHIN: Duration = Duration::from_secs(10);

pub async fn run(budget: &mut Budget) -> Result<()> {
    // As long as the share allows: 60 s where there is time for them.
    let isolated = (budget.share / 2).clamp(Duration::from_secs(8), Duration::from_secs(60));
    let within = if budget.is_long { KNOWN_WITHIN } else { KNOWN_WITHIN_IF_SLOW };
    let mut cluster = Cluster::start(&budget.directory()?, |plan| plan).await?;
    cluster.converges(PATIENCE).await?;
    let (history, contest) = (History::default(), Contest::default());
    while budget.next_round() {
        let mut loads = Vec::new();
        let mut contenders = JoinSet::new();
        for at in 0..REGIONS.len() {
            loads.push(load(budget, &cluster, &history, at).await?);
            contest.join(&cluster.nodes[at].client().await?, budget.rng.random(), &mut contenders);
            contest.join(&cluster.nodes[at].client().await?, budget.rng.random(), &mut contenders);
        }
        lesser_faults(budget, &cluster, &history).await?;

        let alone = budget.rng.random_range(0..REGIONS.len());
        let others: Vec<usize> = (0..REGIONS.len()).filter(|at| *at != alone).collect();
        let began = Instant::now();
        others.iter().for_each(|other| cluster.cables.both_ways(alone, *other, Way::Hole));
        let known = knows(&cluster, alone, within).await.context("a black hole")?;
        everybody_writes(&history).await.context("in a black hole")?;
        tokio::time::sleep_until(began + isolated / 2).await;
        // A node of the other side dies, and comes back while the hole is still there.
        let dies = others[budget.rng.random_range(0..others.len())];
        cluster.nodes[dies].kill()?;
        loads.remove(dies).ended().await.context("after a kill")?;
        let plan = cluster.nodes[dies].plan.clone();
        cluster.nodes[dies] = plan.start().await?;
        loads.insert(dies, load(budget, &cluster, &history, dies).await?);
        contest.join(&cluster.nodes[dies].client().await?, budget.rng.random(), &mut contenders);
        everybody_writes(&history).await.context("after a restart")?;
        tokio::time::sleep_until(began + isolated).await;

        cluster.cables.heal();
        contenders.shutdown().await;
        for (load, node) in loads.into_iter().zip(&cluster.nodes) {
            load.stop().await.with_context(|| node.tail())?;
        }
        let took = cluster.converges(CONVERGED_WITHIN).await?;
        contest.check(&cluster.holds(&history).await?)?;
        budget.note(format!(
            "{isolated:.0?} of isolation, known after {:.1} s, converged {:.1} s after healing",
            known.as_secs_f64(),
            took.as_secs_f64()
        ));
        budget.survived();
    }
    for node in cluster.nodes {
        node.stop().await?;
    }
    budget.note(format!("{}; {} more acked of keys that all write", history.summary(), contest.acks()));
    Ok(())
}

async fn load(budget: &mut Budget, cluster: &Cluster, history: &History, at: usize) -> Result<Load> {
    let shape = Shape {
        patient: 2,
        patient_keys: 100,
        stream_keys: 4000,
        rate_max: Some(500),
        value_bytes_max: 400,
        ..Shape::new(&format!("{}/", REGIONS[at]))
    };
    Load::start(&cluster.nodes[at].client().await?, history, &shape, budget.rng.random()).await
}

/// A way lost, then a cable cut; each is healed again.
async fn lesser_faults(budget: &mut Budget, cluster: &Cluster, history: &History) -> Result<()> {
    let from = budget.rng.random_range(0..REGIONS.len());
    let to = (from + budget.rng.random_range(1..REGIONS.len())) % REGIONS.len();
    for way in [Way::Hole, Way::Cut] {
        cluster.cables.one_way(from, to, way);
        let noticed = async || {
            let status = cluster.nodes[to].status().await?;
            let peer = status.peers.iter().find(|peer| peer.region == REGIONS[from]).context("no such peer")?;
            ensure!(!peer.connected, "{} still counts {} as connected", REGIONS[to], REGIONS[from]);
            Ok(())
        };
        eventually("notice of a lost way", PATIENCE, noticed).await?;
        everybody_writes(history).await?;
        cluster.cables.heal();
    }
    Ok(())
}

/// How long it takes until both sides of a hole show that they do not reach each other.
async fn knows(cluster: &Cluster, alone: usize, within: Duration) -> Result<Duration> {
    let began = Instant::now();
    let known = async || {
        for status in cluster.statuses().await? {
            let beyond =
                |peer: &&isle_client::v1::PeerStatus| status.region == REGIONS[alone] || peer.region == REGIONS[alone];
            if let Some(peer) = status.peers.iter().filter(beyond).find(|peer| peer.connected) {
                anyhow::bail!("{} still counts {} as connected", status.region, peer.region);
            }
        }
        Ok(())
    };
    eventually("knowing of it", within, known).await?;
    Ok(began.elapsed())
}

/// Writes go on in every region.
async fn everybody_writes(history: &History) -> Result<()> {
    for region in REGIONS {
        let prefix = format!("{region}/");
        let before = history.acks_of(&prefix);
        let more = async || {
            ensure!(history.acks_of(&prefix) > before + 200, "{region}: {}", history.summary());
            Ok(())
        };
        eventually("writes in every region", PATIENCE, more).await?;
    }
    Ok(())
}
