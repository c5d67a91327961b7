//! TLS over the connection seam: rustls with ring. Clients check the server; on the peer port both sides check each other, and
//! who calls itself a region has to show a certificate that names it: the host of its endpoint, or its `tls_name`. So the
//! certificate of one region is no key to the others' names.
//!
//! Handshakes run beside each other and each has a time limit, so that one that stalls holds up nobody.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{FuturesUnordered, StreamExt};
use http::Uri;
use rustls::client::verify_server_name;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config;
use crate::connection::{Caller, Connection, Dial, Incoming, TcpDialer, host_and_port};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes that may run at once: strangers must not be able to hold memory without end.
const HANDSHAKES_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{} cannot be read as PEM: {source}", .path.display())]
    Pem { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    #[error("the certificate, key or CA does not fit: {0}")]
    Unfit(#[from] rustls::Error),
    #[error("the CA does not fit: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    #[error("{0:?} is not a name that a certificate can have")]
    Name(String),
}

/// Everything a node needs: how it answers clients, how it answers peers, how it dials peers.
pub struct Tls {
    pub client_port: TlsAcceptor,
    pub peer_port: TlsAcceptor,
    pub dialer: TlsDialer,
}

impl Tls {
    pub fn load(files: &config::Tls, peers: &[config::Peer]) -> Result<Tls, TlsError> {
        let chain = certificates(&files.cert)?;
        let key = || {
            PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::Pem { path: files.key.clone(), source })
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            roots.add(certificate)?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = || ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let open = server()?.with_no_client_auth().with_single_cert(chain.clone(), key()?)?;
        let mutual = server()?.with_client_cert_verifier(verifier).with_single_cert(chain.clone(), key()?)?;
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut client = client.with_root_certificates(roots).with_client_auth_cert(chain, key()?)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Tls {
            client_port: acceptor(open),
            peer_port: acceptor(mutual),
            dialer: TlsDialer { connector: TlsConnector::from(Arc::new(client)), names: names_by_endpoint(peers)? },
        })
    }
}

fn acceptor(mut config: ServerConfig) -> TlsAcceptor {
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |source| TlsError::Pem { path: path.to_owned(), source };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(bad)?.collect();
    let found = found.map_err(bad)?;
    if found.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(found) }
}

/// Puts TLS over accepted connections. A failed handshake ends its connection and nothing else.
pub fn accept(incoming: Incoming, acceptor: TlsAcceptor) -> Incoming {
    let state = (incoming, FuturesUnordered::new(), acceptor);
    futures::stream::unfold(state, |(mut incoming, mut handshakes, acceptor)| async move {
        loop {
            tokio::select! {
                accepted = incoming.next(), if handshakes.len() < HANDSHAKES_MAX => match accepted? {
                    Ok(connection) => handshakes.push(handshake(acceptor.clone(), connection)),
                    Err(error) => return Some((Err(error), (incoming, handshakes, acceptor))),
                },
                Some(done) = handshakes.next() => match done {
                    Ok(connection) => return Some((Ok(connection), (incoming, handshakes, acceptor))),
                    Err(error) => tracing::info!(%error, "a TLS handshake failed"),
                },
            }
        }
    })
    .boxed()
}

async fn handshake(acceptor: TlsAcceptor, connection: Connection) -> io::Result<Connection> {
    let caller = connection.caller().clone();
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(connection.into_io())).await??;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|own| own.clone().into_owned());
    Ok(Connection::over(stream, caller).certified(shown))
}

/// The name that each region's certificate has to have.
#[derive(Clone, Debug)]
pub struct PeerNames(BTreeMap<String, ServerName<'static>>);

/// The caller is not whom it says it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the caller says that it is region {region}, and its certificate is not one for {expected}")]
pub struct NotNamed {
    pub region: String,
    pub expected: String,
}

impl PeerNames {
    pub fn of(peers: &[config::Peer]) -> Result<PeerNames, TlsError> {
        let named = |peer: &config::Peer| Ok((peer.region.clone(), name_of(peer)?));
        peers.iter().map(named).collect::<Result<_, _>>().map(PeerNames)
    }

    /// Whether the caller may call itself so. `joined` says where a region is dialled that is in no configuration. Who is no peer at all
    /// is for others to refuse.
    pub fn check(
        &self,
        region: &str,
        caller: Option<&Caller>,
        joined: impl FnOnce() -> Option<String>,
    ) -> Result<(), NotNamed> {
        let name = match self.0.get(region) {
            Some(name) => name.clone(),
            None => {
                let Some(endpoint) = joined() else { return Ok(()) };
                let nameless = |_| NotNamed { region: region.to_owned(), expected: endpoint.clone() };
                name_of_endpoint(&endpoint).map_err(nameless)?
            }
        };
        let shown = caller.and_then(|caller| caller.certificate.as_deref());
        let parsed = shown.and_then(|shown| ParsedCertificate::try_from(shown).ok());
        let named = parsed.is_some_and(|parsed| verify_server_name(&parsed, &name).is_ok());
        let refused = || NotNamed { region: region.to_owned(), expected: name.to_str().into_owned() };
        if named { Ok(()) } else { Err(refused()) }
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))
}

fn name_of(peer: &config::Peer) -> Result<ServerName<'static>, TlsError> {
    match &peer.tls_name {
        Some(name) => server_name(name),
        None => name_of_endpoint(&peer.endpoint),
    }
}

fn name_of_endpoint(endpoint: &str) -> Result<ServerName<'static>, TlsError> {
    let bad = || TlsError::Name(endpoint.to_owned());
    let uri: Uri = endpoint.parse().map_err(|_| bad())?;
    server_name(host_and_port(&uri).map_err(|_| bad())?.0)
}

/// Dials over TCP, shows this node's certificate, and checks that the other's names whom it means to reach.
pub struct TlsDialer {
    connector: TlsConnector,
    /// By endpoint. Whatever else is dialled has to be named by its host.
    names: HashMap<Uri, ServerName<'static>>,
}

fn names_by_endpoint(peers: &[config::Peer]) -> Result<HashMap<Uri, ServerName<'static>>, TlsError> {
    let named = |peer: &config::Peer| {
        let uri = peer.endpoint.parse().map_err(|_| TlsError::Name(peer.endpoint.clone()))?;
        Ok((uri, name_of(peer)?))
    };
    peers.iter().map(named).collect()
}

#[async_trait]
impl Dial for TlsDialer {
    async fn dial(&self, to: &Uri) -> io::Result<Connection> {
        let connection = TcpDialer.dial(to).await?;
        let bad = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let name = match self.names.get(to) {
            Some(name) => name.clone(),
            None => server_name(host_and_port(to)?.0).map_err(bad)?,
        };
        let caller = connection.caller().clone();
        let connect = self.connector.connect(name, connection.into_io());
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, connect).await??;
        Ok(Connection::over(stream, caller))
    }
}
