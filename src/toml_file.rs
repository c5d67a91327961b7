//! A TOML text in which everything knows its line, so that every fault can name it.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::Fault;

/// A key, its value, and where it stands.
pub(crate) type Entry<'a, 'i> = (&'a str, &'a Spanned<DeValue<'i>>, String);

pub(crate) struct TomlFile<'a> {
    /// What faults call it.
    pub(crate) name: &'a str,
    pub(crate) text: &'a str,
}

impl<'a> TomlFile<'a> {
    /// What it says, or every place where it is no TOML.
    pub(crate) fn parse(&self) -> Result<Spanned<DeTable<'a>>, Vec<Fault>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        let fault = |error: &toml::de::Error| {
            let place = self.place(error.span().map_or(0, |span| span.start));
            Fault { place, fact: error.message().to_owned() }
        };
        if errors.is_empty() { Ok(table) } else { Err(errors.iter().map(fault).collect()) }
    }

    pub(crate) fn place(&self, offset: usize) -> String {
        let line = 1 + self.text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count();
        format!("{}:{line}", self.name)
    }

    pub(crate) fn entries<'t, 'i>(&self, table: &'t DeTable<'i>) -> Vec<Entry<'t, 'i>> {
        let entry = |(key, value): (&'t Spanned<_>, &'t Spanned<DeValue<'i>>)| {
            let key: &'t Spanned<std::borrow::Cow<'i, str>> = key;
            (key.get_ref().as_ref(), value, self.place(key.span().start))
        };
        table.iter().map(entry).collect()
    }
}

/// The text of a plain value: all sources of a setting are read by the same function.
pub(crate) fn text_of(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}
