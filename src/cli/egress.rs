//! What regions have sent each other since they started, by keyspace and cause, and what it cost.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use isle_client::v1;
use serde_json::json;

use super::status::{columns, regions};
use super::{Failure, Global};
use crate::output;
use crate::units::show_size;

const GB: f64 = 1e9;

#[derive(Args)]
pub struct Egress {
    /// What to add up; by all three where it is not given
    #[arg(long, value_enum, value_name = "WHAT")]
    by: Option<By>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// From which region to which
    Link,
    Keyspace,
    /// delta, warm, state, forward, metadata, heartbeat, transport
    Cause,
}

/// From, to, keyspace, cause: empty where that is added up.
type Place = [String; 4];

#[derive(Clone, Copy, Default)]
struct Sum {
    bytes: u64,
    /// Not a number where some of it has no price.
    usd: f64,
}

impl Egress {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let (_, regions) = regions(global).await?;
        let rows = rows(&regions, self.by);
        let lines: Vec<String> = if global.is_json() { rows.iter().map(json_of).collect() } else { table(&rows) };
        lines.iter().try_for_each(|line| output::line(line))?;
        Ok(())
    }
}

fn rows(regions: &[v1::RegionStatus], by: Option<By>) -> BTreeMap<Place, Sum> {
    let mut rows: BTreeMap<Place, Sum> = BTreeMap::new();
    for region in regions {
        for peer in &region.peers {
            let price = peer.egress_usd_per_gb.unwrap_or(f64::NAN);
            for row in &peer.egress {
                let kept =
                    |of: By, text: &str| if by.is_none_or(|by| by == of) { text.to_owned() } else { String::new() };
                let place = [
                    kept(By::Link, &region.region),
                    kept(By::Link, &peer.region),
                    kept(By::Keyspace, &row.keyspace),
                    kept(By::Cause, &row.cause),
                ];
                let sum = rows.entry(place).or_default();
                sum.bytes += row.bytes;
                sum.usd += row.bytes as f64 / GB * price;
            }
        }
    }
    rows
}

fn json_of(([from, to, keyspace, cause], sum): (&Place, &Sum)) -> String {
    let named = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    json!({
        "from": named(from),
        "to": named(to),
        "keyspace": named(keyspace),
        "cause": named(cause),
        "bytes": sum.bytes,
        "usd": Some(sum.usd).filter(|usd| usd.is_finite()),
    })
    .to_string()
}

fn table(rows: &BTreeMap<Place, Sum>) -> Vec<String> {
    let head = ["from", "to", "keyspace", "cause", "sent", "USD"].map(str::to_owned);
    let shown = |usd: f64| if usd.is_finite() { format!("{usd:.4}") } else { "?".to_owned() };
    let row = |([from, to, keyspace, cause], sum): (&Place, &Sum)| {
        [from.clone(), to.clone(), keyspace.clone(), cause.clone(), show_size(sum.bytes), shown(sum.usd)]
    };
    let all =
        rows.values().fold(Sum::default(), |all, sum| Sum { bytes: all.bytes + sum.bytes, usd: all.usd + sum.usd });
    let total = [String::new(), String::new(), String::new(), "all".to_owned(), show_size(all.bytes), shown(all.usd)];
    columns(std::iter::once(head).chain(rows.iter().map(row)).chain([total]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(price: Option<f64>) -> v1::RegionStatus {
        let row = |keyspace: &str, cause: &str, bytes| v1::EgressStatus {
            keyspace: keyspace.to_owned(),
            cause: cause.to_owned(),
            bytes,
        };
        let peer = v1::PeerStatus {
            region: "us".to_owned(),
            egress: vec![row("carts", "delta", 3_000_000_000), row("", "transport", 1_000_000_000)],
            egress_usd_per_gb: price,
            ..v1::PeerStatus::default()
        };
        v1::RegionStatus { region: "eu".to_owned(), peers: vec![peer], ..v1::RegionStatus::default() }
    }

    #[test]
    fn what_is_asked_for_is_added_up_and_priced() {
        let rows = rows(&[region(Some(0.02)), region(Some(0.02))], Some(By::Keyspace));
        let carts = rows[&[String::new(), String::new(), "carts".to_owned(), String::new()]];
        assert_eq!(carts.bytes, 6_000_000_000);
        assert!((carts.usd - 0.12).abs() < 1e-9, "{}", carts.usd);
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn what_has_no_price_costs_nobody_knows_what() {
        let rows = rows(&[region(None)], None);
        assert!(table(&rows).iter().skip(1).all(|line| line.ends_with('?')));
        assert!(json_of(rows.iter().next().expect("there are rows")).contains("\"usd\":null"));
    }
}
