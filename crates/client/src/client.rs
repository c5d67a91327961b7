//! A connection to one region, and every call of it.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use isle_proto::v1;
use isle_proto::v1::cluster_client::ClusterClient;
use isle_proto::v1::dev_links_client::DevLinksClient;
use isle_proto::v1::kv_client::KvClient;
use isle_proto::v1::write_operation::Operation;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::{Entry, Error, Page, Range, Results, Retry, Value, WriteStream, Written};

/// Above a page or batch of 4 MiB with its keys and versions.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Requests of a stream that wait for the connection: the rest waits in the caller.
const STREAM_REQUESTS_WAITING: usize = 4;

#[derive(Clone, Debug)]
pub struct Options {
    /// Of one call, its retries not counted.
    pub timeout: Duration,
    pub connect_timeout: Duration,
    pub retry: Retry,
    /// PEM of the authority that signed the servers' certificates, for https endpoints.
    pub ca_pem: Option<Vec<u8>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(3),
            retry: Retry::default(),
            ca_pem: None,
        }
    }
}

/// What must hold, or nothing is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    #[default]
    None,
    Absent,
    Version(Bytes),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    pub condition: Condition,
    /// A version token: what the write is meant to replace.
    pub context: Bytes,
    pub request_id: String,
    pub ttl: Option<Duration>,
    pub home: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    pub set: BTreeMap<String, Value>,
    pub remove: Vec<String>,
}

/// Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) channel: Channel,
    pub(crate) options: Options,
}

impl Client {
    /// Connects with the usual options. `endpoint` is like `http://127.0.0.1:7400`.
    pub async fn connect(endpoint: &str) -> Result<Client, Error> {
        Client::connect_with(endpoint, Options::default()).await
    }

    pub async fn connect_with(endpoint: &str, options: Options) -> Result<Client, Error> {
        let endpoint = prepare(endpoint, &options)?;
        let retry = options.retry;
        let connect = || async { endpoint.connect().await.map_err(|error| Error::of_transport(&error)) };
        let channel = retrying(retry, true, connect).await?;
        Ok(Client { channel, options })
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Makes a call, again if that is safe and may help.
    async fn call<T, R, F>(
        &self,
        read: bool,
        message: T,
        send: impl Fn(KvClient<Channel>, Request<T>) -> F,
    ) -> Result<R, Error>
    where
        T: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let attempt = || async {
            let response = send(self.kv(), self.request(message.clone())).await;
            response.map(Response::into_inner).map_err(|status| Error::of_status(&status))
        };
        retrying(self.options.retry, read, attempt).await
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.options.timeout);
        request
    }

    pub async fn get(&self, keyspace: &str, key: impl Into<Bytes>, read: v1::ReadOptions) -> Result<Entry, Error> {
        let read = Some(read).filter(|read| *read != v1::ReadOptions::default());
        let request = v1::GetRequest { keyspace: keyspace.to_owned(), key: key.into(), siblings: false, read };
        let reply = self.call(true, request, |mut kv, request| async move { kv.get(request).await }).await?;
        Ok(Entry::of_wire(reply.found, reply.entry, reply.header.as_ref()))
    }

    pub async fn put(
        &self,
        keyspace: &str,
        key: impl Into<Bytes>,
        value: Value,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        let request = put_request(keyspace, key.into(), value, options);
        let reply = self.call(false, request, |mut kv, request| async move { kv.put(request).await }).await?;
        Ok(Written::of_wire(reply.header, reply.version, reply.replayed))
    }

    pub async fn patch(
        &self,
        keyspace: &str,
        key: impl Into<Bytes>,
        patch: Patch,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        let request = patch_request(keyspace, key.into(), patch, options)?;
        let reply = self.call(false, request, |mut kv, request| async move { kv.patch(request).await }).await?;
        Ok(Written::of_wire(reply.header, reply.version, reply.replayed))
    }

    pub async fn increment(
        &self,
        keyspace: &str,
        key: impl Into<Bytes>,
        field: &str,
        amount: i64,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        let write = wire_options(&options);
        let request = v1::IncrementRequest {
            keyspace: keyspace.to_owned(),
            key: key.into(),
            field: field.to_owned(),
            amount,
            request_id: options.request_id,
            write,
        };
        let reply = self.call(false, request, |mut kv, request| async move { kv.increment(request).await }).await?;
        let mut written = Written::of_wire(reply.header, reply.version, reply.replayed);
        written.value = Some(reply.value);
        Ok(written)
    }

    pub async fn delete(&self, keyspace: &str, key: impl Into<Bytes>, options: WriteOptions) -> Result<Written, Error> {
        let write = wire_options(&options);
        let request = v1::DeleteRequest {
            keyspace: keyspace.to_owned(),
            key: key.into(),
            if_version: version_of(&options.condition, "delete")?,
            context: options.context,
            request_id: options.request_id,
            write,
        };
        let reply = self.call(false, request, |mut kv, request| async move { kv.delete(request).await }).await?;
        let mut written = Written::of_wire(reply.header, reply.version, reply.replayed);
        written.found = Some(reply.found);
        Ok(written)
    }

    /// One page. Start with an empty token, go on with the page's `next` until that is empty.
    pub async fn scan(&self, keyspace: &str, range: &Range, page_size: u32, token: Bytes) -> Result<Page, Error> {
        let request = v1::ScanRequest {
            keyspace: keyspace.to_owned(),
            start: range.start.clone(),
            end: range.end.clone(),
            prefix: range.prefix.clone(),
            page_size: i32::try_from(page_size).unwrap_or(i32::MAX),
            page_token: token,
            ..v1::ScanRequest::default()
        };
        let reply = self.call(true, request, |mut kv, request| async move { kv.scan(request).await }).await?;
        let header = reply.header;
        let entries = reply.entries.into_iter();
        let entries = entries.map(|entry| Entry::of_wire(true, Some(entry), header.as_ref())).collect();
        Ok(Page { entries, next: reply.next_page_token })
    }

    /// One result a key, in their order.
    pub async fn batch_get(&self, keyspace: &str, keys: Vec<Bytes>) -> Result<Vec<Result<Entry, Error>>, Error> {
        let request = v1::BatchGetRequest { keyspace: keyspace.to_owned(), keys, ..v1::BatchGetRequest::default() };
        let reply = self.call(true, request, |mut kv, request| async move { kv.batch_get(request).await }).await?;
        let header = reply.header;
        let result = |item: v1::GetResult| match item.error {
            Some(error) => Err(Error::of_item(error)),
            None => Ok(Entry::of_wire(item.found, item.entry, header.as_ref())),
        };
        Ok(reply.results.into_iter().map(result).collect())
    }

    /// One result an operation, in their order. Not atomic.
    pub async fn batch_write(
        &self,
        keyspace: &str,
        operations: Vec<v1::WriteOperation>,
    ) -> Result<Vec<Result<Written, Error>>, Error> {
        let request = v1::BatchWriteRequest { keyspace: keyspace.to_owned(), operations, omit_versions: true };
        let reply = self.call(false, request, |mut kv, request| async move { kv.batch_write(request).await }).await?;
        Ok(outcomes(reply.results, reply.header.as_ref()))
    }

    /// Opens a stream of writes. It has no deadline.
    pub async fn write_stream(&self) -> Result<(WriteStream, Results), Error> {
        let (requests, waiting) = mpsc::channel(STREAM_REQUESTS_WAITING);
        let responses = self.kv().write(ReceiverStream::new(waiting)).await;
        let responses = responses.map_err(|status| Error::of_status(&status))?.into_inner();
        Ok((WriteStream { requests, sequence: 1 }, Results { responses, header: None }))
    }

    /// How the region is, and where the others are.
    pub async fn status(&self) -> Result<v1::StatusResponse, Error> {
        let attempt = || async {
            let reply = ClusterClient::new(self.channel.clone()).status(self.request(v1::StatusRequest {})).await;
            reply.map(Response::into_inner).map_err(|status| Error::of_status(&status))
        };
        retrying(self.options.retry, true, attempt).await
    }

    /// Lets a region in: it serves once it has the cluster's state. `client_endpoint` and `jurisdiction` may be empty.
    pub async fn add_region(
        &self,
        region: &str,
        jurisdiction: &str,
        peer_endpoint: &str,
        client_endpoint: &str,
    ) -> Result<(), Error> {
        let request = v1::AddRegionRequest {
            region: region.to_owned(),
            jurisdiction: jurisdiction.to_owned(),
            peer_endpoint: peer_endpoint.to_owned(),
            client_endpoint: client_endpoint.to_owned(),
        };
        let reply = ClusterClient::new(self.channel.clone()).add_region(self.request(request)).await;
        reply.map(drop).map_err(|status| Error::of_status(&status))
    }

    /// Has a region leave; with `lost`, gives one up that does not come back. What that had taken and no other has is lost.
    pub async fn remove_region(&self, region: &str, lost: bool) -> Result<(), Error> {
        let request = v1::RemoveRegionRequest { region: region.to_owned(), lost };
        let reply = ClusterClient::new(self.channel.clone()).remove_region(self.request(request)).await;
        reply.map(drop).map_err(|status| Error::of_status(&status))
    }

    /// Cuts a link of `isle dev`, and returns all links.
    pub async fn link_cut(&self, from: &str, to: &str, one_way: bool) -> Result<Vec<v1::Link>, Error> {
        let request = v1::CutRequest { from: from.to_owned(), to: to.to_owned(), one_way };
        let reply = DevLinksClient::new(self.channel.clone()).cut(self.request(request)).await;
        reply.map(|reply| reply.into_inner().links).map_err(|status| Error::of_status(&status))
    }

    /// Both names empty: every link.
    pub async fn link_heal(&self, from: &str, to: &str, one_way: bool) -> Result<Vec<v1::Link>, Error> {
        let request = v1::HealRequest { from: from.to_owned(), to: to.to_owned(), one_way };
        let reply = DevLinksClient::new(self.channel.clone()).heal(self.request(request)).await;
        reply.map(|reply| reply.into_inner().links).map_err(|status| Error::of_status(&status))
    }

    pub async fn link_slow(
        &self,
        from: &str,
        to: &str,
        one_way: bool,
        delay: Duration,
    ) -> Result<Vec<v1::Link>, Error> {
        let delay = wire_duration(delay);
        let request = v1::SlowRequest { from: from.to_owned(), to: to.to_owned(), one_way, delay };
        let reply = DevLinksClient::new(self.channel.clone()).slow(self.request(request)).await;
        reply.map(|reply| reply.into_inner().links).map_err(|status| Error::of_status(&status))
    }
}

/// One operation of a batch or stream.
impl Patch {
    pub fn operation(self, key: impl Into<Bytes>) -> v1::WriteOperation {
        let set = self.set.into_iter().map(|(name, value)| (name, value.into())).collect();
        let patch = v1::PatchRequest { key: key.into(), set, remove: self.remove, ..v1::PatchRequest::default() };
        v1::WriteOperation { operation: Some(Operation::Patch(patch)) }
    }
}

impl Value {
    /// A put of this value, for a batch or stream.
    pub fn operation(self, key: impl Into<Bytes>) -> v1::WriteOperation {
        let put = v1::PutRequest { key: key.into(), value: Some(self.into()), ..v1::PutRequest::default() };
        v1::WriteOperation { operation: Some(Operation::Put(put)) }
    }
}

pub(crate) fn outcomes(
    results: Vec<v1::WriteResult>,
    header: Option<&v1::ResponseHeader>,
) -> Vec<Result<Written, Error>> {
    let outcome = |result: v1::WriteResult| match result.outcome {
        Some(v1::write_result::Outcome::Applied(applied)) => Ok(Written::of_item(applied, header)),
        Some(v1::write_result::Outcome::Error(error)) => Err(Error::of_item(error)),
        None => Err(Error::local(Code::Unknown, crate::error::OUTCOME_UNKNOWN, "the result is empty".to_owned())),
    };
    results.into_iter().map(outcome).collect()
}

fn prepare(endpoint: &str, options: &Options) -> Result<Endpoint, Error> {
    let bad = |error: &dyn std::fmt::Display| {
        let message = format!("{endpoint:?} is not an endpoint like http://127.0.0.1:7400: {error}");
        Error::local(Code::InvalidArgument, "INVALID_FIELD", message)
    };
    let prepared = Endpoint::from_shared(endpoint.to_owned()).map_err(|error| bad(&error))?;
    if prepared.uri().authority().is_none() || prepared.uri().scheme().is_none() {
        return Err(bad(&"it names no scheme or host"));
    }
    let prepared = prepared
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5));
    if !endpoint.starts_with("https:") {
        return Ok(prepared);
    }
    let tls = ClientTlsConfig::new();
    let tls = match &options.ca_pem {
        Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
        None => tls,
    };
    prepared.tls_config(tls).map_err(|error| bad(&error))
}

/// Calls until it is done, or trying again is of no use or not safe.
pub(crate) async fn retrying<T, F: Future<Output = Result<T, Error>>>(
    retry: Retry,
    read: bool,
    call: impl Fn() -> F,
) -> Result<T, Error> {
    let mut attempt = 1;
    loop {
        let error = match call().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(wait) = retry.wait(&error, read, attempt, jitter()) else { return Err(error) };
        tracing::debug!(attempt, reason = error.reason, wait_ms = wait.as_millis() as u64, "trying again");
        tokio::time::sleep(wait).await;
        attempt += 1;
    }
}

/// In [0, 1).
fn jitter() -> f64 {
    StdRng::from_os_rng().random()
}

fn put_request(keyspace: &str, key: Bytes, value: Value, options: WriteOptions) -> v1::PutRequest {
    use v1::put_request::Precondition;
    let write = wire_options(&options);
    let precondition = match options.condition {
        Condition::None => None,
        Condition::Absent => Some(Precondition::IfAbsent(true)),
        Condition::Version(version) => Some(Precondition::IfVersion(version)),
    };
    v1::PutRequest {
        keyspace: keyspace.to_owned(),
        key,
        value: Some(value.into()),
        precondition,
        context: options.context,
        request_id: options.request_id,
        ttl: options.ttl.and_then(wire_duration),
        write,
    }
}

fn patch_request(keyspace: &str, key: Bytes, patch: Patch, options: WriteOptions) -> Result<v1::PatchRequest, Error> {
    let write = wire_options(&options);
    Ok(v1::PatchRequest {
        keyspace: keyspace.to_owned(),
        key,
        set: patch.set.into_iter().map(|(name, value)| (name, value.into())).collect(),
        remove: patch.remove,
        if_version: version_of(&options.condition, "patch")?,
        context: options.context,
        request_id: options.request_id,
        write,
    })
}

/// The version a write without `if_absent` is bound to; empty for none.
fn version_of(condition: &Condition, call: &str) -> Result<Bytes, Error> {
    match condition {
        Condition::None => Ok(Bytes::new()),
        Condition::Version(version) => Ok(version.clone()),
        Condition::Absent => {
            let message = format!("a {call} cannot be bound to the key's absence");
            Err(Error::local(Code::InvalidArgument, "INVALID_FIELD", message))
        }
    }
}

fn wire_options(options: &WriteOptions) -> Option<v1::WriteOptions> {
    let home = options.home.clone();
    (!home.is_empty()).then(|| v1::WriteOptions { home, ..v1::WriteOptions::default() })
}

fn wire_duration<D>(span: Duration) -> Option<D>
where
    D: TryFrom<Duration>,
{
    D::try_from(span).ok()
}
