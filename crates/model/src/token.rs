//! Version tokens: what a client saw of a record, opaque to it, brought back with its next write.
//!
//! A token holds, for each field, the vector, the generation, and the losers that the shown version hid. A MAC under the
//! cluster's key keeps it from being made up; the MAC binds it to its keyspace and key, so that a token of another key is
//! refused, not misread.
//!
//! Of a counter it holds what a delete by this client covers. Layout: version byte, payload (varints and fixed integers), the first 16 bytes of HMAC-SHA-256.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::limits::{TOKEN_BYTES_MAX, VECTOR_ENTRIES_MAX};
use crate::reading::live_dots;
use crate::{
    Covered, Dot, Epoch, Field, FieldContext, FieldKey, FieldName, Generation, Incarnation, KeyspaceId, Kind, Lineage,
    Record, Vector,
};

const FORMAT: u8 = 1;
const MAC_BYTES: usize = 16;
const HIDDEN_MAX: usize = 4096;

/// The key of a cluster's tokens. Every region of a cluster has the same.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

impl TokenKey {
    pub fn new(key: [u8; 32]) -> Self {
        TokenKey(key)
    }

    fn mac(&self, keyspace: KeyspaceId, key: &[u8], body: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(b"isle version token");
        mac.update(&keyspace.0.to_be_bytes());
        mac.update(&(key.len() as u64).to_be_bytes());
        mac.update(key);
        mac.update(body);
        let full = mac.finalize().into_bytes();
        let mut out = [0; MAC_BYTES];
        out.copy_from_slice(&full[..MAC_BYTES]);
        out
    }
}

/// What a client saw of a record, field by field, sorted by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    fields: Vec<(FieldKey, FieldContext)>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    #[error("the version token is malformed")]
    Malformed,
    #[error("the version token was not made by this cluster for this key")]
    NotOurs,
    #[error("the version token has {0} bytes, more than {TOKEN_BYTES_MAX}")]
    TooLong(usize),
}

impl Context {
    pub fn of(record: &Record, lineage: Lineage<'_>) -> Context {
        let fields = record.fields().iter().map(|(key, field)| (key.clone(), context_of(field, lineage))).collect();
        Context { fields }
    }

    pub fn fields(&self) -> &[(FieldKey, FieldContext)] {
        &self.fields
    }

    pub fn get(&self, key: &FieldKey) -> Option<&FieldContext> {
        self.fields.binary_search_by(|(k, _)| k.cmp(key)).ok().map(|at| &self.fields[at].1)
    }

    /// Whether the record's live versions are exactly those the client saw.
    pub fn is_current(&self, record: &Record) -> bool {
        let here = record.live_fields().map(|(key, field)| (key.clone(), live_dots(field)));
        let there = self.fields.iter().filter(|(key, _)| key.kind != Kind::Home);
        let there = there.map(|(key, context)| (key.clone(), context.live())).filter(|(_, live)| !live.is_empty());
        here.eq(there)
    }

    /// Every incarnation it names. One unknown here means that this region has not reached what the client saw.
    pub fn incarnations(&self) -> impl Iterator<Item = Incarnation> {
        self.fields.iter().flat_map(|(_, c)| {
            let dots = c.shown.iter().chain(&c.hidden).map(|dot| dot.incarnation);
            c.seen.entries().iter().map(|e| e.0).chain(dots).chain(c.covers.iter().map(|e| e.0))
        })
    }

    pub fn encode(&self, secret: &TokenKey, keyspace: KeyspaceId, key: &[u8]) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put_varint(&mut out, self.fields.len() as u64);
        for (field, context) in &self.fields {
            out.push(field.kind as u8);
            put_varint(&mut out, field.name.as_str().len() as u64);
            out.extend_from_slice(field.name.as_str().as_bytes());
            put_varint(&mut out, context.generation.0);
            put_varint(&mut out, context.epoch.0);
            put_dots(&mut out, context.seen.dots());
            put_dots(&mut out, context.shown.iter().copied());
            put_dots(&mut out, context.hidden.iter().copied());
            if field.kind == Kind::Counter {
                put_dots(&mut out, context.covers.iter().map(|(i, covered)| Dot::new(*i, covered.seq)));
                context.covers.iter().for_each(|(_, covered)| out.extend_from_slice(&covered.total.to_le_bytes()));
            }
        }
        let mac = secret.mac(keyspace, key, &out);
        out.extend_from_slice(&mac);
        out
    }

    pub fn decode(secret: &TokenKey, keyspace: KeyspaceId, key: &[u8], token: &[u8]) -> Result<Context, BadToken> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(BadToken::TooLong(token.len()));
        }
        let body_len = token.len().checked_sub(MAC_BYTES).ok_or(BadToken::Malformed)?;
        let (body, mac) = token.split_at(body_len);
        if body.first() != Some(&FORMAT) {
            return Err(BadToken::Malformed);
        }
        if !equal_in_constant_time(&secret.mac(keyspace, key, body), mac) {
            return Err(BadToken::NotOurs);
        }
        decode_body(&body[1..]).ok_or(BadToken::Malformed)
    }
}

impl FieldContext {
    /// The dots that were live when the client read, sorted.
    fn live(&self) -> Vec<Dot> {
        let mut live: Vec<Dot> = self.shown.iter().chain(&self.hidden).copied().collect();
        live.sort_unstable();
        live
    }
}

fn context_of(field: &Field, lineage: Lineage<'_>) -> FieldContext {
    match field {
        Field::Register(register) => {
            let shown = register.highest(lineage).map(|s| s.dot);
            let hidden = register.siblings().iter().map(|s| s.dot).filter(|dot| Some(*dot) != shown).collect();
            FieldContext {
                seen: register.seen().clone(),
                generation: register.generation(),
                epoch: register.epoch(),
                shown,
                hidden,
                covers: Vec::new(),
            }
        }
        // A counter has no losers: its dots only say which version was read.
        Field::Counter(counter) => FieldContext {
            seen: counter.seen().clone(),
            hidden: live_dots(field),
            covers: counter.covering(),
            ..FieldContext::default()
        },
    }
}

fn decode_body(mut at: &[u8]) -> Option<Context> {
    let count = take_count(&mut at, TOKEN_BYTES_MAX)?;
    let mut fields = Vec::new();
    for _ in 0..count {
        let kind = match take(&mut at, 1)?[0] {
            1 => Kind::Value,
            2 => Kind::Counter,
            3 => Kind::Home,
            _ => return None,
        };
        let length = take_count(&mut at, TOKEN_BYTES_MAX)?;
        let name = std::str::from_utf8(take(&mut at, length)?).ok()?;
        let key = FieldKey { kind, name: FieldName::new(name) };
        let generation = Generation(take_varint(&mut at)?);
        let epoch = Epoch(take_varint(&mut at)?);
        let seen = take_dots(&mut at, VECTOR_ENTRIES_MAX)?;
        let seen = Vector::from_entries(seen.into_iter().map(|dot| (dot.incarnation, dot.seq)));
        let shown = take_dots(&mut at, 1)?.first().copied();
        let hidden = take_dots(&mut at, HIDDEN_MAX)?;
        let covers = if kind == Kind::Counter { take_covers(&mut at)? } else { Vec::new() };
        fields.push((key, FieldContext { seen, generation, epoch, shown, hidden, covers }));
    }
    let sorted = fields.windows(2).all(|w| w[0].0 < w[1].0);
    (at.is_empty() && sorted).then_some(Context { fields })
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_dots(out: &mut Vec<u8>, dots: impl Iterator<Item = Dot>) {
    let dots: Vec<Dot> = dots.collect();
    put_varint(out, dots.len() as u64);
    for dot in dots {
        out.extend_from_slice(&dot.incarnation.0.to_le_bytes());
        put_varint(out, dot.seq);
    }
}

fn take<'a>(at: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = at.split_at_checked(length)?;
    *at = rest;
    Some(taken)
}

fn take_varint(at: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(at, 1)?[0];
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        n |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

fn take_count(at: &mut &[u8], most: usize) -> Option<usize> {
    let n = usize::try_from(take_varint(at)?).ok()?;
    (n <= most).then_some(n)
}

fn take_dots(at: &mut &[u8], most: usize) -> Option<Vec<Dot>> {
    let count = take_count(at, most)?;
    (0..count)
        .map(|_| {
            let bytes: [u8; 8] = take(at, 8)?.try_into().ok()?;
            Some(Dot::new(Incarnation(u64::from_le_bytes(bytes)), take_varint(at)?))
        })
        .collect()
}

fn take_covers(at: &mut &[u8]) -> Option<Vec<(Incarnation, Covered)>> {
    let dots = take_dots(at, VECTOR_ENTRIES_MAX)?;
    let entry = |dot: Dot| {
        let total = i64::from_le_bytes(take(at, 8)?.try_into().ok()?);
        Some((dot.incarnation, Covered { seq: dot.seq, total }))
    };
    dots.into_iter().map(entry).collect()
}

fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}
