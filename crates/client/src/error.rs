//! What went wrong, in isle's own words: code, reason, facts, when to try again, and whether a write may have taken effect.

use std::collections::BTreeMap;
use std::time::Duration;

use isle_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt;

const DOMAIN: &str = "isle.v1";
/// The region could not be reached, and nothing was sent.
pub const UNREACHABLE: &str = "UNREACHABLE";
pub const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub code: Code,
    /// Such as `VERSION_MISMATCH`: see errors.proto. `UNREACHABLE` is the client's own.
    pub reason: String,
    pub message: String,
    pub facts: BTreeMap<String, String>,
    /// Every field of the request that is at fault, and what is wrong with it.
    pub violations: Vec<Violation>,
    pub retry_after: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// A path within the request, such as `keyspace.policy.writes`.
    pub field: String,
    pub rule: String,
}

impl Error {
    /// Whether a write that met this error may take effect all the same.
    pub fn outcome_unknown(&self) -> bool {
        self.reason == OUTCOME_UNKNOWN
    }

    /// The request's field at fault; the first, if there are several.
    pub fn field(&self) -> Option<&str> {
        self.violations.first().map(|violation| violation.field.as_str())
    }

    pub(crate) fn local(code: Code, reason: &str, message: String) -> Error {
        let (facts, violations) = (BTreeMap::new(), Vec::new());
        Error { code, reason: reason.to_owned(), message, facts, violations, retry_after: None }
    }

    pub(crate) fn of_status(status: &Status) -> Error {
        match status.get_details_error_info().filter(|info| info.domain == DOMAIN) {
            Some(info) => {
                let bad = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
                let violation =
                    |bad: tonic_types::FieldViolation| Violation { field: bad.field, rule: bad.description };
                let violations: Vec<_> = bad.into_iter().map(violation).collect();
                Error {
                    code: status.code(),
                    reason: info.reason,
                    message: status.message().to_owned(),
                    facts: info.metadata.into_iter().collect(),
                    violations,
                    retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
                }
            }
            // A connection that was never made carried nothing.
            None if is_connect_error(status) => Error::local(Code::Unavailable, UNREACHABLE, chain(status)),
            // Something in between answered, or nobody: only isle itself can promise that nothing was written.
            None => Error::local(status.code(), OUTCOME_UNKNOWN, chain(status)),
        }
    }

    pub(crate) fn of_transport(error: &tonic::transport::Error) -> Error {
        Error::local(Code::Unavailable, UNREACHABLE, causes(error))
    }

    pub(crate) fn of_item(item: v1::ItemError) -> Error {
        let violation = |field| Violation { field, rule: item.message.clone() };
        let violations = Some(item.field).filter(|field| !field.is_empty()).map(violation).into_iter().collect();
        Error {
            code: Code::from_i32(item.code),
            reason: item.reason,
            message: item.message,
            facts: item.metadata,
            violations,
            retry_after: item.retry_delay.and_then(|delay| Duration::try_from(delay).ok()),
        }
    }
}

fn is_connect_error(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.downcast_ref::<tonic::ConnectError>().is_some() {
            return true;
        }
        source = error.source();
    }
    false
}

fn chain(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => causes(source),
        None => status.message().to_owned(),
    }
}

/// An error with all its causes: transport errors say nothing by themselves.
fn causes(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !out.ends_with(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        source = error.source();
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn a_status_of_isle_keeps_its_reason() {
        let facts = [("home".to_owned(), "eu".to_owned())];
        let mut details = ErrorDetails::with_error_info("NOT_HOME", DOMAIN, facts);
        details.set_retry_info(Some(Duration::from_millis(20)));
        let error = Error::of_status(&Status::with_error_details(Code::FailedPrecondition, "elsewhere", details));
        assert_eq!((error.reason.as_str(), error.facts["home"].as_str()), ("NOT_HOME", "eu"));
        assert_eq!(error.retry_after, Some(Duration::from_millis(20)));
        assert!(!error.outcome_unknown());
    }

    #[test]
    fn a_status_of_somebody_else_leaves_the_outcome_unknown() {
        assert!(Error::of_status(&Status::unavailable("a proxy says so")).outcome_unknown());
    }
}
