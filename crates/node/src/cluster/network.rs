//! openraft's calls, over the connections to the peers.

use std::sync::Arc;

use isle_model::Region;
use openraft::error::{
    InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};

use super::wire::{ASK_BYTES_MAX, Answer, Ask, Envelope, decode, encode};
use super::{Types, Voter};
use crate::peer::{MetadataRequest, PeerError};
use crate::shared::Shared;

pub(crate) struct Network(pub(crate) Arc<Shared>);

impl RaftNetworkFactory<Types> for Network {
    type Network = Line;

    async fn new_client(&mut self, target: u64, node: &Voter) -> Line {
        Line { shared: self.0.clone(), target, region: node.region.clone() }
    }
}

pub(crate) struct Line {
    shared: Arc<Shared>,
    target: u64,
    region: Region,
}

/// Asks a region. An error of `NotReady`, `Incompatible` or `Stopping` says that it has done nothing.
pub(crate) async fn ask(shared: &Shared, region: &Region, ask: Ask) -> Result<Answer, PeerError> {
    let (founders, joined) = (shared.group.founders(), shared.group.storage().joined());
    let body = encode(&Envelope { founders, joined, voter: None, ask });
    send(shared, region, body).await
}

async fn send(shared: &Shared, region: &Region, body: bytes::Bytes) -> Result<Answer, PeerError> {
    let handle = shared.peers.get(region).and_then(|slot| slot.handle.lock().clone());
    let handle = handle.ok_or_else(|| PeerError::NotReady { reason: format!("{region} is not connected") })?;
    let incarnation = shared.store.incarnation();
    let request = MetadataRequest { asker: shared.me().clone(), incarnation, to: region.clone(), body };
    decode(&handle.metadata(request).await?.body)
}

type Failed<E = openraft::error::Infallible> = RPCError<u64, Voter, RaftError<u64, E>>;

/// openraft waits a while before it asks again whoever cannot be reached.
fn failed<E: std::error::Error>(error: &PeerError) -> Failed<E> {
    match error {
        PeerError::Corrupt { .. } => RPCError::Network(NetworkError::new(error)),
        _ => RPCError::Unreachable(Unreachable::new(error)),
    }
}

fn misplaced<E: std::error::Error>() -> Failed<E> {
    failed(&PeerError::Corrupt { reason: "an answer to another question".to_owned() })
}

impl Line {
    fn envelope(&self, ask: Ask) -> bytes::Bytes {
        let group = &self.shared.group;
        let (founders, joined) = (group.founders(), group.storage().joined());
        encode(&Envelope { founders, joined, voter: Some(self.target), ask })
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, PeerError> {
        send(&self.shared, &self.region, self.envelope(ask)).await
    }
}

impl RaftNetwork<Types> for Line {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed> {
        let entries = rpc.entries.len() as u64;
        let (vote, from, sent) = (rpc.vote, rpc.prev_log_id, rpc.entries.last().map(|entry| entry.log_id));
        let body = self.envelope(Ask::Append(rpc));
        if body.len() > ASK_BYTES_MAX && entries > 1 {
            return Err(RPCError::PayloadTooLarge(PayloadTooLarge::new_entries_hint(entries / 2)));
        }
        let answer = match send(&self.shared, &self.region, body).await.map_err(|error| failed(&error))? {
            Answer::Append(answer) => answer,
            _ => return Err(misplaced()),
        };
        match answer {
            AppendEntriesResponse::Success => self.shared.group.matched(self.target, vote, sent.max(from)),
            AppendEntriesResponse::Conflict if self.shared.group.has_matched(self.target, vote, from) => {
                let reason = format!("{} has lost what it had of the metadata's log", self.region);
                self.shared.group.reverted(&reason);
                return Err(failed(&PeerError::NotReady { reason }));
            }
            _ => {}
        }
        Ok(answer)
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<InstallSnapshotError>> {
        let (vote, whole) = (rpc.vote, rpc.meta.last_log_id.filter(|_| rpc.done));
        match self.ask(Ask::Snapshot(rpc)).await.map_err(|error| failed(&error))? {
            Answer::Snapshot(Ok(answer)) => {
                if answer.vote <= vote {
                    self.shared.group.matched(self.target, vote, whole);
                }
                Ok(answer)
            }
            Answer::Snapshot(Err(error)) => {
                let error = RemoteError::new(self.target, RaftError::APIError(error));
                Err(RPCError::RemoteError(error))
            }
            _ => Err(misplaced()),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, _: RPCOption) -> Result<VoteResponse<u64>, Failed> {
        match self.ask(Ask::Vote(rpc)).await.map_err(|error| failed(&error))? {
            Answer::Vote(answer) => Ok(answer),
            _ => Err(misplaced()),
        }
    }
}
