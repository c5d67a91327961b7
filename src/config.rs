//! What a region node is told: a TOML file, then the environment (`ISLE_…`), then flags, each over the one before.
//!
//! The law: every fault is named at once, with its line or variable, and an unknown key is refused, so that a misspelt
//! limit never silently keeps its default. Every single setting is one row of `keys::KEYS`, which all three sources
//! share; `peers` and `keyspaces` are tables of the file alone.

mod file;
mod keys;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use isle_model::policy::{Member, Members, Policy, Writes};
use isle_model::{Region, limits};
use rustls_pki_types::ServerName;

pub use keys::{KEYS, Key, help};

/// One region node.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub cluster: String,
    pub region: String,
    /// Such as `eu`: what residency rules speak of. Empty where there is none.
    pub jurisdiction: String,
    pub data_dir: PathBuf,
    pub shards: u32,
    /// Join a cluster that is there already, rather than found one with the peers.
    pub join: bool,
    /// Serve beyond loopback without TLS.
    pub insecure: bool,
    /// 64 hexadecimal digits, the same in every region: the key of the version tokens' MAC.
    pub cluster_key_file: Option<PathBuf>,
    pub listen: Listen,
    /// How clients reach this region, where that is not its listening address.
    pub advertise: Option<String>,
    pub tls: Option<Tls>,
    pub limits: Limits,
    pub store: StoreLimits,
    pub peers: Vec<Peer>,
    pub keyspaces: Vec<Keyspace>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub client: SocketAddr,
    pub peer: SocketAddr,
    /// Metrics and health.
    pub http: SocketAddr,
}

/// PEM files. The peer port is mutual: both sides show a certificate of `ca`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub requests_max: usize,
    pub receive_timeout: Duration,
    pub queue_bytes_max: u64,
    pub log_budget_bytes: u64,
    pub log_budget_age: Duration,
    pub state_chunk_bytes: u64,
    pub clock_drift_max: Duration,
    pub tombstone_horizon: Duration,
    pub drain_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    pub segment_bytes: u64,
    pub overlay_bytes_max: u64,
    pub view_cache_bytes: u64,
    pub checkpoint_log_bytes: u64,
    pub disk_reserve_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub region: String,
    /// As in that region's own config.
    pub jurisdiction: String,
    /// Its peer port.
    pub endpoint: String,
    /// Its client port: only shown to clients, which find the other regions by it.
    pub client_endpoint: Option<String>,
    /// Whom its certificate has to name, where that is not the endpoint's host.
    pub tls_name: Option<String>,
    /// What a GB (10^9 bytes) sent to it costs, in US dollars, as the cloud's price list says.
    pub egress_usd_per_gb: Option<String>,
}

impl Peer {
    /// `None` where no price is set, or it is none.
    pub fn price(&self) -> Option<f64> {
        let price: f64 = self.egress_usd_per_gb.as_ref()?.parse().ok()?;
        (price.is_finite() && price >= 0.0).then_some(price)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    pub id: u64,
    pub name: String,
    pub policy: Policy,
}

impl Keyspace {
    /// One whose keys have homes and are nevertheless written anywhere: a cluster that was just made keeps nobody waiting.
    pub fn new(id: u64, name: &str) -> Keyspace {
        Keyspace { id, name: name.to_owned(), policy: Keyspace::policy_by_default() }
    }

    fn policy_by_default() -> Policy {
        Policy { writes: Writes::Anywhere, ..Policy::default() }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cluster: "isle".to_owned(),
            region: String::new(),
            jurisdiction: String::new(),
            data_dir: PathBuf::new(),
            shards: limits::SHARDS_DEFAULT,
            join: false,
            insecure: false,
            cluster_key_file: None,
            listen: Listen::default(),
            advertise: None,
            tls: None,
            limits: Limits::default(),
            store: StoreLimits::default(),
            peers: Vec::new(),
            keyspaces: vec![Keyspace::new(1, "default")],
        }
    }
}

impl Default for Listen {
    /// Loopback: nothing is open to a network before somebody says so.
    fn default() -> Self {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Listen { client: at(7400), peer: at(7401), http: at(7402) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // A value of 1 MiB each is then 1 GiB at the very worst; usual requests are a thousandth of that.
            requests_max: 1024,
            // The largest request over a link of 3 Mbit/s. One that never ends would hold its place for ever.
            receive_timeout: Duration::from_secs(30),
            // Some hundred milliseconds of writing at full speed: longer queues only make timeouts out of overload.
            queue_bytes_max: 32 << 20,
            // What a dead peer may cost in disk before it is served by state instead.
            log_budget_bytes: 4 << 30,
            log_budget_age: Duration::from_secs(24 * 3600),
            // Large enough to pack well, small enough that little has to be taken again after a break.
            state_chunk_bytes: 1 << 20,
            clock_drift_max: Duration::from_millis(limits::CLOCK_DRIFT_MS_MAX),
            // A region may be away for a week before the others stop keeping their tombstones for it.
            tombstone_horizon: Duration::from_secs(7 * 24 * 3600),
            // Longer than any request's usual deadline, shorter than most supervisors' patience.
            drain_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for StoreLimits {
    fn default() -> Self {
        StoreLimits {
            segment_bytes: 64 << 20,
            overlay_bytes_max: 512 << 20,
            // What is not in it is read and decoded again, page by page, on the thread that serves.
            view_cache_bytes: 256 << 20,
            checkpoint_log_bytes: 256 << 20,
            // A segment: what is prepared ahead of a burst must not be what fills the disk.
            disk_reserve_bytes: 64 << 20,
        }
    }
}

/// One thing wrong, and where: `isle.toml:12`, `ISLE_SHARDS`, `--data-dir`, or a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub place: String,
    pub fact: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.fact)
    }
}

/// Everything that is wrong with a config.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the config has {} fault(s):{}", .0.len(), .0.iter().map(|f| format!("\n  {f}")).collect::<String>())]
pub struct Faults(pub Vec<Fault>);

/// Where a key was last set, so that a fault found later names the line.
#[derive(Clone, Debug, Default)]
struct Places(std::collections::HashMap<String, String>);

impl Places {
    fn of(&self, key: &str) -> String {
        self.0.get(key).cloned().unwrap_or_else(|| key.to_owned())
    }
}

/// A config being read: what is known so far, and what was wrong with it.
#[derive(Debug, Default)]
pub struct Draft {
    config: Config,
    places: Places,
    faults: Vec<Fault>,
}

impl Draft {
    /// Lays a TOML file over what is there. `name` is what faults call it.
    pub fn file(mut self, name: &str, text: &str) -> Draft {
        file::read(&mut self, name, text);
        self
    }

    /// Lays `ISLE_…` variables over what is there. Others with that prefix are left alone: orchestrators set their own
    /// (`ISLE_SERVICE_HOST`), and the command line has some.
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Draft {
        for (name, value) in variables {
            if let Some(key) = KEYS.iter().find(|key| key.variable() == name) {
                self.set(key, &value, name);
            }
        }
        self
    }

    /// Lays this process's environment over what is there.
    #[allow(clippy::disallowed_methods, reason = "this is where settings are read, once")]
    pub fn process_environment(self) -> Draft {
        self.environment(std::env::vars())
    }

    /// Lays one flag over what is there.
    pub fn flag(mut self, flag: &str, key: &str, value: &str) -> Draft {
        match KEYS.iter().find(|k| k.name == key) {
            Some(key) => self.set(key, value, flag.to_owned()),
            None => self.fault(flag, format!("unknown key {key:?}")),
        }
        self
    }

    /// The config, or everything that is wrong.
    pub fn finish(mut self) -> Result<Config, Faults> {
        for fault in self.config.faults() {
            let place = self.places.of(&fault.place);
            // A value that did not parse is already named; what its default breaks is not news.
            if !self.faults.iter().any(|f| f.place == place) {
                self.faults.push(Fault { place, fact: fault.fact });
            }
        }
        if self.faults.is_empty() { Ok(self.config) } else { Err(Faults(self.faults)) }
    }

    fn set(&mut self, key: &Key, value: &str, place: String) {
        if let Err(fact) = (key.set)(&mut self.config, value) {
            self.fault(&place, format!("{}: {fact}", key.name));
        }
        self.places.0.insert(key.name.to_owned(), place);
    }

    fn fault(&mut self, place: &str, fact: impl Into<String>) {
        self.faults.push(Fault { place: place.to_owned(), fact: fact.into() });
    }
}

impl Config {
    /// Names every fault at once, by key.
    pub fn validate(&self) -> Result<(), Faults> {
        let faults = self.faults();
        if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, place: &str, fact: String| {
            if !holds {
                faults.push(Fault { place: place.to_owned(), fact });
            }
        };
        check_name(&mut check, "cluster", &self.cluster);
        check_name(&mut check, "region", &self.region);
        check(!self.data_dir.as_os_str().is_empty(), "data_dir", "data_dir must be set".to_owned());
        let shards = 1..=limits::SHARDS_MAX;
        check(shards.contains(&self.shards), "shards", format!("shards = {} is not within {shards:?}", self.shards));
        self.check_addresses(&mut check);
        self.check_limits(&mut check);
        self.check_peers(&mut check);
        self.check_keyspaces(&mut check);
        faults
    }

    fn check_addresses(&self, check: &mut impl FnMut(bool, &str, String)) {
        let Listen { client, peer, http } = &self.listen;
        for (key, address) in [("listen.client", client), ("listen.peer", peer), ("listen.http", http)] {
            // Metrics and health hold no data, and probes seldom speak TLS.
            let guarded = key != "listen.http" && (self.tls.is_some() || self.insecure);
            let open = key == "listen.http" || guarded || address.ip().is_loopback();
            check(open, key, format!("{address} is not loopback: set [tls], or insecure = true"));
        }
        if let Some(tls) = &self.tls {
            for (key, path) in [("tls.cert", &tls.cert), ("tls.key", &tls.key), ("tls.ca", &tls.ca)] {
                check(!path.as_os_str().is_empty(), key, format!("[tls] needs {key}"));
            }
        }
    }

    fn check_limits(&self, check: &mut impl FnMut(bool, &str, String)) {
        let (limits, store) = (&self.limits, &self.store);
        let mut at_least = |key: &str, is: u64, least: u64| check(is >= least, key, format!("{key} is below {least}"));
        at_least("limits.requests_max", limits.requests_max as u64, 1);
        at_least("limits.queue_bytes_max", limits.queue_bytes_max, limits::BATCH_BYTES_MAX as u64);
        at_least("limits.state_chunk_bytes", limits.state_chunk_bytes, 1 << 10);
        at_least("limits.log_budget_bytes", limits.log_budget_bytes, store.segment_bytes);
        at_least("store.segment_bytes", store.segment_bytes, 2 * limits::BATCH_BYTES_MAX as u64);
        at_least("store.overlay_bytes_max", store.overlay_bytes_max, 2 * limits::BATCH_BYTES_MAX as u64);
        at_least("store.view_cache_bytes", store.view_cache_bytes, 1 << 20);
        at_least("store.checkpoint_log_bytes", store.checkpoint_log_bytes, store.segment_bytes);
    }

    fn check_peers(&self, check: &mut impl FnMut(bool, &str, String)) {
        for (at, peer) in self.peers.iter().enumerate() {
            let key = format!("peers[{at}]");
            check_name(check, &format!("{key}.region"), &peer.region);
            check(peer.region != self.region, &key, format!("{:?} is this region itself", peer.region));
            let twice = self.peers[..at].iter().any(|other| other.region == peer.region);
            check(!twice, &key, format!("region {:?} is given twice", peer.region));
            let secure = self.tls.is_some();
            check_url(check, &format!("{key}.endpoint"), &peer.endpoint, Some(secure));
            let is_priced = peer.egress_usd_per_gb.is_none() || peer.price().is_some();
            check(is_priced, &key, format!("{key}.egress_usd_per_gb is not a number of dollars, such as 0.02"));
            if let Some(name) = &peer.tls_name {
                let good = ServerName::try_from(name.as_str()).is_ok();
                check(good, &format!("{key}.tls_name"), format!("{name:?} is not a name that a certificate can have"));
                check(secure, &format!("{key}.tls_name"), "tls_name is for use with [tls]".to_owned());
            }
            if let Some(endpoint) = &peer.client_endpoint {
                check_url(check, &format!("{key}.client_endpoint"), endpoint, None);
            }
        }
        if let Some(advertise) = &self.advertise {
            check_url(check, "advertise", advertise, None);
        }
    }

    fn check_keyspaces(&self, check: &mut impl FnMut(bool, &str, String)) {
        check(!self.keyspaces.is_empty(), "keyspaces", "at least one keyspace is needed".to_owned());
        for (at, keyspace) in self.keyspaces.iter().enumerate() {
            let key = format!("keyspaces[{at}]");
            check_name(check, &format!("{key}.name"), &keyspace.name);
            check(keyspace.id != 0, &key, "id must be 1 or more, and is never used again for another".to_owned());
            let before = &self.keyspaces[..at];
            let id_taken = before.iter().any(|k| k.id == keyspace.id);
            check(!id_taken, &key, format!("id {} is given twice", keyspace.id));
            let name_taken = before.iter().any(|k| k.name == keyspace.name);
            check(!name_taken, &key, format!("name {:?} is given twice", keyspace.name));
            let policy = &keyspace.policy;
            for fault in policy.faults(&self.members()).into_iter().chain(policy.unimplemented()) {
                check(false, &format!("{key}.{}", fault.field), fault.to_string());
            }
        }
    }

    /// The regions of the cluster, as policies see them.
    fn members(&self) -> Members {
        let member = |jurisdiction: &String| Member { jurisdiction: jurisdiction.clone(), ..Member::default() };
        let peers = self.peers.iter().map(|peer| (Region::new(&peer.region), member(&peer.jurisdiction)));
        peers.chain([(Region::new(&self.region), member(&self.jurisdiction))]).collect()
    }

    /// How clients reach this region.
    pub fn client_endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.advertise.clone().unwrap_or_else(|| format!("{scheme}://{}", self.listen.client))
    }
}

/// Names of clusters, regions and keyspaces: they end up in tables, metrics and URLs.
fn check_name(check: &mut impl FnMut(bool, &str, String), key: &str, name: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = !name.is_empty() && name.len() <= limits::NAME_BYTES_MAX && name.chars().all(plain);
    let fact = format!("{name:?} is not a name: 1 to {} of a-z A-Z 0-9 - _ .", limits::NAME_BYTES_MAX);
    check(good, key, if name.is_empty() { format!("{key} must be set") } else { fact });
}

/// `secure`: whether https is a must (`Some(true)`), forbidden, or either will do.
fn check_url(check: &mut impl FnMut(bool, &str, String), key: &str, url: &str, secure: Option<bool>) {
    let fault = url_fault(url, secure);
    check(fault.is_none(), key, fault.unwrap_or_default());
}

/// What is wrong with the URL of a region. `secure` says whether it has to be of TLS, or must not be.
pub(crate) fn url_fault(url: &str, secure: Option<bool>) -> Option<String> {
    let parsed = url.parse::<http::Uri>().ok().filter(|uri| uri.authority().is_some());
    let Some(uri) = parsed else { return Some(format!("{url:?} is not a URL like http://host:7401")) };
    let https = uri.scheme_str() == Some("https");
    let known = https || uri.scheme_str() == Some("http");
    let fits = known && secure.is_none_or(|secure| secure == https);
    let wanted = match secure {
        Some(true) => "https, as [tls] is set",
        Some(false) => "http, as [tls] is not set",
        None => "http or https",
    };
    (!fits).then(|| format!("{url:?} must begin with {wanted}"))
}

#[cfg(test)]
mod tests;
