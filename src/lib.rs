pub mod config;
pub mod connection;
pub mod links;
// pub mod request_context;
pub mod tls;
pub mod units;
