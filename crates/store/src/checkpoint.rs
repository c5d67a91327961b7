//! Checkpoints: the view in key order, written aside, fsynced and renamed, with the log position from which a replay over it
//! restores everything. What the scan met beyond that position is replayed over harmlessly.
//!
//! Layout: frames of `length u32 LE | crc32fast u32 LE | payload`. The first is the header with the meta, the last the
//! manifest with counts; between them are chunks of items, each compressed by zstd. A file without its manifest is no checkpoint.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use isle_model::IncarnationTree;

use crate::codec::{self, DecodeError};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::log::LogPosition;
use crate::meta::{Manifest, Meta};
use crate::overlay::Item;
use crate::view_key::ViewKey;

const DIRECTORY: &str = "checkpoints";
/// A chunk holds about a thousand records; more than this uncompressed is damage or malice.
const CHUNK_BYTES_MAX: usize = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("checkpoint {name}: {source}")]
    Io { name: String, source: io::Error },
    #[error("checkpoint {name} fails its checksum at byte {at}")]
    Damaged { name: String, at: u64 },
    #[error("checkpoint {name}, frame at byte {at}: {source}")]
    Decode { name: String, at: u64, source: DecodeError },
    #[error("checkpoint {name} ends at byte {at} without its manifest")]
    Cut { name: String, at: u64 },
}

impl CheckpointError {
    /// The file is there and readable, and not what was written.
    pub(crate) fn is_damage(&self) -> bool {
        !matches!(self, CheckpointError::Io { .. })
    }
}

pub(crate) fn name_of(position: LogPosition) -> String {
    format!("{DIRECTORY}/{:016x}.ckpt", position.0)
}

/// Positions of the checkpoints there are, oldest first.
pub(crate) fn list(disk: &dyn Disk) -> io::Result<Vec<LogPosition>> {
    if !disk.exists(DIRECTORY)? {
        return Ok(Vec::new());
    }
    // A process that died before it could sync the directory left names that a power cut would still take back: the log
    // must not be trimmed on their strength.
    disk.sync_dir(DIRECTORY)?;
    let names = disk.list(DIRECTORY)?;
    let mut positions: Vec<LogPosition> = names
        .iter()
        .filter_map(|name| u64::from_str_radix(name.strip_suffix(".ckpt")?, 16).ok())
        .map(LogPosition)
        .collect();
    positions.sort_unstable();
    Ok(positions)
}

pub(crate) fn remove_others(disk: &dyn Disk, kept: LogPosition) -> Result<(), CheckpointError> {
    let io = |source| CheckpointError::Io { name: DIRECTORY.to_owned(), source };
    for position in list(disk).map_err(io)?.into_iter().filter(|position| *position != kept) {
        disk.remove(&name_of(position)).map_err(io)?;
    }
    disk.sync_dir(DIRECTORY).map_err(io)
}

pub(crate) struct CheckpointWriter {
    position: LogPosition,
    file: Arc<dyn DiskFile>,
    aside: String,
    at: u64,
    after: Option<ViewKey>,
    items: u64,
    chunks: u64,
}

impl CheckpointWriter {
    pub(crate) fn begin(disk: &dyn Disk, meta: Meta) -> Result<Self, CheckpointError> {
        let aside = format!("{DIRECTORY}/writing");
        let io = |source| CheckpointError::Io { name: aside.clone(), source };
        disk.create_dir(DIRECTORY).map_err(io)?;
        if disk.exists(&aside).map_err(io)? {
            disk.remove(&aside).map_err(io)?;
        }
        let file = disk.open(&aside, OpenMode::Create).map_err(io)?;
        let mut writer =
            CheckpointWriter { position: meta.position, file, aside, at: 0, after: None, items: 0, chunks: 0 };
        writer.frame(&codec::encode_checkpoint_header(&meta))?;
        Ok(writer)
    }

    pub(crate) fn after(&self) -> Option<&ViewKey> {
        self.after.as_ref()
    }

    pub(crate) fn write(&mut self, items: &[(ViewKey, Item)]) -> Result<(), CheckpointError> {
        let raw = codec::encode_checkpoint_chunk(items);
        let packed = zstd::bulk::compress(&raw, 1).map_err(|source| self.io(source))?;
        let mut payload = BytesMut::with_capacity(8 + packed.len());
        payload.put_u64_le(raw.len() as u64);
        payload.put_slice(&packed);
        self.frame(&payload)?;
        self.items += items.len() as u64;
        self.chunks += 1;
        self.after = items.last().map(|(key, _)| key.clone());
        Ok(())
    }

    /// `durable` and `tree` are of after the last item was read.
    pub(crate) fn finish(
        mut self,
        disk: &dyn Disk,
        durable: LogPosition,
        tree: IncarnationTree,
    ) -> Result<LogPosition, CheckpointError> {
        let manifest = Manifest { chunks: self.chunks, items: self.items, durable, tree };
        self.frame(&codec::encode_checkpoint_manifest(&manifest))?;
        self.file.sync_all().map_err(|source| self.io(source))?;
        disk.rename(&self.aside, &name_of(self.position)).map_err(|source| self.io(source))?;
        disk.sync_dir(DIRECTORY).map_err(|source| self.io(source))?;
        Ok(self.position)
    }

    pub(crate) fn abandon(self, disk: &dyn Disk) {
        if let Err(error) = disk.remove(&self.aside) {
            tracing::debug!(%error, "an abandoned checkpoint stays until the next");
        }
    }

    fn frame(&mut self, payload: &[u8]) -> Result<(), CheckpointError> {
        let mut out = BytesMut::with_capacity(8 + payload.len());
        out.put_u32_le(payload.len() as u32);
        out.put_u32_le(crc32fast::hash(payload));
        out.put_slice(payload);
        self.file.write_at(&out, self.at).map_err(|source| self.io(source))?;
        self.at += out.len() as u64;
        Ok(())
    }

    fn io(&self, source: io::Error) -> CheckpointError {
        CheckpointError::Io { name: self.aside.clone(), source }
    }
}

/// What a checkpoint says beside its items.
pub(crate) struct Loaded {
    /// As of its position, but for the tree, which has every incarnation that the items name.
    pub(crate) meta: Meta,
    pub(crate) durable: LogPosition,
}

/// Reads a checkpoint from end to end; `take` gets its items in key order. Bounded memory: a chunk at a time.
pub(crate) fn load<E: From<CheckpointError>>(
    disk: &dyn Disk,
    position: LogPosition,
    mut take: impl FnMut(ViewKey, Item) -> Result<(), E>,
) -> Result<Loaded, E> {
    let mut reader = Reader::open(disk, position)?;
    let (at, header) = reader.frame()?;
    let meta = codec::decode_checkpoint_header(header).map_err(|source| reader.decode(at, source))?;
    let (mut chunks, mut items) = (0, 0);
    loop {
        let (at, payload) = reader.frame()?;
        if reader.is_at_end() {
            let manifest = codec::decode_checkpoint_manifest(payload).map_err(|source| reader.decode(at, source))?;
            return match (manifest.chunks, manifest.items) == (chunks, items) {
                true => reader.finish(at, meta, manifest).map_err(E::from),
                false => Err(CheckpointError::Cut { name: reader.name, at }.into()),
            };
        }
        let raw = reader.unpack(at, &payload)?;
        for (key, item) in codec::decode_checkpoint_chunk(raw).map_err(|source| reader.decode(at, source))? {
            take(key, item)?;
            items += 1;
        }
        chunks += 1;
    }
}

struct Reader {
    name: String,
    file: Arc<dyn DiskFile>,
    length: u64,
    at: u64,
}

impl Reader {
    fn open(disk: &dyn Disk, position: LogPosition) -> Result<Reader, CheckpointError> {
        let name = name_of(position);
        let io = |source| CheckpointError::Io { name: name.clone(), source };
        let file = disk.open(&name, OpenMode::Read).map_err(io)?;
        let length = file.len().map_err(io)?;
        Ok(Reader { name, file, length, at: 0 })
    }

    fn is_at_end(&self) -> bool {
        self.at == self.length
    }

    fn frame(&mut self) -> Result<(u64, Bytes), CheckpointError> {
        let at = self.at;
        let header = self.take(8)?;
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let crc = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let payload = self.take(u64::from(length))?;
        match crc32fast::hash(&payload) == crc {
            true => Ok((at, payload)),
            false => Err(CheckpointError::Damaged { name: self.name.clone(), at }),
        }
    }

    fn take(&mut self, length: u64) -> Result<Bytes, CheckpointError> {
        if length > self.length - self.at {
            return Err(CheckpointError::Cut { name: self.name.clone(), at: self.at });
        }
        let mut out = vec![0; length as usize];
        let io = |source| CheckpointError::Io { name: self.name.clone(), source };
        let read = self.file.read_at(&mut out, self.at).map_err(io)?;
        if read as u64 != length {
            return Err(CheckpointError::Cut { name: self.name.clone(), at: self.at });
        }
        self.at += length;
        Ok(out.into())
    }

    fn unpack(&self, at: u64, payload: &Bytes) -> Result<Bytes, CheckpointError> {
        let damaged = || CheckpointError::Damaged { name: self.name.clone(), at };
        let (length, packed) = payload.split_at_checked(8).ok_or_else(damaged)?;
        let length = u64::from_le_bytes(length.try_into().map_err(|_| damaged())?) as usize;
        if length > CHUNK_BYTES_MAX {
            return Err(damaged());
        }
        zstd::bulk::decompress(packed, length).map(Bytes::from).map_err(|_| damaged())
    }

    fn finish(&self, at: u64, mut meta: Meta, manifest: Manifest) -> Result<Loaded, CheckpointError> {
        for (incarnation, row) in manifest.tree.rows() {
            let fits = meta.tree.insert(incarnation, row.clone());
            fits.map_err(|_| self.decode(at, DecodeError::Part("incarnation row")))?;
        }
        Ok(Loaded { meta, durable: manifest.durable })
    }

    fn decode(&self, at: u64, source: DecodeError) -> CheckpointError {
        CheckpointError::Decode { name: self.name.clone(), at, source }
    }
}
