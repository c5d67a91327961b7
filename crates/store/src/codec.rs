//! Bytes of what is stored: between the model and the stored messages. Decoders return errors; they never panic.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use isle_model::limits::KEY_BYTES_MAX;
use isle_model::{
    Delta, Dot, Hlc, Incarnation, IncarnationTree, KeyspaceId, LedgerEntry, Record, Region, ShardId, Stated, Streams,
    Vector, planted,
};
use isle_proto::convert::{self, Unsound};
use isle_proto::{backward, storage as s, weight};
use prost::Message;

use crate::entry::{DeltaHead, Entry, Received, StateChunk};
use crate::log::LogPosition;
use crate::meta::{Begun, Manifest, Meta, Transfers, ViewMark};
use crate::overlay::Item;
use crate::view_key::{LEDGER, RECORDS, ViewKey};

const CHECKPOINT_FORMAT: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("not a message: {0}")]
    Message(#[from] prost::DecodeError),
    #[error(transparent)]
    Unsound(#[from] Unsound),
    #[error("{0} is missing or wrong")]
    Part(&'static str),
}

fn bytes_of(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

pub fn encode_delta(delta: &Delta) -> Bytes {
    backward::delta(delta)
}

pub fn decode_delta(bytes: Bytes) -> Result<Delta, DecodeError> {
    weight::delta(&bytes)?;
    match s::Delta::decode(bytes.clone()).map_err(DecodeError::from).and_then(|delta| Ok(convert::to_delta(delta)?)) {
        Err(_) if planted::is(planted::Bug::PassUnreadable) => passed_over(delta_head(bytes)?),
        decoded => decoded,
    }
}

/// Decodes a delta as it came, and keeps its bytes.
pub fn receive(encoded: Bytes) -> Result<Received, DecodeError> {
    let delta = decode_delta(encoded.clone())?;
    // What is planted passes over bytes that nobody can read: they would not be read from the log either.
    let encoded = if planted::is(planted::Bug::PassUnreadable) { encode_delta(&delta) } else { encoded };
    Ok(Received { delta, encoded })
}

impl From<Delta> for Received {
    fn from(delta: Delta) -> Received {
        Received { encoded: encode_delta(&delta), delta }
    }
}

/// Of the planted bug alone.
fn passed_over(head: DeltaHead) -> Result<Delta, DecodeError> {
    let DeltaHead { dot, prev, keyspace, shard, hlc, .. } = head;
    let body = isle_model::Body::Statement(isle_model::Statement::default());
    Ok(Delta { dot, prev, keyspace, shard, hlc, epoch: isle_model::Epoch::default(), body })
}

/// What is known of an encoded delta without decoding its body.
pub fn delta_head(bytes: Bytes) -> Result<DeltaHead, DecodeError> {
    let head = s::DeltaHead::decode(bytes)?;
    Ok(DeltaHead {
        dot: convert::to_dot(head.dot.ok_or(DecodeError::Part("dot"))?)?,
        prev: head.prev.map(convert::to_dot).transpose()?,
        keyspace: KeyspaceId(head.keyspace),
        shard: ShardId(head.shard),
        hlc: Hlc(head.hlc),
        is_statement: head.statement.is_some(),
    })
}

pub fn encode_record(record: &Record) -> Bytes {
    backward::record(record, 0).into()
}

/// The same, with room behind it for a checksum or the like.
pub(crate) fn encode_record_and_room(record: &Record, behind: usize) -> Vec<u8> {
    backward::record(record, behind)
}

pub fn decode_record(bytes: Bytes) -> Result<Record, DecodeError> {
    Ok(convert::to_record(s::Record::decode(bytes)?)?)
}

pub fn encode_ledger_entry(entry: &LedgerEntry) -> Bytes {
    bytes_of(&convert::ledger_entry(entry))
}

pub fn decode_ledger_entry(bytes: Bytes) -> Result<LedgerEntry, DecodeError> {
    Ok(convert::to_ledger_entry(s::LedgerEntry::decode(bytes)?)?)
}

pub fn encode_state_chunk(chunk: &StateChunk) -> Bytes {
    bytes_of(&state_chunk(chunk))
}

pub fn decode_state_chunk(bytes: Bytes) -> Result<StateChunk, DecodeError> {
    weight::state_chunk(&bytes)?;
    to_state_chunk(s::StateChunk::decode(bytes)?)
}

pub fn encode_entry(entry: &Entry) -> Bytes {
    use s::log_entry::Entry as Stored;
    let entry = match entry {
        Entry::Rows(rows) => {
            Stored::Rows(s::Rows { rows: rows.iter().map(|(i, row)| convert::row(*i, row)).collect() })
        }
        Entry::Delta(delta) => return entry_of_own(delta),
        Entry::Forget { keyspace, shard, key } => {
            Stored::Forget(s::Forget { keyspace: keyspace.0, shard: shard.0, key: key.clone() })
        }
        Entry::StateChunk(chunk) => Stored::StateChunk(state_chunk(chunk)),
        Entry::StateDone { keyspace, shard, cursors, heard, is_empty } => Stored::StateDone(s::StateDone {
            keyspace: keyspace.0,
            shard: shard.0,
            cursors: convert::absorbed(cursors.iter().map(|(r, v)| (r, v))),
            heard: heard.as_ref().map(|(from, stated)| heard_of(from, stated)),
            is_empty: *is_empty,
        }),
        Entry::StateBegun { keyspace, shard, from, begun } => {
            Stored::StateBegun(state_begun((*keyspace, *shard), from, begun))
        }
        Entry::Holder { region, expired } => {
            Stored::Holder(s::Holder { region: region.to_string(), expired: *expired })
        }
        Entry::DeltaAhead(delta) => return backward::entry_of_delta(DELTA_AHEAD_TAG, delta),
        Entry::Purge { keyspace, shard } => Stored::Purge(purge(&(*keyspace, *shard))),
    };
    bytes_of(&s::LogEntry { entry: Some(entry) })
}

pub fn decode_entry(bytes: Bytes) -> Result<Entry, DecodeError> {
    use s::log_entry::Entry as Stored;
    Ok(match s::LogEntry::decode(bytes)?.entry.ok_or(DecodeError::Part("log entry"))? {
        Stored::Rows(rows) => Entry::Rows(convert::to_rows(rows.rows)?),
        Stored::Delta(delta) => Entry::Delta(convert::to_delta(delta)?),
        Stored::Forget(f) => {
            Entry::Forget { keyspace: KeyspaceId(f.keyspace), shard: ShardId(f.shard), key: convert::to_key(f.key)? }
        }
        Stored::StateChunk(chunk) => Entry::StateChunk(to_state_chunk(chunk)?),
        Stored::StateDone(done) => Entry::StateDone {
            keyspace: KeyspaceId(done.keyspace),
            shard: ShardId(done.shard),
            cursors: convert::to_absorbed(done.cursors)?,
            heard: done.heard.map(to_heard).transpose()?,
            is_empty: done.is_empty,
        },
        Stored::StateBegun(begun) => {
            let (keyspace, shard) = (KeyspaceId(begun.keyspace), ShardId(begun.shard));
            let (from, begun) = to_begun(begun)?;
            Entry::StateBegun { keyspace, shard, from, begun }
        }
        Stored::Holder(holder) => {
            Entry::Holder { region: convert::to_region(&holder.region)?, expired: holder.expired }
        }
        Stored::DeltaAhead(delta) => Entry::DeltaAhead(convert::to_delta(delta)?),
        Stored::Purge(purge) => {
            let (keyspace, shard) = to_purge(purge);
            Entry::Purge { keyspace, shard }
        }
    })
}

fn purge((keyspace, shard): &(KeyspaceId, ShardId)) -> s::Purge {
    s::Purge { keyspace: keyspace.0, shard: shard.0 }
}

fn to_purge(from: s::Purge) -> (KeyspaceId, ShardId) {
    (KeyspaceId(from.keyspace), ShardId(from.shard))
}

fn state_begun((keyspace, shard): (KeyspaceId, ShardId), from: &Region, begun: &Begun) -> s::StateBegun {
    let pin = convert::absorbed(begun.pin.iter().map(|(r, v)| (r, v)));
    let (next, heard) = (begun.next.clone(), begun.heard.as_ref().map(|stated| heard_of(from, stated)));
    s::StateBegun { keyspace: keyspace.0, shard: shard.0, from: from.to_string(), pin, next, heard }
}

fn heard_of(holder: &Region, stated: &Stated) -> s::Heard {
    s::Heard {
        holder: holder.to_string(),
        absorbed: convert::absorbed(&stated.absorbed),
        dot: stated.dot.map(convert::dot),
    }
}

fn to_heard(from: s::Heard) -> Result<(Region, Stated), DecodeError> {
    let dot = from.dot.map(convert::to_dot).transpose()?;
    let absorbed = convert::to_absorbed(from.absorbed)?.into_iter().collect();
    Ok((convert::to_region(&from.holder)?, Stated { dot, absorbed }))
}

fn to_begun(from: s::StateBegun) -> Result<(Region, Begun), DecodeError> {
    let heard = from.heard.map(to_heard).transpose()?.map(|(_, stated)| stated);
    let begun = Begun { pin: convert::to_absorbed(from.pin)?, next: from.next, heard };
    Ok((convert::to_region(&from.from)?, begun))
}

/// A log entry of a delta of this region's.
pub(crate) fn entry_of_own(delta: &Delta) -> Bytes {
    backward::entry_of_delta(DELTA_TAG, delta)
}

/// The tags of `LogEntry.delta` and `LogEntry.delta_ahead`, and what they are written as: length-delimited both.
const DELTA_TAG: u32 = 2;
const DELTA_AHEAD_TAG: u32 = 10;
const DELTA: u64 = (DELTA_TAG as u64) << 3 | 2;
const DELTA_AHEAD: u64 = (DELTA_AHEAD_TAG as u64) << 3 | 2;

/// A log entry around a delta's bytes.
pub(crate) fn entry_of_delta(encoded: &[u8], ahead: bool) -> Bytes {
    let tag = if ahead { DELTA_AHEAD } else { DELTA };
    let mut out = BytesMut::with_capacity(encoded.len() + 12);
    prost::encoding::encode_varint(tag, &mut out);
    prost::encoding::encode_varint(encoded.len() as u64, &mut out);
    out.extend_from_slice(encoded);
    out.freeze()
}

/// The delta inside a log entry's bytes, not copied and not decoded; `None` where the entry is something else.
pub fn delta_of_entry(payload: &Bytes) -> Result<Option<(DeltaHead, Bytes)>, DecodeError> {
    let mut at = payload.clone();
    if !matches!(prost::encoding::decode_varint(&mut at)?, DELTA | DELTA_AHEAD) {
        return Ok(None);
    }
    let length = prost::encoding::decode_varint(&mut at)?;
    if length != at.remaining() as u64 {
        return Err(DecodeError::Part("delta's length"));
    }
    Ok(Some((delta_head(at.clone())?, at)))
}

fn state_chunk(chunk: &StateChunk) -> s::StateChunk {
    let keyed =
        |(key, record): &(Bytes, Record)| s::KeyedRecord { key: key.clone(), record: Some(convert::record(record)) };
    s::StateChunk {
        keyspace: chunk.keyspace.0,
        shard: chunk.shard.0,
        start: chunk.start.clone(),
        end: chunk.end.clone(),
        absorbed: convert::absorbed(chunk.absorbed.iter().map(|(r, v)| (r, v))),
        records: chunk.records.iter().map(keyed).collect(),
        ledger: convert::ledger(&chunk.ledger),
        taken_at: chunk.taken_at.0,
        changes: chunk.changes,
        last_own: chunk.last_own.map(convert::dot),
    }
}

fn to_state_chunk(from: s::StateChunk) -> Result<StateChunk, DecodeError> {
    let keyed = |keyed: s::KeyedRecord| {
        let record = keyed.record.ok_or(DecodeError::Part("record"))?;
        Ok((convert::to_key(keyed.key)?, convert::to_record(record)?))
    };
    Ok(StateChunk {
        keyspace: KeyspaceId(from.keyspace),
        shard: ShardId(from.shard),
        start: to_bound(from.start)?,
        end: from.end.map(to_bound).transpose()?,
        absorbed: convert::to_absorbed(from.absorbed)?,
        records: from.records.into_iter().map(keyed).collect::<Result<_, DecodeError>>()?,
        ledger: convert::to_ledger(from.ledger)?,
        taken_at: Hlc(from.taken_at),
        changes: from.changes,
        last_own: from.last_own.map(convert::to_dot).transpose()?,
    })
}

/// An end of a range: it may be one byte longer than a key, as the smallest key after the longest is.
fn to_bound(key: Bytes) -> Result<Bytes, DecodeError> {
    if key.len() > KEY_BYTES_MAX + 1 { Err(DecodeError::Part("range")) } else { Ok(key) }
}

fn meta(meta: &Meta) -> s::Meta {
    let stream = |((keyspace, shard), streams): (&(KeyspaceId, ShardId), &Streams)| s::StreamState {
        keyspace: keyspace.0,
        shard: shard.0,
        applied: convert::absorbed(streams.applied()),
        heard: streams.heard().iter().map(|(holder, heard)| heard_of(holder, heard)).collect(),
        last_own: streams.last_own().map(convert::dot),
    };
    s::Meta {
        position: meta.position.0,
        rows: meta.tree.rows().map(|(incarnation, row)| convert::row(incarnation, row)).collect(),
        last_incarnation: meta.last_incarnation.map_or(0, |i| i.0),
        last_seqs: meta.last_seqs.clone(),
        streams: meta.streams.iter().map(stream).collect(),
        hlc_high: meta.hlc_high.0,
        expired: meta.expired.iter().map(Region::to_string).collect(),
        transfers: meta.transfers.iter().map(|(stream, left)| transfers(*stream, left)).collect(),
        purging: meta.purging.iter().map(purge).collect(),
    }
}

fn transfers(stream: (KeyspaceId, ShardId), left: &Transfers) -> s::TransferState {
    s::TransferState {
        keyspace: stream.0.0,
        shard: stream.1.0,
        open: left.open.iter().map(|(from, begun)| state_begun(stream, from, begun)).collect(),
        shown: (!left.shown.is_empty()).then(|| convert::vector(&left.shown)),
    }
}

fn to_transfers(from: s::TransferState) -> Result<((KeyspaceId, ShardId), Transfers), DecodeError> {
    let shown = from.shown.as_ref().map(convert::to_vector).transpose()?.unwrap_or_default();
    let open = from.open.into_iter().map(to_begun).collect::<Result<_, _>>()?;
    Ok(((KeyspaceId(from.keyspace), ShardId(from.shard)), Transfers { open, shown }))
}

fn to_meta(from: s::Meta) -> Result<Meta, DecodeError> {
    let tree = to_tree(from.rows)?;
    let shards = from.last_seqs.len();
    let named = from.streams.iter().map(|streams| streams.shard).chain(from.transfers.iter().map(|left| left.shard));
    if named.chain(from.purging.iter().map(|purge| purge.shard)).any(|shard| shard as usize >= shards) {
        return Err(DecodeError::Part("stream's shard"));
    }
    let streams = from.streams.into_iter().map(to_streams).collect::<Result<BTreeMap<_, _>, _>>()?;
    Ok(Meta {
        position: LogPosition(from.position),
        tree,
        last_incarnation: (from.last_incarnation != 0).then_some(Incarnation(from.last_incarnation)),
        last_seqs: from.last_seqs,
        streams,
        hlc_high: Hlc(from.hlc_high),
        expired: from.expired.iter().map(|region| convert::to_region(region)).collect::<Result<_, _>>()?,
        transfers: from.transfers.into_iter().map(to_transfers).collect::<Result<_, _>>()?,
        purging: from.purging.into_iter().map(to_purge).collect(),
    })
}

fn to_streams(from: s::StreamState) -> Result<((KeyspaceId, ShardId), Streams), DecodeError> {
    let to_map = |said| -> Result<BTreeMap<Region, Vector>, DecodeError> {
        Ok(convert::to_absorbed(said)?.into_iter().collect())
    };
    let heard = from.heard.into_iter().map(to_heard).collect::<Result<BTreeMap<_, _>, _>>()?;
    let last_own: Option<Dot> = from.last_own.map(convert::to_dot).transpose()?;
    let streams = Streams::from_parts(to_map(from.applied)?, heard, last_own);
    Ok(((KeyspaceId(from.keyspace), ShardId(from.shard)), streams))
}

pub fn encode_view_mark(mark: &ViewMark) -> Bytes {
    let meta = meta(&mark.meta);
    let meta_crc = crc32fast::hash(&meta.encode_to_vec());
    let mut stored = s::ViewMark {
        generation: mark.generation,
        boot_id: mark.boot_id.clone(),
        mount_id: mark.mount_id.clone(),
        clean: mark.clean,
        meta: Some(meta),
        meta_crc,
        seal: mark.seal,
        crc: 0,
    };
    if mark.seal > 0 {
        stored.crc = crc32fast::hash(&stored.encode_to_vec());
    }
    bytes_of(&stored)
}

/// A mark whose own checksum fails keeps its meta, which has another, and vouches for no view.
pub fn decode_view_mark(bytes: Bytes) -> Result<ViewMark, DecodeError> {
    let mut mark = s::ViewMark::decode(bytes)?;
    let crc = std::mem::take(&mut mark.crc);
    let is_sound = crc32fast::hash(&mark.encode_to_vec()) == crc;
    let meta = mark.meta.ok_or(DecodeError::Part("meta"))?;
    if crc32fast::hash(&meta.encode_to_vec()) != mark.meta_crc {
        return Err(DecodeError::Part("meta's checksum"));
    }
    Ok(ViewMark {
        generation: mark.generation,
        boot_id: mark.boot_id,
        mount_id: mark.mount_id,
        clean: mark.clean,
        seal: if is_sound { mark.seal } else { 0 },
        meta: to_meta(meta)?,
    })
}

pub(crate) fn encode_checkpoint_header(of: &Meta) -> Bytes {
    bytes_of(&s::CheckpointHeader { format: CHECKPOINT_FORMAT, meta: Some(meta(of)) })
}

pub(crate) fn decode_checkpoint_header(bytes: Bytes) -> Result<Meta, DecodeError> {
    let header = s::CheckpointHeader::decode(bytes)?;
    if header.format != CHECKPOINT_FORMAT {
        return Err(DecodeError::Part("checkpoint format"));
    }
    to_meta(header.meta.ok_or(DecodeError::Part("meta"))?)
}

pub(crate) fn encode_checkpoint_chunk(items: &[(ViewKey, Item)]) -> Bytes {
    use s::checkpoint_item::Item as Stored;
    let one = |(key, item): &(ViewKey, Item)| s::CheckpointItem {
        view_key: Bytes::copy_from_slice(key.as_bytes()),
        item: match item {
            Item::Record(record) => Some(Stored::Record(convert::record(record))),
            Item::Ledger(entry) => Some(Stored::Ledger(convert::ledger_entry(entry))),
            Item::Gone => None,
        },
    };
    bytes_of(&s::CheckpointChunk { items: items.iter().map(one).collect() })
}

pub(crate) fn decode_checkpoint_chunk(bytes: Bytes) -> Result<Vec<(ViewKey, Item)>, DecodeError> {
    use s::checkpoint_item::Item as Stored;
    let one = |item: s::CheckpointItem| {
        let key = ViewKey::from_stored(item.view_key).ok_or(DecodeError::Part("view key"))?;
        let item = match (key.tree(), item.item) {
            (RECORDS, Some(Stored::Record(record))) => Item::Record(convert::to_record(record)?.into()),
            (LEDGER, Some(Stored::Ledger(entry))) => Item::Ledger(convert::to_ledger_entry(entry)?.into()),
            _ => return Err(DecodeError::Part("checkpoint item")),
        };
        Ok((key, item))
    };
    s::CheckpointChunk::decode(bytes)?.items.into_iter().map(one).collect()
}

pub(crate) fn encode_checkpoint_manifest(manifest: &Manifest) -> Bytes {
    bytes_of(&s::CheckpointManifest {
        chunks: manifest.chunks,
        items: manifest.items,
        durable: manifest.durable.0,
        rows: manifest.tree.rows().map(|(incarnation, row)| convert::row(incarnation, row)).collect(),
    })
}

pub(crate) fn decode_checkpoint_manifest(bytes: Bytes) -> Result<Manifest, DecodeError> {
    let manifest = s::CheckpointManifest::decode(bytes)?;
    let (chunks, items, durable) = (manifest.chunks, manifest.items, LogPosition(manifest.durable));
    Ok(Manifest { chunks, items, durable, tree: to_tree(manifest.rows)? })
}

fn to_tree(rows: Vec<s::IncarnationRow>) -> Result<IncarnationTree, DecodeError> {
    let mut tree = IncarnationTree::new();
    for (incarnation, row) in convert::to_rows(rows)? {
        tree.insert(incarnation, row).map_err(|_| DecodeError::Part("incarnation row"))?;
    }
    Ok(tree)
}

#[cfg(test)]
mod tests;
