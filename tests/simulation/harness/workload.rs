//! The clients of one region: they write and read at random, with and without the version tokens of any region.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isle_model::{FieldName, Mutation, Value};
use isle_node::{Clock, Consistency, GetRequest, Node, NodeError, PreconditionAsked, RequestContext, WriteRequest};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::history::{History, Op, Outcome, WriteFact};
use super::world::SimClock;

/// How a history is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub keys: u32,
    pub think_ms_max: u64,
    /// Values are padded to at most so many bytes.
    pub value_bytes_max: usize,
    /// Percent of the operations that write keys which nobody writes twice.
    pub wide_percent: u32,
}

pub struct Client {
    pub node: Arc<Node>,
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
        format!("key-{}", self.rng.random_range(0..self.shape.keys))
    }

    async fn read(&mut self) {
        let key = self.key();
        let request = GetRequest {
            keyspace: "default".to_owned(),
            key: Bytes::from(key.clone()),
            consistency: Consistency::Eventual,
        };
        let reply = self.node.get(&RequestContext::default(), request).await;
        let now = self.now();
        match reply {
            Ok(reply) => {
                let tree = self.node.store().tree();
                self.history.read(now, self.site, &key, reply.reading.as_ref(), &reply.version, &tree);
            }
            Err(error) => self.history.event(now, &format!("{} cannot read {key}: {error}", self.site)),
        }
    }

    /// Several writes at once, of one key more often than not: they meet in one batch.
    async fn burst(&mut self) {
        let count = self.rng.random_range(2..12);
        let asks: Vec<_> = (0..count).map(|_| self.ask()).collect();
        let these = &*self;
        futures::future::join_all(asks.into_iter().map(|(id, request, ctx)| these.carry_out(id, request, ctx))).await;
    }

    async fn write(&mut self) {
        let (id, request, ctx) = self.ask();
        self.carry_out(id, request, ctx).await;
    }

    async fn carry_out(&self, id: usize, request: WriteRequest, ctx: RequestContext) {
        let outcome = self.node.write(&ctx, request).await;
        let now = self.now();
        match outcome {
            Ok(reply) => self.history.acked(now, id, &reply.version, &self.node.store().tree()),
            Err(NodeError::OutcomeUnknown { reason }) => self.history.unknown(now, id, &reason),
            Err(error) => self.history.refused(now, id, error.to_string()),
        }
    }

    fn ask(&mut self) -> (usize, WriteRequest, RequestContext) {
        let (key, op) = self.op();
        let mut request = WriteRequest {
            keyspace: "default".to_owned(),
            key: Bytes::from(key.clone()),
            mutation: mutation(&op),
            precondition: PreconditionAsked::None,
            context: None,
            request_id: String::new(),
        };
        let rng = &mut self.rng;
        let chance = rng.random_range(0..100);
        let token = self.history.token(&key, |count| rng.random_range(0..count));
        match (chance, token) {
            (0..30, Some(token)) => request.context = Some(token),
            (30..40, Some(token)) => request.precondition = PreconditionAsked::Version(token),
            (40..45, _) => request.precondition = PreconditionAsked::Absent,
            _ => {}
        }
        let mut ctx = RequestContext::default();
        if rng.random_bool(0.1) {
            ctx.deadline = Some(Instant::now() + Duration::from_micros(rng.random_range(0..3000)));
        }
        let started = self.now();
        let fact = WriteFact { site: self.site, key, op, outcome: Outcome::Unknown };
        (self.history.begin(started, fact), request, ctx)
    }

    fn op(&mut self) -> (String, Op) {
        let id = self.history.next_id();
        if self.rng.random_range(0..100) < self.shape.wide_percent {
            return (format!("wide-{id}"), Op::Put { value: self.value(id, 0, 1) });
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

fn mutation(op: &Op) -> Mutation {
    match op {
        Op::Put { value } => Mutation::Put { value: Value::string(value) },
        Op::Patch { set, remove } => Mutation::Patch {
            set: set.iter().map(|(name, value)| (FieldName::new(name), Value::string(value))).collect(),
            remove: remove.iter().map(|name| FieldName::new(name)).collect(),
        },
        Op::Delete => Mutation::Delete,
        Op::Increment { field, amount } => Mutation::Increment { field: FieldName::new(field), amount: *amount },
    }
}
