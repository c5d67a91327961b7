//! Three regions: what is written anywhere is everywhere in the end, whatever happened to links, logs and disks.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, KEYSPACE, delete, increment, put, tombstones, until};
use isle_model::{Fate, Region};
use isle_node::peer::{DeltaBatch, ToReceiver};
use isle_node::{Consistency, LinkState, NodeError, NodeState, PeerStatus, RequestContext, ScanRequest};
use isle_store::disk::Crash;
use tokio::time::Instant;

const THREE: [&str; 3] = ["a", "b", "c"];

#[tokio::test(start_paused = true)]
async fn a_write_reaches_every_region() {
    let cluster = Cluster::new(&THREE);
    for n in 0..200 {
        cluster.put(THREE[n % 3], &format!("key-{n}"), "value").await.unwrap();
    }
    cluster.converge(200).await;
    assert_eq!(cluster.get("c", "key-0").await.as_deref(), Some("value"));
    until("every link is live and nothing lags", || {
        cluster.nodes.values().all(|node| {
            node.status().peers.iter().all(|p| p.state == LinkState::Live && p.lag.is_zero() && p.staleness.is_some())
        })
    })
    .await;
    assert!(cluster.node("a").egress().to(&Region::new("b")).total() > 0);
    cluster.shutdown().await;
}

/// What the other regions wrote while they were out of sight is not there, and a reader who allows less is told so.
#[tokio::test(start_paused = true)]
async fn a_bounded_read_is_refused_rather_than_older_than_it_allows() {
    let cluster = Cluster::new(&THREE);
    let alone = Cluster::new(&["a"]);
    let bound = Duration::from_secs(3);
    let read = async |cluster: &Cluster| cluster.read("a", "key", Consistency::Bounded(bound)).await;
    assert_eq!(read(&alone).await.unwrap().staleness, Some(Duration::ZERO), "nobody else writes there");
    let unheard = NodeError::StalenessBoundExceeded { bound, staleness: None };
    assert_eq!(read(&cluster).await.unwrap_err(), unheard, "nobody has been heard yet");
    cluster.put("b", "key", "1").await.unwrap();
    cluster.converge(1).await;
    until("all have been heard", || cluster.node("a").status().peers.iter().all(|peer| peer.staleness.is_some())).await;
    let fresh = read(&cluster).await.unwrap();
    assert!(fresh.reading.is_some() && fresh.staleness.unwrap() <= bound, "{:?}", fresh.staleness);
    cluster.cut("a", "b");
    let cut_at = Instant::now();
    cluster.put("b", "key", "2").await.unwrap();
    let written_at = Instant::now();
    loop {
        match read(&cluster).await {
            // It has to have been read while what is there was the newest, or little before.
            Ok(_) => assert!(written_at.elapsed() <= bound, "{:?} after the write", written_at.elapsed()),
            Err(error) => {
                let NodeError::StalenessBoundExceeded { staleness: Some(staleness), .. } = error else {
                    panic!("{error}")
                };
                assert!(staleness > bound && staleness <= cut_at.elapsed() + bound, "{staleness:?}");
                let consistency = Consistency::Bounded(bound);
                let (keyspace, start, end) = ("default".to_owned(), "".into(), None);
                let scan = ScanRequest { keyspace, start, end, limit: 9, bytes_max: 99, consistency };
                let scanned = cluster.node("a").scan(&RequestContext::default(), scan).await;
                assert!(matches!(scanned, Err(NodeError::StalenessBoundExceeded { .. })), "a scan is a read as well");
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.get("a", "key").await.as_deref(), Some("1"), "who allows any age is answered");
    cluster.heal();
    cluster.converge(1).await;
    while read(&cluster).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.get("a", "key").await.as_deref(), Some("2"));
    cluster.shutdown().await;
    alone.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn both_sides_of_a_cut_take_writes_and_converge_when_it_heals() {
    let cluster = Cluster::new(&THREE);
    cluster.put("a", "before", "1").await.unwrap();
    cluster.converge(1).await;
    for other in ["a", "b"] {
        cluster.cut("c", other);
    }
    for n in 0..50 {
        cluster.put("a", &format!("a-{n}"), "x").await.unwrap();
        cluster.put("c", &format!("c-{n}"), "y").await.unwrap();
        increment(cluster.node("b"), "counter", 1).await.unwrap();
        increment(cluster.node("c"), "counter", 10).await.unwrap();
    }
    assert_eq!(cluster.get("c", "a-0").await, None);
    until("the cut is noticed", || {
        cluster.node("a").status().peers.iter().any(|p| p.region == Region::new("c") && p.state == LinkState::Down)
    })
    .await;
    cluster.heal();
    cluster.converge(102).await;
    let value = increment(cluster.node("a"), "counter", 0).await.unwrap().value;
    assert_eq!(value, Some(550));
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn two_concurrent_puts_are_a_conflict_in_every_ledger() {
    let cluster = Cluster::new(&["a", "b"]);
    cluster.cut("a", "b");
    cluster.put("a", "key", "from a").await.unwrap();
    cluster.put("b", "key", "from b").await.unwrap();
    cluster.heal();
    cluster.converge(1).await;
    assert_eq!(cluster.get("a", "key").await, cluster.get("b", "key").await);
    for node in cluster.nodes.values() {
        let ledger = node.store().ledger(KEYSPACE, 10).unwrap();
        let losers: Vec<_> = ledger.iter().filter(|entry| entry.fate == Fate::Open).collect();
        assert!(losers.iter().any(|entry| entry.value.is_some()), "{ledger:?}");
        assert!(node.status().conflicts_open > 0);
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn tombstones_are_forgotten_once_every_region_has_stated_it_has_them_and_not_before() {
    let cluster = Cluster::new(&THREE);
    for n in 0..40 {
        cluster.put("a", &format!("key-{n}"), "x").await.unwrap();
    }
    cluster.converge(40).await;
    cluster.cut("a", "c");
    cluster.cut("b", "c");
    for n in 0..40 {
        delete(cluster.node("b"), &format!("key-{n}")).await.unwrap();
    }
    until("a has the deletes", || cluster.node("a").status().records == 0).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(cluster.node("a").counters().tombstones_forgotten.get(), 0, "c has not said anything");
    cluster.heal();
    cluster.converge(0).await;
    until("nobody holds a tombstone", || {
        cluster.nodes.values().all(|node| node.counters().tombstones_forgotten.get() >= 40 && tombstones(node) == 0)
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_away_beyond_the_horizon_is_not_waited_for_and_brings_nothing_back() {
    let cluster = Cluster::tuned(&THREE, |node, _| node.tombstone_horizon = Duration::from_secs(20));
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
    delete(cluster.node("c"), "key-39").await.unwrap();
    until("a and b have forgotten what c does not know to be deleted", || {
        ["a", "b"].iter().all(|region| cluster.node(region).counters().tombstones_forgotten.get() >= 30)
    })
    .await;
    assert_eq!(cluster.node("c").counters().tombstones_forgotten.get(), 0, "the minority waits for the others");
    cluster.heal();
    cluster.converge(10).await;
    assert_eq!(cluster.get("c", "key-0").await, None);
    assert_eq!(cluster.get("a", "meanwhile").await.as_deref(), Some("y"));
    cluster.put("a", "after", "z").await.unwrap();
    cluster.converge(11).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn idle_regions_stop_talking() {
    let cluster = Cluster::new(&THREE);
    cluster.put("a", "key", "x").await.unwrap();
    cluster.converge(1).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let said = || -> u64 { cluster.nodes.values().map(|node| node.counters().statements.get()).sum() };
    let before = said();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(said(), before, "a statement alone never causes another");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_beyond_the_log_budget_comes_back_by_state() {
    let cluster = Cluster::tuned(&THREE, |node, _| node.log_budget_bytes = 256 << 10);
    cluster.put("a", "first", "x").await.unwrap();
    cluster.put("c", "gone", "x").await.unwrap();
    cluster.converge(2).await;
    cluster.cut("c", "a");
    cluster.cut("c", "b");
    delete(cluster.node("a"), "gone").await.unwrap();
    let value = "v".repeat(2000);
    for n in 0..1500 {
        cluster.put(["a", "b"][n % 2], &format!("key-{n}"), &value).await.unwrap();
    }
    cluster.put("c", "meanwhile", "y").await.unwrap();
    for region in ["a", "b"] {
        let store = cluster.node(region).store();
        until("the log is trimmed though c is away", || store.log_bytes() < 2 << 20).await;
    }
    cluster.heal();
    cluster.converge(1502).await;
    let taken: u64 = cluster.node("c").counters().peers().values().map(|p| p.state_chunks_in.get()).sum();
    assert!(taken > 0, "c must have taken a state");
    assert_eq!(cluster.get("c", "gone").await, None);
    // The live stream has met the state without a hole.
    cluster.put("a", "after", "z").await.unwrap();
    cluster.converge(1503).await;
    until("every link is live again", || {
        cluster.nodes.values().all(|n| n.status().peers.iter().all(|p| p.state == LinkState::Live))
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_crashes_under_load_keeps_every_acknowledged_write() {
    let mut cluster = Cluster::new(&THREE);
    let mut acked = Vec::new();
    for round in 0..5 {
        let node = cluster.node("a").clone();
        let writers: Vec<_> = (0..20)
            .map(|n| {
                let node = node.clone();
                let key = format!("key-{round}-{n}");
                tokio::spawn(async move { put(&node, &key, "x").await.map(|_| key) })
            })
            .collect();
        // Some are acknowledged by now, some are appended, some are neither.
        tokio::time::sleep(Duration::from_micros(700 * (round + 1))).await;
        drop(node);
        let crash_at: Vec<bool> = writers.iter().map(tokio::task::JoinHandle::is_finished).collect();
        cluster.crash("a");
        for (writer, finished) in writers.into_iter().zip(crash_at) {
            if finished {
                acked.extend(writer.await.unwrap());
            } else {
                writer.abort();
            }
        }
        cluster.start("a");
    }
    assert!(!acked.is_empty());
    until("all regions agree", || {
        let all: Vec<_> = cluster.nodes.values().map(|node| node.status()).collect();
        all.iter().all(|s| s.digest.is_some() && s.digest == all[0].digest && s.records >= acked.len() as u64)
    })
    .await;
    for key in &acked {
        for region in THREE {
            assert_eq!(cluster.get(region, key).await.as_deref(), Some("x"), "{key} in {region}");
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn survivors_complete_each_other_when_a_region_is_lost() {
    let mut cluster = Cluster::new(&THREE);
    cluster.put("a", "shared", "x").await.unwrap();
    cluster.converge(1).await;
    cluster.cut("a", "c");
    for n in 0..30 {
        cluster.put("a", &format!("key-{n}"), "x").await.unwrap();
    }
    until("b has them", || cluster.node("b").status().records == 31).await;
    assert_eq!(cluster.get("c", "key-0").await, None);
    cluster.crash("a");
    cluster.converge(31).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_restored_disk_is_completed_before_it_serves() {
    let mut cluster = Cluster::new(&THREE);
    cluster.put("a", "old", "x").await.unwrap();
    cluster.put("b", "deleted", "x").await.unwrap();
    cluster.converge(2).await;
    let backup = cluster.disks["a"].crash(Crash::KeepSynced, &mut |_| 0);
    delete(cluster.node("b"), "deleted").await.unwrap();
    for n in 0..30 {
        cluster.put("a", &format!("a-{n}"), "x").await.unwrap();
        cluster.put("b", &format!("b-{n}"), "x").await.unwrap();
    }
    cluster.converge(61).await;
    until("the tombstone is forgotten, so that nothing but a state can tell of it", || {
        cluster.nodes.values().all(|node| node.counters().tombstones_forgotten.get() >= 1)
    })
    .await;
    cluster.crash("a");
    cluster.disks.insert("a".to_owned(), backup);
    cluster.start("a");
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.node("a").status().state != NodeState::Completing {
        assert!(Instant::now() < deadline, "a never finds out that it is behind");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(cluster.put("a", "key", "x").await, Err(NodeError::Completing));
    until("a serves again", || cluster.node("a").status().state == NodeState::Serving).await;
    let taken: u64 = cluster.node("a").counters().peers().values().map(|p| p.state_chunks_in.get()).sum();
    assert!(taken > 0, "a must have taken a state");
    cluster.converge(61).await;
    assert_eq!(cluster.get("a", "deleted").await, None);
    // It goes on as the one line of its region.
    cluster.put("a", "new", "x").await.unwrap();
    cluster.converge(62).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_region_that_a_clone_replaced_stops() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.put("a", "key", "x").await.unwrap();
    cluster.converge(1).await;
    // A clone of the directory starts while the first, its link cut, still runs.
    let clone = cluster.disks["a"].crash(Crash::KeepSynced, &mut |_| 0);
    cluster.cut("a", "b");
    let first = cluster.nodes.remove("a").unwrap();
    cluster.disks.insert("a".to_owned(), clone);
    cluster.start("a");
    cluster.heal();
    until("one of the two has stopped", || {
        let stopped = |node: &isle_node::Node| matches!(node.status().state, NodeState::Stopped { .. });
        stopped(&first) || stopped(cluster.node("a"))
    })
    .await;
    assert!(matches!(first.status().state, NodeState::Stopped { .. }), "the newer line goes on");
    assert!(matches!(put(&first, "key", "y").await, Err(NodeError::Stopped { .. })));
    assert!(first.stopped().await.contains("replaced"));
    cluster.put("a", "key", "z").await.unwrap();
    cluster.converge(1).await;
    first.shutdown().await;
    cluster.shutdown().await;
}

/// Makes the deltas of a batch unreadable beyond their heads, if one of them writes the value "spoiled".
fn spoil(message: ToReceiver) -> ToReceiver {
    let ToReceiver::Deltas(batch) = message else { return message };
    let raw = zstd::bulk::decompress(&batch.zstd, batch.raw_len as usize).unwrap();
    if !raw.windows(7).any(|window| window == b"spoiled") {
        return ToReceiver::Deltas(batch);
    }
    let (mut rest, mut spoiled) = (&raw[..], Vec::new());
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (delta, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        // A second body, field 7, whose message ends in the middle of a number.
        let delta = [delta, &[7 << 3 | 2, 2, 0xff, 0xff]].concat();
        spoiled.extend((delta.len() as u32).to_le_bytes());
        spoiled.extend(delta);
        rest = after;
    }
    let (raw_len, crc) = (spoiled.len() as u32, crc32fast::hash(&spoiled));
    let zstd = zstd::bulk::compress(&spoiled, 1).unwrap().into();
    ToReceiver::Deltas(DeltaBatch { raw_len, crc, zstd, ..batch })
}

fn peer_of(node: &isle_node::Node, peer: &str) -> PeerStatus {
    node.status().peers.into_iter().find(|p| p.region == Region::new(peer)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_an_unreadable_delta_stands_still_and_lags_until_a_state_completes_it() {
    let cluster = Cluster::new(&["a", "b"]);
    cluster.put("a", "sound", "x").await.unwrap();
    cluster.converge(1).await;
    cluster.allow_chunks(0);
    cluster.tamper("a", Some(Arc::new(spoil)));
    cluster.put("a", "key", "spoiled").await.unwrap();
    until("b keeps it aside", || peer_of(cluster.node("b"), "a").quarantined > 0).await;
    let held = cluster.node("b").quarantined(&Region::new("a")).pop().unwrap();
    assert!(!held.bytes.is_empty());
    assert_eq!(peer_of(cluster.node("b"), "a").quarantine_reason, Some(held.reason.clone()));
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(10) {
        assert!(peer_of(cluster.node("a"), "b").lag_bytes > 0, "b has not applied all, and counts as if it had");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let b = peer_of(cluster.node("b"), "a");
    assert!(b.staleness.is_some_and(|age| age > Duration::from_secs(8)), "{b:?}");
    let shard = |key: &str| isle_model::ShardId::of(KEYSPACE, key.as_bytes(), cluster::SHARDS);
    let cursor = |node: &isle_node::Node, of: &str| {
        let streams = node.store().streams(KEYSPACE, shard("key"));
        streams.stated_by(&Region::new(of)).and_then(|said| said.get(&Region::new("a"))).cloned().unwrap_or_default()
    };
    assert!(cursor(cluster.node("a"), "b").get(held.dot.incarnation) < held.dot.seq, "b states what it does not have");

    cluster.allow_chunks(u64::MAX);
    cluster.converge(2).await;
    until("nothing stands still and nothing lags", || {
        let (a, b) = (peer_of(cluster.node("a"), "b"), peer_of(cluster.node("b"), "a"));
        b.quarantined == 0 && a.lag_bytes == 0 && b.staleness.is_some_and(|age| age < Duration::from_secs(2))
    })
    .await;
    cluster.put("a", "after", "x").await.unwrap();
    cluster.converge(3).await;
    cluster.shutdown().await;
}

/// The log of an idle region goes on: others' deltas come in, and its end is noted. None of it is for the peer.
#[tokio::test(start_paused = true)]
async fn a_peer_that_has_every_delta_does_not_lag() {
    let cluster = Cluster::tuned(&["a", "b"], |node, _| node.statement_interval = Duration::from_secs(3600));
    cluster.put("a", "key", "x").await.unwrap();
    cluster.converge(1).await;
    until("b has confirmed it", || peer_of(cluster.node("a"), "b").lag_bytes == 0).await;
    let from = cluster.node("a").store().durable();
    cluster.put("b", "other", "x").await.unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        let peer = peer_of(cluster.node("a"), "b");
        assert_eq!((peer.lag_bytes, peer.lag, peer.state), (0, Duration::ZERO, LinkState::Live));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(cluster.node("a").store().durable() > from, "the log has not moved, which proves nothing");
    cluster.shutdown().await;
}
