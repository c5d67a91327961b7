//! One `isle serve` process: started, asked, killed. It never outlives its `Node`.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use isle_client::{Client, Options, Retry, v1};
use parking_lot::Mutex;
use rand::Rng;
use tokio::time::Instant;

/// How long a condition is waited for that has no deadline of its own. A slow machine must not look like a lost write.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two questions to something that is waited for.
pub const PAUSE: Duration = Duration::from_millis(20);

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Plan {
    pub region: String,
    pub data_dir: PathBuf,
    /// The first of three ports: clients, peers, HTTP.
    pub port: u16,
    pub config: Option<PathBuf>,
    pub settings: Vec<String>,
    /// PEM of the authority, where the node speaks TLS.
    pub ca: Option<Vec<u8>>,
}

/// A running process.
pub struct Node {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    /// They end with the pipes.
    readers: Vec<JoinHandle<()>>,
    pub plan: Plan,
}

impl Plan {
    pub fn solo(data_dir: &Path) -> Plan {
        Plan {
            region: "solo".to_owned(),
            data_dir: data_dir.to_owned(),
            port: free_ports(3),
            config: None,
            settings: Vec::new(),
            ca: None,
        }
    }

    pub fn set(mut self, key: &str, value: impl std::fmt::Display) -> Plan {
        self.settings.push(format!("{key}={value}"));
        self
    }

    pub fn endpoint(&self) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Starts the process, and does not wait for it.
    #[allow(clippy::disallowed_methods, reason = "the test is the front door: it hands no settings of its own on")]
    pub fn spawn(&self) -> Result<Node> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_isle"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ISLE_")) {
            command.env_remove(name);
        }
        command.args(["serve", "--set", &format!("region={}", self.region), "--data-dir"]).arg(&self.data_dir);
        if let Some(path) = &self.config {
            command.arg("--config").arg(path);
        }
        for (key, port) in [("client", self.port), ("peer", self.port + 1), ("http", self.port + 2)] {
            command.args(["--set", &format!("listen.{key}=127.0.0.1:{port}")]);
        }
        self.settings.iter().for_each(|setting| _ = command.args(["--set", setting]));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("isle does not start")?;
        let lines = Arc::default();
        let readers = vec![
            keep_lines(child.stdout.take().context("a pipe")?, &lines),
            keep_lines(child.stderr.take().context("a pipe")?, &lines),
        ];
        Ok(Node { child, lines, readers, plan: self.clone() })
    }

    /// Starts the process, and waits until it serves. A port that somebody took meanwhile is waited for too.
    pub async fn start(&self) -> Result<Node> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut node = self.spawn()?;
            let ended = loop {
                if node.said(" serving ").is_some() {
                    return Ok(node);
                }
                if node.child.try_wait()?.is_some() {
                    break true;
                }
                if Instant::now() > deadline {
                    break false;
                }
                tokio::time::sleep(PAUSE).await;
            };
            if ended {
                node.hear_out();
            }
            let port_taken = node.said("Address already in use").is_some();
            if !(ended && port_taken && Instant::now() < deadline) {
                let status = node.child.try_wait()?.map_or("it runs".to_owned(), |status| status.to_string());
                bail!("it does not serve ({status}): {}", node.tail());
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a pipe has to be emptied while the test does something else")]
fn keep_lines(from: impl std::io::Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let lines = lines.clone();
    std::thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).for_each(|line| lines.lock().push(line));
    })
}

impl Node {
    /// Waits for the last words of a process that has ended: they may still be in the pipe.
    fn hear_out(&mut self) {
        self.readers.drain(..).for_each(|reader| _ = reader.join());
    }

    /// The newest line that holds this.
    pub fn said(&self, text: &str) -> Option<String> {
        self.lines.lock().iter().rev().find(|line| line.contains(text)).cloned()
    }

    /// Its last words, for a report.
    pub fn tail(&self) -> String {
        let lines = self.lines.lock();
        lines[lines.len().saturating_sub(12)..].join("\n        ")
    }

    /// A client that tries nothing twice: what is judged is what the node said, not what a retry made of it.
    pub async fn client(&self) -> Result<Client> {
        let options = Options { retry: Retry::never(), ca_pem: self.plan.ca.clone(), ..Options::default() };
        Client::connect_with(&self.plan.endpoint(), options).await.context("connecting")
    }

    pub async fn status(&self) -> Result<v1::RegionStatus> {
        let status = self.client().await?.status().await?;
        status.region.context("a status without its region")
    }

    /// SIGKILL: the process has no say in it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and a clean end.
    pub async fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "it stopped with {status}: {}", self.tail());
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it does not stop: {}", self.tail());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Memory that is its own and in use, in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib << 10)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port with free ones behind it, below those that the kernel hands out to whoever dials: a node that is down for a
/// while gets its own ports back.
pub fn free_ports(span: u16) -> u16 {
    let mut rng = rand::rngs::StdRng::from_os_rng();
    loop {
        let first = rng.random_range(10_000..32_000);
        if (first..first + span).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
}

use rand::SeedableRng;

/// Asks until the answer is there, and gives up with the last reason why it was not.
pub async fn eventually<T, F: Future<Output = Result<T>>>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(last) if Instant::now() > deadline => {
                return Err(last.context(format!("{what}: not within {patience:.0?}")));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
