//! From what a client asks to the delta it makes, and from a delta to the record it leaves. Pure: the shard loop brings the
//! stamp, the newest state and the client's context, and carries the outcome to the log.

use bytes::Bytes;

use crate::limits::{FIELD_NAME_BYTES_MAX, FIELDS_MAX, KEY_BYTES_MAX, RECORD_BYTES_MAX, VALUE_BYTES_MAX};
use crate::reading::other_kind;
use crate::{
    Absorbed, Context, Dot, Fate, Field, FieldKey, FieldName, Hlc, KeyspaceId, Kind, LedgerEntry, Lineage, Record,
    Region, Register, Sibling, Stamp, Value, Write, planted,
};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Mutation {
    /// Covers every field seen and writes the unnamed one.
    Put {
        value: Value,
    },
    /// Covers only its own fields. Removing a field removes its value and its counter.
    Patch {
        set: Vec<(FieldName, Value)>,
        remove: Vec<FieldName>,
    },
    Increment {
        field: FieldName,
        amount: i64,
    },
    /// Empties every field seen.
    Delete,
    /// Names another home, and touches nothing else. Its delta carries the whole record: the new home may lack what another region
    /// wrote before, and has to have it when it takes over. Nothing where nothing is live.
    Move {
        to: Region,
    },
}

/// What must hold of the newest state, or nothing is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    None,
    /// Nothing live is there.
    Absent,
    /// The live versions are exactly those of the request's context.
    Version,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("{field}: {reason}")]
    BadField { field: &'static str, reason: String },
    #[error("field {name:?} is a live {there:?} field, not a {asked:?}")]
    WrongKind { name: FieldName, there: Kind, asked: Kind },
    #[error("the key exists")]
    KeyExists,
    #[error("the record's version is not the one given")]
    VersionMismatch,
}

impl WriteError {
    fn bad(field: &'static str, reason: impl Into<String>) -> WriteError {
        WriteError::BadField { field, reason: reason.into() }
    }
}

/// Where and by whom a mutation is carried out.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub region: &'a Region,
    /// What a record that this write creates gets as its home.
    pub home: &'a Region,
    /// Whether the home that the record names has left the cluster: then the write names this one.
    pub takes_over: bool,
    pub keyspace: KeyspaceId,
    pub stamp: Stamp,
    pub lineage: Lineage<'a>,
}

pub fn check_key(key: &[u8]) -> Result<(), WriteError> {
    match key.len() {
        0 => Err(WriteError::bad("key", "is empty; give 1 to 4096 bytes")),
        n if n > KEY_BYTES_MAX => Err(WriteError::bad("key", format!("has {n} bytes, more than {KEY_BYTES_MAX}"))),
        _ => Ok(()),
    }
}

fn check_name(name: &FieldName) -> Result<(), WriteError> {
    let n = name.as_str().len();
    if n > FIELD_NAME_BYTES_MAX {
        return Err(WriteError::bad("field", format!("a name has {n} bytes, more than {FIELD_NAME_BYTES_MAX}")));
    }
    Ok(())
}

fn check_value(value: &Value) -> Result<(), WriteError> {
    let n = value.bytes.len();
    if n > VALUE_BYTES_MAX {
        return Err(WriteError::bad("value", format!("has {n} bytes, more than {VALUE_BYTES_MAX}")));
    }
    Ok(())
}

impl Mutation {
    /// What can be refused without looking at any state.
    pub fn check(&self) -> Result<(), WriteError> {
        match self {
            Mutation::Put { value } => check_value(value),
            Mutation::Delete | Mutation::Move { .. } => Ok(()),
            Mutation::Increment { field, .. } => check_name(field),
            Mutation::Patch { set, remove } => {
                if set.is_empty() && remove.is_empty() {
                    return Err(WriteError::bad("fields", "a patch must set or remove at least one field"));
                }
                set.iter().try_for_each(|(_, value)| check_value(value))?;
                let mut names: Vec<&FieldName> = set.iter().map(|(name, _)| name).chain(remove).collect();
                names.iter().try_for_each(|name| check_name(name))?;
                names.sort_unstable();
                match names.windows(2).find(|w| w[0] == w[1]) {
                    Some(twice) => Err(WriteError::bad("fields", format!("{:?} is named twice", twice[0]))),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Plans a mutation on the newest state. `None` when there is nothing to write: a delete of what is not there.
pub fn plan(
    key: &Bytes,
    mutation: &Mutation,
    precondition: &Precondition,
    context: Option<&Context>,
    current: &Record,
    writer: Writer<'_>,
) -> Result<Option<Write>, WriteError> {
    check_key(key)?;
    mutation.check()?;
    match precondition {
        Precondition::Absent if current.is_live() => return Err(WriteError::KeyExists),
        Precondition::Version if !context.is_some_and(|c| c.is_current(current)) => {
            return Err(WriteError::VersionMismatch);
        }
        _ => {}
    }
    let mut planner = Planner { current, context, writer, out: Record::new() };
    match mutation {
        Mutation::Put { value } => {
            planner.empty_all_but(Some(&FieldKey::value("")));
            planner.write(FieldKey::value(""), value.clone());
            planner.settle_home(true);
        }
        Mutation::Delete => {
            planner.empty_all_but(None);
            planner.settle_home(false);
        }
        Mutation::Patch { set, remove } => {
            for (name, value) in set {
                let field = FieldKey { kind: Kind::Value, name: name.clone() };
                planner.refuse_other_kind(&field)?;
                planner.write(field, value.clone());
            }
            for name in remove {
                planner.empty(&FieldKey { kind: Kind::Value, name: name.clone() });
                planner.empty(&FieldKey { kind: Kind::Counter, name: name.clone() });
            }
            planner.settle_home(planner.leaves_something_live());
        }
        Mutation::Move { to } => {
            let here = current.home(writer.lineage);
            if current.is_live() && here.as_ref() != Some(to) {
                planner.out = current.clone();
                planner.write(FieldKey::home(), Value::string(to.as_str()));
                // It covers nothing, and makes the record no larger than it was.
                return Ok(Some(Write { key: key.clone(), fields: planner.out, ledger: Vec::new() }));
            }
        }
        Mutation::Increment { field, amount } => {
            let field = FieldKey { kind: Kind::Counter, name: field.clone() };
            planner.refuse_other_kind(&field)?;
            let nothing = crate::Counter::default();
            let counter = current.counter(&field).unwrap_or(&nothing);
            planner.out.set(field, Field::Counter(counter.added(writer.stamp.dot, *amount)));
            planner.settle_home(true);
        }
    }
    planner.finish(key)
}

struct Planner<'a> {
    current: &'a Record,
    context: Option<&'a Context>,
    writer: Writer<'a>,
    out: Record,
}

impl Planner<'_> {
    fn refuse_other_kind(&self, field: &FieldKey) -> Result<(), WriteError> {
        match other_kind(self.current, field) {
            Some(there) => Err(WriteError::WrongKind { name: field.name.clone(), there, asked: field.kind }),
            None => Ok(()),
        }
    }

    fn write(&mut self, field: FieldKey, value: Value) {
        let nothing = Register::default();
        let register = self.current.register(&field).unwrap_or(&nothing);
        let context = self.context.and_then(|c| c.get(&field)).filter(|_| !planted::is(planted::Bug::IgnoreContext));
        let written = register.written(self.writer.stamp, value, context, self.writer.lineage);
        self.out.set(field, Field::Register(written));
    }

    /// Empties a field, if there is anything to empty: live values here, or values only the client has seen.
    fn empty(&mut self, key: &FieldKey) {
        let (dot, lineage) = (self.writer.stamp.dot, self.writer.lineage);
        let context = self.context.and_then(|c| c.get(key));
        let here = self.current.get(key);
        let seen_here = |dot| here.is_some_and(|field| field.seen().covers(dot, lineage));
        let unseen_here = context.is_some_and(|c| !c.seen.dots().all(seen_here));
        if !unseen_here && !here.is_some_and(Field::is_live) {
            return;
        }
        let nothing = Field::empty(key.kind);
        let emptied = match here.unwrap_or(&nothing) {
            Field::Register(register) => Field::Register(register.emptied(dot, context, lineage)),
            Field::Counter(counter) => Field::Counter(counter.emptied(dot, context, lineage)),
        };
        self.out.set(key.clone(), emptied);
    }

    fn empty_all_but(&mut self, spared: Option<&FieldKey>) {
        let here = self.current.fields().iter().map(|(key, _)| key);
        let there = self.context.into_iter().flat_map(|c| c.fields().iter().map(|(key, _)| key));
        let keys: Vec<FieldKey> =
            here.chain(there).filter(|key| key.kind != Kind::Home && Some(*key) != spared).cloned().collect();
        keys.iter().for_each(|key| self.empty(key));
    }

    /// Creation writes the home, what leaves nothing live empties it, anything else leaves it alone.
    fn settle_home(&mut self, live_after: bool) {
        let home = FieldKey::home();
        let has_home = self.current.register(&home).is_some_and(Register::is_live);
        if !live_after {
            self.empty(&home);
        } else if !has_home || !self.current.is_live() || self.writer.takes_over {
            self.write(home, Value::string(self.writer.home.as_str()));
        }
    }

    fn leaves_something_live(&self) -> bool {
        self.out.is_live() || self.current.live_fields().any(|(key, _)| self.out.get(key).is_none())
    }

    fn finish(self, key: &Bytes) -> Result<Option<Write>, WriteError> {
        if self.out.is_empty() {
            return Ok(None);
        }
        let fresh = self.out.fields().iter().filter(|(key, _)| self.current.get(key).is_none()).count();
        // The hidden home is not counted against the user.
        let fields = self.current.fields().len() + fresh;
        if fresh > 0 && fields > FIELDS_MAX + 1 {
            return Err(WriteError::bad(
                "fields",
                format!("the record would have {} fields, more than {FIELDS_MAX}", fields - 1),
            ));
        }
        let replaced = self.current.size_of(|field| self.out.get(field).is_some());
        let (before, added) = (self.current.size(), self.out.size());
        // What shrinks an overgrown record is let through.
        if added > replaced && before - replaced + added > RECORD_BYTES_MAX {
            return Err(WriteError::bad("value", format!("the record would outgrow {RECORD_BYTES_MAX} bytes")));
        }
        let ledger = self.covered_losers(key);
        Ok(Some(Write { key: key.clone(), fields: self.out, ledger }))
    }

    /// Entries of the losers this write covers: those that lose here, and those the client's version hid.
    fn covered_losers(&self, key: &Bytes) -> Vec<LedgerEntry> {
        let Writer { region, keyspace, stamp, lineage, .. } = self.writer;
        let mut out = Vec::new();
        for (field, written) in self.out.fields().iter().filter(|(field, _)| field.kind == Kind::Value) {
            let Field::Register(written) = written else { continue };
            let here = self.current.register(field);
            let shown = here.and_then(|r| r.highest(lineage)).map(|s| s.dot);
            let mut entry = |loser: Dot, winner: Option<Dot>| {
                out.push(LedgerEntry {
                    keyspace,
                    key: key.clone(),
                    field: field.clone(),
                    loser,
                    value: here.and_then(|r| r.sibling(loser)).cloned(),
                    winner,
                    seen_at: stamp.hlc,
                    seen_in: region.clone(),
                    fate: Fate::Lost,
                    covered_by: Some(stamp.dot),
                });
            };
            let losing_here =
                here.into_iter().flat_map(|r| r.siblings()).map(|s| s.dot).filter(|dot| Some(*dot) != shown);
            losing_here.filter(|dot| written.seen().covers(*dot, lineage)).for_each(|dot| entry(dot, shown));
            if let Some(context) = self.context.and_then(|c| c.get(field)) {
                let known = |dot: &Dot| here.is_some_and(|r| r.sibling(*dot).is_some() && Some(*dot) != shown);
                context.hidden.iter().filter(|dot| !known(dot)).for_each(|dot| entry(*dot, context.shown));
            }
        }
        out
    }
}

/// What applying a delta or a state to a record did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub record: Record,
    /// Entries to merge into the ledger.
    pub ledger: Vec<LedgerEntry>,
    /// Values that were covered before they came. An entry of one of them that a client's token made has no value yet.
    pub late: Vec<(FieldKey, Sibling)>,
    /// Dots that are live no more. An open entry of one of them was superseded, unless `ledger` says it was lost.
    pub covered: Vec<(FieldKey, Dot)>,
}

/// Where and when something is applied, for the ledger.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    pub region: &'a Region,
    pub keyspace: KeyspaceId,
    pub hlc: Hlc,
    pub lineage: Lineage<'a>,
}

/// Merges a write into a record: a region's own, or another's.
pub fn apply(current: &Record, write: Write, site: Site<'_>) -> Applied {
    let Write { key, fields, ledger } = write;
    let mut out = match current.is_empty() {
        // A key's first write is its record, and is not copied.
        true => settle(&key, current, fields, None, site),
        false => {
            let mut out = merge(&key, current, &fields, site);
            out.late = late(&fields, &out.record);
            out
        }
    };
    let came = taken(&ledger, current, &out.record, site.lineage);
    out.ledger.extend(came);
    out
}

fn late(written: &Record, after: &Record) -> Vec<(FieldKey, Sibling)> {
    let mut out = Vec::new();
    for (field, _) in written.fields().iter().filter(|(field, _)| field.kind == Kind::Value) {
        let (came, is) = (written.register(field), after.register(field));
        let siblings = came.into_iter().flat_map(|register| register.siblings());
        let covered = siblings.filter(|s| is.is_none_or(|register| register.sibling(s.dot).is_none()));
        out.extend(covered.map(|s| (field.clone(), s.clone())));
    }
    out
}

/// Merges a complete state into a record: what one side has absorbed and does not hold any more is gone.
pub fn complete(key: &Bytes, current: &Record, listed: &Record, sides: Absorbed<'_>, site: Site<'_>) -> Applied {
    let mut record = current.clone();
    record.complete(listed, sides, site.lineage);
    settle(key, current, record, None, site)
}

/// Merges a whole record that is not a complete state.
pub fn merge(key: &Bytes, current: &Record, other: &Record, site: Site<'_>) -> Applied {
    let mut record = current.clone();
    record.merge(other, site.lineage);
    settle(key, current, record, Some(other), site)
}

/// Notes who lost and who was covered, in each field of `touched`; in all of them where that is `None`.
fn settle(key: &Bytes, before: &Record, after: Record, touched: Option<&Record>, site: Site<'_>) -> Applied {
    let nothing = Register::default();
    let mut out = Applied::default();
    let fields = touched.unwrap_or(&after).fields().iter().map(|(field, _)| field);
    for field in fields.filter(|field| field.kind == Kind::Value) {
        let was = before.register(field).unwrap_or(&nothing);
        let is = after.register(field).unwrap_or(&nothing);
        let gone = was.siblings().iter().filter(|s| is.sibling(s.dot).is_none());
        out.covered.extend(gone.map(|s| (field.clone(), s.dot)));
        out.ledger.extend(new_losers(key, field, was, is, site));
    }
    out.record = after;
    out
}

/// An entry for each sibling that loses now and did not before.
fn new_losers(key: &Bytes, field: &FieldKey, was: &Register, is: &Register, site: Site<'_>) -> Vec<LedgerEntry> {
    if is.siblings().len() < 2 || planted::is(planted::Bug::LoseLoser) {
        return Vec::new();
    }
    let winner = is.highest(site.lineage).map(|s| s.dot);
    let shown_before = was.highest(site.lineage).map(|s| s.dot);
    let lost_before = |dot: Dot| was.sibling(dot).is_some() && Some(dot) != shown_before;
    is.siblings()
        .iter()
        .filter(|s| Some(s.dot) != winner && !lost_before(s.dot))
        .map(|s| LedgerEntry {
            keyspace: site.keyspace,
            key: key.clone(),
            field: field.clone(),
            loser: s.dot,
            value: Some(s.clone()),
            winner,
            seen_at: site.hlc,
            seen_in: site.region.clone(),
            fate: Fate::Open,
            covered_by: None,
        })
        .collect()
}

/// Entries that came with a delta or a state, as this region takes them: values filled in where it held them before, and
/// an open one closed where what it speaks of was covered here already.
pub fn taken(came: &[LedgerEntry], before: &Record, after: &Record, lineage: Lineage<'_>) -> Vec<LedgerEntry> {
    let take = |entry: &LedgerEntry| {
        let mut entry = entry.clone();
        if entry.value.is_none() {
            entry.value = before.register(&entry.field).and_then(|r| r.sibling(entry.loser)).cloned();
        }
        let covered = |r: &Register| r.sibling(entry.loser).is_none() && r.seen().covers(entry.loser, lineage);
        if entry.fate == Fate::Open && after.register(&entry.field).is_some_and(covered) {
            entry.fate = Fate::Superseded;
        }
        entry
    };
    came.iter().map(take).collect()
}
