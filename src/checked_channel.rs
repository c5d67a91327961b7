//! A channel whose answers are looked at before the transport reads them: it panics on a status whose details are not base64,
//! and a peer gone wrong must not end the task that listens to it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Error};
use tower::Service;

/// As the transport reads it: gRPC leaves the padding to the sender.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Clone)]
pub struct CheckedChannel(pub Channel);

impl Service<Request<Body>> for CheckedChannel {
    type Response = Response<Body>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Response<Body>, Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            drop_unreadable_details(answer.headers_mut());
            Ok(answer.map(|body| Body::new(CheckedBody(body))))
        })
    }
}

fn drop_unreadable_details(headers: &mut HeaderMap) {
    let details = headers.get(Status::GRPC_STATUS_DETAILS);
    if details.is_some_and(|details| BASE64.decode(details.as_bytes()).is_err()) {
        headers.remove(Status::GRPC_STATUS_DETAILS);
    }
}

/// Of a stream the status comes last.
struct CheckedBody(Body);

impl http_body::Body for CheckedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            drop_unreadable_details(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_cannot_be_read_is_dropped() {
        for (details, kept) in [("CAESAA==", true), ("CAESAA", true), ("!!!", false), ("CAESA", false), ("", true)] {
            let mut headers = HeaderMap::new();
            headers.insert(Status::GRPC_STATUS, "9".parse().unwrap());
            headers.insert(Status::GRPC_STATUS_DETAILS, details.parse().unwrap());
            drop_unreadable_details(&mut headers);
            assert_eq!(headers.contains_key(Status::GRPC_STATUS_DETAILS), kept, "{details:?}");
            // What is left, the transport reads.
            assert_eq!(Status::from_header_map(&headers).unwrap().code(), tonic::Code::FailedPrecondition);
        }
    }
}
