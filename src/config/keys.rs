//! Every setting of one value: its name in the file, and how its text is read. The environment variable is the name in
//! capitals behind `ISLE_`, with `_` for a dot: `listen.client` is `ISLE_LISTEN_CLIENT`.

use std::path::PathBuf;

use super::{Config, Tls};
use crate::units;

pub struct Key {
    pub name: &'static str,
    /// As it would be written; empty where there is none.
    pub default: &'static str,
    pub help: &'static str,
    pub set: fn(&mut Config, &str) -> Result<(), String>,
}

impl Key {
    pub fn variable(&self) -> String {
        format!("ISLE_{}", self.name.to_uppercase().replace('.', "_"))
    }
}

macro_rules! keys {
    ($($name:literal = $default:literal, $help:literal => |$config:ident, $text:ident| $place:expr, $read:expr;)*) => {
        pub const KEYS: &[Key] = &[$(Key {
            name: $name,
            default: $default,
            help: $help,
            set: |$config, $text| {
                $place = $read?;
                Ok(())
            },
        }),*];
    };
}

keys! {
    "cluster" = "isle", "the same in every region" => |c, text| c.cluster, string(text);
    "region" = "", "this region's name" => |c, text| c.region, string(text);
    "jurisdiction" = "", "whose law it is under, such as eu: residency rules speak of it" => |c, text| c.jurisdiction, string(text);
    "data_dir" = "", "where the data is kept" => |c, text| c.data_dir, path(text);
    "shards" = "4", "fixed when the cluster is made, the same in every region" => |c, text| c.shards, number(text);
    "join" = "false", "join a running cluster (`isle region add`), rather than found one with the peers" => |c, text| c.join, truth(text);
    "insecure" = "false", "serve beyond loopback without [tls]" => |c, text| c.insecure, truth(text);
    "cluster_key_file" = "", "64 hexadecimal digits, the same in every region: signs tokens" => |c, text| c.cluster_key_file, path(text).map(Some);
    "advertise" = "", "how clients reach this region, if not at listen.client" => |c, text| c.advertise, string(text).map(Some);
    "listen.client" = "127.0.0.1:7400", "gRPC for clients" => |c, text| c.listen.client, address(text);
    "listen.peer" = "127.0.0.1:7401", "gRPC for other regions" => |c, text| c.listen.peer, address(text);
    "listen.http" = "127.0.0.1:7402", "metrics and health" => |c, text| c.listen.http, address(text);
    "tls.cert" = "", "PEM, for clients and peers" => |c, text| tls(c).cert, path(text);
    "tls.key" = "", "PEM" => |c, text| tls(c).key, path(text);
    "tls.ca" = "", "PEM: whom peers have to be vouched for by" => |c, text| tls(c).ca, path(text);
    "limits.requests_max" = "1024", "requests of clients at once; more are refused" => |c, text| c.limits.requests_max, number(text);
    "limits.receive_timeout" = "30s", "how long a request may take to come, streams apart" => |c, text| c.limits.receive_timeout, duration(text);
    "limits.queue_bytes_max" = "32MiB", "writes waiting in a shard; more are refused" => |c, text| c.limits.queue_bytes_max, size(text);
    "limits.log_budget_bytes" = "4GiB", "what a dead peer may cost in disk; beyond, it takes what has changed, or a state" => |c, text| c.limits.log_budget_bytes, size(text);
    "limits.log_budget_age" = "24h", "the same, in time" => |c, text| c.limits.log_budget_age, duration(text);
    "limits.state_chunk_bytes" = "1MiB", "size of a piece of what another region takes by state; at most 4 MiB" => |c, text| c.limits.state_chunk_bytes, size(text);
    "limits.clock_drift_max" = "10s", "stamps further ahead never advance this clock" => |c, text| c.limits.clock_drift_max, duration(text);
    "limits.tombstone_horizon" = "7d", "a region away for longer is not waited for" => |c, text| c.limits.tombstone_horizon, duration(text);
    "limits.drain_timeout" = "10s", "how long requests may take to end when stopping" => |c, text| c.limits.drain_timeout, duration(text);
    "store.segment_bytes" = "64MiB", "size of a file of the commit log" => |c, text| c.store.segment_bytes, size(text);
    "store.overlay_bytes_max" = "512MiB", "newest records in memory" => |c, text| c.store.overlay_bytes_max, size(text);
    "store.view_cache_bytes" = "256MiB", "sled's page cache" => |c, text| c.store.view_cache_bytes, size(text);
    "store.checkpoint_log_bytes" = "256MiB", "log between two checkpoints" => |c, text| c.store.checkpoint_log_bytes, size(text);
    "store.disk_reserve_bytes" = "64MiB", "writes are refused while the disk has less free space" => |c, text| c.store.disk_reserve_bytes, size(text);
}

/// Every setting, a line each, for `isle serve --help`.
pub fn help() -> String {
    let width = KEYS.iter().map(|key| key.name.len()).max().unwrap_or_default();
    let line = |key: &Key| {
        let default = if key.default.is_empty() { String::new() } else { format!(" [{}]", key.default) };
        format!("  {:width$}  {}{default}\n", key.name, key.help)
    };
    let keys: String = KEYS.iter().map(line).collect();
    format!(
        "Settings, with their defaults (in the file, as ISLE_… with _ for a dot, or by --set):\n{keys}\
         \nIn the file alone: [[peers]] region, jurisdiction, endpoint, client_endpoint, tls_name; [[keyspaces]] id, name and the \
         settings of a policy (scope, home, writes, …; writes = \"anywhere\" where none is given)."
    )
}

fn tls(config: &mut Config) -> &mut Tls {
    config.tls.get_or_insert_with(Tls::default)
}

fn string(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not a whole number in range"))
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn address(text: &str) -> Result<std::net::SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address like 127.0.0.1:7400"))
}

fn size(text: &str) -> Result<u64, String> {
    units::size(text).map_err(|e| e.to_string())
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    units::duration(text).map_err(|e| e.to_string())
}
