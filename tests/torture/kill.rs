//! A node dies by SIGKILL at a random moment under writes, over and over, on one data directory; sometimes again while it
//! recovers. Every acked write is there when it is back, and nothing that nobody wrote.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;

use crate::budget::Budget;
use crate::history::History;
use crate::load::{Load, Shape};
use crate::node::{Node, PATIENCE, PAUSE, Plan, eventually};

pub async fn run(budget: &mut Budget) -> Result<()> {
    let plan = small(Plan::solo(&budget.directory()?.join("data")));
    let history = History::default();
    let mut again = 0;
    while budget.next_round() {
        let mut node = plan.start().await?;
        let load = burst(budget, &node, &history).await?;
        node.kill()?;
        load.ended().await?;
        while budget.rng.random_bool(0.3) {
            killed_while_opening(budget, &plan).await?;
            again += 1;
        }
        let node = plan.start().await?;
        history.check(&node.client().await?).await.with_context(|| node.tail())?;
        budget.survived();
    }
    plan.start().await?.stop().await?;
    let node = plan.start().await?;
    let client = node.client().await?;
    history.check(&client).await.context("after a clean stop")?;
    history.check_some(&client, 7).await?;
    budget.note(format!("{}; killed {again} times more while opening", history.summary()));
    Ok(())
}

/// Small segments, so that rotation, checkpoints and trimming are among what is interrupted.
pub fn small(plan: Plan) -> Plan {
    plan.set("store.segment_bytes", "8MiB").set("store.checkpoint_log_bytes", "8MiB")
}

/// Writes in full swing, at a random moment.
pub async fn burst(budget: &mut Budget, node: &Node, history: &History) -> Result<Load> {
    let before = history.acks();
    let load = Load::start(&node.client().await?, history, &Shape::new(""), budget.rng.random()).await?;
    eventually("the first acks of a burst", PATIENCE, async || {
        anyhow::ensure!(history.acks() > before + 100, "{}", history.summary());
        Ok(())
    })
    .await
    .with_context(|| node.tail())?;
    tokio::time::sleep(Duration::from_millis(budget.rng.random_range(0..1200))).await;
    Ok(load)
}

/// Recovery is interrupted wherever it happens to be; it may just have ended.
async fn killed_while_opening(budget: &mut Budget, plan: &Plan) -> Result<()> {
    let mut node = plan.spawn()?;
    tokio::time::sleep(PAUSE + Duration::from_millis(budget.rng.random_range(0..250))).await;
    node.kill()
}
