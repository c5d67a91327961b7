//! Long tests that other test programs hold: each gets its share of the time by `ISLE_TORTURE_SECONDS`, and says how it went
//! by `scenario NAME: tried N, survived N, lost N`. They are part of a long run only; plain `cargo test` runs them anyway.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::Instant;

use crate::node::PAUSE;
use crate::report::{Outcome, Row, Tally};

pub struct Program {
    pub name: &'static str,
    /// Its part of the time, beside the others'.
    pub weight: u32,
    arguments: &'static [&'static str],
}

pub const PROGRAMS: &[Program] = &[
    Program { name: "simulation", weight: 14, arguments: &["--test", "simulation"] },
    Program { name: "damage", weight: 6, arguments: &["--package", "isle-store", "--test", "directory"] },
    Program { name: "decoders", weight: 6, arguments: &["--package", "isle-fuzz", "--test", "corpus"] },
];

/// Building it is not counted in its share.
const BUILT_WITHIN: Duration = Duration::from_secs(1800);
const LINES_KEPT: usize = 30;

/// A row a scenario that it names.
pub async fn run(program: &Program, share: Duration) -> Vec<Row> {
    let began = Instant::now();
    let row = |name: &str, outcome, notes| Row { name: name.to_owned(), outcome, took: began.elapsed(), notes };
    let failed = |notes: Vec<String>| row(program.name, Outcome::Ran(Tally { tried: 1, survived: 0, lost: 1 }), notes);
    let ended = match Running::start(program, share) {
        Ok(mut running) => running.ended(share + BUILT_WITHIN).await.map(|good| (good, running.said())),
        Err(error) => Err(error),
    };
    let (good, lines) = match ended {
        Ok(ended) => ended,
        Err(error) => return vec![failed(vec![error.to_string()])],
    };
    let tallies: Vec<_> = lines.iter().filter_map(|line| Tally::read(line)).collect();
    let mut rows: Vec<Row> = tallies.into_iter().map(|(name, tally)| row(&name, Outcome::Ran(tally), vec![])).collect();
    if !good || rows.is_empty() {
        let mut notes = vec![format!("cargo test {} failed", program.arguments.join(" "))];
        notes.extend(lines.into_iter().rev().take(LINES_KEPT).rev());
        // A scenario that says itself what it lost is not counted twice.
        match rows.iter_mut().find(|row| !row.is_good()) {
            Some(row) => row.notes = notes,
            None => rows.push(failed(notes)),
        }
    }
    rows
}

/// A cargo and what it runs, in a group of their own, so that none outlives this.
struct Running {
    cargo: Child,
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Running {
    #[allow(clippy::disallowed_methods, reason = "cargo says by the environment which cargo it is")]
    fn start(program: &Program, share: Duration) -> std::io::Result<Running> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("test").args(program.arguments);
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        command.args(["--", "--nocapture"]).env("ISLE_TORTURE_SECONDS", share.as_secs().max(1).to_string());
        let mut cargo = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = Arc::default();
        keep_lines(cargo.stdout.take(), &lines);
        keep_lines(cargo.stderr.take(), &lines);
        Ok(Running { cargo, lines })
    }

    /// Whether it ended well.
    async fn ended(&mut self, patience: Duration) -> std::io::Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.cargo.try_wait()? {
                return Ok(status.success());
            }
            if Instant::now() > deadline {
                return Err(std::io::Error::other("it does not end"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn said(&self) -> VecDeque<String> {
        self.lines.lock().clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.cargo.try_wait() {
            let _ = kill_process_group(Pid::from_child(&self.cargo), Signal::KILL);
            let _ = self.cargo.wait();
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a pipe has to be emptied while the test does something else")]
fn keep_lines(from: Option<impl std::io::Read + Send + 'static>, lines: &Arc<Mutex<VecDeque<String>>>) {
    let lines = lines.clone();
    std::thread::spawn(move || {
        let said = from.map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(Result::ok);
        said.for_each(|line| lines.lock().push_back(line));
    });
}
