//! Every region that one endpoint knows of, each asked itself. One that does not answer is shown as such.

use std::time::Duration;

use clap::Args;
use isle_client::v1::{self, RegionState};
use isle_client::{Client, Options, Retry};
use serde_json::{Value as Json, json};

use super::{Failure, Global};
use crate::output;
use crate::units::show_size;

/// How long a region may take before it is shown as unreachable.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Args)]
pub struct Status {}

impl Status {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let (cluster, regions) = regions(global).await?;
        let lines = if global.is_json() { vec![json_of(&cluster, &regions)] } else { table(&cluster, &regions) };
        lines.iter().try_for_each(|line| output::line(line))?;
        Ok(())
    }
}

/// The cluster's name, and what every region says of itself.
pub(super) async fn regions(global: &Global) -> Result<(String, Vec<v1::RegionStatus>), Failure> {
    let first = global.client().await?.status().await?;
    let options = Options { timeout: PATIENCE, connect_timeout: PATIENCE, retry: Retry::never(), ..global.options()? };
    let answered = first.region.unwrap_or_default();
    let asked = first.regions.iter().map(|at| async {
        if at.region == answered.region { answered.clone() } else { ask(at, options.clone()).await }
    });
    Ok((first.cluster, futures::future::join_all(asked).await))
}

async fn ask(at: &v1::RegionEndpoint, options: Options) -> v1::RegionStatus {
    let asked = async {
        let client = Client::connect_with(&at.endpoint, options).await?;
        client.status().await
    };
    let unreachable = |cause: String| v1::RegionStatus {
        region: at.region.clone(),
        endpoint: at.endpoint.clone(),
        state: RegionState::Unreachable.into(),
        cause,
        ..v1::RegionStatus::default()
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(v1::StatusResponse { region: Some(region), .. })) if region.region == at.region => region,
        Ok(Ok(_)) => unreachable("another region answers there".to_owned()),
        Ok(Err(error)) => unreachable(error.message),
        Err(_) => unreachable(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// `SERVING`, as DESIGN's JSON names it, of `REGION_STATE_SERVING`.
fn state(region: &v1::RegionStatus) -> &'static str {
    region.state().as_str_name().trim_start_matches("REGION_STATE_")
}

fn peer_state(peer: &v1::PeerStatus) -> &'static str {
    peer.state().as_str_name().trim_start_matches("PEER_STATE_")
}

fn json_of(cluster: &str, regions: &[v1::RegionStatus]) -> String {
    json!({ "cluster": cluster, "regions": regions.iter().map(region_json).collect::<Vec<_>>() }).to_string()
}

fn region_json(region: &v1::RegionStatus) -> Json {
    let reached = region.state() != RegionState::Unreachable;
    let known = |value: Json| if reached { value } else { Json::Null };
    json!({
        "region": region.region,
        "endpoint": region.endpoint,
        "state": state(region),
        "cause": region.cause,
        "records": known(region.records.into()),
        "digest": region.digest,
        "conflicts": known(region.conflicts.into()),
        "conflicts_open": known(region.conflicts_open.into()),
        "keyspaces": region.keyspaces.iter().map(keyspace_json).collect::<Vec<_>>(),
        "peers": region.peers.iter().map(peer_json).collect::<Vec<_>>(),
        "incarnation": region.incarnation,
        "version": region.version,
        "config_hash": region.config_hash,
        "log_bytes": known(region.log_bytes.into()),
        "view_bytes": known(region.view_bytes.into()),
        "overlay_bytes": known(region.overlay_bytes.into()),
        "metadata": region.metadata.as_ref().map(metadata_json),
        "keyspaces_purging": known(region.keyspaces_purging.into()),
        "holders_changing": region.holders_changing.iter().map(holder_json).collect::<Vec<_>>(),
    })
}

fn metadata_json(metadata: &v1::MetadataStatus) -> Json {
    json!({
        "revision": metadata.revision,
        "leader": Some(&metadata.leader).filter(|leader| !leader.is_empty()),
        "has_majority": metadata.has_majority,
    })
}

fn keyspace_json(keyspace: &v1::KeyspaceStatus) -> Json {
    json!({ "name": keyspace.name, "id": keyspace.id, "records": keyspace.records, "digest": keyspace.digest })
}

fn holder_json(change: &v1::HolderChange) -> Json {
    json!({ "keyspace": change.keyspace, "region": change.region, "step": output::holder_step(change.step()) })
}

/// What the newest metadata says that any region knows: the others have not heard of it yet.
fn holder_lines(regions: &[v1::RegionStatus]) -> Vec<String> {
    let revision = |region: &&v1::RegionStatus| region.metadata.as_ref().map_or(0, |metadata| metadata.revision);
    let Some(newest) = regions.iter().max_by_key(revision) else { return Vec::new() };
    let line = |change: &v1::HolderChange| {
        format!("\nkeyspace {}: {}", change.keyspace, output::holder_doing(&change.region, change.step()))
    };
    newest.holders_changing.iter().map(line).collect()
}

fn peer_json(peer: &v1::PeerStatus) -> Json {
    json!({
        "region": peer.region,
        "state": peer_state(peer),
        "lag_seconds": peer.lag_seconds,
        "lag_bytes": peer.lag_bytes,
        "egress_bytes": peer.egress_bytes,
        "connected": peer.connected,
        "last_error": peer.last_error,
        "quarantined": peer.quarantined,
        "quarantine_reason": peer.quarantine_reason,
        "shipments": peer.shipments.iter().map(shipment_json).collect::<Vec<_>>(),
    })
}

fn shipment_json(shipment: &v1::ShipmentStatus) -> Json {
    json!({
        "keyspace": shipment.keyspace,
        "keys_waiting": shipment.keys_waiting,
        "oldest_seconds": seconds(shipment.oldest),
        "next_in_seconds": seconds(shipment.next_in),
    })
}

fn seconds(span: Option<prost_types::Duration>) -> f64 {
    span.map_or(0.0, |span| span.seconds as f64 + f64::from(span.nanos) / 1e9)
}

fn shipment_rows(regions: &[v1::RegionStatus]) -> Vec<[String; 6]> {
    let rows = regions.iter().flat_map(|region| region.peers.iter().map(move |peer| (region, peer)));
    let rows = rows.flat_map(|(region, peer)| peer.shipments.iter().map(move |shipment| (region, peer, shipment)));
    let row = |(region, peer, shipment): (&v1::RegionStatus, &v1::PeerStatus, &v1::ShipmentStatus)| {
        let whole = |span| isle_model::span::show(Duration::from_secs(seconds(span).round() as u64));
        [
            shipment.keyspace.clone(),
            region.region.clone(),
            peer.region.clone(),
            shipment.keys_waiting.map_or("?".to_owned(), |keys| keys.to_string()),
            whole(shipment.oldest),
            whole(shipment.next_in),
        ]
    };
    rows.map(row).collect()
}

fn table(cluster: &str, regions: &[v1::RegionStatus]) -> Vec<String> {
    let mut lines = vec![format!("cluster {cluster}"), String::new()];
    let head = ["region", "state", "records", "digest", "conflicts", "log", "endpoint"];
    let rows = regions.iter().map(region_row);
    lines.extend(columns(std::iter::once(head.map(str::to_owned)).chain(rows).collect()));
    lines.push(String::new());
    let head = ["from", "to", "state", "lag", "behind", "sent"];
    let rows = regions.iter().flat_map(|region| region.peers.iter().map(|peer| peer_row(region, peer)));
    lines.extend(columns(std::iter::once(head.map(str::to_owned)).chain(rows).collect()));
    let shipments = shipment_rows(regions);
    if !shipments.is_empty() {
        lines.push(String::new());
        let head = ["keyspace", "from", "to", "keys waiting", "oldest", "ships in"];
        lines.extend(columns(std::iter::once(head.map(str::to_owned)).chain(shipments).collect()));
    }
    for region in regions {
        let metadata = region.metadata.as_ref().filter(|metadata| !metadata.has_majority);
        lines.extend(metadata.map(|metadata| {
            let known = metadata.revision;
            format!("\n{}: hears no majority; it serves by the metadata it knows (revision {known}), which cannot be changed now", region.region)
        }));
    }
    lines.extend(holder_lines(regions));
    for region in regions.iter().filter(|region| region.keyspaces_purging > 0) {
        lines.push(format!("\n{}: keyspaces being purged: {}", region.region, region.keyspaces_purging));
    }
    for region in regions.iter().filter(|region| !region.cause.is_empty()) {
        lines.push(format!("\n{}: {}", region.region, region.cause));
    }
    lines
}

fn region_row(region: &v1::RegionStatus) -> [String; 7] {
    let reached = region.state() != RegionState::Unreachable;
    let known = |value: String| if reached { value } else { "?".to_owned() };
    // Half of a digest is enough for eyes; programs get it whole.
    let digest = region.digest.as_ref().map_or("?".to_owned(), |digest| digest.chars().take(16).collect());
    [
        region.region.clone(),
        state(region).to_owned(),
        known(region.records.to_string()),
        digest,
        known(region.conflicts.to_string()),
        known(show_size(region.log_bytes)),
        region.endpoint.clone(),
    ]
}

fn peer_row(region: &v1::RegionStatus, peer: &v1::PeerStatus) -> [String; 6] {
    [
        region.region.clone(),
        peer.region.clone(),
        peer_state(peer).to_owned(),
        format!("{:.1} s", peer.lag_seconds),
        show_size(peer.lag_bytes),
        show_size(peer.egress_bytes),
    ]
}

/// Rows in columns as wide as their widest cell.
pub(super) fn columns<const N: usize>(rows: Vec<[String; N]>) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_that_does_not_answer_knows_nothing() {
        let region = v1::RegionStatus {
            region: "eu".to_owned(),
            state: RegionState::Unreachable.into(),
            ..v1::RegionStatus::default()
        };
        let shown = region_json(&region);
        assert_eq!((&shown["state"], &shown["records"]), (&json!("UNREACHABLE"), &Json::Null));
        assert!(shown["digest"].is_null());
    }

    #[test]
    fn a_purge_that_is_under_way_is_shown_and_none_is_not() {
        let region = |keyspaces_purging| v1::RegionStatus {
            region: "eu".to_owned(),
            state: RegionState::Serving.into(),
            keyspaces_purging,
            ..v1::RegionStatus::default()
        };
        let tells = |purging| table("c", &[region(purging)]).iter().any(|line| line.ends_with("being purged: 2"));
        assert!(tells(2) && !tells(0));
        assert_eq!(region_json(&region(2))["keyspaces_purging"], json!(2));
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![["a".to_owned(), "bb".to_owned()], ["ccc".to_owned(), "d".to_owned()]];
        assert_eq!(columns(rows), ["a    bb", "ccc  d"]);
    }
}
