//! What every write can be told, and how its outcome is shown.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use isle_client::{Condition, WriteOptions, Written};

use super::{Failure, Global};
use crate::output;

#[derive(Args)]
pub struct WriteFlags {
    /// Names the operation, so that a retry returns its first outcome (not served yet)
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// The home of a key that this creates, where the keyspace leaves it to the creator
    #[arg(long, value_name = "REGION")]
    home: Option<String>,
    /// Only if the record is at this version
    #[arg(long, value_name = "VERSION", value_parser = output::parse_version)]
    if_version: Option<Bytes>,
}

impl WriteFlags {
    pub fn options(self, if_absent: bool, ttl: Option<Duration>) -> WriteOptions {
        let condition = match (self.if_version, if_absent) {
            (Some(version), _) => Condition::Version(version),
            (None, true) => Condition::Absent,
            (None, false) => Condition::None,
        };
        WriteOptions {
            condition,
            ttl,
            request_id: self.request_id.unwrap_or_default(),
            home: self.home.unwrap_or_default(),
            ..WriteOptions::default()
        }
    }
}

pub fn show(global: &Global, written: &Written) -> Result<(), Failure> {
    if global.is_json() {
        output::line(&output::written(written).to_string())?;
    } else if let Some(value) = written.value {
        output::line(&value.to_string())?;
    } else {
        let what = if written.found == Some(false) { "nothing there" } else { "done" };
        output::line(&format!("{what} in {}", written.served_by))?;
    }
    Ok(())
}
