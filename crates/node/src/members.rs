//! Regions that come and go while the node runs: keeps its links those of the members that the cluster has agreed on, and sees this
//! region through its own joining and leaving.
//!
//! ```text
//! join    Command::Join ─▶ every member waits for it ─▶ all have said so ─▶ states, streams ─▶ has what they had ─▶ Command::Serve
//! leave   Command::Leave ─▶ takes no more writes ─▶ the others confirm all of its own ─▶ Command::Remove ─▶ stops
//! lost    Command::Remove ─▶ its links end; what one survivor has of it the others fetch (replication/repair.rs)
//! ```
//! The laws it keeps: no state is taken before every member waits for this region, for else one of them may forget a tombstone that
//! the state does not hold yet; and nobody ceases to be a member whose acknowledged writes no other has.

use std::sync::Arc;
use std::time::Duration;

use isle_model::Region;
use isle_model::metadata::{Command, Metadata, Refused};
use isle_model::policy::MemberState;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::catalog::Known;
use crate::change::ChangeError;
use crate::handover::{finish_writes, is_with_others};
use crate::holdings::Holdings;
use crate::node::rng_of;
use crate::peer::Connector;
use crate::peers::PeerSlot;
use crate::replication::inbound::Inbound;
use crate::shared::Shared;
use crate::standing::Standing;
use crate::{NodeConfig, PeerConfig, cluster};

/// How often what is waited for is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How soon what was not agreed on is said again.
const SAY_AGAIN: Duration = Duration::from_secs(1);
/// How long a change of this region's own state is worked at before it is tried again.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);
/// A peer that is away for longer does not keep a region from leaving, where another has what it took.
const AWAY_MAX: Duration = Duration::from_secs(10);

/// Of a region that has handed over what it took.
const LEFT: &str =
    "this region has left the cluster; the others hold all that its data directory does, but for its local keyspaces";
/// Of a region that was taken out while it did not hear of it.
pub(crate) const GIVEN_UP: &str =
    "this region is no region of the cluster any more; to join it again, start with an empty data directory";

/// The other members, how they are reached, and the commands that let them in: as they joined, and where that says nothing, as the
/// configuration does. Before the cluster has agreed on anything, whom the configuration names.
pub(crate) fn peers_of(config: &NodeConfig, metadata: &Metadata) -> Vec<(PeerConfig, u64)> {
    if metadata.members.is_empty() {
        return config.peers.iter().map(|peer| (peer.clone(), 0)).collect();
    }
    let others = metadata.members.iter().filter(|(region, _)| **region != config.region);
    let peer = |(region, member): (&Region, &isle_model::policy::Member)| {
        let configured = config.peers.iter().find(|peer| peer.region == *region);
        // Where it was let in with one, that is newer than what a configuration says.
        let or = |joined: &String, said: Option<&String>| match joined.is_empty() {
            true => said.cloned().unwrap_or_default(),
            false => joined.clone(),
        };
        let peer = PeerConfig {
            region: region.clone(),
            jurisdiction: member.jurisdiction.clone(),
            endpoint: or(&member.endpoint, configured.map(|peer| &peer.endpoint)),
            client_endpoint: or(&member.client_endpoint, configured.map(|peer| &peer.client_endpoint)),
        };
        (peer, member.joined)
    };
    others.map(peer).collect()
}

pub(crate) struct Members {
    shared: Arc<Shared>,
    connector: Arc<dyn Connector>,
    seed: u64,
    links: JoinSet<()>,
}

impl Members {
    /// Dials everybody who is a member already.
    pub(crate) fn new(
        shared: Arc<Shared>,
        connector: Arc<dyn Connector>,
        seed: u64,
        commanded: Vec<Commanded>,
    ) -> Members {
        let mut members = Members { shared, connector, seed, links: JoinSet::new() };
        commanded.into_iter().for_each(|(slot, commands)| members.dial(&slot, commands));
        members
    }

    fn dial(&mut self, slot: &PeerSlot, commands: Commands) {
        let (shared, connector, peer) = (self.shared.clone(), self.connector.clone(), slot.config.clone());
        let rng = rng_of(self.seed, peer.region.as_str());
        let link = Inbound { shared, connector, peer, commands, rng };
        self.links.spawn(link.run(self.shared.stop.subscribe()));
    }

    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let shared = self.shared.clone();
        let mut catalog = shared.catalog.subscribe();
        let (mut joining, mut leaving) = (std::pin::pin!(join(&shared)), std::pin::pin!(leave(&shared)));
        let mut holding = std::pin::pin!(Holdings::new(shared.clone()).run());
        let (mut joined, mut left) = (false, false);
        loop {
            self.follow(&catalog.borrow_and_update().clone());
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                changed = catalog.changed() => if changed.is_err() { break },
                () = &mut joining, if !joined => joined = true,
                () = &mut leaving, if !left => left = true,
                () = &mut holding => break,
            }
        }
        // They hear the same word.
        while self.links.join_next().await.is_some() {}
    }

    /// Makes links to new members, and ends those to former ones.
    fn follow(&mut self, known: &Known) {
        let metadata = &known.metadata;
        if metadata.revision > 0 && !metadata.members.contains_key(self.shared.me()) {
            // One that joins hears of the time before it was let in, too.
            let joined = self.shared.group.storage().joined();
            if !self.shared.standing.lock().is_joining() {
                self.shared.stop_for_good(LEFT);
            } else if joined > 0 && metadata.revision > joined {
                self.shared.stop_for_good(GIVEN_UP);
            }
            return;
        }
        let before = self.shared.peers.all();
        let is_there = |slot: &PeerSlot| {
            metadata.members.get(&slot.config.region).is_some_and(|member| member.joined == slot.joined)
        };
        for region in before.iter().filter(|(_, slot)| !is_there(slot)).map(|(region, _)| region) {
            tracing::info!(%region, "a region is no member of the cluster any more: nothing waits for it");
            self.shared.forget_peer(region);
        }
        for (peer, joined) in peers_of(&self.shared.config, metadata) {
            if self.shared.peers.contains(&peer.region) {
                continue;
            }
            tracing::info!(region = %peer.region, endpoint = peer.endpoint, "a region joins the cluster");
            let (slot, commands) = PeerSlot::new(peer, joined, &self.shared.config, self.shared.now());
            self.shared.note_peer(slot.clone());
            self.dial(&slot, commands);
        }
    }
}

pub(crate) type Commands = tokio::sync::mpsc::UnboundedReceiver<crate::shared::LinkCommand>;
pub(crate) type Commanded = (Arc<PeerSlot>, Commands);

/// What a region that joins still waits for.
pub(crate) fn progress(shared: &Shared, known: &Known, standing: &Standing) -> String {
    if known.metadata.revision == 0 {
        return "waits to be let in: `isle region add` at any region of the cluster. Is it a member already, whose disk was lost? \
                Then stop it, `isle region remove --lost`, and add it again"
            .to_owned();
    }
    let unknown_to = standing.unknown_to(known.others(shared.me()));
    if !unknown_to.is_empty() {
        let names: Vec<&str> = unknown_to.iter().map(Region::as_str).collect();
        return format!("waits until these regions are reached: {}", names.join(", "));
    }
    let records = shared.store.stats().keyspaces.iter().map(|keyspace| keyspace.records).sum::<u64>();
    match standing.owed().len() {
        0 => "has the cluster's state, and waits for the cluster to agree".to_owned(),
        waiting => format!("takes the cluster's state: {records} records so far, {waiting} shards not complete"),
    }
}

/// Where this region joins: has the cluster agree that it serves, once it has what the others had when they came to know it.
async fn join(shared: &Shared) {
    loop {
        sleep(LOOK_EVERY).await;
        let known = shared.catalog.known();
        let member = known.metadata.members.get(shared.me()).filter(|_| known.metadata.revision > 0);
        let is_ready = {
            let mut standing = shared.standing.lock();
            if !standing.is_joining() {
                return;
            }
            if member.is_some_and(|member| member.state != MemberState::Joining) {
                tracing::info!("this region has joined the cluster, and serves");
                standing.joined();
                return;
            }
            member.is_some() && standing.owed().is_empty() && standing.unknown_to(known.others(shared.me())).is_empty()
        };
        if is_ready {
            let joined = shared.group.storage().joined();
            say(shared, Command::Serve { region: shared.me().clone(), joined }).await;
        }
    }
}

/// Where this region leaves: has the cluster agree that it is gone, once the others have what it took.
async fn leave(shared: &Shared) {
    let mut catalog = shared.catalog.subscribe();
    let is_told = |known: &Arc<Known>| {
        known.metadata.members.get(shared.me()).is_some_and(|member| member.state == MemberState::Leaving)
    };
    if catalog.wait_for(is_told).await.is_err() {
        return;
    }
    tracing::info!("this region leaves the cluster: it takes no more writes");
    while let Err(error) = finish_writes(shared).await {
        tracing::warn!(%error, "what was accepted is not committed yet");
        sleep(LOOK_EVERY).await;
    }
    let had = shared.store.all_streams();
    while !is_with_others(shared, &had, AWAY_MAX).await {
        sleep(SAY_AGAIN).await;
    }
    tracing::info!("the others have all that this region took");
    loop {
        let joined = Some(shared.group.storage().joined());
        if say(shared, Command::Remove { region: shared.me().clone(), joined }).await {
            shared.stop_for_good(LEFT);
            return;
        }
        sleep(SAY_AGAIN).await;
    }
}

/// Says something of this region to the cluster; says whether it is agreed on.
pub(crate) async fn say(shared: &Shared, command: Command) -> bool {
    let decided = cluster::decide(shared, Instant::now() + CHANGE_PATIENCE, command).await;
    let outcome = decided.and_then(|decided| Ok(decided.outcome?));
    match outcome {
        Ok(_) => true,
        // It was agreed on before, and the answer was lost.
        Err(ChangeError::Refused(Refused::NoMember { .. } | Refused::Overtaken { .. } | Refused::Unknown { .. })) => {
            true
        }
        Err(error) => {
            tracing::info!(%error, "the cluster has not agreed yet");
            false
        }
    }
}
