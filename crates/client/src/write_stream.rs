//! Writes in a burst, without waiting for one before sending the next.

use isle_proto::v1;
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::client::outcomes;
use crate::{Error, Written};

/// The sending half. Dropping it tells the server that no more will come.
pub struct WriteStream {
    pub(crate) requests: mpsc::Sender<v1::WriteRequest>,
    pub(crate) sequence: u64,
}

/// The receiving half: has to be read while the other one sends.
pub struct Results {
    pub(crate) responses: Streaming<v1::WriteResponse>,
    pub(crate) header: Option<v1::ResponseHeader>,
}

impl WriteStream {
    /// Sends operations and returns the number of the first. Waits while the server is busy. `None` once the stream is
    /// broken; `Results` says why.
    pub async fn send(&mut self, operations: Vec<v1::WriteOperation>, keyspace: &str) -> Option<u64> {
        let sequence = self.sequence;
        self.sequence += operations.len() as u64;
        let keyspace = keyspace.to_owned();
        let request = v1::WriteRequest { sequence, operations, keyspace, omit_versions: true };
        self.requests.send(request).await.ok().map(|()| sequence)
    }
}

impl Results {
    /// The number of the first operation answered, and what became of it and those behind it. `None` at the end.
    pub async fn next(&mut self) -> Result<Option<(u64, Vec<Result<Written, Error>>)>, Error> {
        let Some(response) = self.responses.message().await.map_err(|status| Error::of_status(&status))? else {
            return Ok(None);
        };
        if response.header.is_some() {
            self.header = response.header;
        }
        Ok(Some((response.sequence, outcomes(response.results, self.header.as_ref()))))
    }
}
