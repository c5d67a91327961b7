//! The TOML file of a node, walked with its positions kept, so that every fault names its line.

use isle_model::policy::{Policy, SETTINGS};
use toml::de::{DeTable, DeValue};

use super::{Draft, KEYS, Keyspace, Peer};
use crate::toml_file::{TomlFile as File, text_of};

pub(super) fn read(draft: &mut Draft, name: &str, text: &str) {
    let file = File { name, text };
    match file.parse() {
        Ok(table) => file.table(draft, "", table.get_ref()),
        Err(faults) => draft.faults.extend(faults),
    }
}

impl File<'_> {
    fn table(&self, draft: &mut Draft, prefix: &str, table: &DeTable<'_>) {
        for (key, value, place) in self.entries(table) {
            let name = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
            match (name.as_str(), value.get_ref()) {
                ("peers", value) => self.peers(draft, value, &place),
                ("keyspaces", value) => self.keyspaces(draft, value, &place),
                (_, DeValue::Table(inner)) if is_section(&name) => self.table(draft, &name, inner),
                (_, value) => self.single(draft, &name, value, place),
            }
        }
    }

    fn single(&self, draft: &mut Draft, name: &str, value: &DeValue<'_>, place: String) {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            return draft.fault(&place, format!("unknown key {name:?}"));
        };
        match text_of(value) {
            Some(text) => draft.set(key, &text, place),
            None => draft.fault(&place, format!("{name} cannot be a {}", value.type_str())),
        }
    }

    fn peers(&self, draft: &mut Draft, value: &DeValue<'_>, place: &str) {
        let rows = self.rows(
            draft,
            "peers",
            value,
            place,
            &["region", "jurisdiction", "endpoint", "client_endpoint", "tls_name", "egress_usd_per_gb"],
        );
        let peer = |mut row: Row| Peer {
            region: row.take("region").unwrap_or_default(),
            jurisdiction: row.take("jurisdiction").unwrap_or_default(),
            endpoint: row.take("endpoint").unwrap_or_default(),
            client_endpoint: row.take("client_endpoint"),
            tls_name: row.take("tls_name"),
            egress_usd_per_gb: row.take("egress_usd_per_gb"),
        };
        draft.config.peers = rows.into_iter().map(peer).collect();
    }

    fn keyspaces(&self, draft: &mut Draft, value: &DeValue<'_>, place: &str) {
        let known: Vec<&str> = ["id", "name"].into_iter().chain(SETTINGS).collect();
        let rows = self.rows(draft, "keyspaces", value, place, &known);
        draft.config.keyspaces.clear();
        for (at, mut row) in rows.into_iter().enumerate() {
            // 0 is refused by validation, which names the row.
            let id = row.take("id").and_then(|id| id.parse().ok()).unwrap_or(0);
            let mut keyspace = Keyspace::new(id, &row.take("name").unwrap_or_default());
            if !row.0.is_empty() {
                let settings = row.0.iter().map(|(name, text)| (name.as_str(), text.as_str()));
                let policy = Policy::of_settings(settings).unwrap_or_else(|faults| {
                    for fault in faults {
                        let place = draft.places.of(&format!("keyspaces[{at}].{}", fault.field));
                        draft.fault(&place, fault.to_string());
                    }
                    keyspace.policy.clone()
                });
                keyspace.policy = policy;
            }
            draft.config.keyspaces.push(keyspace);
        }
    }

    /// An array of tables of plain values, with unknown keys refused and the place of each row noted.
    fn rows(&self, draft: &mut Draft, name: &str, value: &DeValue<'_>, place: &str, known: &[&str]) -> Vec<Row> {
        let Some(array) = value.as_array() else {
            draft.fault(place, format!("{name} must be tables, written [[{name}]]"));
            return Vec::new();
        };
        let mut rows = Vec::new();
        for (at, item) in array.iter().enumerate() {
            let place = self.place(item.span().start);
            let Some(table) = item.get_ref().as_table() else {
                draft.fault(&place, format!("{name} must be tables, written [[{name}]]"));
                continue;
            };
            draft.places.0.insert(format!("{name}[{at}]"), place.clone());
            let mut row = Row::default();
            for (key, value, place) in self.entries(table) {
                draft.places.0.insert(format!("{name}[{at}].{key}"), place.clone());
                match text_of(value.get_ref()).filter(|_| known.contains(&key)) {
                    Some(text) => row.0.push((key.to_owned(), text)),
                    None => draft.fault(&place, format!("unknown key or wrong type: {name}.{key}")),
                }
            }
            rows.push(row);
        }
        rows
    }
}

#[derive(Default)]
struct Row(Vec<(String, String)>);

impl Row {
    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(k, _)| k == key)?;
        Some(self.0.swap_remove(at).1)
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}
