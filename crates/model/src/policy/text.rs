//! The one text form of every setting: `sync(1)`, `bounded(2s)`, `prefixes(eu/=eu-west-1,*=us-east-1)`, `eu,region:us-east-1`.
//! What is shown is read as the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    COLD_INTERVAL, ConflictRule, Fault, HomeRule, Policy, ReadDefault, Replication, RequestIds, Residency, Scope, Tier,
    WARM_INTERVAL, Writes,
};
use crate::{Region, span};

/// A text that names no value of a setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not one of {wanted}")]
pub struct BadSetting {
    pub found: String,
    pub wanted: &'static str,
}

/// Settings whose values are words.
macro_rules! words {
    ($type:ty, $wanted:literal, $($word:literal => $value:path),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($value => $word),+ })
            }
        }

        impl FromStr for $type {
            type Err = BadSetting;

            fn from_str(text: &str) -> Result<Self, BadSetting> {
                match text {
                    $($word => Ok($value),)+
                    _ => Err(BadSetting { found: text.to_owned(), wanted: $wanted }),
                }
            }
        }
    };
}

words!(Scope, "affine, local, global", "affine" => Scope::Affine, "local" => Scope::Local, "global" => Scope::Global);
words!(Writes, "forward, anywhere, strong",
    "forward" => Writes::Forward, "anywhere" => Writes::Anywhere, "strong" => Writes::Strong);
words!(ConflictRule, "version, siblings", "version" => ConflictRule::Version, "siblings" => ConflictRule::Siblings);
words!(RequestIds, "optional, required", "optional" => RequestIds::Optional, "required" => RequestIds::Required);

/// Without the spaces around it. A prefix or a label may begin with a tab or a line's end, which stand for themselves.
fn bare(text: &str) -> &str {
    text.trim_matches(' ')
}

/// `word` or `word(argument)`.
fn call(text: &str) -> (&str, Option<&str>) {
    match text.strip_suffix(')').and_then(|open| open.split_once('(')) {
        Some((word, argument)) => (bare(word), Some(bare(argument))),
        None => (bare(text), None),
    }
}

const REPLICATION: &str = "async, sync(N)";
const TIER: &str = "hot, warm(SPAN), cold(SPAN)";
const READ_DEFAULT: &str = "eventual, session, bounded(SPAN), strong";
const HOME: &str = "creator, hash, prefixes(PREFIX=REGION,…,*=REGION)";
const LABELS: &str = "none, or a list of NAME=VALUE";
const RESIDENCY: &str = "all, or a list of jurisdictions and region:NAME";

impl fmt::Display for Replication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Replication::Async => f.write_str("async"),
            Replication::Sync(n) => write!(f, "sync({n})"),
        }
    }
}

impl FromStr for Replication {
    type Err = BadSetting;

    fn from_str(text: &str) -> Result<Self, BadSetting> {
        match call(text) {
            ("async", None) => Some(Replication::Async),
            ("sync", Some(n)) => n.parse().ok().map(Replication::Sync),
            _ => None,
        }
        .ok_or_else(|| BadSetting { found: text.to_owned(), wanted: REPLICATION })
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tier::Hot => f.write_str("hot"),
            Tier::Warm(interval) => write!(f, "warm({})", span::show(*interval)),
            Tier::Cold(interval) => write!(f, "cold({})", span::show(*interval)),
        }
    }
}

impl FromStr for Tier {
    type Err = BadSetting;

    fn from_str(text: &str) -> Result<Self, BadSetting> {
        let interval = |given: Option<&str>, usual: Duration| given.map_or(Ok(usual), span::parse);
        match call(text) {
            ("hot", None) => Some(Tier::Hot),
            ("warm", given) => interval(given, WARM_INTERVAL).ok().map(Tier::Warm),
            ("cold", given) => interval(given, COLD_INTERVAL).ok().map(Tier::Cold),
            _ => None,
        }
        .ok_or_else(|| BadSetting { found: text.to_owned(), wanted: TIER })
    }
}

impl fmt::Display for ReadDefault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadDefault::Eventual => f.write_str("eventual"),
            ReadDefault::Session => f.write_str("session"),
            ReadDefault::Bounded(bound) => write!(f, "bounded({})", span::show(*bound)),
            ReadDefault::Strong => f.write_str("strong"),
        }
    }
}

impl FromStr for ReadDefault {
    type Err = BadSetting;

    fn from_str(text: &str) -> Result<Self, BadSetting> {
        match call(text) {
            ("eventual", None) => Some(ReadDefault::Eventual),
            ("session", None) => Some(ReadDefault::Session),
            ("strong", None) => Some(ReadDefault::Strong),
            ("bounded", Some(bound)) => span::parse(bound).ok().map(ReadDefault::Bounded),
            _ => None,
        }
        .ok_or_else(|| BadSetting { found: text.to_owned(), wanted: READ_DEFAULT })
    }
}

/// What would be read as something else stands as `%` and two hexadecimal digits.
fn escape(prefix: &str) -> String {
    if prefix.is_empty() {
        return "*".to_owned();
    }
    let mut out = String::new();
    for c in prefix.chars() {
        match c {
            '%' | '=' | ',' | '(' | ')' | '*' | ' ' => out.push_str(&format!("%{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

fn unescape(text: &str) -> Option<String> {
    if text == "*" {
        return Some(String::new());
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (before, after) = rest.split_at(at);
        let code = u8::from_str_radix(after.get(1..3)?, 16).ok().filter(u8::is_ascii)?;
        out.push_str(before);
        out.push(char::from(code));
        rest = &after[3..];
    }
    out.push_str(rest);
    (!out.is_empty()).then_some(out)
}

impl fmt::Display for HomeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HomeRule::Creator => f.write_str("creator"),
            HomeRule::Hash => f.write_str("hash"),
            HomeRule::Prefixes(prefixes) => {
                // The longest prefix wins wherever it stands; any other key's comes last, where people look for it.
                let named = prefixes.iter().filter(|(prefix, _)| !prefix.is_empty());
                let rest = prefixes.iter().filter(|(prefix, _)| prefix.is_empty());
                let parts: Vec<_> =
                    named.chain(rest).map(|(prefix, region)| format!("{}={region}", escape(prefix))).collect();
                write!(f, "prefixes({})", parts.join(","))
            }
        }
    }
}

impl FromStr for HomeRule {
    type Err = BadSetting;

    fn from_str(text: &str) -> Result<Self, BadSetting> {
        match call(text) {
            ("creator", None) => Some(HomeRule::Creator),
            ("hash", None) => Some(HomeRule::Hash),
            ("prefixes", Some(list)) => prefixes(list).map(HomeRule::Prefixes),
            _ => None,
        }
        .ok_or_else(|| BadSetting { found: text.to_owned(), wanted: HOME })
    }
}

/// `none`, or `NAME=VALUE,…`. Empty names are no names.
fn labels(text: &str) -> Option<BTreeMap<String, String>> {
    if text == "none" {
        return Some(BTreeMap::new());
    }
    let label = |part: &str| {
        let (name, value) = part.split_once('=')?;
        Some((unescape(bare(name)).filter(|name| !name.is_empty())?, unescape(bare(value))?))
    };
    text.split(',').map(label).collect()
}

/// `None` where one is no `PREFIX=REGION`, or stands twice.
fn prefixes(list: &str) -> Option<BTreeMap<String, Region>> {
    let mut out = BTreeMap::new();
    for part in list.split(',') {
        let (prefix, region) = part.split_once('=')?;
        let is_new = out.insert(unescape(bare(prefix))?, Region::new(bare(region))).is_none();
        if bare(region).is_empty() || !is_new {
            return None;
        }
    }
    Some(out)
}

impl fmt::Display for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Residency::Within { jurisdictions, regions } = self else { return f.write_str("all") };
        let regions = regions.iter().map(|region| format!("region:{region}"));
        let parts: Vec<String> = jurisdictions.iter().cloned().chain(regions).collect();
        f.write_str(&parts.join(","))
    }
}

impl FromStr for Residency {
    type Err = BadSetting;

    fn from_str(text: &str) -> Result<Self, BadSetting> {
        if text.trim() == "all" {
            return Ok(Residency::All);
        }
        let (mut jurisdictions, mut regions) = (BTreeSet::new(), BTreeSet::new());
        for part in text.split(',').map(str::trim) {
            let (kind, name) = part.split_once(':').unwrap_or(("jurisdiction", part));
            match kind {
                // `all` beside others would read as if it were the others that narrow it.
                "jurisdiction" if !name.is_empty() && name != "all" => _ = jurisdictions.insert(name.to_owned()),
                "region" if !name.is_empty() => _ = regions.insert(Region::new(name)),
                _ => return Err(BadSetting { found: text.to_owned(), wanted: RESIDENCY }),
            }
        }
        Ok(Residency::Within { jurisdictions, regions })
    }
}

/// Stored as they are shown.
macro_rules! stored_as_text {
    ($($type:ty),+) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )+};
}

stored_as_text!(Scope, HomeRule, Writes, Replication, Tier, ConflictRule, ReadDefault, Residency, RequestIds);

pub(super) mod spans {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&span::show(*span))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        span::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

pub(super) mod optional_span {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        span.map(span::show).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| span::parse(&text)).transpose().map_err(de::Error::custom)
    }
}

/// Every setting, in the order in which people think of them: `scope=affine home=creator …`.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.settings().into_iter().map(|(name, value)| format!("{name}={value}"));
        f.write_str(&parts.collect::<Vec<_>>().join(" "))
    }
}

/// The names of all settings, in the order of `Policy::settings`.
pub const SETTINGS: [&str; 13] = [
    "scope",
    "home",
    "writes",
    "replication",
    "tier",
    "conflict",
    "read_default",
    "residency",
    "ttl",
    "request_ids",
    "request_id_window",
    "value_bytes_max",
    "labels",
];

impl Policy {
    /// What the settings say, over what a keyspace of their scope has where nothing else is said. All that is wrong is named.
    pub fn of_settings<'a>(
        settings: impl IntoIterator<Item = (&'a str, &'a str)> + Clone,
    ) -> Result<Policy, Vec<Fault>> {
        let mut faults = Vec::new();
        let named_scope = settings.clone().into_iter().find(|(name, _)| *name == "scope");
        let scope = named_scope.map_or(Ok(Scope::default()), |(_, text)| text.parse()).unwrap_or_default();
        let mut policy = Policy::of_scope(scope);
        for (name, text) in settings {
            faults.extend(policy.set(name, text).err());
        }
        if faults.is_empty() { Ok(policy) } else { Err(faults) }
    }

    /// Sets one setting from its text form; `none` takes back what may be missing.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), Fault> {
        let fault = |rule: String| Fault { field: name.to_owned().into(), rule };
        fn read<T: FromStr>(text: &str) -> Result<T, String>
        where
            T::Err: fmt::Display,
        {
            text.parse().map_err(|error: T::Err| error.to_string())
        }
        let span = |text: &str| span::parse(text).map_err(|error| error.to_string());
        let is_none = text == "none";
        match name {
            "scope" => self.scope = read(text).map_err(fault)?,
            "home" if is_none => self.home = None,
            "home" => self.home = Some(read(text).map_err(fault)?),
            "writes" => self.writes = read(text).map_err(fault)?,
            "replication" => self.replication = read(text).map_err(fault)?,
            "tier" => self.tier = read(text).map_err(fault)?,
            "conflict" => self.conflict = read(text).map_err(fault)?,
            "read_default" => self.read_default = read(text).map_err(fault)?,
            "residency" => self.residency = read(text).map_err(fault)?,
            "ttl" if is_none => self.ttl = None,
            "ttl" => self.ttl = Some(span(text).map_err(fault)?),
            "request_ids" => self.request_ids = read(text).map_err(fault)?,
            "request_id_window" => self.request_id_window = span(text).map_err(fault)?,
            "value_bytes_max" => self.value_bytes_max = read(text).map_err(fault)?,
            "labels" => self.labels = labels(text).ok_or_else(|| fault(format!("{text:?} is not {LABELS}")))?,
            _ => return Err(fault(format!("is no setting; there are: {}", SETTINGS.join(", ")))),
        }
        Ok(())
    }

    /// Names and values of every setting that there is.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut out = vec![("scope", self.scope.to_string())];
        out.extend(self.home.iter().map(|home| ("home", home.to_string())));
        out.extend([
            ("writes", self.writes.to_string()),
            ("replication", self.replication.to_string()),
            ("tier", self.tier.to_string()),
            ("conflict", self.conflict.to_string()),
            ("read_default", self.read_default.to_string()),
            ("residency", self.residency.to_string()),
        ]);
        out.extend(self.ttl.iter().map(|ttl| ("ttl", span::show(*ttl))));
        out.extend([
            ("request_ids", self.request_ids.to_string()),
            ("request_id_window", span::show(self.request_id_window)),
            ("value_bytes_max", self.value_bytes_max.to_string()),
        ]);
        if !self.labels.is_empty() {
            let labels = self.labels.iter().map(|(name, value)| format!("{}={}", escape(name), escape(value)));
            out.push(("labels", labels.collect::<Vec<_>>().join(",")));
        }
        out
    }
}
