//! isle as a target, over its generated clients.
//!
//! The SDK would retry, take deadlines and hand out owned strings for each write. A retry would hide what the store refused, and
//! the rest would be charged to the store, since client and server share the machine. The bytes on the wire are the same.

use async_trait::async_trait;
use bytes::Bytes;
use isle_proto::v1::cluster_client::ClusterClient;
use isle_proto::v1::kv_client::KvClient;
use isle_proto::v1::put_request::Precondition;
use isle_proto::v1::value::Kind;
use isle_proto::v1::write_operation::Operation;
use isle_proto::v1::write_result::Outcome;
use isle_proto::v1::{self, RegionState};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::{Answer, Answers, Fault, Lane, PeerVitals, Sender, Target, Vitals};
use crate::channel::{Spread, refused};
use crate::record::Record;

const NAME: &str = "isle";
/// Of a page: 100 entries of the largest value.
const MESSAGE_BYTES_MAX: usize = 128 << 20;
/// Messages of a stream that wait for the connection; what is in flight is bounded by the driver.
const MESSAGES_WAITING: usize = 4;

pub struct IsleTarget {
    endpoint: String,
    keyspace: String,
}

impl IsleTarget {
    pub fn new(endpoint: String, keyspace: String) -> IsleTarget {
        IsleTarget { endpoint, keyspace }
    }

    async fn status(&self) -> Result<v1::RegionStatus, Fault> {
        let channel = Spread::connect(&self.endpoint, 1).await?.take(1).next();
        let channel = channel.ok_or_else(|| Fault::Unreachable(self.endpoint.clone()))?;
        let reply = ClusterClient::new(channel).status(v1::StatusRequest {}).await;
        let reply = reply.map_err(|status| refused(&status))?.into_inner();
        reply.region.ok_or_else(|| Fault::Refused("a status without its region".to_owned()))
    }
}

struct IsleLane {
    client: KvClient<Channel>,
    keyspace: String,
}

#[async_trait]
impl Target for IsleTarget {
    fn name(&self) -> &'static str {
        NAME
    }

    fn durability(&self) -> &'static str {
        "commit log, group fdatasync before the answer"
    }

    async fn ready(&self) -> Result<(), Fault> {
        let status = self.status().await?;
        if status.state() == RegionState::Serving {
            return Ok(());
        }
        Err(Fault::Unreachable(format!("{} is {}", status.region, status.state().as_str_name())))
    }

    async fn lanes(&self, count: usize, connections: usize) -> Result<Vec<Box<dyn Lane>>, Fault> {
        let spread = Spread::connect(&self.endpoint, connections.min(count)).await?;
        let lane = |channel| {
            let client = KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            Box::new(IsleLane { client, keyspace: self.keyspace.clone() }) as Box<dyn Lane>
        };
        Ok(spread.take(count).map(lane).collect())
    }

    async fn vitals(&self) -> Result<Vitals, Fault> {
        let status = self.status().await?;
        let peer = |peer: v1::PeerStatus| PeerVitals {
            connected: peer.connected,
            lag_bytes: peer.lag_bytes,
            egress_bytes: peer.egress_bytes,
        };
        Ok(Vitals {
            records: status.records,
            digest: status.digest,
            conflicts: status.conflicts,
            view_bytes: status.view_bytes,
            view_live_bytes: status.view_live_bytes,
            log_bytes: status.log_bytes,
            peers: status.peers.into_iter().map(peer).collect(),
        })
    }
}

fn put_request(record: Record) -> v1::PutRequest {
    let value = v1::Value { kind: Some(Kind::BytesValue(record.value)) };
    v1::PutRequest { key: record.key, value: Some(value), ..v1::PutRequest::default() }
}

fn bytes_of(value: v1::Value) -> Option<Bytes> {
    match value.kind {
        Some(Kind::BytesValue(bytes)) => Some(bytes),
        _ => None,
    }
}

fn operations(records: Vec<Record>) -> Vec<v1::WriteOperation> {
    let operation = |record| v1::WriteOperation { operation: Some(Operation::Put(put_request(record))) };
    records.into_iter().map(operation).collect()
}

fn answer(results: Vec<v1::WriteResult>) -> Answer {
    results.into_iter().fold(Answer::default(), |mut answer, result| {
        match result.outcome {
            Some(Outcome::Applied(_)) => answer.applied += 1,
            Some(Outcome::Error(error)) => {
                answer.refused += 1;
                answer.reason.get_or_insert(format!("{}: {}", error.reason, error.message));
            }
            None => {
                answer.refused += 1;
                answer.reason.get_or_insert("the result is empty".to_owned());
            }
        }
        answer
    })
}

#[async_trait]
impl Lane for IsleLane {
    fn target(&self) -> &'static str {
        NAME
    }

    async fn put(&mut self, record: &Record) -> Result<(), Fault> {
        let request = v1::PutRequest { keyspace: self.keyspace.clone(), ..put_request(record.clone()) };
        self.client.put(request).await.map(|_| ()).map_err(|status| refused(&status))
    }

    async fn get(&mut self, key: &Bytes) -> Result<Option<Bytes>, Fault> {
        let request = v1::GetRequest { keyspace: self.keyspace.clone(), key: key.clone(), ..v1::GetRequest::default() };
        let reply = self.client.get(request).await.map_err(|status| refused(&status))?.into_inner();
        Ok(reply.entry.and_then(|entry| entry.record).and_then(|record| record.value).and_then(bytes_of))
    }

    async fn put_if_absent(&mut self, record: &Record) -> Result<bool, Fault> {
        let precondition = Some(Precondition::IfAbsent(true));
        let request = v1::PutRequest { keyspace: self.keyspace.clone(), precondition, ..put_request(record.clone()) };
        match self.client.put(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(refused(&status)),
        }
    }

    async fn get_all(&mut self, key: &Bytes) -> Result<Vec<Bytes>, Fault> {
        let keyspace = self.keyspace.clone();
        let request = v1::GetRequest { keyspace, key: key.clone(), siblings: true, ..v1::GetRequest::default() };
        let reply = self.client.get(request).await.map_err(|status| refused(&status))?.into_inner();
        // Sorted by field, the shown one first; the load writes one field alone.
        let siblings = reply.entry.map(|entry| entry.siblings).unwrap_or_default();
        Ok(siblings.into_iter().filter_map(|sibling| bytes_of(sibling.value?)).collect())
    }

    async fn scan(&mut self, start: &Bytes, entries: usize) -> Result<usize, Fault> {
        let mut request = v1::ScanRequest {
            keyspace: self.keyspace.clone(),
            start: start.clone(),
            page_size: i32::try_from(entries).unwrap_or(i32::MAX),
            ..v1::ScanRequest::default()
        };
        let mut found = 0;
        loop {
            let page = self.client.scan(request.clone()).await.map_err(|status| refused(&status))?.into_inner();
            found += page.entries.len();
            if found >= entries || page.next_page_token.is_empty() {
                return Ok(found);
            }
            request.page_token = page.next_page_token;
            request.page_size = i32::try_from(entries - found).unwrap_or(i32::MAX);
        }
    }

    async fn put_batch(&mut self, records: Vec<Record>) -> Result<Answer, Fault> {
        let operations = operations(records);
        let request = v1::BatchWriteRequest { keyspace: self.keyspace.clone(), operations, omit_versions: true };
        let reply = self.client.batch_write(request).await.map_err(|status| refused(&status))?;
        Ok(answer(reply.into_inner().results))
    }

    async fn open_stream(&mut self) -> Result<(Box<dyn Sender>, Box<dyn Answers>), Fault> {
        let (messages, waiting) = mpsc::channel(MESSAGES_WAITING);
        let responses = self.client.write(ReceiverStream::new(waiting)).await.map_err(|status| refused(&status))?;
        let sender = IsleSender { messages, keyspace: self.keyspace.clone(), sequence: 1 };
        Ok((Box::new(sender), Box::new(IsleAnswers(responses.into_inner()))))
    }
}

struct IsleSender {
    messages: mpsc::Sender<v1::WriteRequest>,
    keyspace: String,
    sequence: u64,
}

struct IsleAnswers(Streaming<v1::WriteResponse>);

#[async_trait]
impl Sender for IsleSender {
    async fn send(&mut self, records: Vec<Record>) -> Result<(), Fault> {
        let operations = operations(records);
        let sequence = self.sequence;
        self.sequence += operations.len() as u64;
        let request = v1::WriteRequest { sequence, operations, keyspace: self.keyspace.clone(), omit_versions: true };
        let sent = self.messages.send(request).await;
        sent.map_err(|_| Fault::Unreachable("the stream is broken".to_owned()))
    }
}

#[async_trait]
impl Answers for IsleAnswers {
    async fn next(&mut self) -> Result<Option<Answer>, Fault> {
        let response = self.0.message().await.map_err(|status| refused(&status))?;
        Ok(response.map(|response| answer(response.results)))
    }
}
