//! The client port.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use isle_client::{Value, WriteOptions, v1};
use isle_proto::v1::kv_client::KvClient;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{Victim, memory, reason};

/// What a raw request is answered, where it is answered at all.
async fn raw(channel: &mut Channel, path: &str, headers: &[(&str, &str)], body: Body) -> Status {
    let mut request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let call = channel.call(request.body(body).unwrap());
    let answer = tokio::time::timeout(Duration::from_secs(10), call).await.expect("no answer").unwrap();
    Status::from_header_map(answer.headers()).expect("a refusal stands in the headers")
}

/// A gRPC message that announces so many bytes.
fn announcing(length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[0][..], &length.to_be_bytes(), bytes].concat()
}

fn whole(bytes: Vec<u8>) -> Body {
    Body::new(http_body_util::Full::new(Bytes::from(bytes)))
}

/// Sends this, and then nothing, and does not end.
fn unending(bytes: Vec<u8>) -> Body {
    let frames = futures::stream::iter([Ok::<_, Status>(http_body::Frame::data(Bytes::from(bytes)))]);
    Body::new(http_body_util::StreamBody::new(frames.chain(futures::stream::pending())))
}

fn put(key: impl Into<Bytes>, value: Value) -> v1::PutRequest {
    let (keyspace, value) = ("default".to_owned(), Some(value.into()));
    v1::PutRequest { keyspace, key: key.into(), value, ..Default::default() }
}

#[tokio::test]
async fn a_request_too_large_is_told_so_in_isles_words() {
    let mut victim = Victim::new().await;
    let mut kv = KvClient::new(victim.channel().await).max_encoding_message_size(64 << 20);
    for size in [9 << 20, 40 << 20] {
        let status = kv.put(put("k", Value::Bytes(vec![0; size].into()))).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{status}");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "request");
    }
    victim.is_unharmed().await;
}

/// Only the length has come when it is refused: nothing is reserved for it, and nobody waits for the rest.
#[tokio::test]
async fn a_length_alone_is_enough_to_be_refused() {
    let mut victim = Victim::new().await;
    let mut channel = victim.channel().await;
    for length in [u32::MAX, (8 << 20) + 1] {
        let status = raw(&mut channel, "/isle.v1.Kv/Put", &[], unending(announcing(length, b"x"))).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{status}");
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_in_isles_words() {
    let mut victim = Victim::new().await;
    let mut channel = victim.channel().await;
    let garbage = || whole(announcing(4, &[0xff; 4]));
    for method in ["Put", "Get", "Scan", "BatchWrite"] {
        let status = raw(&mut channel, &format!("/isle.v1.Kv/{method}"), &[], garbage()).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{status}");
    }
    let cut = raw(&mut channel, "/isle.v1.Kv/Put", &[], whole(announcing(100, b"too little"))).await;
    assert_eq!(reason(&cut), "INVALID_FIELD");
    let nothing = raw(&mut channel, "/isle.v1.Kv/Put", &[], Body::empty()).await;
    assert_eq!(reason(&nothing), "INVALID_FIELD");
    let unknown = raw(&mut channel, "/isle.v1.Kv/DropEverything", &[], garbage()).await;
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::Unimplemented, "NOT_SERVED"), "{unknown}");
    victim.is_unharmed().await;
}

/// 32 MiB of zeros take 32 KiB as gzip. isle takes no compressed requests, so it is not even looked at.
#[tokio::test]
async fn a_compressed_request_is_refused_unread() {
    let mut victim = Victim::new().await;
    let mut channel = victim.channel().await;
    let bomb = zstd::bulk::compress(&vec![0; 32 << 20], 1).unwrap();
    for encoding in ["gzip", "zstd", "deflate", "nonsense"] {
        let message = [&[1][..], &(bomb.len() as u32).to_be_bytes(), &bomb].concat();
        let status = raw(&mut channel, "/isle.v1.Kv/Put", &[("grpc-encoding", encoding)], whole(message)).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unimplemented, "NOT_SERVED"), "{status}");
    }
    // Nor is a message that only says that it is compressed.
    let status = raw(&mut channel, "/isle.v1.Kv/Put", &[], whole([&[1, 0, 0, 0, 4][..], b"bomb"].concat())).await;
    reason(&status);
    victim.is_unharmed().await;
}

/// A keyspace's name is looked up and never becomes a path.
#[tokio::test]
async fn names_like_paths_are_names_of_nothing() {
    let mut victim = Victim::new().await;
    let files = || -> BTreeSet<_> {
        let read = |dir: std::path::PathBuf| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        read(victim.dir.path().to_owned()).chain(read(victim.dir.path().join("data"))).collect()
    };
    let before = files();
    let long = "x".repeat(100_000);
    let names = [
        "",
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        "default/../default",
        "default\0",
        "DEFAULT",
        " default",
        "\u{202e}tluafed",
        "%2e%2e%2f",
        "{}",
        "1",
        &long,
    ];
    for name in names {
        let error = victim.client.put(name, "k", Value::from("x"), WriteOptions::default()).await.unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (Code::NotFound, "KEYSPACE_NOT_FOUND"), "{name:.40}: {error}");
        let error = victim.client.get(name, "k", v1::ReadOptions::default()).await.unwrap_err();
        assert_eq!(error.reason, "KEYSPACE_NOT_FOUND", "{name:.40}");
    }
    // As keys they are keys like any other.
    for key in ["../../etc/passwd", "\0", "\u{202e}", "/"] {
        victim.client.put("default", key, Value::from(key), WriteOptions::default()).await.unwrap();
        let read = victim.client.get("default", key, v1::ReadOptions::default()).await.unwrap();
        assert_eq!(read.record.value, Some(Value::from(key)));
    }
    assert_eq!(files(), before);
    victim.is_unharmed().await;
}

/// CVE-2023-44487: streams opened and reset in a loop, some before and some after their request is complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_reset_in_a_loop_cost_nothing_that_stays() {
    let mut victim = Victim::new().await;
    let address = format!("127.0.0.1:{}", victim.node.port);
    let deadline = Instant::now() + Duration::from_secs(4);
    let attack = tokio::spawn(async move {
        let (mut streams, mut connections) = (0u64, 0u64);
        while Instant::now() < deadline {
            connections += 1;
            streams += resets(&address, deadline).await;
        }
        (streams, connections)
    });
    let mut slowest = Duration::ZERO;
    while !attack.is_finished() {
        let began = Instant::now();
        victim.serves_on().await;
        slowest = slowest.max(began.elapsed());
    }
    let (streams, connections) = attack.await.unwrap();
    println!("{streams} streams reset over {connections} connections; others waited {slowest:?} at most");
    assert!(streams > 1_000, "only {streams} streams were reset");
    victim.is_unharmed().await;
    let kept = memory(&victim.node, "VmRSS:").saturating_sub(victim.resident_before);
    assert!(kept < 128 << 20, "{} MiB are kept", kept >> 20);
}

/// Opens and resets streams on one connection until the server has had enough of it.
async fn resets(address: &str, deadline: Instant) -> u64 {
    let Ok(tcp) = tokio::net::TcpStream::connect(address).await else { return 0 };
    let Ok((mut send, connection)) = h2::client::handshake(tcp).await else { return 0 };
    let driver = tokio::spawn(connection);
    let mut streams = 0;
    let message = announcing(2, &[0x0a, 0x00]);
    while Instant::now() < deadline {
        let request = http::Request::post("http://isle/isle.v1.Kv/Put").header("content-type", "application/grpc");
        let Ok(mut ready) = send.ready().await else { break };
        let Ok((_answer, mut body)) = ready.send_request(request.body(()).unwrap(), false) else { break };
        if streams % 2 == 0 && body.send_data(Bytes::from(message.clone()), true).is_err() {
            break;
        }
        body.send_reset(h2::Reason::CANCEL);
        send = ready;
        streams += 1;
        if streams % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    driver.abort();
    streams
}

/// Requests that are begun and never finished hold a place each, and would hold all of them.
#[tokio::test]
async fn requests_without_an_end_do_not_keep_others_out_for_ever() {
    let mut victim = Victim::new().await;
    let mut hanging = Vec::new();
    for _ in 0..12 {
        let channel = victim.channel().await;
        for _ in 0..100 {
            let mut channel = channel.clone();
            hanging.push(tokio::spawn(async move {
                let request = http::Request::post("/isle.v1.Kv/Put").header("content-type", "application/grpc");
                std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
                channel.call(request.body(unending(announcing(1 << 20, b"x"))).unwrap()).await
            }));
        }
    }
    let wait = async {
        loop {
            match victim.client.put("default", "k", Value::from("x"), WriteOptions::default()).await {
                Ok(_) => return,
                Err(error) => assert_eq!(error.reason, "QUEUE_FULL", "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("others are kept out");
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
    victim.is_unharmed().await;
}
