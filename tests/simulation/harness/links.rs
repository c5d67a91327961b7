//! Links of channels between the nodes of one process: each direction is a gate of its own, which delays, and can be shut.
//! A shut gate is a black hole: nothing is refused and nothing lost, it just does not arrive until the gate opens.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use isle_node::peer::{
    Connector, FetchReply, FetchRequest, Hello, Peer, PeerError, StateReply, StateRequest, ToReceiver, ToSender,
};
use isle_node::{Node, PeerConfig};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{SITES, rng_of};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    pub shut: bool,
    pub delay_min: Duration,
    pub delay_max: Duration,
    /// Raised to break every connection.
    pub resets: u64,
}

struct Direction {
    gate: watch::Sender<Gate>,
    rng: Mutex<StdRng>,
}

pub struct Links {
    directions: BTreeMap<(usize, usize), Direction>,
    nodes: Mutex<BTreeMap<usize, Weak<Node>>>,
}

impl Links {
    pub fn new(seed: u64) -> Self {
        let open = Gate {
            shut: false,
            delay_min: Duration::from_millis(1),
            delay_max: Duration::from_millis(20),
            resets: 0,
        };
        let pairs = (0..SITES.len()).flat_map(|a| (0..SITES.len()).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let direction = |(a, b): (usize, usize)| {
            let rng = Mutex::new(rng_of(seed, &format!("link {a} {b}")));
            ((a, b), Direction { gate: watch::Sender::new(open), rng })
        };
        Links { directions: pairs.map(direction).collect(), nodes: Mutex::default() }
    }

    pub fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Gate)) {
        self.directions[&(from, to)].gate.send_modify(change);
    }

    pub fn set_node(&self, site: usize, node: Option<&Arc<Node>>) {
        let mut nodes = self.nodes.lock();
        match node {
            Some(node) => nodes.insert(site, Arc::downgrade(node)),
            None => nodes.remove(&site),
        };
    }

    fn direction(&self, from: usize, to: usize) -> &Direction {
        &self.directions[&(from, to)]
    }

    fn delay(&self, from: usize, to: usize) -> Duration {
        let direction = self.direction(from, to);
        let gate = *direction.gate.borrow();
        direction.rng.lock().random_range(gate.delay_min..=gate.delay_max)
    }

    /// One message's way.
    async fn pass(&self, from: usize, to: usize) {
        tokio::time::sleep(self.delay(from, to)).await;
        self.opened(from, to).await;
    }

    async fn opened(&self, from: usize, to: usize) {
        let mut gate = self.direction(from, to).gate.subscribe();
        // It fails only when all links are gone.
        let _ = gate.wait_for(|gate| !gate.shut).await;
    }

    async fn reset(&self, from: usize, to: usize) {
        let mut gate = self.direction(from, to).gate.subscribe();
        let now = gate.borrow_and_update().resets;
        let _ = gate.wait_for(|gate| gate.resets > now).await;
    }
}

pub struct Dialler {
    pub links: Arc<Links>,
    pub from: usize,
}

struct Line {
    links: Arc<Links>,
    from: usize,
    to: usize,
}

fn gone() -> PeerError {
    PeerError::Unreachable { reason: "connection reset".to_owned() }
}

impl Line {
    fn node(&self) -> Result<Arc<Node>, PeerError> {
        self.links.nodes.lock().get(&self.to).and_then(Weak::upgrade).ok_or_else(gone)
    }

    /// Carries a stream's items, in order, each after its delay, until the link is reset.
    fn carry<T: Send + 'static>(&self, from: usize, to: usize, mut items: BoxStream<'static, T>) -> BoxStream<'static, T> {
        let (sender, carried) = mpsc::unbounded_channel();
        let links = self.links.clone();
        let reader = AbortOnDrop(tokio::spawn(async move {
            while let Some(item) = items.next().await {
                let due = Instant::now() + links.delay(from, to);
                if sender.send((due, item)).is_err() {
                    return;
                }
            }
        }));
        let links = self.links.clone();
        let arriving = stream::unfold((carried, links, reader), move |(mut carried, links, reader)| async move {
            let (due, item) = carried.recv().await?;
            tokio::time::sleep_until(due).await;
            links.opened(from, to).await;
            Some((item, (carried, links, reader)))
        });
        let links = self.links.clone();
        arriving.take_until(Box::pin(async move { links.reset(from, to).await })).boxed()
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[async_trait]
impl Connector for Dialler {
    async fn connect(&self, peer: &PeerConfig) -> Result<Arc<dyn Peer>, PeerError> {
        let to = SITES.iter().position(|site| *site == peer.region.as_str()).expect("every peer is a site");
        let line = Line { links: self.links.clone(), from: self.from, to };
        line.links.pass(self.from, to).await;
        line.node()?;
        line.links.pass(to, self.from).await;
        Ok(Arc::new(line))
    }
}

#[async_trait]
impl Peer for Line {
    async fn subscribe(
        &self,
        hello: Hello,
        outgoing: mpsc::Receiver<ToSender>,
    ) -> Result<BoxStream<'static, Result<ToReceiver, PeerError>>, PeerError> {
        self.links.pass(self.from, self.to).await;
        let words = stream::unfold(outgoing, |mut outgoing| async move {
            outgoing.recv().await.map(|word| (Ok(word), outgoing))
        });
        let words = self.carry(self.from, self.to, words.boxed());
        let messages = self.node()?.subscribe(hello, words)?;
        Ok(self.carry(self.to, self.from, messages))
    }

    async fn fetch(&self, request: FetchRequest) -> Result<FetchReply, PeerError> {
        self.links.pass(self.from, self.to).await;
        let reply = self.node()?.serve_fetch(request).await;
        self.links.pass(self.to, self.from).await;
        reply
    }

    async fn state(&self, request: StateRequest) -> Result<StateReply, PeerError> {
        self.links.pass(self.from, self.to).await;
        let reply = self.node()?.serve_state(request).await;
        self.links.pass(self.to, self.from).await;
        reply
    }
}
