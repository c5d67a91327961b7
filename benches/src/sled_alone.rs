//! sled by itself: what a view costs without a log before it, or a network.
//!
//! Each batch is sorted, and each record read and then inserted, since a store that keeps versions has to look before it writes. It
//! runs in the benchmark's own process and syncs nothing: that is a bound, and no store.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use isle_load::BenchError;
use isle_load::deployment::{Deployment, Region, Starter, directory};
use isle_load::record::Record;
use isle_load::target::{Answer, Fault, Lane, Target};

const NAME: &str = "sled";
/// As isle's default.
const CACHE_BYTES: u64 = 64 << 20;

struct SledTarget(sled::Db);

struct SledLane(sled::Db);

fn refused(error: &sled::Error) -> Fault {
    Fault::Refused(error.to_string())
}

#[async_trait]
impl Target for SledTarget {
    fn name(&self) -> &'static str {
        NAME
    }

    fn durability(&self) -> &'static str {
        "none: get and insert of sorted batches, in this process"
    }

    async fn ready(&self) -> Result<(), Fault> {
        Ok(())
    }

    async fn lanes(&self, count: usize, _connections: usize) -> Result<Vec<Box<dyn Lane>>, Fault> {
        Ok((0..count).map(|_| Box::new(SledLane(self.0.clone())) as Box<dyn Lane>).collect())
    }
}

impl SledLane {
    fn write(&self, record: &Record) -> Result<(), Fault> {
        self.0.get(&record.key).map_err(|error| refused(&error))?;
        self.0.insert(&record.key, record.value.as_ref()).map_err(|error| refused(&error))?;
        Ok(())
    }
}

#[async_trait]
impl Lane for SledLane {
    fn target(&self) -> &'static str {
        NAME
    }

    async fn put(&mut self, record: &Record) -> Result<(), Fault> {
        self.write(record)
    }

    async fn get(&mut self, key: &Bytes) -> Result<Option<Bytes>, Fault> {
        let found = self.0.get(key).map_err(|error| refused(&error))?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    async fn put_batch(&mut self, mut records: Vec<Record>) -> Result<Answer, Fault> {
        records.sort_by(|a, b| a.key.cmp(&b.key));
        records.iter().try_for_each(|record| self.write(record))?;
        Ok(Answer::applied(records.len() as u64))
    }
}

pub struct StartSled {
    pub place: std::path::PathBuf,
}

#[async_trait(?Send)]
impl Starter for StartSled {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn start(&self, regions: usize) -> Result<Deployment, BenchError> {
        if regions > 1 {
            return Err(Fault::Unsupported { target: NAME, what: "second region" }.into());
        }
        let directory = directory(&self.place)?;
        let data_dir = directory.path().join("data");
        let config = sled::Config::new().path(&data_dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let db = config.open().map_err(|error| refused(&error))?;
        let target = Arc::new(SledTarget(db));
        let region = Region { name: NAME.to_owned(), target, process: None, data_dir: Some(data_dir) };
        Ok(Deployment::new(vec![region], Some(directory)))
    }
}
