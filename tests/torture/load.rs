//! Writers against one region: some wait for each answer, one streams in bursts. All they are told goes into a history.
//!
//! They end when they are told to or when the node is gone; a node that refuses is asked again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isle_client::{Client, Error, Patch, Results, Value, WriteOptions, WriteStream, Written, v1};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::history::{History, KEYSPACE, Write};

/// The client's own word for a node that cannot be dialled.
const UNREACHABLE: &str = "UNREACHABLE";
/// After a refusal: what refuses does not get better by being asked at once.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);

/// How hard, and with what.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Before every key, so that two loads share none.
    pub prefix: String,
    /// Writers that wait for each answer.
    pub patient: usize,
    pub patient_keys: usize,
    /// Keys of the one that streams; none for no stream.
    pub stream_keys: usize,
    pub batch: usize,
    /// Operations a second that the stream sends at most.
    pub rate_max: Option<u32>,
    pub value_bytes_max: usize,
    /// Whether keys are deleted and counted as well as written.
    pub only_puts: bool,
}

impl Shape {
    pub fn new(prefix: &str) -> Shape {
        Shape {
            prefix: prefix.to_owned(),
            patient: 12,
            patient_keys: 40,
            stream_keys: 3000,
            batch: 50,
            rate_max: None,
            value_bytes_max: 2000,
            only_puts: false,
        }
    }
}

/// Writers at work. Dropping it ends them where they are.
pub struct Load {
    tasks: JoinSet<Result<()>>,
    stop: watch::Sender<bool>,
    history: History,
    prefix: String,
}

impl Load {
    pub async fn start(client: &Client, history: &History, shape: &Shape, seed: u64) -> Result<Load> {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for n in 0..shape.patient {
            let keys = (0..shape.patient_keys).map(|key| format!("{}p{n}/{key:04}", shape.prefix)).collect();
            tasks.spawn(patient(Writer::new(client, history, shape, keys, seed ^ n as u64, &stopped)));
        }
        if shape.stream_keys > 0 {
            let keys = (0..shape.stream_keys).map(|key| format!("{}s/{key:05}", shape.prefix)).collect();
            tasks.spawn(stream(Writer::new(client, history, shape, keys, !seed, &stopped)));
        }
        Ok(Load { tasks, stop, history: history.clone(), prefix: shape.prefix.clone() })
    }

    /// Lets every write end, and every writer.
    pub async fn stop(self) -> Result<()> {
        let _ = self.stop.send(true);
        self.ended().await
    }

    /// Waits until the node is gone for every writer.
    pub async fn ended(mut self) -> Result<()> {
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.context("a writer panicked")??;
            }
            Ok(())
        };
        let ended = tokio::time::timeout(crate::node::PATIENCE, all).await;
        ended.with_context(|| {
            let waiting = self.history.unsure(&self.prefix);
            format!("{} writers of {:?} never end; {waiting}", self.tasks.len(), self.prefix)
        })?
    }
}

struct Writer {
    client: Client,
    history: History,
    keys: Vec<String>,
    shape: Shape,
    rng: StdRng,
    stopped: watch::Receiver<bool>,
    written: u64,
}

impl Writer {
    fn new(
        client: &Client,
        history: &History,
        shape: &Shape,
        keys: Vec<String>,
        seed: u64,
        stopped: &watch::Receiver<bool>,
    ) -> Writer {
        Writer {
            client: client.clone(),
            history: history.clone(),
            // What became of a write without an answer has to be known before the key has another.
            keys: keys.into_iter().filter(|key| history.is_sure(key)).collect(),
            shape: shape.clone(),
            rng: StdRng::seed_from_u64(seed),
            stopped: stopped.clone(),
            written: 0,
        }
    }

    fn value(&mut self) -> Value {
        self.written += 1;
        let filler = self.rng.random_range(0..self.shape.value_bytes_max);
        // Text that does not compress to nothing, and begins with what makes it this value and no other.
        let tag = format!("{}:{:016x}:", self.written, self.rng.random::<u64>());
        let text: String = (0..filler).map(|_| char::from(self.rng.random_range(b'a'..=b'z'))).collect();
        Value::String(tag + &text)
    }

    fn write(&mut self) -> Write {
        let kind = if self.shape.only_puts { 0 } else { self.rng.random_range(0..10) };
        match kind {
            0..=4 => Write::Put(self.value()),
            5..=6 => {
                let value = self.value();
                Write::Patch(value.clone(), value)
            }
            7 => Write::Delete,
            _ => Write::Increment(self.rng.random_range(1..=9)),
        }
    }

    async fn send(&self, key: &str, write: Write) -> Result<Written, Error> {
        let (client, usual) = (&self.client, WriteOptions::default());
        match write {
            Write::Put(value) => client.put(KEYSPACE, key.to_owned(), value, usual).await,
            Write::Patch(left, right) => client.patch(KEYSPACE, key.to_owned(), both(left, right), usual).await,
            Write::Delete => client.delete(KEYSPACE, key.to_owned(), usual).await,
            Write::Increment(by) => client.increment(KEYSPACE, key.to_owned(), "n", by, usual).await,
        }
    }
}

fn both(left: Value, right: Value) -> Patch {
    Patch { set: [("left".to_owned(), left), ("right".to_owned(), right)].into(), remove: vec![] }
}

fn operation(key: &str, write: Write) -> v1::WriteOperation {
    use v1::write_operation::Operation;
    let operation = match write {
        Write::Put(value) => return value.operation(key.to_owned()),
        Write::Patch(left, right) => return both(left, right).operation(key.to_owned()),
        Write::Delete => Operation::Delete(v1::DeleteRequest { key: key.to_owned().into(), ..Default::default() }),
        Write::Increment(amount) => Operation::Increment(v1::IncrementRequest {
            key: key.to_owned().into(),
            field: "n".to_owned(),
            amount,
            ..Default::default()
        }),
    };
    v1::WriteOperation { operation: Some(operation) }
}

/// One write after the other.
async fn patient(mut writer: Writer) -> Result<()> {
    while !*writer.stopped.borrow() {
        let Some(key) = writer.keys.choose(&mut writer.rng).cloned() else { return Ok(()) };
        let write = writer.write();
        writer.history.begin(&key, &write);
        match writer.send(&key, write).await {
            Ok(written) => writer.history.acked(&key, written.value)?,
            Err(error) if error.outcome_unknown() => {
                writer.history.unknown();
                writer.keys.retain(|other| *other != key);
            }
            Err(error) => {
                writer.history.refused(&key, &error.reason);
                if error.reason == UNREACHABLE {
                    return Ok(());
                }
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
    Ok(())
}

/// Bursts: the next batch goes while the ones before wait for their fsync. No key is in two of them.
async fn stream(mut writer: Writer) -> Result<()> {
    let Ok((mut sender, results)) = writer.client.write_stream().await else { return Ok(()) };
    let idle = std::mem::take(&mut writer.keys);
    let (give_back, mut free) = tokio::sync::mpsc::unbounded_channel();
    idle.into_iter().for_each(|key| _ = give_back.send(key));
    let under_way = Arc::new(parking_lot::Mutex::new(VecDeque::new()));
    let mut answers = tokio::spawn(answers(results, under_way.clone(), writer.history.clone(), give_back));
    let began = Instant::now();
    let mut sent = 0u32;
    while !*writer.stopped.borrow() {
        let mut operations = Vec::new();
        while operations.len() < writer.shape.batch {
            let key: Option<String> = tokio::select! {
                biased;
                key = free.recv() => key,
                ended = &mut answers => return ended.context("the answers' reader panicked")?,
            };
            let Some(key) = key else { break };
            let write = writer.write();
            writer.history.begin(&key, &write);
            under_way.lock().push_back(key.clone());
            operations.push(operation(&key, write));
        }
        sent += operations.len() as u32;
        if send(&mut sender, operations).await.is_none() {
            break;
        }
        if let Some(rate) = writer.shape.rate_max {
            tokio::time::sleep_until(began + Duration::from_secs_f64(f64::from(sent) / f64::from(rate))).await;
        }
    }
    drop(sender);
    answers.await.context("the answers' reader panicked")?
}

async fn send(sender: &mut WriteStream, operations: Vec<v1::WriteOperation>) -> Option<u64> {
    sender.send(operations, KEYSPACE).await
}

async fn answers(
    mut results: Results,
    under_way: Arc<parking_lot::Mutex<VecDeque<String>>>,
    history: History,
    give_back: tokio::sync::mpsc::UnboundedSender<String>,
) -> Result<()> {
    let mut expected = 1;
    while let Ok(Some((sequence, outcomes))) = results.next().await {
        ensure!(sequence == expected, "the stream answered {sequence}, not {expected}");
        expected += outcomes.len() as u64;
        let mut refused = false;
        for outcome in outcomes {
            let key = under_way.lock().pop_front().context("more answers than operations")?;
            match outcome {
                Ok(written) => history.acked(&key, written.value)?,
                // Its key has no other write before it is known what became of this one.
                Err(error) if error.outcome_unknown() => {
                    history.unknown();
                    continue;
                }
                Err(error) => {
                    refused = true;
                    history.refused(&key, &error.reason);
                }
            }
            let _ = give_back.send(key);
        }
        if refused {
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    }
    // What was sent and not answered may have been written.
    under_way.lock().iter().for_each(|_| history.unknown());
    Ok(())
}
