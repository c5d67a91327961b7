//! The floor's calls.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use super::appender::Appender;
use super::wire::floor_server::Floor;
use super::wire::{Ack, Batch, EchoReply, EchoRequest, Record};

/// Batches of one stream that may wait for a sync at once: enough that the file never waits for the stream.
const BATCHES_IN_FLIGHT: usize = 64;
const ECHO_BYTES_MAX: usize = 1 << 20;

pub struct Service {
    appender: Arc<Appender>,
    echo: Bytes,
}

impl Service {
    pub fn new(appender: Appender) -> Service {
        Service { appender: Arc::new(appender), echo: Bytes::from(vec![b'.'; ECHO_BYTES_MAX]) }
    }
}

/// Each record behind its length, as a log would have it.
fn encode(record: &Record, bytes: &mut Vec<u8>) {
    bytes.reserve(record.encoded_len() + 10);
    // A Vec grows as it is written to: encoding has no way to fail.
    record.encode_length_delimited(bytes).expect("a Vec takes everything");
}

async fn synced(reply: oneshot::Receiver<Result<(), String>>) -> Result<Ack, Status> {
    match reply.await {
        Ok(Ok(())) => Ok(Ack {}),
        Ok(Err(fact)) => Err(Status::internal(fact)),
        Err(_) => Err(Status::unavailable("the floor is closing")),
    }
}

fn append(appender: &Appender, batch: &Batch) -> oneshot::Receiver<Result<(), String>> {
    appender.append(|bytes| batch.records.iter().for_each(|record| encode(record, bytes)))
}

#[tonic::async_trait]
impl Floor for Service {
    async fn put(&self, request: Request<Record>) -> Result<Response<Ack>, Status> {
        let record = request.into_inner();
        synced(self.appender.append(|bytes| encode(&record, bytes))).await.map(Response::new)
    }

    async fn put_batch(&self, request: Request<Batch>) -> Result<Response<Ack>, Status> {
        synced(append(&self.appender, &request.into_inner())).await.map(Response::new)
    }

    type PutStreamStream = Pin<Box<dyn Stream<Item = Result<Ack, Status>> + Send>>;

    async fn put_stream(&self, request: Request<Streaming<Batch>>) -> Result<Response<Self::PutStreamStream>, Status> {
        let appender = self.appender.clone();
        let appended = request.into_inner().map(move |batch| {
            let reply = batch.map(|batch| append(&appender, &batch));
            async { synced(reply?).await }
        });
        Ok(Response::new(Box::pin(appended.buffered(BATCHES_IN_FLIGHT))))
    }

    async fn echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        let wide = request.into_inner().reply_bytes as usize;
        if wide > ECHO_BYTES_MAX {
            return Err(Status::invalid_argument(format!("an echo is at most {ECHO_BYTES_MAX} bytes")));
        }
        Ok(Response::new(EchoReply { value: self.echo.slice(..wide) }))
    }
}
