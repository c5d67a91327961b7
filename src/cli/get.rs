use std::io::Write;
use std::time::Duration;

use clap::Args;
use isle_client::v1::{Consistency, ReadOptions};

use super::{Failure, Global};
use crate::{output, units};

#[derive(Args)]
pub struct Get {
    keyspace: String,
    key: String,
    /// eventual, bounded=2s, session or strong (the last two are not served yet)
    #[arg(long, value_parser = consistency, value_name = "LEVEL")]
    consistency: Option<ReadOptions>,
}

impl Get {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let read = self.consistency.unwrap_or_default();
        let entry = global.client().await?.get(&self.keyspace, self.key.clone(), read).await?;
        if global.is_json() {
            output::line(&output::entry(&entry, self.key.as_bytes()).to_string())?;
        } else if entry.found {
            let mut shown = output::plain(&entry.record);
            shown.push(b'\n');
            std::io::stdout().lock().write_all(&shown)?;
        } else {
            eprintln!("not found");
        }
        Ok(())
    }
}

fn consistency(text: &str) -> Result<ReadOptions, String> {
    let (level, span) = text.split_once('=').map_or((text, None), |(level, span)| (level, Some(span)));
    let consistency = match level {
        "eventual" => Consistency::Eventual,
        "session" => Consistency::Session,
        "bounded" => Consistency::Bounded,
        "strong" => Consistency::Strong,
        _ => return Err("eventual, session, bounded=SPAN or strong".to_owned()),
    };
    let max_staleness = match (consistency, span) {
        (Consistency::Bounded, Some(span)) => Some(units::duration(span).map_err(|error| error.to_string())?),
        (Consistency::Bounded, None) => return Err("bounded needs a span: bounded=2s".to_owned()),
        (_, Some(_)) => return Err(format!("{level} takes no span")),
        (_, None) => None,
    };
    let max_staleness = max_staleness.map(|span: Duration| span.try_into()).transpose();
    let max_staleness = max_staleness.map_err(|_| "the span is too long".to_owned())?;
    Ok(ReadOptions { consistency: consistency.into(), max_staleness, ..ReadOptions::default() })
}
