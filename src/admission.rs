//! How many requests of clients the node takes at once, how large each may be and how long it may take to come. One too many is
//! answered at once instead of being queued, of one too large no more is read than its length, and one that never ends does
//! not hold its place for ever: memory stays bounded whatever the load, and others get their turn.
//!
//! The law it keeps: whoever is refused here, or by the transport behind it before a handler was reached, is told so in isle's
//! own words. A status without them would mean that the outcome is unknown, and here it is known: nothing was done.
//! Health, reflection and status pass always: overload is when they are needed.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::status_table;

const LIMITED: [&str; 2] = ["/isle.v1.Kv/", "/isle.v1.Keyspaces/"];
/// It lasts as long as its client likes.
const STREAM: &str = "/isle.v1.Kv/Write";
/// `requests_max` bounds what these take.
const SMALL_BYTES: usize = 16 << 10;
const ENCODING: &str = "grpc-encoding";

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub requests_max: usize,
    pub message_bytes_max: usize,
    /// Of all messages that have been announced and are not there yet, small ones apart: for the transport reserves what is
    /// announced.
    pub receiving_bytes_max: usize,
    /// From the first wait for a request's body to its end. Streams have all the time they like.
    pub receive_timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct AdmissionLayer {
    permits: Arc<Semaphore>,
    receiving: Arc<Semaphore>,
    bounds: Bounds,
}

impl AdmissionLayer {
    pub fn new(bounds: Bounds) -> AdmissionLayer {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        let (permits, receiving) = (semaphore(bounds.requests_max), semaphore(bounds.receiving_bytes_max));
        AdmissionLayer { permits, receiving, bounds }
    }
}

#[derive(Clone, Debug)]
pub struct Admission<S> {
    inner: S,
    permits: Arc<Semaphore>,
    receiving: Arc<Semaphore>,
    bounds: Bounds,
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        let AdmissionLayer { permits, receiving, bounds } = self.clone();
        Admission { inner, permits, receiving, bounds }
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
        if !LIMITED.iter().any(|service| request.uri().path().starts_with(service)) {
            return Box::pin(self.inner.call(request));
        }
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            return Box::pin(async { Ok(status_table::too_many_requests().into_http()) });
        };
        if request.headers().get(ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Box::pin(async { Ok(status_table::not_served(ENCODING).into_http()) });
        }
        let uri = request.uri().clone();
        let patience = (uri.path() != STREAM).then_some(self.bounds.receive_timeout);
        let receiving = self.receiving.clone();
        let bounded = |body| Body::new(Measured::new(body, self.bounds.message_bytes_max, patience, receiving));
        let answer = self.inner.call(request.map(bounded));
        Box::pin(async move {
            let answer = answer.await;
            drop(permit);
            answer.map(|answer| in_own_words(answer, uri.path()))
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

/// A request's body, which ends with an error where a message announces that it is too large, and when it is late.
///
/// gRPC: each message is preceded by a flag and its length (u32, big endian).
struct Measured {
    inner: Body,
    message_bytes_max: usize,
    prefix: [u8; 5],
    prefix_filled: usize,
    /// Of the message that is passing.
    left: usize,
    receiving: Arc<Semaphore>,
    /// Of the message that is passing, until the next one or the end.
    reserved: Option<OwnedSemaphorePermit>,
    patience: Option<Duration>,
    /// Most requests are there at once, and need no timer.
    late: Option<Pin<Box<Sleep>>>,
}

impl Measured {
    fn new(inner: Body, message_bytes_max: usize, patience: Option<Duration>, receiving: Arc<Semaphore>) -> Measured {
        Measured {
            inner,
            message_bytes_max,
            prefix: [0; 5],
            prefix_filled: 0,
            left: 0,
            receiving,
            reserved: None,
            patience,
            late: None,
        }
    }

    /// A message of so many bytes is announced.
    fn admit(&mut self, bytes: u32) -> Result<(), Status> {
        self.left = bytes as usize;
        self.reserved = None;
        if self.left > self.message_bytes_max {
            return Err(status_table::request_too_large(self.left, self.message_bytes_max));
        }
        if self.left > SMALL_BYTES {
            let reserved = self.receiving.clone().try_acquire_many_owned(bytes);
            self.reserved = Some(reserved.map_err(|_| status_table::too_many_request_bytes())?);
        }
        Ok(())
    }

    /// Whether the time is over that this body has.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(patience) = self.patience else { return Poll::Pending };
        self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience))).as_mut().poll(cx)
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
                self.admit(u32::from_be_bytes(length))?;
            }
        }
        Ok(())
    }
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            return self.poll_late(cx).map(|()| Some(Err(status_table::request_late())));
        };
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

    fn bounds(message_bytes_max: usize) -> Bounds {
        let receive_timeout = Duration::from_secs(30);
        Bounds { requests_max: 1, message_bytes_max, receiving_bytes_max: 1 << 20, receive_timeout }
    }

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
        let mut limited = AdmissionLayer::new(bounds(100)).layer(slow);
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

    fn measured(message_bytes_max: usize, receiving: &Arc<Semaphore>) -> Measured {
        Measured::new(Body::empty(), message_bytes_max, None, receiving.clone())
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
        let receiving = Arc::new(Semaphore::new(0));
        for cut in 1..sound.len() {
            let mut fits = measured(100, &receiving);
            assert!(sound.chunks(cut).all(|data| fits.measure(data).is_ok()), "in pieces of {cut}");
            let mut exceeds = measured(99, &receiving);
            assert!(sound.chunks(cut).any(|data| exceeds.measure(data).is_err()), "in pieces of {cut}");
        }
    }

    /// Five bytes are enough to announce 8 MiB, and the transport reserves them.
    #[test]
    fn what_is_announced_is_reserved_until_it_has_come() {
        let receiving = Arc::new(Semaphore::new(100_000));
        let large = message(60_000);
        let (mut first, mut second) = (measured(1 << 20, &receiving), measured(1 << 20, &receiving));
        first.measure(&large[..5]).unwrap();
        assert!(second.measure(&large[..5]).is_err());
        assert!(measured(1 << 20, &receiving).measure(&message(100)).is_ok());
        first.measure(&large[5..]).unwrap();
        first.measure(&message(1)).unwrap();
        assert!(measured(1 << 20, &receiving).measure(&large).is_ok());
        assert_eq!(receiving.available_permits(), 100_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_ends_in_time_and_a_stream_waits() {
        let endless = || {
            let frames = futures::stream::pending::<Result<Frame<Bytes>, Status>>();
            Body::new(http_body_util::StreamBody::new(frames))
        };
        let receiving = Arc::new(Semaphore::new(0));
        let mut late = Measured::new(endless(), 100, Some(Duration::from_secs(30)), receiving.clone());
        let status = http_body_util::BodyExt::frame(&mut late).await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        let mut stream = Measured::new(endless(), 100, None, receiving);
        let day = Duration::from_secs(24 * 3600);
        assert!(tokio::time::timeout(day, http_body_util::BodyExt::frame(&mut stream)).await.is_err());
    }

    #[tokio::test]
    async fn what_the_transport_refuses_names_a_reason() {
        use tonic_types::StatusExt;
        let transport = service_fn(|_: Request<Body>| async {
            Ok::<_, Infallible>(Status::internal("failed to decode Protobuf message").into_http())
        });
        let mut limited = AdmissionLayer::new(bounds(100)).layer(transport);
        let refused = limited.call(request("/isle.v1.Kv/Put")).await.unwrap();
        let status = Status::from_header_map(refused.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert_eq!(status.get_details_error_info().unwrap().reason, "INVALID_FIELD");
    }
}
