//! Keys of the view. Order is what they are for: a keyspace's shard is one range, and a ledger entry sorts by its key.
//!
//! ```text
//! records, tombstones   keyspace u64 BE | shard u32 BE | key
//! ledger                keyspace u64 BE | shard u32 BE | key, escaped | 00 00 | loser's incarnation, seq (u64 BE) | kind | field name
//! ```
//! The escape writes a zero byte as 00 FF, so that no key is a prefix of another's entries.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use isle_model::{Dot, FieldKey, KeyspaceId, ShardId};

const PREFIX: usize = 12;
/// What is no longer is held where the key is: the overlay's tree compares keys all day, and need not go elsewhere for each.
const INLINE_BYTES: usize = 46;

/// A key of the view, with the tree it belongs to in front: what the overlay is sorted by.
#[derive(Clone)]
pub(crate) enum ViewKey {
    Short { length: u8, bytes: [u8; INLINE_BYTES] },
    Long(Arc<[u8]>),
}

impl PartialEq for ViewKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for ViewKey {}

impl PartialOrd for ViewKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ViewKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for ViewKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl std::fmt::Debug for ViewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ViewKey({:?})", self.as_bytes())
    }
}

pub(crate) const RECORDS: u8 = 1;
pub(crate) const LEDGER: u8 = 2;

impl ViewKey {
    fn of(parts: &[&[u8]]) -> ViewKey {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > INLINE_BYTES {
            return ViewKey::Long(parts.concat().into());
        }
        let mut bytes = [0; INLINE_BYTES];
        let mut room = &mut bytes[..];
        parts.iter().for_each(|part| room.put_slice(part));
        ViewKey::Short { length: length as u8, bytes }
    }

    pub(crate) fn record(keyspace: KeyspaceId, shard: ShardId, key: &[u8]) -> ViewKey {
        ViewKey::of(&[&start(RECORDS, keyspace, shard), key])
    }

    pub(crate) fn ledger(keyspace: KeyspaceId, shard: ShardId, key: &[u8], loser: Dot, field: &FieldKey) -> ViewKey {
        let mut out = start(LEDGER, keyspace, shard).to_vec();
        escape(&mut out, key);
        out.put_u16(0);
        out.put_u64(loser.incarnation.0);
        out.put_u64(loser.seq);
        out.put_u8(field.kind as u8);
        out.put_slice(field.name.as_str().as_bytes());
        ViewKey::of(&[&out])
    }

    /// Where the ledger entries of keys at or above `key` begin.
    pub(crate) fn ledger_from(keyspace: KeyspaceId, shard: ShardId, key: &[u8]) -> ViewKey {
        let mut out = start(LEDGER, keyspace, shard).to_vec();
        escape(&mut out, key);
        ViewKey::of(&[&out])
    }

    /// Below every key of this keyspace and shard in this tree: no user's key is empty.
    pub(crate) fn start(tree: u8, keyspace: KeyspaceId, shard: ShardId) -> ViewKey {
        ViewKey::of(&[&start(tree, keyspace, shard)])
    }

    /// The first key after every key of this keyspace and shard in this tree.
    pub(crate) fn end(tree: u8, keyspace: KeyspaceId, shard: ShardId) -> ViewKey {
        match shard.0.checked_add(1) {
            Some(next) => ViewKey::of(&[&start(tree, keyspace, ShardId(next))]),
            None => ViewKey::of(&[&start(tree, KeyspaceId(keyspace.0 + 1), ShardId(0))]),
        }
    }

    /// Below every key of a tree.
    pub(crate) fn first(tree: u8) -> ViewKey {
        ViewKey::from_tree(tree, &[])
    }

    /// Above every key of a tree: keyspace ids are given out from below and never reach the highest.
    pub(crate) fn last(tree: u8) -> ViewKey {
        ViewKey::from_tree(tree, &[0xff; PREFIX])
    }

    /// The smallest key after this one.
    pub(crate) fn successor(&self) -> ViewKey {
        ViewKey::of(&[self.as_bytes(), &[0]])
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            ViewKey::Short { length, bytes } => &bytes[..usize::from(*length)],
            ViewKey::Long(bytes) => bytes,
        }
    }

    /// Bytes of memory that it takes beside itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            ViewKey::Short { .. } => 0,
            ViewKey::Long(bytes) => 16 + bytes.len(),
        }
    }

    pub(crate) fn tree(&self) -> u8 {
        self.as_bytes()[0]
    }

    /// The key within its tree, as sled holds it.
    pub(crate) fn in_tree(&self) -> &[u8] {
        &self.as_bytes()[1..]
    }

    pub(crate) fn from_tree(tree: u8, key: &[u8]) -> ViewKey {
        ViewKey::of(&[&[tree], key])
    }

    /// A key that was stored whole; `None` where it is none of ours.
    pub(crate) fn from_stored(bytes: Bytes) -> Option<ViewKey> {
        let sound = matches!(bytes.first(), Some(&(RECORDS | LEDGER))) && bytes.len() > 1 + PREFIX;
        sound.then(|| ViewKey::of(&[&bytes]))
    }

    pub(crate) fn keyspace(&self) -> KeyspaceId {
        let bytes: [u8; 8] = self.as_bytes()[1..9].try_into().expect("a view key starts with tree, keyspace and shard");
        KeyspaceId(u64::from_be_bytes(bytes))
    }

    /// Whether it is the key of this record, within its shard.
    pub(crate) fn is_record_of(&self, keyspace: KeyspaceId, key: &[u8]) -> bool {
        self.tree() == RECORDS && self.as_bytes()[1 + PREFIX..] == *key && self.keyspace() == keyspace
    }

    /// The user's key of a record.
    pub(crate) fn user_key(&self) -> Bytes {
        debug_assert_eq!(self.tree(), RECORDS);
        Bytes::copy_from_slice(&self.as_bytes()[1 + PREFIX..])
    }
}

fn start(tree: u8, keyspace: KeyspaceId, shard: ShardId) -> [u8; 1 + PREFIX] {
    let mut out = [tree; 1 + PREFIX];
    out[1..9].copy_from_slice(&keyspace.0.to_be_bytes());
    out[9..].copy_from_slice(&shard.0.to_be_bytes());
    out
}

fn escape(out: &mut Vec<u8>, key: &[u8]) {
    for &byte in key {
        out.put_u8(byte);
        if byte == 0 {
            out.put_u8(0xff);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use isle_model::Incarnation;
    use proptest::prelude::*;

    /// Every view and every checkpoint is keyed so: a change makes them unreadable.
    #[test]
    fn layouts_are_frozen() {
        let record = ViewKey::record(KeyspaceId(0x0102), ShardId(3), b"k\0y");
        assert_eq!(record.as_bytes(), b"\x01\0\0\0\0\0\0\x01\x02\0\0\0\x03k\0y");
        let loser = Dot::new(Incarnation(0x0405), 6);
        let ledger = ViewKey::ledger(KeyspaceId(0x0102), ShardId(3), b"k\0y", loser, &FieldKey::counter("f"));
        let (start, end) =
            (b"\x02\0\0\0\0\0\0\x01\x02\0\0\0\x03k\0\xffy\0\0", b"\0\0\0\0\0\0\x04\x05\0\0\0\0\0\0\0\x06\x02f");
        assert_eq!(ledger.as_bytes(), [&start[..], &end[..]].concat());
    }

    #[test]
    fn what_is_no_view_key_is_not_taken_for_one() {
        for bytes in [&b""[..], b"\x01", b"\x03aaaaaaaaaaaaa", b"\x00aaaaaaaaaaaaa", b"\x01aaaaaaaaaaaa"] {
            assert_eq!(ViewKey::from_stored(Bytes::copy_from_slice(bytes)), None, "{bytes:?}");
        }
        let key = b"\x01aaaaaaaaaaaak";
        assert_eq!(ViewKey::from_stored(Bytes::from_static(key)).unwrap().as_bytes(), key);
    }

    proptest! {
        #[test]
        fn ledger_keys_sort_by_their_users_keys(a: Vec<u8>, b: Vec<u8>, seq_a: u64, seq_b: u64) {
            let of = |key: &[u8], seq| {
                ViewKey::ledger(KeyspaceId(7), ShardId(1), key, Dot::new(Incarnation(9), seq), &FieldKey::value("f"))
            };
            if a != b {
                prop_assert_eq!(a.cmp(&b), of(&a, seq_a).cmp(&of(&b, seq_b)));
            }
            prop_assert!(of(&a, seq_a) >= ViewKey::ledger_from(KeyspaceId(7), ShardId(1), &a));
            prop_assert!(of(&a, seq_a) < ViewKey::end(LEDGER, KeyspaceId(7), ShardId(1)));
        }

        #[test]
        fn long_and_short_keys_are_in_one_order(a: Vec<u8>, b: Vec<u8>, most in 0..80usize) {
            let cut = |key: &[u8]| key[..key.len().min(most)].to_vec();
            let (a, b) = (cut(&a), cut(&b));
            let of = |key: &[u8]| ViewKey::record(KeyspaceId(7), ShardId(1), key);
            prop_assert_eq!(a.cmp(&b), of(&a).cmp(&of(&b)));
            prop_assert_eq!(a == b, of(&a) == of(&b));
            prop_assert!(of(&a) < of(&a).successor());
        }

        #[test]
        fn record_keys_give_back_what_they_were_made_of(keyspace: u64, shard: u32, key: Vec<u8>) {
            let made = ViewKey::record(KeyspaceId(keyspace), ShardId(shard), &key);
            prop_assert_eq!(made.keyspace(), KeyspaceId(keyspace));
            prop_assert_eq!(made.user_key(), Bytes::copy_from_slice(&key));
            prop_assert_eq!(ViewKey::from_tree(RECORDS, made.in_tree()), made);
        }
    }
}
