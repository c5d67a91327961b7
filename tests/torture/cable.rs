//! Cables between regions that can be pulled, bent and swallowed: proxies in front of every peer port.
//!
//! A hole takes bytes and says nothing, as a lost route does: what was sent arrives once the way is open again. A cut
//! resets what there is and refuses what comes.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    Hole,
    Cut,
}

type Ways = BTreeMap<(usize, usize), watch::Sender<Way>>;

/// The cables between some regions, by number. They are gone when it is.
pub struct Cables {
    ways: Arc<Ways>,
    ports: BTreeMap<(usize, usize), u16>,
    serving: JoinSet<()>,
}

impl Cables {
    /// `peers`: where each region takes its peers' connections.
    pub async fn between(peers: &[u16]) -> io::Result<Cables> {
        let pairs = || (0..peers.len()).flat_map(|a| (0..peers.len()).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let ways: Ways = pairs().map(|pair| (pair, watch::Sender::new(Way::Open))).collect();
        let mut cables = Cables { ways: Arc::new(ways), ports: BTreeMap::new(), serving: JoinSet::new() };
        for (from, to) in pairs() {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            cables.ports.insert((from, to), listener.local_addr()?.port());
            let target = SocketAddr::from(([127, 0, 0, 1], peers[to]));
            cables.serving.spawn(serve(listener, cables.ways.clone(), (from, to), target));
        }
        Ok(cables)
    }

    /// Where `from` dials to reach `to`.
    pub fn port(&self, from: usize, to: usize) -> u16 {
        self.ports[&(from, to)]
    }

    pub fn one_way(&self, from: usize, to: usize, way: Way) {
        self.ways[&(from, to)].send_replace(way);
    }

    pub fn both_ways(&self, a: usize, b: usize, way: Way) {
        self.one_way(a, b, way);
        self.one_way(b, a, way);
    }

    pub fn heal(&self) {
        self.ways.values().for_each(|way| _ = way.send_replace(Way::Open));
    }
}

async fn serve(listener: TcpListener, ways: Arc<Ways>, (from, to): (usize, usize), target: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((near, _)) = accepted {
                    connections.spawn(carry(near, target, ways[&(from, to)].subscribe(), ways[&(to, from)].subscribe()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until an end closes it or it is cut.
async fn carry(near: TcpStream, target: SocketAddr, there: watch::Receiver<Way>, back: watch::Receiver<Way>) {
    let (mut cut_there, mut cut_back) = (there.clone(), back.clone());
    let carried = async {
        opened(&mut there.clone()).await;
        opened(&mut back.clone()).await;
        let far = TcpStream::connect(target).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (near_in, near_out) = near.into_split();
        let (far_in, far_out) = far.into_split();
        tokio::select! {
            ended = pump(near_in, far_out, there) => ended,
            ended = pump(far_in, near_out, back) => ended,
        }
    };
    tokio::select! {
        _ = carried => {}
        _ = cut_there.wait_for(|way| *way == Way::Cut) => {}
        _ = cut_back.wait_for(|way| *way == Way::Cut) => {}
    }
}

async fn opened(way: &mut watch::Receiver<Way>) {
    let _ = way.wait_for(|way| *way == Way::Open).await;
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let taken = from.read(&mut buffer).await?;
        opened(&mut way).await;
        if taken == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..taken]).await?;
    }
}
