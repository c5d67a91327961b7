//! What the writers were told: for every key what it must hold, and what it may.
//!
//! The law: each key has one writer with one write under way, so its history is a line. After any fault a key holds what
//! its last acked write left, or what the one write without an answer would have left; whole, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use isle_client::{Client, Range, Record, Value};
use parking_lot::Mutex;

pub const KEYSPACE: &str = "default";
/// Begins the keys that have many writers, and no history.
pub const CONTESTED: &str = "shared/";
/// What a node says once an fsync has failed.
pub const WRITES_STOPPED: &str = "WRITES_STOPPED";
const PAGE: u32 = 1000;

/// One write, as the client sends it and as the oracle carries it out.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Put(Value),
    /// Two fields at once, which must never be seen apart.
    Patch(Value, Value),
    Delete,
    Increment(i64),
}

impl Write {
    /// What a key holds afterwards.
    fn after(&self, before: &Record) -> Record {
        let mut record = before.clone();
        match self {
            Write::Put(value) => record = Record { value: Some(value.clone()), ..Record::default() },
            Write::Patch(left, right) => {
                record.fields.insert("left".to_owned(), left.clone());
                record.fields.insert("right".to_owned(), right.clone());
            }
            Write::Delete => record = Record::default(),
            Write::Increment(by) => *record.counters.entry("n".to_owned()).or_default() += by,
        }
        record
    }
}

#[derive(Clone, Debug, Default)]
struct Belief {
    /// What the last acked write left.
    acked: Record,
    /// What the write without an answer may have left.
    unsure: Option<Record>,
    /// That write was sent after another had heard that writes have stopped.
    too_late: bool,
    acks: u64,
}

#[derive(Default)]
struct Told {
    keys: BTreeMap<String, Belief>,
    acks: u64,
    unknown: u64,
    refused: BTreeMap<String, u64>,
    /// Writes have stopped for good, until a restart.
    stopped: bool,
}

/// What all writers were told. Cheap to clone; clones are one history.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Told>>);

impl History {
    /// Whether the key's state is known, so that its writer may go on.
    pub fn is_sure(&self, key: &str) -> bool {
        self.0.lock().keys.get(key).is_none_or(|belief| belief.unsure.is_none())
    }

    /// From here on the write may have taken effect.
    pub fn begin(&self, key: &str, write: &Write) {
        let mut told = self.0.lock();
        let stopped = told.stopped;
        let belief = told.keys.entry(key.to_owned()).or_default();
        belief.unsure = Some(write.after(&belief.acked));
        belief.too_late = stopped;
    }

    /// `total`: what an increment was answered with.
    pub fn acked(&self, key: &str, total: Option<i64>) -> Result<()> {
        let mut told = self.0.lock();
        told.acks += 1;
        let belief = told.keys.entry(key.to_owned()).or_default();
        belief.acks += 1;
        let Some(record) = belief.unsure.take() else { return Ok(()) };
        belief.acked = record;
        ensure!(!belief.too_late, "{key}: a write is acked that was sent after writes had stopped");
        let expected = total.and(belief.acked.counters.get("n").copied());
        ensure!(total == expected, "{key}: the increment was answered {total:?}, not {expected:?}");
        Ok(())
    }

    /// An error that says that nothing was written.
    pub fn refused(&self, key: &str, reason: &str) {
        let mut told = self.0.lock();
        *told.refused.entry(reason.to_owned()).or_default() += 1;
        told.stopped |= reason == WRITES_STOPPED;
        if let Some(belief) = told.keys.get_mut(key) {
            belief.unsure = None;
        }
    }

    /// No answer, or one that does not say.
    pub fn unknown(&self) {
        self.0.lock().unknown += 1;
    }

    pub fn acks(&self) -> u64 {
        self.0.lock().acks
    }

    /// Of the keys that begin so.
    pub fn acks_of(&self, prefix: &str) -> u64 {
        let told = self.0.lock();
        let keys = told.keys.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        keys.map(|(_, belief)| belief.acks).sum()
    }

    /// Which writes of such keys have no answer, for a report.
    pub fn unsure(&self, prefix: &str) -> String {
        let told = self.0.lock();
        let unsure = |(key, belief): &(&String, &Belief)| key.starts_with(prefix) && belief.unsure.is_some();
        let keys: Vec<&String> = told.keys.iter().filter(unsure).map(|(key, _)| key).collect();
        format!("{} keys wait for an answer, such as {:?}", keys.len(), &keys[..keys.len().min(5)])
    }

    /// How often writes were refused, by reason.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        self.0.lock().refused.clone()
    }

    pub fn refusals_of(&self, reason: &str) -> u64 {
        self.0.lock().refused.get(reason).copied().unwrap_or_default()
    }

    /// One line for a report.
    pub fn summary(&self) -> String {
        let told = self.0.lock();
        let refused: Vec<String> = told.refused.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        let refused = if refused.is_empty() { String::new() } else { format!(", refused: {}", refused.join(", ")) };
        format!("{} acked, {} without an answer{refused}", told.acks, told.unknown)
    }

    /// Compares a region with what was told, key by key, and learns what became of the writes without an answer. No write
    /// may be under way.
    pub async fn check(&self, client: &Client) -> Result<()> {
        let there = self.look(client).await?;
        let mut told = self.0.lock();
        told.stopped = false;
        for (key, belief) in &mut told.keys {
            belief.unsure = None;
            belief.acked = there.get(key).cloned().unwrap_or_default();
        }
        Ok(())
    }

    /// Compares alone: for a node that does not know itself yet what becomes of its last writes.
    pub async fn look(&self, client: &Client) -> Result<BTreeMap<String, Record>> {
        let there = everything(client).await?;
        let told = self.0.lock();
        let wrong: Vec<String> = differences(&told.keys, &there).collect();
        let count = wrong.len();
        let shown = wrong.into_iter().take(5).collect::<Vec<_>>().join("\n    ");
        ensure!(count == 0, "{count} keys are not what was told:\n    {shown}");
        Ok(there)
    }

    /// The same for the keys that a client reads one by one: what `get` serves must be what `scan` does.
    pub async fn check_some(&self, client: &Client, every: usize) -> Result<()> {
        let keys: Vec<(String, Belief)> = self
            .0
            .lock()
            .keys
            .iter()
            .step_by(every.max(1))
            .map(|(key, belief)| (key.clone(), belief.clone()))
            .collect();
        for (key, belief) in keys {
            let read = client.get(KEYSPACE, key.clone(), Default::default()).await?;
            ensure!(belief.allows(&read.record), "{key}: get finds {}, told was {belief}", brief(&read.record));
        }
        Ok(())
    }
}

impl Belief {
    fn allows(&self, record: &Record) -> bool {
        *record == self.acked || Some(record) == self.unsure.as_ref()
    }
}

impl std::fmt::Display for Belief {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unsure = self.unsure.as_ref().map(|record| format!(", perhaps then {}", brief(record)));
        write!(f, "acked {}{}", brief(&self.acked), unsure.unwrap_or_default())
    }
}

fn differences<'a>(
    told: &'a BTreeMap<String, Belief>,
    there: &'a BTreeMap<String, Record>,
) -> impl Iterator<Item = String> + 'a {
    let empty = Record::default();
    let changed = told.iter().filter_map(move |(key, belief)| {
        let found = there.get(key).unwrap_or(&empty);
        (!belief.allows(found)).then(|| format!("{key}: {belief}, found {}", brief(found)))
    });
    let made_up = there
        .keys()
        .filter(|key| !told.contains_key(*key) && !key.starts_with(CONTESTED))
        .map(|key| format!("{key}: nobody wrote it"));
    changed.chain(made_up)
}

/// Every live record of a region.
pub async fn everything(client: &Client) -> Result<BTreeMap<String, Record>> {
    let (mut all, mut token) = (BTreeMap::new(), Bytes::new());
    loop {
        let page = client.scan(KEYSPACE, &Range::default(), PAGE, token).await?;
        for entry in page.entries {
            let key = String::from_utf8(entry.key.to_vec())?;
            ensure!(all.insert(key.clone(), entry.record).is_none(), "{key} is in the scan twice");
        }
        token = page.next;
        if token.is_empty() {
            return Ok(all);
        }
    }
}

/// Values begin with what tells them apart; the rest is filler.
fn brief(record: &Record) -> String {
    let text = format!("{record:?}");
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
