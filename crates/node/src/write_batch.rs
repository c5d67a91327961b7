//! Many writes at once: each goes where its key's home is, and is answered on its own.
//!
//! ```text
//! writes ─▶ whither? ─┬ here ─▶ a group a shard ─▶ one job each, one fsync for all
//!     ▲               └ there ─▶ one call a home and keyspace
//!     └─ refused: the home is elsewhere ◀┘
//! ```
//! The law it keeps: writes of one key keep their order. They go the same way in one round, and are taken or refused together.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use isle_model::{Epoch, KeyspaceId, Region, ShardId, planted};

use crate::catalog::Known;
use crate::forward::{Patience, home_named};
use crate::node::{Subject, check_home, outcomes_by, unconfirmed};
use crate::shard_queue::{self, WriteAsk, WriteOutcomes, Written};
use crate::{Node, NodeError, RequestContext, Versions, WriteReply, WriteRequest};

/// A write of a batch on its way to whoever carries it out.
#[derive(Clone)]
pub(crate) struct Asked {
    /// Where in the batch it stands.
    place: usize,
    pub(crate) request: WriteRequest,
    /// The home that a refusal named.
    pub(crate) told: Option<Region>,
}

enum Whither {
    /// `may_move`: another region may turn out to be its home.
    Here {
        may_move: bool,
    },
    There {
        home: Region,
        keyspace: KeyspaceId,
    },
}

/// Where the keys of one round go.
type Decided = HashMap<(KeyspaceId, Bytes), Region>;

/// One a request; `None` while it is not answered.
type Replies = Vec<Option<Result<WriteReply, NodeError>>>;

impl Node {
    /// Many writes at once, each with an outcome of its own. Not atomic. Writes to one key keep their order.
    pub async fn write_batch(
        &self,
        ctx: &RequestContext,
        requests: Vec<WriteRequest>,
        versions: Versions,
    ) -> Vec<Result<WriteReply, NodeError>> {
        let mut replies: Replies = requests.iter().map(|_| None).collect();
        let asked = requests.into_iter().enumerate();
        let mut asked: Vec<Asked> = asked.map(|(place, request)| Asked { place, request, told: None }).collect();
        let mut patience = Patience::until(self.deadline(ctx));
        loop {
            asked = self.write_round(ctx, asked, versions, &mut replies).await;
            if asked.is_empty() || !patience.another_round().await {
                break;
            }
        }
        for Asked { place, told, request } in asked {
            let known = self.shared.catalog.known();
            let epoch = known.named(&request.keyspace).map_or(0, |keyspace| keyspace.epoch);
            if let Some(home) = told {
                replies[place] = Some(Err(self.shared.not_home(home, Epoch(epoch))));
            }
        }
        replies.into_iter().map(|reply| reply.expect("every request was answered, or told of a home")).collect()
    }

    /// Carries out what is this region's, and has the others' done there. Returns what turned out to have another home.
    async fn write_round(
        &self,
        ctx: &RequestContext,
        asked: Vec<Asked>,
        versions: Versions,
        replies: &mut Replies,
    ) -> Vec<Asked> {
        let mut groups: Vec<Group> = self.shared.shards().map(Group::new).collect();
        let mut away: BTreeMap<(Region, KeyspaceId), Vec<Asked>> = BTreeMap::new();
        let mut spare: Vec<Asked> = Vec::new();
        // Once a key: were it asked again for a later write of it, a move in between would part the two.
        let mut decided = Decided::new();
        let known = self.shared.catalog.known();
        for asked in asked {
            match self.whither(ctx, &known, &asked, &mut decided) {
                Ok(Whither::There { home, keyspace }) => away.entry((home, keyspace)).or_default().push(asked),
                Ok(Whither::Here { may_move }) => {
                    if may_move && asked.request.forward && ctx.hops == 0 {
                        spare.push(asked.clone());
                    }
                    match self.check(ctx, asked.request) {
                        Ok((subject, ask)) => groups[subject.shard.0 as usize].push(asked.place, subject, ask),
                        Err(error) => replies[asked.place] = Some(Err(error)),
                    }
                }
                Err(error) => {
                    self.count_refusals(&error, 1);
                    replies[asked.place] = Some(Err(error));
                }
            }
        }
        let here = self.write_here(ctx, groups, versions);
        let there = futures::future::join_all(
            away.iter().map(|((home, keyspace), asked)| self.forward(ctx, home, *keyspace, asked, versions)),
        );
        let (here, there) = futures::future::join(here, there).await;
        here.into_iter().for_each(|(place, reply)| replies[place] = Some(reply));
        for (sent, answers) in away.into_values().zip(there) {
            for (asked, reply) in sent.into_iter().zip(answers) {
                replies[asked.place] = Some(reply);
                spare.push(asked);
            }
        }
        // In their order, so that of two writes of one key the first stays it.
        spare.sort_by_key(|asked| asked.place);
        let moved = |mut asked: Asked| {
            let refusal = replies[asked.place].as_ref().and_then(|reply| reply.as_ref().err())?;
            match home_named(refusal) {
                Some(home) => {
                    asked.told = Some(home);
                    replies[asked.place] = None;
                }
                // Asked anew in the next round. If there is none, that is the answer.
                None if known.named(&asked.request.keyspace).is_some_and(|ks| self.awaits_heirs(ks.id, refusal)) => {
                    asked.told = None;
                }
                None => return None,
            }
            Some(asked)
        };
        spare.into_iter().filter_map(moved).collect()
    }

    /// Where a write is to be carried out.
    fn whither(
        &self,
        ctx: &RequestContext,
        known: &Known,
        asked: &Asked,
        decided: &mut Decided,
    ) -> Result<Whither, NodeError> {
        let keyspace = self.keyspace(known, &asked.request.keyspace)?;
        if !keyspace.policy.is_forwarded() {
            return Ok(Whither::Here { may_move: false });
        }
        self.shared.check_serving()?;
        check_home(known, keyspace, &asked.request)?;
        let home = match decided.entry((keyspace.id, asked.request.key.clone())) {
            Entry::Occupied(before) => before.get().clone(),
            Entry::Vacant(first) => first.insert(self.home_of_request(known, keyspace, asked)?).clone(),
        };
        if home == *self.shared.me() || planted::is(planted::Bug::TakeForeignHome) {
            return Ok(Whither::Here { may_move: true });
        }
        if ctx.hops > 0 || !asked.request.forward {
            return Err(self.shared.not_home(home, Epoch(keyspace.epoch)));
        }
        Ok(Whither::There { home, keyspace: keyspace.id })
    }

    async fn write_here(
        &self,
        ctx: &RequestContext,
        mut groups: Vec<Group>,
        versions: Versions,
    ) -> Vec<(usize, Result<WriteReply, NodeError>)> {
        groups.retain(|group| !group.asks.is_empty());
        // All are queued before the first is waited for: shards work side by side, and one fsync serves them all.
        let queued: Vec<_> =
            groups.iter_mut().map(|group| self.queue(group.shard, std::mem::take(&mut group.asks))).collect();
        let (mut replies, mut waits) = (Vec::new(), Vec::new());
        for (group, queued) in groups.into_iter().zip(queued) {
            let outcomes = match queued {
                Ok(answered) => outcomes_by(ctx.deadline, answered).await,
                Err(error) => Err(error),
            };
            group.settle(outcomes, |place, subject, outcome| {
                let reply = outcome.and_then(|written| {
                    waits.extend(subject.wait(place, &written));
                    self.reply(subject, written, versions)
                });
                replies.push((place, reply));
            });
        }
        if !waits.is_empty() {
            let late: BTreeSet<usize> = self.await_holders(ctx, waits).await.iter().map(|wait| wait.place).collect();
            replies
                .iter_mut()
                .filter(|(place, _)| late.contains(place))
                .for_each(|(_, reply)| *reply = Err(unconfirmed()));
        }
        replies
    }
}

/// The writes of a batch that go to one shard.
struct Group {
    shard: ShardId,
    asks: Vec<WriteAsk>,
    /// Where in the batch each stands.
    subjects: Vec<(usize, Subject)>,
}

impl Group {
    fn new(shard: ShardId) -> Group {
        Group { shard, asks: Vec::new(), subjects: Vec::new() }
    }

    fn push(&mut self, place: usize, subject: Subject, ask: WriteAsk) {
        self.asks.push(ask);
        self.subjects.push((place, subject));
    }

    /// Says what became of each. Those that have no outcome found no room in the queue.
    fn settle(
        self,
        outcomes: Result<WriteOutcomes, NodeError>,
        mut say: impl FnMut(usize, &Subject, Result<Written, NodeError>),
    ) {
        let (outcomes, failed) = match outcomes {
            Ok(outcomes) => (outcomes, shard_queue::overloaded()),
            Err(error) => (Vec::new(), error),
        };
        let mut outcomes = outcomes.into_iter();
        for (place, subject) in self.subjects {
            let outcome = outcomes.next().unwrap_or_else(|| Err(failed.clone()));
            say(place, &subject, outcome);
        }
    }
}
