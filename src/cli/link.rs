use std::time::Duration;

use clap::{Args, Subcommand};
use isle_client::v1;
use serde_json::json;

use super::{Failure, Global};
use crate::{output, units};

#[derive(Args)]
pub struct Link {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Let nothing through, as a firewall that drops packets
    Cut(Ends),
    /// Make a link what it was at the start; without regions, every link
    Heal {
        #[arg(requires = "b")]
        a: Option<String>,
        b: Option<String>,
        #[arg(long)]
        one_way: bool,
    },
    /// Delay everything on a link
    Slow {
        #[command(flatten)]
        ends: Ends,
        #[arg(long, value_parser = units::duration, default_value = "500ms", value_name = "SPAN")]
        delay: Duration,
    },
}

#[derive(Args)]
struct Ends {
    a: String,
    b: String,
    /// Only what goes from A to B
    #[arg(long)]
    one_way: bool,
}

impl Link {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client().await?;
        let links = match self.action {
            Action::Cut(ends) => client.link_cut(&ends.a, &ends.b, ends.one_way).await?,
            Action::Heal { a, b, one_way } => {
                client.link_heal(&a.unwrap_or_default(), &b.unwrap_or_default(), one_way).await?
            }
            Action::Slow { ends, delay } => client.link_slow(&ends.a, &ends.b, ends.one_way, delay).await?,
        };
        links.iter().try_for_each(|link| show(global, link))?;
        Ok(())
    }
}

fn show(global: &Global, link: &v1::Link) -> std::io::Result<()> {
    let delay = link.delay.and_then(|delay| Duration::try_from(delay).ok()).unwrap_or_default().as_millis() as u64;
    if global.is_json() {
        let line = json!({ "from": link.from, "to": link.to, "cut": link.cut, "delay_ms": delay });
        return output::line(&line.to_string());
    }
    let state = if link.cut { "cut" } else { "open" };
    output::line(&format!("{:<20} → {:<20} {state}, {delay} ms", link.from, link.to))
}
