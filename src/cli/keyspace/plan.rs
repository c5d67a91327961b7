//! What has to happen for keyspaces to be what a file wants. Pure: who asks and who carries it out is `apply`.

use std::collections::HashMap;
use std::fmt;

use isle_client::Keyspace;
use isle_client::policy::{Policy, SETTINGS};
use serde_json::{Value as Json, json};

use super::file::Wanted;

pub struct Plan<'a> {
    /// One a keyspace of the file, in its order.
    pub steps: Vec<Step<'a>>,
    /// Keyspaces that are there and not in the file. They are left alone.
    pub unlisted: Vec<&'a Keyspace>,
}

pub struct Step<'a> {
    pub wanted: &'a Wanted,
    pub action: Action,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Create,
    /// Of what this etag stands for.
    Change {
        etag: String,
        changes: Vec<Change>,
    },
    Leave,
}

/// One setting that becomes another.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    setting: &'static str,
    from: Option<String>,
    to: Option<String>,
}

impl<'a> Plan<'a> {
    pub fn of(wanted: &'a [Wanted], existing: &'a [Keyspace]) -> Plan<'a> {
        let mut left: HashMap<&str, &Keyspace> =
            existing.iter().map(|keyspace| (keyspace.name.as_str(), keyspace)).collect();
        let step = |wanted: &'a Wanted| {
            let action = match left.remove(wanted.name.as_str()) {
                None => Action::Create,
                Some(there) if there.policy == wanted.policy => Action::Leave,
                Some(there) => {
                    Action::Change { etag: there.etag.clone(), changes: changes(&there.policy, &wanted.policy) }
                }
            };
            Step { wanted, action }
        };
        let steps = wanted.iter().map(step).collect();
        let unlisted = existing.iter().filter(|keyspace| left.contains_key(keyspace.name.as_str())).collect();
        Plan { steps, unlisted }
    }

    pub fn count(&self, is: impl Fn(&Action) -> bool) -> usize {
        self.steps.iter().filter(|step| is(&step.action)).count()
    }

    pub fn to_create(&self) -> usize {
        self.count(|action| *action == Action::Create)
    }

    pub fn to_change(&self) -> usize {
        self.count(|action| matches!(action, Action::Change { .. }))
    }

    pub fn to_leave(&self) -> usize {
        self.count(|action| *action == Action::Leave)
    }

    /// A line a keyspace: `create  carts  scope=affine home=hash`.
    pub fn lines(&self) -> Vec<String> {
        let step = |step: &Step<'_>| {
            let (verb, what) = match &step.action {
                Action::Create => ("create", told(&step.wanted.policy)),
                Action::Change { changes, .. } => ("change", joined(changes)),
                Action::Leave => ("leave", String::new()),
            };
            [verb.to_owned(), step.wanted.name.clone(), what]
        };
        let unlisted = |keyspace: &&Keyspace| {
            ["unlisted".to_owned(), keyspace.name.clone(), "not in the file, left alone".to_owned()]
        };
        crate::cli::status::columns(self.steps.iter().map(step).chain(self.unlisted.iter().map(unlisted)).collect())
    }

    pub fn json_lines(&self) -> Vec<Json> {
        let step = |step: &Step<'_>| {
            let name = &step.wanted.name;
            match &step.action {
                Action::Create => {
                    let policy = crate::output::policy(&step.wanted.policy);
                    json!({ "action": "create", "name": name, "policy": policy })
                }
                Action::Change { changes, .. } => {
                    let changes: Vec<Json> = changes.iter().map(Change::json).collect();
                    json!({ "action": "change", "name": name, "changes": changes })
                }
                Action::Leave => json!({ "action": "leave", "name": name }),
            }
        };
        let unlisted = |keyspace: &&Keyspace| json!({ "action": "unlisted", "name": keyspace.name });
        self.steps.iter().map(step).chain(self.unlisted.iter().map(unlisted)).collect()
    }
}

/// Its scope, and what is not its scope's default.
fn told(policy: &Policy) -> String {
    let usual = Policy::of_scope(policy.scope).settings();
    let mut settings = policy.settings();
    settings.retain(|setting| setting.0 == "scope" || !usual.contains(setting));
    settings.iter().map(|(name, text)| format!("{name}={text}")).collect::<Vec<_>>().join(" ")
}

fn joined(changes: &[Change]) -> String {
    changes.iter().map(Change::to_string).collect::<Vec<_>>().join(", ")
}

/// Every setting that differs.
pub fn changes(from: &Policy, to: &Policy) -> Vec<Change> {
    let (from, to) = (from.settings(), to.settings());
    let of =
        |settings: &[(&str, String)], name| settings.iter().find(|(n, _)| *n == name).map(|(_, text)| text.clone());
    let change = |setting: &&'static str| Change { setting, from: of(&from, *setting), to: of(&to, *setting) };
    SETTINGS.iter().map(change).filter(|change| change.from != change.to).collect()
}

impl Change {
    pub fn json(&self) -> Json {
        json!({ "setting": self.setting, "from": self.from, "to": self.to })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &'_ Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        write!(f, "{} {} → {}", self.setting, shown(&self.from), shown(&self.to))
    }
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn existing(name: &str, policy: Policy) -> Keyspace {
        Keyspace { name: name.to_owned(), id: 1, policy, etag: format!("of {name}"), holders_changing: Vec::new() }
    }

    #[test]
    fn a_plan_creates_changes_leaves_and_lists_the_rest() {
        let text = "[[keyspace]]\nname = \"new\"\nhome = \"hash\"\n[[keyspace]]\nname = \"same\"\n\
                    [[keyspace]]\nname = \"other\"\nttl = \"1h\"\n";
        let (wanted, _) = file::read("k.toml", text);
        let labels = [("team".to_owned(), "a".to_owned())].into();
        let there = [
            existing("alone", Policy::default()),
            existing("other", Policy { labels, ..Policy::default() }),
            existing("same", Policy::default()),
        ];
        let plan = Plan::of(&wanted, &there);
        let lines = plan.lines();
        let expected = [
            "create    new    scope=affine home=hash",
            "leave     same",
            "change    other  ttl none → 1h, labels team=a → none",
            "unlisted  alone  not in the file, left alone",
        ];
        assert_eq!(lines, expected);
        assert_eq!((plan.to_create(), plan.to_change(), plan.to_leave()), (1, 1, 1));
        assert!(matches!(&plan.steps[2].action, Action::Change { etag, .. } if etag == "of other"));
    }
}
