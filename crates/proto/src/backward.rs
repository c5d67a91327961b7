//! Encodes what every write needs, records and deltas, straight from the model.
//!
//! Protobuf puts the length of a message before it. Written from the last byte to the first, a message is finished when its length
//! is due, so that nothing is measured beforehand and no message of generated code is built. (The way of upb and of Go's
//! `gogoproto` marshallers.) The bytes are those of the generated code, and a property test says so; what is rare is left to it.

use bytes::Bytes;
use isle_model::{Body, Delta, Dot, Field, FieldKey, Record, Register, Sibling, Vector};
use prost::Message;

use crate::convert;

/// What a delta takes beside its record, unless it names losers.
const DELTA_BYTES: usize = 96;

/// A `storage.v1.Record`, with room behind it for as many bytes as `behind` says.
pub fn record(record: &Record, behind: usize) -> Vec<u8> {
    let mut out = Backward::with_capacity(record.size() + behind);
    out.skip(behind);
    out.fields(1, record);
    out.into_vec()
}

/// A `storage.v1.Delta`.
pub fn delta(delta: &Delta) -> Bytes {
    let mut out = Backward::of_delta(delta);
    out.delta(delta);
    out.into_vec().into()
}

/// A `storage.v1.LogEntry` of that tag, around a delta.
pub fn entry_of_delta(tag: u32, delta: &Delta) -> Bytes {
    let mut out = Backward::of_delta(delta);
    out.message(tag, |out| out.delta(delta));
    out.into_vec().into()
}

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const DELIMITED: u32 = 2;

/// Bytes filled from their end. Fields are written from the highest tag to the lowest.
struct Backward {
    bytes: Vec<u8>,
    /// Where the filled part begins.
    start: usize,
}

impl Backward {
    fn with_capacity(capacity: usize) -> Backward {
        Backward { bytes: vec![0; capacity], start: capacity }
    }

    fn of_delta(delta: &Delta) -> Backward {
        let body = match &delta.body {
            Body::Write(write) => write.key.len() + write.fields.size(),
            Body::Statement(_) => 0,
        };
        Backward::with_capacity(DELTA_BYTES + body)
    }

    fn into_vec(mut self) -> Vec<u8> {
        let filled = self.bytes.len() - self.start;
        self.bytes.copy_within(self.start.., 0);
        self.bytes.truncate(filled);
        self.bytes
    }

    /// The place of the next so many bytes.
    fn skip(&mut self, count: usize) -> &mut [u8] {
        if self.start < count {
            let more = count + self.bytes.len();
            let filled = self.bytes.len() - self.start;
            let mut grown = vec![0; more + filled];
            grown[more..].copy_from_slice(&self.bytes[self.start..]);
            (self.bytes, self.start) = (grown, more);
        }
        self.start -= count;
        &mut self.bytes[self.start..self.start + count]
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.skip(bytes.len()).copy_from_slice(bytes);
    }

    fn varint(&mut self, number: u64) {
        let length = prost::encoding::encoded_len_varint(number);
        prost::encoding::encode_varint(number, &mut self.skip(length));
    }

    fn key(&mut self, tag: u32, wire: u32) {
        self.varint(u64::from(tag << 3 | wire));
    }

    fn uint(&mut self, tag: u32, number: u64) {
        if number != 0 {
            self.varint(number);
            self.key(tag, VARINT);
        }
    }

    fn fixed(&mut self, tag: u32, number: u64) {
        if number != 0 {
            self.raw(&number.to_le_bytes());
            self.key(tag, FIXED64);
        }
    }

    fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.message(tag, |out| out.raw(bytes));
        }
    }

    fn message(&mut self, tag: u32, content: impl FnOnce(&mut Self)) {
        let behind = self.bytes.len() - self.start;
        content(self);
        self.varint((self.bytes.len() - self.start - behind) as u64);
        self.key(tag, DELIMITED);
    }

    /// What is rare is encoded by the generated code.
    fn generated(&mut self, tag: u32, message: &impl Message) {
        self.message(tag, |out| out.raw(&message.encode_to_vec()));
    }

    fn delta(&mut self, delta: &Delta) {
        match &delta.body {
            Body::Statement(_) => {
                if let Some(crate::storage::delta::Body::Statement(statement)) = convert::delta(delta).body {
                    self.generated(8, &statement);
                }
            }
            Body::Write(write) => self.message(7, |out| {
                write.ledger.iter().rev().for_each(|entry| out.generated(3, &convert::ledger_entry(entry)));
                out.fields(2, &write.fields);
                out.bytes(1, &write.key);
            }),
        }
        self.uint(6, delta.epoch.0);
        self.fixed(5, delta.hlc.0);
        self.uint(4, u64::from(delta.shard.0));
        self.fixed(3, delta.keyspace.0);
        if let Some(prev) = delta.prev {
            self.dot(2, prev);
        }
        self.dot(1, delta.dot);
    }

    fn fields(&mut self, tag: u32, record: &Record) {
        record.fields().iter().rev().for_each(|(key, field)| self.message(tag, |out| out.field(key, field)));
    }

    fn field(&mut self, key: &FieldKey, field: &Field) {
        match field {
            Field::Register(register) => self.message(3, |out| out.register(register)),
            Field::Counter(counter) => self.generated(4, &convert::counter(counter)),
        }
        self.uint(2, convert::kind(key.kind) as u64);
        self.bytes(1, key.name.as_str().as_bytes());
    }

    fn register(&mut self, register: &Register) {
        self.uint(4, register.epoch().0);
        self.uint(3, register.generation().0);
        self.message(2, |out| out.vector(register.seen()));
        register.siblings().iter().rev().for_each(|sibling| self.message(1, |out| out.sibling(sibling)));
    }

    fn sibling(&mut self, sibling: &Sibling) {
        self.bytes(6, &sibling.value.bytes);
        self.uint(5, convert::value_type(sibling.value.kind) as u64);
        self.uint(4, sibling.epoch.0);
        self.fixed(3, sibling.hlc.0);
        self.uint(2, sibling.generation.0);
        self.dot(1, sibling.dot);
    }

    fn vector(&mut self, vector: &Vector) {
        vector.dots().rev().for_each(|dot| self.dot(1, dot));
    }

    fn dot(&mut self, tag: u32, dot: Dot) {
        self.message(tag, |out| {
            out.uint(2, dot.seq);
            out.fixed(1, dot.incarnation.0);
        });
    }
}
