//! The settings of a keyspace as flags: `read_default` is `--read-default`. The values are the model's text forms.

use std::collections::BTreeMap;

use clap::Args;
use isle_client::policy::{Fault, Policy};

use super::Failure;
use crate::units;

#[derive(Args, Default)]
pub struct SettingFlags {
    /// affine, local or global; stays for good
    #[arg(long)]
    scope: Option<String>,
    /// creator, hash or prefixes(eu/=eu-west-1,*=us-east-1); stays for good
    #[arg(long, value_name = "RULE")]
    home: Option<String>,
    /// forward, anywhere or strong (not served yet)
    #[arg(long)]
    writes: Option<String>,
    /// async, or sync(N): acknowledged once N other holders have it too
    #[arg(long, value_name = "MODE")]
    replication: Option<String>,
    /// hot, warm(SPAN) or cold(SPAN) (the last is not served yet)
    #[arg(long)]
    tier: Option<String>,
    /// version or siblings (not served yet)
    #[arg(long, value_name = "RULE")]
    conflict: Option<String>,
    /// eventual, bounded(2s), strong or session (not served yet)
    #[arg(long, value_name = "LEVEL")]
    read_default: Option<String>,
    /// all, or jurisdictions and regions: eu,region:us-east-1
    #[arg(long, value_name = "WHERE")]
    residency: Option<String>,
    /// After how long without a write keys go, or none (not served yet)
    #[arg(long, value_name = "SPAN")]
    ttl: Option<String>,
    /// optional or required (not served yet)
    #[arg(long, value_name = "RULE")]
    request_ids: Option<String>,
    /// How long an outcome is remembered (only 1d is served yet)
    #[arg(long, value_name = "SPAN")]
    request_id_window: Option<String>,
    /// Largest value, such as 64KiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    value_bytes_max: Option<String>,
    /// For people and bills; may be given more than once, and takes the place of all there were. `none` for none
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
}

/// As the model reads it: a number of bytes.
fn size(text: &str) -> Result<String, String> {
    units::size(text).map(|bytes| bytes.to_string()).map_err(|error| error.to_string())
}

impl SettingFlags {
    /// Those that were given, labels apart.
    fn given(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("scope", &self.scope),
            ("home", &self.home),
            ("writes", &self.writes),
            ("replication", &self.replication),
            ("tier", &self.tier),
            ("conflict", &self.conflict),
            ("read_default", &self.read_default),
            ("residency", &self.residency),
            ("ttl", &self.ttl),
            ("request_ids", &self.request_ids),
            ("request_id_window", &self.request_id_window),
            ("value_bytes_max", &self.value_bytes_max),
        ];
        all.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?))).collect()
    }

    /// Of a new keyspace. All that is wrong is named.
    pub fn policy(&self) -> Result<Policy, Failure> {
        let policy = Policy::of_settings(self.given());
        let labels = self.labels();
        match (policy, labels) {
            (Ok(policy), Ok(labels)) => Ok(Policy { labels, ..policy }),
            (policy, labels) => {
                let faults = policy.err().into_iter().flatten().chain(labels.err());
                Err(usage(&faults.collect::<Vec<_>>()))
            }
        }
    }

    /// Of a change: what was given, within a policy that is otherwise of no meaning, and its names.
    pub fn partial(&self) -> Result<(Policy, Vec<&'static str>), Failure> {
        let (mut policy, mut named, mut faults) = (Policy::default(), Vec::new(), Vec::new());
        for (name, text) in self.given() {
            faults.extend(policy.set(name, text).err());
            named.push(name);
        }
        if !self.labels.is_empty() {
            match self.labels() {
                Ok(labels) => policy.labels = labels,
                Err(fault) => faults.push(fault),
            }
            named.push("labels");
        }
        if !faults.is_empty() {
            return Err(usage(&faults));
        }
        if named.is_empty() {
            return Err(Failure::Usage("nothing to change is given".to_owned()));
        }
        Ok((policy, named))
    }

    fn labels(&self) -> Result<BTreeMap<String, String>, Fault> {
        if self.labels == ["none"] {
            return Ok(BTreeMap::new());
        }
        let label = |text: &String| {
            let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty())?;
            Some((name.to_owned(), value.to_owned()))
        };
        let fault = |text: &String| Fault { field: "label".into(), rule: format!("{text:?} is not NAME=VALUE") };
        self.labels.iter().map(|text| label(text).ok_or_else(|| fault(text))).collect()
    }
}

fn usage(faults: &[Fault]) -> Failure {
    let flag = |fault: &Fault| format!("--{}: {}", fault.field.replace('_', "-"), fault.rule);
    Failure::Usage(faults.iter().map(flag).collect::<Vec<_>>().join("\n      "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{Command, FromArgMatches};
    use isle_client::policy::SETTINGS;

    use super::*;

    #[test]
    fn every_setting_has_a_flag() {
        let command = SettingFlags::augment_args(Command::new("isle"));
        let flags: Vec<&str> = command.get_arguments().filter_map(|flag| flag.get_long()).collect();
        let wanted: Vec<String> =
            SETTINGS.iter().map(|name| name.replace('_', "-").replace("labels", "label")).collect();
        assert_eq!(flags, wanted);
    }

    #[test]
    fn flags_are_read_and_all_faults_named() {
        let read = |arguments: &[&str]| {
            let command = SettingFlags::augment_args(Command::new("isle").no_binary_name(true));
            SettingFlags::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap()
        };
        let policy = read(&["--scope", "global", "--value-bytes-max", "64KiB", "--label", "a=b=c"]).policy().unwrap();
        assert_eq!((policy.value_bytes_max, policy.labels["a"].as_str()), (64 << 10, "b=c"));
        assert_eq!(policy.home, None);
        let faults = read(&["--tier", "lukewarm", "--read-default", "old", "--label", "x"]).policy().unwrap_err();
        let said = faults.to_string();
        assert!(["--tier: ", "--read-default: ", "--label: "].iter().all(|flag| said.contains(flag)), "{said}");
        let (policy, named) = read(&["--writes", "anywhere", "--label", "none"]).partial().unwrap();
        assert_eq!((named, policy.labels.len()), (vec!["writes", "labels"], 0));
        assert!(read(&[]).partial().is_err());
    }
}
