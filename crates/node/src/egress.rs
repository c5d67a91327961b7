//! The one gate before every byte that leaves this region: deltas, states, fetched streams.
//!
//! It fails closed: what it does not know stays here. In this version every configured keyspace goes to every configured
//! peer; residency will narrow it here and nowhere else.

use isle_model::{KeyspaceId, Region};

use crate::NodeConfig;

/// Whether data of `keyspace` may be sent to `peer`.
pub(crate) fn egress_gate(config: &NodeConfig, peer: &Region, keyspace: KeyspaceId) -> bool {
    config.peers.iter().any(|known| known.region == *peer) && config.keyspaces.iter().any(|known| known.id == keyspace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PeerConfig;

    #[test]
    fn what_is_unknown_stays_here() {
        let peer = PeerConfig { region: Region::new("b"), endpoint: String::new() };
        let config = NodeConfig { peers: vec![peer], ..NodeConfig::default() };
        assert!(egress_gate(&config, &Region::new("b"), KeyspaceId(1)));
        assert!(!egress_gate(&config, &Region::new("b"), KeyspaceId(2)));
        assert!(!egress_gate(&config, &Region::new("c"), KeyspaceId(1)));
    }
}
