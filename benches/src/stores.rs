//! Which stores there are, and where their programs and endpoints are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use async_trait::async_trait;
use clap::{Args, ValueEnum};
use isle_load::BenchError;
use isle_load::deployment::{AttachIsle, Deployment, FLOOR_FILE_BYTES, Region, StartFloor, StartIsle, Starter};
use isle_load::options::LoadOptions;
use isle_load::target::{Fault, Target};

use crate::etcd::{EtcdTarget, StartEtcd};
use crate::redis::{Flavour, RedisTarget, StartRedis};
use crate::sled_alone::StartSled;

/// Of a store that somebody else has started: to claim more would be to guess.
pub const UNKNOWN_DURABILITY: &str = "as it was started; not known here";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Store {
    Isle,
    /// A bare server that appends each request to a file with a group fdatasync
    Floor,
    Etcd,
    Redis,
    Keydb,
    /// sled by itself, in this process, without syncs
    Sled,
}

/// Where a store runs that the user has started.
#[derive(Clone, Debug)]
pub struct At {
    store: Store,
    address: String,
}

impl std::str::FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<At, String> {
        let (name, address) = text.split_once('=').ok_or("write NAME=ADDRESS")?;
        Ok(At { store: Store::from_str(name, true)?, address: address.to_owned() })
    }
}

#[derive(Args, Debug)]
pub struct Stores {
    /// Drives what runs there instead of starting it: isle=http://HOST:7400, etcd=http://HOST:2379, redis=HOST:6379; may be repeated
    #[arg(long, global = true, value_name = "NAME=ADDRESS")]
    at: Vec<At>,
    /// The isle binary (beside this one by default)
    #[arg(long, global = true, value_name = "FILE")]
    isle: Option<PathBuf>,
    /// Worker threads of the floor; isle uses one
    #[arg(long, global = true, default_value_t = 1, value_name = "N")]
    runtime_threads: usize,
}

impl Store {
    pub fn name(self) -> &'static str {
        match self {
            Store::Isle => "isle",
            Store::Floor => "floor",
            Store::Etcd => "etcd",
            Store::Redis => "redis",
            Store::Keydb => "keydb",
            Store::Sled => "sled",
        }
    }

    /// What has to be installed.
    fn program(self) -> Option<&'static str> {
        match self {
            Store::Etcd => Some("etcd"),
            Store::Redis => Some("redis-server"),
            Store::Keydb => Some("keydb-server"),
            _ => None,
        }
    }
}

impl Stores {
    fn at(&self, store: Store) -> Option<&str> {
        self.at.iter().find(|at| at.store == store).map(|at| at.address.as_str())
    }

    /// Whether it can be had on this machine.
    pub fn has(&self, store: Store) -> bool {
        self.at(store).is_some() || store.program().is_none_or(|program| find(program).is_ok())
    }

    pub fn starter(&self, store: Store, load: &LoadOptions) -> anyhow::Result<Box<dyn Starter>> {
        if let Some(address) = self.at(store) {
            return self.attach(store, address, load);
        }
        let place = load.directory();
        let this = std::env::current_exe().context("this program's own path")?;
        Ok(match store {
            Store::Isle => {
                let program = self.isle.clone().unwrap_or_else(|| this.with_file_name("isle"));
                if !program.exists() {
                    bail!("{} does not exist: build isle with the same profile, or give --isle", program.display());
                }
                Box::new(StartIsle { program, place, keyspace: load.keyspace.clone() })
            }
            Store::Floor => Box::new(StartFloor {
                program: this,
                arguments: vec![OsString::from("floor-server")],
                place,
                runtime_threads: self.runtime_threads,
                echo_bytes: load.value_bytes,
                file_bytes: FLOOR_FILE_BYTES,
            }),
            Store::Etcd => Box::new(StartEtcd { program: find("etcd")?, place }),
            Store::Redis => Box::new(StartRedis { program: find("redis-server")?, place, flavour: Flavour::Redis }),
            Store::Keydb => Box::new(StartRedis { program: find("keydb-server")?, place, flavour: Flavour::Keydb }),
            Store::Sled => Box::new(StartSled { place }),
        })
    }

    fn attach(&self, store: Store, address: &str, load: &LoadOptions) -> anyhow::Result<Box<dyn Starter>> {
        let address = address.to_owned();
        Ok(match store {
            Store::Isle => Box::new(AttachIsle { endpoint: address, keyspace: load.keyspace.clone() }),
            Store::Floor | Store::Sled => bail!("{} runs nowhere but in a benchmark", store.name()),
            store => Box::new(Attach { store, address }),
        })
    }
}

/// A store that the user runs.
struct Attach {
    store: Store,
    address: String,
}

#[async_trait(?Send)]
impl Starter for Attach {
    fn name(&self) -> &'static str {
        self.store.name()
    }

    async fn start(&self, regions: usize) -> Result<Deployment, BenchError> {
        if regions > 1 {
            return Err(Fault::Unsupported { target: self.name(), what: "second region that is known here" }.into());
        }
        let address = self.address.clone();
        let target: Arc<dyn Target> = match self.store {
            Store::Etcd => Arc::new(EtcdTarget::attached(address)),
            Store::Keydb => Arc::new(RedisTarget::attached(address, Flavour::Keydb)),
            _ => Arc::new(RedisTarget::attached(address, Flavour::Redis)),
        };
        target.ready().await?;
        let region = Region { name: self.name().to_owned(), target, process: None, data_dir: None };
        Ok(Deployment::new(vec![region], None))
    }
}

/// Where a program is that has been installed.
fn find(program: &str) -> anyhow::Result<PathBuf> {
    #[allow(clippy::disallowed_methods, reason = "programs are found where the shell finds them")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/bin")]);
    let found = directories.map(|directory| directory.join(program)).find(|path| is_file(path));
    found.with_context(|| format!("{program} is not installed; `just bench-peers` installs what Debian has"))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}
