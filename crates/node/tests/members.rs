//! Regions join a running cluster and leave it: nothing acknowledged is lost on the way, and nobody waits for those that are gone.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use cluster::{Cluster, delete, increment, put, put_of, tombstones, until, write_request};
use isle_model::metadata::{Command, Refused};
use isle_model::policy::{Member, MemberState, Policy, Replication};
use isle_model::{KeyspaceId, Region};
use isle_node::peer::ToReceiver;
use isle_node::{
    ChangeError, Consistency, GetRequest, KeyspaceConfig, Node, NodeConfig, NodeError, NodeState, RequestContext,
    WriteRequest,
};
use isle_store::StoreConfig;
use tokio::time::Instant;

const THREE: [&str; 3] = ["a", "b", "c"];
const HOMED: &str = "homed";

fn homed(config: &mut NodeConfig, storage: &mut StoreConfig) {
    let (id, name) = (KeyspaceId(2), HOMED.to_owned());
    config.keyspaces.push(KeyspaceConfig { id, name, policy: Policy::default() });
    // So that nobody's log reaches back to the beginning.
    config.log_budget_bytes = 64 << 10;
    storage.segment_bytes = 64 << 10;
    storage.checkpoint_log_bytes = 64 << 10;
    storage.flush_log_bytes = 64 << 10;
}

async fn founded(cluster: &Cluster) {
    until("the cluster is founded", || {
        cluster.nodes.values().all(|node| {
            let metadata = node.status().metadata;
            metadata.revision > 0 && metadata.has_majority
        })
    })
    .await;
}

async fn add(node: &Node, region: &str) -> Result<(), ChangeError> {
    let member = Member { endpoint: region.to_owned(), ..Member::default() };
    retried(async || node.add_region(&RequestContext::default(), Region::new(region), member.clone()).await).await
}

async fn remove(node: &Node, region: &str, lost: bool) -> Result<(), ChangeError> {
    retried(async || node.remove_region(&RequestContext::default(), Region::new(region), lost).await).await
}

/// While leaders change nothing is decided.
async fn retried(change: impl AsyncFn() -> Result<(), ChangeError>) -> Result<(), ChangeError> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match change().await {
            Err(ChangeError::Unavailable { .. } | ChangeError::OutcomeUnknown { .. }) if Instant::now() < deadline => {}
            // An answer was lost.
            Err(ChangeError::Refused(Refused::IsMember { .. })) => return Ok(()),
            told => return told,
        }
    }
}

fn knows(node: &Node, region: &str) -> Option<MemberState> {
    node.metadata().members.get(&Region::new(region)).map(|member| member.state)
}

fn serves(node: &Node) -> bool {
    node.status().state == NodeState::Serving
}

fn in_homed(key: &str, value: &str) -> WriteRequest {
    WriteRequest { keyspace: HOMED.to_owned(), ..write_request(key, put_of(value)) }
}

/// Writes keys of its own until told to stop; returns those that were acknowledged.
fn writer(node: &Arc<Node>, name: &str, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<Vec<String>> {
    let (node, name, stop) = (node.clone(), name.to_owned(), stop.clone());
    tokio::spawn(async move {
        let mut acked = Vec::new();
        for n in 0.. {
            let key = format!("{name}/{n}");
            if put(&node, &key, "by a writer").await.is_ok() {
                acked.push(key);
            }
            if stop.load(Relaxed) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        acked
    })
}

async fn holds_all(cluster: &Cluster, region: &str, keys: &[String]) {
    for key in keys {
        assert!(cluster.get(region, key).await.is_some(), "{region} lacks {key}, which was acknowledged");
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_joins_while_everybody_writes_and_has_all_of_it_when_it_serves() {
    let mut cluster = Cluster::tuned(&THREE, homed);
    founded(&cluster).await;
    for n in 0..600 {
        cluster.put(THREE[n % 3], &format!("old/{n}"), &"x".repeat(400)).await.unwrap();
        increment(cluster.node("a"), &format!("count/{}", n % 10), 1).await.unwrap();
    }
    cluster.converge(610).await;
    for n in 0..100 {
        delete(cluster.node("b"), &format!("old/{n}")).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers = THREE.map(|region| writer(cluster.node(region), region, &stop));
    cluster.start_joining("d");
    let refused = cluster.read("d", "old/200", Consistency::Eventual).await;
    assert_eq!(refused.err(), Some(NodeError::Joining), "it has nothing to show yet");
    assert!(matches!(put(cluster.node("d"), "too early", "x").await, Err(NodeError::Joining)));
    let NodeState::Joining { progress } = cluster.node("d").status().state else { panic!("it joins") };
    assert!(progress.contains("isle region add"), "{progress}");

    add(cluster.node("b"), "d").await.unwrap();
    until("d serves", || serves(cluster.node("d"))).await;
    // All that was there when it was let in, whatever has come since.
    for n in 100..600 {
        assert!(cluster.get("d", &format!("old/{n}")).await.is_some(), "old/{n}");
    }
    for n in 0..100 {
        assert_eq!(cluster.get("d", &format!("old/{n}")).await, None, "a deleted key is back: old/{n}");
    }
    stop.store(true, Relaxed);
    let mut records = 510;
    for writer in writers {
        records += writer.await.unwrap().len() as u64;
    }
    cluster.put("d", "by d", "x").await.unwrap();
    cluster.converge(records + 1).await;
    assert_eq!(cluster.get("a", "by d").await.as_deref(), Some("x"));
    until("it is a voter like the others", || cluster.node("d").status().metadata.has_majority).await;

    // The others find it again though their configurations do not name it, and so does it find them.
    for region in ["a", "d"] {
        cluster.crash(region);
        cluster.start(region);
        until("it serves again", || serves(cluster.node(region))).await;
    }
    cluster.put("d", "after the restart", "x").await.unwrap();
    cluster.put("a", "after the restart, too", "x").await.unwrap();
    cluster.converge(records + 3).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_region_that_joins_takes_nothing_before_every_member_waits_for_it() {
    let mut cluster = Cluster::tuned(&THREE, homed);
    founded(&cluster).await;
    for n in 0..300 {
        cluster.put("a", &format!("k/{n}"), &"x".repeat(400)).await.unwrap();
    }
    cluster.converge(300).await;
    cluster.start_joining("d");
    cluster.cut("c", "d");
    add(cluster.node("a"), "d").await.unwrap();
    until("c is the only one that is missing", || match cluster.node("d").status().state {
        NodeState::Joining { progress } => progress == "waits until these regions are reached: c",
        state => panic!("{state:?}"),
    })
    .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!serves(cluster.node("d")));
    assert_eq!(cluster.node("d").store().transfers().len(), 0, "no state was begun");
    cluster.heal();
    until("d serves", || serves(cluster.node("d"))).await;
    cluster.converge(300).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_region_that_dies_while_it_joins_goes_on_and_serves_no_half() {
    let mut cluster = Cluster::tuned(&THREE, homed);
    founded(&cluster).await;
    for n in 0..600 {
        cluster.put("a", &format!("k/{n}"), &"x".repeat(4000)).await.unwrap();
    }
    cluster.converge(600).await;
    cluster.start_joining("d");
    cluster.allow_chunks(2);
    add(cluster.node("a"), "d").await.unwrap();
    until("d has begun", || {
        cluster.node("d").status().records > 0 || !cluster.node("d").store().transfers().is_empty()
    })
    .await;
    cluster.crash("d");
    cluster.start("d");
    assert!(matches!(cluster.node("d").status().state, NodeState::Joining { .. }));
    assert_eq!(cluster.read("d", "k/1", Consistency::Eventual).await.err(), Some(NodeError::Joining));
    cluster.allow_chunks(u64::MAX);
    until("d serves", || serves(cluster.node("d"))).await;
    cluster.converge(600).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_region_leaves_and_what_it_took_stays() {
    let cluster = Cluster::tuned(&THREE, homed);
    founded(&cluster).await;
    cluster.node("c").write(&RequestContext::default(), in_homed("at c", "1")).await.unwrap();
    let before = cluster.node("a").metadata();
    let stop = Arc::new(AtomicBool::new(false));
    let writers = THREE.map(|region| writer(cluster.node(region), region, &stop));
    tokio::time::sleep(Duration::from_secs(1)).await;
    remove(cluster.node("a"), "c", false).await.unwrap();
    let why = cluster.node("c").stopped().await;
    assert!(why.contains("has left the cluster"), "{why}");
    until("nobody knows it", || ["a", "b"].iter().all(|region| knows(cluster.node(region), "c").is_none())).await;
    stop.store(true, Relaxed);
    for writer in writers {
        let acked = writer.await.unwrap();
        assert!(acked.len() > 100);
        until("all has come", || {
            let (a, b) = (cluster.node("a").status(), cluster.node("b").status());
            a.digest.is_some() && a.digest == b.digest
        })
        .await;
        holds_all(&cluster, "a", &acked).await;
        holds_all(&cluster, "b", &acked).await;
    }
    assert!(cluster.node("a").status().peers.iter().all(|peer| peer.region.as_str() != "c"));

    // It is read, as it was left, where its home is by now.
    for region in ["a", "b"] {
        let key = bytes::Bytes::from_static(b"at c");
        let request = GetRequest { keyspace: HOMED.to_owned(), key, consistency: Consistency::Strong };
        let reply = cluster.node(region).get(&RequestContext::default(), request).await.unwrap();
        assert_eq!(reply.reading.unwrap().values[0].1[0].value.bytes, "1");
    }

    // The key's home is another now, the same for both, and its epoch is a later one.
    for (region, value) in [("a", "2"), ("b", "3")] {
        let reply = cluster.node(region).write(&RequestContext::default(), in_homed("at c", value)).await.unwrap();
        assert!(["a", "b"].contains(&reply.home.unwrap().as_str()));
    }
    let homed = |node: &Node| node.metadata().keyspaces[&KeyspaceId(2)].epoch;
    assert!(homed(cluster.node("a")) > before.keyspaces[&KeyspaceId(2)].epoch);
    let status = cluster.node("a").status();
    assert_eq!(status.conflicts_open, 0, "one home wrote it, and then another");
    // What is deleted is forgotten without it, and the two agree on changes.
    delete(cluster.node("a"), "a/1").await.unwrap();
    until("the tombstone goes", || tombstones(cluster.node("a")) == 0 && tombstones(cluster.node("b")) == 0).await;
    let create = || Command::Create { name: "later".to_owned(), policy: Policy::default() };
    retried(async || cluster.node("b").change(&RequestContext::default(), create()).await.map(drop)).await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_region_does_not_go_before_the_others_hold_what_it_took() {
    let cluster = Cluster::tuned(&THREE, homed);
    founded(&cluster).await;
    cluster.put("a", "before", "x").await.unwrap();
    cluster.converge(1).await;
    // Its deltas do not arrive, while everything else does.
    let withheld = |message| match message {
        ToReceiver::Deltas(_) => ToReceiver::Heartbeat { lag_bytes: 0, caught_up: false },
        other => other,
    };
    cluster.tamper("c", Some(Arc::new(withheld)));
    cluster.put("c", "of c alone", "x").await.unwrap();
    remove(cluster.node("a"), "c", false).await.unwrap();
    until("c has heard of it", || cluster.node("c").status().state == NodeState::Leaving).await;
    assert_eq!(put(cluster.node("c"), "late", "x").await.err(), Some(NodeError::Leaving));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(knows(cluster.node("a"), "c"), Some(MemberState::Leaving), "it took what nobody else has");
    cluster.tamper("c", None);
    // What a link has swallowed comes when it is made anew.
    ["a", "b"].iter().for_each(|region| cluster.cut(region, "c"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.heal();
    cluster.node("c").stopped().await;
    for region in ["a", "b"] {
        until("it has come", || cluster.node(region).status().records == 2).await;
        assert_eq!(cluster.get(region, "of c alone").await.as_deref(), Some("x"));
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_leads_the_metadata_may_leave_too() {
    let cluster = Cluster::tuned(&THREE, homed);
    founded(&cluster).await;
    let leader = cluster.node("a").status().metadata.leader.unwrap().to_string();
    let other = THREE.into_iter().find(|region| *region != leader).unwrap();
    cluster.put(&leader, "k", "v").await.unwrap();
    remove(cluster.node(other), &leader, false).await.unwrap();
    cluster.node(&leader).stopped().await;
    let left = THREE.into_iter().filter(|region| *region != leader);
    for region in left {
        until("it has gone", || knows(cluster.node(region), &leader).is_none()).await;
        until("they agree without it", || cluster.node(region).status().metadata.has_majority).await;
        assert_eq!(cluster.get(region, "k").await.as_deref(), Some("v"));
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_region_is_given_up_and_the_survivors_complete_each_other() {
    let mut cluster = Cluster::tuned(&THREE, homed);
    founded(&cluster).await;
    cluster.put("c", "known", "x").await.unwrap();
    cluster.converge(1).await;
    let alive = remove(cluster.node("a"), "c", true).await;
    assert_eq!(alive, Err(ChangeError::IsAlive { region: Region::new("c") }));
    cluster.cut("b", "c");
    for n in 0..50 {
        cluster.put("c", &format!("only a has it/{n}"), "x").await.unwrap();
    }
    until("a has them", || cluster.node("a").status().records == 51).await;
    let acked = cluster.put("c", "nobody has it", "x");
    cluster.cut("a", "c");
    acked.await.unwrap();
    cluster.crash("c");
    until("a misses c", || matches!(cluster.node("a").status().peers[1].state, isle_node::LinkState::Down)).await;
    delete(cluster.node("a"), "known").await.unwrap();
    let too_soon = remove(cluster.node("a"), "c", true).await;
    assert_eq!(too_soon, Err(ChangeError::IsAlive { region: Region::new("c") }));
    tokio::time::sleep(Duration::from_secs(6)).await;
    remove(cluster.node("a"), "c", true).await.unwrap();
    until("b has them too", || cluster.node("b").status().records == 50).await;
    until("nothing waits for c", || tombstones(cluster.node("a")) == 0 && tombstones(cluster.node("b")) == 0).await;

    // It comes back, and hears that it is none of them.
    cluster.start("c");
    cluster.heal();
    let why = cluster.node("c").stopped().await;
    assert!(why.contains("no region of the cluster") && why.contains("kept"), "{why}");
    assert!(matches!(cluster.read("c", "known", Consistency::Eventual).await, Err(NodeError::Stopped { .. })));
    assert_eq!(cluster.node("a").status().records, 50, "nothing of it came in");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_region_that_left_may_join_again_with_an_empty_disk() {
    let mut cluster = Cluster::tuned(&THREE, homed);
    founded(&cluster).await;
    for n in 0..100 {
        cluster.put(THREE[n % 3], &format!("k/{n}"), "x").await.unwrap();
    }
    cluster.converge(100).await;
    remove(cluster.node("a"), "c", false).await.unwrap();
    cluster.node("c").stopped().await;
    until("it is gone", || ["a", "b"].iter().all(|region| knows(cluster.node(region), "c").is_none())).await;
    cluster.crash("c");
    delete(cluster.node("a"), "k/2").await.unwrap();
    cluster.tune = |config, storage| {
        homed(config, storage);
        config.join = true;
    };
    cluster.start_joining("c");
    add(cluster.node("b"), "c").await.unwrap();
    until("it serves", || serves(cluster.node("c"))).await;
    cluster.put("c", "k/2", "anew").await.unwrap();
    cluster.converge(100).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn no_region_goes_that_a_keyspace_needs() {
    let cluster = Cluster::tuned(&THREE, |config, storage| {
        homed(config, storage);
        let policy = Policy { replication: Replication::Sync(2), ..Policy::default() };
        config.keyspaces.push(KeyspaceConfig { id: KeyspaceId(3), name: "money".to_owned(), policy });
    });
    founded(&cluster).await;
    let refused = remove(cluster.node("a"), "c", false).await;
    let Err(ChangeError::Refused(Refused::Faulty { faults })) = refused else { panic!("{refused:?}") };
    assert!(faults[0].rule.contains("money"), "{faults:?}");
    assert_eq!(knows(cluster.node("a"), "c"), Some(MemberState::Serving));
    assert_eq!(remove(cluster.node("a"), "x", false).await, Err(Refused::NoMember { region: Region::new("x") }.into()));
    cluster.put("c", "k", "v").await.unwrap();
    cluster.shutdown().await;
}
