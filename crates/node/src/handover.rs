//! What the others have of that which is here: asked before this region gives its own copy up.
//!
//! The law it keeps: statements follow news, so that the last of them may never come. Each greeting says what a peer has absorbed,
//! and only that counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use isle_model::{Region, Streams, Vector};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::NodeError;
use crate::peer::ToReceiver;
use crate::peers::PeerSlot;
use crate::replication::handshake::hello_for;
use crate::shard_queue::{Job, answer_of};
use crate::shared::{Shared, StreamKey};

/// What this region had of some streams at one moment.
pub(crate) type Had = [(StreamKey, Arc<Streams>)];
/// By stream and origin, what a peer has absorbed.
pub(crate) type AbsorbedBy = BTreeMap<StreamKey, BTreeMap<Region, Vector>>;

/// Waits for the commit of every write that was accepted. Later ones are refused in the shards' loops.
pub(crate) async fn finish_writes(shared: &Shared) -> Result<(), NodeError> {
    for queue in &shared.queues {
        let nothing = |answer| Job::Statement { keyspaces: Vec::new(), again: Vec::new(), answer };
        answer_of(queue.submit(512, nothing).await?).await?;
    }
    Ok(())
}

/// Whether the others hold what this region had of everybody's writes: the last copy of one may be here, where its own region is gone.
/// One that has been away for longer than `away_max` has to ask the rest; but somebody has to have it.
pub(crate) async fn is_with_others(shared: &Shared, had: &Had, away_max: Duration) -> bool {
    let known = shared.catalog.known();
    let peers = shared.peers.all();
    let mut held: BTreeSet<StreamKey> = BTreeSet::new();
    for (region, slot) in peers.iter() {
        let of_theirs: Vec<_> = had.iter().filter(|(stream, _)| known.is_for(region, stream.0)).collect();
        if !known.serves(region) || slot.link.lock().away(shared.now()) >= away_max || of_theirs.is_empty() {
            continue;
        }
        let Some(theirs) = absorbed_by(shared, slot).await else { return false };
        for (stream, had) in of_theirs {
            if !covers(shared, &theirs, *stream, had) {
                return false;
            }
            held.insert(*stream);
        }
    }
    // Where nobody else may hold it there is nobody to wait for: the cluster has agreed to do without.
    had.iter().all(|(stream, _)| held.contains(stream) || !peers.keys().any(|region| known.is_for(region, stream.0)))
}

fn covers(shared: &Shared, theirs: &AbsorbedBy, stream: StreamKey, had: &Streams) -> bool {
    let (tree, nothing) = (shared.store.tree(), Vector::new());
    let of = |origin| theirs.get(&stream).and_then(|vectors| vectors.get(origin)).unwrap_or(&nothing);
    had.applied().iter().all(|(origin, vector)| of(origin).covers_all(vector, tree.shard(stream.1)))
}

/// Whether every region that takes these streams has confirmed the last of this region's own deltas in them, as far as links tell.
pub(crate) fn is_confirmed(shared: &Shared, had: &Had) -> bool {
    let (known, tree) = (shared.catalog.known(), shared.store.tree());
    let has = |slot: &PeerSlot, stream: &StreamKey, streams: &Streams| {
        let Some(dot) = streams.last_own() else { return true };
        let link = slot.link.lock();
        let cursors = link.confirmed.as_ref().map(|confirmed| &confirmed.cursors);
        cursors.and_then(|cursors| cursors.get(stream)).is_some_and(|v| v.covers(dot, tree.shard(stream.1)))
    };
    let peers = shared.peers.all();
    had.iter().all(|(stream, streams)| {
        let mut holders = peers.iter().filter(|(region, _)| known.is_for(region, stream.0) && known.serves(region));
        holders.all(|(_, slot)| has(slot, stream, streams))
    })
}

/// What a peer has absorbed, as it says when it is greeted.
pub(crate) async fn absorbed_by(shared: &Shared, slot: &PeerSlot) -> Option<AbsorbedBy> {
    let peer = slot.handle.lock().clone()?;
    // Nothing is said on it: the link that it takes the place of is made anew.
    let (_words, outgoing) = mpsc::channel(1);
    let greeted = async {
        let mut stream = peer.subscribe(hello_for(shared, &slot.config.region), outgoing).await.ok()?;
        stream.next().await?.ok()
    };
    match timeout(shared.config.silence_max, greeted).await {
        Ok(Some(ToReceiver::Hello(hello))) => {
            let absorbed = hello.absorbed.into_iter();
            Some(absorbed.map(|(keyspace, shard, of)| ((keyspace, shard), of.into_iter().collect())).collect())
        }
        _ => None,
    }
}
