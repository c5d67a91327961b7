//! Which policies cannot be kept, and which are not built yet. All broken rules are named at once.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    ConflictRule, HomeRule, Members, Policy, REQUEST_ID_WINDOW, ReadDefault, Replication, RequestIds, Residency, Scope,
    Tier, Writes,
};
use crate::Region;
use crate::limits::{LABEL_BYTES_MAX, LABELS_MAX, PREFIX_BYTES_MAX, PREFIXES_MAX, VALUE_BYTES_MAX};

/// A rule that a policy breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The setting that has to change.
    pub field: Cow<'static, str>,
    pub rule: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.rule)
    }
}

/// Collects faults.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn check(&mut self, holds: bool, field: &'static str, rule: impl Into<String>) {
        if !holds {
            self.0.push(Fault { field: field.into(), rule: rule.into() });
        }
    }
}

impl Policy {
    /// Every rule that the policy breaks among these members; empty if it can be kept.
    pub fn faults(&self, members: &Members) -> Vec<Fault> {
        let mut faults = Faults::default();
        match self.scope {
            Scope::Affine => self.check_affine(members, &mut faults),
            Scope::Local | Scope::Global => self.check_homeless(&mut faults),
        }
        self.check_strong(&mut faults);
        self.check_replication(members, &mut faults);
        self.check_residency(members, &mut faults);
        self.check_limits(&mut faults);
        faults.0
    }

    /// What of it is refused because it is not built yet, not because it is wrong.
    pub fn unimplemented(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        let later = "is not there yet";
        let is_cold = matches!(self.tier, Tier::Cold(_));
        faults.check(!is_cold, "tier", format!("{} {later}; use hot or warm", self.tier));
        faults.check(
            self.writes != Writes::Strong,
            "writes",
            format!("strong {later}; use forward with replication=sync(n)"),
        );
        faults.check(self.conflict == ConflictRule::Version, "conflict", format!("siblings {later}; use version"));
        faults.check(self.read_default != ReadDefault::Session, "read_default", format!("session {later}"));
        faults.check(self.ttl.is_none(), "ttl", later);
        faults.check(self.request_ids == RequestIds::Optional, "request_ids", format!("required {later}"));
        faults.check(self.request_id_window == REQUEST_ID_WINDOW, "request_id_window", later);
        faults.0
    }

    /// Why this policy cannot follow that one in a running cluster.
    pub fn faults_after(&self, old: &Policy) -> Vec<Fault> {
        let mut faults = Faults::default();
        faults.check(
            self.scope == old.scope,
            "scope",
            format!("is {} for good; make another keyspace and copy the data", old.scope),
        );
        // Regions hear of a change at different moments: until the last has, two could take writes of one key.
        faults.check(
            !self.is_forwarded() || old.is_forwarded(),
            "writes",
            "cannot turn from anywhere: keys may have been written in several regions; make another keyspace",
        );
        faults.check(
            self.home == old.home,
            "home",
            "cannot change where keys may be; homes are moved with `isle move`",
        );
        faults.0
    }

    fn check_affine(&self, members: &Members, faults: &mut Faults) {
        faults.check(self.home.is_some(), "home", "an affine keyspace needs one: creator, hash or prefixes(…)");
        let Some(HomeRule::Prefixes(prefixes)) = &self.home else { return };
        faults.check(
            prefixes.len() <= PREFIXES_MAX,
            "home",
            format!("has {} prefixes, more than {PREFIXES_MAX}", prefixes.len()),
        );
        faults.check(prefixes.contains_key(""), "home", "needs a region for every other key: *=REGION");
        let long = prefixes.keys().find(|prefix| prefix.len() > PREFIX_BYTES_MAX);
        faults.check(long.is_none(), "home", format!("a prefix is longer than {PREFIX_BYTES_MAX} bytes"));
        for region in prefixes.values().collect::<BTreeSet<&Region>>() {
            faults.check(members.contains_key(region), "home", format!("{region} is no region of the cluster"));
            let outside = members.contains_key(region) && !self.admits(region, members);
            faults.check(!outside, "home", format!("{region} may not hold the data: residency={}", self.residency));
        }
    }

    fn check_homeless(&self, faults: &mut Faults) {
        let scope = self.scope;
        faults.check(self.home.is_none(), "home", format!("a {scope} keyspace has no homes; leave it out"));
        faults.check(
            self.writes == Writes::Anywhere,
            "writes",
            format!("a {scope} keyspace has no home to send them to; use anywhere, or scope=affine"),
        );
        faults.check(
            self.read_default != ReadDefault::Strong,
            "read_default",
            format!("strong reads are the home's, and a {scope} keyspace has none; use scope=affine"),
        );
        if scope == Scope::Local {
            faults.check(self.replication == Replication::Async, "replication", "nobody else holds a local keyspace");
            faults.check(self.tier == Tier::Hot, "tier", "nothing of a local keyspace is shipped");
            faults.check(
                self.residency == Residency::All,
                "residency",
                "nothing of a local keyspace leaves its region; leave it out",
            );
        }
    }

    fn check_strong(&self, faults: &mut Faults) {
        if self.writes == Writes::Strong {
            faults.check(
                self.home != Some(HomeRule::Creator),
                "home",
                "strong writes need hash or prefixes: two regions may create one key at once",
            );
            faults.check(self.conflict == ConflictRule::Version, "conflict", "strong writes leave no siblings to show");
            faults.check(self.tier == Tier::Hot, "tier", "strong writes need hot");
        }
        let serialised = self.scope != Scope::Affine || self.is_forwarded();
        faults.check(
            self.read_default != ReadDefault::Strong || serialised,
            "read_default",
            "strong reads need writes=forward: else no region has seen them all",
        );
    }

    fn check_replication(&self, members: &Members, faults: &mut Faults) {
        let Replication::Sync(n) = self.replication else { return };
        faults.check(self.tier == Tier::Hot, "replication", "sync needs tier=hot: nobody waits for an interval");
        faults.check(n > 0, "replication", "sync(0) is async");
        if self.scope != Scope::Local {
            let others = self.holders(members).count().saturating_sub(1);
            faults.check(
                n as usize <= others,
                "replication",
                format!("sync({n}) waits for {n} other holders, and there are {others}"),
            );
        }
    }

    fn check_residency(&self, members: &Members, faults: &mut Faults) {
        let Residency::Within { jurisdictions, regions } = &self.residency else { return };
        for region in regions {
            faults.check(members.contains_key(region), "residency", format!("{region} is no region of the cluster"));
        }
        for jurisdiction in jurisdictions {
            let known = members.values().any(|member| member.jurisdiction == *jurisdiction);
            faults.check(
                known && !jurisdiction.is_empty(),
                "residency",
                format!("no region is in jurisdiction {jurisdiction:?}"),
            );
        }
        faults.check(self.holders(members).next().is_some(), "residency", "no region may hold the data");
    }

    fn check_limits(&self, faults: &mut Faults) {
        faults.check(
            (1..=VALUE_BYTES_MAX as u32).contains(&self.value_bytes_max),
            "value_bytes_max",
            format!("{} is not between 1 and {VALUE_BYTES_MAX}", self.value_bytes_max),
        );
        let positive = |span: Duration| !span.is_zero();
        faults.check(self.ttl.is_none_or(positive), "ttl", "is zero");
        faults.check(positive(self.request_id_window), "request_id_window", "is zero");
        if let Tier::Warm(interval) | Tier::Cold(interval) = self.tier {
            faults.check(positive(interval), "tier", "its interval is zero");
        }
        if let ReadDefault::Bounded(bound) = self.read_default {
            faults.check(positive(bound), "read_default", "a bound of zero no region can keep; use strong");
        }
        faults.check(
            self.labels.len() <= LABELS_MAX,
            "labels",
            format!("are {}, more than {LABELS_MAX}", self.labels.len()),
        );
        let long =
            self.labels.iter().any(|(name, value)| name.is_empty() || name.len().max(value.len()) > LABEL_BYTES_MAX);
        faults.check(
            !long,
            "labels",
            format!("names and values have at most {LABEL_BYTES_MAX} bytes, names at least 1"),
        );
    }
}
