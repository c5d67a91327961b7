//! What was asked and answered, and what each region was seen to know. Violations that show at once are noted here; the rest
//! is the oracle's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use bytes::Bytes;
use isle_model::{Context, Dot, FieldKey, IncarnationTree, Kind, ShardId};
use isle_store::LogPosition;
use parking_lot::Mutex;

use super::door::{Answer, Seen};
use super::{Mix, OTHER, SHARDS, SITES, keyspace_of};

const TOKENS_KEPT: usize = 6;
const VIOLATIONS_KEPT: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put { value: String },
    Patch { set: Vec<(String, String)>, remove: Vec<String> },
    Delete,
    Increment { field: String, amount: i64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not answered, or answered that it is unknown.
    Unknown,
    Acked(Context),
    /// Answered by an error that promises that nothing was done.
    Refused(String),
}

/// A version token, and where it came from.
#[derive(Clone, Debug)]
pub struct Token {
    pub version: Bytes,
    pub source: Source,
}

/// What a token's maker had seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A write's answer: what its region had absorbed before it, and itself.
    Ack(usize),
    /// A read, by a call of the node: what was in the region's log up to here.
    Read { site: usize, upto: LogPosition },
    /// A read over a link: some while before it came.
    Wire,
}

#[derive(Clone, Debug)]
pub struct WriteFact {
    pub site: usize,
    pub key: String,
    pub op: Op,
    /// What it was to cover beside what its region had seen.
    pub token: Option<Token>,
    pub outcome: Outcome,
}

/// What a region was seen to know of one field.
#[derive(Default)]
struct Known {
    /// Each with the moment when it was noted.
    alive: BTreeMap<Dot, u64>,
    /// Shown once, and covered since.
    dead: BTreeMap<Dot, u64>,
}

/// A write of a key that has a home.
struct Acked {
    began: u64,
    at: u64,
    context: Context,
}

#[derive(Default)]
struct Inner {
    writes: Vec<WriteFact>,
    /// Of each write, the moments when it began and when it was answered.
    moments: Vec<(u64, Option<u64>)>,
    tokens: BTreeMap<String, VecDeque<Token>>,
    /// Of keys that have homes: what was acknowledged.
    acked_at_home: BTreeMap<String, Vec<Acked>>,
    newest_at_home: Option<String>,
    /// What a home's answer did not show, by key: a violation unless two regions made the key.
    missed_at_home: Vec<(String, String)>,
    /// Every row that any region ever made.
    tree: IncarnationTree,
    known: BTreeMap<(usize, String, FieldKey), Known>,
    witnessed: BTreeMap<(String, FieldKey, Dot), String>,
    hash: DefaultHasher,
    events: u64,
    trace: Option<String>,
    violations: Vec<String>,
    closed: bool,
}

pub struct History {
    mix: Mix,
    inner: Mutex<Inner>,
}

impl History {
    pub fn new(mix: Mix, traced: bool) -> Self {
        let inner = Inner { trace: traced.then(String::new), ..Inner::default() };
        History { mix, inner: Mutex::new(inner) }
    }

    /// Something that two runs of one seed must agree on.
    pub fn event(&self, now: Duration, what: &str) {
        self.inner.lock().event(now, what);
    }

    pub fn violation(&self, what: String) {
        self.inner.lock().violation(what);
    }

    /// Clients stop.
    pub fn close(&self) {
        self.inner.lock().closed = true;
    }

    pub fn is_closed(&self) -> bool {
        self.inner.lock().closed
    }

    pub fn begin(&self, now: Duration, fact: WriteFact) -> usize {
        let mut inner = self.inner.lock();
        let id = inner.writes.len();
        inner.event(now, &format!("{id} begins at {}: {} {:?}", fact.site, fact.key, fact.op));
        inner.writes.push(fact);
        let moment = (inner.events, None);
        inner.moments.push(moment);
        id
    }

    /// The id that the next write will have: values are made of it, so that each is unique.
    pub fn next_id(&self) -> usize {
        self.inner.lock().writes.len()
    }

    pub fn refused(&self, now: Duration, id: usize, reason: String) {
        let mut inner = self.inner.lock();
        inner.event(now, &format!("{id} refused: {reason}"));
        inner.moments[id].1 = Some(inner.events);
        inner.writes[id].outcome = Outcome::Refused(reason);
    }

    pub fn unknown(&self, now: Duration, id: usize, reason: &str) {
        self.inner.lock().event(now, &format!("{id} unknown: {reason}"));
    }

    /// How many events there were: of two answers, whether one was asked for after the other had come.
    pub fn moment(&self) -> u64 {
        self.inner.lock().events
    }

    /// Learns the rows of a region that has just started, its own among them.
    pub fn know(&self, tree: &IncarnationTree) {
        let mut inner = self.inner.lock();
        for (incarnation, row) in tree.rows() {
            if let Err(conflict) = inner.tree.insert(incarnation, row.clone()) {
                inner.violation(conflict.to_string());
            }
        }
    }

    pub fn answered(&self, now: Duration, id: usize, answer: Answer) {
        match answer {
            Answer::Done(version, served_by) => self.acked(now, id, &version, served_by.as_deref()),
            Answer::Unknown(reason) => self.unknown(now, id, &reason),
            Answer::Refused(reason) => self.refused(now, id, reason),
        }
    }

    fn acked(&self, now: Duration, id: usize, version: &Bytes, served_by: Option<&str>) {
        let mut inner = self.inner.lock();
        let key = inner.writes[id].key.clone();
        inner.event(now, &format!("{id} acked: {version:?}"));
        inner.moments[id].1 = Some(inner.events);
        match decode(&key, version) {
            Ok(context) => {
                // What was forwarded tells what its home knows, and not every answer names that.
                let forwarded = self.mix.is_homed() && key.starts_with(OTHER);
                let served = served_by.and_then(|region| SITES.iter().position(|site| *site == region));
                let site = if forwarded { served } else { Some(inner.writes[id].site) };
                if let Some(site) = site {
                    inner.learn(site, &key, &context, None);
                }
                if forwarded {
                    let acked = Acked { began: inner.moments[id].0, at: inner.events, context: context.clone() };
                    inner.acked_at_home.entry(key.clone()).or_default().push(acked);
                    inner.newest_at_home = Some(key.clone());
                }
                inner.writes[id].outcome = Outcome::Acked(context);
            }
            Err(error) => {
                inner.violation(format!("write {id} was answered by a version that does not decode: {error}"))
            }
        }
        inner.keep_token(&key, version, Source::Ack(id));
    }

    /// A read that was asked for at the moment `began`, and has just been answered.
    pub fn read(&self, now: Duration, began: u64, site: usize, key: &str, seen: Seen, source: Source) {
        let Seen { version, values } = seen;
        let mut inner = self.inner.lock();
        inner.event(now, &format!("{site} reads {key}: {version:?}"));
        match decode(key, &version) {
            Ok(context) => inner.learn(site, key, &context, Some((began, self.mix))),
            Err(error) => inner.violation(format!("a read of {key} has a version that does not decode: {error}")),
        }
        for (field, dot, value) in values {
            inner.witness(key, FieldKey::value(&field), dot, value);
        }
        inner.keep_token(key, &version, source);
    }

    /// The key with a home that was acknowledged last.
    pub fn homed_key(&self) -> Option<String> {
        self.inner.lock().newest_at_home.clone()
    }

    /// A read at the key's home, asked for at the moment `began`: it has to show, or to have seen covered, whatever was
    /// acknowledged before.
    pub fn read_at_home(&self, now: Duration, began: u64, site: usize, key: &str, version: &Bytes) {
        let mut inner = self.inner.lock();
        inner.event(now, &format!("{site} reads {key} at its home: {version:?}"));
        let seen = match decode(key, version) {
            Ok(seen) => seen,
            Err(error) => {
                return inner.violation(format!("a read of {key} has a version that does not decode: {error}"));
            }
        };
        let lineage = inner.tree.shard(shard_of(key));
        // Until when something may have been taken away: a tombstone that was forgotten leaves nothing, and what comes after it
        // does not tell of it.
        let takers = (0..inner.writes.len()).filter(|id| inner.writes[*id].key == key);
        let takers = takers.filter(|id| takes_away(&inner.writes[*id].op));
        let taken_until = takers.map(|id| inner.moments[id].1.unwrap_or(u64::MAX)).max().unwrap_or_default();
        let missed = |acked: &Acked| {
            let fields = || acked.context.fields().iter().filter(|(field, _)| field.kind == Kind::Value);
            // What it covered is not shown any more, whatever became of it since.
            let stale = fields().find_map(|(field, of)| {
                let live: Vec<Dot> = of.shown.iter().chain(&of.hidden).copied().collect();
                let there = seen.get(field)?;
                let mut shown = there.shown.iter().chain(&there.hidden);
                let dot = shown.find(|dot| of.seen.covers(**dot, lineage) && !live.contains(dot))?;
                Some(format!("{key} {:?}: what covered {dot}", field.name))
            });
            if stale.is_some() || acked.began <= taken_until {
                return stale;
            }
            // Deletes have nothing to show: what the acknowledged write had seen, itself included, the home has seen as well.
            let unseen = fields().find(|(field, of)| {
                seen.get(field).is_some_and(|there| !of.seen.dots().all(|dot| there.seen.covers(dot, lineage)))
            });
            if let Some((field, _)) = unseen {
                return Some(format!("{key} {:?}: what", field.name));
            }
            let shown = fields().filter_map(|(field, of)| Some((field, of.shown?)));
            shown
                .filter(|(field, dot)| seen.get(field).is_none_or(|there| !there.seen.covers(*dot, lineage)))
                .map(|(field, dot)| format!("{key} {:?}: {dot}", field.name))
                .next()
        };
        let before = inner.acked_at_home.get(key).into_iter().flatten().filter(|acked| acked.at < began);
        let found: Vec<String> = before.filter_map(missed).collect();
        for what in found {
            let what = format!("{what} was acknowledged before {site} read the key at its home, and is not there");
            inner.missed_at_home.push((key.to_owned(), what));
        }
    }

    /// What reads at homes did not show, by key.
    pub fn missed_at_home(&self) -> Vec<(String, String)> {
        self.inner.lock().missed_at_home.clone()
    }

    /// A recent version token of a key, from whatever region.
    pub fn token(&self, key: &str, pick: impl FnOnce(usize) -> usize) -> Option<Token> {
        let inner = self.inner.lock();
        let tokens = inner.tokens.get(key).filter(|tokens| !tokens.is_empty())?;
        tokens.get(pick(tokens.len())).cloned()
    }

    pub fn writes(&self) -> Vec<WriteFact> {
        self.inner.lock().writes.clone()
    }

    /// Every value that a reader was shown, by the write's dot.
    pub fn witnessed(&self) -> BTreeMap<(String, FieldKey, Dot), String> {
        self.inner.lock().witnessed.clone()
    }

    /// What some region, having shown it, was seen to know covered.
    pub fn dead(&self) -> BTreeSet<(String, FieldKey, Dot)> {
        let inner = self.inner.lock();
        let dots = |((_, key, field), known): (&(usize, String, FieldKey), &Known)| {
            known.dead.keys().map(|dot| (key.clone(), field.clone(), *dot)).collect::<Vec<_>>()
        };
        inner.known.iter().flat_map(dots).collect()
    }

    pub fn violations(&self) -> Vec<String> {
        self.inner.lock().violations.clone()
    }

    pub fn hash(&self) -> u64 {
        self.inner.lock().hash.finish()
    }

    pub fn events(&self) -> u64 {
        self.inner.lock().events
    }

    pub fn take_trace(&self) -> Option<String> {
        self.inner.lock().trace.take()
    }
}

/// Whether it may leave nothing of what it met.
fn takes_away(op: &Op) -> bool {
    match op {
        Op::Delete => true,
        Op::Patch { remove, .. } => !remove.is_empty(),
        Op::Put { .. } | Op::Increment { .. } => false,
    }
}

pub fn decode(key: &str, version: &Bytes) -> Result<Context, isle_model::BadToken> {
    Context::decode(&super::token_key(), keyspace_of(key).id, key.as_bytes(), version)
}

pub fn shard_of(key: &str) -> ShardId {
    ShardId::of(keyspace_of(key).id, key.as_bytes(), SHARDS)
}

impl Inner {
    fn event(&mut self, now: Duration, what: &str) {
        self.events += 1;
        self.hash.write_u128(now.as_nanos());
        self.hash.write(what.as_bytes());
        if let Some(trace) = &mut self.trace {
            let short: String = what.chars().take(400).collect();
            let _ = writeln!(trace, "{:>12.6} {short}", now.as_secs_f64());
        }
    }

    fn violation(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS_KEPT {
            self.violations.push(what);
        }
    }

    fn keep_token(&mut self, key: &str, version: &Bytes, source: Source) {
        let tokens = self.tokens.entry(key.to_owned()).or_default();
        tokens.push_back(Token { version: version.clone(), source });
        if tokens.len() > TOKENS_KEPT {
            tokens.pop_front();
        }
    }

    /// What a region's answer says of what it knows. An acknowledgement may come after a read of something newer, so only a
    /// read (`Some`) can show that something came back, and only what was noted before it was asked for.
    fn learn(&mut self, site: usize, key: &str, context: &Context, read: Option<(u64, Mix)>) {
        let (now, lineage) = (self.events, self.tree.shard(shard_of(key)));
        let mut returned = Vec::new();
        for (field, seen) in context.fields().iter().filter(|(field, _)| field.kind == Kind::Value) {
            let known = self.known.entry((site, key.to_owned(), field.clone())).or_default();
            let live: BTreeSet<Dot> = seen.shown.iter().chain(&seen.hidden).copied().collect();
            let before = |dot: &&Dot| known.dead.get(dot).zip(read).is_some_and(|(at, (began, _))| *at < began);
            returned.extend(live.iter().filter(before).map(|dot| (field.clone(), *dot)));
            let covered =
                |dot: &Dot| !live.contains(dot) && lineage.knows(dot.incarnation) && seen.seen.covers(*dot, lineage);
            let gone: Vec<Dot> = known.alive.keys().filter(|dot| covered(dot)).copied().collect();
            for dot in gone {
                known.alive.remove(&dot);
                known.dead.insert(dot, now);
            }
            for dot in live {
                if !known.dead.contains_key(&dot) {
                    known.alive.entry(dot).or_insert(now);
                }
            }
        }
        let Some((began, mix)) = read else { return };
        // A field of which nothing is known any more was deleted, and its tombstone forgotten.
        let from = (site, key.to_owned(), FieldKey::value(""));
        for ((_, _, field), known) in self.known.range_mut(from..).take_while(|((s, k, _), _)| *s == site && k == key) {
            if context.get(field).is_none() {
                let gone: Vec<Dot> = known.alive.iter().filter(|(_, at)| **at < began).map(|(dot, _)| *dot).collect();
                known.alive.retain(|dot, _| !gone.contains(dot));
                known.dead.extend(gone.into_iter().map(|dot| (dot, now)));
            }
        }
        if mix.is_honest() {
            for (field, dot) in returned {
                self.violation(format!(
                    "{key} {:?}: {dot} is shown again in region {site} after it was covered",
                    field.name
                ));
            }
        }
    }

    fn witness(&mut self, key: &str, field: FieldKey, dot: Dot, value: String) {
        match self.witnessed.get(&(key.to_owned(), field.clone(), dot)) {
            Some(before) if *before != value => {
                self.violation(format!("{dot} named {before:?} and then {value:?}"));
            }
            Some(_) => {}
            None => {
                self.witnessed.insert((key.to_owned(), field, dot), value);
            }
        }
    }
}
