//! The floor as a target.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{Answer, Answers, Fault, Lane, Sender, Target};
use crate::channel::{Spread, refused};
use crate::floor::wire::floor_client::FloorClient;
use crate::floor::wire::{self, Ack, Batch, EchoRequest};
use crate::record::Record;

const NAME: &str = "floor";
/// Messages of a stream that wait for the connection; what is in flight is bounded by the driver.
const MESSAGES_WAITING: usize = 4;

pub struct FloorTarget {
    endpoint: String,
    /// How large its echoes are: as a read's answer from a store would be.
    echo_bytes: u32,
}

impl FloorTarget {
    pub fn new(endpoint: String, echo_bytes: usize) -> FloorTarget {
        FloorTarget { endpoint, echo_bytes: u32::try_from(echo_bytes).unwrap_or(u32::MAX) }
    }
}

struct FloorLane {
    client: FloorClient<Channel>,
    echo_bytes: u32,
}

#[async_trait]
impl Target for FloorTarget {
    fn name(&self) -> &'static str {
        NAME
    }

    fn durability(&self) -> &'static str {
        "one preallocated file, group fdatasync before the answer; reads are echoes"
    }

    async fn ready(&self) -> Result<(), Fault> {
        let mut lanes = self.lanes(1, 1).await?;
        lanes[0].get(&Bytes::from_static(b"ready")).await.map(|_| ())
    }

    async fn lanes(&self, count: usize, connections: usize) -> Result<Vec<Box<dyn Lane>>, Fault> {
        let spread = Spread::connect(&self.endpoint, connections.min(count)).await?;
        let lane = |channel| FloorLane { client: FloorClient::new(channel), echo_bytes: self.echo_bytes };
        Ok(spread.take(count).map(|channel| Box::new(lane(channel)) as Box<dyn Lane>).collect())
    }
}

fn wire_record(record: Record) -> wire::Record {
    wire::Record { key: record.key, value: record.value }
}

fn batch(records: Vec<Record>) -> Batch {
    Batch { records: records.into_iter().map(wire_record).collect() }
}

#[async_trait]
impl Lane for FloorLane {
    fn target(&self) -> &'static str {
        NAME
    }

    async fn put(&mut self, record: &Record) -> Result<(), Fault> {
        self.client.put(wire_record(record.clone())).await.map(|_| ()).map_err(|status| refused(&status))
    }

    async fn get(&mut self, key: &Bytes) -> Result<Option<Bytes>, Fault> {
        let request = EchoRequest { key: key.clone(), reply_bytes: self.echo_bytes };
        let reply = self.client.echo(request).await.map_err(|status| refused(&status))?;
        Ok(Some(reply.into_inner().value))
    }

    async fn put_batch(&mut self, records: Vec<Record>) -> Result<Answer, Fault> {
        let count = records.len() as u64;
        self.client.put_batch(batch(records)).await.map_err(|status| refused(&status))?;
        Ok(Answer::applied(count))
    }

    async fn open_stream(&mut self) -> Result<(Box<dyn Sender>, Box<dyn Answers>), Fault> {
        let (messages, waiting) = mpsc::channel(MESSAGES_WAITING);
        let (counts, counted) = mpsc::unbounded_channel();
        let acks = self.client.put_stream(ReceiverStream::new(waiting)).await.map_err(|status| refused(&status))?;
        let sender = FloorSender { messages, counts };
        Ok((Box::new(sender), Box::new(FloorAnswers { acks: acks.into_inner(), counted })))
    }
}

struct FloorSender {
    messages: mpsc::Sender<Batch>,
    /// An ack does not say how many records it is for: the sender does.
    counts: mpsc::UnboundedSender<u64>,
}

struct FloorAnswers {
    acks: Streaming<Ack>,
    counted: mpsc::UnboundedReceiver<u64>,
}

#[async_trait]
impl Sender for FloorSender {
    async fn send(&mut self, records: Vec<Record>) -> Result<(), Fault> {
        let broken = || Fault::Unreachable("the stream is broken".to_owned());
        self.counts.send(records.len() as u64).map_err(|_| broken())?;
        self.messages.send(batch(records)).await.map_err(|_| broken())
    }
}

#[async_trait]
impl Answers for FloorAnswers {
    async fn next(&mut self) -> Result<Option<Answer>, Fault> {
        let acked = self.acks.message().await.map_err(|status: Status| refused(&status))?;
        let Some(Ack {}) = acked else { return Ok(None) };
        match self.counted.recv().await {
            Some(count) => Ok(Some(Answer::applied(count))),
            None => Err(Fault::Refused("an answer came to nothing that was sent".to_owned())),
        }
    }
}
