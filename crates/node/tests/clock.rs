//! A node whose clock is ahead of the others' takes no writes: their stamps would hide what others write meanwhile.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::time::Duration;

use cluster::{Cluster, until};
use isle_node::{NodeError, NodeState};

const THREE: [&str; 3] = ["a", "b", "c"];
const DRIFT_MS: u64 = 5_000;

fn ahead(cluster: &Cluster, region: &str) -> Option<u64> {
    match cluster.node(region).status().state {
        NodeState::ClockAhead { by_ms } => Some(by_ms),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_ahead_of_most_takes_no_writes_until_its_clock_is_set() {
    let cluster = Cluster::tuned(&THREE, |node, _| node.clock_drift_ms_max = DRIFT_MS);
    cluster.put("a", "before", "x").await.unwrap();
    cluster.converge(1).await;
    cluster.skew("a", DRIFT_MS + 1_000);
    until("a finds out", || ahead(&cluster, "a").is_some()).await;
    let by_ms = ahead(&cluster, "a").unwrap();
    assert!((DRIFT_MS..=DRIFT_MS + 1_000).contains(&by_ms), "{by_ms}");
    assert_eq!(cluster.put("a", "key", "x").await, Err(NodeError::ClockAhead { by_ms }));
    assert_eq!(cluster.get("a", "before").await.as_deref(), Some("x"), "reads go on");
    for region in ["b", "c"] {
        cluster.put(region, region, "x").await.unwrap();
    }
    cluster.converge(3).await;
    cluster.skew("a", 0);
    until("a takes writes again", || ahead(&cluster, "a").is_none()).await;
    cluster.put("a", "key", "x").await.unwrap();
    cluster.converge(4).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn one_peer_that_is_behind_stops_nobody_and_an_allowed_drift_neither() {
    let cluster = Cluster::tuned(&THREE, |node, _| node.clock_drift_ms_max = DRIFT_MS);
    // All but c are ahead of it by more than is allowed.
    cluster.skew("a", DRIFT_MS + 3_000);
    cluster.skew("b", DRIFT_MS + 1_000);
    for n in 0..100 {
        cluster.put("a", &format!("key-{n}"), "x").await.unwrap();
        cluster.put("b", &format!("key-{n}"), "x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(THREE.map(|region| ahead(&cluster, region)), [None; 3]);
    cluster.converge(100).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_region_that_is_heard_decides_alone_and_none_that_is_not() {
    let cluster = Cluster::tuned(&THREE, |node, _| node.clock_drift_ms_max = DRIFT_MS);
    cluster.skew("a", DRIFT_MS + 3_000);
    cluster.skew("b", DRIFT_MS + 1_000);
    cluster.put("a", "key", "x").await.unwrap();
    cluster.converge(1).await;
    cluster.cut("a", "b");
    until("of those that a hears, most are behind", || ahead(&cluster, "a").is_some()).await;
    cluster.cut("a", "c");
    until("a hears nobody", || ahead(&cluster, "a").is_none()).await;
    cluster.put("a", "alone", "x").await.unwrap();
    cluster.heal();
    cluster.converge(2).await;
    until("a hears b again, and is not ahead of most", || ahead(&cluster, "a").is_none()).await;
    cluster.shutdown().await;
}
