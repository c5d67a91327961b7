//! Keyspaces whose keys have homes: writes are forwarded, strong reads are served at the home, and what cannot be is refused.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, put_of, until, write_request};
use isle_model::policy::{HomeRule, Policy, ReadDefault, Replication, Residency, Scope};
use isle_model::{FieldName, KeyspaceId, Mutation, Region};
use isle_node::peer::ToReceiver;
use isle_node::{
    Consistency, GetReply, GetRequest, KeyspaceConfig, LinkState, MoveError, MoveRequest, Moved, NodeConfig, NodeError,
    PreconditionAsked, RequestContext, ScanRequest, Versions, WriteReply, WriteRequest,
};
use isle_store::StoreConfig;

const HOMED: &str = "homed";
const PLACED: &str = "placed";
const SAFE: &str = "safe";
const EUROPEAN: &str = "european";
const OWN: &str = "own";

/// Regions are called after their jurisdictions here: eu, us, ap.
fn keyspaces(config: &mut NodeConfig, _: &mut StoreConfig) {
    let keyspace = |id, name: &str, policy| KeyspaceConfig { id: KeyspaceId(id), name: name.to_owned(), policy };
    let placed = HomeRule::Prefixes([("", "us"), ("eu/", "eu")].map(|(p, r)| (p.to_owned(), Region::new(r))).into());
    let european = Residency::Within { jurisdictions: ["eu".to_owned()].into(), regions: [Region::new("us")].into() };
    config.jurisdiction = config.region.to_string();
    config.peers.iter_mut().for_each(|peer| peer.jurisdiction = peer.region.to_string());
    config.keyspaces.extend([
        keyspace(2, HOMED, Policy::default()),
        keyspace(3, PLACED, Policy { home: Some(placed), read_default: ReadDefault::Strong, ..Policy::default() }),
        keyspace(4, SAFE, Policy { replication: Replication::Sync(2), ..Policy::default() }),
        keyspace(5, EUROPEAN, Policy { residency: european, ..Policy::default() }),
        keyspace(6, OWN, Policy::of_scope(Scope::Local)),
    ]);
}

async fn linked() -> Cluster {
    let cluster = Cluster::tuned(&["ap", "eu", "us"], keyspaces);
    until("all links are up", || {
        cluster.nodes.values().all(|node| {
            let status = node.status();
            status.peers.iter().all(|peer| peer.receiving && peer.staleness.is_some() && peer.state == LinkState::Live)
        })
    })
    .await;
    cluster
}

fn in_keyspace(keyspace: &str, key: &str, value: &str) -> WriteRequest {
    WriteRequest { keyspace: keyspace.to_owned(), ..write_request(key, put_of(value)) }
}

async fn put(cluster: &Cluster, region: &str, keyspace: &str, key: &str, value: &str) -> Result<WriteReply, NodeError> {
    cluster.node(region).write(&RequestContext::default(), in_keyspace(keyspace, key, value)).await
}

async fn read(
    cluster: &Cluster,
    region: &str,
    keyspace: &str,
    key: &str,
    how: Consistency,
) -> Result<GetReply, NodeError> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let asked = GetRequest { keyspace: keyspace.to_owned(), key, consistency: how };
    cluster.node(region).get(&RequestContext::default(), asked).await
}

fn text(reply: &GetReply) -> Option<String> {
    let (_, siblings) = reply.reading.as_ref()?.values.first()?;
    Some(String::from_utf8(siblings[0].value.bytes.to_vec()).unwrap())
}

async fn has(cluster: &Cluster, region: &str, keyspace: &str, key: &str) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while read(cluster, region, keyspace, key, Consistency::Eventual).await.unwrap().reading.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "{key} never reached {region}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_goes_to_the_home_of_its_key_from_anywhere() {
    let cluster = linked().await;
    let created = put(&cluster, "eu", HOMED, "k", "1").await.unwrap();
    assert_eq!((created.home.unwrap().as_str(), created.served_by.as_str()), ("eu", "eu"));
    has(&cluster, "us", HOMED, "k").await;
    let forwarded = put(&cluster, "us", HOMED, "k", "2").await.unwrap();
    assert_eq!((forwarded.home.unwrap().as_str(), forwarded.served_by.as_str()), ("eu", "eu"));
    // The home has it at once, and nobody else wrote: there is no conflict anywhere, ever.
    assert_eq!(text(&read(&cluster, "eu", HOMED, "k", Consistency::Eventual).await.unwrap()).unwrap(), "2");
    cluster.converge(1).await;
    for region in ["ap", "eu", "us"] {
        let reply = read(&cluster, region, HOMED, "k", Consistency::Eventual).await.unwrap();
        assert!(!reply.reading.unwrap().conflict);
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn forwarded_increments_are_each_counted_once() {
    let cluster = linked().await;
    let add = |region: &'static str| {
        let mutation = Mutation::Increment { field: FieldName::new("n"), amount: 1 };
        let request = WriteRequest { keyspace: PLACED.to_owned(), ..write_request("count", mutation) };
        let node = cluster.node(region).clone();
        async move { node.write(&RequestContext::default(), request).await }
    };
    for _ in 0..20 {
        let (a, b, c) = futures::join!(add("ap"), add("eu"), add("us"));
        assert!([&a, &b, &c].into_iter().all(|reply| reply.as_ref().unwrap().served_by.as_str() == "us"));
    }
    let last = add("ap").await.unwrap();
    assert_eq!(last.value, Some(61));
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_finds_its_homes_and_keeps_the_order_of_each_key() {
    let cluster = linked().await;
    let keys = ["eu/1", "x", "eu/1", "x", "eu/2"];
    let asked: Vec<_> = keys.iter().enumerate().map(|(n, key)| in_keyspace(PLACED, key, &n.to_string())).collect();
    let replies = cluster.node("ap").write_batch(&RequestContext::default(), asked, Versions::Shown).await;
    let served: Vec<_> = replies.iter().map(|reply| reply.as_ref().unwrap().served_by.to_string()).collect();
    assert_eq!(served, ["eu", "us", "eu", "us", "eu"]);
    for (key, last) in [("eu/1", "2"), ("x", "3"), ("eu/2", "4")] {
        let reply = read(&cluster, "ap", PLACED, key, Consistency::Strong).await.unwrap();
        assert_eq!(text(&reply).unwrap(), last, "{key}");
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_not_to_be_forwarded_is_told_the_home() {
    let cluster = linked().await;
    let request = WriteRequest { forward: false, ..in_keyspace(PLACED, "eu/1", "v") };
    let error = cluster.node("us").write(&RequestContext::default(), request.clone()).await.unwrap_err();
    assert!(matches!(&error, NodeError::NotHome { home, .. } if home.as_str() == "eu"), "{error}");
    cluster.node("eu").write(&RequestContext::default(), request).await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_creator_may_name_another_home() {
    let cluster = linked().await;
    let home = |region: &str| Some(Region::new(region));
    let request = WriteRequest { home: home("ap"), ..in_keyspace(HOMED, "k", "v") };
    let reply = cluster.node("us").write(&RequestContext::default(), request).await.unwrap();
    assert_eq!((reply.home, reply.served_by.as_str()), (home("ap"), "ap"));
    // One that is there keeps its home, whatever is named.
    has(&cluster, "eu", HOMED, "k").await;
    let request = WriteRequest { home: home("eu"), ..in_keyspace(HOMED, "k", "w") };
    let reply = cluster.node("eu").write(&RequestContext::default(), request).await.unwrap();
    assert_eq!(reply.home, home("ap"));
    for (keyspace, named) in [(HOMED, "mars"), (PLACED, "ap"), (EUROPEAN, "ap"), (OWN, "eu")] {
        let request = WriteRequest { home: home(named), ..in_keyspace(keyspace, "else", "v") };
        let error = cluster.node("us").write(&RequestContext::default(), request).await.unwrap_err();
        assert!(matches!(error, NodeError::BadField { field: "write.home", .. }), "{keyspace}: {error}");
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_strong_read_sees_what_was_acknowledged_before_it_wherever_it_asks() {
    let cluster = linked().await;
    for n in 0..20 {
        // Nobody but its creator has heard of the key yet.
        let key = format!("k{n}");
        put(&cluster, ["ap", "eu", "us"][n % 3], HOMED, &key, "v").await.unwrap();
        for region in ["ap", "eu", "us"] {
            let reply = read(&cluster, region, HOMED, &key, Consistency::Strong).await.unwrap();
            assert_eq!(text(&reply).as_deref(), Some("v"), "{key} in {region}");
            assert_eq!(reply.staleness, Some(Duration::ZERO));
        }
    }
    assert!(read(&cluster, "eu", HOMED, "none", Consistency::Strong).await.unwrap().reading.is_none());
    // The keyspace's default is strong.
    put(&cluster, "eu", PLACED, "x", "v").await.unwrap();
    let reply = read(&cluster, "ap", PLACED, "x", Consistency::Default).await.unwrap();
    assert_eq!((text(&reply).as_deref(), reply.served_by.as_str()), (Some("v"), "us"));
    let refused = read(&cluster, "ap", "default", "x", Consistency::Strong).await.unwrap_err();
    assert!(matches!(refused, NodeError::BadField { field: "read.consistency", .. }), "{refused}");
    let scan = ScanRequest {
        keyspace: PLACED.to_owned(),
        start: Bytes::new(),
        end: None,
        limit: 9,
        bytes_max: 1 << 20,
        consistency: Consistency::Default,
    };
    let refused = cluster.node("ap").scan(&RequestContext::default(), scan).await.unwrap_err();
    assert!(matches!(refused, NodeError::BadField { field: "read.consistency", .. }), "{refused}");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_home_that_cannot_be_reached_leaves_its_keys_readable_and_unwritten() {
    let cluster = linked().await;
    put(&cluster, "eu", HOMED, "k", "1").await.unwrap();
    has(&cluster, "us", HOMED, "k").await;
    cluster.cut("us", "eu");
    until("the cut is noticed", || {
        let status = cluster.node("us").status();
        status.peers.iter().any(|peer| peer.region.as_str() == "eu" && !peer.receiving)
    })
    .await;
    let error = put(&cluster, "us", HOMED, "k", "2").await.unwrap_err();
    assert!(matches!(&error, NodeError::HomeUnreachable { home, .. } if home.as_str() == "eu"), "{error}");
    let error = read(&cluster, "us", HOMED, "k", Consistency::Strong).await.unwrap_err();
    assert!(matches!(&error, NodeError::HomeUnreachable { .. }), "{error}");
    assert_eq!(text(&read(&cluster, "us", HOMED, "k", Consistency::Eventual).await.unwrap()).unwrap(), "1");
    // Others still reach it, and us is home of what it creates.
    put(&cluster, "ap", HOMED, "k", "3").await.unwrap();
    put(&cluster, "us", HOMED, "mine", "1").await.unwrap();
    cluster.heal();
    cluster.converge(2).await;
    put(&cluster, "us", HOMED, "k", "4").await.unwrap();
    cluster.shutdown().await;
}

/// A region that had not heard of a key took a delete of it for one of a key that nobody has, was its home for that moment, and
/// covered what the client's token named: a read at the key's real home did not see the delete. (Simulation, seed 2 of `Holders`.)
#[tokio::test(start_paused = true)]
async fn a_region_is_not_the_home_of_a_key_that_only_the_token_knows() {
    let cluster = linked().await;
    cluster.cut("eu", "us");
    let made = put(&cluster, "eu", HOMED, "k", "1").await.unwrap();
    let incarnation = cluster.node("eu").status().incarnation;
    for mutation in [Mutation::Delete, put_of("2")] {
        let asked = WriteRequest { context: Some(made.version.clone()), ..in_keyspace(HOMED, "k", "") };
        let refused = cluster.node("us").write(&RequestContext::default(), WriteRequest { mutation, ..asked }).await;
        assert_eq!(refused.unwrap_err(), NodeError::SessionNotReached { incarnation });
    }
    cluster.heal();
    has(&cluster, "us", HOMED, "k").await;
    let asked = WriteRequest { context: Some(made.version), ..in_keyspace(HOMED, "k", "2") };
    let written = cluster.node("us").write(&RequestContext::default(), asked).await.unwrap();
    assert_eq!(written.served_by.as_str(), "eu");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_read_is_fetched_at_the_home_or_refused() {
    let cluster = linked().await;
    put(&cluster, "eu", HOMED, "k", "1").await.unwrap();
    has(&cluster, "us", HOMED, "k").await;
    cluster.cut("us", "ap");
    until("what is known of ap is old", || {
        let status = cluster.node("us").status();
        let ap = status.peers.iter().find(|peer| peer.region.as_str() == "ap");
        ap.is_some_and(|peer| peer.staleness.is_some_and(|age| age > Duration::from_secs(6)))
    })
    .await;
    // What ap wrote meanwhile is unknown here, but k's home is eu, and that can be asked.
    let bound = Consistency::Bounded(Duration::from_secs(5));
    let reply = read(&cluster, "us", HOMED, "k", bound).await.unwrap();
    assert_eq!((reply.served_by.as_str(), reply.staleness), ("eu", Some(Duration::ZERO)));
    let refused = read(&cluster, "us", "default", "k", bound).await.unwrap_err();
    assert!(matches!(refused, NodeError::StalenessBoundExceeded { .. }), "{refused}");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_holders_have_to_confirm_waits_for_them() {
    let cluster = linked().await;
    put(&cluster, "eu", SAFE, "k", "1").await.unwrap();
    // Whoever lost the home now would find it in every other region.
    for region in ["ap", "us"] {
        let reply = read(&cluster, region, SAFE, "k", Consistency::Eventual).await.unwrap();
        assert_eq!(text(&reply).as_deref(), Some("1"), "{region} had confirmed it");
    }
    cluster.cut("eu", "ap");
    let deadline = Some(tokio::time::Instant::now() + Duration::from_millis(300));
    let ctx = RequestContext { deadline, ..RequestContext::default() };
    let error = cluster.node("eu").write(&ctx, in_keyspace(SAFE, "k", "2")).await.unwrap_err();
    assert!(matches!(error, NodeError::OutcomeUnknown { .. }), "{error}");
    until("the cut is noticed", || cluster.node("eu").status().peers.iter().any(|peer| peer.state == LinkState::Down))
        .await;
    let error = put(&cluster, "eu", SAFE, "k", "3").await.unwrap_err();
    assert!(matches!(error, NodeError::TooFewHolders { needed: 2, connected: 1 }), "{error}");
    cluster.heal();
    until("the links are up again", || {
        cluster.nodes.values().all(|node| node.status().peers.iter().all(|peer| peer.state == LinkState::Live))
    })
    .await;
    cluster.converge(1).await;
    put(&cluster, "us", SAFE, "k", "4").await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn who_may_not_hold_a_keyspace_neither_sees_nor_forwards_it() {
    let cluster = linked().await;
    for n in 0..50 {
        put(&cluster, ["eu", "us"][n % 2], EUROPEAN, &format!("k{n}"), "v").await.unwrap();
    }
    let refused = put(&cluster, "ap", EUROPEAN, "k", "v").await.unwrap_err();
    let NodeError::ResidencyViolation { holders, .. } = &refused else { panic!("{refused}") };
    assert_eq!(holders.iter().map(Region::as_str).collect::<Vec<_>>(), ["eu", "us"]);
    let refused = read(&cluster, "ap", EUROPEAN, "k1", Consistency::Eventual).await.unwrap_err();
    assert!(matches!(refused, NodeError::ResidencyViolation { .. }), "{refused}");
    assert_eq!(cluster.node("ap").store().get(KeyspaceId(5), b"k1").unwrap(), None);
    // The two that hold it have all of it, and forget its deletes without a word from the third.
    let both = |region: &'static str| {
        let status = cluster.node(region).status();
        status.keyspaces.iter().find(|ks| ks.name == EUROPEAN).map(|ks| (ks.records, ks.digest))
    };
    until("the holders agree", || both("eu").is_some_and(|(records, _)| records == 50) && both("eu") == both("us"))
        .await;
    let delete = WriteRequest { mutation: Mutation::Delete, ..in_keyspace(EUROPEAN, "k0", "") };
    assert!(cluster.node("us").write(&RequestContext::default(), delete).await.unwrap().found);
    let gone = || {
        let kept = |region| cluster.node(region).store().get(KeyspaceId(5), b"k0").unwrap().is_some();
        !kept("eu") && !kept("us")
    };
    until("the tombstone is forgotten", gone).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn local_data_stays_where_it_is_written() {
    let cluster = linked().await;
    for region in ["ap", "eu", "us"] {
        let reply = put(&cluster, region, OWN, "k", region).await.unwrap();
        assert_eq!(reply.home, None);
    }
    put(&cluster, "eu", "default", "after", "v").await.unwrap();
    cluster.converge(2).await;
    for region in ["ap", "eu", "us"] {
        let reply = read(&cluster, region, OWN, "k", Consistency::Eventual).await.unwrap();
        assert_eq!(text(&reply).as_deref(), Some(region));
        assert_eq!(reply.staleness, Some(Duration::ZERO), "nobody else writes it");
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_condition_is_checked_where_the_key_lives() {
    let cluster = linked().await;
    let first = put(&cluster, "eu", HOMED, "k", "1").await.unwrap();
    has(&cluster, "us", HOMED, "k").await;
    let absent = WriteRequest { precondition: PreconditionAsked::Absent, ..in_keyspace(HOMED, "k", "2") };
    let refused = cluster.node("us").write(&RequestContext::default(), absent).await.unwrap_err();
    assert_eq!(refused.to_string(), "the key exists");
    let exact =
        |version| WriteRequest { precondition: PreconditionAsked::Version(version), ..in_keyspace(HOMED, "k", "2") };
    let second = cluster.node("us").write(&RequestContext::default(), exact(first.version.clone())).await.unwrap();
    assert_eq!(second.served_by.as_str(), "eu");
    cluster.node("us").write(&RequestContext::default(), exact(first.version)).await.unwrap_err();
    cluster.node("ap").write(&RequestContext::default(), exact(second.version)).await.unwrap();
    cluster.shutdown().await;
}

/// Writers in every region go on while the key's home goes round; each waits for its answer, and knows how many it was given.
#[tokio::test(start_paused = true)]
async fn a_home_moves_under_its_writers_and_none_is_lost_or_counted_twice() {
    let cluster = linked().await;
    let add = Mutation::Increment { field: FieldName::new("n"), amount: 1 };
    let increment = WriteRequest { keyspace: HOMED.to_owned(), ..write_request("k", add) };
    cluster.node("eu").write(&RequestContext::default(), increment.clone()).await.unwrap();
    has(&cluster, "us", HOMED, "k").await;
    has(&cluster, "ap", HOMED, "k").await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = ["ap", "eu", "us"]
        .map(|region| {
            let (node, stop, increment) = (cluster.node(region).clone(), stop.clone(), increment.clone());
            tokio::spawn(async move {
                let (mut counted, mut longest) = (0, Duration::ZERO);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let began = tokio::time::Instant::now();
                    node.write(&RequestContext::default(), increment.clone()).await.unwrap();
                    longest = longest.max(began.elapsed());
                    counted += 1;
                }
                (counted, longest)
            })
        })
        .into();
    let mut epoch = 0;
    for to in ["us", "ap", "eu", "ap", "us", "us"].repeat(3) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let what = Moved::Key("k".into());
        let asked = MoveRequest { keyspace: HOMED.to_owned(), what, to: Region::new(to) };
        // From wherever: the move itself is forwarded to the home there is.
        let reply = cluster.node("eu").move_homes(&RequestContext::default(), asked).await.unwrap();
        assert!(reply.epoch.0 > epoch, "each move has an epoch of its own");
        epoch = reply.epoch.0;
        let written = cluster.node("ap").write(&RequestContext::default(), increment.clone()).await.unwrap();
        assert_eq!((written.served_by.as_str(), written.home_epoch.0 > 0), (to, true));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut counted = 1 + 18;
    for writer in writers {
        let (some, longest) = writer.await.unwrap();
        assert!(longest < Duration::from_secs(1), "a write waited for {longest:?}");
        counted += some;
    }
    let last = read(&cluster, "ap", HOMED, "k", Consistency::Strong).await.unwrap();
    assert_eq!(last.reading.unwrap().counters, [(FieldName::new("n"), counted)]);
    cluster.converge(1).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_moves_only_to_where_it_may_and_can() {
    let cluster = linked().await;
    put(&cluster, "eu", HOMED, "k", "1").await.unwrap();
    let moved = |keyspace: &str, to: &str| {
        let what = Moved::Key("k".into());
        let asked = MoveRequest { keyspace: keyspace.to_owned(), what, to: Region::new(to) };
        let node = cluster.node("eu").clone();
        async move { node.move_homes(&RequestContext::default(), asked).await }
    };
    for (keyspace, to) in [(HOMED, "mars"), (EUROPEAN, "ap"), (OWN, "us")] {
        let error = moved(keyspace, to).await.unwrap_err();
        assert!(matches!(error, MoveError::Change(_)), "{keyspace} to {to}: {error}");
    }
    assert_eq!(moved(PLACED, "us").await.unwrap().moved, 0, "there is no such key");
    cluster.cut("eu", "us");
    until("the cut is noticed", || {
        let status = cluster.node("eu").status();
        status.peers.iter().any(|peer| peer.region.as_str() == "us" && peer.state == LinkState::Down)
    })
    .await;
    let error = moved(HOMED, "us").await.unwrap_err();
    assert!(matches!(error, MoveError::Stopped { moved: 0, .. }), "{error}");
    assert_eq!(put(&cluster, "eu", HOMED, "k", "2").await.unwrap().served_by.as_str(), "eu", "it is where it was");
    cluster.shutdown().await;
}

/// The third home had heard of the move and not of what the first had written: it took over with what it had, and a strong read
/// showed that. A move brings the whole record.
#[tokio::test(start_paused = true)]
async fn a_third_home_takes_over_with_all_that_the_first_acknowledged() {
    let cluster = linked().await;
    put(&cluster, "eu", HOMED, "k", "0").await.unwrap();
    has(&cluster, "ap", HOMED, "k").await;
    cluster.cut("eu", "ap");
    put(&cluster, "eu", HOMED, "k", "1").await.unwrap();
    put(&cluster, "eu", HOMED, "new", "1").await.unwrap();
    for key in ["k", "new"] {
        for to in ["us", "ap"] {
            let what = Moved::Key(Bytes::copy_from_slice(key.as_bytes()));
            let asked = MoveRequest { keyspace: HOMED.to_owned(), what, to: Region::new(to) };
            // By way of the region that both reach.
            let reply = cluster.node("us").move_homes(&RequestContext::default(), asked).await.unwrap();
            assert_eq!(reply.moved, 1, "{key} to {to}");
        }
        let reply = read(&cluster, "ap", HOMED, key, Consistency::Strong).await.unwrap();
        assert_eq!((text(&reply).as_deref(), reply.served_by.as_str()), (Some("1"), "ap"), "{key}");
    }
    put(&cluster, "ap", HOMED, "k", "2").await.unwrap();
    cluster.heal();
    cluster.converge(2).await;
    for region in ["ap", "eu", "us"] {
        let reply = read(&cluster, region, HOMED, "k", Consistency::Eventual).await.unwrap();
        assert!(!reply.reading.as_ref().unwrap().conflict);
        assert_eq!(text(&reply).as_deref(), Some("2"));
    }
    cluster.shutdown().await;
}

/// The delete is acknowledged and has not come here: the copy here is not the answer.
#[tokio::test(start_paused = true)]
async fn a_strong_read_does_not_show_what_was_deleted_elsewhere() {
    let cluster = linked().await;
    put(&cluster, "eu", HOMED, "k", "1").await.unwrap();
    has(&cluster, "ap", HOMED, "k").await;
    cluster.tamper(
        "eu",
        Some(std::sync::Arc::new(|message| match message {
            // Nothing more comes of eu's writes, though the line is up.
            ToReceiver::Deltas(_) => ToReceiver::Heartbeat { lag_bytes: 0, caught_up: false },
            other => other,
        })),
    );
    let delete = WriteRequest { mutation: Mutation::Delete, ..in_keyspace(HOMED, "k", "") };
    cluster.node("eu").write(&RequestContext::default(), delete).await.unwrap();
    let copy = read(&cluster, "ap", HOMED, "k", Consistency::Eventual).await.unwrap();
    assert_eq!(text(&copy).as_deref(), Some("1"), "it has not heard");
    let newest = read(&cluster, "ap", HOMED, "k", Consistency::Strong).await.unwrap();
    assert!(newest.reading.is_none(), "{newest:?}");
    cluster.tamper("eu", None);
    cluster.shutdown().await;
}
