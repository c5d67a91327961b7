//! Regions that come to hold a keyspace, or cease to, while it is in use; and who is in the place of a home that is none any more.
//!
//! ```text
//! widened    Update ─▶ Taking ─▶ it has what the holders had ─▶ Step ─▶ a holder like the others
//! narrowed   Update ─▶ Handing ─▶ the others have all it took ─▶ Step ─▶ Purging ─▶ its disk is rid of it ─▶ Step ─▶ Gone
//! ```
//! The laws it keeps: some region always has all of the data; a region that ceases to hold it is the home of its keys until the
//! others have what it took, and never again by what was written before that; and a narrower residency is in force exactly when
//! every region that it shuts out is `Gone`.

use serde::{Deserialize, Serialize};

use super::{Keyspace, Refused, fault};
use crate::policy::{Fault, HomeRule, Member, MemberState, Members, Policy};
use crate::{Epoch, Region, planted};

/// How far a region has come in holding a keyspace, or in ceasing to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Step {
    /// It may hold the data and does not have all of it yet: it serves none of it.
    Taking,
    /// It may hold the data no more, takes nothing, and ships what it has taken. Its keys' writes wait.
    Handing,
    /// The others have all that it took. It purges its disk.
    Purging,
    /// Nothing is left. What turns up nevertheless, say from a backup, is purged as well.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    pub step: Step,
    /// The index of the command that brought it there.
    pub since: u64,
}

/// Who is in the place of a region that ceased to be a home. They are noted then: whoever comes later changes nothing for the keys
/// that nobody has written since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heirs {
    /// The index of the command by which it did. Keys that name it under an older epoch are theirs.
    pub at: u64,
    pub among: Vec<Region>,
}

impl Keyspace {
    pub fn step(&self, region: &Region) -> Option<Step> {
        self.holding.get(region).map(|holding| holding.step)
    }

    /// Whether a region has all of the data that it may hold, as far as the cluster has agreed: new regions take the state of the whole
    /// cluster before they serve.
    pub fn is_held_by(&self, region: &Region, members: &Members) -> bool {
        self.policy.admits(region, members) && self.step(region).is_none()
    }

    /// Whether a region must have none of the data.
    pub fn is_barred(&self, region: &Region) -> bool {
        matches!(self.step(region), Some(Step::Purging | Step::Gone))
    }

    /// The home of a key that is not there yet; `None` where its creator is to be it.
    pub fn home_of(&self, key: &[u8], members: &Members) -> Option<Region> {
        match self.policy.home {
            Some(HomeRule::Hash) => self.home_by_hash(key, members),
            _ => self.policy.home_of(key, members),
        }
    }

    /// The home of a key that names one, as of an epoch; another in its place if that is none any more.
    pub fn home_named(&self, key: &[u8], named: &Region, epoch: Epoch, members: &Members) -> Option<Region> {
        let (mut home, mut since) = (named, epoch.0);
        while let Some(heirs) = self.heirs_of(home, since) {
            let Some(heir) = Policy::chosen_by_hash(key, heirs.among.iter()) else { break };
            (home, since) = (heir, heirs.at);
        }
        if self.may_be_home(home, members) { Some(home.clone()) } else { self.home_by_hash(key, members) }
    }

    /// Whether what a region was named as under an epoch is none of its any more.
    pub fn is_replaced(&self, named: &Region, epoch: Epoch, members: &Members) -> bool {
        self.heirs_of(named, epoch.0).is_some() || !self.may_be_home(named, members)
    }

    fn may_be_home(&self, region: &Region, members: &Members) -> bool {
        members.contains_key(region) && !self.is_barred(region)
    }

    fn heirs_of(&self, region: &Region, since: u64) -> Option<&Heirs> {
        self.heirs.get(region)?.iter().find(|heirs| heirs.at > since)
    }

    /// Until a region that hands over has done so it is the home of what its hash chooses it for: two would make one key else.
    fn home_by_hash(&self, key: &[u8], members: &Members) -> Option<Region> {
        if self.holding.is_empty() {
            return self.policy.home_by_hash(key, members);
        }
        let there = members.iter().filter(|(_, member)| member.state != MemberState::Joining).map(|(region, _)| region);
        let may = |region: &&Region| self.is_held_by(region, members) || self.step(region) == Some(Step::Handing);
        Policy::chosen_by_hash(key, there.filter(may)).cloned()
    }

    /// Why its holders cannot become those of this policy now.
    pub(super) fn faults_of_holders(&self, policy: &Policy, members: &Members) -> Vec<Fault> {
        let mut faults = Vec::new();
        let admitted = || members.keys().filter(|region| policy.admits(region, members));
        for region in admitted() {
            if let Some(Step::Handing | Step::Purging) = self.step(region) {
                let rule = format!("{region} is still giving the data up; let it hold it again once that is over");
                faults.push(fault("residency", rule));
            }
        }
        if admitted().next().is_some() && !admitted().any(|region| self.is_served_by(region, members)) {
            let rule = "no region would stay that has all of the data; let the new ones hold it first, and narrow it when \
                        they have it";
            faults.push(fault("residency", rule.to_owned()));
        }
        faults
    }

    /// Whether a region serves, and has all of the data.
    pub(super) fn is_served_by(&self, region: &Region, members: &Members) -> bool {
        members.get(region).is_some_and(|member| member.state.is_serving()) && self.is_held_by(region, members)
    }

    /// Notes who comes to hold the data under another policy, and who ceases to.
    pub(super) fn change_holders(&mut self, policy: &Policy, members: &Members, index: u64) {
        for (region, member) in members {
            let step = match (self.policy.admits(region, members), policy.admits(region, members)) {
                (false, true) => Step::Taking,
                (true, false) if self.has_written(region, member) => Step::Handing,
                (true, false) => Step::Purging,
                _ => continue,
            };
            self.holding.insert(region.clone(), Holding { step, since: index });
        }
    }

    /// Whether a region that may hold the data may have taken writes of it that others lack.
    fn has_written(&self, region: &Region, member: &Member) -> bool {
        let is_new = member.state == MemberState::Joining || self.step(region) == Some(Step::Taking);
        !is_new && !planted::is(planted::Bug::SkipHanding)
    }

    /// Takes a region from one step to the next, if it is still where it was when it asked for that.
    pub(super) fn step_on(
        &mut self,
        region: &Region,
        since: u64,
        members: &Members,
        index: u64,
    ) -> Result<(), Refused> {
        let current = self.holding.get(region).filter(|holding| holding.since == since).map(|holding| holding.step);
        let next = match current {
            Some(Step::Taking) => {
                self.holding.remove(region);
                if self.policy.home == Some(HomeRule::Hash) {
                    self.epoch = index;
                }
                return Ok(());
            }
            Some(Step::Handing) => {
                self.void(region, members, index);
                Step::Purging
            }
            Some(Step::Purging) => Step::Gone,
            Some(Step::Gone) | None => return Err(Refused::Overtaken { region: region.clone() }),
        };
        self.holding.insert(region.clone(), Holding { step: next, since: index });
        Ok(())
    }

    /// A region has left the cluster.
    pub(super) fn without(&mut self, region: &Region, rest: &Members, index: u64) {
        let may_be_home = !self.is_barred(region);
        self.holding.remove(region);
        if may_be_home {
            self.void(region, rest, index);
        }
    }

    /// A region is no home any more: its keys go to others, under a new epoch.
    fn void(&mut self, region: &Region, members: &Members, index: u64) {
        if self.policy.home.is_none() {
            return;
        }
        self.epoch = index;
        let heirs = members.keys().filter(|heir| *heir != region && self.is_served_by(heir, members));
        let among = heirs.cloned().collect();
        self.heirs.entry(region.clone()).or_default().push(Heirs { at: index, among });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::metadata::{Command, Metadata};
    use crate::{KeyspaceId, policy::Scope};

    const ID: KeyspaceId = KeyspaceId(1);
    const ALL: [&str; 4] = ["ap", "eu", "jp", "us"];

    fn founded(home: HomeRule, residency: &str) -> Metadata {
        let member = |region: &str| Member { jurisdiction: region.to_owned(), ..Member::default() };
        let members = ALL.map(|region| (Region::new(region), member(region))).into();
        let residency = residency.parse().unwrap();
        let policy = Policy { home: Some(home), residency, ..Policy::of_scope(Scope::Affine) };
        let mut metadata = Metadata::default();
        metadata.apply(3, Command::Found { members, keyspaces: vec![(ID, "k".to_owned(), policy)] }).unwrap();
        metadata
    }

    fn reside(metadata: &mut Metadata, index: u64, residency: &str) -> Result<(), Refused> {
        let keyspace = &metadata.keyspaces[&ID];
        let policy = Policy { residency: residency.parse().unwrap(), ..keyspace.policy.clone() };
        metadata.apply(index, Command::Update { id: ID, expected: keyspace.revision, policy }).map(drop)
    }

    fn step(metadata: &mut Metadata, index: u64, region: &str) -> Option<Step> {
        let region = Region::new(region);
        let since = metadata.keyspaces[&ID].holding[&region].since;
        metadata.apply(index, Command::Step { id: ID, region: region.clone(), since }).unwrap();
        metadata.keyspaces[&ID].step(&region)
    }

    fn is_held(metadata: &Metadata, region: &str) -> bool {
        metadata.keyspaces[&ID].is_held_by(&Region::new(region), &metadata.members)
    }

    fn rules(refused: Result<(), Refused>) -> String {
        let Err(Refused::Faulty { faults }) = refused else { panic!("it is refused: {refused:?}") };
        faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_region_that_is_shut_out_hands_over_and_purges_before_it_is_gone() {
        let mut metadata = founded(HomeRule::Creator, "all");
        reside(&mut metadata, 4, "eu,jp,us").unwrap();
        let of_ap = |metadata: &Metadata| metadata.keyspaces[&ID].step(&Region::new("ap"));
        assert_eq!(of_ap(&metadata), Some(Step::Handing));
        assert!(rules(reside(&mut metadata, 5, "all")).contains("ap is still giving the data up"));
        assert_eq!(step(&mut metadata, 5, "ap"), Some(Step::Purging));
        assert_eq!(metadata.keyspaces[&ID].epoch, 5, "its keys have other homes");
        assert!(rules(reside(&mut metadata, 6, "all")).contains("ap is still giving the data up"));
        assert_eq!(step(&mut metadata, 6, "ap"), Some(Step::Gone));
        reside(&mut metadata, 7, "all").unwrap();
        assert_eq!(of_ap(&metadata), Some(Step::Taking));
        assert!(!is_held(&metadata, "ap"));
        assert_eq!(step(&mut metadata, 8, "ap"), None);
        assert!(is_held(&metadata, "ap"));
    }

    #[test]
    fn a_word_that_comes_late_takes_no_region_a_step_further() {
        let mut metadata = founded(HomeRule::Creator, "all");
        let late = Command::Step { id: ID, region: Region::new("ap"), since: 4 };
        reside(&mut metadata, 4, "eu,us").unwrap();
        for index in 5..7 {
            step(&mut metadata, index, "ap");
        }
        reside(&mut metadata, 7, "ap,eu,us").unwrap();
        assert!(matches!(metadata.apply(8, late.clone()), Err(Refused::Overtaken { .. })));
        step(&mut metadata, 8, "ap");
        reside(&mut metadata, 9, "eu,us").unwrap();
        assert!(matches!(metadata.apply(10, late), Err(Refused::Overtaken { .. })), "it has to hand over once more");
    }

    #[test]
    fn somebody_always_has_all_of_the_data() {
        let mut metadata = founded(HomeRule::Creator, "eu");
        assert!(rules(reside(&mut metadata, 4, "us")).contains("no region would stay that has all"));
        reside(&mut metadata, 4, "eu,us").unwrap();
        assert!(rules(reside(&mut metadata, 5, "us")).contains("no region would stay"), "it has not taken it yet");
        let gone = Command::Remove { region: Region::new("eu"), joined: None };
        assert!(rules(metadata.apply(5, gone.clone()).map(drop)).contains("no region would stay"));
        step(&mut metadata, 5, "us");
        reside(&mut metadata, 6, "us").unwrap();
        metadata.apply(7, gone).unwrap();
        assert!(is_held(&metadata, "us"));
    }

    /// A home was given up, its keys went to whom their hashes chose among those who were there, and a region that came later
    /// was chosen for some of them: two regions took writes of one key under one epoch.
    #[test]
    fn the_heir_of_a_home_stays_it_whoever_comes() {
        let keys: Vec<[u8; 1]> = (0..=255).map(|key| [key]).collect();
        let homes = |metadata: &Metadata, epoch: u64| -> Vec<Region> {
            let (keyspace, ap) = (&metadata.keyspaces[&ID], Region::new("ap"));
            let home = |key: &[u8; 1]| keyspace.home_named(key, &ap, Epoch(epoch), &metadata.members).unwrap();
            keys.iter().map(home).collect()
        };
        let mut metadata = founded(HomeRule::Creator, "ap,eu,us");
        assert!(homes(&metadata, 3).iter().all(|home| home.as_str() == "ap"));
        reside(&mut metadata, 4, "eu,us").unwrap();
        assert!(homes(&metadata, 3).iter().all(|home| home.as_str() == "ap"), "until it has handed them over");
        step(&mut metadata, 5, "ap");
        let heirs = homes(&metadata, 3);
        assert!(heirs.iter().all(|home| ["eu", "us"].contains(&home.as_str())) && heirs.iter().any(|h| h != &heirs[0]));
        step(&mut metadata, 6, "ap");
        for (index, residency) in [(7, "all"), (8, ""), (9, "")] {
            match residency {
                "" => drop(step(&mut metadata, index, ["ap", "jp"][index as usize % 2])),
                _ => reside(&mut metadata, index, residency).unwrap(),
            }
            assert_eq!(homes(&metadata, 3), heirs, "at {index}");
        }
        assert!(homes(&metadata, 9).iter().all(|home| home.as_str() == "ap"), "what names it now means it");
        // Of an heir that goes the heirs are asked, and nobody else's keys move.
        metadata.apply(10, Command::Remove { region: Region::new("us"), joined: None }).unwrap();
        let after = homes(&metadata, 3);
        let stays = |(before, after): (&Region, &Region)| before == after || before.as_str() == "us";
        assert!(heirs.iter().zip(&after).all(stays) && after.iter().all(|home| home.as_str() != "us"));
        let other = Command::Join { region: Region::new("us"), member: Member::default() };
        metadata.apply(11, other).unwrap();
        metadata.apply(12, Command::Serve { region: Region::new("us"), joined: 11 }).unwrap();
        assert_eq!(homes(&metadata, 3), after, "another of its name inherits nothing");
    }

    #[test]
    fn a_region_that_hands_over_is_chosen_by_hashes_until_it_has_done_so() {
        let mut metadata = founded(HomeRule::Hash, "all");
        let chosen = |metadata: &Metadata, region: &str| {
            let home = |key: u8| metadata.keyspaces[&ID].home_of(&[key], &metadata.members).unwrap();
            (0..=255).filter(|key| home(*key).as_str() == region).count()
        };
        let before = chosen(&metadata, "ap");
        reside(&mut metadata, 4, "eu,jp,us").unwrap();
        assert!(before > 0 && chosen(&metadata, "ap") == before);
        step(&mut metadata, 5, "ap");
        assert_eq!((chosen(&metadata, "ap"), metadata.keyspaces[&ID].epoch), (0, 5));
        step(&mut metadata, 6, "ap");
        reside(&mut metadata, 7, "all").unwrap();
        assert_eq!(chosen(&metadata, "ap"), 0, "it has nothing yet");
        step(&mut metadata, 8, "ap");
        assert_eq!((chosen(&metadata, "ap"), metadata.keyspaces[&ID].epoch), (before, 8));
    }

    #[test]
    fn what_has_written_nothing_has_nothing_to_hand_over() {
        let mut metadata = founded(HomeRule::Creator, "eu");
        reside(&mut metadata, 4, "eu,us").unwrap();
        reside(&mut metadata, 5, "eu").unwrap();
        assert_eq!(metadata.keyspaces[&ID].step(&Region::new("us")), Some(Step::Purging));
        assert_eq!(step(&mut metadata, 6, "us"), Some(Step::Gone));
        let stored = serde_json::to_string(&metadata).unwrap();
        assert_eq!(serde_json::from_str::<Metadata>(&stored).unwrap(), metadata);
    }
}
