//! The file of `isle keyspace apply`: `[[keyspace]]` tables of a name and settings, each in its text form; labels may be a table.
//! Every fault names its line, and unknown keys are faults: a misspelt setting never silently keeps its default.

use std::collections::{BTreeMap, HashMap};

use isle_client::policy::{Policy, SETTINGS};
use isle_model::limits::NAME_BYTES_MAX;
use isle_model::metadata::is_name;
use toml::de::{DeTable, DeValue};

use crate::config::Fault;
use crate::toml_file::{TomlFile, text_of};

/// A keyspace as the file wants it.
pub struct Wanted {
    pub name: String,
    /// What the file leaves out is the default.
    pub policy: Policy,
    place: String,
    /// Of each setting that the file has.
    places: HashMap<String, String>,
}

impl Wanted {
    /// Where a setting stands, or the keyspace, where it is a default.
    pub fn place_of(&self, setting: &str) -> &str {
        self.places.get(setting).unwrap_or(&self.place)
    }
}

/// What the file wants, in its order, of those rows in which nothing is wrong; and all that is wrong in the others.
pub fn read(name: &str, text: &str) -> (Vec<Wanted>, Vec<Fault>) {
    let file = TomlFile { name, text };
    let mut reader = Reader { file: &file, wanted: Vec::new(), taken: HashMap::new(), faults: Vec::new() };
    match file.parse() {
        Ok(table) => reader.table(table.get_ref()),
        Err(faults) => reader.faults = faults,
    }
    (reader.wanted, reader.faults)
}

struct Reader<'a> {
    file: &'a TomlFile<'a>,
    wanted: Vec<Wanted>,
    /// Every name so far, and where.
    taken: HashMap<String, String>,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, place: &str, fact: impl Into<String>) {
        self.faults.push(Fault { place: place.to_owned(), fact: fact.into() });
    }

    fn table(&mut self, table: &DeTable<'_>) {
        for (key, value, place) in self.file.entries(table) {
            let rows = value.get_ref().as_array().filter(|_| key == "keyspace");
            let Some(rows) = rows else {
                self.fault(&place, format!("{key:?} is unknown; keyspaces are written [[keyspace]]"));
                continue;
            };
            for row in rows.iter() {
                let place = self.file.place(row.span().start);
                match row.get_ref().as_table() {
                    Some(table) => self.row(table, place),
                    None => self.fault(&place, "keyspaces are written [[keyspace]]"),
                }
            }
        }
    }

    fn row(&mut self, table: &DeTable<'_>, place: String) {
        let before = self.faults.len();
        let (mut name, mut settings, mut labels, mut places) = (None, Vec::new(), None, HashMap::new());
        for (key, value, place) in self.file.entries(table) {
            match (key, value.get_ref(), text_of(value.get_ref())) {
                ("labels", DeValue::Table(table), _) => labels = Some(self.labels(table)),
                ("name", _, Some(text)) => name = Some((text, place.clone())),
                (setting, _, Some(text)) if SETTINGS.contains(&setting) => settings.push((setting.to_owned(), text)),
                (key, value, None) if key == "name" || SETTINGS.contains(&key) => {
                    self.fault(&place, format!("{key} cannot be a {}", value.type_str()));
                }
                (key, _, _) => {
                    self.fault(&place, format!("unknown key {key:?}; there are: name, {}", SETTINGS.join(", ")))
                }
            }
            places.insert(key.to_owned(), place);
        }
        let name = self.name(name, &place);
        let read = Policy::of_settings(settings.iter().map(|(name, text)| (name.as_str(), text.as_str())));
        let mut policy = read.unwrap_or_else(|faults| {
            for fault in faults {
                let place = places.get(fault.field.as_ref()).unwrap_or(&place).clone();
                self.fault(&place, fault.to_string());
            }
            Policy::default()
        });
        policy.labels = labels.unwrap_or(policy.labels);
        if let Some(name) = name.filter(|_| self.faults.len() == before) {
            self.wanted.push(Wanted { name, policy, place, places });
        }
    }

    fn name(&mut self, given: Option<(String, String)>, row: &str) -> Option<String> {
        let Some((name, place)) = given else {
            self.fault(row, "name must be set");
            return None;
        };
        if !is_name(&name) {
            let rule = format!("{name:?} is not a name: 1 to {NAME_BYTES_MAX} of a-z A-Z 0-9 - _ .");
            self.fault(&place, rule);
            return None;
        }
        if let Some(first) = self.taken.get(&name).cloned() {
            self.fault(&place, format!("{name:?} is there already, at {first}"));
            return None;
        }
        self.taken.insert(name.clone(), place);
        Some(name)
    }

    fn labels(&mut self, table: &DeTable<'_>) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for (key, value, place) in self.file.entries(table) {
            match text_of(value.get_ref()) {
                Some(text) => _ = labels.insert(key.to_owned(), text),
                None => self.fault(&place, format!("label {key:?} cannot be a {}", value.get_ref().type_str())),
            }
        }
        labels
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use isle_client::policy::{Scope, Writes};

    use super::*;

    fn faults(text: &str) -> Vec<String> {
        read("k.toml", text).1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_left_out_is_the_default_of_the_scope() {
        let text = "[[keyspace]]\nname = \"a\"\n[[keyspace]]\nname = \"b\"\nscope = \"global\"\nvalue_bytes_max = 64\n\
                    [keyspace.labels]\nteam = \"x\"\ncost = 7\n[[keyspace]]\nname = \"c\"\nlabels = \"team=y\"\n";
        let (wanted, faults) = read("k.toml", text);
        assert_eq!(faults, []);
        assert_eq!(wanted.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(wanted[0].policy, Policy::default());
        assert_eq!((wanted[1].policy.scope, wanted[1].policy.writes), (Scope::Global, Writes::Anywhere));
        assert_eq!((wanted[1].policy.value_bytes_max, wanted[1].policy.labels["cost"].as_str()), (64, "7"));
        assert_eq!(wanted[2].policy.labels["team"], "y");
        assert_eq!((wanted[1].place_of("scope"), wanted[1].place_of("home")), ("k.toml:5", "k.toml:3"));
    }

    #[test]
    fn every_fault_is_named_at_once_with_its_line() {
        let text = "colour = 1\n[[keyspace]]\nname = \"a b\"\nteir = \"hot\"\nscope = \"planet\"\n[[keyspace]]\n\
                    writes = [1]\n[[keyspace]]\nname = \"c\"\n[[keyspace]]\nname = \"c\"\nlabels = { x = [] }\n";
        let named = faults(text);
        for start in
            ["k.toml:1: \"colour\"", "k.toml:3: \"a b\"", "k.toml:4: unknown key \"teir\"", "k.toml:5: scope: "]
        {
            assert_eq!(named.iter().filter(|fault| fault.starts_with(start)).count(), 1, "{start}: {named:#?}");
        }
        for start in ["k.toml:6: name must", "k.toml:7: writes cannot", "k.toml:11: \"c\" is there", "k.toml:12: label"]
        {
            assert_eq!(named.iter().filter(|fault| fault.starts_with(start)).count(), 1, "{start}: {named:#?}");
        }
        assert_eq!(named.len(), 8, "{named:#?}");
        assert_eq!(read("k.toml", text).0.len(), 1, "what is sound is looked at further");
    }

    #[test]
    fn what_is_no_toml_names_its_line() {
        assert!(faults("[[keyspace]]\nname = = 3\n")[0].starts_with("k.toml:2: "));
        assert!(faults("[keyspace]\nname = \"a\"\n")[0].starts_with("k.toml:1: "));
    }
}
