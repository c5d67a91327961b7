//! Carries operations to a store and measures them.
//!
//! ```text
//! steps ──take──▶ lanes: one request at a time each ──▶ store
//!   ▲ pace                     └──note──▶ recorder
//! ```
//! The law: every step is carried out once, by whichever lane is free, and counted with what became of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use indicatif::ProgressBar;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::mix::Kind;
use crate::pace::{Pace, Ticker};
use crate::record::Record;
use crate::recorder::{Done, Measured, Recorder};
use crate::target::{Answer, Answers, Fault, Lane, Sender};

/// Between two looks of the progress bar.
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// One call, and what it is counted as.
#[derive(Debug)]
pub struct Step {
    pub kind: Kind,
    pub work: Work,
}

#[derive(Debug)]
pub enum Work {
    Put(Record),
    Get(Bytes),
    Scan { start: Bytes, entries: usize },
    ReadModifyWrite(Record),
    Batch(Vec<Record>),
    Pipelined(Vec<Record>),
}

impl Work {
    /// Operations, where a step is refused as a whole.
    fn count(&self) -> u64 {
        match self {
            Work::Batch(records) | Work::Pipelined(records) => records.len() as u64,
            _ => 1,
        }
    }
}

type Steps = Box<dyn Iterator<Item = Step> + Send>;

/// A load, before it runs.
pub struct Load {
    pub steps: Steps,
    pub pace: Pace,
    pub bar: ProgressBar,
}

/// What all lanes of a run share.
struct Run {
    steps: Mutex<Taken>,
    recorder: Mutex<Recorder>,
    pace: Pace,
    began: Instant,
    lanes: usize,
    /// One permit for each step that is due; of an open loop alone.
    due: Semaphore,
}

struct Taken {
    steps: Steps,
    number: u64,
    exhausted: bool,
    /// What ends the run: an unsupported step, or nothing but refusals.
    fault: Option<Fault>,
}

impl Run {
    fn start(load: Load, lanes: usize) -> Arc<Run> {
        let began = Instant::now();
        let steps = Taken { steps: load.steps, number: 0, exhausted: false, fault: None };
        Arc::new(Run {
            steps: Mutex::new(steps),
            recorder: Mutex::new(Recorder::start(began)),
            pace: load.pace,
            began,
            lanes,
            due: Semaphore::new(0),
        })
    }

    /// The next step and the moment that its latency counts from.
    async fn next(&self) -> Option<(Step, Instant)> {
        if self.pace != Pace::Closed {
            // The semaphore is never closed.
            self.due.acquire().await.ok()?.forget();
        }
        let now = Instant::now();
        let mut taken = self.steps.lock();
        if !taken.exhausted
            && let Some(step) = taken.steps.next()
        {
            let number = taken.number;
            taken.number += 1;
            return Some((step, self.pace.due(self.began, number).unwrap_or(now)));
        }
        if !taken.exhausted {
            taken.exhausted = true;
            // Whoever waits for its turn has to hear of the end.
            self.due.add_permits(self.lanes);
        }
        None
    }

    fn note(&self, kind: Kind, due: Instant, count: u64, outcome: Result<Done, Fault>) {
        let mut recorder = self.recorder.lock();
        let fault = outcome.as_ref().err().cloned();
        recorder.note(kind, due, Instant::now(), count, outcome);
        if let Some(fault) = fault
            && (matches!(fault, Fault::Unsupported { .. }) || recorder.is_hopeless())
        {
            self.stop(fault);
        }
    }

    fn stop(&self, fault: Fault) {
        let mut taken = self.steps.lock();
        taken.exhausted = true;
        taken.fault.get_or_insert(fault);
        self.due.add_permits(self.lanes);
    }

    fn is_over(&self) -> bool {
        self.steps.lock().exhausted
    }

    /// Lets steps begin as they become due.
    async fn pace(&self) -> Result<(), Fault> {
        if self.pace == Pace::Closed {
            return Ok(());
        }
        let fault = |error: std::io::Error| Fault::Refused(format!("the pace's timer: {error}"));
        let ticker = Ticker::start().map_err(fault)?;
        let mut begun = 0;
        while !self.is_over() {
            let arrived = self.pace.arrived(self.began, Instant::now());
            self.due.add_permits((arrived - begun) as usize);
            begun = arrived;
            ticker.tick().await;
        }
        Ok(())
    }

    async fn show(&self, bar: ProgressBar) {
        loop {
            bar.set_position(self.recorder.lock().done());
            tokio::time::sleep(BAR_INTERVAL).await;
        }
    }

    fn finish(self: Arc<Run>, bar: &ProgressBar) -> Result<Measured, Fault> {
        bar.set_position(self.recorder.lock().done());
        if let Some(fault) = self.steps.lock().fault.take() {
            return Err(fault);
        }
        let began = self.recorder.lock().began();
        let recorder = std::mem::replace(&mut *self.recorder.lock(), Recorder::start(began));
        Ok(recorder.finish())
    }
}

/// Calls, one at a time a lane. The lanes come back for the next load.
pub async fn calls(lanes: &mut Vec<Box<dyn Lane>>, load: Load) -> Result<Measured, Fault> {
    let bar = load.bar.clone();
    let run = Run::start(load, lanes.len());
    let mut carrying = JoinSet::new();
    for mut lane in lanes.drain(..) {
        let run = run.clone();
        carrying.spawn(async move {
            while let Some((step, due)) = run.next().await {
                let (kind, count) = (step.kind, step.work.count());
                let outcome = carry_out(lane.as_mut(), step.work).await;
                run.note(kind, due, count, outcome);
            }
            lane
        });
    }
    let carried = async {
        while let Some(lane) = carrying.join_next().await {
            lanes.push(lane.map_err(|error| Fault::Refused(format!("a lane broke down: {error}")))?);
        }
        Ok(())
    };
    with_pace(&run, &bar, carried).await?;
    run.finish(&bar)
}

async fn with_pace(
    run: &Arc<Run>,
    bar: &ProgressBar,
    carried: impl Future<Output = Result<(), Fault>>,
) -> Result<(), Fault> {
    let paced = async { tokio::try_join!(carried, run.pace()).map(|_| ()) };
    tokio::select! {
        done = paced => done,
        () = run.show(bar.clone()) => Ok(()),
    }
}

async fn carry_out(lane: &mut dyn Lane, work: Work) -> Result<Done, Fault> {
    let one = || Answer::applied(1);
    match work {
        Work::Put(record) => lane.put(&record).await.map(|()| Done { answer: one(), missing: false }),
        Work::Get(key) => {
            let missing = lane.get(&key).await?.is_none();
            Ok(Done { answer: one(), missing })
        }
        Work::Scan { start, entries } => {
            let found = lane.scan(&start, entries).await?;
            Ok(Done { answer: one(), missing: found == 0 })
        }
        // As YCSB does it: a read and an update, one after the other, and no transaction.
        Work::ReadModifyWrite(record) => {
            let missing = lane.get(&record.key).await?.is_none();
            lane.put(&record).await?;
            Ok(Done { answer: one(), missing })
        }
        Work::Batch(records) => lane.put_batch(records).await.map(|answer| Done { answer, missing: false }),
        Work::Pipelined(records) => lane.put_pipelined(records).await.map(|answer| Done { answer, missing: false }),
    }
}

/// Streams of batches, one a lane. Each keeps `window` messages in flight.
pub async fn streams(lanes: &mut [Box<dyn Lane>], window: usize, load: Load) -> Result<Measured, Fault> {
    let mut halves = Vec::new();
    for lane in lanes.iter_mut() {
        halves.push(lane.open_stream().await?);
    }
    let bar = load.bar.clone();
    let run = Run::start(load, lanes.len());
    let streams = halves.into_iter().map(|(sender, answers)| {
        let flight = Arc::new(Flight { window: Semaphore::new(window.max(1)), sent: Mutex::default() });
        let run = run.clone();
        let stream = async move { tokio::try_join!(send(&run, &flight, sender), receive(&run, &flight, answers)) };
        let task = tokio::spawn(stream);
        async { task.await.map_err(|error| Fault::Refused(format!("a stream broke down: {error}")))? }
    });
    let carried = async { try_join_all(streams).await.map(|_| ()) };
    with_pace(&run, &bar, carried).await?;
    run.finish(&bar)
}

/// What one stream has sent and not seen answered.
struct Flight {
    window: Semaphore,
    sent: Mutex<VecDeque<Message>>,
}

struct Message {
    kind: Kind,
    due: Instant,
    operations: u64,
    answered: Answer,
}

async fn send(run: &Run, flight: &Flight, mut sender: Box<dyn Sender>) -> Result<(), Fault> {
    loop {
        // The semaphore is never closed.
        let Ok(permit) = flight.window.acquire().await else { return Ok(()) };
        let Some((step, due)) = run.next().await else { return Ok(()) };
        let Work::Batch(records) = step.work else {
            unreachable!("a stream carries batches");
        };
        let operations = records.len() as u64;
        let message = Message { kind: step.kind, due, operations, answered: Answer::default() };
        flight.sent.lock().push_back(message);
        permit.forget();
        sender.send(records).await?;
    }
}

async fn receive(run: &Run, flight: &Flight, mut answers: Box<dyn Answers>) -> Result<(), Fault> {
    while let Some(answer) = answers.next().await? {
        let mut sent = flight.sent.lock();
        let Some(message) = sent.front_mut() else {
            return Err(Fault::Refused("an answer came to nothing that was sent".to_owned()));
        };
        message.answered.applied += answer.applied;
        message.answered.refused += answer.refused;
        message.answered.reason = message.answered.reason.take().or(answer.reason);
        // Answers never span two messages; a message may be answered in parts.
        if message.answered.applied + message.answered.refused >= message.operations
            && let Some(message) = sent.pop_front()
        {
            let done = Done { answer: message.answered, missing: false };
            run.note(message.kind, message.due, message.operations, Ok(done));
            flight.window.add_permits(1);
        }
    }
    match flight.sent.lock().len() {
        0 => Ok(()),
        left => Err(Fault::Refused(format!("the stream ended with {left} messages unanswered"))),
    }
}
