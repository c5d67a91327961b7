//! Who had seen what, as the oracle itself makes it out: from the order in which each region's log took the writes, and from
//! where each version token came. What writes say of themselves is then judged by it.
//!
//! ```text
//! a write's past  =  what its region's log held of the field before it  ∪  what its token's maker had seen
//! ```
//! Laws 2, 3 and 4 in their strict form: a write covers its past and nothing else; what is shown is the highest of what
//! nobody's past holds; whoever loses is in the ledger where it was seen to lose, and everywhere if it was covered as a loser.

use std::collections::{BTreeMap, BTreeSet};

use isle_model::{Body, Delta, Dot, Fate, FieldKey, Hlc, IncarnationTree, Kind, LedgerEntry, Record, Register, Write};
use isle_store::LogPosition;

use super::SITES;
use super::history::{Source, Token, WriteFact, decode, shard_of};
use super::logs::{DeltaId, Logs};

type FieldOf = (String, FieldKey);
type Dots = BTreeSet<Dot>;
/// Epoch, generation, and what breaks ties.
type Rank = (u64, u64, Hlc, String, Dot);

/// What a region holds in the end.
pub struct Holdings<'a> {
    pub records: &'a BTreeMap<String, Record>,
    pub ledger: &'a BTreeMap<(String, FieldKey, Dot), LedgerEntry>,
}

/// Judges one run whose logs were read whole; returns how many writes of a field were judged.
pub fn check(
    writes: &[WriteFact],
    logs: &Logs,
    tree: &IncarnationTree,
    holdings: &[Holdings<'_>],
) -> Result<u64, String> {
    let mut replay = Replay {
        writes,
        logs,
        tree,
        sites: Default::default(),
        past: BTreeMap::new(),
        rank: BTreeMap::new(),
        everything: everything(logs, tree),
        ids: ids(logs),
        lost: BTreeSet::new(),
        hidden: BTreeSet::new(),
        superseded: BTreeSet::new(),
        judged: 0,
    };
    replay.run()?;
    replay.judge_end(holdings)?;
    Ok(replay.judged)
}

#[derive(Default)]
struct Site {
    next: usize,
    absorbed: BTreeMap<FieldOf, Dots>,
    live: BTreeMap<FieldOf, Dots>,
    /// What the log took of each field, and where.
    took: BTreeMap<FieldOf, Vec<(LogPosition, Dot)>>,
    /// Siblings that were seen to lose here.
    losers: BTreeSet<(FieldOf, Dot)>,
    /// Keys that had nothing live once: what was seen of them may be forgotten.
    forgotten: BTreeSet<String>,
}

struct Replay<'a> {
    writes: &'a [WriteFact],
    logs: &'a Logs,
    tree: &'a IncarnationTree,
    sites: [Site; SITES.len()],
    past: BTreeMap<(FieldOf, Dot), Dots>,
    rank: BTreeMap<(FieldOf, Dot), Rank>,
    /// Every write of each field there is.
    everything: BTreeMap<FieldOf, Dots>,
    /// Which write a delta carries out, where its values tell.
    ids: BTreeMap<usize, DeltaId>,
    /// Siblings that were covered as losers.
    lost: BTreeSet<(FieldOf, Dot)>,
    /// Losers that a token named, and what was covered by somebody who was shown it.
    hidden: BTreeSet<(FieldOf, Dot)>,
    superseded: BTreeSet<(FieldOf, Dot)>,
    judged: u64,
}

impl Replay<'_> {
    /// Goes through all logs at once, each as far as what it needs of the others is known.
    fn run(&mut self) -> Result<(), String> {
        loop {
            let before: usize = self.sites.iter().map(|site| site.next).sum();
            for site in 0..SITES.len() {
                while let Some((id, end)) = self.logs.of(site).order.get(self.sites[site].next).copied() {
                    if !self.take(site, id, end)? {
                        break;
                    }
                    self.sites[site].next += 1;
                }
            }
            if self.sites.iter().map(|site| site.next).sum::<usize>() == before {
                break;
            }
        }
        match (0..SITES.len()).find(|site| self.sites[*site].next < self.logs.of(*site).order.len()) {
            Some(site) => Err(format!("the log of {site} holds a write whose past is nowhere")),
            None => Ok(()),
        }
    }

    /// Takes one delta of a site's log; `false` where it has to wait for another's.
    fn take(&mut self, site: usize, id: DeltaId, end: LogPosition) -> Result<bool, String> {
        let logs = self.logs;
        let delta = &logs.deltas()[&id];
        let Body::Write(write) = &delta.body else { return Ok(true) };
        let key = String::from_utf8_lossy(&write.key).into_owned();
        let is_own = self.tree.region(delta.dot.incarnation).is_some_and(|region| region.as_str() == SITES[site]);
        let lineage = self.tree.shard(delta.shard);
        if registers(write).any(|(_, register)| !register.seen().covers(delta.dot, lineage)) {
            return self.take_moved(site, (&key, is_own), write, end);
        }
        if is_own {
            let Some(token) = self.token_of(delta.dot, write).filter(|token| self.is_known(&key, token)) else {
                return Ok(false);
            };
            for (field, register) in registers(write) {
                self.make(site, delta, &(key.clone(), field.clone()), register, token.as_ref())?;
            }
        } else if registers(write).any(|(field, _)| !self.past.contains_key(&((key.clone(), field.clone()), delta.dot)))
        {
            return Ok(false);
        }
        for (field, register) in registers(write) {
            self.absorb(site, &(key.clone(), field.clone()), delta.dot, register.sibling(delta.dot).is_some(), end);
        }
        let live = &self.sites[site].live;
        if live.iter().filter(|((k, _), _)| *k == key).all(|(_, dots)| dots.is_empty()) {
            self.sites[site].forgotten.insert(key);
        }
        Ok(true)
    }

    /// A move: it carries what it does not touch, for a region that may lack some of it.
    fn take_moved(
        &mut self,
        site: usize,
        (key, is_own): (&str, bool),
        write: &Write,
        end: LogPosition,
    ) -> Result<bool, String> {
        let of = |field: &FieldKey| (key.to_owned(), field.clone());
        let is_known = |(field, register): (&FieldKey, &Register)| {
            register.siblings().iter().all(|sibling| self.past.contains_key(&(of(field), sibling.dot)))
        };
        if !registers(write).all(is_known) {
            return Ok(false);
        }
        for (field, register) in registers(write) {
            let of = of(field);
            let lineage = self.tree.shard(shard_of(key));
            let all = self.everything.get(&of).into_iter().flatten().copied();
            let had: Dots = all.filter(|dot| register.seen().covers(*dot, lineage)).collect();
            let carried: Dots = register.siblings().iter().map(|sibling| sibling.dot).collect();
            let here = &mut self.sites[site];
            let live = here.live.entry(of.clone()).or_default();
            if is_own && *live != carried {
                return Err(format!("{of:?}: a move carries {carried:?}, its region shows {live:?}"));
            }
            let absorbed = here.absorbed.entry(of.clone()).or_default();
            live.retain(|dot| carried.contains(dot) || !had.contains(dot));
            live.extend(carried.difference(absorbed));
            absorbed.extend(&had);
            here.took.entry(of.clone()).or_default().extend(had.into_iter().map(|dot| (end, dot)));
            let live = live.clone();
            let shown = self.highest(&of, &live);
            let losers = live.into_iter().filter(|dot| Some(*dot) != shown).map(|dot| (of.clone(), dot));
            self.sites[site].losers.extend(losers);
        }
        Ok(true)
    }

    /// A region's own write: its past by the oracle's account, against what it says it covers.
    fn make(
        &mut self,
        site: usize,
        delta: &Delta,
        of: &FieldOf,
        register: &Register,
        token: Option<&Seen>,
    ) -> Result<(), String> {
        let here = &self.sites[site];
        let forgotten = here.forgotten.contains(&of.0);
        let live = here.live.get(of).cloned().unwrap_or_default();
        let mut past = here.absorbed.get(of).cloned().unwrap_or_default();
        past.extend(token.and_then(|seen| seen.had.get(&of.1)).into_iter().flatten());
        let lineage = self.tree.shard(delta.shard);
        for other in self.everything.get(of).into_iter().flatten().filter(|other| **other != delta.dot) {
            let covers = register.seen().covers(*other, lineage);
            if covers && !past.contains(other) {
                return Err(format!("{of:?}: {} covers {other}, which its region had never seen", delta.dot));
            }
            // What was dead may have been forgotten.
            if !covers && live.contains(other) {
                return Err(format!("{of:?}: {} does not cover {other}, which its region showed", delta.dot));
            }
        }
        let covered_live = live.intersection(&past).copied().collect::<Dots>();
        let shown = self.highest(of, &live);
        self.superseded.extend(shown.map(|dot| (of.clone(), dot)));
        self.lost.extend(covered_live.into_iter().filter(|dot| Some(*dot) != shown).map(|dot| (of.clone(), dot)));
        let shown = token.and_then(|seen| seen.shown.get(&of.1));
        self.superseded.extend(shown.map(|dot| (of.clone(), *dot)));
        let hidden = token.and_then(|seen| seen.hidden.get(&of.1)).into_iter().flatten();
        self.hidden.extend(hidden.map(|dot| (of.clone(), *dot)));
        if let Some(sibling) = register.sibling(delta.dot) {
            let highest = past.iter().filter_map(|dot| self.rank.get(&(of.clone(), *dot))).map(|rank| rank.1).max();
            let generation = if forgotten { sibling.generation.0 } else { 1 + highest.unwrap_or(0) };
            let region = SITES[site].to_owned();
            self.rank.insert((of.clone(), delta.dot), (sibling.epoch.0, generation, delta.hlc, region, delta.dot));
        }
        self.past.insert((of.clone(), delta.dot), past);
        self.judged += 1;
        Ok(())
    }

    fn absorb(&mut self, site: usize, of: &FieldOf, dot: Dot, leaves_value: bool, end: LogPosition) {
        let past = self.past.get(&(of.clone(), dot)).cloned().unwrap_or_default();
        let here = &mut self.sites[site];
        here.took.entry(of.clone()).or_default().push((end, dot));
        let absorbed = here.absorbed.entry(of.clone()).or_default();
        let live = here.live.entry(of.clone()).or_default();
        live.retain(|sibling| !past.contains(sibling));
        if leaves_value && !absorbed.contains(&dot) {
            live.insert(dot);
        }
        absorbed.extend(past);
        absorbed.insert(dot);
        let live = live.clone();
        let shown = self.highest(of, &live);
        let losers = live.into_iter().filter(|dot| Some(*dot) != shown).map(|dot| (of.clone(), dot));
        self.sites[site].losers.extend(losers);
    }

    fn highest(&self, of: &FieldOf, live: &Dots) -> Option<Dot> {
        live.iter().copied().max_by_key(|dot| self.rank.get(&(of.clone(), *dot)))
    }
}

/// What a token's maker had seen of each field, and which losers it did not show.
struct Seen {
    had: BTreeMap<FieldKey, Dots>,
    hidden: BTreeMap<FieldKey, Dots>,
    shown: BTreeMap<FieldKey, Dot>,
}

impl Replay<'_> {
    /// What the write's token had seen (`Some(None)`: it has none); `None` where that is not known yet.
    fn token_of(&self, made: Dot, write: &Write) -> Option<Option<Seen>> {
        let id = write_id(made, write);
        let key = String::from_utf8_lossy(&write.key).into_owned();
        match id.and_then(|id| self.writes.get(id)) {
            Some(fact) => match &fact.token {
                Some(token) => {
                    let (shown, hidden) = shown_by(&key, token);
                    self.seen_by(&key, token).map(|had| Some(Seen { had, hidden, shown }))
                }
                None => Some(None),
            },
            // Of a delete nothing tells which it is: it may have carried any token that was ever given.
            None => Some(Some(Seen {
                had: self.said(&key, made, registers(write)),
                hidden: BTreeMap::new(),
                shown: BTreeMap::new(),
            })),
        }
    }

    /// Whether everything a token had seen has been gone through.
    fn is_known(&self, key: &str, token: &Option<Seen>) -> bool {
        let fields = token.iter().flat_map(|seen| &seen.had);
        let known = |field: &FieldKey, dot: &Dot| self.past.contains_key(&((key.to_owned(), field.clone()), *dot));
        fields.into_iter().all(|(field, dots)| dots.iter().all(|dot| known(field, dot)))
    }

    fn seen_by(&self, key: &str, token: &Token) -> Option<BTreeMap<FieldKey, Dots>> {
        let (site, upto) = match token.source {
            Source::Read { site, upto } => (site, upto),
            Source::Ack(id) => match self.ids.get(&id) {
                Some(delta) => {
                    // Where it was carried out: at its key's home, not where its client is.
                    let region = self.tree.region(delta.1.incarnation);
                    let site = SITES.iter().position(|site| region.is_some_and(|region| region.as_str() == *site));
                    let site = site.unwrap_or(self.writes[id].site);
                    let at = self.logs.of(site).order.iter().find(|(other, _)| other == delta);
                    (site, at.map(|(_, end)| *end)?)
                }
                None => return Some(self.told(key, token)),
            },
            Source::Wire => return Some(self.told(key, token)),
        };
        let next = self.logs.of(site).order.get(self.sites[site].next);
        if next.is_some_and(|(_, end)| *end <= upto) {
            return None;
        }
        let mut seen: BTreeMap<FieldKey, Dots> = BTreeMap::new();
        for ((_, field), took) in self.sites[site].took.iter().filter(|((k, _), _)| k == key) {
            for (_, dot) in took.iter().filter(|(end, _)| *end <= upto) {
                let dots = seen.entry(field.clone()).or_default();
                dots.extend(self.past.get(&((key.to_owned(), field.clone()), *dot)).into_iter().flatten());
                dots.insert(*dot);
            }
        }
        Some(seen)
    }

    /// What a token says itself, where nothing else tells.
    fn told(&self, key: &str, token: &Token) -> BTreeMap<FieldKey, Dots> {
        let Ok(context) = decode(key, &token.version) else { return BTreeMap::new() };
        let fields = context.fields().iter().filter(|(field, _)| field.kind == Kind::Value);
        let lineage = self.tree.shard(shard_of(key));
        let dots = |field: &FieldKey, covers: &dyn Fn(Dot) -> bool| -> Dots {
            let all = self.everything.get(&(key.to_owned(), field.clone())).into_iter().flatten();
            all.copied().filter(|dot| covers(*dot)).collect()
        };
        fields.map(|(field, seen)| (field.clone(), dots(field, &|dot| seen.seen.covers(dot, lineage)))).collect()
    }

    fn said<'r>(
        &self,
        key: &str,
        made: Dot,
        registers: impl Iterator<Item = (&'r FieldKey, &'r Register)>,
    ) -> BTreeMap<FieldKey, Dots> {
        let lineage = self.tree.shard(shard_of(key));
        let covered = |(field, register): (&FieldKey, &Register)| {
            let all = self.everything.get(&(key.to_owned(), field.clone())).into_iter().flatten();
            let covers = |dot: &Dot| *dot != made && register.seen().covers(*dot, lineage);
            (field.clone(), all.copied().filter(covers).collect())
        };
        registers.map(covered).collect()
    }

    fn judge_end(&self, holdings: &[Holdings<'_>]) -> Result<(), String> {
        for (site, held) in holdings.iter().enumerate() {
            for (of, live) in &self.sites[site].live {
                let register = held.records.get(&of.0).and_then(|record| record.register(&of.1));
                let there: Dots = register.iter().flat_map(|r| r.siblings()).map(|sibling| sibling.dot).collect();
                if there != *live {
                    return Err(format!("{of:?} in region {site}: live are {there:?}, and should be {live:?}"));
                }
                let shown = register.and_then(|r| r.highest(self.tree.shard(shard_of(&of.0)))).map(|s| s.dot);
                if shown != self.highest(of, live) {
                    return Err(format!("{of:?} in region {site} shows {shown:?}, not the highest of {live:?}"));
                }
            }
            for (of, dot) in self.sites[site].losers.iter().chain(&self.lost) {
                let entry = held.ledger.get(&(of.0.clone(), of.1.clone(), *dot));
                if entry.is_none_or(|entry| entry.value.is_none()) {
                    return Err(format!("{of:?}: {dot} lost, and the ledger of region {site} has {entry:?}"));
                }
            }
            for (of, dot) in &self.lost {
                let entry = &held.ledger[&(of.0.clone(), of.1.clone(), *dot)];
                if entry.fate != Fate::Lost {
                    return Err(format!("{of:?}: {dot} was covered as a loser; in region {site} it is {entry:?}"));
                }
            }
        }
        // A token may name, as hidden, what was superseded elsewhere long ago; anything else is kept by somebody.
        for (of, dot) in self.hidden.difference(&self.superseded) {
            let id = (of.0.clone(), of.1.clone(), *dot);
            let is_kept = |held: &Holdings<'_>| held.ledger.get(&id).is_some_and(|entry| entry.value.is_some());
            if !holdings.iter().any(is_kept) {
                return Err(format!("{of:?}: {dot} was hidden by a token, and no ledger has its value"));
            }
        }
        Ok(())
    }
}

/// What a token showed of each field, and what it hid.
fn shown_by(key: &str, token: &Token) -> (BTreeMap<FieldKey, Dot>, BTreeMap<FieldKey, Dots>) {
    let Ok(context) = decode(key, &token.version) else { return Default::default() };
    let fields = || context.fields().iter().filter(|(field, _)| field.kind == Kind::Value);
    let hidden = fields().map(|(field, seen)| (field.clone(), seen.hidden.iter().copied().collect())).collect();
    (fields().filter_map(|(field, seen)| Some((field.clone(), seen.shown?))).collect(), hidden)
}

fn registers(write: &Write) -> impl Iterator<Item = (&FieldKey, &Register)> {
    let fields = write.fields.fields().iter().filter(|(field, _)| field.kind == Kind::Value);
    fields.filter_map(|(field, _)| write.fields.register(field).map(|register| (field, register)))
}

/// The id of the write that `made` names, where its values tell. A move carries others' values as well, and is none of them.
fn write_id(made: Dot, write: &Write) -> Option<usize> {
    let siblings = registers(write).filter_map(|(_, register)| register.sibling(made));
    let mut values = siblings.map(|sibling| String::from_utf8_lossy(&sibling.value.bytes));
    values.find_map(|value| value.split_once('.')?.0.parse().ok())
}

/// What a move carries it has not written.
fn everything(logs: &Logs, tree: &IncarnationTree) -> BTreeMap<FieldOf, Dots> {
    let mut out: BTreeMap<FieldOf, Dots> = BTreeMap::new();
    for delta in logs.deltas().values() {
        let Body::Write(write) = &delta.body else { continue };
        let key = String::from_utf8_lossy(&write.key);
        let lineage = tree.shard(delta.shard);
        let written = registers(write).filter(|(_, register)| register.seen().covers(delta.dot, lineage));
        for (field, _) in written {
            out.entry((key.to_string(), field.clone())).or_default().insert(delta.dot);
        }
    }
    out
}

fn ids(logs: &Logs) -> BTreeMap<usize, DeltaId> {
    let mut out = BTreeMap::new();
    for (id, delta) in logs.deltas() {
        let Body::Write(write) = &delta.body else { continue };
        out.extend(write_id(delta.dot, write).map(|write_id| (write_id, *id)));
    }
    out
}
