//! A record is its fields. A plain value is a record with one unnamed field; a record with nothing live is a tombstone.
//!
//! A field is a (name, kind): kinds never merge into each other, so a value and a counter of one name, made concurrently,
//! stand side by side. The home is a field too, hidden: a register that creation and move write and delete empties.

use std::fmt;
use std::hash::Hasher;
use std::sync::{Arc, LazyLock};

use xxhash_rust::xxh3::Xxh3;

use crate::{Counter, Dot, Epoch, KeyspaceId, Lineage, Region, Register, Vector, planted};

/// A field's name; the unnamed field's is empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldName(Arc<str>);

impl FieldName {
    pub fn new(name: &str) -> Self {
        // Every plain value and every home has it: it is made once.
        static UNNAMED: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));
        if name.is_empty() { FieldName(UNNAMED.clone()) } else { FieldName(Arc::from(name)) }
    }

    pub fn unnamed() -> Self {
        FieldName::new("")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a field is. The numbers are stored: they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Value = 1,
    Counter = 2,
    /// The hidden register that names the record's home.
    Home = 3,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldKey {
    pub kind: Kind,
    pub name: FieldName,
}

impl FieldKey {
    pub fn value(name: &str) -> Self {
        FieldKey { kind: Kind::Value, name: FieldName::new(name) }
    }

    pub fn counter(name: &str) -> Self {
        FieldKey { kind: Kind::Counter, name: FieldName::new(name) }
    }

    pub fn home() -> Self {
        FieldKey { kind: Kind::Home, name: FieldName::unnamed() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    Register(Register),
    Counter(Counter),
}

impl Field {
    /// The field of that kind before any write.
    pub fn empty(kind: Kind) -> Field {
        match kind {
            Kind::Counter => Field::Counter(Counter::default()),
            Kind::Value | Kind::Home => Field::Register(Register::default()),
        }
    }

    pub fn fits(&self, kind: Kind) -> bool {
        matches!(self, Field::Counter(_)) == (kind == Kind::Counter)
    }

    pub fn is_live(&self) -> bool {
        match self {
            Field::Register(register) => register.is_live(),
            Field::Counter(counter) => counter.is_live(),
        }
    }

    pub fn seen(&self) -> &Vector {
        match self {
            Field::Register(register) => register.seen(),
            Field::Counter(counter) => counter.seen(),
        }
    }

    fn merge(&mut self, other: &Field, lineage: Lineage<'_>) {
        match (self, other) {
            (Field::Register(mine), Field::Register(theirs)) => mine.merge(theirs, lineage),
            (Field::Counter(mine), Field::Counter(theirs)) => mine.merge(theirs, lineage),
            _ => unreachable!("a field key holds its kind, and decoding checks that the field fits it"),
        }
    }

    fn complete(&mut self, listed: Option<&Field>, sides: Absorbed<'_>, lineage: Lineage<'_>) {
        match (self, listed) {
            (Field::Register(mine), Some(Field::Register(theirs))) => mine.complete(Some(theirs), sides, lineage),
            (Field::Register(mine), _) => mine.complete(None, sides, lineage),
            (Field::Counter(mine), Some(Field::Counter(theirs))) => mine.complete(Some(theirs), sides, lineage),
            (Field::Counter(mine), _) => mine.complete(None, sides, lineage),
        }
    }
}

/// What the two sides of a completion have absorbed: of that, what a side does not hold was deleted and forgotten there.
#[derive(Clone, Copy, Debug)]
pub struct Absorbed<'a> {
    pub here: &'a Vector,
    pub there: &'a Vector,
}

/// Fields, sorted by key. Also what a delta ships of a record: its changed fields, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    fields: Vec<(FieldKey, Field)>,
}

impl Record {
    pub fn new() -> Self {
        Self::default()
    }

    /// From stored fields. Returns `None` where a field does not fit its kind or a key comes twice.
    pub fn from_fields(mut fields: Vec<(FieldKey, Field)>) -> Option<Self> {
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        let sound =
            fields.iter().all(|(key, field)| field.fits(key.kind)) && fields.windows(2).all(|w| w[0].0 != w[1].0);
        sound.then_some(Record { fields })
    }

    pub fn fields(&self) -> &[(FieldKey, Field)] {
        &self.fields
    }

    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    pub fn get(&self, key: &FieldKey) -> Option<&Field> {
        self.position(key).ok().map(|at| &self.fields[at].1)
    }

    pub fn register(&self, key: &FieldKey) -> Option<&Register> {
        match self.get(key) {
            Some(Field::Register(register)) => Some(register),
            _ => None,
        }
    }

    pub fn counter(&self, key: &FieldKey) -> Option<&Counter> {
        match self.get(key) {
            Some(Field::Counter(counter)) => Some(counter),
            _ => None,
        }
    }

    pub fn set(&mut self, key: FieldKey, field: Field) {
        debug_assert!(field.fits(key.kind));
        match self.position(&key) {
            Ok(at) => self.fields[at].1 = field,
            Err(at) => self.fields.insert(at, (key, field)),
        }
    }

    /// Live fields that a reader sees: the hidden home is none of them.
    pub fn live_fields(&self) -> impl Iterator<Item = (&FieldKey, &Field)> {
        self.fields
            .iter()
            .filter(|(key, field)| key.kind != Kind::Home && field.is_live())
            .map(|(key, field)| (key, field))
    }

    /// Whether a reader sees anything. A record that is not live is a tombstone.
    pub fn is_live(&self) -> bool {
        self.live_fields().next().is_some()
    }

    /// The region that serialises this record's writes; `None` before creation and after a delete.
    pub fn home(&self, lineage: Lineage<'_>) -> Option<Region> {
        self.home_and_epoch(lineage).map(|(home, _)| home)
    }

    /// The home, and the epoch in which it became that.
    pub fn home_and_epoch(&self, lineage: Lineage<'_>) -> Option<(Region, Epoch)> {
        // Deletes of different fields, made concurrently, leave a home without a record.
        let shown = self.register(&FieldKey::home()).filter(|_| self.is_live())?.highest(lineage)?;
        Some((Region::new(std::str::from_utf8(&shown.value.bytes).ok()?), shown.epoch))
    }

    pub fn merge(&mut self, other: &Record, lineage: Lineage<'_>) {
        if self.fields.is_empty() {
            self.fields.clone_from(&other.fields);
            return;
        }
        for (key, theirs) in &other.fields {
            match self.position(key) {
                Ok(at) if planted::is(planted::Bug::MergeTakesLast) => self.fields[at].1 = theirs.clone(),
                Ok(at) => self.fields[at].1.merge(theirs, lineage),
                Err(at) => self.fields.insert(at, (key.clone(), theirs.clone())),
            }
        }
    }

    /// Merges with another's complete state. What that does not list, at or below what its sender has absorbed, is gone; and so
    /// is what it lists, where this region has absorbed and forgotten it: its sender's disk may have lost the delete. (The merge
    /// of observed-remove sets without tombstones, Bieniusa et al. 2012.)
    pub fn complete(&mut self, listed: &Record, sides: Absorbed<'_>, lineage: Lineage<'_>) {
        let kept = |key: &FieldKey| planted::is(planted::Bug::KeepUnlisted) && listed.get(key).is_none();
        for (key, mine) in self.fields.iter_mut().filter(|(key, _)| !kept(key)) {
            mine.complete(listed.get(key), sides, lineage);
        }
        for (key, theirs) in &listed.fields {
            if let Err(at) = self.position(key) {
                let mut field = Field::empty(key.kind);
                field.complete(Some(theirs), sides, lineage);
                self.fields.insert(at, (key.clone(), field));
            }
        }
    }

    /// The dots that every holder must have absorbed before this record, a tombstone, may be forgotten.
    pub fn dots(&self) -> impl Iterator<Item = Dot> {
        self.fields.iter().flat_map(|(_, field)| field.seen().dots())
    }

    /// The fields with writes of a region's that somebody lacks who has so much of its stream: whole, as a delta ships them. With a
    /// new home comes the whole record, for it may lack what a third region wrote. Empty where there are none.
    pub fn changed_since(&self, region: &Region, have: &Vector, lineage: Lineage<'_>) -> Record {
        let is_new = |dot: Dot| lineage.region(dot.incarnation) == Some(region) && !have.covers(dot, lineage);
        let is_changed = |field: &(FieldKey, Field)| field.1.seen().dots().any(is_new);
        let home = self.fields.iter().find(|(key, _)| key.kind == Kind::Home);
        if home.is_some_and(is_changed) {
            return self.clone();
        }
        Record { fields: self.fields.iter().filter(|field| is_changed(field)).cloned().collect() }
    }

    /// Every incarnation the record names: a receiver has to know them all before it merges.
    pub fn incarnations(&self) -> impl Iterator<Item = crate::Incarnation> {
        self.fields.iter().flat_map(|(_, field)| {
            let (siblings, totals): (&[_], &[_]) = match field {
                Field::Register(register) => (register.siblings(), &[]),
                Field::Counter(counter) => (&[], counter.totals()),
            };
            let covered = match field {
                Field::Counter(counter) => counter.covered(),
                Field::Register(_) => &[],
            };
            siblings
                .iter()
                .map(|s: &crate::Sibling| s.dot.incarnation)
                .chain(totals.iter().map(|t: &(crate::Incarnation, crate::Total)| t.0))
                .chain(covered.iter().map(|c| c.0))
                .chain(field.seen().entries().iter().map(|e| e.0))
        })
    }

    /// About how many bytes the record holds, for budgets and limits.
    pub fn size(&self) -> usize {
        self.size_of(|_| true)
    }

    /// The same of some of its fields.
    pub(crate) fn size_of(&self, these: impl Fn(&FieldKey) -> bool) -> usize {
        let field = |(key, field): &(FieldKey, Field)| {
            let inner = match field {
                Field::Register(r) => r.siblings().iter().map(|s| 48 + s.value.bytes.len()).sum::<usize>(),
                Field::Counter(c) => 32 * c.totals().len() + 24 * c.covered().len(),
            };
            32 + key.name.as_str().len() + inner + 16 * field.seen().len()
        };
        self.fields.iter().filter(|(key, _)| these(key)).map(field).sum()
    }

    /// This record's part of a digest: over live sibling dots, values and counter values, never vectors or tombstones.
    /// Zero for a tombstone. Parts are summed, wrapping, so that their order does not matter.
    pub fn digest(&self, keyspace: KeyspaceId, key: &[u8]) -> u128 {
        if !self.is_live() {
            return 0;
        }
        let mut hash = Xxh3::new();
        hash.update(&keyspace.0.to_le_bytes());
        digest_bytes(&mut hash, key);
        for (field_key, field) in self.fields.iter().filter(|(_, field)| field.is_live()) {
            hash.write_u8(field_key.kind as u8);
            digest_bytes(&mut hash, field_key.name.as_str().as_bytes());
            match field {
                Field::Register(register) => digest_siblings(&mut hash, register),
                Field::Counter(counter) => hash.update(&counter.value().to_le_bytes()),
            }
        }
        hash.digest128()
    }

    fn position(&self, key: &FieldKey) -> Result<usize, usize> {
        self.fields.binary_search_by(|(k, _)| k.cmp(key))
    }
}

/// Lengths and numbers are hashed as little-endian u64, so that machines of every kind agree.
fn digest_bytes(hash: &mut Xxh3, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn digest_siblings(hash: &mut Xxh3, register: &Register) {
    for sibling in register.siblings() {
        hash.update(&sibling.dot.incarnation.0.to_le_bytes());
        hash.update(&sibling.dot.seq.to_le_bytes());
        hash.write_u8(sibling.value.kind as u8);
        digest_bytes(hash, &sibling.value.bytes);
    }
}
