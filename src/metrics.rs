//! What a node counts, as Prometheus text. It is written when asked for, from the node's own counters: several regions
//! in one process never mix, and nothing is counted twice.

use std::fmt::Write;
use std::sync::Arc;

use isle_node::{Counter, LinkState, Node, NodeState, NodeStatus, PeerCounters, PeerStatus};

use crate::http::Vitals;

pub struct NodeVitals {
    node: Arc<Node>,
}

impl NodeVitals {
    pub fn new(node: Arc<Node>) -> NodeVitals {
        NodeVitals { node }
    }
}

impl Vitals for NodeVitals {
    fn metrics(&self) -> String {
        let status = self.node.status();
        let mut out = Exposition::default();
        gauges(&mut out, &status);
        counters(&mut out, &self.node);
        egress(&mut out, &status, &self.node);
        links(&mut out, &status);
        out.text
    }

    fn not_ready(&self) -> Option<String> {
        match self.node.status().state {
            NodeState::Serving => None,
            NodeState::Joining { progress } => Some(format!("joining the cluster: {progress}")),
            NodeState::Leaving => Some("leaving the cluster".to_owned()),
            NodeState::Completing => Some("being completed by the other regions".to_owned()),
            NodeState::WritesStopped { reason } | NodeState::Stopped { reason } => Some(reason),
            NodeState::ClockAhead { by_ms } => Some(isle_node::NodeError::ClockAhead { by_ms }.to_string()),
        }
    }
}

fn gauges(out: &mut Exposition, status: &NodeStatus) {
    let states: [(&str, bool); 6] = [
        ("serving", matches!(status.state, NodeState::Serving)),
        ("completing", matches!(status.state, NodeState::Completing)),
        ("joining", matches!(status.state, NodeState::Joining { .. })),
        ("leaving", matches!(status.state, NodeState::Leaving)),
        ("read_only", matches!(status.state, NodeState::WritesStopped { .. } | NodeState::ClockAhead { .. })),
        ("stopped", matches!(status.state, NodeState::Stopped { .. })),
    ];
    out.family("isle_state", "gauge", "1 for the state the node is in.");
    for (state, is) in states {
        out.row("isle_state", &[("state", state)], f64::from(u8::from(is)));
    }
    out.family("isle_records", "gauge", "Live records.");
    for keyspace in &status.keyspaces {
        out.row("isle_records", &[("keyspace", &keyspace.name)], keyspace.records as f64);
    }
    for (name, help, value) in [
        ("isle_conflicts_open", "Conflicts whose values are both still live.", status.conflicts_open),
        ("isle_log_bytes", "The commit log on disk.", status.log_bytes),
        ("isle_overlay_bytes", "Records in memory that are not in the view yet.", status.overlay_bytes),
        ("isle_view_bytes", "The view on disk.", status.view_bytes),
        (
            "isle_keyspaces_purging",
            "Keyspaces of which the disk still holds some, deleted or not for the region any more.",
            status.keyspaces_purging,
        ),
    ] {
        out.family(name, "gauge", help);
        out.row(name, &[], value as f64);
    }
    if let Some(bytes) = status.view_live_bytes {
        out.family("isle_view_live_bytes", "gauge", "What the view holds; it is built anew when it takes far more.");
        out.row("isle_view_live_bytes", &[], bytes as f64);
    }
    out.family("isle_view_rebuilds_total", "counter", "Views built anew because they had outgrown what they held.");
    out.row("isle_view_rebuilds_total", &[], status.view_rebuilds as f64);
}

fn counters(out: &mut Exposition, node: &Node) {
    let counters = node.counters();
    for (name, help, counter) in [
        ("isle_writes_total", "Writes answered.", &counters.writes),
        ("isle_reads_total", "Reads answered.", &counters.reads),
        ("isle_refused_total", "Requests refused: full, or too late.", &counters.refused),
        ("isle_commits_total", "Batches committed.", &counters.batches),
        ("isle_clock_too_far_ahead_total", "Stamps too far ahead of this clock.", &counters.hlc_too_far_ahead),
        ("isle_quarantined_total", "Deltas that could not be applied.", &counters.quarantined),
        ("isle_tombstones_forgotten_total", "Deleted records forgotten.", &counters.tombstones_forgotten),
        ("isle_statements_total", "Statements of what was absorbed.", &counters.statements),
    ] {
        out.family(name, "counter", help);
        out.row(name, &[], counter.get() as f64);
    }
    type Pick = fn(&PeerCounters) -> &Counter;
    let of_peer: [(&str, &str, Pick); 5] = [
        ("isle_peer_deltas_sent_total", "Deltas sent to a peer.", |c| &c.deltas_out),
        ("isle_peer_deltas_received_total", "Deltas a peer sent, repeats included.", |c| &c.deltas_in),
        ("isle_peer_reconnects_total", "Connections made to a peer.", |c| &c.reconnects),
        ("isle_peer_refetches_total", "Gaps fetched again.", |c| &c.refetches),
        ("isle_peer_state_chunks_total", "Chunks of state taken from a peer.", |c| &c.state_chunks_in),
    ];
    for (name, help, pick) in of_peer {
        out.family(name, "counter", help);
        for (region, counters) in counters.peers() {
            out.row(name, &[("peer", region.as_str())], pick(&counters).get() as f64);
        }
    }
}

fn egress(out: &mut Exposition, status: &NodeStatus, node: &Node) {
    out.family("isle_peer_egress_bytes_total", "counter", "Bytes sent to a peer, on the wire.");
    for peer in &status.peers {
        out.row("isle_peer_egress_bytes_total", &[("peer", peer.region.as_str())], peer.egress_bytes as f64);
    }
    out.family("isle_egress_bytes_total", "counter", "The same, by keyspace and cause, with the keyspace's labels.");
    let metadata = node.metadata();
    for peer in &status.peers {
        for row in &peer.egress {
            let name = row.keyspace.as_deref().unwrap_or_default();
            let of_keyspace = metadata.named(name).map(|keyspace| keyspace.policy.labels.clone()).unwrap_or_default();
            let labels: Vec<(String, String)> =
                of_keyspace.into_iter().map(|(name, value)| (label_name(&name), value)).collect();
            let mut all = vec![("peer", peer.region.as_str()), ("keyspace", name), ("cause", row.cause.name())];
            all.extend(labels.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            out.row("isle_egress_bytes_total", &all, row.bytes as f64);
        }
    }
}

/// A keyspace's label as Prometheus may name one, told from the metric's own.
fn label_name(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("label_{}", name.chars().map(fits).collect::<String>())
}

fn links(out: &mut Exposition, status: &NodeStatus) {
    type Measure = fn(&PeerStatus) -> Option<f64>;
    let measures: [(&str, &str, Measure); 5] = [
        ("isle_peer_quarantined", "Streams of the peer that stand still at a delta that cannot be applied.", |peer| {
            Some(peer.quarantined as f64)
        }),
        ("isle_peer_live", "1 if the peer confirms within a second.", |peer| {
            Some(f64::from(u8::from(matches!(peer.state, LinkState::Live))))
        }),
        ("isle_peer_lag_seconds", "Age of the oldest write the peer has not confirmed.", |peer| {
            Some(peer.lag.as_secs_f64())
        }),
        ("isle_peer_lag_bytes", "Log the peer has not confirmed.", |peer| Some(peer.lag_bytes as f64)),
        ("isle_peer_staleness_seconds", "How far reads here may be behind the peer.", |peer| {
            peer.staleness.map(|span| span.as_secs_f64())
        }),
    ];
    for (name, help, measure) in measures {
        out.family(name, "gauge", help);
        for peer in &status.peers {
            if let Some(value) = measure(peer) {
                out.row(name, &[("peer", peer.region.as_str())], value);
            }
        }
    }
}

/// Prometheus' text format, version 0.0.4.
#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let written = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        written.expect("a string takes everything");
    }

    fn row(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        // Names of regions and keyspaces hold nothing that would need escaping, since config refuses it; labels may.
        let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.text, "{name}{labels} {value}").expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_prometheus_text() {
        let mut out = Exposition::default();
        out.family("isle_records", "gauge", "Live records.");
        out.row("isle_records", &[("keyspace", "default")], 3.0);
        out.row("isle_log_bytes", &[], 0.5);
        let lines: Vec<&str> = out.text.lines().collect();
        assert_eq!(lines[1], "# TYPE isle_records gauge");
        assert_eq!(lines[2], "isle_records{keyspace=\"default\"} 3");
        assert_eq!(lines[3], "isle_log_bytes 0.5");
    }
}
