//! Who votes: the leader keeps openraft's voters those members that serve, and its learners those that join.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isle_model::metadata::Metadata;
use isle_model::policy::MemberState;
use openraft::{ChangeMembers, Raft};
use tokio::time::{Instant, timeout};

use super::{Types, Voter, voter_id};

/// How long one change of the voters is waited for. It goes on by itself.
const CHANGE_MAX: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_millis(20);
/// How soon one that has not come about is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long one who has left stays a voter, so that it can hear that it has.
const LINGER: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Seats {
    /// Since when they have been seen to be no members any more.
    left: BTreeMap<u64, Instant>,
    /// Before that nothing more is tried: each attempt stirs openraft's metrics, which is what this is woken by.
    again_at: Option<Instant>,
}

impl Seats {
    /// At the leader. Does the next thing that is due, if anything; says when to look again.
    pub(super) async fn settle(&mut self, metadata: &Metadata, raft: &Raft<Types>) -> Option<Duration> {
        let now = Instant::now();
        if let Some(again_at) = self.again_at.filter(|at| *at > now) {
            return Some(again_at - now);
        }
        let wait = self.settle_one(metadata, raft).await;
        self.again_at = wait.map(|wait| Instant::now() + wait);
        wait
    }

    async fn settle_one(&mut self, metadata: &Metadata, raft: &Raft<Types>) -> Option<Duration> {
        let membership = raft.metrics().borrow().membership_config.membership().clone();
        // A change takes two steps, and whoever was to take the second may have been stopped.
        if membership.get_joint_config().len() > 1 {
            let finish = raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), true);
            return Some(waited(timeout(CHANGE_MAX, finish).await));
        }
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let seated: BTreeSet<u64> = membership.nodes().map(|(id, _)| *id).collect();
        let members =
            || metadata.members.iter().map(|(region, member)| (voter_id(region, member.joined), region, member.state));

        if let Some((id, region, _)) = members().find(|(id, ..)| !seated.contains(id)) {
            let added = raft.add_learner(id, Voter { region: region.clone() }, false);
            return Some(waited(timeout(CHANGE_MAX, added).await));
        }
        let serving = members().filter(|(.., state)| *state != MemberState::Joining).map(|(id, ..)| id);
        let promoted: BTreeSet<u64> = serving.filter(|id| !voters.contains(id)).collect();
        if !promoted.is_empty() {
            let change = raft.change_membership(ChangeMembers::AddVoterIds(promoted), true);
            return Some(waited(timeout(CHANGE_MAX, change).await));
        }
        let there: BTreeSet<u64> = members().map(|(id, ..)| id).collect();
        self.left.retain(|id, _| seated.contains(id) && !there.contains(id));
        let now = Instant::now();
        for id in seated.difference(&there) {
            self.left.entry(*id).or_insert(now);
        }
        let since = *self.left.values().min()?;
        if now < since + LINGER {
            return Some(since + LINGER - now);
        }
        let due = |among: &BTreeSet<u64>| -> BTreeSet<u64> {
            self.left
                .iter()
                .filter(|(id, since)| among.contains(id) && now >= **since + LINGER)
                .map(|(id, _)| *id)
                .collect()
        };
        let (unseated, forgotten) = (due(&voters), due(&seated));
        let change = match unseated.is_empty() {
            false => ChangeMembers::RemoveVoters(unseated),
            true => ChangeMembers::RemoveNodes(forgotten),
        };
        Some(waited(timeout(CHANGE_MAX, raft.change_membership(change, false)).await))
    }
}

/// Looks again soon after what came about, for more may be due.
fn waited<T, E>(done: Result<Result<T, E>, tokio::time::error::Elapsed>) -> Duration {
    if matches!(done, Ok(Ok(_))) { SOON } else { RETRY }
}
