//! A server process that the benchmark started: stopped when it is dropped, by its own id and no other way.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::time::Instant;

/// How long a server may take to stop after it was asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// Lines of its log that an error shows.
const LAST_WORDS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("{program} does not start: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("{program} ended ({status}); its last words:\n{words}")]
    Ended { program: String, status: String, words: String },
    #[error("{program} is not ready after {seconds} s: {fact}")]
    NotReady { program: String, seconds: u64, fact: String },
    #[error("process {id}: {source}")]
    Signal { id: u32, source: std::io::Error },
}

/// How a server is started, so that it can be started again.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// What it prints goes here.
    pub log: PathBuf,
}

#[derive(Debug)]
pub struct Process {
    recipe: Recipe,
    child: Child,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub peak_rss_bytes: u64,
}

impl Recipe {
    pub fn new(program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Recipe {
        Recipe { program: program.into(), arguments: Vec::new(), log: log.into() }
    }

    pub fn arg(mut self, argument: impl Into<OsString>) -> Recipe {
        self.arguments.push(argument.into());
        self
    }

    pub fn args<A: Into<OsString>>(self, arguments: impl IntoIterator<Item = A>) -> Recipe {
        arguments.into_iter().fold(self, |recipe, argument| recipe.arg(argument))
    }

    pub fn start(self) -> Result<Process, ProcessError> {
        let child = self.spawn()?;
        Ok(Process { recipe: self, child })
    }

    fn spawn(&self) -> Result<Child, ProcessError> {
        let fault = |source| ProcessError::Start { program: self.program.display().to_string(), source };
        let log = File::options().create(true).append(true).open(&self.log).map_err(fault)?;
        let mut command = Command::new(&self.program);
        // The user's own settings of isle would reach the servers too, and not be printed beside the figures.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ISLE_")) {
            command.env_remove(name);
        }
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log.try_clone().map_err(fault)?).stderr(log);
        command.spawn().map_err(fault)
    }
}

impl Process {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn program(&self) -> String {
        self.recipe.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        kill_process(self.pid(), signal).map_err(|error| ProcessError::Signal { id: self.id(), source: error.into() })
    }

    /// An error once it has ended.
    pub fn check(&mut self) -> Result<(), ProcessError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(ProcessError::Ended {
                program: self.program(),
                status: status.to_string(),
                words: last_words(&self.recipe.log),
            }),
            Err(source) => Err(ProcessError::Signal { id: self.id(), source }),
        }
    }

    /// Asks until it is ready, and gives up when the process ends or takes too long. Says how long it took.
    pub async fn until_ready<E: std::fmt::Display>(
        &mut self,
        patience: Duration,
        ready: impl AsyncFn() -> Result<(), E>,
    ) -> Result<Duration, ProcessError> {
        let began = Instant::now();
        loop {
            self.check()?;
            match ready().await {
                Ok(()) => return Ok(began.elapsed()),
                Err(fault) if began.elapsed() > patience => {
                    return Err(ProcessError::NotReady {
                        program: self.program(),
                        seconds: patience.as_secs(),
                        fact: fault.to_string(),
                    });
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// SIGKILL: it has no say in it.
    pub fn kill(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and a clean end, if it comes in time.
    pub async fn stop(&mut self) -> Result<(), ProcessError> {
        if self.check().is_err() {
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        let began = Instant::now();
        while self.check().is_ok() {
            if began.elapsed() > STOP_PATIENCE {
                self.kill();
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The same server again, after it has ended.
    pub fn start_again(&mut self) -> Result<(), ProcessError> {
        self.child = self.recipe.spawn()?;
        Ok(())
    }

    /// What the kernel counted. Nothing where it has ended.
    pub fn usage(&self) -> Usage {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", self.id())).unwrap_or_default();
        Usage { cpu_seconds: cpu_seconds(&read("stat")), peak_rss_bytes: peak_rss_bytes(&read("status")) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// User and system time are the 14th and 15th field. The 2nd, the name, is in parentheses and may hold blanks.
fn cpu_seconds(stat: &str) -> f64 {
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        behind_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn peak_rss_bytes(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or_default() << 10
}

fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        let stat = "77 (a (b) c) S 1 77 77 0 -1 4194304 500 0 0 0 250 50 0 0 20 0 3 0 100 1 2";
        assert!((cpu_seconds(stat) - 300.0 / rustix::param::clock_ticks_per_second() as f64).abs() < 1e-9);
        assert_eq!(peak_rss_bytes("VmPeak:\t 9 kB\nVmHWM:\t  2048 kB\n"), 2 << 20);
    }

    #[tokio::test]
    async fn a_process_ends_with_whoever_started_it_and_its_last_words_are_shown() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let sleeping = Recipe::new("/bin/sleep", &log).arg("600").start().unwrap();
        let id = sleeping.id();
        assert!(sleeping.usage().peak_rss_bytes > 0);
        drop(sleeping);
        assert!(!Path::new(&format!("/proc/{id}")).exists());

        let mut failing = Recipe::new("/bin/sh", &log).args(["-c", "echo cannot go on; exit 3"]).start().unwrap();
        let error = failing.until_ready(STOP_PATIENCE, async || Err("not yet")).await.unwrap_err();
        assert!(error.to_string().contains("cannot go on"), "{error}");
    }
}
