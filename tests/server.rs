//! One served region over gRPC: every call, its limits and its errors, and what a kill leaves.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use isle_client::{Client, Condition, Options, Patch, Range, Retry, Value, WriteOptions, v1};
use isle_proto::v1::kv_client::KvClient;
use support::{Process, serve};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

struct Served {
    node: Process,
    client: Client,
    _dir: TempDir,
}

async fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(dir.path(), &[]);
    let options = Options { retry: Retry::never(), ..Options::default() };
    let client = Client::connect_with(&node.endpoint, options).await.unwrap();
    Served { node, client, _dir: dir }
}

impl Served {
    async fn channel(&self) -> Channel {
        Channel::from_shared(self.node.endpoint.clone()).unwrap().connect().await.unwrap()
    }

    async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await).max_encoding_message_size(64 << 20)
    }
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("isle names its errors");
    assert_eq!(info.domain, "isle.v1");
    info.reason
}

fn put(key: impl Into<Bytes>, value: v1::Value) -> v1::PutRequest {
    v1::PutRequest { keyspace: "default".to_owned(), key: key.into(), value: Some(value), ..Default::default() }
}

fn text(text: &str) -> v1::Value {
    Value::from(text).into()
}

#[tokio::test]
async fn a_record_lives_through_every_kind_of_write() {
    let served = served().await;
    let client = &served.client;
    let usual = WriteOptions::default;
    client.put("default", "k", Value::from("plain"), usual()).await.unwrap();
    let set = [("f".to_owned(), Value::I64(1))].into();
    client.patch("default", "k", Patch { set, remove: vec![] }, usual()).await.unwrap();
    assert_eq!(client.increment("default", "k", "n", 5, usual()).await.unwrap().value, Some(5));
    let read = client.get("default", "k", v1::ReadOptions::default()).await.unwrap();
    assert_eq!(read.record.value, Some(Value::from("plain")));
    assert_eq!((read.record.fields["f"].clone(), read.record.counters["n"]), (Value::I64(1), 5));
    assert!(read.found && !read.conflict);
    // A put covers everything that was seen.
    let written = client.put("default", "k", Value::Bool(true), usual()).await.unwrap();
    let read = client.get("default", "k", v1::ReadOptions::default()).await.unwrap();
    assert!(read.record.fields.is_empty() && read.record.counters.is_empty());
    let bound = WriteOptions { condition: Condition::Version(written.version), ..usual() };
    assert_eq!(client.delete("default", "k", bound).await.unwrap().found, Some(true));
    let gone = client.get("default", "k", v1::ReadOptions::default()).await.unwrap();
    assert!(!gone.found && !gone.version.is_empty());
}

#[tokio::test]
async fn pages_of_a_scan_hold_every_key_once_in_order() {
    let served = served().await;
    let keys: Vec<String> = (0..250).map(|n| format!("p/{n:04}")).collect();
    let operations = keys.iter().map(|key| Value::from("x").operation(key.clone())).collect();
    let results = served.client.batch_write("default", operations).await.unwrap();
    assert!(results.iter().all(Result::is_ok));
    served.client.put("default", "q", Value::from("x"), WriteOptions::default()).await.unwrap();
    let (mut seen, mut token) = (Vec::new(), Bytes::new());
    loop {
        let page = served.client.scan("default", &Range::prefix("p/"), 60, token).await.unwrap();
        assert!(page.entries.len() <= 60);
        seen.extend(page.entries.into_iter().map(|entry| String::from_utf8(entry.key.to_vec()).unwrap()));
        token = page.next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, keys);
}

#[tokio::test]
async fn a_page_token_of_another_scan_is_refused() {
    let served = served().await;
    for key in ["a", "b", "c"] {
        served.client.put("default", key, Value::from("x"), WriteOptions::default()).await.unwrap();
    }
    let page = served.client.scan("default", &Range::default(), 1, Bytes::new()).await.unwrap();
    let other = served.client.scan("default", &Range::prefix("b"), 1, page.next).await.unwrap_err();
    assert_eq!((other.reason.as_str(), other.field()), ("INVALID_FIELD", Some("page_token")));
}

#[tokio::test]
async fn a_batch_answers_item_by_item() {
    let served = served().await;
    let long = "k".repeat(4097);
    let operations =
        vec![Value::from("1").operation("a"), Value::from("2").operation(long), Value::I64(3).operation("a")];
    let results = served.client.batch_write("default", operations).await.unwrap();
    let failed = results[1].as_ref().unwrap_err();
    assert_eq!(
        (failed.code, failed.reason.as_str(), failed.field()),
        (Code::InvalidArgument, "INVALID_FIELD", Some("key"))
    );
    assert!(results[0].is_ok() && results[2].is_ok());
    // Those of one key are carried out in their order.
    let got = served.client.batch_get("default", vec!["a".into(), "nothing".into(), "a".into()]).await.unwrap();
    let got: Vec<_> = got.into_iter().map(Result::unwrap).collect();
    assert_eq!(got[0].record.value, Some(Value::I64(3)));
    assert_eq!((got[1].found, &got[2]), (false, &got[0]));
}

#[tokio::test]
async fn a_stream_of_writes_is_answered_in_order() {
    let served = served().await;
    let (mut writes, mut results) = served.client.write_stream().await.unwrap();
    let sending = tokio::spawn(async move {
        for batch in 0..40 {
            let operations = (0..50).map(|n| Value::I64(n).operation(format!("s/{batch}/{n}"))).collect();
            writes.send(operations, "default").await.unwrap();
        }
    });
    let mut expected = 1;
    while let Some((sequence, outcomes)) = results.next().await.unwrap() {
        assert_eq!(sequence, expected);
        assert!(outcomes.iter().all(Result::is_ok));
        expected += outcomes.len() as u64;
    }
    sending.await.unwrap();
    assert_eq!(expected, 2001);
    assert_eq!(served.client.status().await.unwrap().region.unwrap().records, 2000);
}

#[tokio::test]
async fn one_write_stream_too_many_is_refused_until_another_ends() {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(dir.path(), &["limits.requests_max=8"]);
    let options = Options { retry: Retry::never(), ..Options::default() };
    let client = Client::connect_with(&node.endpoint, options).await.unwrap();
    let (writes, mut results) = client.write_stream().await.unwrap();
    let refused = client.write_stream().await.map(|_| ()).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::ResourceExhausted, "QUEUE_FULL"));
    assert!(refused.retry_after.is_some());
    drop(writes);
    assert!(results.next().await.unwrap().is_none());
    client.write_stream().await.unwrap();
}

#[tokio::test]
async fn what_is_over_a_limit_is_refused_by_name() {
    let served = served().await;
    let mut kv = served.kv().await;
    let big = Value::Bytes(vec![0; (1 << 20) + 1].into());
    let many = || vec![Value::from("x").operation("k"); 1001];
    let heavy = vec![Value::Bytes(vec![0; 1 << 20].into()).operation("k"); 5];
    let batch = |operations| v1::BatchWriteRequest { keyspace: "default".into(), operations, omit_versions: true };
    let refused = [
        kv.put(put("", text("x"))).await.map(|_| ()).unwrap_err(),
        kv.put(put("k".repeat(4097), text("x"))).await.map(|_| ()).unwrap_err(),
        kv.put(put("k", big.into())).await.map(|_| ()).unwrap_err(),
        kv.put(put("k", v1::Value { kind: None })).await.map(|_| ()).unwrap_err(),
        kv.put(put("k", Value::Json("{".into()).into())).await.map(|_| ()).unwrap_err(),
        kv.batch_write(batch(many())).await.map(|_| ()).unwrap_err(),
        kv.batch_write(batch(vec![])).await.map(|_| ()).unwrap_err(),
        kv.batch_write(batch(heavy)).await.map(|_| ()).unwrap_err(),
    ];
    let fields = ["key", "key", "value", "value", "value", "operations", "operations", "operations"];
    for (status, field) in refused.iter().zip(fields) {
        assert_eq!((status.code(), reason(status).as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{status}");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field, "{status}");
    }
}

#[tokio::test]
async fn what_is_exactly_at_a_limit_is_taken() {
    let served = served().await;
    let key = "k".repeat(4096);
    let value = Value::Bytes(vec![7; 1 << 20].into());
    served.client.put("default", key.clone(), value.clone(), WriteOptions::default()).await.unwrap();
    let read = served.client.get("default", key, v1::ReadOptions::default()).await.unwrap();
    assert_eq!(read.record.value, Some(value));
    let full = (0..1000).map(|n| Value::I64(n).operation(format!("k{n}"))).collect();
    let results = served.client.batch_write("default", full).await.unwrap();
    assert!(results.len() == 1000 && results.iter().all(Result::is_ok));
}

#[tokio::test]
async fn what_is_not_served_yet_is_refused_and_never_ignored() {
    let served = served().await;
    let mut kv = served.kv().await;
    let with_id = v1::PutRequest { request_id: "id".into(), ..put("k", text("x")) };
    let ttl = prost_types::Duration { seconds: 9, nanos: 0 };
    let with_ttl = v1::PutRequest { ttl: Some(ttl), ..put("k", text("x")) };
    for request in [with_id, with_ttl] {
        let status = kv.put(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unimplemented, "NOT_SERVED"), "{status}");
    }
    let read = |consistency: v1::Consistency| v1::ReadOptions { consistency: consistency.into(), ..Default::default() };
    let error = served.client.get("default", "k", read(v1::Consistency::Session)).await.unwrap_err();
    assert_eq!(error.reason, "NOT_SERVED");
    // It is written anywhere: there is nobody who has seen all of it.
    let error = served.client.get("default", "k", read(v1::Consistency::Strong)).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
    assert!(!served.client.get("default", "k", v1::ReadOptions::default()).await.unwrap().found);
}

#[tokio::test]
async fn errors_name_their_reason_and_facts() {
    let served = served().await;
    let client = &served.client;
    let nowhere = client.put("nowhere", "k", Value::from("x"), WriteOptions::default()).await.unwrap_err();
    assert_eq!((nowhere.code, nowhere.reason.as_str()), (Code::NotFound, "KEYSPACE_NOT_FOUND"));
    client.increment("default", "k", "n", 1, WriteOptions::default()).await.unwrap();
    let set = [("n".to_owned(), Value::I64(1))].into();
    let kind = client.patch("default", "k", Patch { set, remove: vec![] }, WriteOptions::default()).await.unwrap_err();
    assert_eq!((kind.code, kind.reason.as_str()), (Code::FailedPrecondition, "WRONG_KIND"));
    assert_eq!((kind.facts["field"].as_str(), kind.facts["kind"].as_str()), ("n", "counter"));
    let forged = WriteOptions { condition: Condition::Version("forged".into()), ..WriteOptions::default() };
    let forged = client.put("default", "k", Value::from("x"), forged).await.unwrap_err();
    assert_eq!((forged.reason.as_str(), forged.field()), ("INVALID_FIELD", Some("if_version")));
}

#[tokio::test]
async fn an_expired_deadline_writes_nothing() {
    let served = served().await;
    let mut request = Request::new(put("late", text("x")));
    // As a client whose time ran out on the way: the header is isle's to keep, not only the transport's.
    request.metadata_mut().insert("grpc-timeout", "0n".parse().unwrap());
    let status = served.kv().await.put(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    assert!(!served.client.get("default", "late", v1::ReadOptions::default()).await.unwrap().found);
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let served = served().await;
    let mut health = HealthClient::new(served.channel().await);
    for service in ["", "isle.v1.Kv", "isle.v1.Keyspaces"] {
        let asked = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let status = health.check(asked).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving);
    }
    let expected: BTreeSet<String> =
        ["isle.v1.Kv", "isle.v1.Keyspaces", "isle.v1.Cluster", "grpc.health.v1.Health"].map(str::to_owned).into();
    let listed = list_v1(served.channel().await).await;
    assert!(listed.is_superset(&expected), "{listed:?}");
    // The peer protocol is not for clients, and there are no links to cut here.
    assert!(!listed.contains("isle.v1.Peer") && !listed.contains("isle.v1.DevLinks"), "{listed:?}");
    assert_eq!(list_v1alpha(served.channel().await).await, listed);
}

async fn list_v1(channel: Channel) -> BTreeSet<String> {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let answer = ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::iter([request])).await;
    let first = answer.unwrap().into_inner().next().await.unwrap().unwrap();
    match first.message_response.unwrap() {
        MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|s| s.name).collect(),
        other => panic!("not a list: {other:?}"),
    }
}

async fn list_v1alpha(channel: Channel) -> BTreeSet<String> {
    use tonic_reflection::pb::v1alpha::ServerReflectionRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let answer = ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::iter([request])).await;
    let first = answer.unwrap().into_inner().next().await.unwrap().unwrap();
    match first.message_response.unwrap() {
        MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|s| s.name).collect(),
        other => panic!("not a list: {other:?}"),
    }
}

#[tokio::test]
async fn a_killed_node_has_every_acked_write_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = serve(dir.path(), &[]);
    let client = Client::connect(&node.endpoint).await.unwrap();
    let writer = tokio::spawn(async move {
        let mut acked = Vec::new();
        for n in 0.. {
            let (key, value) = (format!("k{n}"), Value::I64(n));
            match client.put("default", key, value, WriteOptions::default()).await {
                Ok(_) => acked.push(n),
                Err(_) => break,
            }
            if n == 200 {
                // Somewhere among the next writes.
                node.kill();
            }
        }
        acked
    });
    let acked = writer.await.unwrap();
    assert!(acked.len() > 200);
    let again = serve(dir.path(), &[]);
    let client = Client::connect(&again.endpoint).await.unwrap();
    for n in acked {
        let read = client.get("default", format!("k{n}"), v1::ReadOptions::default()).await.unwrap();
        assert_eq!(read.record.value, Some(Value::I64(n)));
    }
}

// Another thread answers for the client's connection while this one waits for the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sigterm_stops_cleanly_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = serve(dir.path(), &[]);
    let client = Client::connect(&node.endpoint).await.unwrap();
    client.put("default", "k", Value::from("kept"), WriteOptions::default()).await.unwrap();
    drop(client);
    assert_eq!(node.stop(), Some(0));
    let again = serve(dir.path(), &[]);
    let client = Client::connect(&again.endpoint).await.unwrap();
    let read = client.get("default", "k", v1::ReadOptions::default()).await.unwrap();
    assert_eq!(read.record.value, Some(Value::from("kept")));
    let _ = tokio::time::timeout(Duration::from_secs(5), client.status()).await.unwrap().unwrap();
}
