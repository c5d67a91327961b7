//! One region: what is accepted, refused, and answered when.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, delete, increment, put, put_of, until, write_request};
use isle_node::{
    Consistency, NodeError, NodeState, PreconditionAsked, RequestContext, ScanRequest, Versions, WriteRequest,
};
use tokio::time::Instant;

fn ctx() -> RequestContext {
    RequestContext::default()
}

#[tokio::test(start_paused = true)]
async fn a_write_is_read_and_scanned() {
    let cluster = Cluster::new(&["a"]);
    let node = cluster.node("a");
    for n in 0..25 {
        put(node, &format!("key-{n:02}"), &format!("value {n}")).await.unwrap();
    }
    assert_eq!(increment(node, "counter", 5).await.unwrap().value, Some(5));
    assert_eq!(increment(node, "counter", -7).await.unwrap().value, Some(-2));
    delete(node, "key-03").await.unwrap();
    assert_eq!(cluster.get("a", "key-04").await.as_deref(), Some("value 4"));
    assert_eq!(cluster.get("a", "key-03").await, None);
    let mut keys = Vec::new();
    let mut start = Bytes::from_static(b"key-");
    loop {
        let request = ScanRequest {
            keyspace: "default".to_owned(),
            start,
            end: Some(Bytes::from_static(b"key-20")),
            limit: 7,
            bytes_max: 1 << 20,
            consistency: Consistency::Eventual,
        };
        let page = node.scan(&ctx(), request).await.unwrap();
        keys.extend(page.rows.into_iter().map(|row| row.key));
        match page.next {
            Some(next) => start = next,
            None => break,
        }
    }
    assert_eq!(keys.len(), 19);
    assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn preconditions_see_the_newest_state_and_name_the_current_version() {
    let cluster = Cluster::new(&["a"]);
    let node = cluster.node("a");
    let absent =
        |value: &str| WriteRequest { precondition: PreconditionAsked::Absent, ..write_request("key", put_of(value)) };
    // Both are planned before either is durable: the second sees the first all the same.
    let (ctx_1, ctx_2) = (ctx(), ctx());
    let (first, second) = tokio::join!(node.write(&ctx_1, absent("1")), node.write(&ctx_2, absent("2")));
    let version = first.unwrap().version;
    assert_eq!(second, Err(NodeError::KeyExists { current: version.clone() }));
    let conditional = |token: Bytes| WriteRequest {
        precondition: PreconditionAsked::Version(token),
        ..write_request("key", put_of("3"))
    };
    let next = node.write(&ctx(), conditional(version.clone())).await.unwrap().version;
    assert_eq!(node.write(&ctx(), conditional(version)).await, Err(NodeError::VersionMismatch { current: next }));
    let forged = conditional(Bytes::from_static(b"not one of ours, and long enough to hold a MAC"));
    assert!(matches!(node.write(&ctx(), forged).await, Err(NodeError::BadToken { field: "if_version", .. })));
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_yet_or_unknown_is_said() {
    let cluster = Cluster::new(&["a"]);
    let node = cluster.node("a");
    let with_id = WriteRequest { request_id: "r-1".to_owned(), ..write_request("key", put_of("x")) };
    assert_eq!(node.write(&ctx(), with_id).await, Err(NodeError::Unimplemented { what: "request_id" }));
    let elsewhere = WriteRequest { keyspace: "no such".to_owned(), ..write_request("key", put_of("x")) };
    let error = node.write(&ctx(), elsewhere).await.unwrap_err();
    assert_eq!(error, NodeError::UnknownKeyspace { name: "no such".to_owned(), known: vec!["default".to_owned()] });
    assert!(matches!(put(node, "", "x").await, Err(NodeError::BadField { field: "key", .. })));
    assert_eq!(node.status().records, 0);
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_before_anything_is_appended() {
    let cluster = Cluster::tuned(&["a"], |node, _| node.queue_bytes_max = 64 << 10);
    let node = cluster.node("a");
    let appended = node.store().appended();
    let value = "v".repeat(10_000);
    let requests = (0..100).map(|n| write_request(&format!("key-{n}"), put_of(&value))).collect();
    let replies = node.write_batch(&ctx(), requests, Versions::Shown).await;
    let refused = replies.iter().filter(|r| matches!(r, Err(NodeError::Overloaded { .. }))).count();
    let taken = replies.iter().filter(|r| r.is_ok()).count();
    assert!(refused > 0 && taken > 0 && refused + taken == 100, "{refused} refused, {taken} taken");
    assert!(node.store().appended() > appended);
    until("only what was taken is there", || node.status().records == taken as u64).await;
    assert_eq!(node.counters().refused.get(), refused as u64);
    // There is room again.
    put(node, "later", "x").await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_deadline_is_never_appended() {
    let cluster = Cluster::new(&["a"]);
    let node = cluster.node("a");
    let appended = node.store().appended();
    let past = RequestContext { deadline: Some(Instant::now()), ..ctx() };
    assert_eq!(node.write(&past, write_request("key", put_of("x"))).await, Err(NodeError::DeadlineExpired));
    assert_eq!(node.store().appended(), appended);
    // One that passes while the commit is awaited says so, and the write may well be there.
    let soon = RequestContext { deadline: Some(Instant::now() + Duration::from_nanos(1)), ..ctx() };
    let error = node.write(&soon, write_request("key", put_of("x"))).await.unwrap_err();
    assert!(matches!(error, NodeError::OutcomeUnknown { .. } | NodeError::DeadlineExpired), "{error}");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_and_resumes() {
    let cluster = Cluster::new(&["a"]);
    let node = cluster.node("a");
    put(node, "before", "x").await.unwrap();
    cluster.disks["a"].set_capacity(Some(cluster.disks["a"].used()));
    let value = "v".repeat(50_000);
    let mut taken = 1;
    let error = loop {
        match put(node, &format!("key-{taken}"), &value).await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 1000, "the disk never fills");
    };
    assert!(matches!(error, NodeError::DiskFull { .. }), "{error}");
    assert_eq!(cluster.get("a", "before").await.as_deref(), Some("x"), "reads go on");
    cluster.disks["a"].set_capacity(None);
    let deadline = Instant::now() + Duration::from_secs(60);
    while put(node, "after", "x").await.is_err() {
        assert!(Instant::now() < deadline, "writes never resume");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(node.status().records, taken + 1);
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_fsync_leaves_outcomes_unknown_and_stops_writes() {
    let cluster = Cluster::new(&["a"]);
    let node = cluster.node("a");
    put(node, "before", "x").await.unwrap();
    cluster.disks["a"].fail_syncs(true);
    assert!(matches!(put(node, "key", "x").await, Err(NodeError::OutcomeUnknown { .. })));
    cluster.disks["a"].fail_syncs(false);
    assert!(matches!(put(node, "key", "x").await, Err(NodeError::WritesStopped { .. })), "an fsync is never retried");
    assert_eq!(cluster.get("a", "key").await, None, "what is not durable is not seen");
    assert_eq!(cluster.get("a", "before").await.as_deref(), Some("x"));
    assert!(matches!(node.status().state, NodeState::WritesStopped { .. }));
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_is_carried_out_at_shutdown() {
    let mut cluster = Cluster::new(&["a"]);
    let node = cluster.node("a").clone();
    let writers: Vec<_> = (0..50)
        .map(|n| {
            let node = node.clone();
            tokio::spawn(async move { put(&node, &format!("key-{n}"), "x").await })
        })
        .collect();
    tokio::task::yield_now().await;
    node.shutdown().await;
    let mut taken = 0;
    for writer in writers {
        match writer.await.unwrap() {
            Ok(_) => taken += 1,
            Err(error) => assert!(matches!(error, NodeError::Stopped { .. }), "{error}"),
        }
    }
    assert!(taken > 0);
    drop(node);
    cluster.crash("a");
    cluster.start("a");
    until("everything is counted", || cluster.node("a").status().digest.is_some()).await;
    assert_eq!(cluster.node("a").status().records, taken);
    cluster.shutdown().await;
}
