//! Moving homes, online.
//!
//! ```text
//! metadata: a new epoch ─▶ the old home writes, with the whole record, that another region is its home
//!                          ─▶ from there on it takes no write of the key ─▶ the new home hears it, and has all that went before
//! ```
//! The law it keeps: a key has one home at a time. The old home's last word brings everything that it acknowledged, and what it
//! had of others, since its stream alone does not. Until the new home has absorbed it writes of the key wait, and none is lost or taken twice.

use std::time::Duration;

use bytes::Bytes;
use isle_model::metadata::Command;
use isle_model::{Epoch, KeyspaceId, Mutation, Region};
use tokio::time::Instant;

use crate::change::ChangeError;
use crate::shard_loop::read_failed;
use crate::shared::LinkCommand;
use crate::{Node, NodeError, RequestContext, Versions, WriteRequest};

/// Keys moved at once.
const KEYS_AT_ONCE: usize = 256;
const PAGE_BYTES: usize = 4 << 20;
/// How often it is looked whether the other regions have come so far.
const POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moved {
    Key(Bytes),
    /// Keys that begin so and are there; where the keyspace has a home map, those too that come later. Empty is every key.
    Prefix(Bytes),
}

#[derive(Clone, Debug)]
pub struct MoveRequest {
    pub keyspace: String,
    pub what: Moved,
    pub to: Region,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveReply {
    /// How many keys had another home.
    pub moved: u64,
    pub epoch: Epoch,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Refused(#[from] NodeError),
    /// Ask again: what has moved stays moved.
    #[error("{moved} keys were moved, and then: {source}")]
    Stopped { moved: u64, source: NodeError },
}

impl Node {
    /// Moves the homes of a keyspace's keys to another region. Asking again finishes what was begun.
    pub async fn move_homes(&self, ctx: &RequestContext, request: MoveRequest) -> Result<MoveReply, MoveError> {
        let MoveRequest { keyspace, what, to } = request;
        let (id, has_map) = {
            let known = self.shared.catalog.known();
            let keyspace = self.keyspace(&known, &keyspace)?;
            (keyspace.id, matches!(keyspace.policy.home, Some(isle_model::policy::HomeRule::Prefixes(_))))
        };
        self.shared.check_serving()?;
        let prefix = match &what {
            Moved::Prefix(prefix) if has_map => Some(text_of(prefix)?),
            _ => None,
        };
        let changed = self.change(ctx, Command::Move { id, to: to.clone(), prefix }).await?;
        let epoch = Epoch(changed.map_or(0, |keyspace| keyspace.epoch));
        let moved = match what {
            Moved::Key(key) => self.move_some(ctx, &keyspace, vec![key], &to, epoch).await?,
            Moved::Prefix(prefix) => {
                self.hear_everybody(ctx, id).await?;
                self.move_prefix(ctx, (&keyspace, id), &prefix, &to, epoch).await?
            }
        };
        Ok(MoveReply { moved, epoch })
    }

    /// Waits until every other holder knows what this one does of the keyspace, and until everything is here that they had
    /// written by then: no key is made under the old map any more, and those that were are seen.
    async fn hear_everybody(&self, ctx: &RequestContext, id: KeyspaceId) -> Result<(), NodeError> {
        let deadline = self.deadline(ctx);
        let mut since = None;
        loop {
            let known = self.shared.catalog.known();
            let peers = self.shared.peers.all();
            // One that hands the keyspace over has to know as well: it may have made keys until then.
            let agreed = known.fingerprints().get(&id);
            let knows = |region: &&Region| peers.get(*region).is_some_and(|slot| slot.said.lock().get(&id) == agreed);
            let holders: Vec<&Region> = peers.keys().filter(|peer| known.takes_part(peer, id)).collect();
            let missing = holders.iter().find(|region| match since {
                None => !knows(region),
                Some(at) => {
                    let fresh = self.shared.fresh_as_of(&peers[**region], id);
                    fresh.is_none_or(|fresh| fresh < at)
                }
            });
            match (missing, since) {
                (None, None) => {
                    since = Some(self.shared.now());
                    if known.ship_interval(id).is_some() {
                        // A link that is down says it when it is up: what it ships then is as new.
                        for peer in &holders {
                            let _ = peers[*peer].commands.send(LinkCommand::Ship(id));
                        }
                    }
                }
                (None, Some(_)) => return Ok(()),
                (Some(region), _) if Instant::now() + POLL >= deadline => {
                    let reason = "what keys it has is not known here".to_owned();
                    return Err(NodeError::HomeUnreachable { home: (**region).clone(), reason });
                }
                (Some(_), _) => tokio::time::sleep(POLL).await,
            }
        }
    }

    async fn move_prefix(
        &self,
        ctx: &RequestContext,
        (name, id): (&str, KeyspaceId),
        prefix: &[u8],
        to: &Region,
        epoch: Epoch,
    ) -> Result<u64, MoveError> {
        let (mut start, mut moved) = (Bytes::copy_from_slice(prefix), 0);
        loop {
            let page = self.shared.store.scan(id, &start, None, KEYS_AT_ONCE, PAGE_BYTES).map_err(read_failed)?;
            let tree = self.shared.store.tree();
            let is_away = |(key, record): &(Bytes, std::sync::Arc<isle_model::Record>)| {
                record.home(tree.shard(self.shared.shard_of(id, key))).as_ref() != Some(to)
            };
            let is_over = page.rows.iter().any(|(key, _)| !key.starts_with(prefix));
            let rows = page.rows.into_iter().filter(|(key, _)| key.starts_with(prefix));
            let keys: Vec<Bytes> = rows.filter(is_away).map(|(key, _)| key).collect();
            if !keys.is_empty() {
                let done = self.move_some(ctx, name, keys, to, epoch).await;
                moved += done.map_err(|error| match error {
                    MoveError::Stopped { moved: some, source } => MoveError::Stopped { moved: moved + some, source },
                    other => other,
                })?;
            }
            match page.next.filter(|_| !is_over) {
                Some(next) => start = next,
                None => return Ok(moved),
            }
        }
    }

    /// Has the keys' homes write that they move. Says of how many the home was another one.
    async fn move_some(
        &self,
        ctx: &RequestContext,
        keyspace: &str,
        keys: Vec<Bytes>,
        to: &Region,
        epoch: Epoch,
    ) -> Result<u64, MoveError> {
        let request =
            |key| WriteRequest { epoch, ..WriteRequest::new(keyspace, key, Mutation::Move { to: to.clone() }) };
        let replies = self.write_batch(ctx, keys.into_iter().map(request).collect(), Versions::Omitted).await;
        let moved = replies.iter().filter(|reply| reply.as_ref().is_ok_and(|reply| reply.found)).count() as u64;
        match replies.into_iter().find_map(Result::err) {
            Some(source) => Err(MoveError::Stopped { moved, source }),
            None => Ok(moved),
        }
    }
}

/// The home map is metadata, and that is text.
fn text_of(prefix: &[u8]) -> Result<String, NodeError> {
    let reason = "the keyspace's home map has prefixes of UTF-8 alone".to_owned();
    String::from_utf8(prefix.to_vec()).map_err(|_| NodeError::BadField { field: "prefix", reason })
}
