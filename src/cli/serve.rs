use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{Failure, signals};
use crate::config::{Config, Draft};
use crate::server::{self, Ports};

#[derive(Args)]
#[command(after_help = crate::config::help())]
pub struct Serve {
    /// A TOML file; ISLE_… variables and flags are laid over it
    #[arg(long, env = "ISLE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Serve beyond loopback without TLS
    #[arg(long)]
    insecure: bool,
    /// Any setting, such as listen.client=127.0.0.1:7400; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
}

impl Serve {
    pub async fn run(self) -> Result<(), Failure> {
        let config = self.config()?;
        let stop = signals::stop()?;
        let ports = Ports::bind(&config).await.map_err(anyhow::Error::from)?;
        let region = config.region.clone();
        let client = config.client_endpoint();
        let serving = |_: &_| tracing::info!(region, endpoint = client, "serving");
        server::run(&config, ports, None, stop, serving).await.map_err(anyhow::Error::from)?;
        tracing::info!(region = config.region, "stopped");
        Ok(())
    }

    fn config(&self) -> Result<Config, Failure> {
        let mut draft = Draft::default();
        if let Some(path) = &self.config {
            let text = std::fs::read_to_string(path).with_context(|| format!("--config {}", path.display()));
            let text = text.map_err(|error| Failure::Usage(format!("{error:#}")))?;
            draft = draft.file(&path.display().to_string(), &text);
        }
        draft = draft.process_environment();
        if let Some(path) = &self.data_dir {
            draft = draft.flag("--data-dir", "data_dir", path);
        }
        if self.insecure {
            draft = draft.flag("--insecure", "insecure", "true");
        }
        for (key, value) in &self.set {
            draft = draft.flag("--set", key, value);
        }
        draft.finish().map_err(|faults| Failure::Usage(faults.to_string()))
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
