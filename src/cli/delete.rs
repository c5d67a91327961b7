use clap::Args;

use super::write_flags::{self, WriteFlags};
use super::{Failure, Global};

#[derive(Args)]
pub struct Delete {
    keyspace: String,
    key: String,
    #[command(flatten)]
    write: WriteFlags,
}

impl Delete {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let options = self.write.options(false, None);
        let written = global.client().await?.delete(&self.keyspace, self.key, options).await?;
        write_flags::show(global, &written)
    }
}
