//! The seam between isle and the network: a stream of accepted connections on one side, a dialer on the other.
//!
//! TCP, TLS and simulated links are all a `Connection`, so the code that is simulated is the code that is run. Boxing
//! costs a virtual call for each poll, which is lost in the system call behind it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use http::Uri;
use isle_node::PeerEgress;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::Connected;

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Who is at the other end, as far as the connection tells.
#[derive(Clone, Debug)]
pub struct Caller {
    pub address: Arc<str>,
    /// What it showed and was vouched for. Only TLS has it, and only where it asks for it.
    pub certificate: Option<Arc<CertificateDer<'static>>>,
    /// Counts what is written to it, beneath TLS.
    pub meter: Arc<WireMeter>,
}

/// Counts what is written to one connection, for the region at its other end once that is known.
#[derive(Debug, Default)]
pub struct WireMeter {
    early: AtomicU64,
    to: OnceLock<Arc<PeerEgress>>,
}

impl WireMeter {
    fn wrote(&self, bytes: usize) {
        match self.to.get() {
            Some(peer) => peer.wrote(bytes as u64),
            None => _ = self.early.fetch_add(bytes as u64, Ordering::Relaxed),
        }
    }

    /// Whom it leads to. The first to say so is believed.
    pub fn charge(&self, peer: &Arc<PeerEgress>) {
        if self.to.set(peer.clone()).is_ok() {
            peer.wrote(self.early.swap(0, Ordering::Relaxed));
        }
    }
}

pub struct Connection {
    io: Box<dyn Io>,
    caller: Caller,
    /// Whether it is the one that counts: over TLS another one does, beneath it.
    is_metered: bool,
}

/// Accepted connections. It ends only when its listener is closed; one bad connection does not end it.
pub type Incoming = BoxStream<'static, io::Result<Connection>>;

/// Opens connections to `http://host:port`. What is spoken over them is not its business.
#[async_trait]
pub trait Dial: Send + Sync {
    async fn dial(&self, to: &Uri) -> io::Result<Connection>;
}

impl Connection {
    pub fn new(io: impl Io + 'static, caller: &str) -> Connection {
        let caller = Caller { address: Arc::from(caller), certificate: None, meter: Arc::default() };
        Connection { io: Box::new(io), caller, is_metered: true }
    }

    /// Something put over a connection to this caller.
    pub fn over(io: impl Io + 'static, caller: Caller) -> Connection {
        Connection { io: Box::new(io), caller, is_metered: false }
    }

    /// The same, at whose other end this certificate was shown.
    pub fn certified(mut self, certificate: Option<CertificateDer<'static>>) -> Connection {
        self.caller.certificate = certificate.map(Arc::new);
        self
    }

    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    pub fn into_io(self) -> Box<dyn Io> {
        Box::new(self)
    }

    fn metered(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (true, Poll::Ready(Ok(bytes))) = (self.is_metered, &written) {
            self.caller.meter.wrote(*bytes);
        }
        written
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.metered(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.metered(written)
    }

    // Without this hyper copies every frame into one buffer first.
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// The connections of a TCP listener.
pub fn tcp(listener: TcpListener) -> Incoming {
    stream::unfold(listener, |listener| async {
        let accepted = accept(&listener).await;
        Some((Ok(accepted), listener))
    })
    .boxed()
}

async fn accept(listener: &TcpListener) -> Connection {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => return tcp_connection(stream, from),
            // Out of file descriptors, usually: without a pause this would spin until one is free.
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn tcp_connection(stream: TcpStream, from: SocketAddr) -> Connection {
    // Small replies must not wait for the acknowledgement of the one before (Nagle).
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    Connection::new(stream, &from.to_string())
}

/// Dials over TCP.
pub struct TcpDialer;

#[async_trait]
impl Dial for TcpDialer {
    async fn dial(&self, to: &Uri) -> io::Result<Connection> {
        let (host, port) = host_and_port(to)?;
        let stream = TcpStream::connect((host, port)).await?;
        let at = stream.peer_addr()?;
        Ok(tcp_connection(stream, at))
    }
}

pub(crate) fn host_and_port(uri: &Uri) -> io::Result<(&str, u16)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("{uri} names no host"));
    let host = uri.host().ok_or_else(bad)?.trim_start_matches('[').trim_end_matches(']');
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    Ok((host, uri.port_u16().unwrap_or(default)))
}
