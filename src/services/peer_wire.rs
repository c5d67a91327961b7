//! What two nodes say to each other, between the wire and the node. Everything that comes in is checked here, once.

use std::sync::Arc;

use bytes::Bytes;
use isle_model::{Incarnation, KeyspaceId, Region, ShardId, Vector};
use isle_node::Cause;
use isle_node::peer::{
    DeltaBatch, FetchReply, FetchRequest, Fingerprints, Hello, MetadataRequest, PeerError, StateReply, StateRequest,
    ToReceiver, ToSender,
};
use isle_proto::{convert, storage, v1};
use isle_store::codec;
use prost::Message;

/// Largest block, unpacked: what is announced above it is not unpacked at all.
const BLOCK_BYTES_MAX: usize = 32 << 20;
/// As for deltas: higher levels save hardly more.
const ZSTD_LEVEL: i32 = 1;

pub(super) fn corrupt(reason: impl std::fmt::Display) -> PeerError {
    PeerError::Corrupt { reason: reason.to_string() }
}

fn to_vector(vector: Option<storage::Vector>) -> Result<Vector, PeerError> {
    vector.as_ref().map_or(Ok(Vector::new()), convert::to_vector).map_err(corrupt)
}

type Cursor = (KeyspaceId, ShardId, Vector);
type Absorbed = (KeyspaceId, ShardId, Vec<(Region, Vector)>);

fn cursor((keyspace, shard, vector): &Cursor) -> v1::StreamCursor {
    v1::StreamCursor { keyspace: keyspace.0, shard: shard.0, vector: Some(convert::vector(vector)) }
}

fn to_cursor(from: v1::StreamCursor) -> Result<Cursor, PeerError> {
    Ok((KeyspaceId(from.keyspace), ShardId(from.shard), to_vector(from.vector)?))
}

fn absorbed((keyspace, shard, vectors): &Absorbed) -> v1::StreamsAbsorbed {
    let absorbed = convert::absorbed(vectors.iter().map(|(region, vector)| (region, vector)));
    v1::StreamsAbsorbed { keyspace: keyspace.0, shard: shard.0, absorbed }
}

fn to_absorbed(from: v1::StreamsAbsorbed) -> Result<Absorbed, PeerError> {
    let vectors = convert::to_absorbed(from.absorbed).map_err(corrupt)?;
    Ok((KeyspaceId(from.keyspace), ShardId(from.shard), vectors))
}

fn all<A, B>(from: Vec<A>, convert: impl Fn(A) -> Result<B, PeerError>) -> Result<Vec<B>, PeerError> {
    from.into_iter().map(convert).collect()
}

fn digests(from: &Fingerprints) -> Vec<v1::KeyspaceDigest> {
    from.iter().map(|(id, hash)| v1::KeyspaceDigest { id: id.0, hash: *hash }).collect()
}

fn to_fingerprints(from: Vec<v1::KeyspaceDigest>) -> Arc<Fingerprints> {
    Arc::new(from.into_iter().map(|digest| (KeyspaceId(digest.id), digest.hash)).collect())
}

pub fn hello(from: &Hello) -> v1::Hello {
    v1::Hello {
        protocol_version: from.protocol,
        cluster: from.cluster.clone(),
        region: from.region.to_string(),
        incarnation: from.incarnation.0,
        rows: from.rows.iter().map(|(incarnation, row)| convert::row(*incarnation, row)).collect(),
        feature_level: from.feature_level,
        shard_count: from.shards,
        keyspaces: digests(&from.keyspaces),
        cursors: from.cursors.iter().map(cursor).collect(),
        stated: from.stated.iter().map(absorbed).collect(),
        absorbed: from.absorbed.iter().map(absorbed).collect(),
    }
}

pub fn to_hello(from: v1::Hello) -> Result<Hello, PeerError> {
    if from.incarnation == 0 {
        return Err(corrupt("a hello without an incarnation"));
    }
    Ok(Hello {
        protocol: from.protocol_version,
        cluster: from.cluster,
        region: convert::to_region(&from.region).map_err(corrupt)?,
        incarnation: Incarnation(from.incarnation),
        rows: convert::to_rows(from.rows).map_err(corrupt)?,
        feature_level: from.feature_level,
        shards: from.shard_count,
        keyspaces: to_fingerprints(from.keyspaces),
        cursors: all(from.cursors, to_cursor)?,
        stated: all(from.stated, to_absorbed)?,
        absorbed: all(from.absorbed, to_absorbed)?,
    })
}

pub fn to_sender(from: ToSender) -> v1::ToSender {
    use v1::to_sender::Message;
    let message = match from {
        ToSender::Ack { cursors, bytes } => {
            Message::Ack(v1::Ack { cursors: cursors.iter().map(cursor).collect(), bytes })
        }
        ToSender::Probe { id } => Message::Probe(v1::Probe { id }),
        ToSender::Keyspaces(said) => Message::Keyspaces(v1::KeyspaceDigests { keyspaces: digests(&said) }),
        ToSender::Ship { keyspace } => Message::Ship(v1::Ship { keyspace: keyspace.0 }),
        ToSender::Refetch { keyspace, shard, after } => {
            let after = Some(convert::vector(&after));
            Message::Refetch(v1::Refetch { keyspace: keyspace.0, shard: shard.0, after })
        }
    };
    v1::ToSender { message: Some(message) }
}

/// The first message of a receiver.
pub fn first_of_receiver(hello_sent: &Hello) -> v1::ToSender {
    v1::ToSender { message: Some(v1::to_sender::Message::Hello(hello(hello_sent))) }
}

pub fn of_receiver(from: v1::ToSender) -> Result<ToSender, PeerError> {
    use v1::to_sender::Message;
    match from.message.ok_or_else(|| corrupt("an empty message"))? {
        Message::Hello(_) => Err(corrupt("a second hello")),
        Message::Ack(ack) => Ok(ToSender::Ack { cursors: all(ack.cursors, to_cursor)?, bytes: ack.bytes }),
        Message::Probe(probe) => Ok(ToSender::Probe { id: probe.id }),
        Message::Keyspaces(said) => Ok(ToSender::Keyspaces(to_fingerprints(said.keyspaces))),
        Message::Ship(ship) => Ok(ToSender::Ship { keyspace: KeyspaceId(ship.keyspace) }),
        Message::Refetch(refetch) => Ok(ToSender::Refetch {
            keyspace: KeyspaceId(refetch.keyspace),
            shard: ShardId(refetch.shard),
            after: to_vector(refetch.after)?,
        }),
    }
}

pub fn to_receiver(from: ToReceiver) -> v1::ToReceiver {
    use v1::to_receiver::Message;
    let message = match from {
        ToReceiver::Hello(from) => Message::Hello(hello(&from)),
        ToReceiver::Deltas(batch) => Message::Deltas(delta_batch(batch, v1::Compression::ZstdStream)),
        ToReceiver::NeedsState { keyspace, shard, changes } => {
            Message::NeedsState(v1::NeedsState { keyspace: keyspace.0, shard: shard.0, changes })
        }
        ToReceiver::Heartbeat { lag_bytes, caught_up } => Message::Heartbeat(v1::Heartbeat { lag_bytes, caught_up }),
        ToReceiver::ProbeAnswer { id, wall_ms, waiting } => {
            let name =
                |(keyspace, shard): (KeyspaceId, ShardId)| v1::StreamName { keyspace: keyspace.0, shard: shard.0 };
            let waiting = waiting.into_iter().map(name).collect();
            Message::ProbeAnswer(v1::ProbeAnswer { id, wall_ms, waiting })
        }
    };
    v1::ToReceiver { message: Some(message) }
}

pub fn of_sender(from: v1::ToReceiver) -> Result<ToReceiver, PeerError> {
    use v1::to_receiver::Message;
    Ok(match from.message.ok_or_else(|| corrupt("an empty message"))? {
        Message::Hello(from) => ToReceiver::Hello(Box::new(to_hello(from)?)),
        Message::Deltas(batch) => ToReceiver::Deltas(to_delta_batch(batch, v1::Compression::ZstdStream)?),
        Message::NeedsState(from) => {
            let (keyspace, shard) = (KeyspaceId(from.keyspace), ShardId(from.shard));
            ToReceiver::NeedsState { keyspace, shard, changes: from.changes }
        }
        Message::Heartbeat(from) => ToReceiver::Heartbeat { lag_bytes: from.lag_bytes, caught_up: from.caught_up },
        Message::ProbeAnswer(from) => {
            let stream = |name: v1::StreamName| (KeyspaceId(name.keyspace), ShardId(name.shard));
            let waiting = from.waiting.into_iter().map(stream).collect();
            ToReceiver::ProbeAnswer { id: from.id, wall_ms: from.wall_ms, waiting }
        }
    })
}

fn delta_batch(from: DeltaBatch, packing: v1::Compression) -> v1::DeltaBatch {
    v1::DeltaBatch {
        rows: from.rows.iter().map(|(incarnation, row)| convert::row(*incarnation, row)).collect(),
        count: from.count,
        block: Some(v1::Block {
            compression: packing.into(),
            data: from.zstd,
            uncompressed_bytes: from.raw_len,
            crc32: from.crc,
        }),
    }
}

/// The node unpacks it and checks size and checksum.
fn to_delta_batch(from: v1::DeltaBatch, packing: v1::Compression) -> Result<DeltaBatch, PeerError> {
    let block = block_packed_as(packing, from.block)?;
    Ok(DeltaBatch {
        rows: convert::to_rows(from.rows).map_err(corrupt)?,
        count: from.count,
        raw_len: block.uncompressed_bytes,
        crc: block.crc32,
        zstd: block.data,
    })
}

fn block_packed_as(packing: v1::Compression, block: Option<v1::Block>) -> Result<v1::Block, PeerError> {
    let block = block.ok_or_else(|| corrupt("a message without its block"))?;
    match block.compression() {
        known if known == packing => Ok(block),
        other => Err(corrupt(format!("a block packed as {}", other.as_str_name()))),
    }
}

/// Who this node is to those it calls.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cluster: String,
    pub region: Region,
}

impl Identity {
    pub(super) fn caller(&self) -> Option<v1::Caller> {
        Some(v1::Caller {
            protocol_version: isle_node::peer::PROTOCOL,
            cluster: self.cluster.clone(),
            region: self.region.to_string(),
            incarnation: 0,
        })
    }

    /// The region that calls, if it belongs here.
    pub(super) fn check(&self, caller: Option<v1::Caller>) -> Result<Region, PeerError> {
        let caller = caller.ok_or_else(|| corrupt("a call without its caller"))?;
        let ours = isle_node::peer::PROTOCOL;
        if caller.protocol_version != ours {
            let reason = format!("protocol {} does not talk to {ours}", caller.protocol_version);
            return Err(PeerError::Incompatible { reason });
        }
        if caller.cluster != self.cluster {
            let reason = format!("cluster {:?} is not {:?}", caller.cluster, self.cluster);
            return Err(PeerError::Incompatible { reason });
        }
        convert::to_region(&caller.region).map_err(corrupt)
    }
}

pub fn fetch_request(identity: &Identity, from: FetchRequest) -> v1::FetchRequest {
    v1::FetchRequest {
        caller: identity.caller(),
        origin: from.origin.to_string(),
        keyspace: from.keyspace.0,
        shard: from.shard.0,
        after: Some(convert::vector(&from.after)),
        bytes_max: from.bytes_max,
    }
}

pub fn to_fetch_request(identity: &Identity, from: v1::FetchRequest) -> Result<FetchRequest, PeerError> {
    Ok(FetchRequest {
        asker: identity.check(from.caller)?,
        origin: convert::to_region(&from.origin).map_err(corrupt)?,
        keyspace: KeyspaceId(from.keyspace),
        shard: ShardId(from.shard),
        after: to_vector(from.after)?,
        bytes_max: from.bytes_max,
    })
}

pub fn fetch_response(from: FetchReply) -> v1::FetchResponse {
    v1::FetchResponse {
        batch: Some(delta_batch(from.batch, v1::Compression::Zstd)),
        more: from.more,
        needs_state: from.needs_state,
    }
}

pub fn to_fetch_reply(from: v1::FetchResponse) -> Result<FetchReply, PeerError> {
    let batch = from.batch.ok_or_else(|| corrupt("a fetch without its batch"))?;
    let batch = to_delta_batch(batch, v1::Compression::Zstd)?;
    Ok(FetchReply { batch, more: from.more, needs_state: from.needs_state })
}

pub fn state_request(identity: &Identity, from: StateRequest) -> v1::StateRequest {
    v1::StateRequest {
        caller: identity.caller(),
        keyspace: from.keyspace.0,
        shard: from.shard.0,
        start: from.start,
        bytes_max: from.bytes_max,
        caller_is_behind: from.asker_is_behind,
        changes_after: from.changes_after.as_ref().map(convert::vector),
    }
}

pub fn to_state_request(identity: &Identity, from: v1::StateRequest) -> Result<StateRequest, PeerError> {
    Ok(StateRequest {
        asker: identity.check(from.caller)?,
        asker_is_behind: from.caller_is_behind,
        keyspace: KeyspaceId(from.keyspace),
        shard: ShardId(from.shard),
        start: from.start,
        bytes_max: from.bytes_max,
        changes_after: from.changes_after.map(|after| to_vector(Some(after))).transpose()?,
    })
}

pub fn metadata_request(identity: &Identity, from: MetadataRequest) -> v1::MetadataRequest {
    let caller = identity.caller().map(|caller| v1::Caller { incarnation: from.incarnation.0, ..caller });
    v1::MetadataRequest { caller, to: from.to.to_string(), body: from.body }
}

pub fn to_metadata_request(identity: &Identity, from: v1::MetadataRequest) -> Result<MetadataRequest, PeerError> {
    let incarnation = from.caller.as_ref().map_or(0, |caller| caller.incarnation);
    Ok(MetadataRequest {
        asker: identity.check(from.caller)?,
        incarnation: Incarnation(incarnation),
        to: convert::to_region(&from.to).map_err(corrupt)?,
        body: from.body,
    })
}

/// A message as it is sent: behind a byte that says how it is packed, and its length.
pub fn framed_len(message: &impl Message) -> u64 {
    5 + message.encoded_len() as u64
}

/// Why a state is sent.
pub fn state_cause(of_changes: bool) -> Cause {
    if of_changes { Cause::Warm } else { Cause::State }
}

pub fn state_response(from: &StateReply) -> Result<v1::StateResponse, PeerError> {
    let raw = codec::encode_state_chunk(&from.chunk);
    let packed = zstd::bulk::compress(&raw, ZSTD_LEVEL).map_err(corrupt)?;
    let block = v1::Block {
        compression: v1::Compression::Zstd.into(),
        data: Bytes::from(packed),
        uncompressed_bytes: u32::try_from(raw.len()).map_err(corrupt)?,
        crc32: crc32fast::hash(&raw),
    };
    let rows = from.rows.iter().map(|(incarnation, row)| convert::row(*incarnation, row)).collect();
    Ok(v1::StateResponse { rows, block: Some(block) })
}

pub fn to_state_reply(from: v1::StateResponse) -> Result<StateReply, PeerError> {
    let block = block_packed_as(v1::Compression::Zstd, from.block)?;
    let length = block.uncompressed_bytes as usize;
    if length > BLOCK_BYTES_MAX {
        return Err(corrupt(format!("a block of {length} bytes, more than {BLOCK_BYTES_MAX}")));
    }
    let raw = zstd::bulk::decompress(&block.data, length).map_err(corrupt)?;
    if raw.len() != length || crc32fast::hash(&raw) != block.crc32 {
        return Err(corrupt("a block that fails its checksum"));
    }
    let chunk = codec::decode_state_chunk(Bytes::from(raw)).map_err(corrupt)?;
    Ok(StateReply { rows: convert::to_rows(from.rows).map_err(corrupt)?, chunk })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use isle_model::{Dot, Row};

    fn vector() -> Vector {
        Vector::of(Dot::new(Incarnation(7), 3))
    }

    #[test]
    fn a_hello_comes_back_as_it_was_sent() {
        let (ks, shard, eu) = (KeyspaceId(1), ShardId(2), Region::new("eu"));
        let row = Row { region: eu.clone(), parent: Some(Incarnation(6)), left_at: vec![1, 2, 3, 4] };
        let sent = Hello {
            protocol: 1,
            cluster: "c".to_owned(),
            region: eu.clone(),
            incarnation: Incarnation(7),
            rows: vec![(Incarnation(7), row)],
            feature_level: 1,
            shards: 4,
            keyspaces: Arc::new([(ks, 99)].into()),
            cursors: vec![(ks, shard, vector())],
            stated: vec![(ks, shard, vec![(eu.clone(), vector())])],
            absorbed: vec![(ks, shard, vec![(eu, vector())])],
        };
        assert_eq!(to_hello(hello(&sent)).unwrap(), sent);
    }

    #[test]
    fn messages_both_ways_come_back_as_they_were_sent() {
        let (keyspace, shard) = (KeyspaceId(1), ShardId(0));
        for sent in [
            ToSender::Ack { cursors: vec![(keyspace, shard, vector())], bytes: 5 },
            ToSender::Probe { id: 9 },
            ToSender::Refetch { keyspace, shard, after: vector() },
        ] {
            assert_eq!(of_receiver(to_sender(sent.clone())).unwrap(), sent);
        }
        let batch = DeltaBatch { rows: vec![], count: 2, raw_len: 10, crc: 3, zstd: Bytes::from_static(b"z") };
        for sent in [
            ToReceiver::Deltas(batch),
            ToReceiver::NeedsState { keyspace, shard, changes: true },
            ToReceiver::Heartbeat { lag_bytes: 1, caught_up: true },
            ToReceiver::ProbeAnswer { id: 9, wall_ms: 1_700_000_000_000, waiting: vec![(keyspace, shard)] },
        ] {
            assert_eq!(of_sender(to_receiver(sent.clone())).unwrap(), sent);
        }
    }

    #[test]
    fn a_caller_of_another_cluster_is_refused() {
        let identity = |cluster: &str| Identity { cluster: cluster.to_owned(), region: Region::new("eu") };
        assert_eq!(identity("a").check(identity("a").caller()).unwrap(), Region::new("eu"));
        assert!(matches!(identity("a").check(identity("b").caller()), Err(PeerError::Incompatible { .. })));
        assert!(matches!(identity("a").check(None), Err(PeerError::Corrupt { .. })));
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let chunk = isle_store::StateChunk {
            keyspace: KeyspaceId(1),
            shard: ShardId(0),
            start: Bytes::new(),
            end: None,
            absorbed: vec![(Region::new("eu"), vector())],
            records: vec![],
            ledger: vec![],
            taken_at: isle_model::Hlc::default(),
            changes: false,
            last_own: None,
        };
        let sent = state_response(&StateReply { rows: vec![], chunk }).unwrap();
        assert!(to_state_reply(sent.clone()).is_ok());
        let mut damaged = sent.clone();
        damaged.block.as_mut().unwrap().crc32 ^= 1;
        assert!(matches!(to_state_reply(damaged), Err(PeerError::Corrupt { .. })));
        let mut huge = sent;
        huge.block.as_mut().unwrap().uncompressed_bytes = u32::MAX;
        assert!(matches!(to_state_reply(huge), Err(PeerError::Corrupt { .. })));
    }
}
