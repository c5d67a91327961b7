//! Choosing what a reader sees. `version` shows the highest sibling, `siblings` shows all; stored state is the same.

use crate::{Dot, Epoch, Field, FieldKey, FieldName, Kind, Lineage, Record, Region, Register, Sibling};

/// A record as a reader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Live value fields in name order, each with its highest sibling first.
    pub values: Vec<(FieldName, Vec<Sibling>)>,
    /// Live counters in name order.
    pub counters: Vec<(FieldName, i64)>,
    /// Whether some field holds more than one sibling.
    pub conflict: bool,
    pub home: Option<Region>,
    /// The epoch in which that became its home.
    pub home_epoch: Epoch,
}

impl Reading {
    pub fn of(record: &Record, lineage: Lineage<'_>) -> Reading {
        let (home, home_epoch) = record.home_and_epoch(lineage).unzip();
        let home_epoch = home_epoch.unwrap_or_default();
        let mut out = Reading { home, home_epoch, ..Reading::default() };
        for (key, field) in record.live_fields() {
            match field {
                Field::Register(register) => {
                    out.conflict |= register.siblings().len() > 1;
                    out.values.push((key.name.clone(), ranked(register, lineage)));
                }
                Field::Counter(counter) => out.counters.push((key.name.clone(), counter.value())),
            }
        }
        out
    }

    pub fn found(&self) -> bool {
        !self.values.is_empty() || !self.counters.is_empty()
    }
}

/// All siblings, the highest first.
fn ranked(register: &Register, lineage: Lineage<'_>) -> Vec<Sibling> {
    let mut siblings = register.siblings().to_vec();
    siblings.sort_by(|a, b| b.rank(lineage).cmp(&a.rank(lineage)));
    siblings
}

/// The dots that tell a field's version from others, sorted: what "the same version" means.
pub(crate) fn live_dots(field: &Field) -> Vec<Dot> {
    match field {
        Field::Register(register) => register.siblings().iter().map(|s| s.dot).collect(),
        Field::Counter(counter) => counter.version(),
    }
}

/// Whether a name is taken by a live field of another kind.
pub(crate) fn other_kind(record: &Record, key: &FieldKey) -> Option<Kind> {
    let other = match key.kind {
        Kind::Value => Kind::Counter,
        Kind::Counter => Kind::Value,
        Kind::Home => return None,
    };
    let key = FieldKey { kind: other, name: key.name.clone() };
    record.get(&key).filter(|field| field.is_live()).map(|_| other)
}
