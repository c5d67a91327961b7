//! One fsync of the log fails, as a dying device's does, and the next ones would succeed. After it nobody knows what the
//! kernel has dropped: writes stop for good, with an error that says so; reads go on; a restart heals. Every acked write
//! is there.

use anyhow::{Context, Result, ensure};
use isle_client::v1::RegionState;
use rand::Rng;

use crate::budget::Budget;
use crate::history::{History, WRITES_STOPPED};
use crate::kill::{burst, small};
use crate::node::{PATIENCE, Plan, eventually};

/// What the store's feature `faults` looks for.
const FAIL_SYNC: &str = "FAIL_SYNC";

pub async fn run(budget: &mut Budget) -> Result<()> {
    let data_dir = budget.directory()?.join("data");
    let plan = small(Plan::solo(&data_dir));
    let history = History::default();
    let mut node = plan.start().await?;
    while budget.next_round() {
        let load = burst(budget, &node, &history).await?;
        std::fs::write(data_dir.join(FAIL_SYNC), b"")?;
        let refused = async |more: u64| {
            let count = history.refusals_of(WRITES_STOPPED);
            let stopped = async || {
                ensure!(history.refusals_of(WRITES_STOPPED) >= count + more, "{}", history.summary());
                Ok(())
            };
            eventually("the end of writes", PATIENCE, stopped).await
        };
        refused(500).await.with_context(|| node.tail())?;
        ensure!(!data_dir.join(FAIL_SYNC).exists(), "no fsync has failed");
        load.stop().await?;

        let status = node.status().await?;
        ensure!(status.state() == RegionState::ReadOnly && !status.cause.is_empty(), "status hides it: {status:?}");
        let client = node.client().await?;
        history.look(&client).await.context("reading after a failed fsync")?;
        history.check_some(&client, 20).await?;
        // A supervisor may ask it nicely or not.
        if budget.rng.random_bool(0.5) {
            node.kill()?;
        } else {
            node.stop().await.context("stopping after a failed fsync")?;
        }
        node = plan.start().await?;
        history.check(&node.client().await?).await.with_context(|| node.tail())?;
        budget.survived();
    }
    let refusals = history.refusals();
    ensure!(refusals.keys().all(|reason| reason == WRITES_STOPPED || reason == "UNREACHABLE"), "{refusals:?}");
    budget.note(history.summary());
    Ok(())
}
