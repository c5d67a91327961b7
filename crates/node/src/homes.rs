//! Which region a key's writes go to. Pure.
//!
//! A live record names its home itself; where nothing is live, the policy does, then whoever creates the key. Where the home is none
//! any more, the key's hash chooses another among those that were holders then (`model/metadata/holders.rs`), and the next write
//! names it. So two regions that create one key at once may both be right: a conflict like any other, settled when they hear of
//! each other, and its home with it.

use isle_model::metadata::Keyspace;
use isle_model::policy::Members;
use isle_model::{Lineage, Record, Region};

/// The home that a new key gets here.
pub(crate) fn home_of_new(
    keyspace: &Keyspace,
    members: &Members,
    key: &[u8],
    asked: Option<&Region>,
    me: &Region,
) -> Region {
    keyspace.home_of(key, members).unwrap_or_else(|| asked.unwrap_or(me).clone())
}

/// The home of a key whose newest record is this one.
pub(crate) fn home_of(
    keyspace: &Keyspace,
    members: &Members,
    key: &[u8],
    record: &Record,
    lineage: Lineage<'_>,
    asked: Option<&Region>,
    me: &Region,
) -> Region {
    let named = home_named_by(keyspace, members, key, record, lineage);
    named.unwrap_or_else(|| home_of_new(keyspace, members, key, asked, me))
}

/// The home that a record names, or the one in its place where that is none any more; `None` where it names none.
pub(crate) fn home_named_by(
    keyspace: &Keyspace,
    members: &Members,
    key: &[u8],
    record: &Record,
    lineage: Lineage<'_>,
) -> Option<Region> {
    let (home, epoch) = record.home_and_epoch(lineage)?;
    keyspace.home_named(key, &home, epoch, members)
}

/// Whether another region is in the place of the home that a record names: then that is to be named.
pub(crate) fn home_is_replaced(keyspace: &Keyspace, members: &Members, record: &Record, lineage: Lineage<'_>) -> bool {
    let Some((home, epoch)) = record.home_and_epoch(lineage) else { return false };
    keyspace.is_replaced(&home, epoch, members)
}

/// Why a request may not name this home.
pub(crate) fn fault_of(keyspace: &Keyspace, members: &Members, key: &[u8], asked: &Region) -> Option<String> {
    let policy = &keyspace.policy;
    if policy.home.is_none() {
        return Some(format!("a {} keyspace has no homes", policy.scope));
    }
    match members.get(asked) {
        None => return Some(format!("{asked} is no region of the cluster")),
        Some(member) if !member.state.is_serving() => {
            return Some(format!("{asked} does not serve now (it is {:?})", member.state));
        }
        Some(_) => {}
    }
    if !policy.admits(asked, members) {
        return Some(format!("{asked} may not hold the data: residency={}", policy.residency));
    }
    if !keyspace.is_held_by(asked, members) {
        return Some(format!("{asked} does not have all of the data yet"));
    }
    let decided = keyspace.home_of(key, members).filter(|home| home != asked)?;
    Some(format!("the keyspace's policy makes {decided} this key's home"))
}
