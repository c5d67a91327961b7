//! Clients that make, change and delete keyspaces while faults run, and have a region leave and join again, and what must hold of it in the end: all regions know the
//! same, nothing that was acknowledged is lost, and no id was given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isle_model::metadata::{Command, Keyspace, Metadata, Step};
use isle_model::policy::{Member, MemberState, Policy, Residency, Scope, Tier};
use isle_model::{KeyspaceId, Region};
use isle_node::{ChangeError, Clock, Node, RequestContext};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::history::History;
use super::links::PEER_PORT;
use super::world::SimClock;
use super::{KEYSPACES, SITES};

const PAUSE_MS_MAX: u64 = 1200;
const NAMES: u32 = 12;
const MADE: &str = "made-";

/// What was answered.
#[derive(Default)]
pub struct Answered(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    made: Vec<Keyspace>,
    changed: Vec<Keyspace>,
    deleted: BTreeSet<KeyspaceId>,
    members: u64,
    /// How often it was asked for, and not refused. Whoever asked may have crashed.
    maybe_deleted: BTreeMap<KeyspaceId, u32>,
}

/// The site that comes and goes.
#[derive(Clone, Copy, Debug)]
pub enum Leaver {
    /// It leaves the cluster and joins it again.
    OfCluster(usize),
    /// It may hold the keyspaces no more, and may again.
    OfKeyspaces(usize),
}

/// How long changes may wait where they are not shipped as they come.
const INTERVALS_MS: [u64; 3] = [300, 2_000, 10_000];

pub struct Governor {
    pub node: Arc<Node>,
    pub site: usize,
    pub leaver: Option<Leaver>,
    /// Whether somebody asks for shipments.
    pub ships: bool,
    /// Whether the tiers of the keyspaces change that data is in.
    pub turns: bool,
    pub rng: StdRng,
    pub clock: Arc<SimClock>,
    pub history: Arc<History>,
    pub answered: Arc<Answered>,
}

impl Governor {
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(1..PAUSE_MS_MAX))).await;
            if self.ships && self.rng.random_bool(0.3) && !self.history.is_closed() {
                self.ship().await;
                continue;
            }
            let asked = match (self.history.is_closed(), self.leaver) {
                (false, None) if self.turns && self.rng.random_bool(0.5) => self.tier(),
                (false, None) => Some(self.command()),
                (false, Some(_)) if self.rng.random_bool(0.5) => Some(self.command()),
                (false, Some(Leaver::OfCluster(site))) => self.membership(site),
                (false, Some(Leaver::OfKeyspaces(site))) => self.residency(site, false),
                (true, None) => return,
                // In the end all are there again, also after a leave of which nobody knew whether it would come about.
                (true, Some(Leaver::OfCluster(site))) => {
                    self.membership(site).filter(|next| matches!(next, Command::Join { .. }))
                }
                (true, Some(Leaver::OfKeyspaces(site))) => self.residency(site, true),
            };
            let Some(command) = asked else { continue };
            let patience = Duration::from_millis(self.rng.random_range(200..4000));
            let ctx = RequestContext { deadline: Some(Instant::now() + patience), ..RequestContext::default() };
            self.answered.asked(&command);
            let outcome = self.node.change(&ctx, command.clone()).await;
            let told = format!("{} has {command:?} decided: {outcome:?}", self.site);
            self.history.event(self.clock.monotonic(), &told);
            self.answered.note(&command, &outcome);
        }
    }

    async fn ship(&mut self) {
        let name = KEYSPACES[self.rng.random_range(0..KEYSPACES.len())].name;
        let patience = Duration::from_millis(self.rng.random_range(200..4000));
        let ctx = RequestContext { deadline: Some(Instant::now() + patience), ..RequestContext::default() };
        let shipped = self.node.ship(&ctx, name).await;
        self.history.event(self.clock.monotonic(), &format!("{} ships {name}: {shipped:?}", self.site));
    }

    /// Another tier for one of the keyspaces that data is in.
    fn tier(&mut self) -> Option<Command> {
        let metadata = self.node.metadata();
        let id = KEYSPACES[self.rng.random_range(0..KEYSPACES.len())].id;
        let keyspace = metadata.keyspaces.get(&id).filter(|_| metadata.revision > 0)?;
        let tier = match self.rng.random_range(0..=INTERVALS_MS.len()) {
            0 => Tier::Hot,
            n => Tier::Warm(Duration::from_millis(INTERVALS_MS[n - 1])),
        };
        let policy = Policy { tier, ..keyspace.policy.clone() };
        Some(Command::Update { id, expected: keyspace.revision, policy })
    }

    fn state_of(&self, leaver: usize) -> Option<MemberState> {
        self.node.metadata().members.get(&Region::new(SITES[leaver])).map(|member| member.state)
    }

    /// What is next for the region that leaves and joins.
    fn membership(&self, leaver: usize) -> Option<Command> {
        let region = Region::new(SITES[leaver]);
        if self.node.metadata().revision == 0 {
            return None;
        }
        match self.state_of(leaver) {
            None => {
                let endpoint = format!("http://{}:{PEER_PORT}", SITES[leaver]);
                Some(Command::Join { region, member: Member { endpoint, ..Member::default() } })
            }
            Some(MemberState::Serving) => Some(Command::Leave { region }),
            Some(_) => None,
        }
    }

    /// What is next for a region that may hold a keyspace, or may not. In the end it may.
    fn residency(&mut self, site: usize, is_end: bool) -> Option<Command> {
        let (metadata, region) = (self.node.metadata(), Region::new(SITES[site]));
        let id = KEYSPACES[self.rng.random_range(0..KEYSPACES.len())].id;
        let keyspace = metadata.keyspaces.get(&id).filter(|_| metadata.revision > 0)?;
        let residency = match keyspace.step(&region) {
            Some(Step::Gone) => Residency::All,
            Some(Step::Taking) | None if !is_end => {
                let others = metadata.members.keys().filter(|other| **other != region).cloned();
                Residency::Within { jurisdictions: BTreeSet::new(), regions: others.collect() }
            }
            _ => return None,
        };
        let policy = Policy { residency, ..keyspace.policy.clone() };
        Some(Command::Update { id, expected: keyspace.revision, policy })
    }

    /// One of the keyspaces that no data is in.
    fn command(&mut self) -> Command {
        let metadata = self.node.metadata();
        let ours: Vec<&Keyspace> = metadata.keyspaces.values().filter(|ks| ks.name.starts_with(MADE)).collect();
        let name = format!("{MADE}{}", self.rng.random_range(0..NAMES));
        if ours.is_empty() || self.rng.random_bool(0.5) {
            return Command::Create { name, policy: Policy::of_scope(Scope::Global) };
        }
        let keyspace = ours[self.rng.random_range(0..ours.len())];
        if self.rng.random_bool(0.4) {
            let expected = Some(keyspace.revision).filter(|_| self.rng.random_bool(0.5));
            return Command::Delete { id: keyspace.id, expected };
        }
        let labels = [("count".to_owned(), self.rng.random_range(0..1000).to_string())].into();
        let policy = Policy { labels, ..keyspace.policy.clone() };
        Command::Update { id: keyspace.id, expected: keyspace.revision, policy }
    }
}

impl Answered {
    fn asked(&self, command: &Command) {
        if let Command::Delete { id, .. } = command {
            *self.0.lock().maybe_deleted.entry(*id).or_default() += 1;
        }
    }

    fn note(&self, command: &Command, outcome: &Result<Option<Keyspace>, ChangeError>) {
        let mut inner = self.0.lock();
        let is_refused = matches!(outcome, Err(error) if !matches!(error, ChangeError::OutcomeUnknown { .. }));
        if let (Command::Delete { id, .. }, true) = (command, is_refused) {
            *inner.maybe_deleted.entry(*id).or_default() -= 1;
        }
        match (command, outcome) {
            (Command::Create { .. }, Ok(Some(made))) => inner.made.push(made.clone()),
            (Command::Update { .. }, Ok(Some(changed))) if changed.name.starts_with(MADE) => {
                inner.changed.push(changed.clone())
            }
            (Command::Update { .. }, Ok(_)) => inner.members += 1,
            (Command::Delete { id, .. }, Ok(_)) => _ = inner.deleted.insert(*id),
            (Command::Join { .. } | Command::Leave { .. }, Ok(_)) => inner.members += 1,
            _ => {}
        }
    }

    /// How many changes were acknowledged.
    pub fn count(&self) -> u64 {
        let inner = self.0.lock();
        (inner.made.len() + inner.changed.len() + inner.deleted.len()) as u64
    }

    /// How often a region was let in or told to leave, the cluster or a keyspace.
    pub fn members(&self) -> u64 {
        self.0.lock().members
    }

    /// What is wrong in the end, given what every region knows.
    pub fn check(&self, metadata: &Metadata) -> Result<(), String> {
        let inner = self.0.lock();
        let mut names: BTreeMap<KeyspaceId, &str> = BTreeMap::new();
        for made in &inner.made {
            if let Some(other) = names.insert(made.id, &made.name) {
                return Err(format!("id {} was given to {other} and to {}", made.id.0, made.name));
            }
        }
        for told in inner.made.iter().chain(&inner.changed) {
            match metadata.keyspaces.get(&told.id) {
                Some(known) if known.revision < told.revision => {
                    return Err(format!("{told:?} was acknowledged, and is {known:?}"));
                }
                Some(known) if known.revision == told.revision && known != told => {
                    return Err(format!("{told:?} was acknowledged, and is {known:?}"));
                }
                Some(known) if known.name != told.name => return Err(format!("{told:?} became {known:?}")),
                Some(_) => {}
                None if inner.maybe_deleted.get(&told.id).is_some_and(|asked| *asked > 0) => {}
                None => return Err(format!("{told:?} was acknowledged, and is gone")),
            }
        }
        match inner.deleted.iter().find(|id| metadata.keyspaces.contains_key(id)) {
            Some(back) => Err(format!("keyspace {} was deleted, and is there", back.0)),
            None => Ok(()),
        }
    }
}
