//! Redis, and KeyDB, which speaks the same protocol.
//!
//! A connection of theirs carries one request after the other, so each lane has its own, as each thread of an application would.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use isle_load::BenchError;
use isle_load::deployment::{Deployment, Region, Starter, directory, free_ports};
use isle_load::process::Recipe;
use isle_load::record::Record;
use isle_load::target::{Answer, Fault, Lane, Target};

use crate::resp::{Connection, Reply};
use crate::stores::UNKNOWN_DURABILITY;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Redis,
    Keydb,
}

impl Flavour {
    pub fn name(self) -> &'static str {
        match self {
            Flavour::Redis => "redis",
            Flavour::Keydb => "keydb",
        }
    }

    /// As it is started here.
    fn durability(self) -> &'static str {
        match self {
            Flavour::Redis => "append-only file, appendfsync always: fdatasync before the answer",
            Flavour::Keydb => "none: active replicas in memory, no fsync (all others here fsync)",
        }
    }
}

pub struct RedisTarget {
    address: String,
    flavour: Flavour,
    durability: &'static str,
}

impl RedisTarget {
    /// Of which nobody here knows how it was started.
    pub fn attached(address: String, flavour: Flavour) -> RedisTarget {
        RedisTarget { address, flavour, durability: UNKNOWN_DURABILITY }
    }

    fn started(address: String, flavour: Flavour) -> RedisTarget {
        RedisTarget { address, flavour, durability: flavour.durability() }
    }
}

struct RedisLane {
    connection: Connection,
    flavour: Flavour,
}

#[async_trait]
impl Target for RedisTarget {
    fn name(&self) -> &'static str {
        self.flavour.name()
    }

    fn durability(&self) -> &'static str {
        self.durability
    }

    async fn ready(&self) -> Result<(), Fault> {
        // While it loads its files it answers with an error.
        match Connection::open(&self.address).await?.call(&[b"PING"]).await? {
            Reply::Error(fact) => Err(Fault::Unreachable(fact)),
            _ => Ok(()),
        }
    }

    async fn lanes(&self, count: usize, _connections: usize) -> Result<Vec<Box<dyn Lane>>, Fault> {
        let mut lanes: Vec<Box<dyn Lane>> = Vec::new();
        for _ in 0..count {
            let connection = Connection::open(&self.address).await?;
            lanes.push(Box::new(RedisLane { connection, flavour: self.flavour }));
        }
        Ok(lanes)
    }
}

fn written(reply: Reply) -> Result<(), Fault> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Error(fact) => Err(Fault::Refused(fact)),
        other => Err(Fault::Refused(format!("an unexpected answer to a write: {other:?}"))),
    }
}

#[async_trait]
impl Lane for RedisLane {
    fn target(&self) -> &'static str {
        self.flavour.name()
    }

    async fn put(&mut self, record: &Record) -> Result<(), Fault> {
        written(self.connection.call(&[b"SET", &record.key, &record.value]).await?)
    }

    async fn get(&mut self, key: &Bytes) -> Result<Option<Bytes>, Fault> {
        match self.connection.call(&[b"GET", key]).await? {
            Reply::Value(value) => Ok(Some(value)),
            Reply::Nothing => Ok(None),
            Reply::Error(fact) => Err(Fault::Refused(fact)),
            Reply::Done => Err(Fault::Refused("an unexpected answer to a read".to_owned())),
        }
    }

    async fn put_if_absent(&mut self, record: &Record) -> Result<bool, Fault> {
        match self.connection.call(&[b"SET", &record.key, &record.value, b"NX"]).await? {
            Reply::Nothing => Ok(false),
            other => written(other).map(|()| true),
        }
    }

    async fn put_pipelined(&mut self, records: Vec<Record>) -> Result<Answer, Fault> {
        for record in &records {
            self.connection.command(&[b"SET", &record.key, &record.value]);
        }
        self.connection.send().await?;
        let mut answer = Answer::default();
        for _ in &records {
            match written(self.connection.reply().await?) {
                Ok(()) => answer.applied += 1,
                Err(fault) => {
                    answer.refused += 1;
                    answer.reason.get_or_insert_with(|| fault.to_string());
                }
            }
        }
        Ok(answer)
    }
}

/// Servers of its own: one Redis that syncs every write, or KeyDB nodes that replicate to each other.
pub struct StartRedis {
    pub program: PathBuf,
    pub place: PathBuf,
    pub flavour: Flavour,
}

#[async_trait(?Send)]
impl Starter for StartRedis {
    fn name(&self) -> &'static str {
        self.flavour.name()
    }

    async fn start(&self, regions: usize) -> Result<Deployment, BenchError> {
        if regions > 1 && self.flavour == Flavour::Redis {
            return Err(Fault::Unsupported { target: self.name(), what: "second region that takes writes" }.into());
        }
        let directory = directory(&self.place)?;
        let ports: Vec<u16> = (0..regions).map(|_| free_ports(1)).collect();
        let mut started = Vec::new();
        for (at, port) in ports.iter().enumerate() {
            let name = format!("{}-{}", self.name(), at + 1);
            let data_dir = directory.path().join(&name);
            std::fs::create_dir(&data_dir).map_err(|source| BenchError::of_file(&data_dir, source))?;
            let others = ports.iter().filter(|other| *other != port);
            let recipe = Recipe::new(&self.program, directory.path().join(format!("{name}.log")))
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
                .arg(&data_dir)
                .args(self.settings(others));
            let target = Arc::new(RedisTarget::started(format!("127.0.0.1:{port}"), self.flavour));
            started.push(Region { name, target, process: Some(recipe.start()?), data_dir: Some(data_dir) });
        }
        let mut deployment = Deployment::new(started, Some(directory));
        deployment.until_ready().await?;
        Ok(deployment)
    }
}

impl StartRedis {
    fn settings<'a>(&self, others: impl Iterator<Item = &'a u16>) -> Vec<String> {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        match self.flavour {
            Flavour::Redis => texts(&["--appendonly", "yes", "--appendfsync", "always"]),
            Flavour::Keydb => {
                let mut settings = texts(&["--appendonly", "no", "--multi-master", "yes", "--active-replica", "yes"]);
                for port in others {
                    settings.extend(texts(&["--replicaof", "127.0.0.1", &port.to_string()]));
                }
                settings
            }
        }
    }
}
