//! This region's own way into keyspaces that it may hold since lately, and out of those that it may hold no more.
//!
//! ```text
//! Taking   every holder waits for it ─▶ what they have by then is owed ─▶ states, streams (replication/repair.rs) ─▶ Command::Step
//! Handing  no more writes ─▶ the others have absorbed all that is here ─▶ Command::Step
//! Purging  purged (maintenance.rs) ─▶ log, checkpoints and view no more of before that ─▶ Command::Step
//! ```
//! The laws it keeps: nothing is served of a keyspace before all of it is here; nothing is purged that another holder lacks, however
//! long one of them is away; and this region says that it is rid of a keyspace when no file of its has any of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use isle_model::metadata::{Command, Step};
use isle_model::{KeyspaceId, Region, Streams, planted};
use isle_store::Scrub;
use tokio::time::{Instant, sleep};

use crate::catalog::Known;
use crate::handover::{absorbed_by, finish_writes, is_confirmed, is_with_others};
use crate::members::say;
use crate::shared::{Shared, StreamKey};
use crate::standing::Owed;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How soon a peer is greeted again: its link is made anew for it.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A step of this region in one keyspace: one of the same name that comes later is another.
type Under = (KeyspaceId, u64);

pub(crate) struct Holdings {
    shared: Arc<Shared>,
    /// Taking: holders whose all is owed.
    heard: BTreeMap<Under, BTreeSet<Region>>,
    /// Handing: what was here when the last write was over.
    had: BTreeMap<Under, Vec<(StreamKey, Arc<Streams>)>>,
    /// When peers may be greeted again.
    asks_at: BTreeMap<Under, Instant>,
    /// What this region is to be rid of.
    purging: BTreeSet<Under>,
    /// What this region has been rid of, and has some of again: its directory was restored from a copy.
    found: BTreeSet<Under>,
    /// Steps that are done, and that the cluster has to agree on.
    done: BTreeSet<Under>,
    /// What the doctor set aside, and people were told of.
    aside: Option<String>,
    /// What the files are being rid of.
    scrub: Option<(BTreeSet<Under>, Scrub)>,
}

/// Holders that may not wait yet for this region, which comes to hold a keyspace.
pub(crate) fn unknown_to(shared: &Shared, known: &Known, keyspace: KeyspaceId) -> Vec<Region> {
    let agreed = known.fingerprints().get(&keyspace);
    let knows =
        |region: &Region| shared.peers.get(region).is_some_and(|slot| slot.said.lock().get(&keyspace) == agreed);
    holders(known, shared.me(), keyspace).filter(|region| !knows(region)).cloned().collect()
}

/// The others that have all of a keyspace.
fn holders<'a>(known: &'a Known, me: &'a Region, id: KeyspaceId) -> impl Iterator<Item = &'a Region> {
    let is_whole = move |region: &&Region| known.is_for(region, id) && !known.is_taking(region, id);
    known.others(me).filter(is_whole)
}

impl Holdings {
    pub(crate) fn new(shared: Arc<Shared>) -> Holdings {
        let (heard, had, asks_at) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Holdings {
            shared,
            heard,
            had,
            asks_at,
            purging: BTreeSet::new(),
            found: BTreeSet::new(),
            done: BTreeSet::new(),
            aside: None,
            scrub: None,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut catalog = self.shared.catalog.subscribe();
        loop {
            let steps = self.steps(&catalog.borrow_and_update().clone());
            if steps.is_empty() {
                if catalog.changed().await.is_err() {
                    return;
                }
                continue;
            }
            for (under, step) in steps {
                // Once is enough, whenever the cluster agrees: to ask costs links, by which it has to be heard.
                if !self.done.contains(&under) && !self.is_done(under, step).await {
                    continue;
                }
                if step == Step::Gone {
                    self.found.remove(&under);
                    continue;
                }
                self.done.insert(under);
                let ((id, since), region) = (under, self.shared.me().clone());
                say(&self.shared, Command::Step { id, region, since }).await;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// What this region has to do, and in which keyspaces.
    fn steps(&mut self, known: &Known) -> BTreeMap<Under, Step> {
        let me = self.shared.me();
        let keyspaces = known.metadata.keyspaces.values();
        let of_me = keyspaces.filter_map(|keyspace| Some((keyspace.id, keyspace.holding.get(me)?)));
        let mut steps: BTreeMap<Under, Step> = of_me.map(|(id, holding)| ((id, holding.since), holding.step)).collect();
        let gone = steps.iter().filter(|(_, step)| **step == Step::Gone).map(|(under, _)| *under);
        let found: Vec<Under> = gone.filter(|under| !self.is_purged(*under)).collect();
        self.found.extend(found);
        self.found.retain(|under| steps.get(under) == Some(&Step::Gone));
        steps.retain(|under, step| *step != Step::Gone || self.found.contains(under));
        self.heard.retain(|under, _| steps.contains_key(under));
        self.had.retain(|under, _| steps.contains_key(under));
        self.asks_at.retain(|under, _| steps.contains_key(under));
        self.done.retain(|under| steps.contains_key(under));
        let purging = steps.iter().filter(|(_, step)| matches!(step, Step::Purging | Step::Gone));
        self.purging = purging.map(|(under, _)| *under).collect();
        if self.purging.is_empty() {
            self.scrub = None;
        }
        self.shared.scrubbing.store(self.scrub.is_some(), Ordering::Relaxed);
        steps
    }

    async fn is_done(&mut self, under: Under, step: Step) -> bool {
        match step {
            Step::Taking => self.has_taken(under).await,
            Step::Handing => self.has_handed(under).await,
            Step::Purging | Step::Gone => self.is_rid(under).await,
        }
    }

    async fn has_taken(&mut self, under: Under) -> bool {
        if planted::is(planted::Bug::ServeHalf) {
            return true;
        }
        let (shared, known, (id, _)) = (self.shared.clone(), self.shared.catalog.known(), under);
        let unknown_to: BTreeSet<Region> = unknown_to(&shared, &known, id).into_iter().collect();
        let all: BTreeSet<Region> = holders(&known, shared.me(), id).cloned().collect();
        let heard = self.heard.entry(under).or_default();
        let unheard: Vec<Region> = all.difference(heard).cloned().collect();
        if unheard.is_empty() {
            return !shared.standing.lock().owed().keys().any(|(keyspace, _)| *keyspace == id);
        }
        let now = Instant::now();
        if self.asks_at.get(&under).is_some_and(|at| *at > now) {
            return false;
        }
        // What a holder has once it waits for this region is what this region is to have before it serves.
        for region in unheard {
            if unknown_to.contains(&region) {
                continue;
            }
            self.asks_at.insert(under, now + ASK_AGAIN);
            let Some(slot) = shared.peers.get(&region) else { continue };
            let Some(absorbed) = absorbed_by(&shared, &slot).await else { continue };
            let tree = shared.store.tree();
            let mut owed = Owed::new();
            for ((keyspace, shard), absorbed) in absorbed.into_iter().filter(|((keyspace, _), _)| *keyspace == id) {
                let absorbed: Vec<_> = absorbed.into_iter().collect();
                let lacks = || shared.store.streams(keyspace, shard).is_behind(&absorbed, tree.shard(shard));
                if shared.queue(shard).is_some() && lacks() {
                    owed.insert((keyspace, shard), absorbed);
                }
            }
            shared.standing.lock().compare(owed);
            heard.insert(region);
            shared.repair.notify_one();
        }
        false
    }

    async fn has_handed(&mut self, under: Under) -> bool {
        if !self.had.contains_key(&under) {
            tracing::info!(keyspace = under.0.0, "this region may not hold a keyspace any more, and hands it over");
            if let Err(error) = finish_writes(&self.shared).await {
                tracing::warn!(%error, "what was accepted is not committed yet");
                return false;
            }
            let of_it = |(stream, _): &(StreamKey, _)| stream.0 == under.0;
            self.had.insert(under, self.shared.store.all_streams().into_iter().filter(of_it).collect());
        }
        let Some(had) = self.had.get(&under) else { return false };
        let now = Instant::now();
        if self.asks_at.get(&under).is_some_and(|at| *at > now) || !is_confirmed(&self.shared, had) {
            return false;
        }
        self.asks_at.insert(under, now + ASK_AGAIN);
        is_with_others(&self.shared, had, Duration::MAX).await
    }

    async fn is_rid(&mut self, under: Under) -> bool {
        if planted::is(planted::Bug::GoneAtOnce) {
            return true;
        }
        let store = &self.shared.store;
        if let Some((of, scrub)) = &self.scrub {
            match (of.contains(&under), store.is_scrubbed(scrub)) {
                (true, is_over) => {
                    let aside = if is_over { None } else { store.set_aside() };
                    if aside.is_some() && aside != self.aside {
                        let keyspace = under.0.0;
                        tracing::warn!(keyspace, directory = aside, "what the doctor set aside may hold it: remove it");
                        self.aside = aside;
                    }
                    return is_over && self.is_purged(under);
                }
                (false, false) => return false,
                (false, true) => {}
            }
        }
        if !self.is_purged(under) {
            return false;
        }
        // One for all that are purged by now.
        let of: BTreeSet<Under> = self.purging.iter().filter(|under| self.is_purged(**under)).copied().collect();
        match self.shared.off_loop(|shared| shared.store.scrub()).await {
            Some(Ok(scrub)) => {
                self.shared.scrubbing.store(true, Ordering::Relaxed);
                self.scrub = Some((of, scrub));
            }
            Some(Err(error)) => tracing::warn!(%error, "the disk is not rid yet of what may not be on it"),
            None => {}
        }
        false
    }

    fn is_purged(&self, (id, _): Under) -> bool {
        let store = &self.shared.store;
        !store.kept().iter().any(|(keyspace, _)| *keyspace == id) && !store.purging().contains(&id)
    }
}
