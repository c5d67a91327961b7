//! Writes as a client asks for them, checked once: what comes alone, in a batch, in a stream, or forwarded by another region.

use bytes::Bytes;
use isle_model::metadata::is_name;
use isle_model::{FieldName, Mutation, Region};
use isle_node::{PreconditionAsked, WriteRequest};
use isle_proto::v1;
use isle_proto::v1::put_request::Precondition;
use isle_proto::v1::write_operation::Operation;
use tonic::Status;

use super::wire;
use crate::status_table::{bad_field, not_served};

pub fn of_operation(operation: v1::WriteOperation, keyspace: &str) -> Result<WriteRequest, Status> {
    let operation = operation.operation.ok_or_else(|| bad_field("operation", "is missing"))?;
    let mut asked = match operation {
        Operation::Put(request) => put(request),
        Operation::Patch(request) => patch(request),
        Operation::Increment(request) => increment(request),
        Operation::Delete(request) => delete(request),
    }?;
    if asked.keyspace.is_empty() {
        asked.keyspace = keyspace.to_owned();
    }
    Ok(asked)
}

pub fn put(request: v1::PutRequest) -> Result<WriteRequest, Status> {
    let v1::PutRequest { keyspace, key, value, precondition, context, request_id, ttl, write } = request;
    let Options { home, forward } = options(write)?;
    if ttl.is_some() {
        return Err(not_served("ttl"));
    }
    let precondition = match precondition {
        None | Some(Precondition::IfAbsent(false)) => PreconditionAsked::None,
        Some(Precondition::IfAbsent(true)) => PreconditionAsked::Absent,
        Some(Precondition::IfVersion(version)) if version.is_empty() => {
            return Err(bad_field("if_version", "is empty"));
        }
        Some(Precondition::IfVersion(version)) => PreconditionAsked::Version(version),
    };
    let mutation = Mutation::Put { value: wire::to_value(value, "value")? };
    let context = token(context);
    let write = WriteRequest::new(keyspace, key, mutation);
    Ok(WriteRequest { precondition, context, request_id, home, forward, ..write })
}

pub fn patch(request: v1::PatchRequest) -> Result<WriteRequest, Status> {
    let v1::PatchRequest { keyspace, key, set, remove, if_version, context, request_id, write } = request;
    let Options { home, forward } = options(write)?;
    if set.keys().chain(&remove).any(String::is_empty) {
        return Err(bad_field("set", "a field's name is empty; the unnamed field is written by Put"));
    }
    let set = set.into_iter().map(|(name, value)| Ok((FieldName::new(&name), wire::to_value(Some(value), "set")?)));
    let set = set.collect::<Result<_, Status>>()?;
    let remove = remove.iter().map(|name| FieldName::new(name)).collect();
    let (mutation, precondition) = (Mutation::Patch { set, remove }, condition(if_version));
    let context = token(context);
    let write = WriteRequest::new(keyspace, key, mutation);
    Ok(WriteRequest { precondition, context, request_id, home, forward, ..write })
}

pub fn increment(request: v1::IncrementRequest) -> Result<WriteRequest, Status> {
    let v1::IncrementRequest { keyspace, key, field, amount, request_id, write } = request;
    let Options { home, forward } = options(write)?;
    let mutation = Mutation::Increment { field: FieldName::new(&field), amount };
    Ok(WriteRequest { request_id, home, forward, ..WriteRequest::new(keyspace, key, mutation) })
}

pub fn delete(request: v1::DeleteRequest) -> Result<WriteRequest, Status> {
    let v1::DeleteRequest { keyspace, key, if_version, context, request_id, write } = request;
    let Options { home, forward } = options(write)?;
    let (mutation, precondition) = (Mutation::Delete, condition(if_version));
    let context = token(context);
    let write = WriteRequest::new(keyspace, key, mutation);
    Ok(WriteRequest { precondition, context, request_id, home, forward, ..write })
}

fn condition(if_version: Bytes) -> PreconditionAsked {
    if if_version.is_empty() { PreconditionAsked::None } else { PreconditionAsked::Version(if_version) }
}

fn token(token: Bytes) -> Option<Bytes> {
    Some(token).filter(|token| !token.is_empty())
}

/// How to write.
struct Options {
    home: Option<Region>,
    forward: bool,
}

/// Refuses what is in the API and not served yet.
fn options(options: Option<v1::WriteOptions>) -> Result<Options, Status> {
    let Some(v1::WriteOptions { forward, home, session_token }) = options else {
        return Ok(Options { home: None, forward: true });
    };
    if !session_token.is_empty() {
        return Err(not_served("write.session_token"));
    }
    if !home.is_empty() && !is_name(&home) {
        return Err(bad_field("write.home", "is no name of a region"));
    }
    let home = Some(home).filter(|home| !home.is_empty()).map(|home| Region::new(&home));
    let forward =
        v1::Forward::try_from(forward).map_err(|_| bad_field("write.forward", format!("{forward} is unknown")))?;
    Ok(Options { home, forward: forward != v1::Forward::Never })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_not_served_yet_is_refused() {
        let token = v1::WriteOptions { session_token: "x".into(), ..v1::WriteOptions::default() };
        assert_eq!(options(Some(token)).err().unwrap().code(), tonic::Code::Unimplemented);
        let home = v1::WriteOptions { home: "no name".to_owned(), ..v1::WriteOptions::default() };
        assert_eq!(options(Some(home)).err().unwrap().code(), tonic::Code::InvalidArgument);
        assert!(options(None).unwrap().forward);
    }
}
