//! The links between the regions of `isle dev`: a TCP proxy for every pair of regions, which can delay, slow and cut.
//!
//! A cut is a black hole, as in a real network: nothing is refused and nothing is closed, bytes just stop arriving. They
//! wait in the sender, as TCP keeps them, and go on after healing. Each direction is a gate of its own, whichever side
//! dialled. Memory is bounded: at most `IN_FLIGHT_BYTES_MAX` wait in a connection's direction, then reading stops.
//!
//! ```text
//! region A ──dial──▶ proxy A→B ──┬─ gate A→B ─▶ region B's peer port
//!                                └◀─ gate B→A ─┘
//! ```

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What one direction of one connection may hold: enough for 40 ms at 800 Mbit/s.
const IN_FLIGHT_BYTES_MAX: usize = 4 << 20;
const READ_BYTES: usize = 64 << 10;

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    pub cut: bool,
    pub delay: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("there is no region {name:?}; there are: {}", .known.join(", "))]
    UnknownRegion { name: String, known: Vec<String> },
    #[error("{0:?} has no link to itself")]
    Itself(String),
}

type Direction = (String, String);

/// All links of a cluster.
#[derive(Clone)]
pub struct Links {
    gates: Arc<HashMap<Direction, watch::Sender<Gate>>>,
    delay: Duration,
}

impl Links {
    /// Every direction between the regions, open, with this delay.
    pub fn new(regions: &[String], delay: Duration) -> Links {
        let open = Gate { cut: false, delay };
        let pairs = regions.iter().flat_map(|a| regions.iter().map(move |b| (a.clone(), b.clone())));
        let gates = pairs.filter(|(a, b)| a != b).map(|pair| (pair, watch::Sender::new(open))).collect();
        Links { gates: Arc::new(gates), delay }
    }

    /// Nothing from `a` arrives at `b` any more; nor the other way, unless `one_way`.
    pub fn cut(&self, a: &str, b: &str, one_way: bool) -> Result<(), LinkError> {
        self.change(a, b, one_way, |gate| gate.cut = true)
    }

    /// As at the start: open, with the usual delay.
    pub fn heal(&self, a: &str, b: &str, one_way: bool) -> Result<(), LinkError> {
        let delay = self.delay;
        self.change(a, b, one_way, |gate| *gate = Gate { cut: false, delay })
    }

    pub fn heal_all(&self) {
        let open = Gate { cut: false, delay: self.delay };
        self.gates.values().for_each(|gate| _ = gate.send_replace(open));
    }

    /// Every byte from `a` to `b` takes this long.
    pub fn slow(&self, a: &str, b: &str, one_way: bool, delay: Duration) -> Result<(), LinkError> {
        self.change(a, b, one_way, |gate| gate.delay = delay)
    }

    /// Every direction, sorted.
    pub fn list(&self) -> Vec<(String, String, Gate)> {
        let row = |((a, b), gate): (&Direction, &watch::Sender<Gate>)| (a.clone(), b.clone(), *gate.borrow());
        let mut rows: Vec<_> = self.gates.iter().map(row).collect();
        rows.sort_by(|x, y| (&x.0, &x.1).cmp(&(&y.0, &y.1)));
        rows
    }

    fn change(&self, a: &str, b: &str, one_way: bool, change: impl Fn(&mut Gate)) -> Result<(), LinkError> {
        let there = self.gate(a, b)?;
        let back = self.gate(b, a)?;
        there.send_modify(&change);
        if !one_way {
            back.send_modify(&change);
        }
        Ok(())
    }

    fn gate(&self, a: &str, b: &str) -> Result<&watch::Sender<Gate>, LinkError> {
        if let Some(gate) = self.gates.get(&(a.to_owned(), b.to_owned())) {
            return Ok(gate);
        }
        let known: BTreeSet<&String> = self.gates.keys().map(|(a, _)| a).collect();
        match [a, b].into_iter().find(|name| !known.contains(&(*name).to_owned())) {
            Some(name) => {
                let known = known.into_iter().cloned().collect();
                Err(LinkError::UnknownRegion { name: name.to_owned(), known })
            }
            None => Err(LinkError::Itself(a.to_owned())),
        }
    }

    /// Carries what `from` dials to `to`, whose peer port is `target`, until dropped.
    pub async fn serve(self, listener: TcpListener, from: String, to: String, target: SocketAddr) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((near, _)) => {
                        connections.spawn(self.clone().carry(near, from.clone(), to.clone(), target));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a link could not accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn carry(self, near: TcpStream, from: String, to: String, target: SocketAddr) {
        let (Ok(there), Ok(back)) = (self.gate(&from, &to), self.gate(&to, &from)) else { return };
        let (there, back) = (there.subscribe(), back.subscribe());
        let carried = async {
            // A connection is made only once a packet could get there.
            passes(&mut there.clone()).await;
            let far = TcpStream::connect(target).await?;
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            // When either side closes, so does the whole: half-closed connections are of no use to HTTP/2.
            tokio::select! {
                ended = pump(near_in, far_out, there) => ended,
                ended = pump(far_in, near_out, back) => ended,
            }
        };
        if let Err::<(), io::Error>(error) = carried.await {
            tracing::debug!(%from, %to, %error, "a connection of a link ended");
        }
    }
}

/// Waits while the gate is cut.
async fn passes(gate: &mut watch::Receiver<Gate>) {
    // It fails only when all links are gone, and then there is nothing to wait for.
    let _ = gate.wait_for(|gate| !gate.cut).await;
}

/// Moves bytes from one side to the other through a gate.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    gate: watch::Receiver<Gate>,
) -> io::Result<()> {
    let (queue, queued) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX));
    let read = async {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            buffer.reserve(READ_BYTES);
            let taken = from.read_buf(&mut buffer).await?;
            let due = Instant::now() + gate.borrow().delay;
            let Ok(permit) = room.acquire_many(taken as u32).await else { return Ok(()) };
            permit.forget();
            if taken == 0 || queue.send((due, buffer.split().freeze())).is_err() {
                drop(queue);
                return Ok(());
            }
        }
    };
    let write = deliver(queued, to, gate.clone(), room.clone());
    let ((), ()) = tokio::try_join!(read, write)?;
    Ok(())
}

async fn deliver(
    mut queued: mpsc::UnboundedReceiver<(Instant, Bytes)>,
    mut to: impl AsyncWrite + Unpin,
    mut gate: watch::Receiver<Gate>,
    room: Arc<Semaphore>,
) -> io::Result<()> {
    while let Some((due, bytes)) = queued.recv().await {
        tokio::time::sleep_until(due).await;
        passes(&mut gate).await;
        to.write_all(&bytes).await?;
        room.add_permits(bytes.len());
    }
    passes(&mut gate).await;
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::time::timeout;

    struct Pair {
        links: Links,
        near: TcpStream,
        far: TcpStream,
        _serving: JoinSet<()>,
    }

    async fn pair(delay: Duration) -> Pair {
        let links = Links::new(&["a".to_owned(), "b".to_owned()], delay);
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = proxy.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(links.clone().serve(proxy, "a".into(), "b".into(), target.local_addr().unwrap()));
        let near = TcpStream::connect(at).await.unwrap();
        let (far, _) = target.accept().await.unwrap();
        Pair { links, near, far, _serving: serving }
    }

    async fn arrives(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(b"x").await.unwrap();
        let mut byte = [0];
        timeout(Duration::from_millis(200), to.read_exact(&mut byte)).await.is_ok_and(|read| read.is_ok())
    }

    #[tokio::test]
    async fn a_cut_one_way_stops_that_way_alone_and_healing_brings_what_waited() {
        let mut pair = pair(Duration::ZERO).await;
        assert!(arrives(&mut pair.near, &mut pair.far).await);
        pair.links.cut("a", "b", true).unwrap();
        assert!(!arrives(&mut pair.near, &mut pair.far).await);
        assert!(arrives(&mut pair.far, &mut pair.near).await);
        pair.links.heal("a", "b", true).unwrap();
        let mut waited = [0];
        timeout(Duration::from_secs(5), pair.far.read_exact(&mut waited)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_cut_stops_both_ways() {
        let mut pair = pair(Duration::ZERO).await;
        pair.links.cut("b", "a", false).unwrap();
        assert!(!arrives(&mut pair.near, &mut pair.far).await);
        assert!(!arrives(&mut pair.far, &mut pair.near).await);
    }

    #[tokio::test]
    async fn every_byte_is_delayed() {
        let mut pair = pair(Duration::from_millis(30)).await;
        let start = Instant::now();
        assert!(arrives(&mut pair.near, &mut pair.far).await);
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    #[tokio::test]
    async fn closing_reaches_the_other_side() {
        let mut pair = pair(Duration::ZERO).await;
        drop(pair.near);
        let mut byte = [0];
        let read = timeout(Duration::from_secs(5), pair.far.read(&mut byte)).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)));
    }

    #[test]
    fn unknown_regions_are_named() {
        let links = Links::new(&["a".to_owned(), "b".to_owned()], Duration::ZERO);
        assert_eq!(links.cut("a", "a", false), Err(LinkError::Itself("a".to_owned())));
        let known = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(links.cut("a", "c", false), Err(LinkError::UnknownRegion { name: "c".to_owned(), known }));
    }
}
