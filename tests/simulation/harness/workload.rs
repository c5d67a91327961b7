//! The clients of one region: they write and read at random, with and without the version tokens of any region.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isle_model::Region;
use isle_node::{Clock, MoveRequest, Moved, RequestContext};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::door::{Ask, Burst, Condition, Door};
use super::history::{History, Op, Outcome, Source, WriteFact};
use super::world::SimClock;
use super::{SITES, keyspace_of};

/// How a history is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub keys: u32,
    pub think_ms_max: u64,
    /// Values are padded to at most so many bytes.
    pub value_bytes_max: usize,
    /// Percent of the operations that write keys which nobody writes twice.
    pub wide_percent: u32,
    /// Whether the other keyspace's keys have homes: then half of all keys are there, and half of their reads are the homes'.
    pub homed: bool,
}

pub struct Client {
    pub door: Door,
    pub site: usize,
    pub rng: StdRng,
    pub history: Arc<History>,
    pub clock: Arc<SimClock>,
    pub shape: Shape,
}

impl Client {
    pub async fn run(mut self) {
        while !self.history.is_closed() {
            let think = self.rng.random_range(0..=self.shape.think_ms_max * 1000);
            tokio::time::sleep(Duration::from_micros(think)).await;
            if self.shape.homed && self.rng.random_bool(0.05) {
                self.move_home().await;
                continue;
            }
            match self.rng.random_range(0..100) {
                0..30 => self.read().await,
                30..95 => self.write().await,
                _ => self.burst().await,
            }
        }
    }

    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    fn key(&mut self) -> String {
        let key = format!("key-{}", self.rng.random_range(0..self.shape.keys));
        self.somewhere(key)
    }

    /// A sixth of the keys are in the other keyspace.
    fn somewhere(&mut self, key: String) -> String {
        let share = if self.shape.homed { 0.5 } else { 1.0 / 6.0 };
        if self.rng.random_bool(share) { format!("other-{key}") } else { key }
    }

    async fn read(&mut self) {
        if self.shape.homed && self.rng.random_bool(0.5) {
            return self.read_at_home().await;
        }
        let (key, began) = (self.key(), self.history.moment());
        let seen = self.door.read(&key).await;
        let now = self.now();
        let source = match &self.door {
            Door::Node(node) => Source::Read { site: self.site, upto: node.store().durable() },
            Door::Wire(_) => Source::Wire,
        };
        match seen {
            Ok(seen) => self.history.read(now, began, self.site, &key, seen, source),
            Err(error) => self.history.event(now, &format!("{} cannot read {key}: {error}", self.site)),
        }
    }

    /// Reads a key at its home, more often than not one that somebody has just written.
    async fn read_at_home(&mut self) {
        let written = self.history.homed_key().filter(|_| self.rng.random_bool(0.7));
        let key = written.unwrap_or_else(|| format!("other-key-{}", self.rng.random_range(0..self.shape.keys)));
        let began = self.history.moment();
        match self.door.read_at_home(&key).await {
            Ok(version) => self.history.read_at_home(self.now(), began, self.site, &key, &version),
            Err(error) => self.history.event(self.now(), &format!("{} cannot read {key} at home: {error}", self.site)),
        }
    }

    /// Has a key's home move to some region, while others write it.
    async fn move_home(&mut self) {
        let Door::Node(node) = &self.door else { return };
        let key = self.history.homed_key().filter(|_| self.rng.random_bool(0.5));
        let key = key.unwrap_or_else(|| format!("other-key-{}", self.rng.random_range(0..self.shape.keys)));
        let to = SITES[self.rng.random_range(0..SITES.len())];
        let asked = MoveRequest {
            keyspace: keyspace_of(&key).name.to_owned(),
            what: Moved::Key(Bytes::from(key.clone())),
            to: Region::new(to),
        };
        let deadline = Some(Instant::now() + Duration::from_secs(3));
        let moved = node.move_homes(&RequestContext { deadline, ..RequestContext::default() }, asked).await;
        self.history.event(self.now(), &format!("{} moves {key} to {to}: {moved:?}", self.site));
    }

    /// Several writes at once, of one key more often than not: they meet in one batch.
    async fn burst(&mut self) {
        let how = [Burst::Apart, Burst::Apart, Burst::Batch, Burst::Stream][self.rng.random_range(0..4)];
        let count = self.rng.random_range(2..12);
        let (ids, asks): (Vec<_>, Vec<_>) = (0..count).map(|_| self.ask()).unzip();
        let answers = self.door.burst(asks, how).await;
        let now = self.now();
        ids.into_iter().zip(answers).for_each(|(id, answer)| self.history.answered(now, id, answer));
    }

    async fn write(&mut self) {
        let (id, ask) = self.ask();
        let answer = self.door.write(ask).await;
        self.history.answered(self.now(), id, answer);
    }

    fn ask(&mut self) -> (usize, Ask) {
        let (key, op) = self.op();
        let rng = &mut self.rng;
        let chance = rng.random_range(0..100);
        let token = self.history.token(&key, |count| rng.random_range(0..count));
        let token = token.filter(|_| chance < 40);
        let condition = match (chance, &token) {
            (0..30, Some(token)) => Condition::Context(token.version.clone()),
            (30..40, Some(token)) => Condition::Version(token.version.clone()),
            (40..45, _) => Condition::Absent,
            _ => Condition::None,
        };
        // Half of these pass before a request over a link has arrived.
        let deadline = rng.random_bool(0.1).then(|| Duration::from_micros(rng.random_range(0..4000)));
        let fact = WriteFact { site: self.site, key: key.clone(), op: op.clone(), token, outcome: Outcome::Unknown };
        (self.history.begin(self.now(), fact), Ask { key, op, condition, deadline })
    }

    fn op(&mut self) -> (String, Op) {
        let id = self.history.next_id();
        if self.rng.random_range(0..100) < self.shape.wide_percent {
            let key = self.somewhere(format!("wide-{id}"));
            return (key, Op::Put { value: self.value(id, 0, 1) });
        }
        let key = self.key();
        match self.rng.random_range(0..100) {
            0..35 => (key, Op::Put { value: self.value(id, 0, 4) }),
            35..55 => {
                let fields = ["x", "y", "z"];
                let first = self.rng.random_range(0..3);
                let set = (0..self.rng.random_range(1..3))
                    .map(|n| (fields[(first + n) % 3].to_owned(), self.value(id, n, 4)))
                    .collect();
                let remove =
                    if self.rng.random_bool(0.3) { vec![fields[(first + 2) % 3].to_owned()] } else { Vec::new() };
                (key, Op::Patch { set, remove })
            }
            55..75 => (key, Op::Delete),
            75..82 => {
                // "x" is a value in patches: now and then the kinds meet.
                let field = if self.rng.random_bool(0.2) { "x" } else { "n" };
                (key, Op::Increment { field: field.to_owned(), amount: self.rng.random_range(-3..10) })
            }
            // Never deleted, so that their sums are exact.
            _ => {
                let counter = format!("counter-{}", self.rng.random_range(0..3));
                (counter, Op::Increment { field: "n".to_owned(), amount: self.rng.random_range(1..10) })
            }
        }
    }

    /// A value that no other write has.
    fn value(&mut self, id: usize, n: usize, share: usize) -> String {
        let padding = self.rng.random_range(0..=self.shape.value_bytes_max / share);
        format!("{id}.{n}|{}", "v".repeat(padding))
    }
}
