use std::io::{BufWriter, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use isle_client::{Entry, Range};
use serde_json::{Value as Json, json};

use super::{Failure, Global};
use crate::output;

/// A page of the most items: an export reads everything anyway.
const PAGE_SIZE: u32 = 1000;

#[derive(Args)]
pub struct Export {
    keyspace: String,
    /// Write here instead of stdout
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Put the key into documents under this name, as `import --key` takes it; without it lines are {"key":…,"value":…}
    #[arg(long, value_name = "FIELD")]
    key: Option<String>,
}

impl Export {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client().await?;
        let mut out: Box<dyn Write> = match &self.to {
            Some(path) => Box::new(BufWriter::new(std::fs::File::create(path)?)),
            None => Box::new(BufWriter::new(std::io::stdout().lock())),
        };
        let mut token = Bytes::new();
        loop {
            let page = client.scan(&self.keyspace, &Range::default(), PAGE_SIZE, token).await?;
            for entry in &page.entries {
                writeln!(out, "{}", exported(entry, self.key.as_deref()))?;
            }
            token = page.next;
            if token.is_empty() {
                out.flush()?;
                return Ok(());
            }
        }
    }
}

fn exported(entry: &Entry, key_field: Option<&str>) -> Json {
    let key = output::bytes(&entry.key);
    match (output::record(&entry.record), key_field) {
        (Json::Object(mut members), Some(field)) if entry.record.value.is_none() => {
            members.entry(field).or_insert(key);
            Json::Object(members)
        }
        (value, _) => json!({ "key": key, "value": value }),
    }
}
