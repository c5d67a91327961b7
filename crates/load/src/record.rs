//! Keys and values, made from a seed.
//!
//! The law: the key of a number is the same for every target and run, and no two numbers share one. Values are fresh for every
//! write, so that nothing between the client and the disk can know them already.

use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use serde::Serialize;

use crate::random::{Random, mix};

/// A u64 in decimal digits: a shorter key could not keep all numbers apart.
pub const KEY_BYTES_MIN: usize = 20;
/// Records are cut from blocks of this size: one allocation for hundreds of them, and small enough that a few that are kept for
/// long hold little.
const BLOCK_BYTES: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Bytes,
    pub value: Bytes,
}

impl Record {
    pub fn bytes(&self) -> u64 {
        (self.key.len() + self.value.len()) as u64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueKind {
    /// Random bytes: nothing compresses them.
    Random,
    /// An order of a web shop as JSON: names that repeat, numbers that do not. For what goes over links.
    Json,
}

/// How large keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    pub key_bytes: usize,
    pub value_bytes: usize,
    pub value: ValueKind,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { key_bytes: 24, value_bytes: 128, value: ValueKind::Random }
    }
}

/// Makes records.
#[derive(Debug)]
pub struct Records {
    shape: Shape,
    random: Random,
    block: BytesMut,
}

impl Records {
    pub fn new(shape: Shape, seed: u64) -> Records {
        Records { shape, random: Random::of(seed, "values"), block: BytesMut::new() }
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn record(&mut self, number: u64) -> Record {
        Record { key: self.key(number), value: self.value(number) }
    }

    /// As YCSB's: a prefix and a scrambled number, so that keys made one after the other lie anywhere in key order.
    pub fn key(&mut self, number: u64) -> Bytes {
        let wide = self.shape.key_bytes;
        let mut key = self.room(wide);
        let (prefix, digits) = key.split_at_mut(wide - KEY_BYTES_MIN);
        prefix.iter_mut().zip(b"user".iter().cycle()).for_each(|(place, letter)| *place = *letter);
        write_digits(digits, mix(number));
        key.freeze()
    }

    /// A fresh value; the number is only named in it.
    pub fn value(&mut self, number: u64) -> Bytes {
        let mut value = self.room(self.shape.value_bytes);
        match self.shape.value {
            ValueKind::Random => self.random.fill(&mut value),
            ValueKind::Json => write_order(&mut value, number, &mut self.random),
        }
        value.freeze()
    }

    fn room(&mut self, wide: usize) -> BytesMut {
        if self.block.len() < wide {
            self.block = BytesMut::zeroed(BLOCK_BYTES.max(wide));
        }
        self.block.split_to(wide)
    }
}

fn write_digits(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

const STATES: [&str; 5] = ["created", "paid", "packed", "shipped", "delivered"];
const CURRENCIES: [&str; 4] = ["EUR", "USD", "SGD", "GBP"];
const CITIES: [&str; 8] = ["Ulm", "Lyon", "Porto", "Osaka", "Austin", "Perth", "Lagos", "Quito"];

/// An order, filled up with a note (and, where even the bare order does not fit, cut off: then it is no JSON any more, but as
/// many bytes as asked for).
fn write_order(value: &mut [u8], number: u64, random: &mut Random) {
    let pick = |random: &mut Random, of: &[&'static str]| of[random.below(of.len() as u64) as usize];
    let mut text = format!(
        r#"{{"id":"ord-{number:010}","state":"{}","customer":"cus-{:07}","total":{}.{:02},"currency":"{}","city":"{}","items":{},"express":{},"updated_at":"2026-11-{:02}T{:02}:{:02}:{:02}Z","trace":"{:016x}{:016x}","note":""#,
        pick(random, &STATES),
        random.below(10_000_000),
        random.below(500),
        random.below(100),
        pick(random, &CURRENCIES),
        pick(random, &CITIES),
        1 + random.below(9),
        random.below(2) == 0,
        1 + random.below(30),
        random.below(24),
        random.below(60),
        random.below(60),
        random.word(),
        random.word(),
    );
    const NOTE: &str = "leave with the neighbour if nobody is at home, ring twice, beware of the dog ";
    let end = "\"}";
    let rest = value.len().saturating_sub(text.len() + end.len());
    text.extend(NOTE.chars().cycle().take(rest));
    text.push_str(end);
    value.copy_from_slice(&text.as_bytes()[..value.len()]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn json() -> Shape {
        Shape { value_bytes: 256, value: ValueKind::Json, ..Shape::default() }
    }

    #[test]
    fn numbers_never_share_a_key() {
        let mut records = Records::new(Shape::default(), 1);
        let keys: HashSet<Bytes> = (0..100_000).map(|number| records.key(number)).collect();
        assert_eq!(keys.len(), 100_000);
    }

    #[test]
    fn the_seed_decides_the_values_and_not_the_keys() {
        let made = |seed| Records::new(Shape::default(), seed).record(7);
        assert_eq!(made(1), made(1));
        assert_eq!(made(1).key, made(2).key);
        assert_ne!(made(1).value, made(2).value);
    }

    #[test]
    fn json_values_are_json() {
        let mut records = Records::new(json(), 3);
        for number in 0..1_000 {
            let value = records.value(number);
            let read: serde_json::Value = serde_json::from_slice(&value).unwrap();
            assert_eq!(read["id"], format!("ord-{number:010}"));
        }
    }

    /// The egress figures rest on it: values that compress better than real ones would flatter whoever compresses.
    #[test]
    fn json_values_compress_like_documents_do() {
        let mut records = Records::new(json(), 4);
        let mut left = |batch: u64| {
            let plain: Vec<u8> = (0..batch).flat_map(|number| records.value(number).to_vec()).collect();
            zstd::bulk::compress(&plain, 1).unwrap().len() as f64 / plain.len() as f64
        };
        let (one, ten, hundred) = (left(1), left(10), left(100));
        assert!((0.70..1.0).contains(&one), "1: {one:.2}");
        assert!((0.25..0.40).contains(&ten), "10: {ten:.2}");
        assert!((0.19..0.30).contains(&hundred), "100: {hundred:.2}");
    }

    proptest! {
        #[test]
        fn records_are_as_large_as_asked_for(
            key_bytes in KEY_BYTES_MIN..200,
            value_bytes in 0usize..100_000,
            json: bool,
            number: u64,
        ) {
            let value = if json { ValueKind::Json } else { ValueKind::Random };
            let shape = Shape { key_bytes, value_bytes, value };
            let record = Records::new(shape, 5).record(number);
            prop_assert_eq!((record.key.len(), record.value.len()), (key_bytes, value_bytes));
        }
    }
}
