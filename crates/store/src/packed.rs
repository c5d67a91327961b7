//! An item as the view stores it: encoded, with a checksum over its key and itself. The overlay holds it in this form, too: it
//! takes half the memory so, keeps no message alive that its value came in, and is drained as it is.
//!
//! ```text
//! value   encoded record or ledger entry | crc32 of tree, key and encoding, u32 LE
//! ```

use std::sync::Arc;

use bytes::Bytes;

use crate::codec;
use crate::overlay::Item;
use crate::view::ViewError;
use crate::view_key::{LEDGER, RECORDS, ViewKey};

const CRC_BYTES: usize = 4;
/// What an item takes in the overlay beside its key and its encoding: a place in the tree, and counts of references.
const OVERHEAD_BYTES: usize = 160;

#[derive(Clone, Debug)]
pub(crate) enum Packed {
    Record {
        value: Arc<[u8]>,
        is_live: bool,
    },
    Ledger(Arc<[u8]>),
    /// A forgotten tombstone: to be removed from the view.
    Gone,
}

impl Packed {
    pub(crate) fn of(key: &ViewKey, item: &Item) -> Packed {
        match item {
            Item::Record(record) => {
                let encoded = codec::encode_record_and_room(record, CRC_BYTES);
                Packed::Record { value: sealed(RECORDS, key.in_tree(), encoded).into(), is_live: record.is_live() }
            }
            Item::Ledger(entry) => {
                Packed::Ledger(pack(LEDGER, key.in_tree(), &codec::encode_ledger_entry(entry)).into())
            }
            Item::Gone => Packed::Gone,
        }
    }

    /// What it was made of, from memory: the checksum is for the disk.
    pub(crate) fn item(&self) -> Result<Item, ViewError> {
        match self {
            Packed::Record { value, .. } => item_of(RECORDS, encoded_of(value)),
            Packed::Ledger(value) => item_of(LEDGER, encoded_of(value)),
            Packed::Gone => Ok(Item::Gone),
        }
    }

    /// About how many bytes of memory it takes, its key apart.
    pub(crate) fn bytes(&self) -> usize {
        OVERHEAD_BYTES + self.stored_bytes()
    }

    /// How many bytes the view takes for its value.
    pub(crate) fn stored_bytes(&self) -> usize {
        match self {
            Packed::Record { value, .. } | Packed::Ledger(value) => value.len(),
            Packed::Gone => 0,
        }
    }

    pub(crate) fn is_same(&self, other: &Packed) -> bool {
        match (self, other) {
            (Packed::Record { value: a, .. }, Packed::Record { value: b, .. }) => Arc::ptr_eq(a, b),
            (Packed::Ledger(a), Packed::Ledger(b)) => Arc::ptr_eq(a, b),
            (Packed::Gone, Packed::Gone) => true,
            _ => false,
        }
    }
}

fn encoded_of(value: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&value[..value.len() - CRC_BYTES])
}

fn item_of(tree: u8, encoded: Bytes) -> Result<Item, ViewError> {
    Ok(match tree {
        LEDGER => Item::Ledger(Arc::new(codec::decode_ledger_entry(encoded)?)),
        _ => Item::Record(Arc::new(codec::decode_record(encoded)?)),
    })
}

pub(crate) fn pack(tree: u8, key: &[u8], encoded: &[u8]) -> Vec<u8> {
    sealed(tree, key, [encoded, &[0; CRC_BYTES]].concat())
}

/// Puts the checksum into the room behind what is encoded.
fn sealed(tree: u8, key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    if let Some((encoded, room)) = value.split_last_chunk_mut::<CRC_BYTES>() {
        *room = checksum(tree, key, encoded).to_le_bytes();
    }
    value
}

pub(crate) fn unpack(tree: u8, key: &[u8], value: &[u8]) -> Result<Bytes, ViewError> {
    Ok(Bytes::copy_from_slice(verified(tree, key, value)?))
}

fn verified<'a>(tree: u8, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], ViewError> {
    let sound = value
        .split_last_chunk::<CRC_BYTES>()
        .filter(|(encoded, crc)| checksum(tree, key, encoded).to_le_bytes() == **crc);
    let (encoded, _) = sound.ok_or(ViewError::Checksum { bytes: value.len() })?;
    Ok(encoded)
}

/// A row as it is stored, once its checksum is checked; `may_be_dead` says whether it has to be looked at for being a tombstone.
pub(crate) fn repack(
    tree: u8,
    key: &[u8],
    value: &[u8],
    may_be_dead: impl Fn(&ViewKey) -> bool,
) -> Result<(ViewKey, Packed), ViewError> {
    let encoded = verified(tree, key, value)?;
    let view_key = ViewKey::from_tree(tree, key);
    let packed = match tree {
        LEDGER => Packed::Ledger(value.into()),
        _ => {
            let is_live = !may_be_dead(&view_key) || codec::decode_record(Bytes::copy_from_slice(encoded))?.is_live();
            Packed::Record { value: value.into(), is_live }
        }
    };
    Ok((view_key, packed))
}

pub(crate) fn unpack_row(tree: u8, key: &[u8], value: &[u8]) -> Result<(ViewKey, Item), ViewError> {
    Ok((ViewKey::from_tree(tree, key), item_of(tree, unpack(tree, key, value)?)?))
}

/// Of the key, too: a sound value under another's key is as wrong as a broken one.
fn checksum(tree: u8, key: &[u8], encoded: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[tree]);
    hasher.update(&(key.len() as u32).to_le_bytes());
    hasher.update(key);
    hasher.update(encoded);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use isle_model::{Counter, Dot, Field, FieldKey, Incarnation, KeyspaceId, ShardId};

    use super::*;

    fn key(name: &str) -> ViewKey {
        ViewKey::record(KeyspaceId(1), ShardId(0), name.as_bytes())
    }

    fn counted() -> Item {
        let counter = Counter::default().added(Dot::new(Incarnation(7), 1), 5);
        let mut record = isle_model::Record::new();
        record.set(FieldKey::counter("n"), Field::Counter(counter));
        Item::Record(Arc::new(record))
    }

    #[test]
    fn what_is_packed_comes_back_from_memory_and_from_the_view() {
        let (item, key) = (counted(), key("a"));
        let Packed::Record { value, is_live: true } = Packed::of(&key, &item) else { panic!("a live record") };
        let packed = Packed::Record { value: value.clone(), is_live: true };
        let (Item::Record(was), Item::Record(is)) = (item, packed.item().unwrap()) else { panic!("records") };
        assert_eq!(was, is);
        let (again, Item::Record(stored)) = unpack_row(RECORDS, key.in_tree(), &value).unwrap() else {
            panic!("a record")
        };
        assert_eq!((again, stored), (key, is));
    }

    #[test]
    fn a_flipped_bit_and_anothers_key_are_found() {
        let Packed::Record { value, .. } = Packed::of(&key("a"), &counted()) else { panic!("a record") };
        for at in 0..value.len() {
            let mut damaged = value.to_vec();
            damaged[at] ^= 1;
            assert!(matches!(unpack(RECORDS, key("a").in_tree(), &damaged), Err(ViewError::Checksum { .. })));
        }
        assert!(unpack(RECORDS, key("b").in_tree(), &value).is_err());
        assert!(unpack(LEDGER, key("a").in_tree(), &value).is_err());
    }
}
