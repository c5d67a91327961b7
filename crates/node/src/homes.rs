//! Which region a key's writes go to. Pure.
//!
//! A live record names its home itself; where nothing is live, the policy does, then whoever creates the key. So two regions
//! that create one key at once may both be right: a conflict like any other, settled when they hear of each other, and its
//! home with it.

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
    keyspace.policy.home_of(key, members).unwrap_or_else(|| asked.unwrap_or(me).clone())
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
    record.home(lineage).unwrap_or_else(|| home_of_new(keyspace, members, key, asked, me))
}

/// Why a request may not name this home.
pub(crate) fn fault_of(keyspace: &Keyspace, members: &Members, key: &[u8], asked: &Region) -> Option<String> {
    let policy = &keyspace.policy;
    if policy.home.is_none() {
        return Some(format!("a {} keyspace has no homes", policy.scope));
    }
    if !members.contains_key(asked) {
        return Some(format!("{asked} is no region of the cluster"));
    }
    if !policy.admits(asked, members) {
        return Some(format!("{asked} may not hold the data: residency={}", policy.residency));
    }
    let decided = policy.home_of(key, members).filter(|home| home != asked)?;
    Some(format!("the keyspace's policy makes {decided} this key's home"))
}
