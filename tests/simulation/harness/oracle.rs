//! The reckoning: what the regions hold in the end, against what was answered on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isle_model::{Body, Delta, Dot, FieldKey, IncarnationTree, Kind, LedgerEntry, Record, Vector};
use isle_node::Node;

use super::causality::{self, Holdings};
use super::history::{History, Op, Outcome, WriteFact, shard_of};
use super::logs::{DeltaId, Logs};
use super::{KEYSPACES, Mix, OTHER, keyspace_of};

type FieldOf = (String, FieldKey);
type Promised = BTreeMap<(String, FieldKey, Dot), String>;

/// Checks one healed run.
pub fn check(
    mix: Mix,
    history: &History,
    logs: &Logs,
    nodes: &[Arc<Node>],
    victim: usize,
    states_taken: u64,
) -> Result<u64, String> {
    let end = End::of(history, logs.deltas(), nodes)?;
    end.every_value_is_of_its_write()?;
    end.nothing_refused_is_anywhere()?;
    if mix.is_honest() {
        end.nothing_covered_is_shown(&history.dead())?;
        end.nothing_acknowledged_is_lost(&|_| true)?;
        end.counters_are_exact()?;
    }
    if mix.is_homed() {
        let made = created_by(logs.deltas(), &end.tree);
        end.homes_serialise(&made)?;
        let once = |key: &String| made.get(key).is_none_or(|regions| regions.len() < 2);
        if let Some((_, missed)) = history.missed_at_home().into_iter().find(|(key, _)| once(key)) {
            return Err(missed);
        }
    }
    if mix.has_victim() {
        let others = || (0..nodes.len()).filter(|site| *site != victim);
        end.nothing_acknowledged_is_lost(&|id| others().any(|site| logs.has_logged(site, id)))?;
    }
    // A state brings what its taker's log does not tell.
    let is_told = mix.is_honest() && states_taken == 0 && (0..nodes.len()).all(|site| !logs.of(site).has_holes);
    if is_told { end.causes_are_exact(logs) } else { Ok(0) }
}

struct End {
    writes: Vec<WriteFact>,
    tree: Arc<IncarnationTree>,
    /// Of each region: every record that anybody may have touched.
    states: Vec<BTreeMap<String, Record>>,
    ledgers: Vec<BTreeMap<(String, FieldKey, Dot), LedgerEntry>>,
    /// What writes of each field are known to have covered, by the write.
    covers: BTreeMap<FieldOf, BTreeMap<Dot, Vector>>,
    /// Values that were acknowledged or shown: law 4 holds for them.
    promised: Promised,
    /// Every value met anywhere.
    met: BTreeMap<(String, FieldKey, Dot), String>,
}

impl End {
    fn of(history: &History, deltas: &BTreeMap<DeltaId, Delta>, nodes: &[Arc<Node>]) -> Result<End, String> {
        let writes = history.writes();
        let keys: BTreeSet<&String> = writes.iter().map(|write| &write.key).collect();
        let mut states = Vec::new();
        let mut ledgers = Vec::new();
        for node in nodes {
            let mut state = BTreeMap::new();
            for key in &keys {
                let record =
                    node.store().get(keyspace_of(key).id, key.as_bytes()).map_err(|error| error.to_string())?;
                state.extend(record.map(|record| ((*key).clone(), Record::clone(&record))));
            }
            states.push(state);
            let mut ledger = BTreeMap::new();
            for keyspace in &KEYSPACES {
                let entries = node.store().ledger(keyspace.id, usize::MAX).map_err(|error| error.to_string())?;
                let entry = |entry: LedgerEntry| ((text(&entry.key), entry.field.clone(), entry.loser), entry);
                ledger.extend(entries.into_iter().map(entry));
            }
            ledgers.push(ledger);
        }
        let tree = nodes.first().map(|node| node.store().tree()).unwrap_or_default();
        let mut end = End {
            promised: promises(&writes, history)?,
            covers: BTreeMap::new(),
            met: history.witnessed(),
            writes,
            tree,
            states,
            ledgers,
        };
        end.learn(deltas);
        Ok(end)
    }

    fn learn(&mut self, deltas: &BTreeMap<DeltaId, Delta>) {
        for delta in deltas.values() {
            let Body::Write(write) = &delta.body else { continue };
            let key = text(&write.key);
            let lineage = self.tree.shard(delta.shard);
            for (field, register) in registers(&write.fields) {
                let of = (key.clone(), field.clone());
                // A move carries what it does not touch.
                if register.seen().covers(delta.dot, lineage) {
                    self.covers.entry(of).or_default().insert(delta.dot, register.seen().clone());
                }
                for sibling in register.siblings() {
                    self.met.insert((key.clone(), field.clone(), sibling.dot), text(&sibling.value.bytes));
                }
            }
        }
        for (key, record) in self.states.iter().flatten() {
            for (field, register) in registers(record) {
                for sibling in register.siblings() {
                    self.met.insert((key.clone(), field.clone(), sibling.dot), text(&sibling.value.bytes));
                }
            }
        }
        for (of, entry) in self.ledgers.iter().flatten() {
            if let Some(sibling) = entry.value.as_ref().filter(|_| of.1.kind == Kind::Value) {
                self.met.insert(of.clone(), text(&sibling.value.bytes));
            }
        }
        // Of what an acknowledgement says a write had seen, the log may be trimmed already.
        for write in &self.writes {
            let Outcome::Acked(context) = &write.outcome else { continue };
            for (field, seen) in context.fields().iter().filter(|(field, _)| field.kind == Kind::Value) {
                if let Some(dot) = seen.shown.filter(|_| op_writes(&write.op, field)) {
                    let of = (write.key.clone(), field.clone());
                    self.covers.entry(of).or_default().entry(dot).or_insert_with(|| seen.seen.clone());
                }
            }
        }
    }

    /// Every value that is anywhere was asked for, under this key and in this field.
    fn every_value_is_of_its_write(&self) -> Result<(), String> {
        for ((key, field, dot), value) in &self.met {
            let write = self.write_of(value).ok_or_else(|| format!("{key} {:?}: {value:?} is nobody's", field.name))?;
            if write.key != *key || !op_writes(&write.op, field) {
                return Err(format!("{dot}: {value:?} of {} turned up in {key} {:?}", write.key, field.name));
            }
        }
        Ok(())
    }

    /// An error other than OUTCOME_UNKNOWN means that nothing was done.
    fn nothing_refused_is_anywhere(&self) -> Result<(), String> {
        for ((key, field, dot), value) in &self.met {
            if let Some(WriteFact { outcome: Outcome::Refused(reason), .. }) = self.write_of(value) {
                let name = &field.name;
                return Err(format!("{key} {name:?}: {dot} {value:?} is there, though it was refused: {reason}"));
            }
        }
        Ok(())
    }

    /// Laws 2 and 6.
    fn nothing_covered_is_shown(&self, dead: &BTreeSet<(String, FieldKey, Dot)>) -> Result<(), String> {
        for (site, state) in self.states.iter().enumerate() {
            for (key, record) in state {
                for (field, register) in registers(record) {
                    for sibling in register.siblings() {
                        if dead.contains(&(key.clone(), field.clone(), sibling.dot)) {
                            let (name, dot) = (&field.name, sibling.dot);
                            return Err(format!(
                                "{key} {name:?}: {dot} is live in region {site}, though it was covered"
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Laws 4 and 5: what is kept is current, or superseded, or in every region's ledger with its value.
    fn nothing_acknowledged_is_lost(&self, is_kept: &dyn Fn(DeltaId) -> bool) -> Result<(), String> {
        for (of, value) in &self.promised {
            let (key, field, dot) = of;
            if !is_kept((shard_of(key), *dot)) {
                continue;
            }
            let live = |state: &BTreeMap<String, Record>| {
                let register = state.get(key).and_then(|record| record.register(field));
                register.and_then(|register| register.sibling(*dot)).is_some_and(|s| text(&s.value.bytes) == *value)
            };
            let noted = |ledger: &BTreeMap<_, LedgerEntry>| {
                let entry: Option<&LedgerEntry> = ledger.get(of);
                entry.and_then(|entry| entry.value.as_ref()).is_some_and(|s| text(&s.value.bytes) == *value)
            };
            if self.states.iter().all(live) || self.ledgers.iter().all(noted) || self.is_superseded(of) {
                continue;
            }
            let live: Vec<bool> = self.states.iter().map(live).collect();
            let noted: Vec<bool> = self.ledgers.iter().map(noted).collect();
            let name = &field.name;
            return Err(format!(
                "{key} {name:?}: {dot} {value:.40?} was acknowledged and is lost: live {live:?}, noted {noted:?}"
            ));
        }
        Ok(())
    }

    fn is_superseded(&self, of: &(String, FieldKey, Dot)) -> bool {
        let (key, field, dot) = of;
        let lineage = self.tree.shard(shard_of(key));
        let Some(covers) = self.covers.get(&(key.clone(), field.clone())) else { return false };
        covers.iter().any(|(other, seen)| {
            other != dot && seen.covers(*dot, lineage) && !seen_before(covers, *dot, *other, lineage)
        })
    }

    /// Of a key with a home no two writes are concurrent, unless two regions made it.
    fn homes_serialise(&self, made: &BTreeMap<String, BTreeSet<String>>) -> Result<(), String> {
        for ((key, field, loser), entry) in self.ledgers.iter().flatten() {
            if key.starts_with(OTHER) && made.get(key).is_none_or(|regions| regions.len() < 2) {
                let (name, winner) = (&field.name, entry.winner);
                return Err(format!(
                    "{key} {name:?}: {loser} and {winner:?} are concurrent, though the key has a home"
                ));
            }
        }
        Ok(())
    }

    fn causes_are_exact(&self, logs: &Logs) -> Result<u64, String> {
        let holdings = self.states.iter().zip(&self.ledgers);
        let holdings: Vec<Holdings<'_>> = holdings.map(|(records, ledger)| Holdings { records, ledger }).collect();
        causality::check(&self.writes, logs, &self.tree, &holdings)
    }

    fn counters_are_exact(&self) -> Result<(), String> {
        let mut sums: BTreeMap<&String, (i64, i64)> = BTreeMap::new();
        for write in self.writes.iter().filter(|write| write.key.starts_with("counter-")) {
            let Op::Increment { amount, .. } = &write.op else { continue };
            let (acked, unknown) = sums.entry(&write.key).or_default();
            match write.outcome {
                Outcome::Acked(_) => *acked += amount,
                Outcome::Unknown => *unknown += amount,
                Outcome::Refused(_) => {}
            }
        }
        for (key, (acked, unknown)) in sums {
            for (site, state) in self.states.iter().enumerate() {
                let counter = state.get(key).and_then(|record| record.counter(&FieldKey::counter("n")));
                let value = counter.map_or(0, |counter| counter.value());
                if !(acked..=acked + unknown).contains(&value) {
                    return Err(format!("{key} is {value} in region {site}: {acked} acknowledged, {unknown} unknown"));
                }
            }
        }
        Ok(())
    }

    fn write_of(&self, value: &str) -> Option<&WriteFact> {
        let id: usize = value.split_once('.')?.0.parse().ok()?;
        self.writes.get(id).filter(|write| values(&write.op).any(|(_, v)| v == value))
    }
}

/// The regions that ever made a key: by a delta that names its home, and not that alone, which is a move.
fn created_by(deltas: &BTreeMap<DeltaId, Delta>, tree: &IncarnationTree) -> BTreeMap<String, BTreeSet<String>> {
    let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for delta in deltas.values() {
        let Body::Write(write) = &delta.body else { continue };
        let home = write.fields.register(&FieldKey::home());
        let names_it = home.is_some_and(|home| home.sibling(delta.dot).is_some());
        let lineage = tree.shard(delta.shard);
        let touched = write.fields.fields().iter().filter(|(_, field)| field.seen().covers(delta.dot, lineage));
        if names_it && touched.count() > 1 {
            let region = tree.region(delta.dot.incarnation).map(|region| region.to_string());
            out.entry(text(&write.key)).or_default().extend(region);
        }
    }
    out
}

/// Whether `dot` itself had seen `other`: then `other` cannot have covered it.
fn seen_before(covers: &BTreeMap<Dot, Vector>, dot: Dot, other: Dot, lineage: isle_model::Lineage<'_>) -> bool {
    covers.get(&dot).is_some_and(|seen| seen.covers(other, lineage))
}

fn promises(writes: &[WriteFact], history: &History) -> Result<Promised, String> {
    let mut out = history.witnessed();
    for (id, write) in writes.iter().enumerate() {
        let Outcome::Acked(context) = &write.outcome else { continue };
        for (name, value) in values(&write.op) {
            let field = FieldKey::value(name);
            let dot = context.get(&field).and_then(|seen| seen.shown);
            let dot = dot.ok_or_else(|| format!("write {id} was acknowledged by a version without it"))?;
            if let Some(other) = out.insert((write.key.clone(), field, dot), value.to_owned())
                && other != value
            {
                return Err(format!("{dot} was acknowledged for {value:?} and shown as {other:?}"));
            }
        }
    }
    Ok(out)
}

/// The values that an operation writes, by field.
fn values(op: &Op) -> Box<dyn Iterator<Item = (&str, &str)> + '_> {
    match op {
        Op::Put { value } => Box::new(std::iter::once(("", value.as_str()))),
        Op::Patch { set, .. } => Box::new(set.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
        Op::Delete | Op::Increment { .. } => Box::new(std::iter::empty()),
    }
}

fn op_writes(op: &Op, field: &FieldKey) -> bool {
    field.kind == Kind::Value && values(op).any(|(name, _)| name == field.name.as_str())
}

fn registers(record: &Record) -> impl Iterator<Item = (&FieldKey, &isle_model::Register)> {
    let fields = record.fields().iter().filter(|(field, _)| field.kind == Kind::Value);
    fields.filter_map(|(field, _)| record.register(field).map(|register| (field, register)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
