//! What a node knew before it crashed and must know after: its clock, whom it gave up, which transfers are unfinished.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::time::Duration;

use cluster::{Cluster, KEYSPACE, delete, until};
use isle_model::Hlc;

const THREE: [&str; 3] = ["a", "b", "c"];

fn newest_stamp(cluster: &Cluster, region: &str, key: &str) -> Hlc {
    let record = cluster.node(region).store().get(KEYSPACE, key.as_bytes()).unwrap().unwrap();
    let values = record.fields().iter().filter_map(|(_, field)| match field {
        isle_model::Field::Register(register) => register.siblings().iter().map(|sibling| sibling.hlc).max(),
        isle_model::Field::Counter(_) => None,
    });
    values.max().unwrap()
}

#[tokio::test(start_paused = true)]
async fn stamps_go_on_above_all_given_and_followed_though_the_wall_clock_went_back() {
    let mut cluster = Cluster::new(&["a", "b"]);
    // Within what is allowed: b is followed.
    cluster.skew("b", 200);
    cluster.put("b", "followed", "x").await.unwrap();
    cluster.converge(1).await;
    let followed = newest_stamp(&cluster, "a", "followed");
    cluster.skew("a", 60_000);
    cluster.put("a", "given", "x").await.unwrap();
    let given = newest_stamp(&cluster, "a", "given");
    assert!(given > followed);
    cluster.skew("a", 0);
    cluster.crash("a");
    cluster.start("a");
    cluster.put("a", "after", "x").await.unwrap();
    assert!(newest_stamp(&cluster, "a", "after") > given);
    // To b that was too far ahead: neither now nor after a restart does its clock follow.
    until("b has it", || cluster.node("b").status().records == 3).await;
    assert!(cluster.node("b").counters().hlc_too_far_ahead.get() > 0);
    cluster.crash("b");
    cluster.start("b");
    cluster.put("b", "own", "x").await.unwrap();
    assert!(newest_stamp(&cluster, "b", "own") < given);
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn who_was_given_up_is_completed_by_state_though_every_other_region_restarted_meanwhile() {
    let mut cluster = Cluster::tuned(&THREE, |node, _| node.tombstone_horizon = Duration::from_secs(20));
    for n in 0..40 {
        cluster.put(THREE[n % 3], &format!("key-{n}"), "x").await.unwrap();
    }
    cluster.converge(40).await;
    cluster.cut("a", "c");
    cluster.cut("b", "c");
    for n in 0..30 {
        delete(cluster.node("b"), &format!("key-{n}")).await.unwrap();
    }
    cluster.put("c", "meanwhile", "y").await.unwrap();
    until("a and b have forgotten what c does not know to be deleted", || {
        ["a", "b"].iter().all(|region| cluster.node(region).counters().tombstones_forgotten.get() >= 30)
    })
    .await;
    for region in ["a", "b"] {
        cluster.crash(region);
        cluster.start(region);
    }
    // Nor is c waited for by those who have not been away from it for long since they started.
    delete(cluster.node("a"), "key-30").await.unwrap();
    let forgotten = || ["a", "b"].iter().all(|r| cluster.node(r).counters().tombstones_forgotten.get() >= 1);
    until("the tombstone is forgotten without c", forgotten).await;
    cluster.heal();
    cluster.converge(10).await;
    assert_eq!(cluster.get("c", "key-0").await, None);
    assert_eq!(cluster.get("a", "meanwhile").await.as_deref(), Some("y"));
    let taken: u64 = cluster.node("c").counters().peers().values().map(|p| p.state_chunks_in.get()).sum();
    assert!(taken > 0, "c must have taken a state");
    cluster.shutdown().await;
}

/// a writes what c misses for good, then what b misses too, and sends c one chunk of its state.
async fn cut_short(cluster: &mut Cluster) {
    cluster.put("a", "first", "x").await.unwrap();
    cluster.converge(1).await;
    cluster.cut("a", "c");
    cluster.cut("b", "c");
    let value = "v".repeat(2000);
    for n in 0..1500 {
        cluster.put("a", &format!("key-{n}"), &value).await.unwrap();
    }
    until("b has it", || cluster.node("b").status().records == 1501).await;
    let store = cluster.node("a").store().clone();
    until("a's log does not reach back to c", || store.log_bytes() < 2 << 20).await;
    cluster.cut("a", "b");
    for n in 0..100 {
        cluster.put("a", &format!("key-{n}-only-here"), "x").await.unwrap();
    }
    cluster.allow_chunks(1);
    cluster.heal();
    cluster.cut("a", "b");
    cluster.cut("b", "c");
    until("c has merged a chunk", || !cluster.node("c").store().transfers().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_transfer_cut_short_is_taken_up_after_a_restart() {
    let mut cluster = Cluster::tuned(&THREE, |node, _| node.log_budget_bytes = 256 << 10);
    cut_short(&mut cluster).await;
    cluster.crash("c");
    cluster.start("c");
    assert!(!cluster.node("c").store().transfers().is_empty(), "it is known to be unfinished");
    cluster.allow_chunks(u64::MAX);
    cluster.heal();
    cluster.converge(1601).await;
    until("nothing is unfinished", || cluster.nodes.values().all(|node| node.store().transfers().is_empty())).await;
    cluster.shutdown().await;
}

/// c crashes with what a chunk has shown, and a never comes back: b has to get it from c, in whose log it is not.
#[tokio::test(start_paused = true)]
async fn what_a_lost_region_had_sent_as_half_a_state_reaches_the_others() {
    let mut cluster = Cluster::tuned(&THREE, |node, _| {
        node.log_budget_bytes = 256 << 10;
        node.tombstone_horizon = Duration::from_secs(30);
    });
    cut_short(&mut cluster).await;
    cluster.crash("a");
    cluster.crash("c");
    cluster.start("c");
    cluster.allow_chunks(u64::MAX);
    cluster.heal();
    let only_here = |region: &str| {
        let has = |n: &usize| {
            let key = format!("key-{n}-only-here");
            cluster.node(region).store().get(KEYSPACE, key.as_bytes()).unwrap().is_some()
        };
        (0..100).filter(has).count()
    };
    let shown = only_here("c");
    assert!(shown > 0 && shown < 100, "{shown}");
    assert_eq!(only_here("b"), 0);
    cluster.converge(1501 + shown as u64).await;
    assert_eq!(only_here("b"), shown);
    // Both hold it now, and stop offering it.
    let chunks = || -> u64 {
        let taken =
            cluster.nodes.values().map(|n| n.counters().peers().values().map(|p| p.state_chunks_in.get()).sum::<u64>());
        taken.sum()
    };
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = chunks();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(chunks(), before);
    cluster.put("b", "after", "z").await.unwrap();
    cluster.converge(1502 + shown as u64).await;
    cluster.shutdown().await;
}
