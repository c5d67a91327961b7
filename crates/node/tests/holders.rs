//! A residency is changed while clients write: who may hold the data no more hands it over and is rid of it, who may hold it since then
//! serves it when all of it is there, and nothing acknowledged is lost, nor brought back.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, SHARDS, put_of, until, write_request};
use isle_model::metadata::{Command, Refused, Step};
use isle_model::policy::{HomeRule, Policy, Residency, Writes};
use isle_model::{FieldKey, FieldName, KeyspaceId, Mutation, Region, ShardId};
use isle_node::{
    ChangeError, Consistency, GetReply, GetRequest, KeyspaceConfig, Node, NodeConfig, NodeError, NodeState,
    RequestContext, WriteReply, WriteRequest,
};
use isle_store::StoreConfig;
use isle_store::disk::Disk;
use tokio::time::Instant;

const THREE: [&str; 3] = ["a", "b", "c"];
const HOMED: (&str, KeyspaceId) = ("homed", KeyspaceId(2));
const HASHED: (&str, KeyspaceId) = ("hashed", KeyspaceId(3));
const SHARED: (&str, KeyspaceId) = ("shared", KeyspaceId(4));

fn keyspaces(config: &mut NodeConfig, storage: &mut StoreConfig) {
    let keyspace = |(name, id): (&str, KeyspaceId), policy| KeyspaceConfig { id, name: name.to_owned(), policy };
    config.keyspaces.extend([
        keyspace(HOMED, Policy::default()),
        keyspace(HASHED, Policy { home: Some(HomeRule::Hash), ..Policy::default() }),
        keyspace(SHARED, Policy { writes: Writes::Anywhere, ..Policy::default() }),
    ]);
    let jurisdiction = |region: &Region| if region.as_str() == "a" { "us" } else { "eu" }.to_owned();
    config.jurisdiction = jurisdiction(&config.region);
    config.peers.iter_mut().for_each(|peer| peer.jurisdiction = jurisdiction(&peer.region));
    // So that nobody's log reaches back to the beginning.
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
    cluster
}

/// Lets these regions alone hold a keyspace.
async fn reside(node: &Node, keyspace: (&str, KeyspaceId), regions: &[&str]) -> Result<(), Refused> {
    let regions = regions.iter().map(|region| Region::new(region)).collect();
    reside_within(node, keyspace, Residency::Within { jurisdictions: [].into(), regions }).await
}

async fn reside_within(node: &Node, (_, id): (&str, KeyspaceId), residency: Residency) -> Result<(), Refused> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let keyspace = node.metadata().keyspaces[&id].clone();
        let policy = Policy { residency: residency.clone(), ..keyspace.policy.clone() };
        let command = Command::Update { id, expected: keyspace.revision, policy };
        match node.change(&RequestContext::default(), command).await {
            Ok(_) => return Ok(()),
            Err(ChangeError::Refused(refused)) => return Err(refused),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

fn step(node: &Node, (_, id): (&str, KeyspaceId), region: &str) -> Option<Step> {
    node.metadata().keyspaces[&id].step(&Region::new(region))
}

async fn reaches(cluster: &Cluster, keyspace: (&str, KeyspaceId), region: &str, wanted: Option<Step>) {
    until(&format!("{region} reaches {wanted:?} in {}", keyspace.0), || {
        cluster.nodes.values().all(|node| step(node, keyspace, region) == wanted)
    })
    .await;
}

async fn mutate(node: &Node, keyspace: &str, key: &str, mutation: Mutation) -> Result<WriteReply, NodeError> {
    let request = WriteRequest { keyspace: keyspace.to_owned(), ..write_request(key, mutation) };
    node.write(&RequestContext::default(), request).await
}

async fn put(node: &Node, keyspace: &str, key: &str, value: &str) -> Result<WriteReply, NodeError> {
    mutate(node, keyspace, key, put_of(value)).await
}

fn increment() -> Mutation {
    Mutation::Increment { field: FieldName::new("n"), amount: 1 }
}

async fn read(node: &Node, keyspace: &str, key: &str, how: Consistency) -> Result<GetReply, NodeError> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let asked = GetRequest { keyspace: keyspace.to_owned(), key, consistency: how };
    node.get(&RequestContext::default(), asked).await
}

async fn has(node: &Node, keyspace: &str, key: &str) -> bool {
    read(node, keyspace, key, Consistency::Eventual).await.unwrap().reading.is_some()
}

/// Writes keys of its own, and one that all write, until told to stop. Returns the keys that were acknowledged, how often the common one
/// was counted up, and the longest that one write took.
fn writer(
    node: &Arc<Node>,
    keyspace: &'static str,
    name: &str,
    stop: &Arc<AtomicBool>,
) -> tokio::task::JoinHandle<(Vec<String>, i64, Duration)> {
    let (node, name, stop) = (node.clone(), name.to_owned(), stop.clone());
    tokio::spawn(async move {
        let (mut acked, mut counted, mut longest) = (Vec::new(), 0, Duration::ZERO);
        for n in 0.. {
            let key = format!("{name}/{n}");
            let began = Instant::now();
            match put(&node, keyspace, &key, "by a writer").await {
                Ok(_) => acked.push(key),
                Err(error) => assert!(is_told_so(&error), "{error:?}"),
            }
            match mutate(&node, keyspace, "common", increment()).await {
                Ok(_) => counted += 1,
                Err(error) => assert!(is_told_so(&error), "{error:?}"),
            }
            longest = longest.max(began.elapsed());
            if stop.load(Relaxed) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        (acked, counted, longest)
    })
}

/// Nothing was done, and the caller is told where to go or to come again.
fn is_told_so(error: &NodeError) -> bool {
    let refused = matches!(error, NodeError::ResidencyViolation { .. } | NodeError::HomeUnreachable { .. });
    refused || matches!(error, NodeError::TakingKeyspace { .. } | NodeError::Remote(_))
}

async fn count(node: &Node, keyspace: &str, key: &str) -> i64 {
    let record = node.store().get(id_of(keyspace), key.as_bytes()).unwrap().unwrap();
    record.counter(&FieldKey::counter("n")).unwrap().value()
}

fn id_of(keyspace: &str) -> KeyspaceId {
    [HOMED, HASHED, SHARED].into_iter().find(|(name, _)| *name == keyspace).unwrap().1
}

fn digest(node: &Node, (name, _): (&str, KeyspaceId)) -> Option<(u64, u128)> {
    let status = node.status();
    let keyspace = status.keyspaces.iter().find(|keyspace| keyspace.name == name)?;
    Some((keyspace.records, keyspace.digest?))
}

async fn agree(cluster: &Cluster, keyspace: (&str, KeyspaceId), regions: &[&str]) {
    until("the holders agree", || {
        let first = digest(cluster.node(regions[0]), keyspace);
        first.is_some() && regions.iter().all(|region| digest(cluster.node(region), keyspace) == first)
    })
    .await;
}

/// Whether any file of a region holds these bytes: its log and checkpoints, as the disk has them.
fn holds_bytes(cluster: &Cluster, region: &str, wanted: &[u8]) -> Vec<String> {
    let disk = &cluster.disks[region];
    let files = |directory: &str| {
        let names = disk.list(directory).unwrap_or_default().into_iter();
        names.map(|name| format!("{directory}/{name}")).collect::<Vec<_>>()
    };
    let holds = |path: &String| disk.read(path).unwrap().windows(wanted.len()).any(|window| window == wanted);
    [files("log"), files("checkpoints")].concat().into_iter().filter(holds).collect()
}

fn has_nothing(node: &Node, (_, id): (&str, KeyspaceId)) -> bool {
    let store = node.store();
    let is_empty = |shard| {
        let state = store.state_chunk(id, ShardId(shard), b"", usize::MAX).unwrap();
        state.records.is_empty() && state.ledger.is_empty() && state.absorbed.is_empty()
    };
    (0..SHARDS).all(is_empty) && store.kept().iter().all(|(kept, _)| *kept != id)
}

#[tokio::test(start_paused = true)]
async fn a_region_that_is_shut_out_hands_over_what_it_took_and_is_rid_of_it() {
    let cluster = founded().await;
    let (a, b, c) = (cluster.node("a"), cluster.node("b"), cluster.node("c"));
    for keyspace in [HOMED, HASHED, SHARED] {
        for n in 0..60 {
            let node = [a, b, c][n % 3];
            put(node, keyspace.0, &format!("old/{n}"), &format!("secret {} {n}", keyspace.0)).await.unwrap();
        }
        agree(&cluster, keyspace, &THREE).await;
        let secret = format!("secret {}", keyspace.0);
        assert!(!holds_bytes(&cluster, "c", secret.as_bytes()).is_empty(), "what is looked for is to be found");
        let stop = Arc::new(AtomicBool::new(false));
        let writers = THREE.map(|region| writer(cluster.node(region), keyspace.0, region, &stop));
        tokio::time::sleep(Duration::from_millis(200)).await;
        reside(b, keyspace, &["a", "b"]).await.unwrap();
        reaches(&cluster, keyspace, "c", Some(Step::Gone)).await;
        let late = put(c, keyspace.0, "late", "x").await;
        let Err(NodeError::ResidencyViolation { holders, .. }) = late else { panic!("{late:?}") };
        assert_eq!(holders, [Region::new("a"), Region::new("b")]);
        let late = read(c, keyspace.0, "old/0", Consistency::Eventual).await;
        assert!(matches!(late, Err(NodeError::ResidencyViolation { .. })));
        // Everybody else writes every key, those whose home was there too.
        for n in 0..60 {
            put([a, b][n % 2], keyspace.0, &format!("old/{n}"), "anew").await.unwrap();
        }
        stop.store(true, Relaxed);
        let mut counted = 0;
        for writer in writers {
            let (acked, counts, longest) = writer.await.unwrap();
            agree(&cluster, keyspace, &["a", "b"]).await;
            for key in acked {
                assert!(has(a, keyspace.0, &key).await, "{key} was acknowledged, and is gone");
            }
            counted += counts;
            assert!(longest < Duration::from_secs(5), "a write waited for {longest:?}");
        }
        agree(&cluster, keyspace, &["a", "b"]).await;
        assert_eq!(count(a, keyspace.0, "common").await, counted);
        if keyspace != SHARED {
            assert_eq!(a.status().conflicts_open, 0, "writes of one key were taken in two regions");
        }
        assert!(has_nothing(c, keyspace));
        assert_eq!(holds_bytes(&cluster, "c", secret.as_bytes()), [""; 0]);
    }
    let states: Vec<NodeState> = cluster.nodes.values().map(|node| node.status().state).collect();
    assert!(states.iter().all(|state| *state == NodeState::Serving), "{states:?}");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_purged_that_a_holder_lacks_however_long_that_is_away() {
    let cluster = founded().await;
    let (a, b, c) = (cluster.node("a"), cluster.node("b"), cluster.node("c"));
    put(c, SHARED.0, "early", "x").await.unwrap();
    agree(&cluster, SHARED, &THREE).await;
    cluster.cut("b", "c");
    put(c, SHARED.0, "late", "x").await.unwrap();
    reside(a, SHARED, &["a", "b"]).await.unwrap();
    reaches(&cluster, SHARED, "c", Some(Step::Handing)).await;
    until("a has it", || digest(a, SHARED).is_some_and(|(records, _)| records == 2)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(step(a, SHARED, "c"), Some(Step::Handing), "b lacks what c took last, or may");
    assert!(!has_nothing(c, SHARED));
    let refused = reside(a, SHARED, &THREE).await;
    let Err(Refused::Faulty { faults }) = refused else { panic!("{refused:?}") };
    assert!(faults[0].rule.contains("c is still giving the data up"), "{faults:?}");
    cluster.heal();
    reaches(&cluster, SHARED, "c", Some(Step::Gone)).await;
    agree(&cluster, SHARED, &["a", "b"]).await;
    assert!(has(b, SHARED.0, "late").await && has_nothing(c, SHARED));
    cluster.shutdown().await;
}

/// It is named as the home of keys that others have written since, and its counters have entries of the same run.
#[tokio::test(start_paused = true)]
async fn a_region_that_was_shut_out_holds_all_of_it_when_it_serves_again() {
    let cluster = founded().await;
    let (a, b, c) = (cluster.node("a"), cluster.node("b"), cluster.node("c"));
    for keyspace in [HOMED, SHARED] {
        for n in 0..90 {
            put(cluster.node(THREE[n % 3]), keyspace.0, &format!("old/{n}"), "x").await.unwrap();
            mutate(c, keyspace.0, &format!("count/{}", n % 9), increment()).await.unwrap();
        }
        agree(&cluster, keyspace, &THREE).await;
        reside(a, keyspace, &["a", "b"]).await.unwrap();
        reaches(&cluster, keyspace, "c", Some(Step::Gone)).await;
        for n in 0..30 {
            mutate(b, keyspace.0, &format!("old/{n}"), Mutation::Delete).await.unwrap();
            mutate(a, keyspace.0, &format!("count/{}", n % 3), increment()).await.unwrap();
        }
        mutate(a, keyspace.0, "count/8", Mutation::Delete).await.unwrap();
        agree(&cluster, keyspace, &["a", "b"]).await;
        cluster.cut("b", "c");
        reside(a, keyspace, &THREE).await.unwrap();
        reaches(&cluster, keyspace, "c", Some(Step::Taking)).await;
        for how in [Consistency::Eventual, Consistency::Strong] {
            let refused = read(c, keyspace.0, "old/50", how).await;
            assert!(matches!(refused, Err(NodeError::TakingKeyspace { .. })), "{refused:?}");
        }
        assert!(matches!(put(c, keyspace.0, "k", "x").await, Err(NodeError::TakingKeyspace { .. })));
        cluster.put("c", &format!("in another, beside {}", keyspace.0), "x").await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(step(a, keyspace, "c"), Some(Step::Taking), "b may have what c lacks, and does not wait for it");
        cluster.heal();
        reaches(&cluster, keyspace, "c", None).await;
        for n in 0..90 {
            assert_eq!(has(c, keyspace.0, &format!("old/{n}")).await, n >= 30, "old/{n}");
        }
        for n in 0..9 {
            put(c, keyspace.0, &format!("new/{n}"), "x").await.unwrap();
            mutate(c, keyspace.0, &format!("count/{n}"), increment()).await.unwrap();
        }
        agree(&cluster, keyspace, &THREE).await;
        for n in 0..9 {
            let expected = match n {
                8 => 1,
                n => 11 + if n < 3 { 10 } else { 0 },
            };
            assert_eq!(count(b, keyspace.0, &format!("count/{n}")).await, expected, "count/{n}");
        }
    }
    assert_eq!(a.status().conflicts_open, 0);
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_over_crashes_of_whoever_is_at_it() {
    let mut cluster = founded().await;
    for n in 0..60 {
        put(cluster.node("c"), HOMED.0, &format!("old/{n}"), "secret x").await.unwrap();
    }
    agree(&cluster, HOMED, &THREE).await;
    let mut wanted = Some(Step::Gone);
    for round in 0..8 {
        let regions: &[&str] = if wanted.is_some() { &["a", "b"] } else { &THREE };
        reside(cluster.node("a"), HOMED, regions).await.unwrap();
        for pause in [0, 20, 60, 150, 400] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            cluster.crash("c");
            cluster.start("c");
        }
        until("it is over", || step(cluster.node("a"), HOMED, "c") == wanted).await;
        reaches(&cluster, HOMED, "c", wanted).await;
        if wanted.is_some() {
            assert!(has_nothing(cluster.node("c"), HOMED), "in round {round}");
            assert_eq!(holds_bytes(&cluster, "c", b"secret"), [""; 0], "in round {round}");
        } else {
            agree(&cluster, HOMED, &THREE).await;
        }
        for n in 0..60 {
            put(cluster.node("b"), HOMED.0, &format!("old/{n}"), "secret y").await.unwrap();
        }
        wanted = if wanted.is_some() { None } else { Some(Step::Gone) };
    }
    assert_eq!(cluster.node("a").status().conflicts_open, 0);
    cluster.shutdown().await;
}

/// The last copy may be with a region that hands over: whoever stays asked those alone that may hold the keyspace.
#[tokio::test(start_paused = true)]
async fn a_region_that_stays_and_loses_its_disk_is_completed_by_the_one_that_hands_over() {
    let mut cluster = founded().await;
    for n in 0..60 {
        put(cluster.node("b"), SHARED.0, &format!("old/{n}"), "x").await.unwrap();
    }
    agree(&cluster, SHARED, &THREE).await;
    reside(cluster.node("a"), SHARED, &["a", "b"]).await.unwrap();
    reaches(&cluster, SHARED, "c", Some(Step::Gone)).await;
    cluster.cut("a", "b");
    put(cluster.node("b"), SHARED.0, "late", "x").await.unwrap();
    reside(cluster.node("c"), SHARED, &["a"]).await.unwrap();
    until("b is to hand it over", || step(cluster.node("c"), SHARED, "b") == Some(Step::Handing)).await;
    cluster.crash("a");
    cluster.disks.insert("a".to_owned(), isle_store::disk::MemoryDisk::new());
    cluster.start("a");
    cluster.heal();
    reaches(&cluster, SHARED, "b", Some(Step::Gone)).await;
    until("a serves", || cluster.node("a").status().state == NodeState::Serving).await;
    assert_eq!(digest(cluster.node("a"), SHARED).map(|(records, _)| records), Some(61));
    assert!(has(cluster.node("a"), SHARED.0, "late").await && has_nothing(cluster.node("b"), SHARED));
    cluster.shutdown().await;
}

/// What it stated last was from before it absorbed them, and nobody asked it for more.
#[tokio::test(start_paused = true)]
async fn a_region_that_hands_over_gives_a_lost_regions_writes_to_those_that_stay() {
    let mut cluster = founded().await;
    put(cluster.node("c"), SHARED.0, "early", "x").await.unwrap();
    agree(&cluster, SHARED, &THREE).await;
    cluster.cut("b", "c");
    cluster.cut("a", "b");
    put(cluster.node("c"), SHARED.0, "late", "x").await.unwrap();
    until("a has it", || digest(cluster.node("a"), SHARED).is_some_and(|(records, _)| records == 2)).await;
    let europe = Residency::Within { jurisdictions: ["eu".to_owned()].into(), regions: [].into() };
    reside_within(cluster.node("a"), SHARED, europe).await.unwrap();
    cluster.crash("c");
    cluster.heal();
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = cluster.node("b").remove_region(&RequestContext::default(), Region::new("c"), true).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    reaches(&cluster, SHARED, "a", Some(Step::Gone)).await;
    assert!(has(cluster.node("b"), SHARED.0, "late").await, "c had acknowledged it, and a had it");
    cluster.shutdown().await;
}

/// From a copy of its directory that was made while it held the data: what turns up is purged, and leaves the disk.
#[tokio::test(start_paused = true)]
async fn what_turns_up_again_where_it_may_not_be_goes_as_it_did_before() {
    let mut cluster = founded().await;
    for n in 0..60 {
        put(cluster.node("c"), HOMED.0, &format!("old/{n}"), "secret x").await.unwrap();
    }
    agree(&cluster, HOMED, &THREE).await;
    let copy = cluster.disks["c"].crash(isle_store::disk::Crash::KeepSynced, &mut |_| 0);
    reside(cluster.node("a"), HOMED, &["a", "b"]).await.unwrap();
    reaches(&cluster, HOMED, "c", Some(Step::Gone)).await;
    cluster.crash("c");
    cluster.disks.insert("c".to_owned(), copy);
    cluster.start("c");
    assert!(!holds_bytes(&cluster, "c", b"secret").is_empty(), "it is there again");
    until("it is rid of it", || {
        has_nothing(cluster.node("c"), HOMED) && holds_bytes(&cluster, "c", b"secret").is_empty()
    })
    .await;
    assert_eq!(step(cluster.node("c"), HOMED, "c"), Some(Step::Gone));
    for n in 0..60 {
        assert!(has(cluster.node("b"), HOMED.0, &format!("old/{n}")).await);
    }
    cluster.put("c", "in another", "x").await.unwrap();
    cluster.shutdown().await;
}
