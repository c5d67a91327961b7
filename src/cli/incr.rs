use clap::Args;

use super::write_flags::{self, WriteFlags};
use super::{Failure, Global};

#[derive(Args)]
pub struct Incr {
    keyspace: String,
    key: String,
    /// The counter's name
    field: String,
    /// May be negative
    #[arg(allow_negative_numbers = true)]
    amount: i64,
    #[command(flatten)]
    write: WriteFlags,
}

impl Incr {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let options = self.write.options(false, None);
        let client = global.client().await?;
        let written = client.increment(&self.keyspace, self.key, &self.field, self.amount, options).await?;
        write_flags::show(global, &written)
    }
}
