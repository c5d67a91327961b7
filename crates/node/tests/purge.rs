//! A keyspace is deleted: its data goes in every region, also in one that was away, and nobody takes that for a loss.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, KEYSPACE, SHARDS, delete, put_of, until, write_request};
use isle_model::metadata::{Command, Keyspace};
use isle_model::policy::{Policy, Writes};
use isle_model::{KeyspaceId, Mutation, ShardId};
use isle_node::{Consistency, GetRequest, LinkState, Node, NodeError, NodeState, RequestContext, WriteRequest};
use isle_store::disk::Crash;
use tokio::time::Instant;

const THREE: [&str; 3] = ["a", "b", "c"];

async fn change(node: &Node, command: Command) -> Option<Keyspace> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match node.change(&RequestContext::default(), command.clone()).await {
            Ok(changed) => return changed,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

async fn create(cluster: &Cluster, region: &str, name: &str) -> KeyspaceId {
    let policy = Policy { writes: Writes::Anywhere, ..Policy::default() };
    let made = change(cluster.node(region), Command::Create { name: name.to_owned(), policy }).await.unwrap();
    until("it is known everywhere", || {
        cluster.nodes.values().all(|node| node.metadata().keyspaces.contains_key(&made.id))
    })
    .await;
    made.id
}

async fn drop_keyspace(node: &Node, id: KeyspaceId) {
    change(node, Command::Delete { id, expected: None }).await;
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

async fn mutate(node: &Node, keyspace: &str, key: &str, mutation: Mutation) -> Result<(), NodeError> {
    let request = WriteRequest { keyspace: keyspace.to_owned(), ..write_request(key, mutation) };
    node.write(&RequestContext::default(), request).await.map(drop)
}

async fn get(node: &Node, keyspace: &str, key: &str) -> bool {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let request = GetRequest { keyspace: keyspace.to_owned(), key, consistency: Consistency::Eventual };
    node.get(&RequestContext::default(), request).await.unwrap().reading.is_some()
}

/// Records, deletes and conflicts in two keyspaces, written in every region; what is written when links are cut differs.
async fn fill(cluster: &Cluster, names: &[&str], round: &str) {
    for name in names {
        for (n, region) in THREE.iter().enumerate() {
            let node = cluster.node(region);
            for key in 0..20 {
                mutate(node, name, &format!("{round}-{n}-{key}"), put_of("value")).await.unwrap();
                mutate(node, name, &format!("{round}-{key}"), put_of(region)).await.unwrap();
            }
            mutate(node, name, &format!("{round}-{n}-0"), Mutation::Delete).await.unwrap();
        }
    }
}

/// Whether a region's storage has nothing of a keyspace, and its status says so.
fn has_nothing(node: &Node, id: KeyspaceId) -> bool {
    let store = node.store();
    let has_records = (0..SHARDS).map(ShardId).any(|shard| {
        let state = store.state_chunk(id, shard, b"", usize::MAX).unwrap();
        !state.records.is_empty() || !state.ledger.is_empty() || !state.absorbed.is_empty()
    });
    !has_records
        && store.kept().iter().all(|(kept, _)| *kept != id)
        && store.all_streams().iter().all(|((kept, _), _)| *kept != id)
        && store.transfers().iter().all(|((kept, _), _)| *kept != id)
        && store.stats().keyspaces.iter().all(|stats| stats.id != id)
        && store.purging().is_empty()
        && node.status().keyspaces_purging == 0
}

async fn purged(cluster: &Cluster, id: KeyspaceId) {
    until("nothing of it is left anywhere", || cluster.nodes.values().all(|node| has_nothing(node, id))).await;
}

/// All serve, are linked, agree, and nobody waits for anybody.
async fn settled(cluster: &Cluster) {
    until("all regions agree and nobody waits", || {
        let all: Vec<_> = cluster.nodes.values().map(|node| node.status()).collect();
        let is_settled = |status: &isle_node::NodeStatus| {
            status.state == NodeState::Serving
                && status.peers.iter().all(|peer| {
                    peer.receiving
                        && peer.state == LinkState::Live
                        && (peer.lag_bytes, peer.quarantined) == (0, 0)
                        && peer.staleness.is_some_and(|age| age < Duration::from_secs(5))
                        && peer.keyspaces_waiting.is_empty()
                })
        };
        all.iter().all(|s| is_settled(s) && s.digest.is_some() && s.digest == all[0].digest)
    })
    .await;
}

/// Fails as soon as a region takes itself to be behind, or stops.
fn watch(cluster: &Cluster) -> Watch {
    let wrong: Arc<parking_lot::Mutex<Option<String>>> = Arc::default();
    let over = Arc::new(AtomicBool::new(false));
    let nodes: Vec<_> = cluster.nodes.values().cloned().collect();
    let task = tokio::spawn({
        let (wrong, over) = (wrong.clone(), over.clone());
        async move {
            while !over.load(Relaxed) {
                for node in &nodes {
                    let status = node.status();
                    if matches!(status.state, NodeState::Completing | NodeState::Stopped { .. }) {
                        wrong.lock().get_or_insert(format!("{} is {:?}", status.region, status.state));
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    Watch { wrong, over, task }
}

struct Watch {
    wrong: Arc<parking_lot::Mutex<Option<String>>>,
    over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    async fn end(self) {
        self.over.store(true, Relaxed);
        self.task.await.unwrap();
        assert_eq!(*self.wrong.lock(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_writers_still_write_into_a_deleted_keyspace_goes_with_it_in_every_region() {
    let cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    let id = create(&cluster, "a", "carts").await;
    fill(&cluster, &["carts", "default"], "first").await;
    settled(&cluster).await;
    let watch = watch(&cluster);
    let writers: Vec<_> = THREE
        .iter()
        .flat_map(|region| (0..4).map(move |n| (*region, n)))
        .map(|(region, n)| {
            let node = cluster.node(region).clone();
            tokio::spawn(async move {
                let mut refused = 0;
                for round in 0..400 {
                    let key = format!("{region}-{n}-{round}");
                    mutate(&node, "default", &key, put_of("value")).await.unwrap();
                    match mutate(&node, "carts", &key, put_of("value")).await {
                        Ok(()) => {}
                        Err(NodeError::UnknownKeyspace { .. }) => refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                refused
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop_keyspace(cluster.node("b"), id).await;
    let mut refused = 0;
    for writer in writers {
        refused += writer.await.unwrap();
    }
    assert!(refused > 0, "the writers were done before it was deleted");
    purged(&cluster, id).await;
    settled(&cluster).await;
    watch.end().await;
    assert!(get(cluster.node("c"), "default", "a-0-399").await);
    // Under the same name another one begins, empty.
    let again = create(&cluster, "c", "carts").await;
    assert!(again > id);
    for region in THREE {
        assert!(!get(cluster.node(region), "carts", "first-0-1").await);
    }
    mutate(cluster.node("a"), "carts", "first-0-1", put_of("new")).await.unwrap();
    settled(&cluster).await;
    for region in THREE {
        let status = cluster.node(region).status();
        let carts = status.keyspaces.iter().find(|keyspace| keyspace.name == "carts").unwrap();
        assert_eq!((carts.id, carts.records), (again, 1), "{region}");
    }
    cluster.shutdown().await;
}

/// It goes on taking writes, and comes back with more of it than the others ever had.
#[tokio::test(start_paused = true)]
async fn a_region_that_was_cut_off_purges_when_it_hears_of_it() {
    let cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    let id = create(&cluster, "a", "carts").await;
    fill(&cluster, &["carts", "default"], "first").await;
    settled(&cluster).await;
    cluster.cut("c", "a");
    cluster.cut("c", "b");
    let watch = watch(&cluster);
    fill(&cluster, &["carts", "default"], "apart").await;
    drop_keyspace(cluster.node("a"), id).await;
    until("the others have purged it", || ["a", "b"].iter().all(|region| has_nothing(cluster.node(region), id))).await;
    assert!(!has_nothing(cluster.node("c"), id), "it has not heard of it");
    mutate(cluster.node("c"), "carts", "alone", put_of("value")).await.unwrap();
    delete(cluster.node("b"), "first-1-1").await.unwrap();
    cluster.heal();
    purged(&cluster, id).await;
    settled(&cluster).await;
    watch.end().await;
    cluster.shutdown().await;
}

/// The others have purged by the time it starts, and it has not: then it has, and they are restarted in their turn.
#[tokio::test(start_paused = true)]
async fn a_region_that_was_down_purges_when_it_is_back_and_restarts_in_any_order_are_no_loss() {
    let mut cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    let id = create(&cluster, "a", "carts").await;
    fill(&cluster, &["carts", "default"], "first").await;
    settled(&cluster).await;
    cluster.crash("c");
    drop_keyspace(cluster.node("a"), id).await;
    until("the others have purged it", || ["a", "b"].iter().all(|region| has_nothing(cluster.node(region), id))).await;
    cluster.crash("b");
    cluster.start("c");
    // Of the three only a knows; b, which knows as well, is down: there is no majority but with c.
    purged(&cluster, id).await;
    cluster.start("b");
    settled(&cluster).await;
    for region in THREE {
        cluster.crash(region);
        cluster.start(region);
        let watch = watch(&cluster);
        mutate(cluster.node(region), "default", region, put_of("value")).await.unwrap();
        settled(&cluster).await;
        purged(&cluster, id).await;
        watch.end().await;
    }
    cluster.shutdown().await;
}

/// The metadata travels by its own messages: a region may have purged while a peer, and its own last word to that, still know
/// the keyspace. The links are broken again and again meanwhile, so that the two greet each other in every state.
#[tokio::test(start_paused = true)]
async fn whoever_greets_whom_before_or_after_a_purge_neither_is_behind_or_refused() {
    for round in 0..12u64 {
        let mut cluster = Cluster::new(&THREE);
        founded(&cluster).await;
        let id = create(&cluster, "a", "carts").await;
        fill(&cluster, &["carts", "default"], "first").await;
        let watch = watch(&cluster);
        drop_keyspace(cluster.node(THREE[round as usize % 3]), id).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(2500) {
            cluster.cut("a", "b");
            cluster.cut("b", "c");
            tokio::time::sleep(Duration::from_millis(7 + round)).await;
            cluster.heal();
            tokio::time::sleep(Duration::from_millis(60 + 11 * round)).await;
        }
        watch.end().await;
        // And who starts anew in the midst of it.
        cluster.crash("b");
        cluster.start("b");
        purged(&cluster, id).await;
        settled(&cluster).await;
        cluster.shutdown().await;
    }
}

/// Its disk is that of before the delete, and of before the last writes: it is behind in both keyspaces. Of the one that is gone
/// nobody gives it anything any more, and it must not wait for that.
#[tokio::test(start_paused = true)]
async fn a_restored_disk_is_completed_though_nobody_has_the_deleted_keyspace_any_more() {
    let mut cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    let id = create(&cluster, "a", "carts").await;
    fill(&cluster, &["carts", "default"], "first").await;
    settled(&cluster).await;
    let backup = cluster.disks["c"].crash(Crash::KeepSynced, &mut |_| 0);
    fill(&cluster, &["carts", "default"], "second").await;
    settled(&cluster).await;
    cluster.crash("c");
    drop_keyspace(cluster.node("a"), id).await;
    // One of the two that c meets has not purged yet, nor heard of it: it remembers what c once had.
    cluster.cut("a", "b");
    cluster.disks.insert("c".to_owned(), backup);
    cluster.start("c");
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.heal();
    until("it serves", || cluster.node("c").status().state == NodeState::Serving).await;
    purged(&cluster, id).await;
    settled(&cluster).await;
    assert!(get(cluster.node("c"), "default", "second-0-1").await);
    cluster.shutdown().await;
}

/// A transfer of a keyspace's state has come to a halt half way when the keyspace is deleted.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_the_state_of_a_keyspace_that_is_gone() {
    let mut cluster = Cluster::tuned(&THREE, |node, _| node.log_budget_bytes = 256 << 10);
    founded(&cluster).await;
    let id = create(&cluster, "a", "carts").await;
    settled(&cluster).await;
    cluster.cut("c", "a");
    cluster.cut("c", "b");
    let value = "v".repeat(4000);
    for n in 0..2400 {
        mutate(cluster.node(["a", "b"][n % 2]), "carts", &format!("key-{n}"), put_of(&value)).await.unwrap();
    }
    for region in ["a", "b"] {
        let store = cluster.node(region).store();
        until("the log is trimmed though c is away", || store.log_bytes() < 2 << 20).await;
    }
    cluster.allow_chunks(1);
    cluster.heal();
    until("c has taken a part", || !cluster.node("c").store().transfers().is_empty()).await;
    let needs = |region: &str| cluster.node(region).status().peers.iter().any(|p| p.state == LinkState::NeedsState);
    until("the others wait for c to take the rest", || needs("a") || needs("b")).await;
    drop_keyspace(cluster.node("a"), id).await;
    purged(&cluster, id).await;
    cluster.allow_chunks(u64::MAX);
    settled(&cluster).await;
    mutate(cluster.node("a"), "default", "after", put_of("value")).await.unwrap();
    settled(&cluster).await;
    assert!(get(cluster.node("c"), "default", "after").await);
    // The log is not kept for what will never be confirmed.
    for region in ["a", "b"] {
        let store = cluster.node(region).store();
        until("the log is trimmed", || store.log_bytes() <= 1 << 20).await;
    }
    // So it is over a restart.
    cluster.crash("c");
    cluster.start("c");
    purged(&cluster, id).await;
    settled(&cluster).await;
    cluster.shutdown().await;
}

/// What a configuration says is nobody's decision: a region that starts with an empty disk, or alone, purges nothing of what it
/// holds by it, and nothing of ids that were never given.
#[tokio::test(start_paused = true)]
async fn a_configuration_purges_nothing() {
    let cluster = Cluster::tuned(&THREE, |node, _| {
        if node.region.as_str() == "c" {
            // Only c's file has it, with an id above all: it waits there for the cluster to make it.
            let own = isle_node::KeyspaceConfig {
                id: KeyspaceId(40),
                name: "own".to_owned(),
                policy: Policy { writes: Writes::Anywhere, ..Policy::default() },
            };
            node.keyspaces.push(own);
        }
    });
    for other in ["a", "b"] {
        cluster.cut("c", other);
    }
    mutate(cluster.node("c"), "own", "key", put_of("value")).await.unwrap();
    mutate(cluster.node("c"), "default", "key", put_of("value")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let has = |id: KeyspaceId| cluster.node("c").store().kept().iter().any(|(kept, _)| *kept == id);
    assert!(has(KeyspaceId(40)) && has(KEYSPACE));
    cluster.heal();
    founded(&cluster).await;
    assert!(cluster.node("c").metadata().id_max < 40, "c was not the founder");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(has(KeyspaceId(40)) && has(KEYSPACE), "an id above all was never given");
    assert_eq!(cluster.node("c").status().keyspaces_purging, 0);
    cluster.shutdown().await;
}
