//! How many requests of clients the node takes at once. One too many is answered at once instead of being queued: its
//! body is not even read, so memory stays bounded whatever the load.
//!
//! Health, reflection and status pass always: overload is when they are needed.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::status_table;

const LIMITED: &str = "/isle.v1.Kv/";

#[derive(Clone, Debug)]
pub struct AdmissionLayer {
    permits: Arc<Semaphore>,
}

impl AdmissionLayer {
    pub fn new(requests_max: usize) -> AdmissionLayer {
        AdmissionLayer { permits: Arc::new(Semaphore::new(requests_max.min(Semaphore::MAX_PERMITS))) }
    }
}

#[derive(Clone, Debug)]
pub struct Admission<S> {
    inner: S,
    permits: Arc<Semaphore>,
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission { inner, permits: self.permits.clone() }
    }
}

impl<S, B> Service<Request<B>> for Admission<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !request.uri().path().starts_with(LIMITED) {
            return Box::pin(self.inner.call(request));
        }
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            return Box::pin(async { Ok(status_table::too_many_requests().into_http()) });
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(permit);
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::sync::oneshot;
    use tower::service_fn;

    #[tokio::test]
    async fn one_too_many_is_refused_and_health_passes() {
        let (release, released) = oneshot::channel::<()>();
        let released = Arc::new(tokio::sync::Mutex::new(Some(released)));
        let slow = service_fn(move |request: Request<()>| {
            let released = released.clone();
            async move {
                let is_slow = request.uri().path() == "/isle.v1.Kv/Get";
                if is_slow && let Some(released) = released.lock().await.take() {
                    released.await.unwrap();
                }
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        });
        let mut limited = AdmissionLayer::new(1).layer(slow);
        let request = |path: &str| Request::builder().uri(path).body(()).unwrap();
        let first = tokio::spawn(limited.call(request("/isle.v1.Kv/Get")));
        let refused = limited.call(request("/isle.v1.Kv/Get")).await.unwrap();
        assert_eq!(refused.headers()["grpc-status"], "8");
        let health = limited.call(request("/grpc.health.v1.Health/Check")).await.unwrap();
        assert!(health.headers().get("grpc-status").is_none());
        release.send(()).unwrap();
        first.await.unwrap().unwrap();
        let again = limited.call(request("/isle.v1.Kv/Get")).await.unwrap();
        assert!(again.headers().get("grpc-status").is_none());
    }
}
