//! Starts the real binary, and waits for conditions with a deadline.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, dead_code)]

pub mod tap;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const REGIONS: [&str; 3] = ["us-east-1", "eu-west-1", "ap-southeast-1"];

/// A process that is killed with the test.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    pub endpoint: String,
    pub port: u16,
}

impl Process {
    fn start(mut command: Command, port: u16) -> Process {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let forward = |from: Box<dyn std::io::Read + Send>, sender: std::sync::mpsc::Sender<String>| {
            std::thread::spawn(move || {
                BufReader::new(from).lines().map_while(Result::ok).for_each(|line| _ = sender.send(line));
            });
        };
        forward(Box::new(out), sender.clone());
        forward(Box::new(err), sender);
        Process { child, lines, endpoint: format!("http://127.0.0.1:{port}"), port }
    }

    /// The first line for which this holds, and all before it.
    fn wait_for_line(&mut self, holds: impl Fn(&str) -> bool) -> Result<Vec<String>, Vec<String>> {
        let (mut seen, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            let found = holds(&line);
            seen.push(line);
            if found {
                return Ok(seen);
            }
        }
        Err(seen)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said since it was last asked.
    pub fn said(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, and returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.ended()
    }

    /// Waits until it has ended by itself, and returns its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::yield_now();
        }
    }

    pub fn isle(&self, arguments: &[&str]) -> Output {
        isle_at(&self.endpoint, arguments)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that knows nothing of the environment the tests run in.
pub fn isle() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isle"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ISLE_")) {
        command.env_remove(name);
    }
    command
}

pub fn isle_at(endpoint: &str, arguments: &[&str]) -> Output {
    isle().args(["--endpoint", endpoint, "--output", "json"]).args(arguments).output().unwrap()
}

/// The JSON of a command that has to succeed.
pub fn done(output: &Output) -> Json {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(Json::Null)
}

/// The error of a command that has to fail so.
pub fn failed(output: &Output, exit: i32) -> Json {
    assert_eq!(output.status.code(), Some(exit), "{}", String::from_utf8_lossy(&output.stderr));
    let error: Json = serde_json::from_slice(&output.stderr).unwrap();
    error["error"].clone()
}

/// A port with free ones behind it. Another process may take them meanwhile, so starting is tried more than once.
pub fn free_port(span: u16) -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if first < u16::MAX - span && (first..first + span).all(free) {
            return first;
        }
    }
}

/// Three regions; the first one's endpoint is the process's, and the others lie 10 ports apart.
pub fn dev(data_dir: Option<&Path>) -> Process {
    let start = |port: u16| {
        let mut command = isle();
        command.args(["dev", "--link-delay", "5ms", "--port", &port.to_string()]);
        if let Some(path) = data_dir {
            command.arg("--data-dir").arg(path);
        }
        Process::start(command, port)
    };
    started(start, 23, |line| line == "ready")
}

/// One region, with a data directory.
pub fn serve(data_dir: &Path, settings: &[&str]) -> Process {
    serve_with(data_dir, None, settings)
}

/// The same, with a config file beneath the settings.
pub fn serve_with(data_dir: &Path, config: Option<&Path>, settings: &[&str]) -> Process {
    let start = |port: u16| {
        let mut command = isle();
        command.args(["serve", "--set", "region=solo", "--data-dir"]).arg(data_dir);
        if let Some(path) = config {
            command.arg("--config").arg(path);
        }
        for (key, port) in [("client", port), ("peer", port + 1), ("http", port + 2)] {
            command.args(["--set", &format!("listen.{key}=127.0.0.1:{port}")]);
        }
        settings.iter().for_each(|setting| _ = command.args(["--set", setting]));
        Process::start(command, port)
    };
    started(start, 3, |line| line.contains("serving"))
}

/// Regions that know each other's ports before any is up: region n has 10·n behind the first, and its settings from a file in `dir`,
/// of which the ports are left out. May have to be tried again where a port was taken meanwhile.
pub fn serve_in(dir: &Path, region: &str, port: u16) -> Result<Process, Vec<String>> {
    let mut command = isle();
    command.args(["serve", "--config"]).arg(dir.join(format!("{region}.toml")));
    command.arg("--data-dir").arg(dir.join(region));
    for (key, port) in [("client", port), ("peer", port + 1), ("http", port + 2)] {
        command.args(["--set", &format!("listen.{key}=127.0.0.1:{port}")]);
    }
    let mut process = Process::start(command, port);
    process.wait_for_line(|line| line.contains("serving")).map(|_| process)
}

fn started(start: impl Fn(u16) -> Process, span: u16, is_up: fn(&str) -> bool) -> Process {
    let mut seen = Vec::new();
    for _ in 0..5 {
        let mut process = start(free_port(span));
        match process.wait_for_line(is_up) {
            Ok(_) => return process,
            Err(lines) => seen = lines,
        }
    }
    panic!("it does not start: {seen:#?}");
}

/// Asks until the answer is there.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(last) => assert!(Instant::now() < deadline, "{what} does not come true: {last}"),
        }
    }
}
