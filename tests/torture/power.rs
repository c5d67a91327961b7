//! The power of the data directory's disk is cut in the middle of a burst, for real: a loop-mounted file system is shut
//! down, so that all it had only in memory is lost. Mounted again and started again, the node has every acked write and
//! nothing that nobody wrote. It does not trust its view, whose file may hold any part of what was written: the machine
//! was not restarted, and still the mount gives it away.

use anyhow::{Context, Result, ensure};
use rand::Rng;

use crate::budget::Budget;
use crate::history::{History, WRITES_STOPPED};
use crate::kill::{burst, small};
use crate::node::{PATIENCE, Plan, eventually};
use crate::volume::{FileSystem, Volume};

const MIB: u64 = 1 << 20;

pub async fn ext4(budget: &mut Budget) -> Result<()> {
    // Sparse: it takes what is written, and never fills up in a long run.
    run(budget, FileSystem::Ext4, 512 * MIB).await
}

pub async fn xfs(budget: &mut Budget) -> Result<()> {
    run(budget, FileSystem::Xfs, 512 * MIB).await
}

async fn run(budget: &mut Budget, file_system: FileSystem, bytes: u64) -> Result<()> {
    let mut volume = Volume::new(&budget.directory()?, file_system, bytes)?;
    let plan = small(Plan::solo(&volume.path().join("data"))).set("store.disk_reserve_bytes", "16MiB");
    let history = History::default();
    let (mut torn, mut replayed) = (0, 0);
    let mut node = plan.start().await?;
    while budget.next_round() {
        let load = burst(budget, &node, &history).await?;
        volume.cut_power()?;
        if budget.rng.random_bool(0.5) {
            // What the node says over a dead disk counts too: what it acks now, it must have.
            let refused = || history.refusals_of("DISK_FULL") + history.refusals_of(WRITES_STOPPED);
            let before = refused();
            let stopped = async || {
                ensure!(refused() > before, "it goes on over a dead disk: {}", history.summary());
                Ok(())
            };
            eventually("the end of writes", PATIENCE, stopped).await?;
        }
        node.kill()?;
        load.ended().await?;
        volume.unmount()?;
        volume.mount().context("mounting after the cut")?;
        node = plan.start().await?;
        let opened = node.said("storage opened").context("a start that does not say how it went")?;
        ensure!(opened.contains("mounted anew"), "the view was trusted: {opened}");
        torn += u64::from(node.said("torn write").is_some());
        replayed += u64::from(!opened.contains("entries_replayed=0"));
        history.check(&node.client().await?).await.with_context(|| node.tail())?;
        budget.survived();
    }
    node.stop().await?;
    let node = plan.start().await?;
    let client = node.client().await?;
    history.check(&client).await.context("after a clean stop")?;
    history.check_some(&client, 7).await?;
    budget.note(format!("{}; {replayed} logs replayed, {torn} with a torn end", history.summary()));
    Ok(())
}
