//! What a message would take in memory, counted before it is decoded.
//!
//! A part of a list may take two bytes on the wire and hundreds once decoded: some megabytes of empty ledger entries, which
//! compress to nothing, would make gigabytes. What isle makes takes a few bytes in memory for each one on the wire, so what
//! takes many more was not made by isle, and is refused unread. What is no message at all is left to the decoder.

use std::mem::size_of;

use crate::convert::Unsound;
use crate::storage as s;

/// For each byte on the wire. The smallest sound parts of any list stay well below.
const FACTOR: usize = 32;
/// Small messages are no danger whatever they hold.
const SLACK: usize = 64 << 10;

/// A kind of message: what one takes, and which of its fields hold messages.
struct Shape {
    bytes: usize,
    parts: &'static [(u32, &'static Shape)],
}

const fn leaf<T>() -> Shape {
    Shape { bytes: size_of::<T>(), parts: &[] }
}

const fn shape<T>(parts: &'static [(u32, &'static Shape)]) -> Shape {
    Shape { bytes: size_of::<T>(), parts }
}

// The tags are those of storage.proto.
static DOT: Shape = leaf::<s::Dot>();
static VECTOR: Shape = shape::<s::Vector>(&[(1, &DOT)]);
static SIBLING: Shape = shape::<s::Sibling>(&[(1, &DOT)]);
static REGISTER: Shape = shape::<s::Register>(&[(1, &SIBLING), (2, &VECTOR)]);
static TOTAL: Shape = leaf::<s::CounterTotal>();
static COVERED: Shape = leaf::<s::CounterCovered>();
static COUNTER: Shape = shape::<s::Counter>(&[(1, &TOTAL), (2, &COVERED), (3, &VECTOR)]);
static FIELD: Shape = shape::<s::Field>(&[(3, &REGISTER), (4, &COUNTER)]);
static RECORD: Shape = shape::<s::Record>(&[(1, &FIELD)]);
static LEDGER: Shape = shape::<s::LedgerEntry>(&[(5, &DOT), (6, &SIBLING), (7, &DOT), (11, &DOT)]);
static WRITE: Shape = shape::<s::Write>(&[(2, &FIELD), (3, &LEDGER)]);
static ABSORBED: Shape = shape::<s::Absorbed>(&[(2, &VECTOR)]);
static STATEMENT: Shape = shape::<s::Statement>(&[(1, &ABSORBED)]);
static DELTA: Shape = shape::<s::Delta>(&[(1, &DOT), (2, &DOT), (7, &WRITE), (8, &STATEMENT)]);
static KEYED: Shape = shape::<s::KeyedRecord>(&[(2, &RECORD)]);
static CHUNK: Shape = shape::<s::StateChunk>(&[(5, &ABSORBED), (6, &KEYED), (7, &LEDGER)]);

/// Refuses an encoded `Delta` that would take out of proportion.
pub fn delta(bytes: &[u8]) -> Result<(), Unsound> {
    check(bytes, &DELTA)
}

/// Refuses an encoded `StateChunk` that would take out of proportion.
pub fn state_chunk(bytes: &[u8]) -> Result<(), Unsound> {
    check(bytes, &CHUNK)
}

fn check(bytes: &[u8], shape: &Shape) -> Result<(), Unsound> {
    let mut left = bytes.len().saturating_mul(FACTOR).saturating_add(SLACK);
    weigh(bytes, shape, &mut left)
}

/// Takes off what the parts of a message weigh. No deeper than shapes go, which do not hold themselves.
fn weigh(mut at: &[u8], shape: &Shape, left: &mut usize) -> Result<(), Unsound> {
    while let Some((tag, part)) = next_part(&mut at) {
        let Some((_, inner)) = shape.parts.iter().find(|(known, _)| *known == tag) else { continue };
        *left = left.checked_sub(inner.bytes).ok_or(Unsound::OutOfBounds("weight"))?;
        weigh(part, inner, left)?;
    }
    Ok(())
}

/// The next length-delimited field; `None` at the end, or where the bytes are no message.
fn next_part<'a>(at: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    loop {
        let key = take_varint(at)?;
        match key & 7 {
            0 => drop(take_varint(at)?),
            1 => drop(take(at, 8)?),
            2 => {
                let length = usize::try_from(take_varint(at)?).ok()?;
                return Some((u32::try_from(key >> 3).ok()?, take(at, length)?));
            }
            5 => drop(take(at, 4)?),
            _ => return None,
        }
    }
}

fn take<'a>(at: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = at.split_at_checked(length)?;
    *at = rest;
    Some(taken)
}

fn take_varint(at: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(at, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn dot() -> s::Dot {
        s::Dot { incarnation: 1, seq: 1 }
    }

    fn encoded(write: s::Write) -> Vec<u8> {
        s::Delta { dot: Some(dot()), body: Some(s::delta::Body::Write(write)), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn the_smallest_sound_parts_are_light_enough() {
        let seen = || Some(s::Vector { entries: vec![dot()] });
        let register = s::Register { seen: seen(), ..Default::default() };
        let content = Some(s::field::Content::Register(register));
        let field = s::Field { kind: s::Kind::Value as i32, content, ..Default::default() };
        let entry = s::LedgerEntry {
            key: vec![1].into(),
            kind: s::Kind::Value as i32,
            loser: Some(dot()),
            seen_in: "a".to_owned(),
            fate: s::Fate::Open as i32,
            ..Default::default()
        };
        let sibling = s::Sibling { dot: Some(dot()), r#type: s::ValueType::Bytes as i32, ..Default::default() };
        let many = s::Register { siblings: vec![sibling; 50_000], seen: seen(), ..Default::default() };
        let many = s::Field { content: Some(s::field::Content::Register(many)), ..field.clone() };
        for write in [
            s::Write { fields: vec![field; 50_000], ..Default::default() },
            s::Write { ledger: vec![entry; 50_000], ..Default::default() },
            s::Write { fields: vec![many], ..Default::default() },
        ] {
            assert_eq!(delta(&encoded(write)), Ok(()));
        }
        let absorbed = s::Absorbed { region: "a".to_owned(), vector: seen() };
        let record = s::KeyedRecord { key: vec![1].into(), record: Some(s::Record::default()) };
        let chunk =
            s::StateChunk { absorbed: vec![absorbed; 50_000], records: vec![record; 50_000], ..Default::default() };
        assert_eq!(state_chunk(&chunk.encode_to_vec()), Ok(()));
    }

    #[test]
    fn many_empty_parts_are_refused_unread() {
        for write in [
            s::Write { ledger: vec![s::LedgerEntry::default(); 50_000], ..Default::default() },
            s::Write { fields: vec![s::Field::default(); 50_000], ..Default::default() },
        ] {
            assert_eq!(delta(&encoded(write)), Err(Unsound::OutOfBounds("weight")));
        }
        let chunk = s::StateChunk { ledger: vec![s::LedgerEntry::default(); 50_000], ..Default::default() };
        assert_eq!(state_chunk(&chunk.encode_to_vec()), Err(Unsound::OutOfBounds("weight")));
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
        for bytes in [&[0xff; 40][..], &[], &[7 << 3 | 2, 0xff, 0xff, 0xff, 0xff, 7], &[3, 3, 3]] {
            assert_eq!(delta(bytes), Ok(()));
        }
    }
}
