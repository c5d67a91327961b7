//! `isle.v1.Peer`: the sending side of replication, on a port of its own.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use isle_model::Region;
use isle_node::peer::PeerError;
use isle_node::{Cause, Node, PeerEgress};
use isle_proto::v1;
use isle_proto::v1::peer_server::Peer;
use tonic::{Request, Response, Status, Streaming};

use super::forward_wire::{self, Forwarded};
use super::peer_wire::{self, Identity, framed_len, state_cause};
use crate::connection::Caller;
use crate::status_table::{of_node, of_peer, to_peer};
use crate::tls::PeerNames;

/// A receiver says hello at once; one that does not must not hold a stream for ever.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

pub struct PeerService {
    node: Arc<Node>,
    identity: Identity,
    /// Without TLS nobody shows who he is.
    names: Option<Arc<PeerNames>>,
}

impl PeerService {
    pub fn new(node: Arc<Node>, identity: Identity, names: Option<Arc<PeerNames>>) -> PeerService {
        PeerService { node, identity, names }
    }

    /// Refuses a caller whose certificate does not name the region that it says it is.
    fn vouched(&self, caller: Option<&Caller>, region: &Region) -> Result<(), PeerError> {
        let Some(names) = &self.names else { return Ok(()) };
        let joined = || {
            let peer = self.node.peers().into_iter().find(|peer| peer.region == *region);
            peer.map(|peer| peer.endpoint)
        };
        names.check(region.as_str(), caller, joined).map_err(|error| {
            let address = caller.map(|caller| caller.address.as_ref()).unwrap_or_default();
            tracing::warn!(address, %error, "a caller on the peer port is refused");
            PeerError::Incompatible { reason: error.to_string() }
        })
    }
}

impl PeerService {
    /// Whom the connection leads to is known once it is vouched for.
    fn egress_to(&self, caller: Option<&Caller>, region: &Region) -> Arc<PeerEgress> {
        let egress = self.node.egress().to(region);
        if let Some(caller) = caller {
            caller.meter.charge(&egress);
        }
        egress
    }
}

fn caller<T>(request: &Request<T>) -> Option<Caller> {
    request.extensions().get().cloned()
}

#[tonic::async_trait]
impl Peer for PeerService {
    type SubscribeStream = BoxStream<'static, Result<v1::ToReceiver, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::ToSender>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = caller(&request);
        let mut messages = request.into_inner();
        let hello = tokio::time::timeout(HELLO_TIMEOUT, messages.message()).await;
        let hello = hello.map_err(|_| refused("no hello came"))??;
        let Some(v1::to_sender::Message::Hello(hello)) = hello.and_then(|first| first.message) else {
            return Err(refused("the first message is not a hello"));
        };
        let hello = peer_wire::to_hello(hello).map_err(|error| of_peer(&error))?;
        self.vouched(caller.as_ref(), &hello.region).map_err(|error| of_peer(&error))?;
        let incoming = messages.map(|message| match message {
            Ok(message) => peer_wire::of_receiver(message),
            Err(status) => Err(to_peer(&status)),
        });
        let region = hello.region.clone();
        let outgoing = self.node.subscribe(hello, incoming.boxed()).map_err(|error| of_peer(&error))?;
        let egress = self.egress_to(caller.as_ref(), &region);
        let outgoing = outgoing.map(move |message| {
            let message = message.map(peer_wire::to_receiver).map_err(|error| of_peer(&error))?;
            // Deltas are counted where it is known of which keyspaces they are.
            if !matches!(message.message, Some(v1::to_receiver::Message::Deltas(_))) {
                egress.note(None, Cause::Heartbeat, framed_len(&message));
            }
            Ok(message)
        });
        Ok(Response::new(outgoing.boxed()))
    }

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<v1::FetchResponse>, Status> {
        let caller = caller(&request);
        let fetched = async {
            let asked = peer_wire::to_fetch_request(&self.identity, request.into_inner())?;
            self.vouched(caller.as_ref(), &asked.asker)?;
            self.egress_to(caller.as_ref(), &asked.asker);
            self.node.serve_fetch(asked).await
        };
        let reply = fetched.await.map_err(|error| of_peer(&error))?;
        Ok(Response::new(peer_wire::fetch_response(reply)))
    }

    async fn state(&self, request: Request<v1::StateRequest>) -> Result<Response<v1::StateResponse>, Status> {
        let caller = caller(&request);
        let taken = async {
            let asked = peer_wire::to_state_request(&self.identity, request.into_inner())?;
            self.vouched(caller.as_ref(), &asked.asker)?;
            let egress = self.egress_to(caller.as_ref(), &asked.asker);
            let (keyspace, cause) = (asked.keyspace, state_cause(asked.changes_after.is_some()));
            let response = peer_wire::state_response(&self.node.serve_state(asked).await?)?;
            egress.note(Some(keyspace), cause, framed_len(&response));
            Ok(response)
        };
        Ok(Response::new(taken.await.map_err(|error| of_peer(&error))?))
    }

    async fn forward(&self, request: Request<v1::ForwardRequest>) -> Result<Response<v1::ForwardResponse>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        forward_wire::check_size(&message)?;
        let asked = forward_wire::to_forward_request(&self.identity, message);
        let Forwarded { request, context, faults } = asked.map_err(|error| of_peer(&error))?;
        self.vouched(caller.as_ref(), &request.asker).map_err(|error| of_peer(&error))?;
        let (egress, keyspace) = (self.egress_to(caller.as_ref(), &request.asker), request.keyspace);
        let replies = self.node.serve_forward(&context, request).await.map_err(|error| of_node(&error))?;
        let response = forward_wire::forward_response(replies, faults);
        egress.note(Some(keyspace), Cause::Forward, framed_len(&response));
        Ok(Response::new(response))
    }

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<v1::ReadResponse>, Status> {
        let caller = caller(&request);
        let asked = forward_wire::to_read_request(&self.identity, request.into_inner());
        let asked = asked.map_err(|error| of_peer(&error))?;
        self.vouched(caller.as_ref(), &asked.asker).map_err(|error| of_peer(&error))?;
        let (egress, keyspace) = (self.egress_to(caller.as_ref(), &asked.asker), asked.keyspace);
        let reply = self.node.serve_read(asked).await.map_err(|error| of_node(&error))?;
        let response = forward_wire::read_response(&reply);
        egress.note(Some(keyspace), Cause::Forward, framed_len(&response));
        Ok(Response::new(response))
    }

    async fn metadata(&self, request: Request<v1::MetadataRequest>) -> Result<Response<v1::MetadataResponse>, Status> {
        let caller = caller(&request);
        let answered = async {
            let asked = peer_wire::to_metadata_request(&self.identity, request.into_inner())?;
            self.vouched(caller.as_ref(), &asked.asker)?;
            let egress = self.egress_to(caller.as_ref(), &asked.asker);
            let response = v1::MetadataResponse { body: self.node.serve_metadata(asked).await?.body };
            egress.note(None, Cause::Metadata, framed_len(&response));
            Ok(response)
        };
        let response: Result<_, PeerError> = answered.await;
        Ok(Response::new(response.map_err(|error| of_peer(&error))?))
    }
}

fn refused(reason: &str) -> Status {
    of_peer(&PeerError::Corrupt { reason: reason.to_owned() })
}
