use clap::Args;
use isle_client::MoveWhat;
use serde_json::json;

use super::{Failure, Global};
use crate::output;

#[derive(Args)]
pub struct Move {
    keyspace: String,
    #[command(flatten)]
    what: What,
    /// The region that is to be their home
    #[arg(long, value_name = "REGION")]
    to: String,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct What {
    /// One key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// All keys that begin so; where the keyspace has a home map, those too that are made later
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
}

impl Move {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let what = match (self.what.key, self.what.prefix) {
            (Some(key), _) => MoveWhat::Key(key.into()),
            (None, prefix) => MoveWhat::Prefix(prefix.unwrap_or_default().into()),
        };
        let moved = global.client().await?.move_homes(&self.keyspace, what, &self.to).await?;
        if global.is_json() {
            let line = json!({ "moved": moved.keys, "home": self.to, "home_epoch": moved.home_epoch });
            return Ok(output::line(&line.to_string())?);
        }
        let keys = if moved.keys == 1 { "1 key" } else { &format!("{} keys", moved.keys) };
        Ok(output::line(&format!("{keys} moved to {} (epoch {})", self.to, moved.home_epoch))?)
    }
}
