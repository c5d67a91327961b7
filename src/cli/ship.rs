use clap::Args;
use isle_client::Shipment;
use serde_json::json;

use super::{Failure, Global};
use crate::output;

#[derive(Args)]
pub struct Ship {
    keyspace: String,
}

impl Ship {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let shipments = global.client().await?.ship(&self.keyspace).await?;
        let line = |shipment: &Shipment| if global.is_json() { json_of(shipment) } else { told(shipment) };
        shipments.iter().try_for_each(|shipment| output::line(&line(shipment)))?;
        let open: Vec<&str> = shipments.iter().filter(|one| !one.is_done).map(|one| one.region.as_str()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let advice = "it goes on once they are reached; give --timeout to wait for longer";
        Err(anyhow::anyhow!("not there yet: {}; {advice}", open.join(", ")).into())
    }
}

fn json_of(shipment: &Shipment) -> String {
    json!({ "region": shipment.region, "keys": shipment.keys, "done": shipment.is_done }).to_string()
}

fn told(shipment: &Shipment) -> String {
    let keys = match shipment.keys {
        Some(1) => "1 key".to_owned(),
        Some(keys) => format!("{keys} keys"),
        None => "what had changed".to_owned(),
    };
    let state = if shipment.is_done { "shipped" } else { "on its way" };
    format!("{}: {keys} {state}", shipment.region)
}
