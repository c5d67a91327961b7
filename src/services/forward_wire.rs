//! Requests that one region forwards to another, between the wire and the node.
//!
//! A write travels as the `WriteOperation` that a client would have sent, and an error as the `ItemError` that it would have got:
//! so whoever forwarded hands both on as they are.

use std::sync::Arc;
use std::time::Duration;

use isle_model::{Epoch, KeyspaceId, Mutation, Region, Value};
use isle_node::peer::{ForwardError, ForwardRequest, PeerError, ReadReply, ReadRequest};
use isle_node::{NodeError, PreconditionAsked, RemoteError, RequestContext, Versions, WriteReply, WriteRequest};
use isle_proto::v1::forwarded_operation::Operation as Forwarding;
use isle_proto::v1::{self, write_operation::Operation};
use isle_proto::{convert, storage};
use tokio::time::Instant;
use tonic::Status;
use tonic_types::StatusExt;

use super::operation;
use super::peer_wire::{Identity, corrupt};
use super::wire;
use crate::status_table::{bad_field, item_of, item_of_node};

/// Where a deadline is too far away to be a moment.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

pub fn forward_request(identity: &Identity, from: ForwardRequest) -> v1::ForwardRequest {
    v1::ForwardRequest {
        caller: identity.caller(),
        keyspace: from.keyspace.0,
        operations: from.writes.into_iter().map(operation_of).collect(),
        omit_versions: from.versions == Versions::Omitted,
        client: from.caller.to_string(),
        traceparent: from.traceparent.unwrap_or_default(),
        timeout: wire::span(from.timeout),
    }
}

fn operation_of(from: WriteRequest) -> v1::ForwardedOperation {
    let WriteRequest { key, mutation, precondition, context, request_id, home, epoch, .. } = from;
    let context = context.unwrap_or_default();
    // The home that was asked for, but not to be forwarded again.
    let options = v1::WriteOptions { home: wire::name_of(home.as_ref()), ..v1::WriteOptions::default() };
    let (keyspace, write) = (String::new(), Some(options));
    let if_version = match &precondition {
        PreconditionAsked::Version(version) => version.clone(),
        PreconditionAsked::None | PreconditionAsked::Absent => bytes::Bytes::new(),
    };
    let value = |value: &Value| wire::value(value);
    let operation = match mutation {
        Mutation::Put { value: given } => {
            let precondition = match precondition {
                PreconditionAsked::None => None,
                PreconditionAsked::Absent => Some(v1::put_request::Precondition::IfAbsent(true)),
                PreconditionAsked::Version(version) => Some(v1::put_request::Precondition::IfVersion(version)),
            };
            let value = Some(value(&given));
            let put = v1::PutRequest { keyspace, key, value, precondition, context, request_id, ttl: None, write };
            Operation::Put(put)
        }
        Mutation::Patch { set, remove } => Operation::Patch(v1::PatchRequest {
            keyspace,
            key,
            set: set.iter().map(|(name, given)| (name.as_str().to_owned(), value(given))).collect(),
            remove: remove.iter().map(|name| name.as_str().to_owned()).collect(),
            if_version,
            context,
            request_id,
            write,
        }),
        Mutation::Increment { field, amount } => {
            let field = field.as_str().to_owned();
            Operation::Increment(v1::IncrementRequest { keyspace, key, field, amount, request_id, write })
        }
        Mutation::Delete => {
            Operation::Delete(v1::DeleteRequest { keyspace, key, if_version, context, request_id, write })
        }
        Mutation::Move { to } => {
            let operation = Forwarding::Move(v1::HomeMove { key, to: to.to_string(), epoch: epoch.0 });
            return v1::ForwardedOperation { operation: Some(operation) };
        }
    };
    let write = v1::WriteOperation { operation: Some(operation) };
    v1::ForwardedOperation { operation: Some(Forwarding::Write(write)) }
}

/// A forwarded request, and what is wrong with single operations of it. Both in their order.
pub struct Forwarded {
    pub request: ForwardRequest,
    pub context: RequestContext,
    /// For each operation, why it cannot be carried out, if it is not in the request.
    pub faults: Vec<Option<Status>>,
}

pub fn to_forward_request(identity: &Identity, from: v1::ForwardRequest) -> Result<Forwarded, PeerError> {
    let asker = identity.check(from.caller)?;
    let timeout = to_timeout(from.timeout)?;
    let (mut writes, mut faults) = (Vec::new(), Vec::new());
    for one in from.operations {
        match to_write(one) {
            Ok(write) => {
                writes.push(write);
                faults.push(None);
            }
            Err(status) => faults.push(Some(status)),
        }
    }
    let caller: Arc<str> = Arc::from(from.client);
    let traceparent = Some(from.traceparent).filter(|trace| !trace.is_empty());
    let deadline = Some(Instant::now() + timeout);
    let context = RequestContext { caller: caller.clone(), deadline, traceparent: traceparent.clone(), hops: 1 };
    let versions = if from.omit_versions { Versions::Omitted } else { Versions::Shown };
    let keyspace = KeyspaceId(from.keyspace);
    let request = ForwardRequest { asker, keyspace, writes, versions, caller, traceparent, timeout };
    Ok(Forwarded { request, context, faults })
}

fn to_write(from: v1::ForwardedOperation) -> Result<WriteRequest, Status> {
    match from.operation.ok_or_else(|| bad_field("operation", "is missing"))? {
        Forwarding::Write(write) => operation::of_operation(write, ""),
        Forwarding::Move(v1::HomeMove { key, to, epoch }) => {
            let to = convert::to_region(&to).map_err(|error| bad_field("to", error))?;
            Ok(WriteRequest { epoch: Epoch(epoch), ..WriteRequest::new("", key, Mutation::Move { to }) })
        }
    }
}

fn to_timeout(from: Option<prost_types::Duration>) -> Result<Duration, PeerError> {
    let timeout = from.ok_or_else(|| corrupt("a request without its timeout"))?;
    Ok(Duration::try_from(timeout).map_err(corrupt)?.min(TIMEOUT_MAX))
}

pub fn forward_response(
    replies: Vec<Result<WriteReply, NodeError>>,
    faults: Vec<Option<Status>>,
) -> v1::ForwardResponse {
    let mut replies = replies.into_iter();
    let outcome = |fault: Option<Status>| match fault {
        Some(status) => failed(item_of(&status)),
        None => match replies.next().expect("the node answers every write of a batch") {
            Ok(reply) => written(reply),
            Err(error) => failed(item_of_node(&error)),
        },
    };
    v1::ForwardResponse { results: faults.into_iter().map(outcome).collect() }
}

fn written(from: WriteReply) -> v1::ForwardResult {
    let WriteReply { version, home, home_epoch, replayed, value, found, .. } = from;
    let applied = v1::WriteApplied { version, replayed, value, found: Some(found) };
    v1::ForwardResult {
        home: wire::name_of(home.as_ref()),
        home_epoch: home_epoch.0,
        outcome: Some(v1::forward_result::Outcome::Applied(applied)),
    }
}

fn failed(error: v1::ItemError) -> v1::ForwardResult {
    let outcome = Some(v1::forward_result::Outcome::Error(error));
    v1::ForwardResult { outcome, ..v1::ForwardResult::default() }
}

/// `region`: who has answered.
pub fn to_forward_replies(
    region: &Region,
    from: v1::ForwardResponse,
) -> Result<Vec<Result<WriteReply, NodeError>>, ForwardError> {
    from.results.into_iter().map(|result| to_forward_reply(region, result)).collect()
}

fn to_forward_reply(region: &Region, from: v1::ForwardResult) -> Result<Result<WriteReply, NodeError>, ForwardError> {
    use v1::forward_result::Outcome;
    // It was carried out, or not: what is answered so that it cannot be read says neither.
    let lost = |reason: String| ForwardError::Lost { reason };
    match from.outcome {
        Some(Outcome::Applied(applied)) => {
            let home = Some(from.home).filter(|home| !home.is_empty());
            let home = home.map(|home| convert::to_region(&home)).transpose();
            Ok(Ok(WriteReply {
                version: applied.version,
                home: home.map_err(|error| lost(error.to_string()))?,
                home_epoch: isle_model::Epoch(from.home_epoch),
                served_by: region.clone(),
                replayed: applied.replayed,
                value: applied.value,
                found: applied.found.unwrap_or_default(),
            }))
        }
        Some(Outcome::Error(error)) => Ok(Err(NodeError::Remote(Box::new(remote(error))))),
        None => Err(lost("an empty result".to_owned())),
    }
}

fn remote(from: v1::ItemError) -> RemoteError {
    RemoteError {
        code: from.code,
        reason: from.reason,
        message: from.message,
        facts: from.metadata.into_iter().collect(),
        retry_after: from.retry_delay.and_then(|delay| delay.try_into().ok()),
        field: from.field,
    }
}

/// What a region refused, or nothing that isle has said: then nobody knows what became of it.
pub fn to_forward_error(status: &Status) -> ForwardError {
    let info = status.get_details_error_info();
    match info.is_some_and(|info| info.domain == v1::ERROR_DOMAIN) {
        true => ForwardError::Refused(Box::new(remote(item_of(status)))),
        false => ForwardError::Lost { reason: format!("{:?}: {}", status.code(), status.message()) },
    }
}

pub fn read_request(identity: &Identity, from: ReadRequest) -> v1::ReadRequest {
    let ReadRequest { keyspace, key, timeout, .. } = from;
    v1::ReadRequest { caller: identity.caller(), keyspace: keyspace.0, key, timeout: wire::span(timeout) }
}

pub fn to_read_request(identity: &Identity, from: v1::ReadRequest) -> Result<ReadRequest, PeerError> {
    let (asker, timeout) = (identity.check(from.caller)?, to_timeout(from.timeout)?);
    Ok(ReadRequest { asker, keyspace: KeyspaceId(from.keyspace), key: from.key, timeout })
}

pub fn read_response(from: &ReadReply) -> v1::ReadResponse {
    v1::ReadResponse {
        rows: from.rows.iter().map(|(incarnation, row)| convert::row(*incarnation, row)).collect(),
        record: Some(convert::record(&from.record)),
        home: wire::name_of(from.home.as_ref()),
    }
}

pub fn to_read_reply(from: v1::ReadResponse) -> Result<ReadReply, ForwardError> {
    let lost = |error: convert::Unsound| ForwardError::Lost { reason: error.to_string() };
    let record: storage::Record = from.record.unwrap_or_default();
    let home = Some(from.home).filter(|home| !home.is_empty());
    Ok(ReadReply {
        rows: convert::to_rows(from.rows).map_err(lost)?,
        record: convert::to_record(record).map_err(lost)?,
        home: home.map(|home| convert::to_region(&home)).transpose().map_err(lost)?,
    })
}

/// A batch that no client could have sent.
pub fn check_size(request: &v1::ForwardRequest) -> Result<(), Status> {
    let most = isle_model::limits::BATCH_ITEMS_MAX;
    match request.operations.len() {
        n if n > most => Err(bad_field("operations", format!("has {n} items, more than {most}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use isle_model::FieldName;

    fn identity() -> Identity {
        Identity { cluster: "c".to_owned(), region: Region::new("us") }
    }

    fn write(mutation: Mutation, precondition: PreconditionAsked) -> WriteRequest {
        WriteRequest {
            keyspace: String::new(),
            key: "k".into(),
            mutation,
            precondition,
            context: Some("seen".into()),
            request_id: "r-1".to_owned(),
            home: Some(Region::new("eu")),
            epoch: Epoch::default(),
            forward: true,
        }
    }

    #[test]
    fn every_write_comes_through_as_it_was_asked() {
        let name = FieldName::new("f");
        let patch = Mutation::Patch { set: vec![(name.clone(), Value::i64(4))], remove: vec![FieldName::new("g")] };
        let increment = Mutation::Increment { field: name, amount: -3 };
        let moved = WriteRequest {
            request_id: String::new(),
            context: None,
            home: None,
            epoch: Epoch(9),
            ..write(Mutation::Move { to: Region::new("eu") }, PreconditionAsked::None)
        };
        let writes = vec![
            write(Mutation::Put { value: Value::string("v") }, PreconditionAsked::None),
            write(Mutation::Put { value: Value::bytes("v") }, PreconditionAsked::Absent),
            write(Mutation::Put { value: Value::bool(true) }, PreconditionAsked::Version("1".into())),
            write(patch, PreconditionAsked::Version("1".into())),
            WriteRequest { context: None, ..write(increment, PreconditionAsked::None) },
            write(Mutation::Delete, PreconditionAsked::None),
            moved,
        ];
        let sent = ForwardRequest {
            asker: Region::new("us"),
            keyspace: KeyspaceId(7),
            writes: writes.clone(),
            versions: Versions::Omitted,
            caller: Arc::from("10.0.0.1"),
            traceparent: Some("00-ab".to_owned()),
            timeout: Duration::from_millis(250),
        };
        let Forwarded { request, context, faults } =
            to_forward_request(&identity(), forward_request(&identity(), sent)).unwrap();
        assert!(faults.iter().all(Option::is_none));
        assert_eq!((request.asker.as_str(), request.keyspace), ("us", KeyspaceId(7)));
        assert_eq!((request.versions, request.timeout), (Versions::Omitted, Duration::from_millis(250)));
        assert_eq!((context.hops, &*context.caller, context.traceparent.as_deref()), (1, "10.0.0.1", Some("00-ab")));
        for (came, sent) in request.writes.iter().zip(&writes) {
            assert_eq!(came.mutation, sent.mutation);
            assert_eq!(came.precondition, sent.precondition);
            assert_eq!((&came.context, &came.request_id, &came.home), (&sent.context, &sent.request_id, &sent.home));
            assert_eq!((&came.key, came.epoch), (&sent.key, sent.epoch));
        }
    }

    #[test]
    fn an_error_is_told_on_as_it_was_said() {
        let said = NodeError::KeyExists { current: "v1".into() };
        let replies = vec![Err(said.clone()), Err(NodeError::OutcomeUnknown { reason: "x".to_owned() })];
        let came = forward_response(replies, vec![None, Some(bad_field("key", "is empty")), None]);
        let came = to_forward_replies(&Region::new("eu"), came).unwrap();
        let told: Vec<_> = came.iter().map(|reply| item_of_node(reply.as_ref().unwrap_err())).collect();
        assert_eq!(told[0], item_of_node(&said));
        assert_eq!((told[1].reason.as_str(), told[1].field.as_str()), ("INVALID_FIELD", "key"));
        assert_eq!(told[2].reason, "OUTCOME_UNKNOWN");
        let whole = to_forward_error(&crate::status_table::of_node(&said));
        assert!(matches!(whole, ForwardError::Refused(error) if error.reason == "KEY_EXISTS"));
        assert!(matches!(to_forward_error(&Status::unavailable("reset")), ForwardError::Lost { .. }));
    }

    #[test]
    fn a_reply_comes_through() {
        let reply = WriteReply {
            version: "v1".into(),
            home: Some(Region::new("eu")),
            home_epoch: Epoch(9),
            served_by: Region::new("eu"),
            replayed: false,
            value: Some(-1),
            found: true,
        };
        let came = forward_response(vec![Ok(reply.clone())], vec![None]);
        assert_eq!(to_forward_replies(&Region::new("eu"), came), Ok(vec![Ok(reply)]));
    }
}
