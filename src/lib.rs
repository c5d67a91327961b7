//! `isle`, put together: everything that meets the network, the file system of the config and the person at the terminal.
//!
//! ```text
//! cli ── config, output, toml_file what is asked for, and how it is shown
//!  ├─ dev ── links                 a whole cluster in one process
//!  └─ server                       one region's node and its three ports
//!       ├─ connection, tls         the seam: TCP, TLS and simulated links alike
//!       ├─ request_context, admission       what every request passes
//!       ├─ services                Kv, Keyspaces, Cluster, Peer, DevLinks, and their wire formats
//!       │    ├─ status_table       the one table of errors
//!       │    └─ etag, page_token   what clients hand back as they got it
//!       ├─ peer_client             dialling other regions
//!       │    └─ checked_channel    what comes back, looked at before it is read
//!       ├─ http, metrics           metrics and health
//!       ├─ causes                  an error with what caused it
//!       └─ boot                    what the store has to know of the machine
//! ```
//! Composition only: what a write does is decided in `isle_node` and `isle_model`, how it lasts in `isle_store`.

pub mod admission;
pub mod boot;
mod causes;
mod checked_channel;
pub mod cli;
pub mod config;
pub mod connection;
pub mod dev;
mod etag;
pub mod http;
pub mod links;
pub mod metrics;
pub mod output;
pub mod page_token;
pub mod peer_client;
pub mod request_context;
pub mod server;
pub mod services;
pub mod status_table;
pub mod tls;
mod toml_file;
pub mod units;
