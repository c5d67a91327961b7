//! One region of three is dead for long while the others write many times what the log may keep for it. It costs no more
//! than its budget of log and no memory to speak of, and refuses nobody a write. When it is back it is completed, and all
//! agree.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use tokio::time::Instant;

use crate::budget::Budget;
use crate::cluster::{Cluster, REGIONS};
use crate::history::History;
use crate::load::{Load, Shape};
use crate::node::{PATIENCE, PAUSE};

const SEGMENT_BYTES: u64 = 8 << 20;
const MEMORY_MORE_MAX: u64 = 64 << 20;
const DEAD: usize = 2;
/// Of the short version: the load takes about so long to fill the caches, and what fills them later counts as the dead peer's.
const WARM_MAX: Duration = Duration::from_secs(25);

/// What the log may keep for a dead peer, and what it may have by that.
///
/// It is cut once a second and by whole segments, so that a tenth can only be measured of a budget that is large beside
/// both. The short version has no time to fill one, and is coarser.
#[derive(Clone, Copy)]
struct Log {
    budget: u64,
    most: u64,
}

impl Log {
    fn of(is_long: bool) -> Log {
        let (budget, tenths_more) = if is_long { (320 << 20, 1) } else { (104 << 20, 4) };
        Log { budget, most: budget + budget / 10 * tenths_more }
    }
}

pub async fn run(budget: &mut Budget) -> Result<()> {
    let allowed = Log::of(budget.is_long);
    // What is full before the peer dies cannot be mistaken for what its death costs.
    let small = |plan: crate::node::Plan| {
        plan.set("limits.log_budget_bytes", allowed.budget)
            .set("store.segment_bytes", SEGMENT_BYTES)
            .set("store.checkpoint_log_bytes", "16MiB")
            .set("store.overlay_bytes_max", "16MiB")
            .set("store.view_cache_bytes", "16MiB")
    };
    let mut cluster = Cluster::start(&budget.directory()?, small).await?;
    cluster.converges(PATIENCE).await?;
    let history = History::default();
    let mut loads = Vec::new();
    for (at, region) in REGIONS.iter().enumerate().take(DEAD) {
        let shape = Shape {
            patient: 4,
            stream_keys: 1500,
            rate_max: Some(800),
            value_bytes_max: 16_000,
            ..Shape::new(&format!("{region}/"))
        };
        loads.push(Load::start(&cluster.nodes[at].client().await?, &history, &shape, budget.rng.random()).await?);
    }
    while budget.next_round() {
        let before = warm(&cluster, if budget.is_long { PATIENCE } else { WARM_MAX }).await?;
        cluster.nodes[DEAD].kill()?;
        let dead_for = (budget.share / 2).clamp(Duration::from_secs(8), Duration::from_secs(90));
        let (log, memory) = watch(&cluster, &before, allowed, dead_for).await?;
        let plan = cluster.nodes[DEAD].plan.clone();
        cluster.nodes[DEAD] = plan.start().await?;
        // Writes go on while it is completed.
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(history.refusals().is_empty(), "writes were refused: {}", history.summary());
        budget.note(format!(
            "dead for {dead_for:.0?}: log at most {} of {} MiB, memory at most {} MiB more",
            log >> 20,
            allowed.budget >> 20,
            memory >> 20
        ));
        budget.survived();
    }
    for load in loads {
        load.stop().await?;
    }
    let took = cluster.converges(PATIENCE).await?;
    cluster.holds(&history).await?;
    budget.note(format!("{}; converged in {:.1} s", history.summary(), took.as_secs_f64()));
    Ok(())
}

/// Memory of each region once it does not grow by itself any more, or has had the time to.
async fn warm(cluster: &Cluster, patience: Duration) -> Result<Vec<u64>> {
    let (mut highest, mut since) = (vec![0; cluster.nodes.len()], Instant::now());
    let deadline = Instant::now() + patience;
    while since.elapsed() < Duration::from_secs(3) && Instant::now() < deadline {
        for (at, node) in cluster.nodes.iter().enumerate() {
            let now = node.resident()?;
            if now > highest[at] + (2 << 20) {
                (highest[at], since) = (now, Instant::now());
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(highest)
}

/// The most log and the most additional memory of the regions that live.
async fn watch(cluster: &Cluster, before: &[u64], allowed: Log, dead_for: Duration) -> Result<(u64, u64)> {
    let began = Instant::now();
    let (mut log, mut memory) = (0, 0);
    let mut given_up = [false; DEAD];
    while began.elapsed() < dead_for || given_up.contains(&false) {
        for at in 0..DEAD {
            let node = &cluster.nodes[at];
            let status = node.status().await?;
            log = log.max(status.log_bytes);
            memory = memory.max(node.resident()?.saturating_sub(before[at]));
            // Its files say the same, but for the segment that is prepared and has nothing in it yet.
            let files = bytes_in(&node.plan.data_dir.join("log"));
            log = log.max(files.saturating_sub(SEGMENT_BYTES));
            let budget = allowed.budget >> 20;
            ensure!(log <= allowed.most, "{}'s log has {} MiB of {budget}", status.region, log >> 20);
            ensure!(memory <= MEMORY_MORE_MAX, "{} takes {} MiB more memory", status.region, memory >> 20);
            let peer = status.peers.iter().find(|peer| peer.region == REGIONS[DEAD]).context("no such peer")?;
            given_up[at] |= peer.lag_bytes > allowed.budget;
        }
        ensure!(began.elapsed() < dead_for + PATIENCE * 3, "the load does not fill the log's budget");
        tokio::time::sleep(PAUSE).await;
    }
    Ok((log, memory))
}

/// Of the files of a directory; one may go while they are counted.
fn bytes_in(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|meta| meta.len()).sum()
}
