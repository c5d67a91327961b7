//! A keyspace's policy between the wire and the model. What comes in is checked here, once, and everything that is wrong with it is
//! named at once.
//!
//! An unset setting is the default of the policy's scope. Whether the settings can be kept together is the model's to say.

use std::collections::BTreeMap;
use std::time::Duration;

use isle_model::Region;
use isle_model::metadata::is_name;
use isle_model::policy::{
    COLD_INTERVAL, ConflictRule, Fault, HomeRule, Policy, ReadDefault, Replication, RequestIds, Residency, Scope, Tier,
    WARM_INTERVAL, Writes,
};

use crate::v1;
use crate::v1::home_rule::{Creator, Hash, PrefixMap, Rule};

/// The longest span that a `google.protobuf.Duration` may have, some 10,000 years.
const SPAN_MAX: Duration = Duration::from_secs(315_576_000_000);

pub fn policy(from: &Policy) -> v1::Policy {
    v1::Policy {
        scope: scope(from.scope).into(),
        home: from.home.as_ref().map(home),
        writes: writes(from.writes).into(),
        replication: Some(replication(from.replication)),
        tier: Some(tier(from.tier)),
        conflict: match from.conflict {
            ConflictRule::Version => v1::ConflictRule::Version,
            ConflictRule::Siblings => v1::ConflictRule::Siblings,
        }
        .into(),
        read_default: Some(read_default(from.read_default)),
        residency: residency(&from.residency),
        ttl: from.ttl.and_then(span),
        request_ids: match from.request_ids {
            RequestIds::Optional => v1::RequestIds::Optional,
            RequestIds::Required => v1::RequestIds::Required,
        }
        .into(),
        request_id_window: span(from.request_id_window),
        value_bytes_max: Some(from.value_bytes_max),
        labels: from.labels.clone(),
    }
}

fn scope(from: Scope) -> v1::Scope {
    match from {
        Scope::Affine => v1::Scope::Affine,
        Scope::Local => v1::Scope::Local,
        Scope::Global => v1::Scope::Global,
    }
}

fn home(from: &HomeRule) -> v1::HomeRule {
    let rule = match from {
        HomeRule::Creator => Rule::Creator(Creator {}),
        HomeRule::Hash => Rule::Hash(Hash {}),
        HomeRule::Prefixes(prefixes) => {
            let regions = prefixes.iter().map(|(prefix, region)| (prefix.clone(), region.to_string()));
            Rule::Prefixes(PrefixMap { regions: regions.collect() })
        }
    };
    v1::HomeRule { rule: Some(rule) }
}

fn writes(from: Writes) -> v1::Writes {
    match from {
        Writes::Forward => v1::Writes::Forward,
        Writes::Anywhere => v1::Writes::Anywhere,
        Writes::Strong => v1::Writes::Strong,
    }
}

fn replication(from: Replication) -> v1::Replication {
    let (mode, holders) = match from {
        Replication::Async => (v1::ReplicationMode::Async, 0),
        Replication::Sync(holders) => (v1::ReplicationMode::Sync, holders),
    };
    v1::Replication { mode: mode.into(), holders }
}

fn tier(from: Tier) -> v1::Tier {
    let (kind, interval) = match from {
        Tier::Hot => (v1::TierKind::Hot, None),
        Tier::Warm(interval) => (v1::TierKind::Warm, Some(interval)),
        Tier::Cold(interval) => (v1::TierKind::Cold, Some(interval)),
    };
    v1::Tier { kind: kind.into(), interval: interval.and_then(span) }
}

fn read_default(from: ReadDefault) -> v1::ReadDefault {
    let (consistency, max_staleness) = match from {
        ReadDefault::Eventual => (v1::Consistency::Eventual, None),
        ReadDefault::Session => (v1::Consistency::Session, None),
        ReadDefault::Bounded(bound) => (v1::Consistency::Bounded, span(bound)),
        ReadDefault::Strong => (v1::Consistency::Strong, None),
    };
    v1::ReadDefault { consistency: consistency.into(), max_staleness }
}

fn residency(from: &Residency) -> Option<v1::Residency> {
    let Residency::Within { jurisdictions, regions } = from else { return None };
    let regions = regions.iter().map(Region::to_string).collect();
    Some(v1::Residency { jurisdictions: jurisdictions.iter().cloned().collect(), regions })
}

fn span(from: Duration) -> Option<prost_types::Duration> {
    from.try_into().ok()
}

/// The policy, or everything that is wrong with it, each under the name of its setting.
pub fn to_policy(from: v1::Policy) -> Result<Policy, Vec<Fault>> {
    let mut reader = Reader { faults: Vec::new() };
    let scope = reader.scope(from.scope);
    let usual = Policy::of_scope(scope);
    let policy = Policy {
        scope,
        home: from.home.map_or(usual.home, |home| reader.home(home)),
        writes: reader.writes(from.writes, usual.writes),
        replication: reader.replication(from.replication.unwrap_or_default()),
        tier: reader.tier(from.tier.unwrap_or_default()),
        conflict: reader.conflict(from.conflict),
        read_default: reader.read_default(from.read_default.unwrap_or_default()),
        residency: from.residency.map_or(usual.residency, |residency| reader.residency(residency)),
        ttl: from.ttl.map(|ttl| reader.span("ttl", ttl)),
        request_ids: reader.request_ids(from.request_ids),
        request_id_window: from
            .request_id_window
            .map_or(usual.request_id_window, |window| reader.span("request_id_window", window)),
        value_bytes_max: from.value_bytes_max.unwrap_or(usual.value_bytes_max),
        labels: from.labels,
    };
    if reader.faults.is_empty() { Ok(policy) } else { Err(reader.faults) }
}

/// Reads on behind a fault, with whatever fits the type, so that the next one is found too.
struct Reader {
    faults: Vec<Fault>,
}

impl Reader {
    fn fault(&mut self, field: &'static str, rule: impl Into<String>) {
        self.faults.push(Fault { field: field.into(), rule: rule.into() });
    }

    fn unknown(&mut self, field: &'static str, number: i32) {
        self.fault(field, format!("{number} is unknown here"));
    }

    fn scope(&mut self, number: i32) -> Scope {
        match v1::Scope::try_from(number) {
            Ok(v1::Scope::Unspecified | v1::Scope::Affine) => return Scope::Affine,
            Ok(v1::Scope::Local) => return Scope::Local,
            Ok(v1::Scope::Global) => return Scope::Global,
            Err(_) => self.unknown("scope", number),
        }
        Scope::default()
    }

    fn home(&mut self, from: v1::HomeRule) -> Option<HomeRule> {
        match from.rule {
            Some(Rule::Creator(Creator {})) => Some(HomeRule::Creator),
            Some(Rule::Hash(Hash {})) => Some(HomeRule::Hash),
            Some(Rule::Prefixes(PrefixMap { regions })) => {
                let region = |(prefix, region): (String, String)| (prefix, self.region("home", &region));
                Some(HomeRule::Prefixes(regions.into_iter().map(region).collect::<BTreeMap<_, _>>()))
            }
            None => {
                self.fault("home", "names no rule");
                None
            }
        }
    }

    fn writes(&mut self, number: i32, usual: Writes) -> Writes {
        match v1::Writes::try_from(number) {
            Ok(v1::Writes::Unspecified) => return usual,
            Ok(v1::Writes::Forward) => return Writes::Forward,
            Ok(v1::Writes::Anywhere) => return Writes::Anywhere,
            Ok(v1::Writes::Strong) => return Writes::Strong,
            Err(_) => self.unknown("writes", number),
        }
        usual
    }

    fn replication(&mut self, from: v1::Replication) -> Replication {
        match v1::ReplicationMode::try_from(from.mode) {
            Ok(v1::ReplicationMode::Sync) => return Replication::Sync(from.holders),
            Ok(_) if from.holders > 0 => self.fault("replication", "holders are for SYNC alone"),
            Ok(_) => {}
            Err(_) => self.unknown("replication", from.mode),
        }
        Replication::Async
    }

    fn tier(&mut self, from: v1::Tier) -> Tier {
        match v1::TierKind::try_from(from.kind) {
            Ok(v1::TierKind::Warm) => return Tier::Warm(self.span_or("tier", from.interval, WARM_INTERVAL)),
            Ok(v1::TierKind::Cold) => return Tier::Cold(self.span_or("tier", from.interval, COLD_INTERVAL)),
            Ok(_) if from.interval.is_some() => self.fault("tier", "an interval is for WARM and COLD alone"),
            Ok(_) => {}
            Err(_) => self.unknown("tier", from.kind),
        }
        Tier::Hot
    }

    fn conflict(&mut self, number: i32) -> ConflictRule {
        match v1::ConflictRule::try_from(number) {
            Ok(v1::ConflictRule::Siblings) => return ConflictRule::Siblings,
            Ok(_) => {}
            Err(_) => self.unknown("conflict", number),
        }
        ConflictRule::Version
    }

    fn read_default(&mut self, from: v1::ReadDefault) -> ReadDefault {
        let field = "read_default";
        match (v1::Consistency::try_from(from.consistency), from.max_staleness) {
            (Ok(v1::Consistency::Bounded), Some(bound)) => return ReadDefault::Bounded(self.span(field, bound)),
            (Ok(v1::Consistency::Bounded), None) => self.fault(field, "BOUNDED needs max_staleness"),
            (Ok(_), Some(_)) => self.fault(field, "max_staleness is for BOUNDED alone"),
            (Ok(v1::Consistency::Session), None) => return ReadDefault::Session,
            (Ok(v1::Consistency::Strong), None) => return ReadDefault::Strong,
            (Ok(v1::Consistency::Unspecified | v1::Consistency::Eventual), None) => {}
            (Err(_), _) => self.unknown(field, from.consistency),
        }
        ReadDefault::Eventual
    }

    fn residency(&mut self, from: v1::Residency) -> Residency {
        let jurisdictions = from.jurisdictions.into_iter();
        let jurisdictions = jurisdictions.inspect(|name| self.name("residency", name)).collect();
        let regions = from.regions.iter().map(|name| self.region("residency", name)).collect();
        Residency::Within { jurisdictions, regions }
    }

    fn request_ids(&mut self, number: i32) -> RequestIds {
        match v1::RequestIds::try_from(number) {
            Ok(v1::RequestIds::Required) => return RequestIds::Required,
            Ok(_) => {}
            Err(_) => self.unknown("request_ids", number),
        }
        RequestIds::Optional
    }

    fn region(&mut self, field: &'static str, name: &str) -> Region {
        self.name(field, name);
        Region::new(name)
    }

    /// In the text form names stand between commas, and `all` is none of them.
    fn name(&mut self, field: &'static str, name: &str) {
        if !is_name(name) || name == "all" {
            self.fault(field, format!("{name:?} is no name of a region or jurisdiction"));
        }
    }

    fn span_or(&mut self, field: &'static str, from: Option<prost_types::Duration>, usual: Duration) -> Duration {
        from.map_or(usual, |from| self.span(field, from))
    }

    /// Stored to the millisecond: a finer one would not come back as it was sent.
    fn span(&mut self, field: &'static str, from: prost_types::Duration) -> Duration {
        match Duration::try_from(from) {
            Ok(span) if span > SPAN_MAX => self.fault(field, "is longer than 10,000 years"),
            Ok(span) if span.subsec_nanos() % 1_000_000 != 0 => self.fault(field, "is finer than a millisecond"),
            Ok(span) => return span,
            Err(_) => self.fault(field, "is negative"),
        }
        Duration::from_millis(1)
    }
}

/// `old` with those settings that a field mask names taken from `sent`. A path is `*`, `policy` or `policy.` and a setting; what else
/// a keyspace has does not change, and naming it does no harm. Without paths, every setting that `sent` sets is taken.
pub fn masked(old: &Policy, sent: v1::Policy, paths: &[String]) -> Result<v1::Policy, UnknownPath> {
    if paths.iter().any(|path| path == "*" || path == "policy") {
        return Ok(sent);
    }
    let mut merged = policy(old);
    if paths.is_empty() {
        SETTERS
            .iter()
            .filter(|(_, setter)| (setter.is_set)(&sent))
            .for_each(|(_, setter)| (setter.take)(&mut merged, &sent));
        return Ok(merged);
    }
    for path in paths {
        if ["name", "id", "etag"].contains(&path.as_str()) {
            continue;
        }
        let setting = path.strip_prefix("policy.");
        let known = SETTERS.iter().find(|(name, _)| Some(*name) == setting);
        let (_, setter) = known.ok_or_else(|| UnknownPath(path.clone()))?;
        (setter.take)(&mut merged, &sent);
    }
    Ok(merged)
}

/// A path of a field mask that names nothing of a keyspace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not `*`, `policy` or `policy.` and a setting")]
pub struct UnknownPath(pub String);

struct Setter {
    is_set: fn(&v1::Policy) -> bool,
    take: fn(&mut v1::Policy, &v1::Policy),
}

macro_rules! setters {
    ($($field:ident: $unset:expr,)*) => {
        const SETTERS: &[(&str, Setter)] = &[$((stringify!($field), Setter {
            is_set: |from| from.$field != $unset,
            take: |to, from| to.$field = from.$field.clone(),
        }),)*];
    };
}

setters! {
    scope: 0,
    home: None,
    writes: 0,
    replication: None,
    tier: None,
    conflict: 0,
    read_default: None,
    residency: None,
    ttl: None,
    request_ids: 0,
    request_id_window: None,
    value_bytes_max: None,
    labels: BTreeMap::new(),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use isle_model::policy::SETTINGS;

    use super::*;

    fn fields(faults: &[Fault]) -> Vec<&str> {
        faults.iter().map(|fault| fault.field.as_ref()).collect()
    }

    #[test]
    fn every_setting_can_be_masked() {
        assert_eq!(SETTERS.iter().map(|(name, _)| *name).collect::<Vec<_>>(), SETTINGS);
    }

    #[test]
    fn nothing_set_is_the_default_of_its_scope() {
        assert_eq!(to_policy(v1::Policy::default()), Ok(Policy::default()));
        let global = v1::Policy { scope: v1::Scope::Global.into(), ..v1::Policy::default() };
        assert_eq!(to_policy(global), Ok(Policy::of_scope(Scope::Global)));
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        let fine = Some(prost_types::Duration { seconds: 1, nanos: 1 });
        let faulty = v1::Policy {
            scope: 9,
            home: Some(v1::HomeRule { rule: None }),
            writes: -1,
            replication: Some(v1::Replication { mode: 1, holders: 2 }),
            tier: Some(v1::Tier { kind: 1, interval: fine }),
            conflict: 7,
            read_default: Some(v1::ReadDefault { consistency: v1::Consistency::Bounded.into(), max_staleness: None }),
            residency: Some(v1::Residency { jurisdictions: vec!["eu,us".to_owned()], regions: vec![String::new()] }),
            ttl: negative,
            request_ids: 3,
            request_id_window: Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 }),
            ..v1::Policy::default()
        };
        let faults = to_policy(faulty).unwrap_err();
        let expected = [
            "scope",
            "home",
            "writes",
            "replication",
            "tier",
            "conflict",
            "read_default",
            "residency",
            "residency",
            "ttl",
            "request_ids",
            "request_id_window",
        ];
        let mut named = fields(&faults);
        named.sort_by_key(|name| SETTINGS.iter().position(|setting| setting == name));
        assert_eq!(named, expected, "{faults:?}");
    }

    #[test]
    fn a_mask_takes_what_it_names_and_leaves_the_rest() {
        let labels = BTreeMap::from([("team".to_owned(), "carts".to_owned())]);
        let old = Policy { value_bytes_max: 7, labels: labels.clone(), ..Policy::default() };
        let sent = || v1::Policy { value_bytes_max: Some(9), ..policy(&Policy::of_scope(Scope::Global)) };
        let apply = |paths: &[&str]| {
            let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
            masked(&old, sent(), &paths).map(|merged| to_policy(merged).unwrap())
        };
        assert_eq!(apply(&["policy.value_bytes_max", "etag"]), Ok(Policy { value_bytes_max: 9, ..old.clone() }));
        // Named and unset: the default.
        assert_eq!(apply(&["policy.labels"]), Ok(Policy { labels: BTreeMap::new(), ..old.clone() }));
        let all = Policy { value_bytes_max: 9, ..Policy::of_scope(Scope::Global) };
        assert_eq!(apply(&["*"]), Ok(all.clone()));
        assert_eq!(apply(&["policy"]), Ok(all));
        // No mask: what is set, and the labels are not.
        assert_eq!(apply(&[]).unwrap().labels, labels);
        assert_eq!(apply(&["policy.colour"]), Err(UnknownPath("policy.colour".to_owned())));
        assert_eq!(apply(&["writes"]), Err(UnknownPath("writes".to_owned())));
    }
}
