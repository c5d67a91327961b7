//! What all regions agree on: the members, and the keyspaces with their policies. A replicated state machine, without the
//! replication: commands come in one order, each with its index, and the same commands leave the same state everywhere.
//!
//! The laws it keeps: an id is never given to a second keyspace; a change is made to the revision its maker saw, or not at all;
//! no keyspace is left with a policy that its members cannot keep. Keys never come here.

mod holders;
mod members;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::limits::{KEYSPACES_MAX, NAME_BYTES_MAX};
use crate::policy::{Fault, HomeRule, Member, MemberState, Members, Policy};
use crate::{KeyspaceId, Region};

pub use holders::{Heirs, Holding, Step};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The index of the command that changed it last; 0 while it is only what a configuration says.
    pub revision: u64,
    pub members: Members,
    pub keyspaces: BTreeMap<KeyspaceId, Keyspace>,
    /// The highest id ever given.
    pub id_max: u64,
    /// The highest id of the founding configuration. Up to there, one that is not there may just never have been given.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub founded_id_max: u64,
    /// Keyspaces of the founding configuration that were deleted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub founded_gone: BTreeSet<KeyspaceId>,
}

/// A keyspace, as all regions know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyspace {
    pub id: KeyspaceId,
    pub name: String,
    pub policy: Policy,
    /// The index of the command that made or changed it last: what a change is made conditional on.
    pub revision: u64,
    /// The index of the command that made it.
    pub created: u64,
    /// The index of the command that moved homes last; 0 before any.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u64,
    /// Regions that come to hold the data, or cease to. Those of its policy that are not named here have all of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub holding: BTreeMap<Region, Holding>,
    /// Who is in the place of regions that are homes no more, each time that one ceased to be; the oldest first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub heirs: BTreeMap<Region, Vec<Heirs>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// What the first leader's configuration says. Counts once, before anything else.
    Found {
        members: Members,
        keyspaces: Vec<(KeyspaceId, String, Policy)>,
    },
    Create {
        name: String,
        policy: Policy,
    },
    Update {
        id: KeyspaceId,
        expected: u64,
        policy: Policy,
    },
    /// Homes of the keyspace move. `prefix` is the home map's where it has one: keys that begin so, and are not there yet, go
    /// there too; `None` where only keys that are there move.
    Move {
        id: KeyspaceId,
        to: Region,
        prefix: Option<String>,
    },
    /// `expected` of `None` deletes whatever revision there is.
    Delete {
        id: KeyspaceId,
        expected: Option<u64>,
    },
    /// Said by a region that comes to hold a keyspace, or ceases to: it has done what its step asks for. `since` is the command that
    /// brought it there.
    Step {
        id: KeyspaceId,
        region: Region,
        since: u64,
    },
    /// A region is one of the cluster's from here on, and serves once it has the state of it.
    Join {
        region: Region,
        member: Member,
    },
    /// Said by the region itself: it has the state, and serves. `joined` is the command that let it in: one that was given up since, and
    /// let in anew, is another.
    Serve {
        region: Region,
        joined: u64,
    },
    /// A region takes no more writes, and goes when the others have what it took; one that joins goes at once.
    Leave {
        region: Region,
    },
    /// A region is none of the cluster's any more: nobody waits for it, or takes anything of it. Said by the region itself when it has
    /// left, with the command that let it in; or of one that is lost.
    Remove {
        region: Region,
        joined: Option<u64>,
    },
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    #[error("the cluster is founded already")]
    Founded,
    #[error("there is a keyspace {name:?} already")]
    Exists { name: String },
    /// It may have been there, and is gone.
    #[error("there is no keyspace of id {}", .id.0)]
    Unknown { id: KeyspaceId },
    /// Read it again, and decide again.
    #[error("the keyspace was changed meanwhile: its revision is {revision}")]
    Changed { revision: u64 },
    #[error("{}", .faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; "))]
    Faulty { faults: Vec<Fault> },
    #[error("there are {KEYSPACES_MAX} keyspaces, and there may be no more")]
    TooMany,
    #[error("{region} is a region of the cluster already")]
    IsMember { region: Region },
    #[error("{region} is no region of the cluster")]
    NoMember { region: Region },
    /// Such as one that leaves and is told to serve.
    #[error("{region} is {state:?}")]
    State { region: Region, state: MemberState },
    /// It was done before, or another change has come in between.
    #[error("{region} is at another step by now")]
    Overtaken { region: Region },
}

impl Keyspace {
    /// Equal in two regions exactly if they mean the same by it: name and policy. Not a check against attackers.
    pub fn fingerprint(&self) -> u64 {
        let Keyspace { id, name, policy, .. } = self;
        xxh3_64(format!("{} {name} {policy}", id.0).as_bytes())
    }
}

impl Metadata {
    /// What a configuration says, before the cluster has agreed on anything.
    pub fn provisional(members: Members, keyspaces: impl IntoIterator<Item = (KeyspaceId, String, Policy)>) -> Self {
        let mut out = Metadata { members, ..Metadata::default() };
        keyspaces.into_iter().for_each(|(id, name, policy)| out.insert(id, name, policy, 0));
        out
    }

    /// Whether the keyspace of this id was deleted: its data is purged wherever it is. An id that was never given is not gone: a region
    /// may know it from a configuration that the others do not share, and hold data of it.
    pub fn is_gone(&self, id: KeyspaceId) -> bool {
        match id.0 <= self.founded_id_max {
            true => self.founded_gone.contains(&id),
            false => self.revision > 0 && id.0 <= self.id_max && !self.keyspaces.contains_key(&id),
        }
    }

    pub fn named(&self, name: &str) -> Option<&Keyspace> {
        self.keyspaces.values().find(|keyspace| keyspace.name == name)
    }

    /// Carries a command out. Returns the keyspace that it made or changed, or the one that it deleted.
    pub fn apply(&mut self, index: u64, command: Command) -> Result<Option<Keyspace>, Refused> {
        let done = match command {
            Command::Found { members, keyspaces } => {
                if self.revision > 0 {
                    return Err(Refused::Founded);
                }
                *self = Metadata { members, ..Metadata::default() };
                keyspaces.into_iter().for_each(|(id, name, policy)| self.insert(id, name, policy, index));
                self.founded_id_max = self.id_max;
                None
            }
            Command::Create { name, policy } => {
                if self.named(&name).is_some() {
                    return Err(Refused::Exists { name });
                }
                if self.keyspaces.len() >= KEYSPACES_MAX {
                    return Err(Refused::TooMany);
                }
                let mut faults = policy.faults(&self.staying());
                faults.extend(name_fault(&name));
                refuse(faults)?;
                let id = KeyspaceId(self.id_max + 1);
                self.insert(id, name, policy, index);
                self.keyspaces.get(&id).cloned()
            }
            Command::Update { id, expected, policy } => {
                let staying = self.staying();
                let keyspace = self.keyspaces.get_mut(&id).ok_or(Refused::Unknown { id })?;
                if keyspace.revision != expected {
                    return Err(Refused::Changed { revision: keyspace.revision });
                }
                let mut faults = policy.faults(&staying);
                faults.extend(policy.faults_after(&keyspace.policy));
                faults.extend(keyspace.faults_of_holders(&policy, &self.members));
                refuse(faults)?;
                keyspace.change_holders(&policy, &self.members, index);
                (keyspace.policy, keyspace.revision) = (policy, index);
                Some(keyspace.clone())
            }
            Command::Move { id, to, prefix } => Some(self.move_homes(id, to, prefix, index)?),
            Command::Delete { id, expected } => {
                let keyspace = self.keyspaces.get(&id).ok_or(Refused::Unknown { id })?;
                if expected.is_some_and(|expected| expected != keyspace.revision) {
                    return Err(Refused::Changed { revision: keyspace.revision });
                }
                if id.0 <= self.founded_id_max {
                    self.founded_gone.insert(id);
                }
                self.keyspaces.remove(&id)
            }
            Command::Step { id, region, since } => {
                let keyspace = self.keyspaces.get_mut(&id).ok_or(Refused::Unknown { id })?;
                keyspace.step_on(&region, since, &self.members, index)?;
                Some(keyspace.clone())
            }
            Command::Join { region, member } => self.join(region, member, index).map(|()| None)?,
            Command::Serve { region, joined } => self.serve(region, joined, index).map(|()| None)?,
            Command::Leave { region } => self.leave(&region).map(|()| None)?,
            Command::Remove { region, joined } => self.remove(region, joined, index).map(|()| None)?,
        };
        self.revision = index;
        Ok(done)
    }

    fn move_homes(
        &mut self,
        id: KeyspaceId,
        to: Region,
        prefix: Option<String>,
        index: u64,
    ) -> Result<Keyspace, Refused> {
        let staying = self.staying();
        let keyspace = self.keyspaces.get_mut(&id).ok_or(Refused::Unknown { id })?;
        let mut policy = keyspace.policy.clone();
        let mut faults = Vec::new();
        match (&mut policy.home, prefix) {
            (None, _) => faults.push(fault("home", format!("a {} keyspace has no homes", policy.scope))),
            (Some(HomeRule::Prefixes(prefixes)), Some(prefix)) => {
                // Longer ones would keep what begins so from following.
                prefixes.retain(|longer, _| !longer.starts_with(&prefix));
                prefixes.insert(prefix, to.clone());
            }
            (Some(_), Some(_)) => faults.push(fault("home", "only prefixes(…) has prefixes to move".to_owned())),
            (Some(_), None) => {}
        }
        if !self.members.contains_key(&to) {
            faults.push(fault("to", format!("{to} is no region of the cluster")));
        } else if !self.members[&to].state.is_serving() {
            faults.push(fault("to", format!("{to} does not serve now (it is {:?})", self.members[&to].state)));
        } else if !policy.admits(&to, &self.members) {
            faults.push(fault("to", format!("{to} may not hold the data: residency={}", policy.residency)));
        } else if !keyspace.is_held_by(&to, &self.members) {
            faults.push(fault("to", format!("{to} does not have all of the data yet")));
        }
        faults.extend(policy.faults(&staying));
        refuse(faults)?;
        if keyspace.policy != policy {
            (keyspace.policy, keyspace.revision) = (policy, index);
        }
        keyspace.epoch = index;
        Ok(keyspace.clone())
    }

    fn insert(&mut self, id: KeyspaceId, name: String, policy: Policy, index: u64) {
        self.id_max = self.id_max.max(id.0);
        let keyspace = Keyspace {
            id,
            name,
            policy,
            revision: index,
            created: index,
            epoch: 0,
            holding: BTreeMap::new(),
            heirs: BTreeMap::new(),
        };
        self.keyspaces.insert(id, keyspace);
    }

    /// The regions that hold a copy of a keyspace's data, in the order of their names; none of one that is not there.
    pub fn holders(&self, id: KeyspaceId) -> impl Iterator<Item = &Region> {
        self.keyspaces.get(&id).into_iter().flat_map(|keyspace| keyspace.policy.holders(&self.members))
    }
}

fn refuse(faults: Vec<Fault>) -> Result<(), Refused> {
    if faults.is_empty() { Ok(()) } else { Err(Refused::Faulty { faults }) }
}

/// Names of clusters, regions and keyspaces end up in tables, metrics and URLs.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn fault(field: &'static str, rule: String) -> Fault {
    Fault { field: field.into(), rule }
}

pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn name_fault(name: &str) -> Option<Fault> {
    let rule = format!("{name:?} is not 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes and underscores");
    (!is_name(name)).then(|| fault("name", rule))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::policy::{Member, Replication, Scope, Writes};

    fn members() -> Members {
        ["eu", "us"].map(|region| (Region::new(region), member(region))).into()
    }

    fn member(jurisdiction: &str) -> Member {
        Member { jurisdiction: jurisdiction.to_owned(), ..Member::default() }
    }

    fn founded() -> Metadata {
        let mut metadata = Metadata::default();
        let keyspaces = vec![(KeyspaceId(7), "default".to_owned(), Policy::default())];
        metadata.apply(3, Command::Found { members: members(), keyspaces }).unwrap();
        metadata
    }

    fn create(name: &str) -> Command {
        Command::Create { name: name.to_owned(), policy: Policy::default() }
    }

    #[test]
    fn new_ids_are_above_all_that_ever_were() {
        let mut metadata = founded();
        let carts = metadata.apply(4, create("carts")).unwrap().unwrap();
        assert_eq!((carts.id, carts.revision), (KeyspaceId(8), 4));
        metadata.apply(5, Command::Delete { id: carts.id, expected: Some(4) }).unwrap();
        let again = metadata.apply(6, create("carts")).unwrap().unwrap();
        assert_eq!(again.id, KeyspaceId(9), "its keys are not those of the one that is gone");
    }

    #[test]
    fn gone_is_what_the_cluster_has_deleted_and_nothing_else() {
        let keyspaces = [(KeyspaceId(7), "default".to_owned(), Policy::default())];
        let provisional = Metadata::provisional(members(), keyspaces);
        assert!((0..20).all(|id| !provisional.is_gone(KeyspaceId(id))), "a configuration deletes nothing");
        let mut metadata = founded();
        metadata.apply(4, create("carts")).unwrap();
        assert!([7, 8, 9, u64::MAX].iter().all(|id| !metadata.is_gone(KeyspaceId(*id))));
        metadata.apply(5, Command::Delete { id: KeyspaceId(8), expected: None }).unwrap();
        assert!(metadata.is_gone(KeyspaceId(8)));
        assert!([7, 9, u64::MAX].iter().all(|id| !metadata.is_gone(KeyspaceId(*id))));
        metadata.apply(6, create("carts")).unwrap();
        assert!(metadata.is_gone(KeyspaceId(8)) && !metadata.is_gone(KeyspaceId(9)));
        metadata.apply(7, Command::Delete { id: KeyspaceId(7), expected: None }).unwrap();
        assert!(metadata.is_gone(KeyspaceId(7)), "of the founding configuration, and deleted");
        assert!((0..7).all(|id| !metadata.is_gone(KeyspaceId(id))), "never given: another configuration may name it");
    }

    #[test]
    fn a_cluster_is_founded_once() {
        let mut metadata = founded();
        let other = Command::Found { members: members(), keyspaces: Vec::new() };
        assert_eq!(metadata.apply(9, other), Err(Refused::Founded));
        assert_eq!(metadata, founded());
    }

    #[test]
    fn a_change_is_made_to_what_its_maker_saw_or_not_at_all() {
        let mut metadata = founded();
        let id = KeyspaceId(7);
        let anywhere = Policy { writes: Writes::Anywhere, ..Policy::default() };
        metadata.apply(4, Command::Update { id, expected: 3, policy: anywhere.clone() }).unwrap();
        let late = Command::Update { id, expected: 3, policy: Policy::default() };
        assert_eq!(metadata.apply(5, late), Err(Refused::Changed { revision: 4 }));
        assert_eq!(metadata.apply(6, Command::Delete { id, expected: Some(3) }), Err(Refused::Changed { revision: 4 }));
        assert_eq!(metadata.keyspaces[&id].policy, anywhere);
        assert_eq!(metadata.revision, 4, "what is refused changes nothing");
    }

    #[test]
    fn an_impossible_policy_changes_nothing() {
        let mut metadata = founded();
        let policy = Policy { replication: Replication::Sync(2), ..Policy::of_scope(Scope::Affine) };
        let command = Command::Create { name: "no spaces please".to_owned(), policy };
        let Err(Refused::Faulty { faults }) = metadata.apply(4, command) else { panic!("it was taken") };
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert_eq!(metadata, founded());
    }

    #[test]
    fn homes_move_under_a_new_epoch_and_only_to_holders() {
        let mut metadata = founded();
        let home = Some("prefixes(e/=eu,*=us)".parse().unwrap());
        let policy = Policy { home, residency: "eu,region:us".parse().unwrap(), ..Policy::default() };
        let id = metadata.apply(4, Command::Create { name: "carts".to_owned(), policy }).unwrap().unwrap().id;
        let to = |region: &str, prefix: Option<&str>| Command::Move {
            id,
            to: Region::new(region),
            prefix: prefix.map(str::to_owned),
        };
        let before = metadata.keyspaces[&id].clone();
        let moved = metadata.apply(5, to("us", Some("e/"))).unwrap().unwrap();
        assert_eq!((moved.epoch, moved.policy.home_of(b"e/1", &metadata.members)), (5, Some(Region::new("us"))));
        assert_ne!(moved.fingerprint(), before.fingerprint(), "new keys have another home");
        assert_ne!(moved.revision, before.revision, "and who saw the old map changes nothing by it");
        // Of single keys the metadata knows nothing but that some move.
        let moved = metadata.apply(6, to("eu", None)).unwrap().unwrap();
        assert_eq!(moved.revision, 5);
        assert_eq!((moved.epoch, moved.policy.home_of(b"e/1", &metadata.members)), (6, Some(Region::new("us"))));
        assert!(matches!(metadata.apply(7, to("mars", None)), Err(Refused::Faulty { .. })));
        // What begins with longer prefixes follows as well.
        let all = metadata.apply(7, to("eu", Some(""))).unwrap().unwrap();
        assert_eq!(all.policy.home.unwrap().to_string(), "prefixes(*=eu)");
        let creator = metadata.apply(8, create("other")).unwrap().unwrap().id;
        let command = Command::Move { id: creator, to: Region::new("eu"), prefix: Some("e/".to_owned()) };
        assert!(matches!(metadata.apply(9, command), Err(Refused::Faulty { .. })), "it has no home map");
        assert_eq!(metadata.keyspaces[&id].epoch, 7);
    }

    #[test]
    fn names_are_taken_once() {
        let mut metadata = founded();
        assert_eq!(metadata.apply(4, create("default")), Err(Refused::Exists { name: "default".to_owned() }));
    }

    #[test]
    fn another_policy_has_another_fingerprint_and_another_revision_has_not() {
        let keyspace = founded().keyspaces[&KeyspaceId(7)].clone();
        let later = Keyspace { revision: 99, ..keyspace.clone() };
        assert_eq!(keyspace.fingerprint(), later.fingerprint());
        let policy = Policy { writes: Writes::Anywhere, ..Policy::default() };
        assert_ne!(keyspace.fingerprint(), Keyspace { policy, ..keyspace.clone() }.fingerprint());
        assert_ne!(keyspace.fingerprint(), Keyspace { name: "other".to_owned(), ..keyspace.clone() }.fingerprint());
    }

    #[test]
    fn what_is_stored_is_read_as_the_same() {
        let mut metadata = founded();
        let policy = Policy {
            replication: Replication::Sync(1),
            home: Some("prefixes(e/=eu,*=us)".parse().unwrap()),
            read_default: "bounded(2s)".parse().unwrap(),
            residency: "eu,region:us".parse().unwrap(),
            labels: [("team".to_owned(), "carts".to_owned())].into(),
            ..Policy::default()
        };
        metadata.apply(4, Command::Create { name: "carts".to_owned(), policy }).unwrap();
        let stored = serde_json::to_string(&metadata).unwrap();
        assert_eq!(serde_json::from_str::<Metadata>(&stored).unwrap(), metadata, "{stored}");
        // Frozen: what a node has stored once is read for ever.
        assert_eq!(stored, FROZEN);
        let before = Metadata { founded_id_max: 0, ..metadata };
        assert_eq!(
            serde_json::from_str::<Metadata>(FROZEN_BEFORE).unwrap(),
            before,
            "what the founders gave was not noted"
        );
    }

    const FROZEN: &str = include_str!("../tests/fixtures/metadata_founders.json");
    const FROZEN_BEFORE: &str = include_str!("../tests/fixtures/metadata.json");

    #[test]
    fn a_region_joins_serves_leaves_and_is_gone() {
        let mut metadata = founded();
        let ap = Region::new("ap");
        let join = || Command::Join { region: ap.clone(), member: member("ap") };
        metadata.apply(4, join()).unwrap();
        assert_eq!(metadata.members[&ap].state, MemberState::Joining);
        assert_eq!(metadata.apply(5, join()), Err(Refused::IsMember { region: ap.clone() }));
        metadata.apply(5, Command::Leave { region: ap.clone() }).unwrap();
        assert!(!metadata.members.contains_key(&ap), "it had taken nothing");
        metadata.apply(5, join()).unwrap();
        metadata.apply(6, Command::Serve { region: ap.clone(), joined: 5 }).unwrap();
        assert!(metadata.members[&ap].state.is_serving());
        metadata.apply(7, Command::Leave { region: ap.clone() }).unwrap();
        let refused = Err(Refused::State { region: ap.clone(), state: MemberState::Leaving });
        assert_eq!(
            metadata.apply(8, Command::Serve { region: ap.clone(), joined: 5 }),
            refused,
            "it must not take writes again"
        );
        let other = Command::Remove { region: ap.clone(), joined: Some(4) };
        assert_eq!(
            metadata.apply(9, other),
            Err(Refused::NoMember { region: ap.clone() }),
            "that was another of the name"
        );
        metadata.apply(9, Command::Remove { region: ap.clone(), joined: None }).unwrap();
        assert!(!metadata.members.contains_key(&ap));
        assert_eq!(metadata.keyspaces[&KeyspaceId(7)].epoch, 9, "homes have changed");
        assert_eq!(metadata.apply(10, Command::Leave { region: ap.clone() }), Err(Refused::NoMember { region: ap }));
    }

    #[test]
    fn no_region_goes_that_a_keyspace_cannot_do_without() {
        let mut metadata = founded();
        let eu = Region::new("eu");
        let policy = Policy { replication: Replication::Sync(1), ..Policy::default() };
        metadata.apply(4, Command::Create { name: "money".to_owned(), policy }).unwrap();
        for command in [Command::Leave { region: eu.clone() }, Command::Remove { region: eu.clone(), joined: None }] {
            let Err(Refused::Faulty { faults }) = metadata.apply(5, command) else { panic!("it is refused") };
            assert!(faults.iter().all(|fault| fault.rule.contains("money")), "{faults:?}");
        }
        metadata.apply(6, Command::Delete { id: KeyspaceId(8), expected: None }).unwrap();
        metadata.apply(7, Command::Remove { region: eu.clone(), joined: None }).unwrap();
        let last = metadata.apply(8, Command::Remove { region: Region::new("us"), joined: None });
        assert!(matches!(last, Err(Refused::Faulty { .. })), "somebody has to be left");
    }

    #[test]
    fn a_hash_chooses_none_but_those_that_serve() {
        let policy = Policy { home: Some(HomeRule::Hash), ..Policy::default() };
        let mut metadata = founded();
        metadata.apply(4, Command::Join { region: Region::new("ap"), member: member("ap") }).unwrap();
        let homes = |metadata: &Metadata| -> Vec<Region> {
            (0..64u8).filter_map(|key| policy.home_of(&[key], &metadata.members)).collect()
        };
        let before = homes(&metadata);
        assert!(before.len() == 64 && before.iter().all(|home| home.as_str() != "ap"));
        metadata.apply(5, Command::Serve { region: Region::new("ap"), joined: 4 }).unwrap();
        let after = homes(&metadata);
        assert!(after.iter().any(|home| home.as_str() == "ap"));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
        assert!(moved.clone().all(|(_, after)| after.as_str() == "ap"), "only what the new one takes moves");
    }
}
