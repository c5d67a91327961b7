//! What a request brings along besides its body. Built once, at the edge; every call of the node takes it.

use std::sync::Arc;

use tokio::time::Instant;

#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    /// Who asks, for logs and quotas; empty where nobody said.
    pub caller: Arc<str>,
    /// After this moment the caller does not wait any more. Nothing is appended for a request that is past it.
    pub deadline: Option<Instant>,
    /// The W3C trace header, passed on as it came.
    pub traceparent: Option<String>,
    /// How many nodes have forwarded the request.
    pub hops: u32,
}

impl RequestContext {
    pub(crate) fn is_expired(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }
}
