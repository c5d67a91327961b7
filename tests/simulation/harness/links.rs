//! The simulated network under the server's own seam: its connections are turmoil's, so what runs over them is the real gRPC.

use std::io;
use std::net::Ipv4Addr;

use async_trait::async_trait;
use futures::StreamExt;
use http::Uri;
use isle::connection::{Connection, Dial, Incoming};
use turmoil::net::{TcpListener, TcpStream};

pub const CLIENT_PORT: u16 = 7400;
pub const PEER_PORT: u16 = 7401;

/// The connections that others open to a port of this host.
pub async fn listen(port: u16) -> io::Result<Incoming> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let accepted = futures::stream::unfold(listener, |listener| async move {
        let connection = listener.accept().await.map(|(stream, from)| Connection::new(stream, &from.to_string()));
        Some((connection, listener))
    });
    Ok(accepted.boxed())
}

pub struct Dialler;

#[async_trait]
impl Dial for Dialler {
    async fn dial(&self, to: &Uri) -> io::Result<Connection> {
        let host = to.host().ok_or_else(|| io::Error::other("the address has no host"))?;
        let stream = TcpStream::connect((host, to.port_u16().unwrap_or(PEER_PORT))).await?;
        let from = stream.peer_addr()?.to_string();
        Ok(Connection::new(stream, &from))
    }
}
