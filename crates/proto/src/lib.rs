//! isle's wire and stored formats: generated code, and the conversions that check what comes from outside.
//!
//! ```text
//! proto/isle/storage/v1 ──▶ storage ──▶ convert ──▶ isle_model     what is stored, in log, stream and snapshot alike
//!                            isle_model ──▶ backward ──▶ bytes      the same bytes of records and deltas, by a shorter way
//! proto/isle/v1 ──────────▶ v1                                     the client and peer services
//!                            v1 ──────▶ policy ──▶ isle_model     a keyspace's settings, checked
//! ```
//! The comments in `proto/` are the manual of both. With the feature `grpc` the services are there too; storage has no use for them.
//!
//! The law it keeps: what converts is sound. A decoder returns an error, it never panics and never trusts a length.

pub mod backward;
pub mod convert;
pub mod policy;
pub mod weight;

/// The wire: client and peer services.
pub mod v1 {
    #![allow(clippy::all, missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/isle.v1.rs"));

    /// The domain of every `google.rpc.ErrorInfo` of isle.
    pub const ERROR_DOMAIN: &str = "isle.v1";
}

/// What is stored.
pub mod storage {
    pub use v1::*;

    pub mod v1 {
        #![allow(clippy::all, missing_docs)]
        include!(concat!(env!("OUT_DIR"), "/isle.storage.v1.rs"));
    }
}

/// The encoded `FileDescriptorSet` of every proto, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
