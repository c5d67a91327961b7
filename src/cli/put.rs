use std::time::Duration;

use super::value::{self, Type};
use super::write_flags::{self, WriteFlags};
use super::{Failure, Global};
use crate::units;

#[derive(clap::Args)]
pub struct Put {
    keyspace: String,
    key: String,
    /// `-` reads it from stdin
    #[arg(allow_hyphen_values = true)]
    value: String,
    #[arg(long = "type", value_enum, default_value_t, value_name = "TYPE")]
    kind: Type,
    /// Only if the key is not there
    #[arg(long, conflicts_with = "if_version")]
    if_absent: bool,
    /// After how long the value expires (not served yet)
    #[arg(long, value_parser = units::duration, value_name = "SPAN")]
    ttl: Option<Duration>,
    #[command(flatten)]
    write: WriteFlags,
}

impl Put {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let value = value::parse(&self.value, self.kind)?;
        let options = self.write.options(self.if_absent, self.ttl);
        let written = global.client().await?.put(&self.keyspace, self.key, value, options).await?;
        write_flags::show(global, &written)
    }
}
