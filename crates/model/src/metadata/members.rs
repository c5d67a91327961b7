//! Regions that come and go, as the cluster agrees on it.

use super::{Metadata, Refused, fault, is_name, refuse};
use crate::Region;
use crate::policy::{Fault, HomeRule, Member, MemberState, Members};

impl Metadata {
    pub(super) fn join(&mut self, region: Region, member: Member, index: u64) -> Result<(), Refused> {
        if self.members.contains_key(&region) {
            return Err(Refused::IsMember { region });
        }
        if !is_name(region.as_str()) {
            return Err(Refused::Faulty { faults: vec![fault("region", format!("{region:?} is not a name"))] });
        }
        self.members.insert(region, Member { state: MemberState::Joining, joined: index, ..member });
        Ok(())
    }

    pub(super) fn serve(&mut self, region: Region, joined: u64, index: u64) -> Result<(), Refused> {
        let member = self.members.get_mut(&region).ok_or(Refused::NoMember { region: region.clone() })?;
        if member.joined != joined {
            return Err(Refused::NoMember { region });
        }
        match member.state {
            MemberState::Leaving => return Err(Refused::State { region, state: member.state }),
            MemberState::Serving => return Ok(()),
            MemberState::Joining => member.state = MemberState::Serving,
        }
        // Keys that nobody has made yet may have their home there from here on.
        let hashed = self.keyspaces.values_mut().filter(|keyspace| keyspace.policy.home == Some(HomeRule::Hash));
        hashed.for_each(|keyspace| keyspace.epoch = index);
        Ok(())
    }

    pub(super) fn leave(&mut self, region: &Region) -> Result<(), Refused> {
        self.check_dispensable(region)?;
        match self.members.get_mut(region) {
            // It has taken nothing yet.
            Some(member) if member.state == MemberState::Joining => {
                self.members.remove(region);
                self.keyspaces.values_mut().for_each(|keyspace| _ = keyspace.holding.remove(region));
            }
            Some(member) => member.state = MemberState::Leaving,
            None => {}
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, region: Region, joined: Option<u64>, index: u64) -> Result<(), Refused> {
        if joined.is_some_and(|joined| self.members.get(&region).is_none_or(|member| member.joined != joined)) {
            return Err(Refused::NoMember { region });
        }
        self.check_dispensable(&region)?;
        self.members.remove(&region);
        // Keys that had their home there get another, and writes know which of the two came later.
        self.keyspaces.values_mut().for_each(|keyspace| keyspace.without(&region, &self.members, index));
        Ok(())
    }

    /// The members without those that are on their way out: what is promised has to be kept without these.
    pub(super) fn staying(&self) -> Members {
        let stays = |(_, member): &(&Region, &Member)| member.state != MemberState::Leaving;
        self.members.iter().filter(stays).map(|(region, member)| (region.clone(), member.clone())).collect()
    }

    /// Whether every keyspace keeps its promises without a region.
    fn check_dispensable(&self, region: &Region) -> Result<(), Refused> {
        if !self.members.contains_key(region) {
            return Err(Refused::NoMember { region: region.clone() });
        }
        let mut rest = self.staying();
        rest.remove(region);
        let mut faults = Vec::new();
        if !rest.values().any(|member| member.state.is_serving()) {
            faults.push(fault("region", format!("{region} is the last one that serves")));
        }
        for keyspace in self.keyspaces.values() {
            let mut broken = keyspace.policy.faults(&rest);
            let is_last = keyspace.is_served_by(region, &self.members)
                && !rest.keys().any(|other| keyspace.is_served_by(other, &rest));
            if keyspace.policy.is_copied() && is_last {
                broken.push(fault("residency", "no region would stay that has all of the data".to_owned()));
            }
            let named = |found: Fault| Fault {
                rule: format!("keyspace {:?} without {region}: {}: {}", keyspace.name, found.field, found.rule),
                field: "region".into(),
            };
            faults.extend(broken.into_iter().map(named));
        }
        refuse(faults)
    }
}
