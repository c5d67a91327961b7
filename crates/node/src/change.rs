//! Changes of what all regions agree on.

use isle_model::metadata::{Command, Keyspace, Refused};
use isle_model::policy::Fault;

use crate::{Node, RequestContext, cluster};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The cluster has decided: it changes nothing.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nothing was changed. Try again once most regions reach each other.
    #[error("the cluster's metadata cannot be changed now: {reason}")]
    Unavailable { reason: String },
    /// The change may or may not come about. Look, and repeat it if need be.
    #[error("whether the change comes about is unknown: {reason}")]
    OutcomeUnknown { reason: String },
    #[error("the deadline passed before anything was done")]
    DeadlineExpired,
}

impl Node {
    /// Has the cluster agree on a change, and waits until this node knows it. Returns the keyspace that was made or changed, or
    /// the one that was deleted.
    pub async fn change(&self, ctx: &RequestContext, command: Command) -> Result<Option<Keyspace>, ChangeError> {
        if ctx.is_expired() {
            return Err(ChangeError::DeadlineExpired);
        }
        if !cluster::fits(&command) {
            let rule = "is larger than the cluster's metadata can carry in one change".to_owned();
            return Err(Refused::Faulty { faults: vec![Fault { field: "policy".into(), rule }] }.into());
        }
        cluster::change(&self.shared, ctx, command).await
    }
}
