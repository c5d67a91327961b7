//! A small disk fills up in the middle of a burst. Writes are refused and say why, reads go on, nothing acked is lost.
//!
//! With space in reserve the same process takes writes again once there is space. In every other round nothing is in
//! reserve, as when somebody else fills the disk at once: then the view may have met its end, which it does not get over.
//! Writes stop until a restart, and what only the view would have is an error until then, never a wrong answer.

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;

use crate::budget::Budget;
use crate::history::{History, KEYSPACE, WRITES_STOPPED};
use crate::kill::small;
use crate::load::{Load, Shape};
use crate::node::{Node, PATIENCE, Plan, eventually};
use crate::volume::{FileSystem, Volume};

const DISK_FULL: &str = "DISK_FULL";
/// What only a failed view would have cannot be read, nor be written over.
const UNREADABLE: &str = "CHECKSUM_MISMATCH";

pub async fn run(budget: &mut Budget) -> Result<()> {
    let (mut acked, mut refused, mut stopped) = (0, 0, 0);
    while budget.next_round() {
        let reserved = budget.rounds() % 2 == 1;
        let round = Round::begin(budget, reserved).await?;
        let history = round.history.clone();
        if reserved { round.with_reserve().await } else { round.without().await }
            .with_context(|| format!("{} in reserve", if reserved { RESERVE } else { "nothing" }))?;
        acked += history.acks();
        refused += history.refusals_of(DISK_FULL);
        stopped += u64::from(history.refusals_of(WRITES_STOPPED) > 0);
        budget.survived();
    }
    budget.note(format!(
        "{acked} acked, {refused} refused for want of space; writes stopped until a restart {stopped} times"
    ));
    Ok(())
}

struct Round {
    // Before the volume: it must be gone when that is unmounted.
    node: Node,
    load: Load,
    history: History,
    volume: Volume,
}

const RESERVE: &str = "12MiB";
/// Given back at once, and in all. Without a reserve more is needed: a view that failed is built anew beside the log.
const BALLAST_MIB: [usize; 2] = [16, 8];
const BALLAST_MORE_MIB: usize = 9;

impl Round {
    async fn begin(budget: &mut Budget, reserved: bool) -> Result<Round> {
        let volume = Volume::new(&budget.directory()?, FileSystem::Ext4, 64 << 20)?;
        for mib in BALLAST_MIB.into_iter().chain((!reserved).then_some(BALLAST_MORE_MIB)) {
            std::fs::write(volume.path().join(format!("ballast-{mib}")), vec![1; mib << 20])?;
        }
        let plan = small(Plan::solo(&volume.path().join("data")))
            .set("store.overlay_bytes_max", "8MiB")
            .set("store.disk_reserve_bytes", if reserved { RESERVE } else { "0" });
        let node = plan.start().await?;
        let history = History::default();
        // More than the disk can hold.
        let shape =
            Shape { stream_keys: 30_000, value_bytes_max: 6000, only_puts: true, patient_keys: 2000, ..Shape::new("") };
        let load = Load::start(&node.client().await?, &history, &shape, budget.rng.random()).await?;
        Ok(Round { node, load, history, volume })
    }

    async fn with_reserve(mut self) -> Result<()> {
        self.is_full(&[DISK_FULL]).await?;
        self.reads_go_on().await?;
        give_space(&self.volume, BALLAST_MIB[0])?;
        let acks = self.history.acks();
        let resumed = async || {
            ensure!(self.history.acks() > acks + 50, "{}", self.history.summary());
            Ok(())
        };
        eventually("writes, with space again", PATIENCE, resumed).await.with_context(|| self.node.tail())?;

        self.is_full(&[DISK_FULL]).await?;
        self.node.kill()?;
        self.load.ended().await?;
        let node = self.node.plan.start().await.context("starting on a full disk")?;
        all_is_there(&self.history, &node).await
    }

    async fn without(mut self) -> Result<()> {
        self.is_full(&[DISK_FULL, WRITES_STOPPED, UNREADABLE]).await?;
        match self.reads_go_on().await {
            Err(error) if error.downcast_ref::<isle_client::Error>().is_none_or(|e| e.reason != UNREADABLE) => {
                bail!(error)
            }
            _ => {}
        }
        self.node.kill()?;
        self.load.ended().await?;
        // There may be no space for what a start has to write. Then it says so, and starts when there is.
        if let Err(error) = self.node.plan.start().await.map(drop) {
            ensure!(format!("{error:#}").to_lowercase().contains("no space"), "an unclear refusal to start: {error:#}");
        }
        let mut ballast = BALLAST_MIB.into_iter().chain([BALLAST_MORE_MIB]);
        ballast.try_for_each(|mib| give_space(&self.volume, mib))?;
        // With a reserve from now on, or the view might meet the end again.
        let plan = self.node.plan.clone().set("store.disk_reserve_bytes", RESERVE);
        all_is_there(&self.history, &plan.start().await?).await
    }

    /// Waits until many writes are refused, for no other reasons than these.
    async fn is_full(&self, reasons: &[&str]) -> Result<()> {
        let refused = || reasons.iter().map(|reason| self.history.refusals_of(reason)).sum::<u64>();
        let before = refused();
        let full = async || {
            ensure!(refused() > before + 300, "{}", self.history.summary());
            Ok(())
        };
        eventually("a full disk", PATIENCE, full).await.with_context(|| self.node.tail())?;
        match self.history.refusals().keys().find(|reason| !reasons.contains(&reason.as_str())) {
            Some(_) => bail!("unclear refusals: {}", self.history.summary()),
            None => Ok(()),
        }
    }

    /// Somebody else's reads, in pages and one by one.
    async fn reads_go_on(&self) -> Result<()> {
        let client = self.node.client().await?;
        let page = client.scan(KEYSPACE, &Default::default(), 500, Default::default()).await?;
        ensure!(!page.entries.is_empty(), "a scan finds nothing");
        for entry in page.entries {
            let read = client.get(KEYSPACE, entry.key.clone(), Default::default()).await?;
            ensure!(read.found, "{:?} is in a scan and not in a get", entry.key);
        }
        Ok(())
    }
}

fn give_space(volume: &Volume, mib: usize) -> Result<()> {
    Ok(std::fs::remove_file(volume.path().join(format!("ballast-{mib}")))?)
}

async fn all_is_there(history: &History, node: &Node) -> Result<()> {
    let client = node.client().await?;
    history.check(&client).await.with_context(|| node.tail())?;
    history.check_some(&client, 50).await.with_context(|| node.tail())
}
