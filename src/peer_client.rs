//! Dialling another region: the node's `Connector` and `Peer` over tonic.
//!
//! HTTP/2 keepalives are short, so that a link that swallows everything is known to be dead within 3 s.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use http::Uri;
use hyper_util::rt::TokioIo;
use isle_model::{KeyspaceId, Region};
use isle_node::peer::{
    Connector, FetchReply, FetchRequest, ForwardError, ForwardRequest, Hello, MetadataReply, MetadataRequest, Peer,
    PeerError, ReadReply, ReadRequest, StateReply, StateRequest, ToReceiver, ToSender,
};
use isle_node::{Cause, EgressMeter, PeerConfig, PeerEgress};
use isle_node::{NodeError, WriteReply};
use isle_proto::v1;
use isle_proto::v1::peer_client::PeerClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::Endpoint;

use crate::causes::causes;
use crate::checked_channel::CheckedChannel;
use crate::connection::Dial;
use crate::services::forward_wire;
use crate::services::peer_wire::{self, Identity, framed_len, state_cause};
use crate::status_table::to_peer;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// A chunk or a batch, over a slow link.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// What may be under way on a stream and on a connection: 200 ms at 320 Mbit/s.
pub const STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Above the largest entry of a log (16 MiB), which a block may hold beside one batch, and its rows.
pub const PEER_MESSAGE_BYTES_MAX: usize = 24 << 20;

pub struct TonicConnector {
    dialer: Arc<dyn Dial>,
    identity: Identity,
    egress: Arc<EgressMeter>,
}

impl TonicConnector {
    pub fn new(dialer: Arc<dyn Dial>, identity: Identity, egress: Arc<EgressMeter>) -> TonicConnector {
        TonicConnector { dialer, identity, egress }
    }
}

#[async_trait]
impl Connector for TonicConnector {
    async fn connect(&self, peer: &PeerConfig) -> Result<Arc<dyn Peer>, PeerError> {
        let unreachable = |reason: String| PeerError::Unreachable { reason };
        let uri: Uri = peer.endpoint.parse().map_err(|error| unreachable(format!("{}: {error}", peer.endpoint)))?;
        let (dialer, egress) = (self.dialer.clone(), self.egress.to(&peer.region));
        let charged = egress.clone();
        let dial = tower::service_fn(move |_: Uri| {
            let (dialer, uri, egress) = (dialer.clone(), uri.clone(), charged.clone());
            async move {
                let connection = dialer.dial(&uri).await?;
                connection.caller().meter.charge(&egress);
                Ok::<_, std::io::Error>(TokioIo::new(connection))
            }
        });
        let channel = endpoint(&peer.endpoint)?.connect_with_connector(dial).await;
        let channel = channel.map_err(|error| unreachable(causes(&error)))?;
        let client = PeerClient::new(CheckedChannel(channel))
            .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
        Ok(Arc::new(TonicPeer { client, identity: self.identity.clone(), region: peer.region.clone(), egress }))
    }
}

/// How HTTP/2 is spoken. Whether TLS lies beneath is the dialer's business, so that to tonic every peer is plain.
fn endpoint(peer: &str) -> Result<Endpoint, PeerError> {
    let plain = peer.replacen("https://", "http://", 1);
    let endpoint = Endpoint::from_shared(plain).map_err(|error| PeerError::Unreachable { reason: causes(&error) })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}

struct TonicPeer {
    client: PeerClient<CheckedChannel>,
    identity: Identity,
    /// The one who is called.
    region: Region,
    egress: Arc<PeerEgress>,
}

impl TonicPeer {
    /// Counts a request once it is answered: one that is not may never have left, and what of it has is the transport's.
    fn note<T, E>(&self, keyspace: Option<KeyspaceId>, cause: Cause, bytes: u64, answer: &Result<T, E>) {
        if answer.is_ok() {
            self.egress.note(keyspace, cause, bytes);
        }
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

#[async_trait]
impl Peer for TonicPeer {
    async fn subscribe(
        &self,
        hello: Hello,
        outgoing: mpsc::Receiver<ToSender>,
    ) -> Result<BoxStream<'static, Result<ToReceiver, PeerError>>, PeerError> {
        let first = peer_wire::first_of_receiver(&hello);
        let rest = ReceiverStream::new(outgoing).map(peer_wire::to_sender);
        let egress = self.egress.clone();
        let counted = move |message: &v1::ToSender| egress.note(None, Cause::Heartbeat, framed_len(message));
        let messages = futures::stream::iter([first]).chain(rest).inspect(counted);
        let answer = self.client.clone().subscribe(messages).await.map_err(|status| to_peer(&status))?;
        let incoming = answer.into_inner().map(|message| match message {
            Ok(message) => peer_wire::of_sender(message),
            Err(status) => Err(to_peer(&status)),
        });
        Ok(incoming.boxed())
    }

    async fn fetch(&self, asked: FetchRequest) -> Result<FetchReply, PeerError> {
        let keyspace = asked.keyspace;
        let message = request(peer_wire::fetch_request(&self.identity, asked));
        let bytes = framed_len(message.get_ref());
        let answer = self.client.clone().fetch(message).await;
        self.note(Some(keyspace), Cause::Delta, bytes, &answer);
        peer_wire::to_fetch_reply(answer.map_err(|status| to_peer(&status))?.into_inner())
    }

    async fn state(&self, asked: StateRequest) -> Result<StateReply, PeerError> {
        let (keyspace, cause) = (asked.keyspace, state_cause(asked.changes_after.is_some()));
        let message = request(peer_wire::state_request(&self.identity, asked));
        let bytes = framed_len(message.get_ref());
        let answer = self.client.clone().state(message).await;
        self.note(Some(keyspace), cause, bytes, &answer);
        peer_wire::to_state_reply(answer.map_err(|status| to_peer(&status))?.into_inner())
    }

    // Neither has a timeout on the wire: the far side would drop a write that is under way, and say nothing of it. The node
    // waits as long as it said that it would.

    async fn forward(&self, asked: ForwardRequest) -> Result<Vec<Result<WriteReply, NodeError>>, ForwardError> {
        let keyspace = asked.keyspace;
        let message = forward_wire::forward_request(&self.identity, asked);
        let bytes = framed_len(&message);
        let answer = self.client.clone().forward(message).await;
        self.note(Some(keyspace), Cause::Forward, bytes, &answer);
        let answer = answer.map_err(|status| forward_wire::to_forward_error(&status))?;
        forward_wire::to_forward_replies(&self.region, answer.into_inner())
    }

    async fn read(&self, asked: ReadRequest) -> Result<ReadReply, ForwardError> {
        let keyspace = asked.keyspace;
        let message = forward_wire::read_request(&self.identity, asked);
        let bytes = framed_len(&message);
        let answer = self.client.clone().read(message).await;
        self.note(Some(keyspace), Cause::Forward, bytes, &answer);
        forward_wire::to_read_reply(answer.map_err(|status| forward_wire::to_forward_error(&status))?.into_inner())
    }

    async fn metadata(&self, asked: MetadataRequest) -> Result<MetadataReply, PeerError> {
        let message = request(peer_wire::metadata_request(&self.identity, asked));
        let bytes = framed_len(message.get_ref());
        let answer = self.client.clone().metadata(message).await;
        self.note(None, Cause::Metadata, bytes, &answer);
        Ok(MetadataReply { body: answer.map_err(|status| to_peer(&status))?.into_inner().body })
    }
}
