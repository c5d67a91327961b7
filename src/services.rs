//! The gRPC services, one file each. They turn messages into calls of the node and back; what is decided is decided there.

pub mod cluster;
pub mod dev_links;
pub mod forward_wire;
pub mod keyspaces;
pub mod kv;
pub mod operation;
pub mod peer;
pub mod peer_wire;
pub mod wire;
