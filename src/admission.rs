//! How many requests of clients the node takes at once, and how large each may be. One too many is answered at once instead of
//! being queued, and of one too large no more is read than its length: memory stays bounded whatever the load.
//!
//! The law it keeps: whoever is refused here, or by the transport behind it before a handler was reached, is told so in isle's
//! own words. A status without them would mean that the outcome is unknown, and here it is known: nothing was done.
//! Health, reflection and status pass always: overload is when they are needed.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::status_table;

const LIMITED: &str = "/isle.v1.Kv/";
const ENCODING: &str = "grpc-encoding";

#[derive(Clone, Debug)]
pub struct AdmissionLayer {
    permits: Arc<Semaphore>,
    message_bytes_max: usize,
}

impl AdmissionLayer {
    pub fn new(requests_max: usize, message_bytes_max: usize) -> AdmissionLayer {
        AdmissionLayer {
            permits: Arc::new(Semaphore::new(requests_max.min(Semaphore::MAX_PERMITS))),
            message_bytes_max,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Admission<S> {
    inner: S,
    permits: Arc<Semaphore>,
    message_bytes_max: usize,
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission { inner, permits: self.permits.clone(), message_bytes_max: self.message_bytes_max }
    }
}

impl<S> Service<Request<Body>> for Admission<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !request.uri().path().starts_with(LIMITED) {
            return Box::pin(self.inner.call(request));
        }
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            return Box::pin(async { Ok(status_table::too_many_requests().into_http()) });
        };
        if request.headers().get(ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Box::pin(async { Ok(status_table::not_served(ENCODING).into_http()) });
        }
        let (message_bytes_max, path) = (self.message_bytes_max, request.uri().path().to_owned());
        let answer = self.inner.call(request.map(|body| Body::new(Measured::new(body, message_bytes_max))));
        Box::pin(async move {
            let answer = answer.await;
            drop(permit);
            answer.map(|answer| in_own_words(answer, &path))
        })
    }
}

/// A refusal that names no reason came from the transport, which had not reached a handler.
fn in_own_words(answer: Response<Body>, path: &str) -> Response<Body> {
    let headers = answer.headers();
    let refused = headers.get(Status::GRPC_STATUS).is_some_and(|status| status != "0");
    match refused && !headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        true => match Status::from_header_map(headers) {
            Some(status) => status_table::of_transport(&status, path).into_http(),
            None => answer,
        },
        false => answer,
    }
}

/// A request's body, which ends with an error where a message announces that it is too large.
///
/// gRPC: each message is preceded by a flag and its length (u32, big endian).
struct Measured {
    inner: Body,
    message_bytes_max: usize,
    prefix: [u8; 5],
    prefix_filled: usize,
    /// Of the message that is passing.
    left: usize,
}

impl Measured {
    fn new(inner: Body, message_bytes_max: usize) -> Measured {
        Measured { inner, message_bytes_max, prefix: [0; 5], prefix_filled: 0, left: 0 }
    }

    fn measure(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            if self.left > 0 {
                let passing = self.left.min(data.len());
                self.left -= passing;
                data.advance(passing);
                continue;
            }
            self.prefix[self.prefix_filled] = data.get_u8();
            self.prefix_filled += 1;
            if self.prefix_filled == self.prefix.len() {
                self.prefix_filled = 0;
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
                if self.left > self.message_bytes_max {
                    return Err(status_table::request_too_large(self.left, self.message_bytes_max));
                }
            }
        }
        Ok(())
    }
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            let frame = frame?;
            match frame.data_ref() {
                Some(data) => self.measure(data).map(|()| frame),
                None => Ok(frame),
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::sync::oneshot;
    use tower::service_fn;

    fn request(path: &str) -> Request<Body> {
        Request::builder().uri(path).body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn one_too_many_is_refused_and_health_passes() {
        let (release, released) = oneshot::channel::<()>();
        let released = Arc::new(tokio::sync::Mutex::new(Some(released)));
        let slow = service_fn(move |request: Request<Body>| {
            let released = released.clone();
            async move {
                let is_slow = request.uri().path() == "/isle.v1.Kv/Get";
                if is_slow && let Some(released) = released.lock().await.take() {
                    released.await.unwrap();
                }
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        });
        let mut limited = AdmissionLayer::new(1, 100).layer(slow);
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

    fn message(length: usize) -> Vec<u8> {
        let mut out = vec![0];
        out.extend_from_slice(&(length as u32).to_be_bytes());
        out.resize(out.len() + length, 7);
        out
    }

    /// However the bytes are cut into frames, the lengths are found, and only what announces too much is refused.
    #[test]
    fn messages_are_measured_across_frames() {
        let sound = [message(0), message(100), message(3)].concat();
        for cut in 1..sound.len() {
            let mut measured = Measured::new(Body::empty(), 100);
            assert!(sound.chunks(cut).all(|data| measured.measure(data).is_ok()), "in pieces of {cut}");
            let mut measured = Measured::new(Body::empty(), 99);
            assert!(sound.chunks(cut).any(|data| measured.measure(data).is_err()), "in pieces of {cut}");
        }
    }

    #[tokio::test]
    async fn what_the_transport_refuses_names_a_reason() {
        use tonic_types::StatusExt;
        let transport = service_fn(|_: Request<Body>| async {
            Ok::<_, Infallible>(Status::internal("failed to decode Protobuf message").into_http())
        });
        let mut limited = AdmissionLayer::new(1, 100).layer(transport);
        let refused = limited.call(request("/isle.v1.Kv/Put")).await.unwrap();
        let status = Status::from_header_map(refused.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert_eq!(status.get_details_error_info().unwrap().reason, "INVALID_FIELD");
    }
}
