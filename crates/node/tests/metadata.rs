//! What all regions agree on: clusters of three that are cut, crashed and restarted while keyspaces come and go.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, put_of, until, write_request};
use isle_model::metadata::{Command, Keyspace, Metadata, Refused};
use isle_model::policy::{Policy, Writes};
use isle_node::{ChangeError, Consistency, GetRequest, LinkState, Node, RequestContext, WriteRequest};
use isle_store::disk::{Disk, MemoryDisk};
use tokio::time::Instant;

const THREE: [&str; 3] = ["a", "b", "c"];

fn policy() -> Policy {
    Policy { writes: Writes::Anywhere, ..Policy::default() }
}

async fn change(node: &Node, command: Command) -> Result<Option<Keyspace>, ChangeError> {
    node.change(&RequestContext::default(), command).await
}

async fn create(node: &Node, name: &str) -> Result<Keyspace, ChangeError> {
    let made = change(node, Command::Create { name: name.to_owned(), policy: policy() }).await?;
    Ok(made.unwrap())
}

/// Tries again while the cluster cannot be changed.
async fn create_at_last(node: &Node, name: &str) -> Keyspace {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match create(node, name).await {
            Ok(keyspace) => return keyspace,
            Err(ChangeError::Unavailable { reason }) => assert!(Instant::now() < deadline, "{reason}"),
            Err(other) => panic!("{other}"),
        }
    }
}

fn names(node: &Node) -> BTreeSet<String> {
    node.metadata().keyspaces.values().map(|keyspace| keyspace.name.clone()).collect()
}

fn all_metadata(cluster: &Cluster) -> Vec<Arc<Metadata>> {
    cluster.nodes.values().map(|node| node.metadata()).collect()
}

async fn founded(cluster: &Cluster) {
    until("the cluster is founded", || cluster.nodes.values().all(|node| is_in_touch(node))).await;
}

fn is_in_touch(node: &Node) -> bool {
    let metadata = node.status().metadata;
    metadata.revision > 0 && metadata.leader.is_some() && metadata.has_majority
}

async fn agree(cluster: &Cluster) {
    until("the regions know the same metadata", || {
        let all = all_metadata(cluster);
        all.iter().all(|metadata| **metadata == *all[0])
    })
    .await;
}

fn leader(cluster: &Cluster) -> String {
    let known = cluster.nodes.values().find_map(|node| node.status().metadata.leader);
    known.unwrap().as_str().to_owned()
}

fn others(leader: &str) -> Vec<&'static str> {
    THREE.into_iter().filter(|region| *region != leader).collect()
}

async fn put_in(node: &Node, keyspace: &str, key: &str, value: &str) {
    let request = WriteRequest { keyspace: keyspace.to_owned(), ..write_request(key, put_of(value)) };
    node.write(&RequestContext::default(), request).await.unwrap();
}

async fn holds(node: &Node, keyspace: &str, key: &str) -> bool {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let request = GetRequest { keyspace: keyspace.to_owned(), key, consistency: Consistency::Eventual };
    node.get(&RequestContext::default(), request).await.is_ok_and(|reply| reply.reading.is_some())
}

async fn arrives(cluster: &Cluster, keyspace: &str, key: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    for node in cluster.nodes.values() {
        while !holds(node, keyspace, key).await {
            assert!(Instant::now() < deadline, "{key} of {keyspace} does not arrive at {}", node.status().region);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_keyspace_made_in_any_region_is_known_in_all_and_data_flows_in_it() {
    let cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    for region in THREE {
        let made = create(cluster.node(region), &format!("of-{region}")).await.unwrap();
        assert_eq!(cluster.node(region).metadata().keyspaces[&made.id], made, "it is known where it was made");
        put_in(cluster.node(region), &made.name, "key", "value").await;
        arrives(&cluster, &made.name, "key").await;
    }
    agree(&cluster).await;
    let ids: Vec<u64> = cluster.node("a").metadata().keyspaces.keys().map(|id| id.0).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_single_region_is_its_own_majority() {
    let mut cluster = Cluster::new(&["a"]);
    founded(&cluster).await;
    create(cluster.node("a"), "carts").await.unwrap();
    cluster.crash("a");
    cluster.start("a");
    assert_eq!(names(cluster.node("a")), ["carts", "default"].map(str::to_owned).into());
    create_at_last(cluster.node("a"), "more").await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_outlives_the_leader() {
    let mut cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    let mut acknowledged = BTreeSet::from(["default".to_owned()]);
    for round in 0..6 {
        let down = leader(&cluster);
        let up = others(&down);
        for (n, region) in THREE.into_iter().enumerate() {
            let name = format!("ks-{round}-{n}");
            create_at_last(cluster.node(region), &name).await;
            acknowledged.insert(name);
        }
        // Right behind the last acknowledgement: nobody but the majority need know.
        cluster.crash(&down);
        let name = format!("ks-{round}-without");
        create_at_last(cluster.node(up[round % 2]), &name).await;
        acknowledged.insert(name);
        assert_ne!(leader_of(cluster.node(up[round % 2])), down);
        cluster.start(&down);
        founded(&cluster).await;
        agree(&cluster).await;
        assert_eq!(names(cluster.node(&down)), acknowledged);
    }
    cluster.shutdown().await;
}

fn leader_of(node: &Node) -> String {
    node.status().metadata.leader.unwrap().as_str().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_shut_down_is_followed_by_another() {
    let mut cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    let down = leader(&cluster);
    cluster.nodes.remove(&down).unwrap().shutdown().await;
    let made = create_at_last(cluster.node(others(&down)[0]), "carts").await;
    cluster.start(&down);
    until("it has caught up", || cluster.node(&down).metadata().keyspaces.contains_key(&made.id)).await;
    cluster.shutdown().await;
}

/// Cut off once as the leader and once as another region: either way it serves, says how it stands, and refuses in time.
#[tokio::test(start_paused = true)]
async fn a_region_without_a_majority_serves_on_and_refuses_changes_in_time() {
    let cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    let first = create(cluster.node("a"), "carts").await.unwrap();
    agree(&cluster).await;
    for leads in [true, false] {
        let alone = if leads { leader(&cluster) } else { others(&leader(&cluster))[0].to_owned() };
        let rest: Vec<&str> = others(&alone);
        rest.iter().for_each(|other| cluster.cut(&alone, other));
        until("it says that it hears no majority", || !cluster.node(&alone).status().metadata.has_majority).await;
        put_in(cluster.node(&alone), "carts", &format!("alone-{leads}"), "value").await;
        assert!(holds(cluster.node(&alone), "carts", &format!("alone-{leads}")).await);

        let asked = Instant::now();
        let refused = create(cluster.node(&alone), "refused").await;
        assert!(matches!(refused, Err(ChangeError::Unavailable { .. })), "{refused:?}");
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        let ctx =
            RequestContext { deadline: Some(Instant::now() + Duration::from_secs(1)), ..RequestContext::default() };
        let asked = Instant::now();
        let command = Command::Delete { id: first.id, expected: None };
        let refused = cluster.node(&alone).change(&ctx, command).await;
        assert!(matches!(refused, Err(ChangeError::Unavailable { .. })), "{refused:?}");
        assert!(asked.elapsed() <= Duration::from_secs(1), "{:?}", asked.elapsed());

        let made = create_at_last(cluster.node(rest[0]), &format!("meanwhile-{leads}")).await;
        assert!(!cluster.node(&alone).metadata().keyspaces.contains_key(&made.id));
        cluster.heal();
        until("it has caught up", || cluster.node(&alone).metadata().keyspaces.contains_key(&made.id)).await;
        founded(&cluster).await;
        arrives(&cluster, "carts", &format!("alone-{leads}")).await;
    }
    agree(&cluster).await;
    assert!(!names(cluster.node("a")).contains("refused"));
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_known_is_there_before_any_peer_is_reached() {
    let mut cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    create(cluster.node("b"), "carts").await.unwrap();
    agree(&cluster).await;
    let known = cluster.node("a").metadata();
    THREE.iter().for_each(|region| cluster.crash(region));
    for region in THREE {
        cluster.start(region);
        assert_eq!(cluster.node(region).metadata(), known, "{region}");
        put_in(cluster.node(region), "carts", region, "value").await;
    }
    create_at_last(cluster.node("c"), "more").await;
    for region in THREE {
        arrives(&cluster, "carts", region).await;
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn of_two_creations_of_one_name_one_wins() {
    let cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    for round in 0..5 {
        let name = format!("ks-{round}");
        let all = THREE.map(|region| create(cluster.node(region), &name));
        let outcomes = futures::future::join_all(all).await;
        let made = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let exists = |outcome: &&Result<Keyspace, ChangeError>| {
            matches!(outcome, Err(ChangeError::Refused(Refused::Exists { .. })))
        };
        assert_eq!((made, outcomes.iter().filter(exists).count()), (1, 2), "{outcomes:?}");
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_region_away_for_longer_than_the_log_catches_up_by_snapshot() {
    let mut cluster = Cluster::tuned(&THREE, |node, _| node.metadata_log_entries = 8);
    founded(&cluster).await;
    cluster.crash("c");
    let mut last = create_at_last(cluster.node("a"), "first").await;
    for n in 0..60 {
        last = create_at_last(cluster.node("a"), &format!("ks-{n}")).await;
        if n % 3 == 0 {
            change(cluster.node("b"), Command::Delete { id: last.id, expected: None }).await.unwrap();
        }
    }
    let entries = |region: &str| {
        let stored = String::from_utf8(cluster.disks[region].read("METADATA").unwrap()).unwrap();
        stored.matches("Normal").count()
    };
    // What the leader is about to send to the one that is away it drops when it has given that up for a while.
    until("the log is cut", || entries("a") <= 12 && entries("b") <= 12).await;
    cluster.start("c");
    until("it has caught up", || cluster.node("c").metadata().keyspaces.contains_key(&last.id)).await;
    agree(&cluster).await;
    let known = cluster.node("c").metadata();
    cluster.crash("c");
    cluster.start("c");
    assert_eq!(cluster.node("c").metadata(), known, "and stored it");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_region_with_a_new_disk_takes_the_metadata_from_the_others() {
    let mut cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    let made = create(cluster.node("a"), "carts").await.unwrap();
    agree(&cluster).await;
    cluster.crash("c");
    cluster.disks.insert("c".to_owned(), MemoryDisk::new());
    cluster.start("c");
    assert_eq!(cluster.node("c").metadata().revision, 0);
    until("it knows", || cluster.node("c").metadata().keyspaces.contains_key(&made.id)).await;
    agree(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_is_not_promised_and_is_taken_up_again() {
    let cluster = Cluster::new(&THREE);
    founded(&cluster).await;
    let down = leader(&cluster);
    cluster.disks[&down].set_capacity(Some(cluster.disks[&down].used()));
    let lost = create(cluster.node(others(&down)[0]), "lost").await;
    assert!(matches!(lost, Err(ChangeError::OutcomeUnknown { .. })), "{lost:?}");
    let made = create_at_last(cluster.node(others(&down)[0]), "carts").await;
    cluster.disks[&down].set_capacity(None);
    until("it has caught up", || cluster.node(&down).metadata().keyspaces.contains_key(&made.id)).await;
    founded(&cluster).await;
    cluster.shutdown().await;
}

fn link(cluster: &Cluster, from: &str, to: &str) -> LinkState {
    let status = cluster.node(from).status();
    status.peers.iter().find(|peer| peer.region.as_str() == to).unwrap().state
}

/// A peer that was to take the state of a keyspace went on being NEEDS_STATE when the keyspace was deleted: nobody gives the
/// state of what is not there, and nobody asks to go on from it. So did its log hold.
#[tokio::test(start_paused = true)]
async fn nothing_waits_for_the_state_of_a_keyspace_that_is_deleted() {
    let cluster = Cluster::tuned(&THREE, |node, _| node.log_budget_bytes = 256 << 10);
    founded(&cluster).await;
    let doomed = create(cluster.node("a"), "doomed").await.unwrap();
    agree(&cluster).await;
    cluster.cut("c", "a");
    cluster.cut("c", "b");
    let value = "v".repeat(2000);
    for n in 0..1500 {
        put_in(cluster.node("a"), "doomed", &format!("key-{n}"), &value).await;
    }
    until("the log is trimmed though c is away", || cluster.node("a").store().log_bytes() < 2 << 20).await;
    cluster.allow_chunks(0);
    cluster.heal();
    until("c is to take a state", || link(&cluster, "a", "c") == LinkState::NeedsState).await;
    change(cluster.node("b"), Command::Delete { id: doomed.id, expected: None }).await.unwrap();
    until("nobody waits any more", || link(&cluster, "a", "c") == LinkState::Live).await;
    cluster.put("a", "after", "x").await.unwrap();
    until("c goes on", || cluster.node("c").status().records == 1).await;
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_state_is_taken_though_the_keyspace_changes_meanwhile() {
    let mut cluster = Cluster::tuned(&THREE, |node, _| node.log_budget_bytes = 256 << 10);
    founded(&cluster).await;
    let mut keyspace = create(cluster.node("a"), "carts").await.unwrap();
    agree(&cluster).await;
    cluster.crash("c");
    let value = "v".repeat(2000);
    for n in 0..1500 {
        put_in(cluster.node("a"), "carts", &format!("key-{n}"), &value).await;
    }
    until("the log is trimmed though c is away", || cluster.node("a").store().log_bytes() < 2 << 20).await;
    cluster.start("c");
    for n in 0..40 {
        let labels = [("n".to_owned(), n.to_string())].into();
        let policy = Policy { labels, ..keyspace.policy.clone() };
        let update = Command::Update { id: keyspace.id, expected: keyspace.revision, policy };
        keyspace = change(cluster.node("b"), update).await.unwrap().unwrap();
    }
    cluster.converge(1500).await;
    until("the links are live", || {
        THREE.iter().all(|from| others(from).iter().all(|to| link(&cluster, from, to) == LinkState::Live))
    })
    .await;
    cluster.shutdown().await;
}
