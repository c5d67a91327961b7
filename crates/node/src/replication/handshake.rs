//! The first words of two nodes: whether they belong together, who each of them is by now, and whether one of them has lost
//! what it once had.

use std::collections::BTreeMap;

use isle_model::{Incarnation, Region, Row, Vector};
use isle_store::RowsError;

use crate::peer::{FEATURE_LEVEL, Hello, PROTOCOL, PeerError};
use crate::shared::{Shared, StreamKey};
use crate::standing::{Admittance, Owed};

/// What this node says of itself to a peer.
pub(crate) fn hello_for(shared: &Shared, peer: &Region) -> Hello {
    let streams = shared.store.all_streams();
    let mut hello = Hello {
        protocol: PROTOCOL,
        cluster: shared.config.cluster.clone(),
        region: shared.me().clone(),
        incarnation: shared.store.incarnation(),
        rows: Vec::new(),
        feature_level: FEATURE_LEVEL,
        shards: shared.config.shards,
        keyspaces: shared.catalog.known().fingerprints().clone(),
        cursors: Vec::new(),
        stated: Vec::new(),
        absorbed: Vec::new(),
    };
    let known = shared.catalog.known();
    // What is gone is not spoken of, whether it is purged yet or not: neither side can be behind in it.
    let is_here = |(stream, _): &(StreamKey, _)| !known.is_gone_from(shared.me(), stream.0);
    for ((keyspace, shard), streams) in streams.into_iter().filter(is_here) {
        hello.cursors.push((keyspace, shard, streams.cursor(peer)));
        if let Some(stated) = streams.stated_by(peer) {
            hello.stated.push((keyspace, shard, stated.clone().into_iter().collect()));
        }
        hello.absorbed.push((keyspace, shard, streams.applied().clone().into_iter().collect()));
    }
    // The rows are read after the cursors: they name everything that those do.
    hello.rows = shared.store.tree().rows().map(|(incarnation, row)| (incarnation, row.clone())).collect();
    hello
}

/// What came of meeting a peer that belongs here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Met {
    Admitted,
    /// It comes back on a branch and has to be completed before anything of it is taken or given, but states.
    CompleteFirst,
}

/// Hears a peer's Hello. `dialled` is whom this node meant to reach, where it was the one who dialled.
pub(crate) fn meet(shared: &Shared, hello: &Hello, dialled: Option<&Region>) -> Result<Met, PeerError> {
    let faults = misfits(shared, hello, dialled);
    if let [_] = &faults[..] {
        check_member(shared, &hello.region)?;
    }
    if !faults.is_empty() {
        return Err(PeerError::Incompatible { reason: faults.join("; ") });
    }
    learn(shared, hello.rows.iter().cloned())?;
    check_names(shared, hello)?;
    if let Some(where_) = own_end_exceeded(shared, hello) {
        let reason =
            format!("{} holds more of this incarnation than this node wrote ({where_}); restart it", hello.region);
        shared.stop_for_good(&reason);
        return Err(PeerError::Stopping);
    }
    let owed = owed_by(shared, hello);
    if !owed.is_empty() {
        tracing::warn!(peer = %hello.region, streams = owed.len(), "this region's disk is behind what it once had");
        shared.repair.notify_one();
    }
    let is_complete = is_complete(shared, hello);
    let tree = shared.store.tree();
    let mut standing = shared.standing.lock();
    standing.compare(owed);
    match standing.judge(&hello.region, hello.incarnation, &tree, is_complete) {
        Admittance::Admit => {
            standing.admit(&hello.region, hello.incarnation);
            note_said(shared, hello);
            Ok(Met::Admitted)
        }
        Admittance::CompleteFirst => {
            // It asks for states, and those pass the gate too.
            note_said(shared, hello);
            Ok(Met::CompleteFirst)
        }
        Admittance::Replaced { admitted } => {
            Err(PeerError::RegionReplaced { region: hello.region.clone(), admitted, refused: hello.incarnation })
        }
    }
}

/// Refuses whoever is no member of a cluster that has agreed on its members.
pub(crate) fn check_member(shared: &Shared, region: &Region) -> Result<(), PeerError> {
    if shared.peers.contains(region) {
        return Ok(());
    }
    let known = shared.catalog.known();
    match known.metadata.revision {
        0 => Ok(()),
        _ if known.metadata.members.contains_key(region) => {
            Err(PeerError::NotReady { reason: format!("{region} has only just been let in") })
        }
        revision => Err(PeerError::NoMember { region: region.clone(), revision }),
    }
}

/// A region that joins has reached a member that knows it, and waits for it from here on: what the member has is what this region is
/// to have before it serves. Before it has heard what the cluster agreed on, it cannot tell what it may hold.
pub(crate) fn greeted(shared: &Shared, hello: &Hello) -> Result<(), PeerError> {
    let known = shared.catalog.known();
    let mut standing = shared.standing.lock();
    if !standing.is_joining() {
        return Ok(());
    }
    if !known.metadata.members.contains_key(shared.me()) || known.metadata.revision == 0 {
        let reason = "this region joins, and has not heard yet what the cluster has agreed on".to_owned();
        return Err(PeerError::NotReady { reason });
    }
    if hello.keyspaces != *known.fingerprints() {
        let reason = "this region joins, and knows of other keyspaces than the peer does".to_owned();
        return Err(PeerError::NotReady { reason });
    }
    if standing.known_to(&hello.region) {
        let tree = shared.store.tree();
        let mut owed = Owed::new();
        for (keyspace, shard, absorbed) in &hello.absorbed {
            let is_behind = || shared.store.streams(*keyspace, *shard).is_behind(absorbed, tree.shard(*shard));
            if shared.queue(*shard).is_some() && known.is_for(shared.me(), *keyspace) && is_behind() {
                owed.insert((*keyspace, *shard), absorbed.clone());
            }
        }
        standing.compare(owed);
        shared.repair.notify_one();
    }
    Ok(())
}

/// Notes what the peer means by each keyspace. It goes on saying so on its subscription, in order: what a Hello says that was overtaken
/// stands only until then.
fn note_said(shared: &Shared, hello: &Hello) {
    if let Some(slot) = shared.peers.get(&hello.region) {
        *slot.said.lock() = hello.keyspaces.clone();
    }
}

/// Notes rows that came from a peer, ahead of whatever uses them.
pub(crate) fn learn(shared: &Shared, rows: impl IntoIterator<Item = (Incarnation, Row)>) -> Result<(), PeerError> {
    shared.store.learn_rows(rows).map_err(|error| match error {
        RowsError::Conflict(conflict) => PeerError::Corrupt { reason: conflict.to_string() },
        RowsError::Append(error) => PeerError::NotReady { reason: format!("this node cannot note its rows: {error}") },
    })
}

/// Refuses a hello whose positions name incarnations without a row, or of another region than the stream's: by them this
/// region would take itself to be behind, and wait for what nobody has.
fn check_names(shared: &Shared, hello: &Hello) -> Result<(), PeerError> {
    let tree = shared.store.tree();
    let of = |region: &Region, vector: &Vector| {
        let stranger = vector.entries().iter().find(|(incarnation, _)| tree.region(*incarnation) != Some(region));
        stranger.map_or(Ok(()), |(incarnation, _)| {
            Err(PeerError::Corrupt { reason: format!("incarnation {incarnation} is not known as one of {region}") })
        })
    };
    hello.cursors.iter().try_for_each(|(_, _, vector)| of(shared.me(), vector))?;
    let mut absorbed = hello.stated.iter().chain(&hello.absorbed).flat_map(|(_, _, vectors)| vectors);
    absorbed.try_for_each(|(region, vector)| of(region, vector))
}

fn misfits(shared: &Shared, hello: &Hello, dialled: Option<&Region>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |fits: bool, fault: String| {
        if !fits {
            faults.push(fault);
        }
    };
    let config = &shared.config;
    check(hello.protocol == PROTOCOL, format!("protocol {} here, {} there", PROTOCOL, hello.protocol));
    check(hello.cluster == config.cluster, format!("cluster {:?} here, {:?} there", config.cluster, hello.cluster));
    check(hello.shards == config.shards, format!("{} shards here, {} there", config.shards, hello.shards));
    check(shared.peers.contains(&hello.region), format!("{} is no peer of {}", hello.region, config.region));
    if let Some(dialled) = dialled {
        check(*dialled == hello.region, format!("dialled {dialled}, reached {}", hello.region));
    }
    faults
}

/// Where the peer has more of this very incarnation than was written: a dot of it has been issued elsewhere.
fn own_end_exceeded(shared: &Shared, hello: &Hello) -> Option<String> {
    let (me, incarnation, known) = (shared.me(), shared.store.incarnation(), shared.catalog.known());
    let cursors = hello.cursors.iter().map(|(keyspace, shard, vector)| (*keyspace, *shard, vector));
    let absorbed = hello.absorbed.iter().flat_map(|(keyspace, shard, vectors)| {
        vectors.iter().filter(|(region, _)| region == me).map(|(_, vector)| (*keyspace, *shard, vector))
    });
    cursors.chain(absorbed).find_map(|(keyspace, shard, theirs)| {
        shared.queue(shard)?;
        let own = shared.store.streams(keyspace, shard).cursor(me).get(incarnation);
        let there = theirs.get(incarnation);
        // A peer that has not purged yet remembers what was written into a keyspace that is gone; and a keyspace that this run has
        // purged, and comes to hold again, is to get it back.
        (there > own && !shared.is_gone(keyspace) && !known.is_taking(me, keyspace))
            .then(|| format!("keyspace {}, shard {}: {there} there, {own} here", keyspace.0, shard.0))
    })
}

/// What this region's disk does not hold any more, though the peer heard it stated, or has it of this region's own streams.
fn owed_by(shared: &Shared, hello: &Hello) -> Owed {
    let tree = shared.store.tree();
    let own = hello
        .cursors
        .iter()
        .map(|(keyspace, shard, vector)| ((*keyspace, *shard), vec![(shared.me().clone(), vector.clone())]));
    let stated = hello.stated.iter().map(|(keyspace, shard, stated)| ((*keyspace, *shard), stated.clone()));
    let mut owed = Owed::new();
    // What is deleted nobody can complete, and what this region may not hold any more nobody gives it.
    for (stream, had) in own.chain(stated) {
        let known = shared.queue(stream.1).is_some();
        let is_behind = || shared.store.streams(stream.0, stream.1).is_behind(&had, tree.shard(stream.1));
        if known && is_behind() && !shared.is_shut_out(stream.0) {
            owed.entry(stream).or_default().extend(had);
        }
    }
    owed
}

/// Whether the peer holds at least what it was heard to state, and what is here of its own streams.
fn is_complete(shared: &Shared, hello: &Hello) -> bool {
    let tree = shared.store.tree();
    let nothing = Vector::new();
    let theirs: BTreeMap<StreamKey, BTreeMap<&Region, &Vector>> = hello
        .absorbed
        .iter()
        .map(|(keyspace, shard, vectors)| ((*keyspace, *shard), vectors.iter().map(|(r, v)| (r, v)).collect()))
        .collect();
    let known = shared.catalog.known();
    let streams = shared.store.all_streams();
    // What it purged is not missing there, and what it may not hold any more it cannot be completed in.
    let lacks =
        |stream: &StreamKey| known.is_shut_out(&hello.region, stream.0) || known.is_taking(&hello.region, stream.0);
    streams.iter().filter(|(stream, _)| !lacks(stream)).all(|(stream, streams)| {
        let lineage = tree.shard(stream.1);
        let has = |origin: &Region, wanted: &Vector| {
            theirs
                .get(stream)
                .and_then(|vectors| vectors.get(origin))
                .copied()
                .unwrap_or(&nothing)
                .covers_all(wanted, lineage)
        };
        let stated = streams.stated_by(&hello.region);
        has(&hello.region, &streams.cursor(&hello.region))
            && stated.into_iter().flatten().all(|(origin, vector)| has(origin, vector))
    })
}
