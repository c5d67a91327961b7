//! How a client reaches its region: by a call of the node, or as clients do, through the real `Kv` service over a simulated
//! link, which may break.
//!
//! The law that is judged by its answers: an error means that nothing was done, unless it says OUTCOME_UNKNOWN or does not
//! come from isle at all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use isle::connection::Dial;
use isle_model::{Dot, FieldName, Incarnation, Mutation, Value};
use isle_node::{Consistency, GetRequest, Node, NodeError, PreconditionAsked, RequestContext, WriteRequest};
use isle_proto::v1::kv_client::KvClient;
use isle_proto::v1::value::Kind;
use isle_proto::v1::write_operation::Operation;
use isle_proto::v1::{self, put_request, write_result};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tonic_types::StatusExt;

use super::history::Op;
use super::keyspace_of;
use super::links::{CLIENT_PORT, Dialler};

/// As a client's own patience, where its request says no deadline.
const PATIENCE: Duration = Duration::from_secs(3);

/// What an answer says, whichever call it is of.
macro_rules! done {
    ($reply:expr) => {{
        let reply = $reply.into_inner();
        Answer::Done(reply.version, reply.header.map(|header| header.served_by))
    }};
}

#[derive(Clone)]
pub enum Door {
    Node(Arc<Node>),
    Wire(KvClient<Channel>),
}

#[derive(Clone, Debug)]
pub struct Ask {
    pub key: String,
    pub op: Op,
    pub condition: Condition,
    pub deadline: Option<Duration>,
}

#[derive(Clone, Debug)]
pub enum Condition {
    None,
    Absent,
    Version(Bytes),
    /// No condition, but a version token that the write covers.
    Context(Bytes),
}

#[derive(Clone, Debug)]
pub enum Answer {
    /// The version, and the region that carried it out, where that is told.
    Done(Bytes, Option<String>),
    Unknown(String),
    Refused(String),
}

/// What a reader was shown.
#[derive(Clone, Debug)]
pub struct Seen {
    pub version: Bytes,
    /// Every sibling, the shown one of each field first.
    pub values: Vec<(String, Dot, String)>,
}

impl Door {
    /// A channel to a region's client port, made when it is needed, and again after it broke.
    pub fn to_region(host: &str) -> Door {
        let endpoint = Endpoint::from_shared(format!("http://{host}:{CLIENT_PORT}")).expect("a sound endpoint");
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(1))
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(1));
        let dial = tower::service_fn(|uri: http::Uri| async move { Dialler.dial(&uri).await.map(TokioIo::new) });
        Door::Wire(KvClient::new(endpoint.connect_with_connector_lazy(dial)))
    }

    pub async fn read(&self, key: &str) -> Result<Seen, String> {
        let keyspace = keyspace_of(key).name.to_owned();
        match self {
            Door::Node(node) => {
                let request =
                    GetRequest { keyspace, key: Bytes::from(key.to_owned()), consistency: Consistency::Eventual };
                let reply = node.get(&RequestContext::default(), request).await.map_err(|error| error.to_string())?;
                let reading = reply.reading.unwrap_or_default();
                let of_field = |(name, siblings): (FieldName, Vec<isle_model::Sibling>)| {
                    let name = name.as_str().to_owned();
                    siblings.into_iter().map(move |s| (name.clone(), s.dot, text(&s.value.bytes)))
                };
                Ok(Seen { version: reply.version, values: reading.values.into_iter().flat_map(of_field).collect() })
            }
            Door::Wire(kv) => {
                let key = Bytes::from(key.to_owned());
                let request = v1::GetRequest { keyspace, key, siblings: true, read: None };
                let reply = kv.clone().get(timed(request, None)).await.map_err(|status| status.to_string())?;
                let entry = reply.into_inner().entry.ok_or("an answer without an entry")?;
                let values = entry.siblings.iter().map(sibling).collect::<Option<Vec<_>>>();
                Ok(Seen { version: entry.version, values: values.ok_or("a sibling that is not sound")? })
            }
        }
    }

    /// The version of a key as its home has it.
    pub async fn read_at_home(&self, key: &str) -> Result<Bytes, String> {
        let keyspace = keyspace_of(key).name.to_owned();
        let key = Bytes::from(key.to_owned());
        match self {
            Door::Node(node) => {
                let request = GetRequest { keyspace, key, consistency: Consistency::Strong };
                let deadline = Some(Instant::now() + PATIENCE);
                let reply = node.get(&RequestContext { deadline, ..RequestContext::default() }, request).await;
                Ok(reply.map_err(|error| error.to_string())?.version)
            }
            Door::Wire(kv) => {
                let strong = v1::ReadOptions { consistency: v1::Consistency::Strong.into(), ..Default::default() };
                let request = v1::GetRequest { keyspace, key, siblings: false, read: Some(strong) };
                let reply = kv.clone().get(timed(request, None)).await.map_err(|status| status.to_string())?;
                Ok(reply.into_inner().entry.ok_or("an answer without an entry")?.version)
            }
        }
    }

    pub async fn write(&self, ask: Ask) -> Answer {
        match self {
            Door::Node(node) => {
                let deadline = ask.deadline.map(|after| Instant::now() + after);
                let context = RequestContext { deadline, ..RequestContext::default() };
                match node.write(&context, request(&ask)).await {
                    Ok(reply) => Answer::Done(reply.version, Some(reply.served_by.to_string())),
                    Err(NodeError::OutcomeUnknown { reason }) => Answer::Unknown(reason),
                    Err(NodeError::Remote(error)) if error.reason == "OUTCOME_UNKNOWN" => {
                        Answer::Unknown(error.message)
                    }
                    Err(error) => Answer::Refused(error.to_string()),
                }
            }
            Door::Wire(kv) => {
                let (mut kv, deadline) = (kv.clone(), ask.deadline);
                let outcome = match operation(&ask) {
                    Operation::Put(m) => kv.put(timed(m, deadline)).await.map(|r| done!(r)),
                    Operation::Patch(m) => kv.patch(timed(m, deadline)).await.map(|r| done!(r)),
                    Operation::Increment(m) => kv.increment(timed(m, deadline)).await.map(|r| done!(r)),
                    Operation::Delete(m) => kv.delete(timed(m, deadline)).await.map(|r| done!(r)),
                };
                outcome.unwrap_or_else(|status| of_status(&status))
            }
        }
    }

    /// Several writes at once; an answer for each.
    pub async fn burst(&self, asks: Vec<Ask>, how: Burst) -> Vec<Answer> {
        match (self, how) {
            (Door::Wire(kv), Burst::Batch) => in_a_batch(kv.clone(), &asks).await,
            (Door::Wire(kv), Burst::Stream) => in_a_stream(kv.clone(), &asks).await,
            _ => futures::future::join_all(asks.into_iter().map(|ask| self.write(ask))).await,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burst {
    Apart,
    Batch,
    Stream,
}

async fn in_a_batch(mut kv: KvClient<Channel>, asks: &[Ask]) -> Vec<Answer> {
    let request = v1::BatchWriteRequest { operations: operations(asks), ..v1::BatchWriteRequest::default() };
    match kv.batch_write(timed(request, None)).await.map(Response::into_inner) {
        Ok(reply) => of_results(reply.results, asks.len()),
        Err(status) => vec![of_status(&status); asks.len()],
    }
}

/// One operation a message.
async fn in_a_stream(mut kv: KvClient<Channel>, asks: &[Ask]) -> Vec<Answer> {
    let messages: Vec<_> = (1..)
        .zip(operations(asks))
        .map(|(sequence, operation)| v1::WriteRequest {
            sequence,
            operations: vec![operation],
            ..v1::WriteRequest::default()
        })
        .collect();
    let mut results = Vec::new();
    let answers = async {
        let mut answers = kv.write(futures::stream::iter(messages)).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            results.extend(answer.results);
        }
        Ok::<(), Status>(())
    };
    // What has no result when it ends, however it ends, is unknown.
    let _ = tokio::time::timeout(PATIENCE, answers).await;
    of_results(results, asks.len())
}

fn of_results(results: Vec<v1::WriteResult>, count: usize) -> Vec<Answer> {
    let mut out: Vec<Answer> = results.into_iter().map(of_result).collect();
    out.resize(count, Answer::Unknown("it has no result".to_owned()));
    out
}

fn of_result(result: v1::WriteResult) -> Answer {
    match result.outcome {
        Some(write_result::Outcome::Applied(applied)) => Answer::Done(applied.version, None),
        Some(write_result::Outcome::Error(error)) if error.reason == "OUTCOME_UNKNOWN" => {
            Answer::Unknown(error.message)
        }
        Some(write_result::Outcome::Error(error)) => Answer::Refused(format!("{}: {}", error.reason, error.message)),
        None => Answer::Unknown("an empty result".to_owned()),
    }
}

/// What a client may conclude from a status, by the API's own rule.
fn of_status(status: &Status) -> Answer {
    match status.get_details_error_info().filter(|info| info.domain == v1::ERROR_DOMAIN) {
        Some(info) if info.reason != "OUTCOME_UNKNOWN" => {
            Answer::Refused(format!("{}: {}", info.reason, status.message()))
        }
        Some(_) => Answer::Unknown(status.message().to_owned()),
        None => Answer::Unknown(format!("{:?}, not of isle", status.code())),
    }
}

fn timed<T>(message: T, deadline: Option<Duration>) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.unwrap_or(PATIENCE));
    request
}

fn request(ask: &Ask) -> WriteRequest {
    let (precondition, context) = match &ask.condition {
        Condition::None => (PreconditionAsked::None, None),
        Condition::Absent => (PreconditionAsked::Absent, None),
        Condition::Version(token) => (PreconditionAsked::Version(token.clone()), None),
        Condition::Context(token) => (PreconditionAsked::None, Some(token.clone())),
    };
    let (keyspace, key) = (keyspace_of(&ask.key).name, Bytes::from(ask.key.clone()));
    WriteRequest { precondition, context, ..WriteRequest::new(keyspace, key, mutation(&ask.op)) }
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

fn operations(asks: &[Ask]) -> Vec<v1::WriteOperation> {
    asks.iter().map(|ask| v1::WriteOperation { operation: Some(operation(ask)) }).collect()
}

/// What the wire cannot say of an operation (an increment has no condition, only a put may ask for absence) is left out.
fn operation(ask: &Ask) -> Operation {
    let (keyspace, key) = (keyspace_of(&ask.key).name.to_owned(), Bytes::from(ask.key.clone()));
    let (if_version, context) = match &ask.condition {
        Condition::Version(token) => (token.clone(), Bytes::new()),
        Condition::Context(token) => (Bytes::new(), token.clone()),
        Condition::None | Condition::Absent => (Bytes::new(), Bytes::new()),
    };
    match &ask.op {
        Op::Put { value } => {
            let precondition = match &ask.condition {
                Condition::Absent => Some(put_request::Precondition::IfAbsent(true)),
                Condition::Version(token) => Some(put_request::Precondition::IfVersion(token.clone())),
                Condition::None | Condition::Context(_) => None,
            };
            let value = Some(string(value));
            Operation::Put(v1::PutRequest { keyspace, key, value, precondition, context, ..v1::PutRequest::default() })
        }
        Op::Patch { set, remove } => Operation::Patch(v1::PatchRequest {
            keyspace,
            key,
            set: set.iter().map(|(name, value)| (name.clone(), string(value))).collect(),
            remove: remove.clone(),
            if_version,
            context,
            ..v1::PatchRequest::default()
        }),
        Op::Delete => {
            Operation::Delete(v1::DeleteRequest { keyspace, key, if_version, context, ..v1::DeleteRequest::default() })
        }
        Op::Increment { field, amount } => Operation::Increment(v1::IncrementRequest {
            keyspace,
            key,
            field: field.clone(),
            amount: *amount,
            ..v1::IncrementRequest::default()
        }),
    }
}

fn string(value: &str) -> v1::Value {
    v1::Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

fn sibling(from: &v1::Sibling) -> Option<(String, Dot, String)> {
    let (incarnation, seq) = from.dot.split_once(':')?;
    let dot = Dot::new(Incarnation(u64::from_str_radix(incarnation, 16).ok()?), seq.parse().ok()?);
    match from.value.as_ref()?.kind.as_ref()? {
        Kind::StringValue(text) => Some((from.field.clone(), dot, text.clone())),
        _ => None,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
