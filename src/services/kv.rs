//! `isle.v1.Kv`: reads and writes of records.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use isle_model::Reading;
use isle_model::limits::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX, PAGE_ITEMS_MAX};
use isle_node::{
    GetReply, GetRequest, Node, NodeError, RequestContext, ScanReply, ScanRequest, Versions, WriteReply, WriteRequest,
};
use isle_proto::v1;
use isle_proto::v1::kv_server::Kv;
use prost::Message;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::operation::{delete, increment, of_operation, patch, put};
use super::wire;
use crate::page_token::PageKey;
use crate::request_context;
use crate::status_table::{bad_field, item_of, item_of_node, of_node, reply_full, too_many_requests};

const PAGE_ITEMS_DEFAULT: usize = 100;
/// Messages of one write stream that are carried out at once: enough to cover an fsync, little enough to hold in memory.
const STREAM_MESSAGES_MAX: usize = 8;

pub struct KvService {
    node: Arc<Node>,
    pages: PageKey,
    /// Open write streams: each may hold as much as `STREAM_MESSAGES_MAX` requests for as long as it lives.
    streams: Arc<Semaphore>,
}

impl KvService {
    /// `requests_max` requests' worth of write streams may be open.
    pub fn new(node: Arc<Node>, pages: PageKey, requests_max: usize) -> KvService {
        let streams = (requests_max / STREAM_MESSAGES_MAX).clamp(1, Semaphore::MAX_PERMITS);
        KvService { node, pages, streams: Arc::new(Semaphore::new(streams)) }
    }

    async fn write(&self, context: &RequestContext, request: WriteRequest) -> Result<WriteReply, Status> {
        self.node.write(context, request).await.map_err(|error| of_node(&error))
    }

    fn entry(&self, key: Bytes, reading: Option<&Reading>, version: Bytes, siblings: bool) -> v1::Entry {
        let tree = || self.node.store().tree();
        v1::Entry {
            key,
            record: reading.map(wire::record),
            version,
            conflict: reading.is_some_and(|reading| reading.conflict),
            siblings: reading.filter(|_| siblings).map(|reading| wire::siblings(reading, &tree())).unwrap_or_default(),
            home: wire::name_of(reading.and_then(|reading| reading.home.as_ref())),
            home_epoch: 0,
            expire_time: None,
        }
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let context = request_context::of(&request);
        let v1::GetRequest { keyspace, key, siblings, read } = request.into_inner();
        let consistency = wire::consistency(read)?;
        let asked = GetRequest { keyspace, key: key.clone(), consistency };
        let reply = self.node.get(&context, asked).await.map_err(|error| of_node(&error))?;
        Ok(Response::new(v1::GetResponse {
            header: Some(read_header(&reply)),
            found: reply.reading.is_some(),
            entry: Some(self.entry(key, reply.reading.as_ref(), reply.version, siblings)),
        }))
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let context = request_context::of(&request);
        let reply = self.write(&context, put(request.into_inner())?).await?;
        let header = Some(write_header(&reply));
        Ok(Response::new(v1::PutResponse { header, version: reply.version, replayed: reply.replayed }))
    }

    async fn patch(&self, request: Request<v1::PatchRequest>) -> Result<Response<v1::PatchResponse>, Status> {
        let context = request_context::of(&request);
        let reply = self.write(&context, patch(request.into_inner())?).await?;
        let header = Some(write_header(&reply));
        Ok(Response::new(v1::PatchResponse { header, version: reply.version, replayed: reply.replayed }))
    }

    async fn increment(
        &self,
        request: Request<v1::IncrementRequest>,
    ) -> Result<Response<v1::IncrementResponse>, Status> {
        let context = request_context::of(&request);
        let reply = self.write(&context, increment(request.into_inner())?).await?;
        Ok(Response::new(v1::IncrementResponse {
            header: Some(write_header(&reply)),
            version: reply.version,
            replayed: reply.replayed,
            value: reply.value.unwrap_or_default(),
        }))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let context = request_context::of(&request);
        let reply = self.write(&context, delete(request.into_inner())?).await?;
        let header = Some(write_header(&reply));
        let WriteReply { version, replayed, found, .. } = reply;
        Ok(Response::new(v1::DeleteResponse { header, version, replayed, found }))
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<v1::ScanResponse>, Status> {
        let context = request_context::of(&request);
        let asked = request.into_inner();
        let page = self.page(&asked)?;
        let reply = self.node.scan(&context, page).await.map_err(|error| of_node(&error))?;
        Ok(Response::new(self.scanned(&asked, reply)))
    }

    async fn batch_get(&self, request: Request<v1::BatchGetRequest>) -> Result<Response<v1::BatchGetResponse>, Status> {
        let context = request_context::of(&request);
        let v1::BatchGetRequest { keyspace, keys, siblings, read } = request.into_inner();
        check_items("keys", keys.len())?;
        let consistency = wire::consistency(read)?;
        let (mut results, mut header, mut size) = (Vec::with_capacity(keys.len()), None, 0);
        for key in keys {
            let asked = GetRequest { keyspace: keyspace.clone(), key: key.clone(), consistency };
            let result = match self.node.get(&context, asked).await {
                // What is wrong with the whole call is wrong with every item.
                Err(
                    error @ (NodeError::UnknownKeyspace { .. }
                    | NodeError::ResidencyViolation { .. }
                    | NodeError::Unimplemented { .. }
                    | NodeError::BadField { field: "read.consistency", .. }
                    | NodeError::StalenessBoundExceeded { .. }),
                ) => return Err(of_node(&error)),
                Err(error) => failed_get(item_of_node(&error)),
                Ok(reply) => {
                    header.get_or_insert_with(|| batch_header(&self.node, reply.staleness));
                    let found = reply.reading.is_some();
                    let entry = self.entry(key, reply.reading.as_ref(), reply.version, siblings);
                    v1::GetResult { found, entry: Some(entry), error: None }
                }
            };
            let fits = size + result.encoded_len() <= BATCH_BYTES_MAX;
            let result = if fits { result } else { failed_get(item_of(&reply_full())) };
            size += result.encoded_len();
            results.push(result);
        }
        let header = Some(header.unwrap_or_else(|| batch_header(&self.node, None)));
        Ok(Response::new(v1::BatchGetResponse { header, results }))
    }

    async fn batch_write(
        &self,
        request: Request<v1::BatchWriteRequest>,
    ) -> Result<Response<v1::BatchWriteResponse>, Status> {
        let context = request_context::of(&request);
        let asked = request.into_inner();
        check_batch(&asked.operations, asked.encoded_len())?;
        let v1::BatchWriteRequest { keyspace, operations, omit_versions } = asked;
        let results = write_all(&self.node, &context, &keyspace, operations, omit_versions).await;
        let header = Some(batch_header(&self.node, Some(Duration::ZERO)));
        Ok(Response::new(v1::BatchWriteResponse { header, results }))
    }

    type WriteStream = BoxStream<'static, Result<v1::WriteResponse, Status>>;

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let open = self.streams.clone().try_acquire_owned().map_err(|_| too_many_requests())?;
        let context = request_context::of(&request);
        let (node, mut first) = (self.node.clone(), true);
        let answers = request.into_inner().map(move |message| {
            let header = std::mem::take(&mut first).then(|| batch_header(&node, Some(Duration::ZERO)));
            let (node, context) = (node.clone(), context.clone());
            async move { stream_message(&node, &context, message?, header).await }
        });
        // In order, and the next messages are queued while this one is being synced. After an error nothing more is
        // answered: what follows has no result, which means that its outcome is unknown.
        let answers = answers.buffered(STREAM_MESSAGES_MAX).scan(false, move |failed, answer| {
            let _open = &open;
            let over = std::mem::replace(failed, answer.is_err());
            std::future::ready((!over).then_some(answer))
        });
        Ok(Response::new(answers.boxed()))
    }
}

impl KvService {
    fn page(&self, asked: &v1::ScanRequest) -> Result<ScanRequest, Status> {
        let limit = match asked.page_size {
            0 => PAGE_ITEMS_DEFAULT,
            size => usize::try_from(size).map_err(|_| bad_field("page_size", "is negative"))?.min(PAGE_ITEMS_MAX),
        };
        let (start, end) = range(asked)?;
        let start = match asked.page_token.is_empty() {
            true => start,
            false => {
                let opened = self.pages.open(&question(asked), &asked.page_token);
                opened.map_err(|error| bad_field("page_token", error))?
            }
        };
        let consistency = wire::consistency(asked.read.clone())?;
        let keyspace = asked.keyspace.clone();
        Ok(ScanRequest { keyspace, start, end, limit, bytes_max: BATCH_BYTES_MAX, consistency })
    }

    fn scanned(&self, asked: &v1::ScanRequest, reply: ScanReply) -> v1::ScanResponse {
        let entry = |row: isle_node::ScanRow| match asked.keys_only {
            true => v1::Entry { key: row.key, ..v1::Entry::default() },
            false => self.entry(row.key, Some(&row.reading), row.version, asked.siblings),
        };
        let next = reply.next.map(|next| self.pages.seal(&question(asked), &next));
        v1::ScanResponse {
            header: Some(batch_header(&self.node, reply.staleness)),
            entries: reply.rows.into_iter().map(entry).collect(),
            next_page_token: next.unwrap_or_default(),
        }
    }
}

/// What has to stay the same from page to page.
fn question(asked: &v1::ScanRequest) -> [&[u8]; 5] {
    let flags: &[u8] = match (asked.keys_only, asked.siblings) {
        (false, false) => b"",
        (true, false) => b"k",
        (false, true) => b"s",
        (true, true) => b"ks",
    };
    [asked.keyspace.as_bytes(), &asked.start, &asked.end, &asked.prefix, flags]
}

fn range(asked: &v1::ScanRequest) -> Result<(Bytes, Option<Bytes>), Status> {
    let v1::ScanRequest { start, end, prefix, .. } = asked;
    if !prefix.is_empty() {
        if !start.is_empty() || !end.is_empty() {
            return Err(bad_field("prefix", "is not for use with start or end"));
        }
        return Ok((prefix.clone(), after_prefix(prefix)));
    }
    if !end.is_empty() && end <= start {
        return Err(bad_field("end", "is not above start"));
    }
    Ok((start.clone(), Some(end.clone()).filter(|end| !end.is_empty())))
}

/// The first key behind all that begin so; `None` if there is no such key.
fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(Bytes::from(end))
}

async fn stream_message(
    node: &Node,
    context: &RequestContext,
    message: v1::WriteRequest,
    header: Option<v1::ResponseHeader>,
) -> Result<v1::WriteResponse, Status> {
    check_batch(&message.operations, message.encoded_len())?;
    let v1::WriteRequest { sequence, operations, keyspace, omit_versions } = message;
    let results = write_all(node, context, &keyspace, operations, omit_versions).await;
    Ok(v1::WriteResponse { header, sequence, results })
}

/// Carries out operations, each on its own; those of one key in their order.
async fn write_all(
    node: &Node,
    context: &RequestContext,
    keyspace: &str,
    operations: Vec<v1::WriteOperation>,
    omit_versions: bool,
) -> Vec<v1::WriteResult> {
    let versions = if omit_versions { Versions::Omitted } else { Versions::Shown };
    let mut sound = Vec::with_capacity(operations.len());
    let checked =
        operations.into_iter().map(|operation| of_operation(operation, keyspace).map(|asked| sound.push(asked)));
    let checked: Vec<Result<(), Status>> = checked.collect();
    let mut written = node.write_batch(context, sound, versions).await.into_iter();
    let result = |checked: Result<(), Status>| {
        let outcome = match checked {
            Err(status) => Err(item_of(&status)),
            Ok(()) => {
                let written = written.next().expect("the node answers every request of a batch");
                written.map(applied).map_err(|error| item_of_node(&error))
            }
        };
        let outcome = outcome.map_or_else(v1::write_result::Outcome::Error, v1::write_result::Outcome::Applied);
        v1::WriteResult { outcome: Some(outcome) }
    };
    checked.into_iter().map(result).collect()
}

fn applied(reply: WriteReply) -> v1::WriteApplied {
    v1::WriteApplied { version: reply.version, replayed: reply.replayed, value: reply.value, found: None }
}

fn check_items(field: &'static str, items: usize) -> Result<(), Status> {
    match items {
        0 => Err(bad_field(field, "is empty")),
        n if n > BATCH_ITEMS_MAX => Err(bad_field(field, format!("has {n} items, more than {BATCH_ITEMS_MAX}"))),
        _ => Ok(()),
    }
}

fn check_batch(operations: &[v1::WriteOperation], bytes: usize) -> Result<(), Status> {
    check_items("operations", operations.len())?;
    match bytes > BATCH_BYTES_MAX {
        true => Err(bad_field("operations", format!("have {bytes} bytes, more than {BATCH_BYTES_MAX}"))),
        false => Ok(()),
    }
}

fn failed_get(error: v1::ItemError) -> v1::GetResult {
    v1::GetResult { found: false, entry: None, error: Some(error) }
}

fn read_header(reply: &GetReply) -> v1::ResponseHeader {
    v1::ResponseHeader {
        served_by: reply.served_by.to_string(),
        home: wire::name_of(reply.home.as_ref()),
        home_epoch: reply.home_epoch.0,
        staleness: reply.staleness.and_then(wire::span),
        session_token: Bytes::new(),
    }
}

/// A write is not behind by construction.
fn write_header(reply: &WriteReply) -> v1::ResponseHeader {
    v1::ResponseHeader {
        served_by: reply.served_by.to_string(),
        home: wire::name_of(reply.home.as_ref()),
        home_epoch: reply.home_epoch.0,
        staleness: wire::span(Duration::ZERO),
        session_token: Bytes::new(),
    }
}

/// Of a reply that is not about one key.
fn batch_header(node: &Node, staleness: Option<Duration>) -> v1::ResponseHeader {
    v1::ResponseHeader {
        served_by: node.config().region.to_string(),
        staleness: staleness.and_then(wire::span),
        ..v1::ResponseHeader::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(after_prefix(b"ab").unwrap(), "ac");
        assert_eq!(after_prefix(&[b'a', 0xff]).unwrap(), "b");
        assert_eq!(after_prefix(&[0xff, 0xff]), None);
    }

    #[test]
    fn a_range_upside_down_is_refused() {
        let asked = |start: &'static str, end: &'static str, prefix: &'static str| v1::ScanRequest {
            start: start.into(),
            end: end.into(),
            prefix: prefix.into(),
            ..v1::ScanRequest::default()
        };
        assert_eq!(range(&asked("a", "b", "")).unwrap(), ("a".into(), Some("b".into())));
        assert_eq!(range(&asked("", "", "")).unwrap(), ("".into(), None));
        assert!(range(&asked("b", "b", "")).is_err() && range(&asked("a", "", "p")).is_err());
    }
}
