//! The one table from what went wrong to what a client is told: code, reason, details. Nothing else makes a `Status` of an
//! isle error.
//!
//! Every status carries ErrorInfo with the domain `isle.v1`. A status without it did not come from here, so its
//! outcome is unknown. Only OUTCOME_UNKNOWN is ever said of a write that may take effect.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use isle_model::metadata::Refused;
use isle_model::policy::Fault;
use isle_node::peer::PeerError;
use isle_node::{ChangeError, MoveError, NodeError, RemoteError};
use isle_proto::v1::{self, ErrorReason as Reason};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::etag;

/// One row of the table.
struct Row {
    code: Code,
    reason: Reason,
    facts: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
    /// The request's field at fault.
    field: Option<&'static str>,
    /// Where there may be several: each field, and the rule that it breaks.
    violations: Vec<(String, String)>,
    /// What is used up.
    quota: Option<&'static str>,
}

impl Row {
    fn new(code: Code, reason: Reason) -> Row {
        Row { code, reason, facts: Vec::new(), retry_after: None, field: None, violations: Vec::new(), quota: None }
    }

    fn fact(mut self, name: &'static str, value: impl ToString) -> Row {
        self.facts.push((name, value.to_string()));
        self
    }

    fn retry_after(mut self, after: Duration) -> Row {
        self.retry_after = Some(after);
        self
    }

    fn retry_if_unavailable(self) -> Row {
        if self.code == Code::Unavailable { self.retry_after(Duration::from_secs(1)) } else { self }
    }

    fn field(mut self, field: &'static str) -> Row {
        self.field = Some(field);
        self
    }

    /// Of settings of a keyspace.
    fn settings(mut self, faults: &[Fault]) -> Row {
        let violation = |fault: &Fault| (format!("keyspace.policy.{}", fault.field), fault.rule.clone());
        self.violations = faults.iter().map(violation).collect();
        self
    }

    fn quota(mut self, subject: &'static str) -> Row {
        self.quota = Some(subject);
        self
    }

    fn status(self, message: String) -> Status {
        let message = brief(message);
        let short = |(_, fact): &(&str, String)| fact.len() <= FACT_BYTES_MAX;
        let facts: HashMap<String, String> =
            self.facts.into_iter().filter(short).map(|(k, v)| (k.to_owned(), v)).collect();
        let mut details = ErrorDetails::with_error_info(self.reason.as_str_name(), v1::ERROR_DOMAIN, facts);
        if let Some(after) = self.retry_after {
            details.set_retry_info(Some(after));
        }
        if let Some(field) = self.field {
            details.add_bad_request_violation(field, message.clone());
        }
        let mut left = VIOLATIONS_BYTES_MAX;
        for (field, rule) in self.violations {
            let Some(rest) = left.checked_sub(field.len() + rule.len()) else { break };
            left = rest;
            details.add_bad_request_violation(field, rule);
        }
        if let Some(subject) = self.quota {
            details.add_quota_failure_violation(subject, message.clone());
        }
        Status::with_error_details(self.code, message, details)
    }
}

/// What the caller sent is told back to him in an error. Statuses travel in headers, and a client that gets more of those than it
/// reads drops the connection. So a message is cut, and a fact that is too long is left out.
const MESSAGE_BYTES_MAX: usize = 1024;
const FACT_BYTES_MAX: usize = 4096;
/// All of them together; those behind are left out.
const VIOLATIONS_BYTES_MAX: usize = 4096;

fn brief(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let cut = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at));
        message.truncate(cut.unwrap_or_default());
        message.push('…');
    }
    message
}

pub fn of_node(error: &NodeError) -> Status {
    if let NodeError::Remote(error) = error {
        return of_remote(error);
    }
    row_of_node(error).status(error.to_string())
}

/// What another region said, as it said it.
fn of_remote(error: &RemoteError) -> Status {
    let facts: HashMap<String, String> = error.facts.clone().into_iter().collect();
    let mut details = ErrorDetails::with_error_info(&error.reason, v1::ERROR_DOMAIN, facts);
    if let Some(after) = error.retry_after {
        details.set_retry_info(Some(after));
    }
    if !error.field.is_empty() {
        details.add_bad_request_violation(&error.field, &error.message);
    }
    Status::with_error_details(Code::from(error.code), &error.message, details)
}

fn row_of_node(error: &NodeError) -> Row {
    match error {
        NodeError::NotHome { home, endpoint, epoch } => Row::new(Code::FailedPrecondition, Reason::NotHome)
            .fact("home", home)
            .fact("endpoint", endpoint)
            .fact("epoch", epoch.0),
        NodeError::HomeUnreachable { home, .. } => {
            Row::new(Code::Unavailable, Reason::HomeUnreachable).fact("home", home).retry_after(Duration::from_secs(1))
        }
        NodeError::TooFewHolders { needed, connected } => Row::new(Code::Unavailable, Reason::HomeUnreachable)
            .fact("needed", needed)
            .fact("connected", connected)
            .retry_after(Duration::from_secs(1)),
        // Handed on before it comes here.
        NodeError::Remote(_) => Row::new(Code::Unknown, Reason::OutcomeUnknown),
        NodeError::BadField { field, .. } | NodeError::BadToken { field, .. } => {
            Row::new(Code::InvalidArgument, Reason::InvalidField).field(field)
        }
        NodeError::UnknownKeyspace { name, .. } => {
            Row::new(Code::NotFound, Reason::KeyspaceNotFound).fact("keyspace", name)
        }
        NodeError::ResidencyViolation { keyspace, holders } => {
            let holders: Vec<_> = holders.iter().map(isle_model::Region::as_str).collect();
            Row::new(Code::PermissionDenied, Reason::ResidencyViolation)
                .fact("keyspace", keyspace)
                .fact("regions", holders.join(","))
        }
        NodeError::VersionMismatch { current } => {
            Row::new(Code::Aborted, Reason::VersionMismatch).fact("version", BASE64.encode(current))
        }
        NodeError::KeyExists { current } => {
            Row::new(Code::AlreadyExists, Reason::KeyExists).fact("version", BASE64.encode(current))
        }
        NodeError::WrongKind { name, there, .. } => Row::new(Code::FailedPrecondition, Reason::WrongKind)
            .fact("field", name.as_str())
            .fact("kind", kind_name(*there)),
        NodeError::SessionNotReached { incarnation } => Row::new(Code::Unavailable, Reason::SessionNotReached)
            .fact("incarnation", incarnation)
            .retry_after(Duration::from_millis(100)),
        NodeError::StalenessBoundExceeded { staleness, .. } => {
            let row =
                Row::new(Code::Unavailable, Reason::StalenessBoundExceeded).retry_after(Duration::from_millis(500));
            match staleness {
                Some(staleness) => row.fact("lag_ms", staleness.as_millis()),
                None => row,
            }
        }
        NodeError::Overloaded { what, retry_after } => {
            Row::new(Code::ResourceExhausted, Reason::QueueFull).quota(what).retry_after(*retry_after)
        }
        NodeError::DiskFull { retry_after } => {
            Row::new(Code::ResourceExhausted, Reason::DiskFull).quota("disk").retry_after(*retry_after)
        }
        NodeError::DeadlineExpired => Row::new(Code::DeadlineExceeded, Reason::DeadlineExpired),
        NodeError::OutcomeUnknown { .. } => Row::new(Code::Unknown, Reason::OutcomeUnknown),
        NodeError::WritesStopped { reason } => Row::new(Code::Unavailable, Reason::WritesStopped).fact("cause", reason),
        NodeError::ClockAhead { .. } => Row::new(Code::Unavailable, Reason::WritesStopped).fact("cause", error),
        NodeError::Stopped { .. } => Row::new(Code::Unavailable, Reason::NotServing)
            .fact("state", "DRAINING")
            .retry_after(Duration::from_secs(1)),
        NodeError::Completing => Row::new(Code::Unavailable, Reason::NotServing)
            .fact("state", "COMPLETING")
            .retry_after(Duration::from_secs(1)),
        NodeError::Joining => {
            Row::new(Code::Unavailable, Reason::NotServing).fact("state", "JOINING").retry_after(Duration::from_secs(1))
        }
        NodeError::TakingKeyspace { keyspace } => Row::new(Code::Unavailable, Reason::NotServing)
            .fact("state", "TAKING")
            .fact("keyspace", keyspace)
            .retry_after(Duration::from_secs(1)),
        NodeError::Leaving => {
            Row::new(Code::Unavailable, Reason::NotServing).fact("state", "LEAVING").retry_after(Duration::from_secs(1))
        }
        NodeError::Unimplemented { what } => Row::new(Code::Unimplemented, Reason::NotServed).fact("field", what),
        NodeError::ReadFailed { .. } => Row::new(Code::DataLoss, Reason::ChecksumMismatch).fact("where", "storage"),
    }
}

fn kind_name(kind: isle_model::Kind) -> &'static str {
    match kind {
        isle_model::Kind::Value => "value",
        isle_model::Kind::Counter => "counter",
        isle_model::Kind::Home => "home",
    }
}

/// What went wrong with one item of a batch, where the call itself is fine.
pub fn item_of_node(error: &NodeError) -> v1::ItemError {
    item_of(&of_node(error))
}

/// The same facts as in a status that this table made.
pub fn item_of(status: &Status) -> v1::ItemError {
    let info = status.get_details_error_info();
    let violation = status.get_details_bad_request().and_then(|mut bad| bad.field_violations.pop());
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    v1::ItemError {
        code: status.code().into(),
        reason: info.as_ref().map(|info| info.reason.clone()).unwrap_or_default(),
        message: status.message().to_owned(),
        metadata: info.map(|info| info.metadata.into_iter().collect()).unwrap_or_default(),
        retry_delay: delay.and_then(|delay| delay.try_into().ok()),
        field: violation.map(|violation| violation.field).unwrap_or_default(),
    }
}

/// A field of a request that says nothing sound.
pub fn bad_field(field: &'static str, reason: impl std::fmt::Display) -> Status {
    Row::new(Code::InvalidArgument, Reason::InvalidField).field(field).status(format!("{field}: {reason}"))
}

/// A field that is in the API and not served yet: it is refused, never ignored.
pub fn not_served(field: &'static str) -> Status {
    of_node(&NodeError::Unimplemented { what: field })
}

/// The reply to an item would make the reply too large.
pub fn reply_full() -> Status {
    let row = Row::new(Code::ResourceExhausted, Reason::QuotaExceeded).quota("reply bytes");
    row.retry_after(Duration::ZERO).status("the reply is full; ask again for the rest".to_owned())
}

/// Requests that are still on their way take as much memory as they may.
pub fn too_many_request_bytes() -> Status {
    let row = Row::new(Code::ResourceExhausted, Reason::QueueFull).quota("request bytes");
    row.retry_after(Duration::from_millis(50))
        .status("the requests on their way here take as much as they may".to_owned())
}

/// The node serves as many requests as it may.
pub fn too_many_requests() -> Status {
    let row = Row::new(Code::ResourceExhausted, Reason::QueueFull).quota("requests");
    row.retry_after(Duration::from_millis(50)).status("the node serves as many requests as it may".to_owned())
}

/// A request that announces more than is read at all.
pub fn request_too_large(bytes: usize, most: usize) -> Status {
    bad_field("request", format!("has {bytes} bytes, more than {most}"))
}

/// A request that was begun and did not come to its end.
pub fn request_late() -> Status {
    Row::new(Code::DeadlineExceeded, Reason::DeadlineExpired).status("the request took too long to come".to_owned())
}

/// What the transport refused before anything was done: it could not read the request, or knows no such method.
pub fn of_transport(status: &Status, path: &str) -> Status {
    match status.code() {
        Code::Unimplemented => Row::new(Code::Unimplemented, Reason::NotServed)
            .fact("method", path)
            .status(format!("there is no method {path} here")),
        _ => bad_field("request", format!("cannot be read: {}", status.message())),
    }
}

/// Settings that say nothing sound.
pub fn bad_settings(faults: &[Fault]) -> Status {
    Row::new(Code::InvalidArgument, Reason::InvalidField).settings(faults).status(listed(faults))
}

/// A policy that cannot be kept.
pub fn incompatible_settings(faults: &[Fault]) -> Status {
    Row::new(Code::InvalidArgument, Reason::IncompatibleSettings).settings(faults).status(listed(faults))
}

/// Settings that are in the API and not served yet.
pub fn settings_not_served(faults: &[Fault]) -> Status {
    let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_ref()).collect();
    let row = Row::new(Code::Unimplemented, Reason::NotServed).fact("field", fields.join(","));
    row.settings(faults).status(listed(faults))
}

fn listed(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")
}

pub fn unknown_keyspace(name: &str) -> Status {
    let row = Row::new(Code::NotFound, Reason::KeyspaceNotFound).fact("keyspace", name);
    row.status(format!("there is no keyspace {name:?}"))
}

/// `name` is what the client calls the keyspace that was to be changed.
pub fn of_change(error: &ChangeError, name: &str) -> Status {
    let row = match error {
        ChangeError::Refused(refused) => return of_refused(refused, name),
        ChangeError::Unavailable { .. } => {
            Row::new(Code::Unavailable, Reason::MetadataUnavailable).retry_after(Duration::from_secs(1))
        }
        ChangeError::OutcomeUnknown { .. } => Row::new(Code::Unknown, Reason::OutcomeUnknown),
        ChangeError::IsAlive { region } => {
            Row::new(Code::FailedPrecondition, Reason::RegionIsAlive).fact("region", region)
        }
        ChangeError::DeadlineExpired => Row::new(Code::DeadlineExceeded, Reason::DeadlineExpired),
    };
    row.status(error.to_string())
}

/// Some keys may have moved: that is no harm, and asking again goes on.
pub fn of_move(error: &MoveError, keyspace: &str) -> Status {
    match error {
        MoveError::Change(error) => of_change(error, keyspace),
        MoveError::Refused(source) => of_node(source),
        MoveError::Stopped { source: NodeError::Remote(source), .. } => {
            of_remote(&RemoteError { message: error.to_string(), ..RemoteError::clone(source) })
        }
        MoveError::Stopped { source, .. } => row_of_node(source).status(error.to_string()),
    }
}

fn of_refused(refused: &Refused, name: &str) -> Status {
    let row = match refused {
        Refused::Unknown { .. } => return unknown_keyspace(name),
        Refused::Faulty { faults } => return incompatible_settings(faults),
        Refused::Exists { .. } => Row::new(Code::AlreadyExists, Reason::KeyspaceExists).fact("keyspace", name),
        Refused::Changed { revision } => {
            let row = Row::new(Code::Aborted, Reason::EtagMismatch).fact("keyspace", name);
            return row.fact("etag", etag::of(*revision)).status(format!("keyspace {name:?} was changed meanwhile"));
        }
        Refused::TooMany => {
            Row::new(Code::ResourceExhausted, Reason::QuotaExceeded).quota("keyspaces").retry_after(Duration::ZERO)
        }
        Refused::IsMember { region } => Row::new(Code::AlreadyExists, Reason::RegionExists).fact("region", region),
        Refused::NoMember { region } => Row::new(Code::NotFound, Reason::RegionNotFound).fact("region", region),
        // No client asks for that.
        Refused::State { .. } | Refused::Overtaken { .. } | Refused::Founded => {
            Row::new(Code::Internal, Reason::InternalFault)
        }
    };
    row.status(refused.to_string())
}

/// An etag of a change that this region has not heard of: another region gave it.
pub fn etag_not_reached() -> Status {
    let row = Row::new(Code::Unavailable, Reason::MetadataUnavailable).retry_after(Duration::from_millis(500));
    row.status("this region has not heard yet of the change that the etag is of".to_owned())
}

/// A fault of isle itself.
pub fn internal_fault(what: &str) -> Status {
    Row::new(Code::Internal, Reason::InternalFault).status(what.to_owned())
}

/// What a peer is told. `to_peer` reads it back.
pub fn of_peer(error: &PeerError) -> Status {
    let row = match error {
        PeerError::Unreachable { .. } | PeerError::Stopping => Row::new(Code::Unavailable, Reason::NotServing),
        PeerError::NotReady { .. } => Row::new(Code::Unavailable, Reason::StateNotReady),
        PeerError::Incompatible { .. } => Row::new(Code::FailedPrecondition, Reason::ClusterMismatch),
        PeerError::RegionReplaced { region, admitted, refused } => {
            Row::new(Code::FailedPrecondition, Reason::RegionReplaced)
                .fact("region", region)
                .fact("admitted", admitted)
                .fact("refused", refused)
        }
        PeerError::NoMember { region, revision } => {
            Row::new(Code::FailedPrecondition, Reason::NotAMember).fact("region", region).fact("revision", revision)
        }
        PeerError::Corrupt { .. } => Row::new(Code::DataLoss, Reason::ChecksumMismatch).fact("where", "wire"),
    };
    row.retry_if_unavailable().status(error.to_string())
}

/// What a peer said, read back. A status that isle did not make is a broken link.
pub fn to_peer(status: &Status) -> PeerError {
    let reason = status.message().to_owned();
    let Some(info) = status.get_details_error_info().filter(|info| info.domain == v1::ERROR_DOMAIN) else {
        return PeerError::Unreachable { reason: format!("{:?}: {reason}", status.code()) };
    };
    match Reason::from_str_name(&info.reason) {
        Some(Reason::NotServing | Reason::StateNotReady | Reason::QueueFull) => PeerError::NotReady { reason },
        Some(Reason::ClusterMismatch | Reason::ProtocolMismatch | Reason::ShardCountMismatch) => {
            PeerError::Incompatible { reason }
        }
        Some(Reason::ChecksumMismatch | Reason::InvalidField) => PeerError::Corrupt { reason },
        Some(Reason::RegionReplaced) => replaced(&info.metadata).unwrap_or(PeerError::Incompatible { reason }),
        Some(Reason::NotAMember) => no_member(&info.metadata).unwrap_or(PeerError::Incompatible { reason }),
        _ => PeerError::Unreachable { reason },
    }
}

fn no_member(facts: &HashMap<String, String>) -> Option<PeerError> {
    let region = isle_model::Region::new(facts.get("region")?);
    Some(PeerError::NoMember { region, revision: facts.get("revision")?.parse().ok()? })
}

fn replaced(facts: &HashMap<String, String>) -> Option<PeerError> {
    let incarnation = |name: &str| u64::from_str_radix(facts.get(name)?, 16).ok().map(isle_model::Incarnation);
    Some(PeerError::RegionReplaced {
        region: isle_model::Region::new(facts.get("region")?),
        admitted: incarnation("admitted")?,
        refused: incarnation("refused")?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use isle_model::{Incarnation, Region};

    #[test]
    fn every_status_names_its_reason_and_domain() {
        let errors = [
            NodeError::DeadlineExpired,
            NodeError::Completing,
            NodeError::OutcomeUnknown { reason: "x".into() },
            NodeError::UnknownKeyspace { name: "x".into(), known: vec![] },
        ];
        for error in errors {
            let info = of_node(&error).get_details_error_info().unwrap();
            assert_eq!(info.domain, v1::ERROR_DOMAIN);
            assert!(info.reason.chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{}", info.reason);
        }
    }

    #[test]
    fn a_full_queue_says_what_is_full_and_when_to_retry() {
        let retry_after = Duration::from_millis(20);
        let status = of_node(&NodeError::Overloaded { what: "shard queue", retry_after });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(retry_after));
        assert_eq!(status.get_details_quota_failure().unwrap().violations[0].subject, "shard queue");
    }

    /// A keyspace's name of 100,000 bytes came back in headers that no client read: it lost its connection.
    #[test]
    fn what_a_caller_sent_is_told_back_in_brief() {
        let status = of_node(&NodeError::UnknownKeyspace { name: "ä".repeat(50_000), known: vec![] });
        assert!(status.message().len() < 2 * MESSAGE_BYTES_MAX && status.details().len() < 2 * FACT_BYTES_MAX);
        assert_eq!(status.get_details_error_info().unwrap().reason, "KEYSPACE_NOT_FOUND");
    }

    #[test]
    fn a_bad_field_is_named() {
        let status = of_node(&NodeError::BadField { field: "key", reason: "is empty".into() });
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "key");
    }

    #[test]
    fn every_broken_rule_is_a_violation_and_too_many_are_cut() {
        let fault = |field: &'static str| Fault { field: field.into(), rule: "cannot be".repeat(10) };
        let few = incompatible_settings(&[fault("writes"), fault("tier")]);
        let fields = |status: &Status| {
            let bad = status.get_details_bad_request().unwrap().field_violations;
            bad.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
        };
        assert_eq!(fields(&few), ["keyspace.policy.writes", "keyspace.policy.tier"]);
        assert!(few.message().contains("writes: ") && few.message().contains("; tier: "), "{}", few.message());
        let many = incompatible_settings(&vec![fault("home"); 1000]);
        assert!(fields(&many).len() > 10 && many.details().len() < 8 * 1024, "{}", many.details().len());
        let later = settings_not_served(&[fault("tier"), fault("ttl")]);
        assert_eq!(later.get_details_error_info().unwrap().metadata["field"], "tier,ttl");
    }

    #[test]
    fn a_change_that_did_not_come_about_says_what_to_do() {
        let told = |error: ChangeError| {
            let status = of_change(&error, "carts");
            let info = status.get_details_error_info().unwrap();
            (status.code(), info.reason, info.metadata, status.get_details_retry_info().is_some())
        };
        let why = || "two of three regions are away".to_owned();
        let (code, reason, _, retry) = told(ChangeError::Unavailable { reason: why() });
        assert_eq!((code, reason.as_str(), retry), (Code::Unavailable, "METADATA_UNAVAILABLE", true));
        let (code, reason, _, retry) = told(ChangeError::OutcomeUnknown { reason: why() });
        assert_eq!((code, reason.as_str(), retry), (Code::Unknown, "OUTCOME_UNKNOWN", false));
        let (code, reason, _, _) = told(ChangeError::DeadlineExpired);
        assert_eq!((code, reason.as_str()), (Code::DeadlineExceeded, "DEADLINE_EXPIRED"));
        let (code, reason, facts, _) = told(Refused::Changed { revision: 17 }.into());
        assert_eq!((code, reason.as_str(), &facts["etag"]), (Code::Aborted, "ETAG_MISMATCH", &etag::of(17)));
        let (code, reason, facts, _) = told(Refused::Exists { name: "carts".into() }.into());
        assert_eq!(
            (code, reason.as_str(), facts["keyspace"].as_str()),
            (Code::AlreadyExists, "KEYSPACE_EXISTS", "carts")
        );
        let (code, reason, _, _) = told(Refused::Unknown { id: isle_model::KeyspaceId(3) }.into());
        assert_eq!((code, reason.as_str()), (Code::NotFound, "KEYSPACE_NOT_FOUND"));
        let (code, reason, _, _) = told(Refused::TooMany.into());
        assert_eq!((code, reason.as_str()), (Code::ResourceExhausted, "QUOTA_EXCEEDED"));
        let faults = vec![Fault { field: "tier".into(), rule: "no".into() }];
        let (code, reason, _, _) = told(Refused::Faulty { faults }.into());
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INCOMPATIBLE_SETTINGS"));
    }

    #[test]
    fn a_peer_reads_what_a_peer_was_told() {
        let replaced = PeerError::RegionReplaced {
            region: Region::new("eu"),
            admitted: Incarnation(0xabc),
            refused: Incarnation(7),
        };
        assert_eq!(to_peer(&of_peer(&replaced)), replaced);
        assert!(matches!(to_peer(&of_peer(&PeerError::Stopping)), PeerError::NotReady { .. }));
        assert!(matches!(to_peer(&Status::unavailable("gone")), PeerError::Unreachable { .. }));
    }
}
