use bytes::Bytes;
use clap::Args;
use isle_client::{Entry, Range};

use super::{Failure, Global};
use crate::output;

const PAGE_SIZE: u32 = 500;

#[derive(Args)]
pub struct Scan {
    keyspace: String,
    /// Only keys that begin so
    #[arg(long, default_value = "")]
    prefix: String,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

impl Scan {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client().await?;
        let range = Range::prefix(self.prefix);
        let (mut left, mut token) = (self.limit.unwrap_or(u64::MAX), Bytes::new());
        while left > 0 {
            let size = u32::try_from(left).unwrap_or(PAGE_SIZE).min(PAGE_SIZE);
            let page = client.scan(&self.keyspace, &range, size, token).await?;
            page.entries.iter().try_for_each(|entry| show(global, entry))?;
            left = left.saturating_sub(page.entries.len() as u64);
            token = page.next;
            if token.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

fn show(global: &Global, entry: &Entry) -> std::io::Result<()> {
    if global.is_json() {
        return output::line(&output::entry(entry, &entry.key).to_string());
    }
    let value = output::plain(&entry.record);
    output::line(&format!("{}\t{}", String::from_utf8_lossy(&entry.key), String::from_utf8_lossy(&value)))
}
