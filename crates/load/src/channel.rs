//! gRPC connections as the load uses them: the same for every target that speaks gRPC.

use std::time::Duration;

use futures::future::try_join_all;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::target::Fault;

/// Wide enough that flow control never paces a burst on one machine; what bounds a run is what it keeps in flight.
const WINDOW_BYTES: u32 = 8 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Some connections to one endpoint, handed out in turn.
pub struct Spread {
    channels: Vec<Channel>,
}

impl Spread {
    pub async fn connect(endpoint: &str, connections: usize) -> Result<Spread, Fault> {
        let unreachable = |error: tonic::transport::Error| Fault::Unreachable(format!("{endpoint}: {error}"));
        let endpoint = Endpoint::from_shared(endpoint.to_owned())
            .map_err(unreachable)?
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let channels = try_join_all((0..connections.max(1)).map(|_| endpoint.connect())).await.map_err(unreachable)?;
        Ok(Spread { channels })
    }

    pub fn take(&self, count: usize) -> impl Iterator<Item = Channel> + '_ {
        self.channels.iter().cycle().take(count).cloned()
    }
}

pub fn refused(status: &Status) -> Fault {
    Fault::Refused(format!("{:?}: {}", status.code(), status.message()))
}
