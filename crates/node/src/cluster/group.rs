//! This region's seat in the group that agrees on the metadata: runs openraft, answers the other voters, and has changes decided.
//!
//! openraft stops for good at a storage error. The node goes on, with what it knows, and takes its seat again after a while: what
//! could not be written then has not been promised to anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isle_model::metadata::{Command, Keyspace, Metadata};
use isle_model::policy::MemberState;
use isle_model::{Region, planted};
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use openraft::{LogId, Raft, RaftMetrics, SnapshotPolicy, Vote};
use parking_lot::Mutex;
use rand::RngCore as _;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use xxhash_rust::xxh3::xxh3_64;

use super::network::{self, Network};
use super::runtime::Owner;
use super::seats::Seats;
use super::storage::{Machine, Storage};
use super::wire::{self, Answer, Ask, Decided, Envelope, Founded, SNAPSHOT_CHUNK_BYTES};
use super::{Types, Voter, voter_id};
use crate::change::ChangeError;
use crate::peer::{MetadataReply, MetadataRequest, PeerError};
use crate::replication::handshake::check_member;
use crate::shared::Shared;
use crate::{NodeConfig, RequestContext};

/// How often a voter that has no log yet looks whether most others are connected.
const FOUNDING_POLL: Duration = Duration::from_millis(20);
/// How often a region that joins and has heard nothing looks whether it was let in again.
const RESEAT_POLL: Duration = Duration::from_secs(2);
/// How long openraft is given to end by itself.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);
/// Entries in one ask.
const ENTRIES_MAX: u64 = 64;
/// Entries that are kept behind a snapshot, for regions that lack just these.
const ENTRIES_KEPT: u64 = 16;
/// How long a change is worked at for a caller who sets no deadline.
const CHANGE_PATIENCE: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_millis(100);
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// How this region stands to the cluster's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetadataStatus {
    /// Of the newest that is known here; 0 while it is only what the configuration says.
    pub revision: u64,
    /// Who decides on changes, as far as is known here.
    pub leader: Option<Region>,
    /// Whether this region hears from most regions, directly or by the leader. Without them nothing can be changed, and what is
    /// known here may be old.
    pub has_majority: bool,
}

/// To whom, and up to where.
type Confirmed = (Vote<u64>, LogId<u64>);

pub(crate) struct Group {
    storage: Storage,
    /// Of the founders' names.
    founders: AtomicU64,
    /// While openraft runs.
    raft: watch::Sender<Option<Raft<Types>>>,
    /// When a leader was heard last.
    heard: Mutex<Option<Instant>>,
    /// What each voter has confirmed of the log, and to which leadership of this one, since openraft was started.
    matched: Mutex<BTreeMap<u64, Confirmed>>,
    /// Why openraft has to start from what it can find out: a voter holds less than it once confirmed.
    reverted: watch::Sender<Option<String>>,
}

impl Group {
    pub(crate) fn new(storage: Storage) -> Group {
        let founders = AtomicU64::new(hash_of(&storage.founders()));
        Group {
            storage,
            founders,
            raft: watch::Sender::new(None),
            heard: Mutex::default(),
            matched: Mutex::default(),
            reverted: watch::Sender::new(None),
        }
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn founders(&self) -> u64 {
        self.founders.load(Ordering::Acquire)
    }

    /// Takes its seat in a cluster that others have founded. Only where nothing is known yet.
    fn adopt(&self, founders: BTreeSet<Region>, joined: u64) -> std::io::Result<()> {
        let hash = hash_of(&founders);
        self.storage.adopt(founders, joined)?;
        self.founders.store(hash, Ordering::Release);
        Ok(())
    }

    /// Notes what a voter has confirmed.
    pub(crate) fn matched(&self, voter: u64, vote: Vote<u64>, upto: Option<LogId<u64>>) {
        let Some(upto) = upto else { return };
        let mut matched = self.matched.lock();
        let before = matched.get(&voter).filter(|(other, _)| *other == vote).map(|(_, before)| *before);
        matched.insert(voter, (vote, before.map_or(upto, |before| before.max(upto))));
    }

    /// Whether a voter has confirmed that place of the log before.
    pub(crate) fn has_matched(&self, voter: u64, vote: Vote<u64>, at: Option<LogId<u64>>) -> bool {
        let index = |id: LogId<u64>| id.index;
        let matched = self.matched.lock().get(&voter).copied();
        matched.is_some_and(|(other, matched)| other == vote && at.map(index) <= Some(matched.index))
    }

    pub(crate) fn reverted(&self, why: &str) {
        self.reverted.send_replace(Some(why.to_owned()));
    }

    fn raft(&self) -> Option<Raft<Types>> {
        self.raft.borrow().clone()
    }
}

fn hash_of(founders: &BTreeSet<Region>) -> u64 {
    let names: Vec<&str> = founders.iter().map(Region::as_str).collect();
    xxh3_64(names.join("\n").as_bytes())
}

/// Runs until the node stops.
pub(crate) async fn run(shared: Arc<Shared>, mut rng: StdRng, mut stop: watch::Receiver<bool>) {
    loop {
        let owner = Owner::new(StdRng::seed_from_u64(rng.next_u64()));
        shared.group.matched.lock().clear();
        shared.group.reverted.send_replace(None);
        let ended = owner.own(seat(&shared, &mut stop)).await;
        shared.group.raft.send_replace(None);
        drop(owner);
        match ended {
            End::Stopping => return,
            End::Reverted(why) => {
                tracing::warn!(why, "a voter is completed anew");
                continue;
            }
            End::Broken(why) => {
                tracing::error!(why, "this region's part in the cluster's metadata has stopped, and is taken up again");
            }
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = until_writable(&shared) => {}
        }
    }
}

/// A leader that cannot write is to be replaced: it must be silent for long enough, and until it can.
async fn until_writable(shared: &Shared) {
    loop {
        tokio::time::sleep(5 * shared.config.metadata_election).await;
        match shared.group.storage.rewrite() {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "the cluster's metadata still cannot be written"),
        }
    }
}

/// How a run of openraft ended.
enum End {
    Stopping,
    /// A voter holds less than it once confirmed: its disk is new, or lied. openraft takes what was confirmed for kept; started
    /// anew it asks again.
    Reverted(String),
    Broken(String),
}

/// One run of openraft.
async fn seat(shared: &Arc<Shared>, stop: &mut watch::Receiver<bool>) -> End {
    let mut founds = false;
    if shared.group.storage.is_empty() {
        founds = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return End::Stopping,
            taken = take_seat(shared) => match taken {
                Ok(seat) => seat == Seat::Founder,
                Err(error) => return End::Broken(error.to_string()),
            },
        };
    }
    let (storage, catalog) = (shared.group.storage.clone(), shared.catalog.clone());
    let machine = Machine { storage: storage.clone(), catalog };
    let started = Raft::new(storage.voter(), config(&shared.config), Network(shared.clone()), storage, machine);
    let raft = match started.await {
        Ok(raft) => raft,
        Err(error) => return End::Broken(error.to_string()),
    };
    shared.group.raft.send_replace(Some(raft.clone()));
    let mut reverted = shared.group.reverted.subscribe();
    let ended = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => End::Stopping,
        Ok(why) = reverted.wait_for(Option::is_some) => End::Reverted(why.clone().unwrap_or_default()),
        why = tend(shared, &raft, founds) => End::Broken(why),
        why = reseated(shared) => End::Reverted(why),
    };
    // What it is waiting for may never come: what is left of it ends with its owner.
    let _ = timeout(SHUTDOWN_MAX, raft.shutdown()).await;
    ended
}

fn config(config: &NodeConfig) -> Arc<openraft::Config> {
    let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    Arc::new(openraft::Config {
        cluster_name: config.cluster.clone(),
        heartbeat_interval: ms(config.metadata_heartbeat),
        election_timeout_min: ms(config.metadata_election),
        election_timeout_max: ms(2 * config.metadata_election),
        install_snapshot_timeout: ms(SNAPSHOT_TIMEOUT),
        max_payload_entries: ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.metadata_log_entries),
        snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
        max_in_snapshot_log_to_keep: ENTRIES_KEPT.min(config.metadata_log_entries / 2),
        ..openraft::Config::default()
    })
}

/// Founds what has to be founded, and waits for openraft's end. Says why it ended.
async fn tend(shared: &Arc<Shared>, raft: &Raft<Types>, founds: bool) -> String {
    // Another's first vote may come before, and then this region has nothing to begin.
    while founds && shared.group.storage.is_empty() {
        if let Err(RaftError::Fatal(fatal)) = raft.initialize(voters(&shared.config)).await {
            return fatal.to_string();
        }
    }
    // There is nobody to wait for.
    if shared.peers.all().is_empty()
        && let Err(fatal) = raft.trigger().elect().await
    {
        return fatal.to_string();
    }
    let mut metrics = raft.metrics();
    let mut catalog = shared.catalog.subscribe();
    let mut seats = Seats::default();
    loop {
        catalog.mark_unchanged();
        let (running, leads) = {
            let now = metrics.borrow_and_update();
            (now.running_state.clone(), leads(&now))
        };
        if let Err(fatal) = running {
            return fatal.to_string();
        }
        let known = shared.catalog.known();
        let patience =
            if leads && known.metadata.revision > 0 { seats.settle(&known.metadata, raft).await } else { None };
        if leads && known.metadata.revision == 0 {
            let found = shared.config.found();
            // Whoever leads next tries again; and what is founded already refuses it.
            if let Err(error) = raft.client_write(found).await {
                tracing::debug!(%error, "the cluster is not founded yet");
            }
        }
        tokio::select! {
            biased;
            changed = metrics.changed() => if changed.is_err() {
                return "openraft has ended".to_owned();
            },
            _ = catalog.changed() => {}
            () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => {}
        }
    }
}

fn leads(metrics: &RaftMetrics<u64, Voter>) -> bool {
    metrics.current_leader == Some(metrics.id)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// Nobody knows of a cluster: the configured regions are to be its voters.
    Founder,
    /// The leader makes this region a voter, or has done so before its disk was lost.
    Adopted,
}

/// Finds out who this region is in the cluster, where its disk knows nothing.
async fn take_seat(shared: &Arc<Shared>) -> std::io::Result<Seat> {
    loop {
        let peers = shared.peers.all();
        let connected = peers.values().filter(|slot| slot.handle.lock().is_some()).count();
        // Before most are connected nobody can be elected.
        if 2 * (connected + 1) > peers.len() + 1 {
            match founded_elsewhere(shared).await {
                Elsewhere::Founded(founded) => {
                    adopt(shared, founded)?;
                    return Ok(Seat::Adopted);
                }
                Elsewhere::Nobody if !shared.config.join => return Ok(Seat::Founder),
                Elsewhere::Nobody | Elsewhere::Unclear => {}
            }
        }
        tokio::time::sleep(FOUNDING_POLL).await;
    }
}

fn voters(config: &NodeConfig) -> BTreeMap<u64, Voter> {
    config.regions().map(|region| (voter_id(region, 0), Voter { region: region.clone() })).collect()
}

/// Ends when a region that joins or leaves was let in by a later command than the one it has heard of: it was gone in between. While it has
/// heard nothing as what it took itself for, it goes on as the other; else it stops.
async fn reseated(shared: &Arc<Shared>) -> String {
    loop {
        tokio::time::sleep(RESEAT_POLL).await;
        let is_leaving = shared.catalog.known().is_leaving(shared.me());
        if !is_leaving && !shared.standing.lock().is_joining() {
            continue;
        }
        if let Elsewhere::Founded(founded) = founded_elsewhere(shared).await
            && joined_of(shared, &founded) > shared.group.storage.joined()
        {
            if !shared.group.storage.is_empty() {
                shared.stop_for_good(crate::members::GIVEN_UP);
                return std::future::pending().await;
            }
            match adopt(shared, founded) {
                Ok(()) => return "it was let in again".to_owned(),
                Err(error) => tracing::warn!(%error, "the place in the cluster cannot be noted"),
            }
        }
    }
}

fn joined_of(shared: &Shared, founded: &Founded) -> u64 {
    founded.members.get(shared.me()).map_or(0, |member| member.joined)
}

fn adopt(shared: &Shared, founded: Founded) -> std::io::Result<()> {
    let joined = joined_of(shared, &founded);
    shared.group.adopt(founded.founders, joined)?;
    // The leader may be one that no configuration here names.
    shared.catalog.adopt(founded.members);
    Ok(())
}

enum Elsewhere {
    Nobody,
    Founded(Founded),
    /// Too few have answered for a region that joins: those who have may not know of it yet.
    Unclear,
}

/// Who founded the cluster, if it has been, and what this region is in it.
async fn founded_elsewhere(shared: &Shared) -> Elsewhere {
    let peers = shared.peers.all();
    let asks =
        peers.keys().map(|region| timeout(shared.config.metadata_election, network::ask(shared, region, Ask::Founded)));
    let answers = futures::future::join_all(asks).await;
    let of_me = |founded: &Founded| founded.members.get(shared.me()).cloned().unwrap_or_default();
    let mut told: Vec<Founded> = Vec::new();
    let mut answered = 0;
    for answer in answers {
        if let Ok(Ok(Answer::Founded(founded))) = answer {
            answered += 1;
            told.extend(founded);
        }
    }
    let Some(joined) = told.iter().map(|founded| of_me(founded).joined).max() else { return Elsewhere::Nobody };
    told.retain(|founded| of_me(founded).joined == joined);
    // Whoever joins with an empty disk believes nobody who takes it for a voter: that is what it was before, and it has forgotten what
    // it voted for. Of most regions one at least has heard of the command that let it in.
    let is_joining = told.iter().all(|founded| of_me(founded).state == MemberState::Joining);
    match told.pop() {
        Some(founded) if !shared.config.join || (is_joining && 2 * answered > peers.len()) => {
            Elsewhere::Founded(founded)
        }
        _ => Elsewhere::Unclear,
    }
}

/// Answers another voter.
pub(crate) async fn serve(shared: &Shared, request: MetadataRequest) -> Result<MetadataReply, PeerError> {
    let envelope = admit(shared, &request)?;
    if let Ask::Founded = envelope.ask {
        return Ok(MetadataReply { body: wire::encode(&Answer::Founded(founded(shared, &request.asker))) });
    }
    let raft = shared.group.raft().ok_or_else(|| not_ready("its part in the metadata is not running"))?;
    let id = voter_id(&request.asker, envelope.joined);
    let heard = || *shared.group.heard.lock() = Some(Instant::now());
    let answer = match envelope.ask {
        Ask::Append(rpc) => {
            speaks_for_itself(id, &rpc.vote)?;
            let answer = raft.append_entries(rpc).await.map_err(|error| not_ready(&error.to_string()))?;
            if !matches!(answer, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
                heard();
            }
            Answer::Append(answer)
        }
        Ask::Vote(rpc) => {
            speaks_for_itself(id, &rpc.vote)?;
            Answer::Vote(raft.vote(rpc).await.map_err(|error| not_ready(&error.to_string()))?)
        }
        Ask::Snapshot(rpc) => {
            speaks_for_itself(id, &rpc.vote)?;
            heard();
            Answer::Snapshot(match raft.install_snapshot(rpc).await {
                Ok(answer) => Ok(answer),
                Err(RaftError::APIError(error)) => Err(error),
                Err(RaftError::Fatal(fatal)) => return Err(not_ready(&fatal.to_string())),
            })
        }
        Ask::Founded => Answer::Founded(founded(shared, &request.asker)),
        Ask::Confirm => Answer::Confirmed(confirm(&raft).await),
        Ask::Propose(command) => Answer::Proposed(propose(shared, &raft, command).await.map(Box::new)),
    };
    Ok(MetadataReply { body: wire::encode(&answer) })
}

fn founded(shared: &Shared, asker: &Region) -> Option<Founded> {
    let Metadata { revision, members, .. } = shared.group.storage.metadata();
    let is_known = revision > 0 && members.contains_key(asker);
    is_known.then(|| Founded { founders: shared.group.storage.founders(), members })
}

fn not_ready(reason: &str) -> PeerError {
    PeerError::NotReady { reason: reason.to_owned() }
}

/// Lets in what comes from a voter, of this cluster, for this region, and of the incarnation that goes on for its region: a copy
/// of a region's directory must not vote beside the original.
fn admit(shared: &Shared, request: &MetadataRequest) -> Result<Envelope, PeerError> {
    let MetadataRequest { asker, incarnation, to, body } = request;
    if *shared.stop.borrow() {
        return Err(PeerError::Stopping);
    }
    let misfit = |reason: String| Err(PeerError::Incompatible { reason });
    if to != shared.me() {
        return misfit(format!("called {to}, reached {}", shared.me()));
    }
    check_member(shared, asker)?;
    if !shared.peers.contains(asker) {
        return misfit(format!("{asker} is no peer of {}", shared.me()));
    }
    let envelope: Envelope = wire::decode(body)?;
    if let Ask::Founded = envelope.ask {
        // By whoever knows nothing yet, its founders neither.
        return Ok(envelope);
    }
    match shared.standing.lock().admitted(asker) {
        Some(admitted) if admitted == *incarnation => {}
        Some(admitted) => {
            return Err(not_ready(&format!("{asker} goes on as incarnation {admitted} here, not as {incarnation}")));
        }
        None => return Err(not_ready(&format!("{asker} has not said hello"))),
    }
    if envelope.founders != shared.group.founders() {
        return misfit(format!("{asker} was set up with other regions than {} was", shared.me()));
    }
    let known = shared.catalog.known();
    if known.metadata.members.get(asker).is_some_and(|member| member.joined > envelope.joined) {
        return Err(not_ready(&format!("{asker} was let in again since, and is another voter")));
    }
    if envelope.voter.is_some_and(|voter| voter != shared.group.storage.voter()) {
        return Err(not_ready(&format!("{} is not the voter any more that {asker} means", shared.me())));
    }
    Ok(envelope)
}

/// Nobody campaigns or leads in another's name.
fn speaks_for_itself(asker: u64, vote: &Vote<u64>) -> Result<(), PeerError> {
    match vote.leader_id().voted_for() {
        Some(id) if id == asker => Ok(()),
        _ => Err(PeerError::Corrupt { reason: "a vote in another region's name".to_owned() }),
    }
}

/// Whether this is the leader, and most regions hear it. An error says why not.
async fn confirm(raft: &Raft<Types>) -> Result<(), String> {
    if planted::is(planted::Bug::ChangeBeforeCommit) {
        return Ok(());
    }
    match raft.get_read_log_id().await {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => Err("it does not lead any more".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// At the leader. An error says why it does not know whether the change will come about.
async fn propose(shared: &Shared, raft: &Raft<Types>, command: Command) -> Result<Decided, String> {
    if planted::is(planted::Bug::ChangeBeforeCommit) {
        return propose_carelessly(shared, raft, command).await;
    }
    match raft.client_write(command).await {
        Ok(done) => Ok(Decided { index: done.log_id.index, outcome: done.data }),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
            Err("the leader was replaced meanwhile".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// The planted bug: says what will come of it before most regions have it.
async fn propose_carelessly(shared: &Shared, raft: &Raft<Types>, command: Command) -> Result<Decided, String> {
    let mut metadata = shared.group.storage.metadata();
    let index = raft.metrics().borrow().last_log_index.map_or(0, |last| last + 1);
    let outcome = metadata.apply(index, command.clone());
    raft.client_write_ff(command).await.map_err(|error| error.to_string())?;
    Ok(Decided { index: 0, outcome })
}

/// Has the cluster decide on a command, and waits until this node has heard of it.
pub(crate) async fn change(
    shared: &Shared,
    ctx: &RequestContext,
    command: Command,
) -> Result<Option<Keyspace>, ChangeError> {
    let deadline = ctx.deadline.unwrap_or_else(|| Instant::now() + CHANGE_PATIENCE);
    let Decided { index, outcome } = decide(shared, deadline, command).await?;
    let outcome = outcome?;
    let unknown = |reason: String| ChangeError::OutcomeUnknown { reason };
    let mut known = shared.catalog.subscribe();
    let here = timeout_at(deadline, known.wait_for(|known| known.metadata.revision >= index)).await;
    if !matches!(here, Ok(Ok(_))) {
        return Err(unknown("it has come about, and this region has not heard of it by the deadline".to_owned()));
    }
    Ok(outcome)
}

/// Has the cluster decide on a command. This node may not have heard of it yet.
pub(crate) async fn decide(shared: &Shared, deadline: Instant, command: Command) -> Result<Decided, ChangeError> {
    let leader = confirmed_leader(shared, deadline).await?;
    let unknown = |reason: String| ChangeError::OutcomeUnknown { reason };
    let proposed = timeout_at(deadline, propose_at(shared, &leader, command)).await;
    let proposed =
        proposed.map_err(|_| unknown(format!("{leader} has not said by the deadline what came of it")))??;
    proposed.map_err(unknown)
}

/// The leader, once it has made sure that most regions hear it: so that nothing is sent to one that could not decide. Waits for
/// one to be elected.
async fn confirmed_leader(shared: &Shared, deadline: Instant) -> Result<Region, ChangeError> {
    let election = 4 * shared.config.metadata_election;
    let until = deadline.min(Instant::now() + election);
    loop {
        let tried = timeout_at(until, try_leader(shared)).await;
        let why = match tried {
            Ok(Ok(leader)) => return Ok(leader),
            Ok(Err(why)) => why,
            Err(_) => "most regions cannot be reached".to_owned(),
        };
        if Instant::now() + RETRY >= until {
            return Err(ChangeError::Unavailable { reason: why });
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn try_leader(shared: &Shared) -> Result<Region, String> {
    let raft = shared.group.raft().ok_or("this region's part in it is not running")?;
    let leader = leader_of(&raft.metrics().borrow()).ok_or("no leader is known; most regions may be out of reach")?;
    if leader == *shared.me() {
        confirm(&raft).await?;
        return Ok(leader);
    }
    match network::ask(shared, &leader, Ask::Confirm).await {
        Ok(Answer::Confirmed(Ok(()))) => Ok(leader),
        Ok(Answer::Confirmed(Err(why))) => Err(format!("{leader}: {why}")),
        Ok(_) => Err(format!("{leader} answers another question")),
        Err(error) => Err(format!("{leader}: {error}")),
    }
}

async fn propose_at(
    shared: &Shared,
    leader: &Region,
    command: Command,
) -> Result<Result<Decided, String>, ChangeError> {
    let unavailable = |reason: String| ChangeError::Unavailable { reason };
    if leader == shared.me() {
        let raft = shared.group.raft().ok_or_else(|| unavailable("its part in it is not running".to_owned()))?;
        return Ok(propose(shared, &raft, command).await);
    }
    match network::ask(shared, leader, Ask::Propose(command)).await {
        Ok(Answer::Proposed(proposed)) => Ok(proposed.map(|decided| *decided)),
        Ok(_) => Err(ChangeError::OutcomeUnknown { reason: format!("{leader} answers another question") }),
        // It has said no, or was not asked.
        Err(
            error @ (PeerError::NotReady { .. }
            | PeerError::Incompatible { .. }
            | PeerError::NoMember { .. }
            | PeerError::Stopping),
        ) => Err(unavailable(format!("{leader}: {error}"))),
        Err(error) => Err(ChangeError::OutcomeUnknown { reason: format!("{leader}: {error}") }),
    }
}

fn leader_of(metrics: &RaftMetrics<u64, Voter>) -> Option<Region> {
    let leader = metrics.current_leader?;
    metrics.membership_config.membership().get_node(&leader).map(|voter| voter.region.clone())
}

pub(crate) fn status(shared: &Shared) -> MetadataStatus {
    let revision = shared.catalog.known().metadata.revision;
    let Some(raft) = shared.group.raft() else { return MetadataStatus { revision, ..MetadataStatus::default() } };
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    let leader = leader_of(&metrics);
    let patience = 2 * shared.config.metadata_election;
    let is_alone = metrics.membership_config.membership().voter_ids().count() == 1;
    let acked = metrics.millis_since_quorum_ack.map(Duration::from_millis);
    let heard = shared.group.heard.lock().map(|at| at.elapsed());
    let last = if leads(&metrics) { acked } else { heard };
    let has_majority = leader.is_some() && (is_alone || last.is_some_and(|last| last <= patience));
    MetadataStatus { revision, leader, has_majority }
}
