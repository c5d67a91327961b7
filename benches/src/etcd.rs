//! etcd, over its gRPC API: one member, as it is when it is started without any setting.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use isle_load::BenchError;
use isle_load::channel::{Spread, refused};
use isle_load::deployment::{Deployment, Region, Starter, directory, free_ports};
use isle_load::process::Recipe;
use isle_load::record::Record;
use isle_load::target::{Answer, Fault, Lane, Target};
use tonic::transport::Channel;

use crate::stores::UNKNOWN_DURABILITY;
use wire::kv_client::KvClient;
use wire::request_op::Request;
use wire::{PutRequest, RangeRequest, RequestOp, TxnRequest};

mod wire {
    #![allow(clippy::all, missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}

const NAME: &str = "etcd";
const DURABILITY: &str = "write-ahead log, fdatasync before the answer (its defaults); reads serializable";
/// Its `--max-txn-ops`, by default.
const TRANSACTION_MAX: usize = 128;
/// What it takes as "to the last key".
const TO_THE_END: Bytes = Bytes::from_static(&[0]);

pub struct EtcdTarget {
    endpoint: String,
    durability: &'static str,
}

impl EtcdTarget {
    /// Of which nobody here knows how it was started.
    pub fn attached(endpoint: String) -> EtcdTarget {
        EtcdTarget { endpoint, durability: UNKNOWN_DURABILITY }
    }
}

struct EtcdLane(KvClient<Channel>);

#[async_trait]
impl Target for EtcdTarget {
    fn name(&self) -> &'static str {
        NAME
    }

    fn durability(&self) -> &'static str {
        self.durability
    }

    async fn ready(&self) -> Result<(), Fault> {
        let mut lanes = self.lanes(1, 1).await?;
        // A put needs the leader, which a member elects some time after it listens.
        lanes[0].put(&Record { key: Bytes::from_static(b"ready"), value: Bytes::new() }).await
    }

    async fn lanes(&self, count: usize, connections: usize) -> Result<Vec<Box<dyn Lane>>, Fault> {
        let spread = Spread::connect(&self.endpoint, connections.min(count)).await?;
        Ok(spread.take(count).map(|channel| Box::new(EtcdLane(KvClient::new(channel))) as Box<dyn Lane>).collect())
    }
}

fn put_request(record: Record) -> PutRequest {
    PutRequest { key: record.key, value: record.value }
}

#[async_trait]
impl Lane for EtcdLane {
    fn target(&self) -> &'static str {
        NAME
    }

    async fn put(&mut self, record: &Record) -> Result<(), Fault> {
        self.0.put(put_request(record.clone())).await.map(|_| ()).map_err(|status| refused(&status))
    }

    /// Serializable: what this member has, as isle answers what its region has. The default would cost it a round of consensus.
    async fn get(&mut self, key: &Bytes) -> Result<Option<Bytes>, Fault> {
        let request = RangeRequest { key: key.clone(), serializable: true, ..RangeRequest::default() };
        let reply = self.0.range(request).await.map_err(|status| refused(&status))?.into_inner();
        Ok(reply.kvs.into_iter().next().map(|found| found.value))
    }

    async fn scan(&mut self, start: &Bytes, entries: usize) -> Result<usize, Fault> {
        let limit = i64::try_from(entries).unwrap_or(i64::MAX);
        let request = RangeRequest { key: start.clone(), range_end: TO_THE_END, limit, serializable: true };
        let reply = self.0.range(request).await.map_err(|status| refused(&status))?;
        Ok(reply.into_inner().kvs.len())
    }

    /// A transaction: the only call of its that carries many writes.
    async fn put_batch(&mut self, records: Vec<Record>) -> Result<Answer, Fault> {
        let count = records.len();
        if count > TRANSACTION_MAX {
            return Err(self.has_no("transaction of more than 128 writes"));
        }
        let put = |record| RequestOp { request: Some(Request::RequestPut(put_request(record))) };
        let request = TxnRequest { success: records.into_iter().map(put).collect() };
        let reply = self.0.txn(request).await.map_err(|status| refused(&status))?.into_inner();
        if !reply.succeeded {
            return Err(Fault::Refused("the transaction did not succeed".to_owned()));
        }
        Ok(Answer::applied(count as u64))
    }
}

/// One member of its own.
pub struct StartEtcd {
    pub program: PathBuf,
    pub place: PathBuf,
}

#[async_trait(?Send)]
impl Starter for StartEtcd {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn start(&self, regions: usize) -> Result<Deployment, BenchError> {
        if regions > 1 {
            return Err(Fault::Unsupported { target: NAME, what: "region that takes writes by itself" }.into());
        }
        let directory = directory(&self.place)?;
        let data_dir = directory.path().join("data");
        let port = free_ports(2);
        let [client, peer] = [port, port + 1].map(|port| format!("http://127.0.0.1:{port}"));
        let recipe = Recipe::new(&self.program, directory.path().join("etcd.log"))
            .arg("--data-dir")
            .arg(&data_dir)
            .args(["--name", "bench", "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("bench={peer}")]);
        let target = Arc::new(EtcdTarget { endpoint: client, durability: DURABILITY });
        let region = Region { name: NAME.to_owned(), target, process: Some(recipe.start()?), data_dir: Some(data_dir) };
        let mut deployment = Deployment::new(vec![region], Some(directory));
        deployment.until_ready().await?;
        Ok(deployment)
    }
}
