//! Changes of what all regions agree on.

use std::time::Duration;

use isle_model::Region;
use isle_model::metadata::{Command, Keyspace, Refused};
use isle_model::policy::{Fault, Member};

use crate::peers::PeerSlot;
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
    /// It was to be given up, and answers. Nothing was changed.
    #[error("{region} answers: let it leave instead, so that what it took is not lost")]
    IsAlive { region: Region },
}

/// A region that was heard so lately is not taken for lost.
const SILENT_MIN: Duration = Duration::from_secs(5);

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

    /// Lets a region in. It serves once it has the cluster's state.
    pub async fn add_region(&self, ctx: &RequestContext, region: Region, member: Member) -> Result<(), ChangeError> {
        self.change(ctx, Command::Join { region, member }).await.map(drop)
    }

    /// Has a region leave, once the others have what it took. One that is `lost` goes at once, if this node does not hear it.
    pub async fn remove_region(&self, ctx: &RequestContext, region: Region, lost: bool) -> Result<(), ChangeError> {
        if !lost {
            return self.change(ctx, Command::Leave { region }).await.map(drop);
        }
        let is_heard = |slot: &PeerSlot| slot.link.lock().away(self.shared.now()) < SILENT_MIN;
        if region == *self.shared.me() || self.shared.peers.get(&region).is_some_and(|slot| is_heard(&slot)) {
            return Err(ChangeError::IsAlive { region });
        }
        self.change(ctx, Command::Remove { region, joined: None }).await.map(drop)
    }
}
