//! The floor: a bare tonic server that appends each request to a file, syncs it with whatever else is waiting, and answers.
//!
//! The law: it is as durable as isle (an answered record is in the file and the file is synced) and does nothing else: no keys, no
//! index, no reads. What isle takes beyond it is what a store costs.
//!
//! ```text
//! service ── request ─▶ appender: buffer under a lock ─▶ one thread: write all that waits, one fdatasync
//!    ▲                                                         │ one message a batch
//!    └── answers ◀──────────── a task of the runtime ◀─────────┘
//! ```

mod appender;
mod service;

use std::net::SocketAddr;
use std::path::Path;

use tokio::runtime::Builder;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use appender::Appender;
use service::Service;
use wire::floor_server::FloorServer;

use crate::options::FloorOptions;

/// Generated from `proto/floor.proto`.
pub mod wire {
    #![allow(clippy::all, missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/isle.load.floor.v1.rs"));
}

#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    #[error("port {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("the floor's file: {0}")]
    File(std::io::Error),
    #[error("serving failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    #[error("the floor's runtime: {0}")]
    Runtime(std::io::Error),
    #[error("the floor broke down: {0}")]
    Broken(String),
}

/// A batch of isle's own limit, with room for what the wire adds.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Serves until `stop` is ready. `file_bytes` are written ahead; appends start over at the file's end, so that a run of any length
/// takes as much disk as that.
pub async fn serve(
    address: SocketAddr,
    file: &Path,
    file_bytes: u64,
    stop: impl Future<Output = ()>,
) -> Result<(), FloorError> {
    let appender = Appender::open(file, file_bytes).map_err(FloorError::File)?;
    // The builder's own setting is for listeners of its own: with Nagle's algorithm every answer that follows another at once waits
    // 40 ms for an acknowledgement.
    let incoming = TcpIncoming::bind(address).map_err(|source| FloorError::Bind { address, source })?;
    let incoming = incoming.with_nodelay(Some(true));
    let service = FloorServer::new(Service::new(appender)).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Ok(Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, stop).await?)
}

/// The floor's own process. One worker thread unless more are asked for: with one, a small machine answers faster.
pub async fn run(options: FloorOptions, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), FloorError> {
    let FloorOptions { listen, file, file_bytes, runtime_threads } = options;
    if runtime_threads <= 1 {
        return serve(listen, &file, file_bytes, stop).await;
    }
    let runtime = Builder::new_multi_thread().worker_threads(runtime_threads).enable_all().build();
    let runtime = runtime.map_err(FloorError::Runtime)?;
    let served = runtime.spawn(async move { serve(listen, &file, file_bytes, stop).await }).await;
    // A runtime may not be dropped from inside another one.
    runtime.shutdown_background();
    served.unwrap_or_else(|error| Err(FloorError::Broken(error.to_string())))
}
