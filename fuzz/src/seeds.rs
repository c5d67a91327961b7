//! What isle itself makes: where every corpus starts, and what every target has to call sound.

use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use isle::page_token::PageKey;
use isle::services::peer_wire;
use isle::status_table;
use isle_model::policy::{Policy, Replication};
use isle_model::{Context, Dot, Incarnation, IncarnationTree, KeyspaceId, Region, Row, ShardId, TokenKey, Vector};
use isle_node::peer::{DeltaBatch, FetchReply, Hello, PeerError, StateReply, ToReceiver, ToSender};
use isle_proto::{storage, v1};
use isle_store::codec;
use prost::Message;

use crate::tokens::{KEY, KEYSPACE, MAC_BYTES, QUESTION, SECRET};

const KS: KeyspaceId = KeyspaceId(1);
const SHARD: ShardId = ShardId(0);

/// The sound inputs of a target.
pub fn of(name: &str) -> Vec<Vec<u8>> {
    match name {
        "log_entry" => fixtures("entry_"),
        "delta" => fixtures("delta_"),
        "record" => fixtures("record"),
        "ledger_entry" => fixtures("ledger_entry_"),
        "state_chunk" => fixtures("state_chunk"),
        "view_mark" => fixtures("view_mark").iter().flat_map(|mark| [with(0, mark), with(1, mark)]).collect(),
        "log_segment" => log_segments(),
        "checkpoint" => checkpoints(),
        "version_token" => version_tokens(),
        "page_token" => page_tokens(),
        "delta_batch" => delta_batches(),
        "peer_message" => peer_messages(),
        "client_message" => client_messages(),
        "status" => statuses(),
        "config" => vec![CONFIG.as_bytes().to_vec()],
        _ => Vec::new(),
    }
}

fn with(first: u8, rest: &[u8]) -> Vec<u8> {
    [&[first], rest].concat()
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/store/tests/fixtures/v1"))
}

/// The frozen bytes of version 1.
fn fixtures(prefix: &str) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(folder()).expect("the store's fixtures are there");
    let mut names: Vec<_> = files.map(|file| file.expect("a folder lists its files").file_name()).collect();
    names.sort();
    let named = names.iter().filter(|name| name.to_str().is_some_and(|name| name.starts_with(prefix)));
    named.map(|name| fixture(name.to_str().expect("it was just looked at"))).collect()
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).expect("the store's fixtures are there")
}

/// Frames as another run of a node left them, and ones of every length.
fn log_segments() -> Vec<Vec<u8>> {
    let segment = fixture("directory/log/0000000000000005.seg");
    let end = segment.iter().rposition(|byte| *byte != 0).map_or(4096, |last| (last + 1).next_multiple_of(8));
    let note = 4096 + 24;
    let mut frames = Vec::new();
    for length in [0u32, 1, 7, 8, 9, 200] {
        frames.extend_from_slice(&(1 << 28 | length).to_le_bytes());
        frames.extend_from_slice(&[0; 4]);
        frames.resize(frames.len() + (length as usize).next_multiple_of(8), length as u8);
    }
    vec![with(1, &frames), with(1, &segment[note..end.max(note)]), with(0, &[])]
}

fn part(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes(), bytes].concat()
}

fn checkpoints() -> Vec<Vec<u8>> {
    let whole = fixture("directory/checkpoints/0000000500003da0.ckpt");
    let header = part(&fixture("checkpoint_header.bin"));
    let chunk = fixture("checkpoint_chunk.bin");
    let items = storage::CheckpointChunk::decode(&chunk[..]).expect("fixtures are sound").items.len() as u64;
    let manifest =
        |chunks, items| part(&storage::CheckpointManifest { chunks, items, ..Default::default() }.encode_to_vec());
    vec![
        with(0, &whole),
        with(1, &[header.clone(), manifest(0, 0)].concat()),
        with(1, &[header, part(&chunk), manifest(1, items)].concat()),
    ]
}

fn version_tokens() -> Vec<Vec<u8>> {
    let tree = IncarnationTree::new();
    let mut out = vec![with(1, &[1, 0])];
    for record in fixtures("record") {
        let record = codec::decode_record(Bytes::from(record)).expect("fixtures are sound");
        let token = Context::of(&record, tree.shard(SHARD)).encode(&TokenKey::new(SECRET), KEYSPACE, KEY);
        out.push(with(1, &token[..token.len() - MAC_BYTES]));
        out.push(with(0, &token));
    }
    out
}

fn page_tokens() -> Vec<Vec<u8>> {
    let token = PageKey::new(SECRET).seal(&QUESTION, b"next");
    vec![with(1, &token[..token.len() - MAC_BYTES]), with(0, &token)]
}

fn batch() -> (Vec<u8>, u32) {
    let (mut raw, mut count) = (BytesMut::new(), 0);
    for delta in fixtures("delta_") {
        raw.put_u32_le(delta.len() as u32);
        raw.put_slice(&delta);
        count += 1;
    }
    (raw.to_vec(), count)
}

fn packed(raw: &[u8]) -> Bytes {
    zstd::bulk::compress(raw, 1).expect("memory takes what is written to it").into()
}

fn delta_batches() -> Vec<Vec<u8>> {
    let (raw, count) = batch();
    let mut header = BytesMut::new();
    header.put_u32_le(count);
    header.put_u32_le(raw.len() as u32);
    header.put_u32_le(crc32fast::hash(&raw));
    vec![with(1, &raw), with(1, &[]), with(0, &[&header[..], &packed(&raw)].concat())]
}

fn vector() -> Vector {
    Vector::from_entries([(Incarnation(7), 3), (Incarnation(9), 1)])
}

fn rows() -> Vec<(Incarnation, Row)> {
    let row = |parent| Row { region: Region::new("eu"), parent, left_at: vec![1, 2, 3, 4] };
    vec![(Incarnation(6), row(None)), (Incarnation(7), row(Some(Incarnation(6))))]
}

fn hello() -> Hello {
    Hello {
        protocol: 1,
        cluster: "c".to_owned(),
        region: Region::new("eu"),
        incarnation: Incarnation(7),
        rows: rows(),
        feature_level: 1,
        shards: 4,
        keyspaces: std::sync::Arc::new([(KS, 99)].into()),
        cursors: vec![(KS, SHARD, vector())],
        stated: vec![(KS, SHARD, vec![(Region::new("eu"), vector())])],
        absorbed: vec![(KS, SHARD, vec![(Region::new("us"), Vector::of(Dot::new(Incarnation(9), 1)))])],
    }
}

fn peer_messages() -> Vec<Vec<u8>> {
    let caller = || {
        let (cluster, region) = ("c".to_owned(), "eu".to_owned());
        Some(v1::Caller { protocol_version: isle_node::peer::PROTOCOL, cluster, region, ..Default::default() })
    };
    let (raw, count) = batch();
    let (raw_len, crc, zstd) = (raw.len() as u32, crc32fast::hash(&raw), packed(&raw));
    let deltas = DeltaBatch { rows: rows(), count, raw_len, crc, zstd };
    let mut out = vec![with(0, &peer_wire::first_of_receiver(&hello()).encode_to_vec())];
    for message in [
        ToSender::Ack { cursors: vec![(KS, SHARD, vector())], bytes: 5 },
        ToSender::Probe { id: 9 },
        ToSender::Refetch { keyspace: KS, shard: SHARD, after: vector() },
    ] {
        out.push(with(0, &peer_wire::to_sender(message).encode_to_vec()));
    }
    for message in [
        ToReceiver::Hello(Box::new(hello())),
        ToReceiver::Deltas(deltas.clone()),
        ToReceiver::NeedsState { keyspace: KS, shard: SHARD, changes: true },
        ToReceiver::Heartbeat { lag_bytes: 1, caught_up: true },
        ToReceiver::ProbeAnswer { id: 9, wall_ms: 1_700_000_000_000, waiting: vec![(KS, SHARD)] },
    ] {
        out.push(with(1, &peer_wire::to_receiver(message).encode_to_vec()));
    }
    let after = Some(isle_proto::convert::vector(&vector()));
    let origin = "ap".to_owned();
    let fetch =
        v1::FetchRequest { caller: caller(), origin, keyspace: KS.0, after, bytes_max: 9, ..Default::default() };
    out.push(with(2, &fetch.encode_to_vec()));
    let fetched = FetchReply { batch: deltas, more: true, needs_state: false };
    out.push(with(3, &peer_wire::fetch_response(fetched).encode_to_vec()));
    for chunk in fixtures("state_chunk") {
        let chunk = codec::decode_state_chunk(Bytes::from(chunk)).expect("fixtures are sound");
        let reply = peer_wire::state_response(&StateReply { rows: rows(), chunk }).expect("a sound chunk is packed");
        out.push(with(4, &reply.encode_to_vec()));
    }
    let start = Bytes::from_static(b"k");
    let state = v1::StateRequest { caller: caller(), keyspace: KS.0, start, bytes_max: 9, ..Default::default() };
    out.push(with(5, &state.encode_to_vec()));
    out
}

fn client_messages() -> Vec<Vec<u8>> {
    use v1::value::Kind;
    let value = |kind| v1::Value { kind: Some(kind) };
    let put = |kind| v1::PutRequest {
        keyspace: "default".to_owned(),
        key: Bytes::from_static(b"k"),
        value: Some(value(kind)),
        write: Some(v1::WriteOptions::default()),
        ..Default::default()
    };
    let kinds = [
        Kind::BytesValue(Bytes::from_static(&[0, 255])),
        Kind::StringValue("né".to_owned()),
        Kind::Int64Value(-1),
        Kind::DoubleValue(0.5),
        Kind::BoolValue(true),
        Kind::JsonValue("{\"a\":[1,null,\"b\"]}".to_owned()),
    ];
    let mut out: Vec<Vec<u8>> = kinds.iter().map(|kind| with(0, &put(kind.clone()).encode_to_vec())).collect();
    let set = kinds.into_iter().enumerate().map(|(n, kind)| (format!("f{n}"), value(kind))).collect();
    let patch = v1::PatchRequest { set, remove: vec!["gone".to_owned()], ..Default::default() };
    out.push(with(1, &patch.encode_to_vec()));
    let bound = prost_duration(2);
    let read = v1::ReadOptions {
        consistency: v1::Consistency::Bounded.into(),
        max_staleness: Some(bound),
        ..Default::default()
    };
    out.push(with(2, &v1::GetRequest { read: Some(read), ..Default::default() }.encode_to_vec()));
    out.push(with(3, &v1::ScanRequest { prefix: "p".into(), page_size: 7, ..Default::default() }.encode_to_vec()));
    out.push(with(
        4,
        &v1::BatchGetRequest { keys: vec!["a".into(), "b".into()], ..Default::default() }.encode_to_vec(),
    ));
    let operation = v1::write_operation::Operation::Put(put(Kind::BoolValue(false)));
    let operations = vec![v1::WriteOperation { operation: Some(operation) }];
    let batch = v1::BatchWriteRequest { operations: operations.clone(), ..Default::default() };
    out.push(with(5, &batch.encode_to_vec()));
    out.push(with(6, &v1::WriteRequest { sequence: 3, operations, ..Default::default() }.encode_to_vec()));
    out.extend(keyspace_messages());
    out.push(with(9, &v1::DeleteRequest { key: "k".into(), ..Default::default() }.encode_to_vec()));
    out
}

fn keyspace_messages() -> [Vec<u8>; 2] {
    let policy = Policy {
        home: Some("prefixes(eu/=eu-1,*=us)".parse().expect("it is a rule")),
        replication: Replication::Sync(1),
        read_default: "bounded(2s)".parse().expect("it is a level"),
        residency: "eu,region:us".parse().expect("it is a residency"),
        labels: [("team".to_owned(), "carts".to_owned())].into(),
        ..Policy::default()
    };
    let keyspace = Some(v1::Keyspace {
        name: "carts".to_owned(),
        policy: Some(isle_proto::policy::policy(&policy)),
        etag: "r1".to_owned(),
        ..Default::default()
    });
    let create = v1::CreateKeyspaceRequest { keyspace: keyspace.clone(), validate_only: true };
    let paths = ["policy.writes", "policy.home", "policy.labels"].map(str::to_owned).to_vec();
    let update_mask = Some(prost_types::FieldMask { paths });
    let update = v1::UpdateKeyspaceRequest { keyspace, update_mask, validate_only: false };
    [with(7, &create.encode_to_vec()), with(8, &update.encode_to_vec())]
}

fn prost_duration(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 5 }
}

fn statuses() -> Vec<Vec<u8>> {
    let replaced =
        PeerError::RegionReplaced { region: Region::new("eu"), admitted: Incarnation(0xabc), refused: Incarnation(7) };
    let errors = [
        replaced,
        PeerError::NotReady { reason: "later".to_owned() },
        PeerError::Corrupt { reason: "what is this".to_owned() },
        PeerError::Incompatible { reason: "another cluster".to_owned() },
    ];
    let status = |error| {
        let status = status_table::of_peer(error);
        with(i32::from(status.code()) as u8, status.details())
    };
    errors.iter().map(status).collect()
}

const CONFIG: &str = r#"
cluster = "shop"
region = "eu-west-1"
data_dir = "data"
insecure = true
shards = 4

[listen]
client = "127.0.0.1:9000"

[limits]
log_budget_age = "2h"
queue_bytes_max = "16MiB"

[[peers]]
region = "us-east-1"
endpoint = "http://10.0.0.2:7401"
client_endpoint = "https://us.example.com"

[[keyspaces]]
id = 2
name = "carts"
"#;
