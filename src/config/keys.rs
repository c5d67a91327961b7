//! Every setting of one value: its name in the file, and how its text is read. The environment variable is the name in
//! capitals behind `ISLE_`, with `_` for a dot: `listen.client` is `ISLE_LISTEN_CLIENT`.

use std::path::PathBuf;

use super::{Config, Tls};
use crate::units;

pub struct Key {
    pub name: &'static str,
    pub set: fn(&mut Config, &str) -> Result<(), String>,
}

impl Key {
    pub fn variable(&self) -> String {
        format!("ISLE_{}", self.name.to_uppercase().replace('.', "_"))
    }
}

macro_rules! keys {
    ($($name:literal => |$config:ident, $text:ident| $place:expr, $read:expr;)*) => {
        pub const KEYS: &[Key] = &[$(Key {
            name: $name,
            set: |$config, $text| {
                $place = $read?;
                Ok(())
            },
        }),*];
    };
}

keys! {
    "cluster" => |c, text| c.cluster, string(text);
    "region" => |c, text| c.region, string(text);
    "data_dir" => |c, text| c.data_dir, path(text);
    "shards" => |c, text| c.shards, number(text);
    "insecure" => |c, text| c.insecure, truth(text);
    "cluster_key_file" => |c, text| c.cluster_key_file, path(text).map(Some);
    "advertise" => |c, text| c.advertise, string(text).map(Some);
    "listen.client" => |c, text| c.listen.client, address(text);
    "listen.peer" => |c, text| c.listen.peer, address(text);
    "listen.http" => |c, text| c.listen.http, address(text);
    "tls.cert" => |c, text| tls(c).cert, path(text);
    "tls.key" => |c, text| tls(c).key, path(text);
    "tls.ca" => |c, text| tls(c).ca, path(text);
    "limits.requests_max" => |c, text| c.limits.requests_max, number(text);
    "limits.queue_bytes_max" => |c, text| c.limits.queue_bytes_max, size(text);
    "limits.log_budget_bytes" => |c, text| c.limits.log_budget_bytes, size(text);
    "limits.log_budget_age" => |c, text| c.limits.log_budget_age, duration(text);
    "limits.clock_drift_max" => |c, text| c.limits.clock_drift_max, duration(text);
    "limits.tombstone_horizon" => |c, text| c.limits.tombstone_horizon, duration(text);
    "limits.drain_timeout" => |c, text| c.limits.drain_timeout, duration(text);
    "store.segment_bytes" => |c, text| c.store.segment_bytes, size(text);
    "store.overlay_bytes_max" => |c, text| c.store.overlay_bytes_max, size(text);
    "store.view_cache_bytes" => |c, text| c.store.view_cache_bytes, size(text);
    "store.checkpoint_log_bytes" => |c, text| c.store.checkpoint_log_bytes, size(text);
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
