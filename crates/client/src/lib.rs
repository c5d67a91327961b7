//! The Rust SDK of isle: connect to one region's endpoint, read and write there, and say what keyspaces there are.
//!
//! ```text
//! client ── options        where, how long, how often
//!    ├───── value, entry   what is written and read
//!    ├───── scan           pages
//!    ├───── keyspaces      what is promised of keys, made and changed
//!    ├───── write_stream   bursts
//!    ├───── retry          what may be tried again, and when (pure)
//!    └───── error          what went wrong, and whether a write may have taken effect
//! ```
//! The law it keeps: a write is sent again only if it surely has not taken effect.

mod client;
mod entry;
mod error;
mod keyspaces;
mod retry;
mod scan;
mod value;
mod write_stream;

pub use client::{Client, Condition, Options, Patch, WriteOptions};
pub use entry::{Entry, Record, Written};
pub use error::{Error, Violation};
pub use isle_model::policy;
pub use isle_proto::v1;
pub use keyspaces::{ChangeOptions, HolderChange, HolderStep, HomesMoved, Keyspace, KeyspacePage, MoveWhat, Shipment};
pub use retry::Retry;
pub use scan::{Page, Range};
pub use value::Value;
pub use write_stream::{Results, WriteStream};
