//! Three regions, one keyspace, two shards, and beside every field an oracle that keeps the exact set of operations.
//!
//! Every region keeps a log; its state is the replay of that log. A crash cuts the log at the durable position or (a disk
//! that lied) anywhere before it, and the next start mints an incarnation that names its parent and where it left it.
//! Regions pull each other's streams from the origin or from a survivor that relays, sometimes out of order. What they do
//! to records and cursors is the crate's own `plan`, `apply`, `complete` and `Streams`; what must come of it is computed
//! here from sets of operations, without a vector, a generation or a total.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use isle_model::write::{Applied, Site, Writer, apply, complete, plan, taken};
use isle_model::{
    Absorbed, Admission, Body, Context, Delta, Dot, Epoch, Fate, Field, FieldKey, FieldName, Hlc, HlcClock,
    Incarnation, IncarnationTree, KeyspaceId, Kind, LedgerEntry, Lineage, Mutation, Precondition, Reading, Record,
    Region, Register, Row, Seq, ShardId, Sibling, Stamp, Streams, TokenKey, Value, Vector, Write, WriteError,
};

pub const KEYSPACE: KeyspaceId = KeyspaceId(7);
pub const SHARDS: u32 = 2;
const KEYS: [&str; 4] = ["p", "q", "r", "s"];
const NAMES: [&str; 3] = ["A", "B", "C"];
const OPS_MAX: usize = 128;
const DRIFT_MS_MAX: u64 = 10_000;

/// SplitMix64: small, seeded, and the same on every machine.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// A set of operations, by their place in `World::ops`.
pub type Ops = u128;

fn each(mut ops: Ops) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (ops != 0).then(|| ops.trailing_zeros() as usize);
        ops &= ops.wrapping_sub(1);
        next
    })
}

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Write(Sibling),
    Add(i64),
    Empty,
}

/// What one operation did to one field: everything it covers there, and its effect.
#[derive(Clone, Debug)]
pub struct Fact {
    pub field: FieldKey,
    pub covers: Ops,
    pub effect: Effect,
    /// What its region, or its client, was showing when it covered it.
    pub shown: Vec<Dot>,
}

impl Fact {
    /// An increment covers nothing but what it starts anew from.
    fn covering(self, more: Ops) -> Fact {
        let more = if matches!(self.effect, Effect::Add(_)) { 0 } else { more };
        Fact { covers: self.covers | more, ..self }
    }
}

pub struct Op {
    pub key: usize,
    pub dot: Dot,
    pub facts: Vec<Fact>,
    /// A lying disk lost it after it was acked.
    pub lost: bool,
}

impl Op {
    fn fact(&self, field: &FieldKey) -> Option<&Fact> {
        self.facts.iter().find(|f| f.field == *field)
    }
}

/// The operations that each field of a record has absorbed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exact(Vec<(FieldKey, Ops)>);

impl Exact {
    fn get(&self, field: &FieldKey) -> Ops {
        self.0.iter().find(|(f, _)| f == field).map_or(0, |(_, ops)| *ops)
    }

    fn add(&mut self, field: &FieldKey, ops: Ops) {
        match self.0.iter_mut().find(|(f, _)| f == field) {
            Some((_, have)) => *have |= ops,
            None => self.0.push((field.clone(), ops)),
        }
    }

    fn fields(&self) -> BTreeSet<&FieldKey> {
        self.0.iter().map(|(f, _)| f).collect()
    }
}

/// What of `known` no operation in `known` covers: what a reader must see.
pub fn live(ops: &[Op], field: &FieldKey, known: Ops) -> Ops {
    let facts = || each(known).filter_map(|i| ops[i].fact(field).map(|f| (i, f)));
    let covered = facts().fold(0, |all, (_, f)| all | f.covers);
    facts().filter(|(_, f)| f.effect != Effect::Empty).fold(0, |all, (i, _)| all | 1 << i) & !covered
}

#[derive(Clone, Default)]
pub struct Held {
    pub record: Record,
    pub exact: Exact,
    /// What a completion left out, because a side had absorbed and forgotten it: whatever is written next covers it.
    pub left_out: Exact,
}

pub struct Shipped {
    pub delta: Delta,
    pub key: usize,
    pub exact: Exact,
}

type Ledger = BTreeMap<(usize, FieldKey, Dot), LedgerEntry>;

#[derive(Clone)]
struct Snapshot {
    records: BTreeMap<usize, Held>,
    streams: Vec<Streams>,
    ledger: Ledger,
}

#[derive(Clone)]
enum Entry {
    Row(Incarnation, Row),
    Rows(Vec<(Incarnation, Row)>),
    Own(Rc<Shipped>),
    Foreign(Region, Rc<Shipped>),
    Forget(usize),
    Completed(Rc<Snapshot>),
}

pub struct Node {
    pub region: Region,
    pub tree: IncarnationTree,
    pub records: BTreeMap<usize, Held>,
    pub ledger: Ledger,
    streams: Vec<Streams>,
    log: Vec<Entry>,
    durable: usize,
    incarnation: Incarnation,
    seq: Vec<Seq>,
    clock: HlcClock,
    epoch: Epoch,
    skew_ms: u64,
}

/// A version as a client carries it, and what the oracle knows of the moment it was read.
pub struct Token {
    bytes: Vec<u8>,
    exact: Exact,
}

#[derive(Default, Debug)]
pub struct Tally {
    pub writes: usize,
    pub with_token: usize,
    pub refused: usize,
    pub conflicts: usize,
    pub forgotten: usize,
    pub completed: usize,
    /// How often several regions were found behind at once.
    pub behind_together: usize,
    pub gaps: usize,
    pub losers: usize,
    pub limit: usize,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.writes += other.writes;
        self.with_token += other.with_token;
        self.refused += other.refused;
        self.conflicts += other.conflicts;
        self.forgotten += other.forgotten;
        self.completed += other.completed;
        self.behind_together += other.behind_together;
        self.gaps += other.gaps;
        self.losers += other.losers;
        self.limit += other.limit;
    }
}

pub struct World {
    pub nodes: Vec<Node>,
    pub ops: Vec<Op>,
    pub tally: Tally,
    lying: bool,
    minted: Rng,
    now_ms: u64,
    epoch: Epoch,
    forgotten: BTreeSet<usize>,
    secret: TokenKey,
}

pub fn key_bytes(key: usize) -> Bytes {
    Bytes::from_static(KEYS[key].as_bytes())
}

pub fn shard_of(key: usize) -> ShardId {
    ShardId::of(KEYSPACE, KEYS[key].as_bytes(), SHARDS)
}

impl Node {
    fn new(name: &str, skew_ms: u64) -> Node {
        Node {
            region: Region::new(name),
            tree: IncarnationTree::new(),
            records: BTreeMap::new(),
            ledger: Ledger::new(),
            streams: Vec::new(),
            log: Vec::new(),
            durable: 0,
            incarnation: Incarnation(0),
            seq: Vec::new(),
            clock: HlcClock::default(),
            epoch: Epoch(0),
            skew_ms,
        }
    }

    /// Replays the log and begins a new incarnation at its end.
    fn start(&mut self, incarnation: Incarnation) {
        self.tree = IncarnationTree::new();
        self.records.clear();
        self.ledger.clear();
        self.streams = vec![Streams::new(); SHARDS as usize];
        let mut parent = None;
        let mut left_at = vec![0; SHARDS as usize];
        let mut last = Hlc::default();
        for entry in std::mem::take(&mut self.log) {
            match &entry {
                Entry::Row(incarnation, row) => {
                    self.tree.insert(*incarnation, row.clone()).unwrap();
                    parent = Some(*incarnation);
                    left_at.fill(0);
                }
                Entry::Rows(rows) => {
                    for (incarnation, row) in rows {
                        self.tree.insert(*incarnation, row.clone()).unwrap();
                    }
                }
                Entry::Own(shipped) => {
                    let region = self.region.clone();
                    self.apply(&region, shipped, true);
                    left_at[shipped.delta.shard.0 as usize] = shipped.delta.dot.seq;
                    last = last.max(shipped.delta.hlc);
                }
                Entry::Foreign(region, shipped) => self.apply(region, shipped, false),
                Entry::Forget(key) => {
                    self.records.remove(key);
                }
                Entry::Completed(snapshot) => {
                    let Snapshot { records, streams, ledger } = (**snapshot).clone();
                    (self.records, self.streams, self.ledger) = (records, streams, ledger);
                }
            }
            self.log.push(entry);
        }
        let row = Row { region: self.region.clone(), parent, left_at };
        self.tree.insert(incarnation, row.clone()).unwrap();
        self.log.push(Entry::Row(incarnation, row));
        self.durable = self.log.len();
        self.incarnation = incarnation;
        self.seq = vec![0; SHARDS as usize];
        self.clock = HlcClock::new(last);
    }

    fn apply(&mut self, region: &Region, shipped: &Shipped, own: bool) {
        let delta = &shipped.delta;
        let lineage = self.tree.shard(delta.shard);
        self.streams[delta.shard.0 as usize].absorb(region, delta, own, lineage);
        let Body::Write(write) = &delta.body else { return };
        let held = self.records.entry(shipped.key).or_default();
        let site = Site { region: &self.region, keyspace: KEYSPACE, hlc: delta.hlc, lineage };
        let applied = apply(&held.record, write.clone(), site);
        for (field, ops) in &shipped.exact.0 {
            held.exact.add(field, *ops);
        }
        held.record = note(&mut self.ledger, shipped.key, applied, Some(delta.dot));
    }

    fn stream(&self, region: &Region) -> Vec<Rc<Shipped>> {
        let of_region = |entry: &Entry| match entry {
            Entry::Own(shipped) if *region == self.region => Some(shipped.clone()),
            Entry::Foreign(origin, shipped) if origin == region => Some(shipped.clone()),
            _ => None,
        };
        self.log.iter().filter_map(of_region).collect()
    }

    fn learn_rows(&mut self, rows: &[(Incarnation, Row)]) {
        let new: Vec<_> = rows.iter().filter(|(i, _)| !self.tree.contains(*i)).cloned().collect();
        for (incarnation, row) in &new {
            self.tree.insert(*incarnation, row.clone()).unwrap();
        }
        if !new.is_empty() {
            self.log.push(Entry::Rows(new));
        }
    }

    fn rows(&self) -> Vec<(Incarnation, Row)> {
        self.tree.rows().map(|(i, row)| (i, row.clone())).collect()
    }

    fn next_stamp(&mut self, shard: ShardId, now_ms: u64) -> Stamp {
        let before = self.clock.last();
        let hlc = self.clock.tick(now_ms + self.skew_ms);
        assert!(hlc > before, "a clock that does not tick");
        let dot = Dot::new(self.incarnation, self.seq[shard.0 as usize] + 1);
        Stamp { dot, hlc, epoch: self.epoch }
    }

    fn commit(&mut self, shard: ShardId, stamp: Stamp, key: usize, body: Body, exact: Exact) {
        let prev = self.streams[shard.0 as usize].last_own();
        let delta = Delta { dot: stamp.dot, prev, keyspace: KEYSPACE, shard, hlc: stamp.hlc, epoch: stamp.epoch, body };
        let shipped = Rc::new(Shipped { delta, key, exact });
        self.seq[shard.0 as usize] = stamp.dot.seq;
        let region = self.region.clone();
        self.apply(&region, &shipped, true);
        self.log.push(Entry::Own(shipped));
        self.durable = self.log.len();
    }

    fn has_absorbed(&self, key: usize, dot: Dot) -> bool {
        let (streams, lineage) = (&self.streams[shard_of(key).0 as usize], self.tree.shard(shard_of(key)));
        streams.has_absorbed(&self.region, &self.region, dot, lineage)
    }

    fn reading(&self, key: usize) -> Reading {
        let nothing = Held::default();
        let held = self.records.get(&key).unwrap_or(&nothing);
        Reading::of(&held.record, self.tree.shard(shard_of(key)))
    }

    fn digest(&self) -> u128 {
        let part = |(key, held): (&usize, &Held)| held.record.digest(KEYSPACE, KEYS[*key].as_bytes());
        self.records.iter().map(part).fold(0, u128::wrapping_add)
    }
}

/// Takes what applying something did into the ledger, as a store does.
fn note(ledger: &mut Ledger, key: usize, applied: Applied, by: Option<Dot>) -> Record {
    for entry in applied.ledger {
        match ledger.entry((key, entry.field.clone(), entry.loser)) {
            std::collections::btree_map::Entry::Occupied(mut known) => known.get_mut().merge(&entry),
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(entry);
            }
        }
    }
    for (field, dot) in applied.covered {
        if let Some(entry) = ledger.get_mut(&(key, field, dot))
            && entry.fate == Fate::Open
        {
            entry.fate = Fate::Superseded;
            entry.covered_by = by;
        }
    }
    applied.record
}

type Check = Result<(), String>;

macro_rules! ensure {
    ($sound:expr, $($story:tt)+) => {
        if !$sound {
            return Err(format!($($story)+));
        }
    };
}

impl World {
    pub fn new(seed: u64, lying: bool) -> World {
        let mut rng = Rng(seed ^ 0x15_1e);
        let nodes = NAMES.iter().map(|name| Node::new(name, rng.below(25_000) as u64)).collect();
        let mut world = World {
            nodes,
            ops: Vec::new(),
            tally: Tally::default(),
            lying,
            minted: rng,
            now_ms: 1_700_000_000_000,
            epoch: Epoch(0),
            forgotten: BTreeSet::new(),
            secret: TokenKey::new([9; 32]),
        };
        for n in 0..3 {
            world.restart(n);
        }
        world
    }

    fn restart(&mut self, n: usize) {
        let incarnation = Incarnation(self.minted.next());
        self.nodes[n].start(incarnation);
    }

    fn two(&mut self, a: usize, b: usize) -> (&mut Node, &Node) {
        let [a, b] = self.nodes.get_disjoint_mut([a, b]).unwrap();
        (a, b)
    }

    /// One step of a history. All that happens in it follows from `seed` and the state before.
    pub fn step(&mut self, seed: u64) -> Check {
        let rng = &mut Rng(seed);
        self.now_ms += rng.below(400) as u64;
        let n = rng.below(3);
        let other = (n + 1 + rng.below(2)) % 3;
        match rng.below(100) {
            0..40 => self.some_write(n, other, rng)?,
            40..76 => {
                let region = if rng.percent(60) { other } else { rng.below(3) };
                let limit = 1 + rng.below(6);
                self.pull(n, other, region, limit, rng);
            }
            76..84 => self.crash(n, rng),
            84..92 => self.state_what_is_absorbed(n),
            92..96 => self.calm(rng),
            _ => self.forget(n),
        }
        self.check()
    }

    /// A calm moment: nearly everyone hears nearly everything.
    fn calm(&mut self, rng: &mut Rng) {
        for _ in 0..2 {
            for a in 0..3 {
                self.state_what_is_absorbed(a);
                for b in 0..3 {
                    if a != b && rng.percent(85) {
                        self.pull(a, b, b, usize::MAX, rng);
                    }
                }
            }
        }
    }

    fn some_write(&mut self, n: usize, other: usize, rng: &mut Rng) -> Check {
        let key = rng.below(KEYS.len());
        let name = |rng: &mut Rng| FieldName::new(["x", "y", "n"][[0, 0, 0, 1, 1, 1, 2][rng.below(7)]]);
        let value = Value::i64(rng.next() as i64);
        let mutation = match rng.below(40) {
            0..10 => Mutation::Put { value },
            10..20 => Mutation::Patch { set: vec![(name(rng), value)], remove: vec![] },
            20..22 => Mutation::Patch { set: vec![], remove: vec![name(rng)] },
            22..24 => Mutation::Patch {
                set: vec![(FieldName::new("x"), value)],
                remove: vec![FieldName::new(["y", "n"][rng.below(2)])],
            },
            24..31 => Mutation::Increment {
                field: FieldName::new(if rng.percent(90) { "n" } else { "x" }),
                amount: if rng.percent(2) { i64::MAX } else { rng.below(19) as i64 - 9 },
            },
            _ => Mutation::Delete,
        };
        let from = if rng.percent(70) { other } else { n };
        let token = rng.percent(30).then(|| self.read(from, key));
        let precondition = match rng.below(10) {
            0 => Precondition::Absent,
            1 => Precondition::Version,
            2 if token.is_some() => Precondition::Version,
            _ => Precondition::None,
        };
        if token.is_some() {
            // No reader sees what is not durable, of another region's writes either.
            self.nodes[from].durable = self.nodes[from].log.len();
            let rows = self.nodes[from].rows();
            self.nodes[n].learn_rows(&rows); // a token's rows are fetched before it is used
        }
        if rng.percent(3) {
            self.epoch = Epoch(self.epoch.0 + 1);
            self.nodes[n].epoch = self.epoch;
        }
        self.write(n, key, &mutation, &precondition, token)
    }

    pub fn read(&self, n: usize, key: usize) -> Token {
        let node = &self.nodes[n];
        let held = node.records.get(&key).cloned().unwrap_or_default();
        let context = Context::of(&held.record, node.tree.shard(shard_of(key)));
        Token { bytes: context.encode(&self.secret, KEYSPACE, KEYS[key].as_bytes()), exact: held.exact }
    }

    /// Plans a write and holds the plan against what the oracle says it must be.
    pub fn write(
        &mut self,
        n: usize,
        key: usize,
        mutation: &Mutation,
        precondition: &Precondition,
        token: Option<Token>,
    ) -> Check {
        if self.ops.len() == OPS_MAX {
            return Ok(());
        }
        let (shard, now_ms) = (shard_of(key), self.now_ms);
        let stamp = self.nodes[n].next_stamp(shard, now_ms);
        let node = &self.nodes[n];
        let lineage = node.tree.shard(shard);
        let context =
            token.as_ref().map(|t| Context::decode(&self.secret, KEYSPACE, KEYS[key].as_bytes(), &t.bytes).unwrap());
        let there = token.map(|t| t.exact);
        let here = node.records.get(&key).cloned().unwrap_or_default();
        let writer =
            Writer { region: &node.region, home: &node.region, takes_over: false, keyspace: KEYSPACE, stamp, lineage };
        let planned = plan(&key_bytes(key), mutation, precondition, context.as_ref(), &here.record, writer);
        let expected = self.expected_refusal(mutation, precondition, &here.exact, there.as_ref());
        let write = match (planned, expected) {
            (Err(WriteError::KeyExists), Some("exists"))
            | (Err(WriteError::VersionMismatch), Some("version"))
            | (Err(WriteError::WrongKind { .. }), Some("kind")) => {
                self.tally.refused += 1;
                return Ok(());
            }
            (Ok(write), None) => write.unwrap_or(Write { key: key_bytes(key), fields: Record::new(), ledger: vec![] }),
            (planned, expected) => return Err(format!("{mutation:?} planned as {planned:?}, expected {expected:?}")),
        };
        let there = there.unwrap_or_default();
        self.check_reach(mutation, &write, &here, &there, lineage)?;
        if write.fields.is_empty() {
            return Ok(());
        }
        let bit: Ops = 1 << self.ops.len();
        let mut exact = Exact::default();
        let mut facts = Vec::new();
        for (field, written) in write.fields.fields() {
            let (fact, ships) = self.fact(field, written, mutation, stamp.dot, here.exact.get(field), there.get(field));
            let fact = fact.covering(here.left_out.get(field));
            let shown_here = here.record.register(field).and_then(|r| r.highest(lineage)).map(|s| s.dot);
            let shown_there = context.as_ref().and_then(|c| c.get(field)).and_then(|c| c.shown);
            facts.push(Fact { shown: shown_here.into_iter().chain(shown_there).collect(), ..fact });
            exact.add(field, ships | bit);
        }
        self.check_rank(key, &facts, lineage)?;
        let own_line = self.own_line(key, stamp.dot, lineage);
        let with_line = |fact: Fact| if fact.field.kind == Kind::Counter { fact } else { fact.covering(own_line) };
        let facts = facts.into_iter().map(with_line).collect();
        self.tally.writes += 1;
        self.tally.with_token += usize::from(context.is_some());
        self.ops.push(Op { key, dot: stamp.dot, facts, lost: false });
        self.nodes[n].commit(shard, stamp, key, Body::Write(write), exact);
        Ok(())
    }

    /// A region's write covers all that its own line of incarnations wrote before, forgotten or not: it never adds a second
    /// sibling of its own. Where a disk lied, somebody may still hold what the others have deleted and forgotten.
    fn own_line(&self, key: usize, dot: Dot, lineage: Lineage<'_>) -> Ops {
        let line = Vector::of(dot);
        let on_it = |op: &Op| op.key == key && line.covers(op.dot, lineage);
        self.ops.iter().enumerate().filter(|(_, op)| on_it(op)).fold(0, |all, (i, _)| all | 1 << i)
    }

    fn live(&self, field: &FieldKey, known: Ops) -> Ops {
        live(&self.ops, field, known)
    }

    fn version(&self, exact: &Exact) -> BTreeMap<FieldKey, Ops> {
        let user_fields = exact.0.iter().filter(|(field, _)| field.kind != Kind::Home);
        let live = user_fields.map(|(field, known)| (field.clone(), self.live(field, *known)));
        live.filter(|(_, ops)| *ops != 0).collect()
    }

    fn expected_refusal(
        &self,
        mutation: &Mutation,
        precondition: &Precondition,
        here: &Exact,
        token: Option<&Exact>,
    ) -> Option<&'static str> {
        let version = self.version(here);
        match precondition {
            Precondition::Absent if !version.is_empty() => return Some("exists"),
            Precondition::Version if token.is_none_or(|there| self.version(there) != version) => {
                return Some("version");
            }
            _ => {}
        }
        let taken = |kind, name: &FieldName| version.contains_key(&FieldKey { kind, name: name.clone() });
        let wrong = match mutation {
            Mutation::Patch { set, .. } => set.iter().any(|(name, _)| taken(Kind::Counter, name)),
            Mutation::Increment { field, .. } => taken(Kind::Value, field),
            _ => false,
        };
        wrong.then_some("kind")
    }

    /// A write touches the fields its mutation speaks of, and no others.
    fn check_reach(
        &self,
        mutation: &Mutation,
        write: &Write,
        here: &Held,
        there: &Exact,
        lineage: Lineage<'_>,
    ) -> Check {
        let touched = |field: &FieldKey| write.fields.get(field).is_some();
        let spoken_of = |field: &FieldKey| match mutation {
            Mutation::Put { .. } | Mutation::Delete => true,
            Mutation::Move { .. } => false,
            Mutation::Increment { field: name, .. } => field.kind == Kind::Counter && field.name == *name,
            Mutation::Patch { set, remove } => {
                remove.contains(&field.name)
                    || field.kind == Kind::Value && set.iter().any(|(name, _)| *name == field.name)
            }
        };
        for (field, _) in write.fields.fields().iter().filter(|(field, _)| field.kind != Kind::Home) {
            ensure!(spoken_of(field), "{mutation:?} touched {field:?}");
        }
        let known = here.exact.fields().into_iter().chain(there.fields());
        for field in known.filter(|field| field.kind != Kind::Home && spoken_of(field) && !touched(field)) {
            let unseen = self.live(field, here.exact.get(field) | there.get(field)) & !here.left_out.get(field);
            ensure!(unseen == 0, "{mutation:?} left {field:?} alone, where {unseen:b} is live");
        }
        let user_fields = |r: &Record| r.fields().iter().filter(|(f, _)| f.kind != Kind::Home).count();
        if user_fields(&write.fields) == 0 {
            return Ok(());
        }
        let mut after = here.record.clone();
        after.merge(&write.fields, lineage);
        let home = after.register(&FieldKey::home()).is_some_and(Register::is_live);
        ensure!(home == after.is_live(), "after {mutation:?} the home is {home} and the record {}", after.is_live());
        Ok(())
    }

    fn fact(
        &self,
        field: &FieldKey,
        written: &Field,
        mutation: &Mutation,
        dot: Dot,
        here: Ops,
        there: Ops,
    ) -> (Fact, Ops) {
        let fact = |covers, effect| Fact { field: field.clone(), covers, effect, shown: vec![] };
        match (written, mutation) {
            (Field::Counter(_), Mutation::Increment { amount, .. }) => {
                let own = each(here).filter(|i| self.ops[*i].dot.incarnation == dot.incarnation);
                let own = own.fold(0, |all: Ops, i| all | 1 << i);
                // Where all of its own is deleted, it starts anew and thereby says so.
                let anew = if self.live(field, here) & own == 0 { own } else { 0 };
                (fact(anew, Effect::Add(*amount)), 0)
            }
            (Field::Counter(_), _) => (fact(here | there, Effect::Empty), here | there),
            (Field::Register(register), _) => {
                let effect = register.sibling(dot).cloned().map_or(Effect::Empty, Effect::Write);
                (fact(here | there, effect), here | there)
            }
        }
    }

    /// Law 2: a version outranks all it covers. But where a delete was forgotten together with what it covered, its generation
    /// is, too: then a disk that lied elsewhere may still hold a covered value of a higher rank, which the new one only removes.
    fn check_rank(&self, key: usize, facts: &[Fact], lineage: Lineage<'_>) -> Check {
        let ranked = facts.iter().filter(|_| !self.lying || !self.forgotten.contains(&key));
        for fact in ranked {
            let Effect::Write(new) = &fact.effect else { continue };
            for old in each(fact.covers) {
                if let Some(Effect::Write(old)) = self.ops[old].fact(&fact.field).map(|f| &f.effect) {
                    ensure!(new.rank(lineage) > old.rank(lineage), "{new:?} covers {old:?} and ranks below it");
                }
            }
        }
        Ok(())
    }

    fn state_what_is_absorbed(&mut self, n: usize) {
        let now_ms = self.now_ms;
        for shard in (0..SHARDS).map(ShardId) {
            let node = &mut self.nodes[n];
            if let Some(statement) = node.streams[shard.0 as usize].statement() {
                let stamp = node.next_stamp(shard, now_ms);
                node.commit(shard, stamp, usize::MAX, Body::Statement(statement), Exact::default());
            }
        }
    }

    /// Fetches a region's stream from its origin or from a survivor; a region may get its own lost deltas back so.
    fn pull(&mut self, to: usize, from: usize, region: usize, limit: usize, rng: &mut Rng) -> usize {
        let region = Region::new(NAMES[region]);
        let now_ms = self.now_ms;
        let (node, source) = self.two(to, from);
        let (rows, mut stream) = (source.rows(), source.stream(&region));
        node.learn_rows(&rows); // rows travel ahead of what uses them
        if rng.percent(10) && !stream.is_empty() {
            let first = rng.below(stream.len());
            stream.rotate_left(first); // frames overtake each other
        }
        let (mut taken, mut gaps) = (0, 0);
        for shipped in stream {
            let delta = &shipped.delta;
            let lineage = node.tree.shard(delta.shard);
            match node.streams[delta.shard.0 as usize].admit(&region, delta, lineage) {
                Admission::Apply if taken < limit => {
                    let before = node.clock.last();
                    node.clock.hear(delta.hlc, now_ms + node.skew_ms, DRIFT_MS_MAX);
                    assert!(node.clock.last() >= before, "a clock that runs backwards");
                    node.apply(&region, &shipped, false);
                    node.log.push(Entry::Foreign(region.clone(), shipped));
                    taken += 1;
                }
                Admission::Gap { .. } => gaps += 1, // waited for, never skipped
                _ => {}
            }
        }
        if rng.percent(70) {
            node.durable = node.log.len();
        }
        self.tally.gaps += gaps;
        taken
    }

    /// Disks may lie in several regions at once: those found behind then complete each other.
    fn crash(&mut self, n: usize, rng: &mut Rng) {
        let mut crashed = vec![n];
        if self.lying && rng.percent(40) {
            crashed.extend((0..3).filter(|o| *o != n && rng.percent(70)));
        }
        crashed.iter().for_each(|n| self.crash_one(*n, rng));
        if self.lying {
            // Nobody knows yet who is behind, and states are given: they must do no harm.
            for _ in 0..rng.below(3) {
                let from = crashed[rng.below(crashed.len())];
                self.complete_from((from + 1 + rng.below(2)) % 3, from);
            }
        }
        let behind: Vec<usize> = crashed.iter().copied().filter(|n| self.learn_of_being_behind(*n)).collect();
        self.tally.behind_together += usize::from(behind.len() > 1);
        for n in behind {
            // Before it serves anybody but those who are behind themselves.
            let from = (n + 1 + rng.below(2)) % 3;
            self.complete_from(n, from);
        }
    }

    fn learn_of_being_behind(&mut self, n: usize) -> bool {
        (0..3).filter(|o| *o != n).fold(false, |behind, o| {
            let rows = self.nodes[o].rows();
            self.nodes[n].learn_rows(&rows);
            behind | self.is_behind(n, o)
        })
    }

    fn crash_one(&mut self, n: usize, rng: &mut Rng) {
        let lies = self.lying && rng.percent(50);
        let node = &mut self.nodes[n];
        let least = if lies { 1 } else { node.durable };
        let cut = least + rng.below(node.log.len() + 1 - least);
        for entry in node.log.drain(cut..) {
            if let Entry::Own(shipped) = entry {
                let of_key = self.ops.iter_mut().filter(|op| op.key == shipped.key && op.dot == shipped.delta.dot);
                of_key.for_each(|op| op.lost = true);
            }
        }
        self.restart(n);
    }

    fn is_behind(&self, n: usize, other: usize) -> bool {
        let (node, other) = (&self.nodes[n], &self.nodes[other]);
        (0..SHARDS as usize).any(|shard| {
            let Some(said) = other.streams[shard].stated_by(&node.region) else { return false };
            let stated: Vec<_> = said.iter().map(|(r, v)| (r.clone(), v.clone())).collect();
            node.streams[shard].is_behind(&stated, node.tree.shard(ShardId(shard as u32)))
        })
    }

    /// Takes a complete state: what it does not list, at or below what its sender has absorbed, is gone.
    fn complete_from(&mut self, n: usize, from: usize) {
        self.tally.completed += 1;
        let [node, source] = self.nodes.get_disjoint_mut([n, from]).unwrap();
        node.learn_rows(&source.rows());
        let nothing = Held::default();
        for key in 0..KEYS.len() {
            let (shard, lineage) = (shard_of(key), node.tree.shard(shard_of(key)));
            let [here, absorbed] =
                [&node.streams, &source.streams].map(|streams| streams[shard.0 as usize].absorbed(lineage));
            let sides = Absorbed { here: &here, there: &absorbed };
            let listed = source.records.get(&key).unwrap_or(&nothing);
            if !node.records.contains_key(&key) && listed.record.is_empty() {
                continue;
            }
            let held = node.records.entry(key).or_default();
            let site = Site { region: &node.region, keyspace: KEYSPACE, hlc: node.clock.last(), lineage };
            let mut applied = complete(&key_bytes(key), &held.record, &listed.record, sides, site);
            let theirs: Vec<LedgerEntry> =
                source.ledger.iter().filter(|((k, ..), _)| *k == key).map(|(_, e)| e.clone()).collect();
            let came = taken(&theirs, &held.record, &applied.record, lineage);
            applied.ledger.extend(came);
            // Of what a side has absorbed and does not know any more, it has forgotten the delete as well.
            let stays = |there: Ops, absorbed: &Vector, i: &usize| {
                there >> i & 1 == 1 || !absorbed.covers(self.ops[*i].dot, lineage)
            };
            let (mut exact, mut left_out) = (Exact::default(), held.left_out.clone());
            for (field, ops) in &listed.left_out.0 {
                left_out.add(field, *ops);
            }
            for (known, other, by_other) in
                [(&held.exact, &listed.exact, &absorbed), (&listed.exact, &held.exact, &here)]
            {
                for (field, ops) in &known.0 {
                    let kept =
                        each(*ops).filter(|i| stays(other.get(field), by_other, i)).fold(0, |all, i| all | 1 << i);
                    exact.add(field, kept);
                    left_out.add(field, ops & !kept);
                }
            }
            held.left_out = left_out;
            held.exact = exact;
            held.record = note(&mut node.ledger, key, applied, None);
        }
        for shard in 0..SHARDS as usize {
            let cursors: Vec<(Region, Vector)> =
                source.streams[shard].applied().iter().map(|(r, v)| (r.clone(), v.clone())).collect();
            node.streams[shard].advance(&cursors, None, false, node.tree.shard(ShardId(shard as u32)));
        }
        let (records, streams, ledger) = (node.records.clone(), node.streams.clone(), node.ledger.clone());
        node.log.push(Entry::Completed(Rc::new(Snapshot { records, streams, ledger })));
        node.durable = node.log.len();
    }

    fn forget(&mut self, n: usize) {
        let holders = NAMES.map(Region::new);
        let node = &mut self.nodes[n];
        for key in 0..KEYS.len() {
            let (shard, Some(held)) = (shard_of(key), node.records.get(&key)) else { continue };
            let lineage = node.tree.shard(shard);
            if node.streams[shard.0 as usize].may_forget(&held.record, &holders, &node.region, lineage) {
                node.records.remove(&key);
                node.log.push(Entry::Forget(key));
                node.durable = node.log.len();
                self.forgotten.insert(key);
                self.tally.forgotten += 1;
            }
        }
    }

    /// The one case in which a counter may be wrong: an increment that only a lost branch of a lying disk held can bring
    /// back what a delete had covered, once that delete has been forgotten elsewhere.
    pub fn beyond_the_limit(&self, key: usize) -> bool {
        let lost_increment =
            |op: &Op| op.key == key && op.lost && op.facts.iter().any(|f| matches!(f.effect, Effect::Add(_)));
        self.forgotten.contains(&key) && self.ops.iter().any(lost_increment)
    }

    /// Every region shows exactly what its operations say, and accounts for every loser.
    pub fn check(&mut self) -> Check {
        let mut conflicts = 0;
        for node in &self.nodes {
            for (key, held) in &node.records {
                let lineage = node.tree.shard(shard_of(*key));
                let fields: BTreeSet<&FieldKey> = held.record.fields().iter().map(|(f, _)| f).collect();
                ensure!(fields == held.exact.fields(), "{} {}: fields {fields:?}", node.region, KEYS[*key]);
                for (field, content) in held.record.fields() {
                    self.check_field(*key, field, content, held.exact.get(field), lineage)
                        .map_err(|story| format!("{} {} {field:?}: {story}", node.region, KEYS[*key]))?;
                    ensure!(self.lying || content.seen().len() <= 3, "{field:?} has seen {:?}", content.seen());
                    if let (Kind::Value, Field::Register(register)) = (field.kind, content) {
                        conflicts += usize::from(register.siblings().len() > 1);
                        check_losers(node, *key, field, register, lineage)?;
                    }
                }
            }
            for ((key, field, dot), entry) in &node.ledger {
                let held = node.records.get(key);
                let is_live = held.and_then(|h| h.record.register(field)).is_some_and(|r| r.sibling(*dot).is_some());
                ensure!(is_live || entry.fate != Fate::Open, "{}: {entry:?} is open and not live", node.region);
            }
        }
        self.tally.conflicts += conflicts;
        Ok(())
    }

    fn check_field(&self, key: usize, field: &FieldKey, content: &Field, known: Ops, lineage: Lineage<'_>) -> Check {
        let expected = self.live(field, known);
        match content {
            Field::Register(register) => {
                let shown: BTreeSet<Dot> = register.siblings().iter().map(|s| s.dot).collect();
                let exact: BTreeSet<Dot> = each(expected).map(|i| self.ops[i].dot).collect();
                ensure!(shown == exact, "shows {shown:?}, exact history says {exact:?}");
                let sound = register.siblings().iter().all(|s| register.seen().covers(s.dot, lineage));
                ensure!(sound, "a sibling above what was seen: {register:?}");
                for sibling in register.siblings() {
                    let op = each(expected).find(|i| self.ops[*i].dot == sibling.dot).unwrap();
                    let was_written =
                        self.ops[op].fact(field).map(|f| &f.effect) == Some(&Effect::Write(sibling.clone()));
                    ensure!(was_written, "{sibling:?} was not written so");
                }
            }
            Field::Counter(_) if self.beyond_the_limit(key) => {}
            Field::Counter(counter) => {
                let add = |i: usize| match self.ops[i].fact(field).map(|f| &f.effect) {
                    Some(Effect::Add(amount)) => *amount,
                    _ => 0,
                };
                let exact = each(expected).map(add).fold(0, i64::wrapping_add);
                ensure!(counter.value() == exact, "counts {}, exact history says {exact}", counter.value());
                ensure!(counter.is_live() == (expected != 0), "is live: {}, {expected:b}", counter.is_live());
            }
        }
        Ok(())
    }

    /// Brings everything everywhere: streams first, and by state what nobody's log holds any more.
    fn heal(&mut self) {
        let rng = &mut Rng(1);
        let pairs: Vec<(usize, usize)> = (0..9).map(|i| (i / 3, i % 3)).filter(|(a, b)| a != b).collect();
        loop {
            let mut taken = 0;
            for &(a, b) in &pairs {
                for region in 0..3 {
                    taken += self.pull(a, b, region, usize::MAX, rng);
                }
            }
            if taken > 0 {
                continue;
            }
            match pairs.iter().find(|(a, b)| self.lacks(*a, *b)) {
                Some(&(a, b)) => self.complete_from(a, b),
                None => return,
            }
        }
    }

    /// Whether `a` has not absorbed all that `b` has.
    fn lacks(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.nodes[a], &self.nodes[b]);
        (0..SHARDS as usize).any(|shard| {
            let theirs: Vec<_> = b.streams[shard].applied().iter().map(|(r, v)| (r.clone(), v.clone())).collect();
            a.streams[shard].is_behind(&theirs, a.tree.shard(ShardId(shard as u32)))
        })
    }

    /// Everyone hears everything, in the order given.
    pub fn exchange(&mut self, order: [usize; 3]) {
        let rng = &mut Rng(1);
        for to in order {
            for from in order.into_iter().filter(|from| *from != to) {
                while self.pull(to, from, from, usize::MAX, rng) > 0 {}
            }
        }
    }

    /// Whether the write `later` covered the write `earlier`, by exact history.
    pub fn covers(&self, key: usize, field: &FieldKey, later: Dot, earlier: Dot) -> bool {
        let place = |dot: Dot| self.ops.iter().position(|op| op.key == key && op.dot == dot);
        let (Some(later), Some(earlier)) = (place(later), place(earlier)) else { return false };
        self.ops[later].fact(field).is_some_and(|f| f.covers >> earlier & 1 == 1)
    }

    /// Heals, and checks that the regions agree, that nothing acked vanished, and that every tombstone can go.
    pub fn finish(&mut self) -> Check {
        self.heal();
        self.check().map_err(|story| format!("healed: {story}"))?;
        self.check_agreement()?;
        if !self.lying {
            self.check_nothing_vanished()?;
        }
        // Statements follow writes: something is written in every shard, and everyone states what it has.
        for key in 0..KEYS.len() {
            for n in 0..3 {
                let stamp = self.nodes[n].next_stamp(shard_of(key), self.now_ms);
                let nothing = Write { key: key_bytes(key), fields: Record::new(), ledger: vec![] };
                self.nodes[n].commit(shard_of(key), stamp, key, Body::Write(nothing), Exact::default());
            }
        }
        self.heal();
        for _ in 0..2 {
            (0..3).for_each(|n| self.state_what_is_absorbed(n));
            self.heal();
        }
        (0..3).for_each(|n| self.forget(n));
        for node in &self.nodes {
            let is_tombstone = |held: &Held| held.record.fields().iter().all(|(_, field)| !field.is_live());
            for (key, held) in node.records.iter().filter(|(_, held)| is_tombstone(held)) {
                // What a token named and a lying disk then lost nobody will ever absorb: its tombstone stays.
                let absorbed = |dot: Dot| self.nodes.iter().all(|n| n.has_absorbed(*key, dot));
                let can_go = held.record.dots().all(absorbed);
                let streams = &node.streams[shard_of(*key).0 as usize];
                ensure!(
                    self.lying && !can_go,
                    "{} keeps the tombstone of {}, {:?}: {streams:?}",
                    node.region,
                    KEYS[*key],
                    held.record
                );
            }
        }
        self.check_agreement()?;
        self.tally.losers = self.nodes.iter().map(|n| n.ledger.len()).sum();
        self.tally.limit = (0..KEYS.len()).filter(|key| self.beyond_the_limit(*key)).count();
        Ok(())
    }

    /// Every field that is not as it was told last.
    fn tell_fields(&self, told: &mut BTreeMap<(usize, usize, FieldKey), String>, out: &mut String) {
        for (n, node) in self.nodes.iter().enumerate() {
            for (key, held) in &node.records {
                for (field, content) in held.record.fields() {
                    let line = tell_field(field, content, held);
                    let place = (n, *key, field.clone());
                    if told.get(&place) != Some(&line) {
                        out.push_str(&format!("    {} {} {line}\n", node.region, KEYS[*key]));
                        told.insert(place, line);
                    }
                }
            }
            told.retain(|(m, key, _), _| *m != n || node.records.contains_key(key));
        }
    }

    fn check_agreement(&self) -> Check {
        let first = &self.nodes[0];
        let excused: Vec<usize> = (0..KEYS.len()).filter(|key| self.beyond_the_limit(*key)).collect();
        for node in &self.nodes[1..] {
            for (key, name) in KEYS.iter().enumerate() {
                let (mut a, mut b) = (first.reading(key), node.reading(key));
                if excused.contains(&key) {
                    // Where the delete was forgotten the total came back, where it was not it is covered; the next delete settles it.
                    for reading in [&mut a, &mut b] {
                        reading.counters.clear();
                        reading.home = None;
                    }
                }
                ensure!(a == b, "{name} differs: {} reads {a:?}, {} reads {b:?}", first.region, node.region);
            }
            ensure!(!excused.is_empty() || first.digest() == node.digest(), "the same readings have different digests");
        }
        Ok(())
    }

    /// Law 4: an acked value is current, or some writer was shown it, or the ledgers have it, value included.
    fn check_nothing_vanished(&self) -> Check {
        for (i, op) in self.ops.iter().enumerate() {
            for fact in op.facts.iter().filter(|f| f.field.kind == Kind::Value) {
                let Effect::Write(sibling) = &fact.effect else { continue };
                let is_current = self.nodes[0]
                    .records
                    .get(&op.key)
                    .is_some_and(|held| held.record.register(&fact.field).is_some_and(|r| r.sibling(op.dot).is_some()));
                let covering = || {
                    let of_field = self.ops.iter().filter_map(|o| (o.key == op.key).then(|| o.fact(&fact.field))?);
                    of_field.filter(|f| f.covers >> i & 1 == 1)
                };
                let superseded = covering().any(|f| f.shown.contains(&op.dot));
                let place = (op.key, fact.field.clone(), op.dot);
                let entries: Vec<&LedgerEntry> = self.nodes.iter().filter_map(|n| n.ledger.get(&place)).collect();
                let kept = entries.iter().find_map(|e| e.value.as_ref());
                ensure!(entries.is_empty() || kept == Some(sibling), "the ledgers lost the value: {entries:?}");
                ensure!(
                    is_current || superseded || entries.iter().any(|e| e.fate == Fate::Lost),
                    "{sibling:?} of {:?} vanished; ledgers {entries:?}",
                    fact.field
                );
            }
        }
        Ok(())
    }
}

/// A sibling has its entry from the moment in which its region first sees it lose.
fn check_losers(node: &Node, key: usize, field: &FieldKey, register: &Register, lineage: Lineage<'_>) -> Check {
    let shown = register.highest(lineage).map(|s| s.dot);
    for sibling in register.siblings().iter().filter(|s| Some(s.dot) != shown) {
        let entry = node.ledger.get(&(key, field.clone(), sibling.dot));
        ensure!(
            entry.is_some_and(|e| e.value.as_ref() == Some(sibling)),
            "{}: {sibling:?} loses, and the ledger says {entry:?}",
            node.region
        );
    }
    Ok(())
}

/// The steps of a history, each from a seed of its own, so that a failing history can be cut down.
pub fn steps(seed: u64, count: usize) -> Vec<u64> {
    let mut rng = Rng(seed);
    (0..count).map(|_| rng.next()).collect()
}

pub fn run(seed: u64, lying: bool, steps: &[u64]) -> Result<Tally, String> {
    let mut world = World::new(seed, lying);
    for (at, step) in steps.iter().enumerate() {
        world.step(*step).map_err(|story| format!("step {at}: {story}"))?;
    }
    world.finish()?;
    Ok(world.tally)
}

/// What happens in a short history, step by step, for whoever has to understand a failure: who starts, writes, takes, forgets
/// and is completed, and then every field that changed, as its region holds it and as exact history has it.
pub fn tell(seed: u64, lying: bool, steps: &[u64]) -> String {
    let mut world = World::new(seed, lying);
    let mut out = String::new();
    let mut fields = BTreeMap::new();
    for step in steps {
        let logs = world.nodes.iter().map(|node| node.log.len()).collect::<Vec<_>>();
        let before = world.nodes.iter().map(|node| node.incarnation).collect::<Vec<_>>();
        let outcome = world.step(*step);
        for (n, node) in world.nodes.iter().enumerate() {
            let restarted = node.incarnation != before[n];
            let entries = if restarted { &node.log[..] } else { &node.log[logs[n]..] };
            out.push_str(if restarted { "  starts anew, from\n" } else { "" });
            entries.iter().for_each(|entry| out.push_str(&tell_entry(node, entry)));
        }
        world.tell_fields(&mut fields, &mut out);
        out.push_str(&format!("-- {outcome:?}\n"));
        if outcome.is_err() {
            return out;
        }
    }
    out.push_str(&format!("{:?}\n", world.finish()));
    world.tell_fields(&mut fields, &mut out);
    out
}

fn tell_entry(node: &Node, entry: &Entry) -> String {
    let (what, shipped) = match entry {
        Entry::Own(shipped) => ("writes", shipped),
        Entry::Foreign(_, shipped) => ("takes", shipped),
        Entry::Row(i, row) => {
            return format!("{} starts {i}, after {:?} at {:?}\n", node.region, row.parent, row.left_at);
        }
        Entry::Forget(key) => return format!("{} forgets {}\n", node.region, KEYS[*key]),
        Entry::Completed(_) => return format!("{} is completed\n", node.region),
        Entry::Rows(_) => return String::new(),
    };
    let about = match &shipped.delta.body {
        Body::Statement(statement) => {
            let said = statement.absorbed.iter().map(|(region, v)| format!("{region} {}", tell_vector(v)));
            format!("states {}", said.collect::<Vec<_>>().join(", "))
        }
        Body::Write(_) => {
            let fields = shipped.exact.0.iter().map(|(field, ops)| format!("{:?} {} {ops:b}", field.kind, field.name));
            format!("{} {}", KEYS.get(shipped.key).unwrap_or(&"nothing"), fields.collect::<Vec<_>>().join(", "))
        }
    };
    format!("{} {what} {} in {}: {about}\n", node.region, shipped.delta.dot, shipped.delta.shard.0)
}

fn tell_field(field: &FieldKey, content: &Field, held: &Held) -> String {
    let holds = match content {
        Field::Register(r) => r.siblings().iter().map(|s| s.dot.to_string()).collect::<Vec<_>>().join(" "),
        Field::Counter(c) => format!("{:?} covered {:?}", c.totals(), c.covered()),
    };
    let (kind, name, seen) = (field.kind, &field.name, tell_vector(content.seen()));
    let (known, left_out) = (held.exact.get(field), held.left_out.get(field));
    format!("{kind:?} {name}: [{holds}] seen {seen} knows {known:b}, left out {left_out:b}")
}

fn tell_vector(vector: &Vector) -> String {
    format!("{{{}}}", vector.dots().map(|dot| dot.to_string()).collect::<Vec<_>>().join(" "))
}

/// Runs a history; a failing one is cut down to the steps it needs.
pub fn history(seed: u64, lying: bool) -> Result<Tally, String> {
    let mut needed = steps(seed, 90);
    let mut story = match run(seed, lying, &needed) {
        Ok(tally) => return Ok(tally),
        Err(story) => story,
    };
    let mut at = needed.len();
    while at > 0 {
        at -= 1;
        let mut fewer = needed.clone();
        fewer.remove(at);
        if let Err(other) = run(seed, lying, &fewer) {
            (needed, story) = (fewer, other);
        }
    }
    // A test has no `main` to read its settings for it.
    #[allow(clippy::disallowed_methods)]
    let tells = std::env::var_os("ISLE_TELL").is_some();
    let told = if tells { tell(seed, lying, &needed) } else { String::new() };
    Err(format!("seed {seed}, lying {lying}: {} steps suffice: {needed:?}\n{story}\n{told}", needed.len()))
}
