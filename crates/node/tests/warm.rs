//! A keyspace that is shipped at intervals: what has changed, once, however often; over crashes and cut links; and turned hot and back
//! while clients write.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, SHARDS, put_of, until, write_request};
use isle_model::metadata::Command;
use isle_model::policy::{HomeRule, Policy, Scope, Tier};
use isle_model::{FieldName, KeyspaceId, Mutation, Region, ShardId, Value};
use isle_node::{
    ChangeError, Consistency, GetReply, GetRequest, KeyspaceConfig, MoveRequest, Moved, Node, NodeConfig, NodeError,
    RequestContext, ShipmentStatus, WriteReply, WriteRequest,
};
use isle_store::StoreConfig;
use tokio::time::{Instant, sleep};

const THREE: [&str; 3] = ["a", "b", "c"];
const WARM: (&str, KeyspaceId) = ("warm", KeyspaceId(2));
const HOMED: (&str, KeyspaceId) = ("homed", KeyspaceId(3));
const HASHED: (&str, KeyspaceId) = ("hashed", KeyspaceId(4));
const HOUR: Duration = Duration::from_secs(3600);
/// Longer than anything takes that is not waited for.
const SOON: Duration = Duration::from_secs(20);

fn keyspaces(config: &mut NodeConfig, storage: &mut StoreConfig) {
    let keyspace = |(name, id): (&str, KeyspaceId), policy| KeyspaceConfig { id, name: name.to_owned(), policy };
    config.keyspaces.extend([
        keyspace(WARM, Policy { tier: Tier::Warm(HOUR), ..Policy::of_scope(Scope::Global) }),
        keyspace(HOMED, Policy { tier: Tier::Warm(HOUR), ..Policy::default() }),
        keyspace(HASHED, Policy { tier: Tier::Warm(HOUR), home: Some(HomeRule::Hash), ..Policy::default() }),
    ]);
    // What is shipped at intervals must not need the log.
    config.log_budget_bytes = 64 << 10;
    storage.segment_bytes = 64 << 10;
    storage.checkpoint_log_bytes = 64 << 10;
    storage.flush_log_bytes = 64 << 10;
}

async fn founded() -> Cluster {
    let cluster = Cluster::tuned(&THREE, keyspaces);
    until("the cluster is founded", || {
        cluster.nodes.values().all(|node| {
            let metadata = node.status().metadata;
            metadata.revision > 0 && metadata.has_majority
        })
    })
    .await;
    linked(&cluster).await;
    cluster
}

async fn linked(cluster: &Cluster) {
    let is_up = |node: &Arc<Node>| node.status().peers.iter().all(|peer| peer.receiving);
    until("all links are up", || cluster.nodes.values().all(is_up)).await;
}

async fn mutate(node: &Node, keyspace: &str, key: &str, mutation: Mutation) -> Result<WriteReply, NodeError> {
    let request = WriteRequest { keyspace: keyspace.to_owned(), ..write_request(key, mutation) };
    node.write(&RequestContext::default(), request).await
}

async fn put(node: &Node, key: &str, value: &str) {
    mutate(node, WARM.0, key, put_of(value)).await.unwrap();
}

async fn read(node: &Node, keyspace: &str, key: &str, consistency: Consistency) -> Result<GetReply, NodeError> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let asked = GetRequest { keyspace: keyspace.to_owned(), key, consistency };
    node.get(&RequestContext::default(), asked).await
}

async fn value(node: &Node, key: &str) -> Option<String> {
    let reading = read(node, WARM.0, key, Consistency::Eventual).await.unwrap().reading?;
    let (_, siblings) = reading.values.first()?;
    Some(String::from_utf8(siblings[0].value.bytes.to_vec()).unwrap())
}

fn keyspace_of(node: &Node, (name, _): (&str, KeyspaceId)) -> isle_node::KeyspaceStatus {
    node.status().keyspaces.into_iter().find(|keyspace| keyspace.name == name).unwrap()
}

fn records(node: &Node) -> u64 {
    keyspace_of(node, WARM).records
}

/// Waits until all regions hold the same, and so many records.
async fn agree(cluster: &Cluster, keyspace: (&str, KeyspaceId), records: u64) {
    until(&format!("the regions agree on {records} records"), || {
        let all: Vec<_> = cluster.nodes.values().map(|node| keyspace_of(node, keyspace)).collect();
        all.iter().all(|one| one.digest.is_some() && one.digest == all[0].digest && one.records == records)
    })
    .await;
}

async fn ship(node: &Node) {
    let shipped = node.ship(&RequestContext::default(), WARM.0).await.unwrap();
    assert!(shipped.iter().all(|one| one.is_done), "{shipped:?}");
}

async fn ship_all(cluster: &Cluster) {
    for node in cluster.nodes.values() {
        ship(node).await;
    }
}

/// What a peer lacks of it.
fn shipment(node: &Node, peer: &str, (name, _): (&str, KeyspaceId)) -> ShipmentStatus {
    let status = node.status();
    let peer = status.peers.into_iter().find(|status| status.region.as_str() == peer).unwrap();
    peer.shipments.into_iter().find(|shipment| shipment.keyspace == name).unwrap()
}

async fn turn(node: &Node, (_, id): (&str, KeyspaceId), tier: Tier) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let keyspace = node.metadata().keyspaces[&id].clone();
        let policy = Policy { tier, ..keyspace.policy.clone() };
        let command = Command::Update { id, expected: keyspace.revision, policy };
        match node.change(&RequestContext::default(), command).await {
            Ok(_) => return,
            Err(ChangeError::Refused(refused)) => panic!("{refused:?}"),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

fn state_chunks_in(node: &Node, from: &str) -> u64 {
    node.counters().peer(&Region::new(from)).unwrap().state_chunks_in.get()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_shipped_before_its_interval_has_passed_and_then_all_of_it_is() {
    let cluster = founded().await;
    let a = cluster.node("a");
    sleep(SOON).await;
    for round in 0..3 {
        for key in 0..50 {
            put(a, &format!("key {key}"), &format!("value {round}")).await;
        }
    }
    let written_at = Instant::now();
    sleep(SOON).await;
    assert_eq!((records(a), records(cluster.node("b"))), (50, 0));
    let waiting = shipment(a, "b", WARM);
    assert_eq!(waiting.keys_waiting, Some(50));
    // To within a look.
    assert!(waiting.oldest >= SOON - Duration::from_secs(1) && waiting.oldest < 2 * SOON, "{waiting:?}");
    assert_eq!(waiting.next_in, HOUR - waiting.oldest);
    until_within(HOUR, "the hour's changes are there", || records(cluster.node("b")) == 50).await;
    assert!(written_at.elapsed() >= HOUR - SOON, "after {:?}", written_at.elapsed());
    agree(&cluster, WARM, 50).await;
    assert_eq!(value(cluster.node("c"), "key 7").await.as_deref(), Some("value 2"));
    let waiting = shipment(a, "b", WARM);
    assert_eq!((waiting.keys_waiting, waiting.oldest), (Some(0), Duration::ZERO));
    cluster.shutdown().await;
}

/// As `until`, for what takes longer.
async fn until_within(most: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + most;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {most:?}: {what}");
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_has_it_at_once_and_each_key_goes_once() {
    let cluster = founded().await;
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    sleep(SOON).await;
    for key in 0..50 {
        put(a, &format!("a {key}"), "x").await;
        put(b, &format!("b {key}"), "x").await;
    }
    let shipped = a.ship(&RequestContext::default(), WARM.0).await.unwrap();
    let keys: Vec<_> = shipped.iter().map(|one| (one.region.as_str(), one.keys, one.is_done)).collect();
    assert_eq!(keys, [("b", Some(50), true), ("c", Some(50), true)]);
    assert_eq!(value(cluster.node("c"), "a 7").await.as_deref(), Some("x"));
    assert_eq!(records(cluster.node("c")), 50, "b has not shipped");
    put(a, "a 7", "y").await;
    assert_eq!(shipment(a, "c", WARM).keys_waiting, Some(1));
    ship_all(&cluster).await;
    agree(&cluster, WARM, 100).await;
    assert_eq!(value(cluster.node("c"), "a 7").await.as_deref(), Some("y"));
    assert!(cluster.nodes.values().all(|node| node.status().conflicts_open == 0));
    // What nobody has changed nobody takes again.
    let before = state_chunks_in(b, "a");
    ship_all(&cluster).await;
    assert!(state_chunks_in(b, "a") <= before + u64::from(SHARDS), "statements alone");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn deletes_and_counters_and_conflicts_come_as_they_do_delta_by_delta() {
    let cluster = founded().await;
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let increment = || Mutation::Increment { field: FieldName::new("n"), amount: 1 };
    for key in ["both", "gone"] {
        put(a, key, "first").await;
    }
    ship_all(&cluster).await;
    for _ in 0..10 {
        mutate(a, WARM.0, "count", increment()).await.unwrap();
        mutate(b, WARM.0, "count", increment()).await.unwrap();
    }
    // Two on either side: the losers that are written over before they are shipped have to be told of as well.
    for n in 0..2 {
        put(a, "both", &format!("a {n}")).await;
        put(b, "both", &format!("b {n}")).await;
    }
    mutate(a, WARM.0, "gone", Mutation::Delete).await.unwrap();
    ship_all(&cluster).await;
    agree(&cluster, WARM, 2).await;
    for node in cluster.nodes.values() {
        assert_eq!(value(node, "gone").await, None);
        let reading = read(node, WARM.0, "count", Consistency::Eventual).await.unwrap().reading.unwrap();
        assert_eq!(reading.counters[0].1, 20);
        assert_eq!(node.status().conflicts_open, 1);
    }
    // One that has seen both settles it.
    put(a, "both", "settled").await;
    ship_all(&cluster).await;
    agree(&cluster, WARM, 2).await;
    let ledgers = cluster.nodes.values().map(|node| {
        assert_eq!(node.status().conflicts_open, 0);
        let mut losers: Vec<_> =
            node.store().ledger(WARM.1, 10).unwrap().into_iter().map(|e| (e.loser, e.fate)).collect();
        losers.sort();
        losers
    });
    let ledgers: Vec<_> = ledgers.collect();
    assert!(ledgers.iter().all(|ledger| *ledger == ledgers[0] && !ledger.is_empty()), "{ledgers:?}");
    // And the tombstone goes, once every region has heard that every other has it.
    for _ in 0..4 {
        sleep(SOON).await;
        ship_all(&cluster).await;
    }
    let tombstones = |node: &Arc<Node>| -> usize {
        (0..SHARDS).map(|shard| node.store().tombstones(WARM.1, ShardId(shard), b"", 100).unwrap().len()).sum()
    };
    until("the tombstone is forgotten", || cluster.nodes.values().all(|node| tombstones(node) == 0)).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_shipment_goes_on_over_a_cut_link_and_crashes_at_both_ends() {
    let mut cluster = founded().await;
    sleep(SOON).await;
    let large = "x".repeat(20_000);
    // The log of this much is gone by the time it is shipped.
    for key in 0..400 {
        put(cluster.node("a"), &format!("key {key:03}"), &large).await;
    }
    cluster.allow_chunks(3);
    let shipping = tokio::spawn({
        let a = cluster.node("a").clone();
        async move { a.ship(&RequestContext { deadline: Some(Instant::now() + SOON), ..Default::default() }, WARM.0).await }
    });
    let shipped = shipping.await.unwrap().unwrap();
    assert!(shipped.iter().any(|one| !one.is_done), "{shipped:?}");
    cluster.cut("a", "b");
    cluster.allow_chunks(u64::MAX);
    until("c has it", || records(cluster.node("c")) == 400).await;
    cluster.crash("b");
    cluster.start("b");
    cluster.heal();
    until("b has it", || records(cluster.node("b")) == 400).await;
    // What is written meanwhile is found again by a sender that has forgotten what it was about to ship.
    put(cluster.node("a"), "key 007", "new").await;
    cluster.crash("a");
    cluster.start("a");
    agree(&cluster, WARM, 400).await;
    assert_eq!(value(cluster.node("b"), "key 007").await.as_deref(), Some("new"), "a region that starts ships first");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn reads_elsewhere_say_how_old_they_are() {
    let cluster = founded().await;
    sleep(SOON).await;
    let staleness = async |region: &str| {
        read(cluster.node(region), WARM.0, "k", Consistency::Eventual).await.unwrap().staleness.unwrap()
    };
    assert!(staleness("b").await < Duration::from_secs(3), "nobody has written anything");
    put(cluster.node("a"), "k", "v").await;
    sleep(10 * SOON).await;
    assert!(staleness("b").await >= 9 * SOON);
    assert!(staleness("a").await < Duration::from_secs(3), "b and c have written nothing");
    let bounded = Consistency::Bounded(SOON);
    let refused = read(cluster.node("b"), WARM.0, "k", bounded).await;
    assert!(matches!(refused, Err(NodeError::StalenessBoundExceeded { .. })), "{refused:?}");
    ship(cluster.node("a")).await;
    assert!(read(cluster.node("b"), WARM.0, "k", bounded).await.unwrap().reading.is_some());
    sleep(SOON).await;
    assert!(staleness("b").await < Duration::from_secs(3), "it has all there is");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_tier_is_changed_both_ways_under_writes_and_nothing_is_lost() {
    let cluster = founded().await;
    for key in 0..100 {
        put(cluster.node("a"), &format!("early {key}"), "x").await;
    }
    let writers: Vec<_> = THREE
        .map(|region| {
            let node = cluster.node(region).clone();
            tokio::spawn(async move {
                for n in 0..400 {
                    put(&node, &format!("{region} {n}"), "x").await;
                    mutate(&node, WARM.0, "count", Mutation::Increment { field: FieldName::new("n"), amount: 1 })
                        .await
                        .unwrap();
                    sleep(Duration::from_millis(50)).await;
                }
            })
        })
        .into();
    for tier in [Tier::Hot, Tier::Warm(HOUR), Tier::Hot] {
        turn(cluster.node("b"), WARM, tier).await;
        sleep(Duration::from_secs(5)).await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    agree(&cluster, WARM, 100 + 3 * 400 + 1).await;
    let reading = read(cluster.node("c"), WARM.0, "count", Consistency::Eventual).await.unwrap().reading.unwrap();
    assert_eq!(reading.counters[0].1, 1200);
    assert!(cluster.nodes.values().all(|node| node.status().conflicts_open == 0));
    // What was under way when it turned is not left for an hour.
    put(cluster.node("a"), "last", "x").await;
    turn(cluster.node("a"), WARM, Tier::Warm(HOUR)).await;
    agree(&cluster, WARM, 100 + 3 * 400 + 2).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_home_moves_though_its_keyspace_is_shipped_seldom() {
    let cluster = founded().await;
    let ctx = RequestContext::default();
    for key in 0..20 {
        mutate(cluster.node("a"), HOMED.0, &format!("key {key}"), put_of("a's")).await.unwrap();
        mutate(cluster.node("c"), HOMED.0, &format!("other {key}"), put_of("c's")).await.unwrap();
    }
    let request = |what| MoveRequest { keyspace: HOMED.0.to_owned(), what, to: Region::new("b") };
    let moved = cluster.node("a").move_homes(&ctx, request(Moved::Key(Bytes::from("key 3")))).await.unwrap();
    assert_eq!(moved.moved, 1);
    let reply = mutate(cluster.node("b"), HOMED.0, "key 3", put_of("b's")).await.unwrap();
    assert_eq!(reply.home, Some(Region::new("b")));
    // All of them, those too that nobody has shipped to the one that is asked.
    let moved = cluster.node("b").move_homes(&ctx, request(Moved::Prefix(Bytes::new()))).await.unwrap();
    assert_eq!(moved.moved, 39);
    for key in 0..20 {
        let reply = mutate(cluster.node("b"), HOMED.0, &format!("other {key}"), put_of("b's")).await.unwrap();
        assert_eq!((reply.home, reply.served_by), (Some(Region::new("b")), Region::new("b")));
    }
    cluster.shutdown().await;
}

/// The new home answered with what it had: nothing.
#[tokio::test(start_paused = true)]
async fn a_new_home_that_has_not_heard_that_it_is_one_answers_no_strong_read() {
    let cluster = founded().await;
    let mut key = String::new();
    for n in 0..100 {
        key = format!("key {n}");
        let reply = mutate(cluster.node("a"), HASHED.0, &key, put_of("v")).await.unwrap();
        if reply.home == Some(Region::new("a")) {
            break;
        }
    }
    cluster.allow_chunks(0);
    let ctx = RequestContext { deadline: Some(Instant::now() + SOON), ..RequestContext::default() };
    let request =
        MoveRequest { keyspace: HASHED.0.to_owned(), what: Moved::Key(Bytes::from(key.clone())), to: Region::new("b") };
    assert!(cluster.node("a").move_homes(&ctx, request).await.is_err(), "b cannot have heard of it");
    let early = read(cluster.node("b"), HASHED.0, &key, Consistency::Strong).await;
    assert!(matches!(early, Err(NodeError::HomeUnreachable { .. })), "{early:?}");
    cluster.allow_chunks(u64::MAX);
    until("b has heard of it", || keyspace_of(cluster.node("b"), HASHED).records > 0).await;
    let reply = read(cluster.node("b"), HASHED.0, &key, Consistency::Strong).await.unwrap();
    assert_eq!((reply.reading.is_some(), reply.home), (true, Some(Region::new("b"))));
    cluster.shutdown().await;
}

/// It was completed by states and by changes in turn, and either left the other's leavings in its way.
#[tokio::test(start_paused = true)]
async fn a_region_whose_disk_is_restored_takes_all_of_it_and_not_what_has_changed() {
    let mut cluster = founded().await;
    for key in 0..20 {
        put(cluster.node("a"), &format!("key {key}"), "x").await;
        put(cluster.node("b"), &format!("of b {key}"), "x").await;
    }
    ship_all(&cluster).await;
    agree(&cluster, WARM, 40).await;
    sleep(SOON).await;
    ship_all(&cluster).await;
    let older = cluster.disks["b"].crash(isle_store::disk::Crash::KeepSynced, &mut |_| 0);
    for key in 0..20 {
        mutate(cluster.node("a"), WARM.0, &format!("of b {key}"), Mutation::Delete).await.unwrap();
    }
    // Until the tombstones are forgotten everywhere.
    for _ in 0..4 {
        ship_all(&cluster).await;
        sleep(SOON).await;
    }
    let tombstones = |node: &Arc<Node>| -> usize {
        (0..SHARDS).map(|shard| node.store().tombstones(WARM.1, ShardId(shard), b"", 100).unwrap().len()).sum()
    };
    until("the tombstones are forgotten", || cluster.nodes.values().all(|node| tombstones(node) == 0)).await;
    cluster.crash("b");
    cluster.disks.insert("b".to_owned(), older);
    cluster.start("b");
    put(cluster.node("a"), "after", "x").await;
    linked(&cluster).await;
    ship(cluster.node("a")).await;
    agree(&cluster, WARM, 21).await;
    sleep(SOON).await;
    ship_all(&cluster).await;
    agree(&cluster, WARM, 21).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_shipped_in_pieces_and_values_survive() {
    let cluster = founded().await;
    sleep(SOON).await;
    let json = |n: usize| Value::string(&format!("{{\"n\":{n},\"text\":\"{}\"}}", "y".repeat(180)));
    let requests = |round: usize| {
        (0..6000).map(move |n| {
            let key = format!("key {n:05}");
            WriteRequest {
                keyspace: WARM.0.to_owned(),
                ..write_request(&key, Mutation::Put { value: json(n + round) })
            }
        })
    };
    for round in 0..2 {
        let all: Vec<_> = requests(round).collect();
        for some in all.chunks(500) {
            let ctx = RequestContext::default();
            let replies = cluster.node("a").write_batch(&ctx, some.to_vec(), isle_node::Versions::Omitted).await;
            assert!(replies.iter().all(Result::is_ok));
        }
    }
    let before = state_chunks_in(cluster.node("b"), "a");
    ship(cluster.node("a")).await;
    agree(&cluster, WARM, 6000).await;
    let chunks = state_chunks_in(cluster.node("b"), "a") - before;
    assert!(chunks > u64::from(SHARDS), "one piece a shard proves nothing: {chunks}");
    assert_eq!(value(cluster.node("b"), "key 00042").await, Some(String::from_utf8(json(43).bytes.to_vec()).unwrap()));
    cluster.shutdown().await;
}
