//! The node dials its peer, and what it reaches sends what no node would: bombs, garbage, other regions' writes, stamps from
//! the far future. What cannot be taken is not taken, the link ends or the stream waits, and the peer is named in `status`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use isle_client::{Value, WriteOptions, v1 as client};
use isle_model::{
    Body, Delta, Dot, Epoch, Field, FieldKey, Generation, Hlc, Record, Register, ShardId, Sibling, Vector, Write,
};
use isle_proto::v1::peer_server::{Peer, PeerServer};
use isle_proto::{storage, v1};
use isle_store::codec;
use prost::Message;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::peers::{dot, far_future, hello};
use crate::{KS, SHARDS, Victim, support};

const INCARNATION: u64 = 0xe1;

/// What plays the peer. Every subscription of the node is handed to the test.
struct Evil {
    subscriptions: mpsc::Receiver<Subscription>,
    server: tokio::task::JoinHandle<()>,
}

struct Subscription {
    /// What the node said first.
    hello: v1::Hello,
    from: Streaming<v1::ToSender>,
    to: mpsc::Sender<Result<v1::ToReceiver, Status>>,
}

#[derive(Clone)]
struct Service {
    subscriptions: mpsc::Sender<Subscription>,
    states: Arc<Mutex<BTreeMap<u32, v1::StateResponse>>>,
}

#[tonic::async_trait]
impl Peer for Service {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<v1::ToReceiver, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::ToSender>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut from = request.into_inner();
        let first = from.message().await?.and_then(|first| first.message);
        let Some(v1::to_sender::Message::Hello(hello)) = first else { return Err(Status::aborted("no hello")) };
        let (to, words) = mpsc::channel(16);
        // A test that is over needs no more of them.
        let _ = self.subscriptions.send(Subscription { hello, from, to }).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(words))))
    }

    async fn forward(&self, _: Request<v1::ForwardRequest>) -> Result<Response<v1::ForwardResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn read(&self, _: Request<v1::ReadRequest>) -> Result<Response<v1::ReadResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn fetch(&self, _: Request<v1::FetchRequest>) -> Result<Response<v1::FetchResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn state(&self, request: Request<v1::StateRequest>) -> Result<Response<v1::StateResponse>, Status> {
        let shard = request.into_inner().shard;
        self.states.lock().await.get(&shard).cloned().map(Response::new).ok_or(Status::unavailable("none"))
    }

    async fn metadata(&self, _: Request<v1::MetadataRequest>) -> Result<Response<v1::MetadataResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

impl Drop for Evil {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Evil {
    async fn serve(victim: &Victim) -> Evil {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", victim.evil_port)).await.unwrap();
        let (subscriptions, received) = mpsc::channel(64);
        let service = Service { subscriptions, states: Arc::default() };
        let peer = PeerServer::new(service).max_encoding_message_size(256 << 20);
        let router = tonic::transport::Server::builder().add_service(peer);
        let served = router.serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { served.await.unwrap() });
        Evil { subscriptions: received, server }
    }

    /// The node's next subscription, with the hello answered.
    async fn met(&mut self) -> Subscription {
        let next = tokio::time::timeout(support::PATIENCE, self.subscriptions.recv()).await;
        let subscription = next.expect("the node does not dial").unwrap();
        let keyspaces = subscription.hello.keyspaces.clone();
        let said = v1::to_receiver::Message::Hello(v1::Hello { keyspaces, ..hello() });
        subscription.say(said).await;
        subscription
    }
}

impl Subscription {
    async fn say(&self, message: v1::to_receiver::Message) {
        // The node may have gone; that is for the test to find out.
        let _ = self.to.send(Ok(v1::ToReceiver { message: Some(message) })).await;
    }

    async fn deltas(&self, batch: v1::DeltaBatch) {
        self.say(v1::to_receiver::Message::Deltas(batch)).await;
    }

    /// Waits until the node confirms, and returns what it then has.
    async fn ack(&mut self) -> v1::Ack {
        let acked = async {
            loop {
                let word = self.from.next().await.expect("the node has closed the stream").unwrap();
                if let Some(v1::to_sender::Message::Ack(ack)) = word.message {
                    return ack;
                }
            }
        };
        tokio::time::timeout(support::PATIENCE, acked).await.expect("the node does not confirm")
    }

    /// Waits until the node ends it.
    async fn ended(mut self) {
        let ended = async { while matches!(self.from.next().await, Some(Ok(_))) {} };
        tokio::time::timeout(support::PATIENCE, ended).await.expect("the node does not end it");
    }
}

fn packed(raw: &[u8], count: u32) -> v1::DeltaBatch {
    v1::DeltaBatch { rows: vec![], count, block: Some(block(raw)) }
}

fn block(raw: &[u8]) -> v1::Block {
    v1::Block {
        compression: v1::Compression::ZstdStream.into(),
        data: zstd::bulk::compress(raw, 1).unwrap().into(),
        uncompressed_bytes: raw.len() as u32,
        crc32: crc32fast::hash(raw),
    }
}

fn batch_of(encoded: &[Bytes]) -> v1::DeltaBatch {
    let mut raw = BytesMut::new();
    for delta in encoded {
        raw.put_u32_le(delta.len() as u32);
        raw.put_slice(delta);
    }
    packed(&raw, encoded.len() as u32)
}

fn put(key: &str, at: Dot, prev: Option<Dot>, text: &str, generation: u64, hlc: Hlc) -> Delta {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let sibling = Sibling {
        dot: at,
        epoch: Epoch(0),
        generation: Generation(generation),
        hlc,
        value: isle_model::Value::string(text),
    };
    let register = Register::from_parts(vec![sibling], Vector::of(at), Generation(generation), Epoch(0));
    let fields = Record::from_fields(vec![(FieldKey::value(""), Field::Register(register))]).unwrap();
    Delta {
        dot: at,
        prev,
        keyspace: KS,
        shard: ShardId::of(KS, &key, SHARDS),
        hlc,
        epoch: Epoch(0),
        body: Body::Write(Write { key, fields, ledger: vec![] }),
    }
}

fn now() -> Hlc {
    #[allow(clippy::disallowed_methods, reason = "the test plays a region, and this is its clock")]
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Hlc::from_ms(since.as_millis() as u64)
}

async fn value_of(victim: &Victim, key: &str) -> Option<Value> {
    victim.client.get("default", key.to_owned(), client::ReadOptions::default()).await.unwrap().record.value
}

/// What a sound delta of the peer does, so that the tests below show something.
async fn takes_what_is_sound(victim: &Victim, evil: &mut Evil, key: &str, seq: u64) {
    let mut subscription = evil.met().await;
    let sound = put(key, dot(INCARNATION, seq), None, "sound", 1, now());
    subscription.deltas(batch_of(&[codec::encode_delta(&sound)])).await;
    subscription.ack().await;
    assert_eq!(value_of(victim, key).await, Some(Value::from("sound")));
}

#[tokio::test]
async fn bombs_are_not_unpacked() {
    let mut victim = Victim::new().await;
    let mut evil = Evil::serve(&victim).await;
    let zeros = zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap();
    let claims = |data: Vec<u8>, bytes: u32| v1::DeltaBatch {
        rows: vec![],
        count: 1,
        block: Some(v1::Block {
            compression: v1::Compression::ZstdStream.into(),
            data: data.into(),
            uncompressed_bytes: bytes,
            crc32: 0,
        }),
    };
    let bombs = [
        // It says little, and is much.
        (claims(zeros.clone(), 100), "does not unpack"),
        (claims(zeros.clone(), 32 << 20), "does not unpack"),
        (claims(zeros, u32::MAX), "announces"),
        (claims(vec![0; 100], 32 << 20), "does not unpack"),
        // As much as there may be, of deltas of no bytes.
        (packed(&vec![0; 32 << 20], 8 << 20), ""),
        (packed(b"", 7), "wrong count"),
        (v1::DeltaBatch { block: None, ..packed(b"", 0) }, "without its block"),
    ];
    for (bomb, fact) in bombs {
        let subscription = evil.met().await;
        subscription.deltas(bomb).await;
        subscription.ended().await;
        victim.blames_its_peer(fact).await;
        victim.serves_on().await;
    }
    takes_what_is_sound(&victim, &mut evil, "sound", 1).await;
    victim.is_unharmed().await;
}

/// A delta whose lists have millions of empty parts: two bytes each here, hundreds each once decoded.
#[tokio::test]
async fn many_small_parts_of_a_delta_are_no_bomb() {
    let mut victim = Victim::new().await;
    let mut evil = Evil::serve(&victim).await;
    let parts = 6 << 20;
    let delta = |write| storage::Delta {
        dot: Some(storage::Dot { incarnation: INCARNATION, seq: 1 }),
        keyspace: KS.0,
        body: Some(storage::delta::Body::Write(write)),
        ..Default::default()
    };
    let empty = |tag: u8| [tag << 3 | 2, 0].repeat(parts);
    for tag in [2, 3] {
        // Fields, ledger entries.
        let mut encoded = delta(storage::Write { key: b"k".to_vec().into(), ..Default::default() }).encode_to_vec();
        let write = [&[0x0a, 1, b'k'][..], &empty(tag)].concat();
        let mut body = vec![7 << 3 | 2];
        prost::encoding::encode_varint(write.len() as u64, &mut body);
        encoded.extend_from_slice(&body);
        encoded.extend_from_slice(&write);
        let subscription = evil.met().await;
        subscription.deltas(batch_of(&[encoded.into()])).await;
        // It is refused, or kept aside unread; either way the node goes on.
        victim.serves_on().await;
        drop(subscription);
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn garbage_is_named_and_the_stream_goes_on_when_it_ends() {
    let mut victim = Victim::new().await;
    let mut evil = Evil::serve(&victim).await;
    let sound = codec::encode_delta(&put("k", dot(INCARNATION, 1), None, "x", 1, now()));
    let batches = [
        batch_of(&[Bytes::from_static(b"\xff\xff\xff")]),
        batch_of(&[sound.slice(..sound.len() / 2)]),
        v1::DeltaBatch { count: 9, ..batch_of(std::slice::from_ref(&sound)) },
        v1::DeltaBatch { block: Some(v1::Block { crc32: 1, ..block(b"") }), ..packed(b"", 0) },
        v1::DeltaBatch { block: Some(v1::Block { compression: 2, ..block(b"") }), ..packed(b"", 0) },
        v1::DeltaBatch { rows: vec![storage::IncarnationRow::default()], ..batch_of(&[sound]) },
    ];
    for batch in batches {
        let subscription = evil.met().await;
        subscription.deltas(batch).await;
        subscription.ended().await;
        victim.serves_on().await;
    }
    for message in [None, Some(v1::to_receiver::Message::Hello(hello()))] {
        let subscription = evil.met().await;
        let _ = subscription.to.send(Ok(v1::ToReceiver { message })).await;
        subscription.ended().await;
    }
    takes_what_is_sound(&victim, &mut evil, "sound", 1).await;
    victim.is_unharmed().await;
}

/// A peer's stream holds the peer's own writes: not the node's, and nobody's that is not known.
#[tokio::test]
async fn writes_in_anothers_name_are_refused() {
    let mut victim = Victim::new().await;
    let mut evil = Evil::serve(&victim).await;
    let own = evil.met().await.hello.incarnation;
    for stolen in [dot(own, 1_000_000), dot(own, 1), dot(0x5eed, 1)] {
        let subscription = evil.met().await;
        let delta = put("before", stolen, None, "stolen", 99, now());
        subscription.deltas(batch_of(&[codec::encode_delta(&delta)])).await;
        subscription.ended().await;
        victim.blames_its_peer("is not of its own stream").await;
    }
    // A sound write whose fields carry somebody else's dots: they are merged as what they say, and break nothing.
    assert_eq!(value_of(&victim, "before").await, Some(Value::from("kept")));
    takes_what_is_sound(&victim, &mut evil, "sound", 1).await;
    victim.is_unharmed().await;
}

/// Made-up numbers, as high as they go: nothing overflows, and a later write is still later.
#[tokio::test]
async fn the_highest_numbers_there_are_can_be_written_over() {
    let mut victim = Victim::new().await;
    let mut evil = Evil::serve(&victim).await;
    let mut subscription = evil.met().await;
    let high = put("high", dot(INCARNATION, u64::MAX), None, "high", u64::MAX - 1, now());
    subscription.deltas(batch_of(&[codec::encode_delta(&high)])).await;
    subscription.ack().await;
    assert_eq!(value_of(&victim, "high").await, Some(Value::from("high")));
    for text in ["one", "two", "three"] {
        victim.client.put("default", "high", Value::from(text), WriteOptions::default()).await.unwrap();
        assert_eq!(value_of(&victim, "high").await, Some(Value::from(text)));
    }
    victim.is_unharmed().await;
}

/// A stamp from the far future is merged, and drags nobody's clock along.
#[tokio::test]
async fn a_far_future_clock_is_nobody_elses() {
    let mut victim = Victim::new().await;
    let mut evil = Evil::serve(&victim).await;
    let mut subscription = evil.met().await;
    let far = put("far", dot(INCARNATION, 1), None, "far", 1, far_future());
    subscription.deltas(batch_of(&[codec::encode_delta(&far)])).await;
    subscription.ack().await;
    assert_eq!(value_of(&victim, "far").await, Some(Value::from("far")));
    victim.client.put("default", "mine", Value::from("now"), WriteOptions::default()).await.unwrap();
    victim.client.put("default", "far", Value::from("later"), WriteOptions::default()).await.unwrap();
    assert_eq!(value_of(&victim, "far").await, Some(Value::from("later")));
    let stamp = write_time(&victim, "mine").await;
    let ahead = i128::from(stamp) - i128::from(now().ms());
    assert!(ahead < 60_000, "its own stamps are {ahead} ms ahead");
    // Nor does a peer's clock that is said to stand at the end, or the beginning, of time.
    for wall_ms in [u64::MAX, 1] {
        for id in 0..20 {
            subscription
                .say(v1::to_receiver::Message::ProbeAnswer(v1::ProbeAnswer { id, wall_ms, waiting: Vec::new() }))
                .await;
        }
        let read = value_of(&victim, "mine").await;
        assert_eq!(read, Some(Value::from("now")));
    }
    drop(subscription);
    victim.is_unharmed().await;
}

/// When the shown value was written, in milliseconds since 1970.
async fn write_time(victim: &Victim, key: &str) -> u64 {
    let mut kv = isle_proto::v1::kv_client::KvClient::new(victim.channel().await);
    let asked = v1::GetRequest {
        keyspace: "default".to_owned(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        siblings: true,
        read: None,
    };
    let entry = kv.get(asked).await.unwrap().into_inner().entry.unwrap();
    let time = entry.siblings[0].write_time.unwrap();
    time.seconds as u64 * 1000 + time.nanos as u64 / 1_000_000
}

/// Gaps that are never closed, and streams that are not: the node asks again, and remembers no more for it.
#[tokio::test]
async fn gaps_without_end_cost_nothing_that_grows() {
    let mut victim = Victim::new().await;
    let mut evil = Evil::serve(&victim).await;
    let subscription = evil.met().await;
    for n in 0..2_000u64 {
        let at = dot(INCARNATION, 10 + 2 * n);
        let gap = put(&format!("k{n}"), at, Some(dot(INCARNATION, 9 + 2 * n)), "x", 1, now());
        let elsewhere = Delta { keyspace: isle_model::KeyspaceId(77 + n), ..gap.clone() };
        subscription.deltas(batch_of(&[codec::encode_delta(&gap), codec::encode_delta(&elsewhere)])).await;
        let needs = v1::NeedsState { keyspace: 1000 + n, shard: n as u32, changes: n % 2 == 0 };
        subscription.say(v1::to_receiver::Message::NeedsState(needs)).await;
    }
    victim.serves_on().await;
    drop(subscription);
    victim.is_unharmed().await;
}

/// The details of a status are base64. What is not made its reader panic, deep in the transport.
#[tokio::test]
async fn a_status_that_cannot_be_read_breaks_no_link_for_good() {
    let mut victim = Victim::new().await;
    let refuse = tower::service_fn(|_: http::Request<tonic::body::Body>| async {
        let answer = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "9")
            .header("grpc-message", "%ff%zz")
            .header("grpc-status-details-bin", "!!! this is not base64 !!!");
        Ok::<_, std::convert::Infallible>(answer.body(tonic::body::Body::empty()).unwrap())
    });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", victim.evil_port)).await.unwrap();
    let (asked, mut calls) = mpsc::channel(16);
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let asked = asked.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let asked = asked.clone();
                async move {
                    let _ = asked.send(request.uri().path().to_owned()).await;
                    tower::ServiceExt::oneshot(refuse, request.map(tonic::body::Body::new)).await
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            tokio::spawn(hyper::server::conn::http2::Builder::new(executor).serve_connection(io, service));
        }
    });
    // It dials again and again: a task that panicked would not.
    for _ in 0..3 {
        let call = tokio::time::timeout(Duration::from_secs(20), calls.recv()).await;
        call.expect("the node does not dial any more").unwrap();
    }
    server.abort();
    let _ = server.await;
    let mut evil = Evil::serve(&victim).await;
    takes_what_is_sound(&victim, &mut evil, "sound", 1).await;
    victim.is_unharmed().await;
}
