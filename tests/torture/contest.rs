//! Keys that all regions write at once, which no history of one writer can describe. What can be said of them: a counter
//! has every increment that was acked, once, whatever was cut meanwhile; a value is one that somebody wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use isle_client::{Client, Error, Record, Value, WriteOptions};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::history::{CONTESTED, KEYSPACE};
use crate::node::PAUSE;

const KEYS: u32 = 20;

#[derive(Default)]
struct Told {
    /// Sums of what was acked, and of what may have been counted besides.
    counted: BTreeMap<String, (i64, i64)>,
    written: BTreeMap<String, BTreeSet<String>>,
    acks: u64,
}

/// Cheap to clone; clones are one contest.
#[derive(Clone, Default)]
pub struct Contest(Arc<Mutex<Told>>);

impl Contest {
    /// Lets one region take part until the tasks are dropped or its node is gone. An aborted write counts as unanswered.
    pub fn join(&self, client: &Client, seed: u64, tasks: &mut JoinSet<()>) {
        let (contest, client) = (self.clone(), client.clone());
        tasks.spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut due = Instant::now();
            loop {
                let key = rng.random_range(0..KEYS);
                let written = match rng.random_bool(0.5) {
                    true => contest.count(&client, format!("{CONTESTED}n{key}"), rng.random_range(1..=9)).await,
                    false => contest.write(&client, format!("{CONTESTED}v{key}"), rng.random::<u64>()).await,
                };
                if written.is_err_and(|error| error.reason == "UNREACHABLE") {
                    return;
                }
                due += PAUSE / 2;
                tokio::time::sleep_until(due).await;
            }
        });
    }

    async fn count(&self, client: &Client, key: String, by: i64) -> Result<(), Error> {
        self.0.lock().counted.entry(key.clone()).or_default().1 += by;
        let answer = client.increment(KEYSPACE, key.clone(), "n", by, WriteOptions::default()).await;
        let surely = answer.as_ref().map_or_else(|error| !error.outcome_unknown(), |_| true);
        let mut told = self.0.lock();
        told.acks += u64::from(answer.is_ok());
        let sums = told.counted.entry(key).or_default();
        sums.0 += if answer.is_ok() { by } else { 0 };
        sums.1 -= if surely { by } else { 0 };
        answer.map(drop)
    }

    async fn write(&self, client: &Client, key: String, tag: u64) -> Result<(), Error> {
        let text = format!("{tag:016x}");
        self.0.lock().written.entry(key.clone()).or_default().insert(text.clone());
        let answer = client.put(KEYSPACE, key, Value::String(text), WriteOptions::default()).await;
        self.0.lock().acks += u64::from(answer.is_ok());
        answer.map(drop)
    }

    pub fn acks(&self) -> u64 {
        self.0.lock().acks
    }

    /// Looks at what a region holds once all agree and nobody writes.
    pub fn check(&self, there: &BTreeMap<String, Record>) -> Result<()> {
        let told = self.0.lock();
        for (key, (acked, unknown)) in &told.counted {
            let total = there.get(key).and_then(|record| record.counters.get("n").copied()).unwrap_or_default();
            let sound = (*acked..=acked + unknown).contains(&total);
            ensure!(sound, "{key}: counted {total}, acked were {acked} and without an answer {unknown}");
        }
        for (key, written) in &told.written {
            let record = there.get(key).with_context(|| format!("{key}: nothing is there"))?;
            let sound = matches!(&record.value, Some(Value::String(text)) if written.contains(text));
            ensure!(sound, "{key}: nobody wrote {record:?}");
        }
        Ok(())
    }
}
