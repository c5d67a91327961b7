//! Three regions as processes, with TLS on both ports and a cable between any two.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use isle_client::Record;
use isle_client::v1::RegionStatus;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::time::Instant;

use crate::cable::Cables;
use crate::history::{History, everything};
use crate::node::{Node, Plan, eventually, free_ports};

pub const REGIONS: [&str; 3] = ["a", "b", "c"];

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub cables: Cables,
}

impl Cluster {
    /// Starts all regions. `adjust` may add settings to each.
    pub async fn start(directory: &Path, adjust: impl Fn(Plan) -> Plan) -> Result<Cluster> {
        let ports: Vec<u16> = (free_ports(9)..).step_by(3).take(REGIONS.len()).collect();
        let peers: Vec<u16> = ports.iter().map(|port| port + 1).collect();
        let cables = Cables::between(&peers).await?;
        let authority = Authority::new()?;
        let mut nodes = Vec::new();
        for (at, region) in REGIONS.iter().enumerate() {
            let config = directory.join(format!("{region}.toml"));
            std::fs::write(&config, peers_of(&cables, at))?;
            let plan = Plan {
                region: (*region).to_owned(),
                data_dir: directory.join(region),
                port: ports[at],
                config: Some(config),
                settings: authority.settings(directory, region)?,
                ca: Some(authority.0.pem().into_bytes()),
            };
            nodes.push(adjust(plan).start().await?);
        }
        Ok(Cluster { nodes, cables })
    }

    pub async fn statuses(&self) -> Result<Vec<RegionStatus>> {
        let mut all = Vec::new();
        for node in &self.nodes {
            all.push(node.status().await?);
        }
        Ok(all)
    }

    /// Waits until all regions say that they hold the same and lack nothing; says how long that took.
    pub async fn converges(&self, patience: Duration) -> Result<Duration> {
        let began = Instant::now();
        let agree = async || agree(&self.statuses().await?);
        eventually("convergence", patience, agree).await?;
        Ok(began.elapsed())
    }

    /// What the regions say is looked at: every record in each of them, and what the writers were told. Returns them all.
    pub async fn holds(&self, history: &History) -> Result<BTreeMap<String, Record>> {
        let first = self.nodes[0].client().await?;
        let there = everything(&first).await?;
        history.check(&first).await?;
        for node in &self.nodes[1..] {
            let client = node.client().await?;
            ensure!(everything(&client).await? == there, "regions a and {} differ", node.plan.region);
            history.check(&client).await?;
            history.check_some(&client, 200).await?;
        }
        Ok(there)
    }
}

fn agree(statuses: &[RegionStatus]) -> Result<()> {
    let digest = &statuses[0].digest;
    ensure!(digest.is_some(), "region a does not know its digest yet");
    for status in statuses {
        let lags = |peer: &&isle_client::v1::PeerStatus| peer.lag_bytes > 0 || peer.lag_seconds > 0.0;
        if let Some(peer) = status.peers.iter().find(lags) {
            let error = &peer.last_error;
            anyhow::bail!("{} is {} bytes behind {}; {error}", peer.region, peer.lag_bytes, status.region);
        }
        ensure!(status.digest == *digest && status.records == statuses[0].records, "{} differs", status.region);
    }
    Ok(())
}

fn peers_of(cables: &Cables, at: usize) -> String {
    let peer = |(to, region): (usize, &&str)| {
        let port = cables.port(at, to);
        format!("[[peers]]\nregion = \"{region}\"\nendpoint = \"https://127.0.0.1:{port}\"\ntls_name = \"{region}\"\n")
    };
    REGIONS.iter().enumerate().filter(|(to, _)| *to != at).map(peer).collect()
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Authority(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// A certificate for a region at 127.0.0.1, as its settings.
    fn settings(&self, directory: &Path, region: &str) -> Result<Vec<String>> {
        let key = KeyPair::generate()?;
        let certificate =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), region.to_owned()])?.signed_by(&key, &self.0)?;
        let files = [("cert", certificate.pem()), ("key", key.serialize_pem()), ("ca", self.0.pem())];
        let mut settings = Vec::new();
        for (kind, pem) in files {
            let path = directory.join(format!("{region}-{kind}.pem"));
            std::fs::write(&path, pem)?;
            settings.push(format!("tls.{kind}={}", path.display()));
        }
        Ok(settings)
    }
}
