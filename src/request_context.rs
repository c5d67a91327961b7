//! One tower layer that says who asks, until when, in which trace and over how many nodes already; every call of the
//! node takes what it builds.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request};
use isle_node::RequestContext;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::connection::Caller;

/// How many nodes a request has passed through.
pub const HOPS_HEADER: &str = "isle-hops";

#[derive(Clone, Copy, Debug, Default)]
pub struct RequestContextLayer;

#[derive(Clone, Debug)]
pub struct WithRequestContext<S> {
    inner: S,
}

impl<S> Layer<S> for RequestContextLayer {
    type Service = WithRequestContext<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithRequestContext { inner }
    }
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for WithRequestContext<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let caller = request.extensions().get::<Caller>().map(|caller| caller.address.clone());
        let context = of_headers(request.headers(), caller.unwrap_or_default(), Instant::now());
        request.extensions_mut().insert(context);
        self.inner.call(request)
    }
}

/// The context that the layer put into a request.
pub fn of<T>(request: &tonic::Request<T>) -> RequestContext {
    request.extensions().get::<RequestContext>().cloned().unwrap_or_default()
}

fn of_headers(headers: &HeaderMap, caller: Arc<str>, now: Instant) -> RequestContext {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    // A deadline too far away to be a moment is no deadline.
    let deadline = text("grpc-timeout").and_then(timeout).and_then(|timeout| now.checked_add(timeout));
    RequestContext {
        caller,
        deadline,
        traceparent: text("traceparent").map(str::to_owned),
        hops: text(HOPS_HEADER).and_then(|hops| hops.parse().ok()).unwrap_or(0),
    }
}

/// gRPC's timeout header: at most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for text in ["", "m", "123456789m", "5", "5x", "-5S", "5\u{fc}"] {
            assert_eq!(timeout(text), None, "{text:?} was taken");
        }
    }

    #[tokio::test]
    async fn headers_make_the_context() {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", "3S".parse().unwrap());
        headers.insert("traceparent", "00-ab-cd-01".parse().unwrap());
        headers.insert(HOPS_HEADER, "1".parse().unwrap());
        let now = Instant::now();
        let context = of_headers(&headers, Arc::from("10.0.0.1:5"), now);
        assert_eq!(context.deadline, Some(now + Duration::from_secs(3)));
        assert_eq!((context.hops, context.traceparent.as_deref()), (1, Some("00-ab-cd-01")));
    }
}
