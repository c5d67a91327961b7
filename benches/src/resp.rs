//! RESP, the protocol of Redis and KeyDB, as far as the benchmark speaks it.
//!
//! It is written out here and not taken from a client library, since client and server share the machine: what a full client spends
//! on each command would be charged to Redis.

use bytes::{Buf, Bytes, BytesMut};
use isle_load::target::Fault;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BUFFER_BYTES: usize = 16 << 10;

/// One answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`, and numbers.
    Done,
    Value(Bytes),
    Nothing,
    Error(String),
}

/// One connection: commands are written into a buffer and sent together.
pub struct Connection {
    stream: TcpStream,
    outgoing: Vec<u8>,
    incoming: BytesMut,
}

impl Connection {
    pub async fn open(address: &str) -> Result<Connection, Fault> {
        let unreachable = |error: std::io::Error| Fault::Unreachable(format!("{address}: {error}"));
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        Ok(Connection { stream, outgoing: Vec::new(), incoming: BytesMut::with_capacity(BUFFER_BYTES) })
    }

    pub fn command(&mut self, parts: &[&[u8]]) {
        encode(&mut self.outgoing, parts);
    }

    pub async fn send(&mut self) -> Result<(), Fault> {
        let sent = self.stream.write_all(&self.outgoing).await;
        self.outgoing.clear();
        sent.map_err(|error| Fault::Unreachable(error.to_string()))
    }

    pub async fn reply(&mut self) -> Result<Reply, Fault> {
        loop {
            if let Some(reply) = decode(&mut self.incoming)? {
                return Ok(reply);
            }
            self.incoming.reserve(BUFFER_BYTES);
            let read = self.stream.read_buf(&mut self.incoming).await;
            if read.map_err(|error| Fault::Unreachable(error.to_string()))? == 0 {
                return Err(Fault::Unreachable("the connection was closed".to_owned()));
            }
        }
    }

    pub async fn call(&mut self, parts: &[&[u8]]) -> Result<Reply, Fault> {
        self.command(parts);
        self.send().await?;
        self.reply().await
    }
}

fn encode(outgoing: &mut Vec<u8>, parts: &[&[u8]]) {
    let length = |outgoing: &mut Vec<u8>, sign: u8, length: usize| {
        outgoing.push(sign);
        outgoing.extend_from_slice(length.to_string().as_bytes());
        outgoing.extend_from_slice(b"\r\n");
    };
    length(outgoing, b'*', parts.len());
    for part in parts {
        length(outgoing, b'$', part.len());
        outgoing.extend_from_slice(part);
        outgoing.extend_from_slice(b"\r\n");
    }
}

/// Takes one whole answer, or nothing as long as it has not come.
fn decode(incoming: &mut BytesMut) -> Result<Option<Reply>, Fault> {
    let Some(end) = incoming.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = String::from_utf8_lossy(&incoming[..end]).into_owned();
    let (kind, text) = line.split_at_checked(1).ok_or_else(|| malformed(&line))?;
    let reply = match kind {
        "+" | ":" => Reply::Done,
        "-" => Reply::Error(text.to_owned()),
        "$" if text == "-1" => Reply::Nothing,
        "$" => {
            let length: usize = text.parse().map_err(|_| malformed(&line))?;
            if incoming.len() < end + 2 + length + 2 {
                return Ok(None);
            }
            incoming.advance(end + 2);
            let value = incoming.split_to(length).freeze();
            incoming.advance(2);
            return Ok(Some(Reply::Value(value)));
        }
        _ => return Err(malformed(&line)),
    };
    incoming.advance(end + 2);
    Ok(Some(reply))
}

fn malformed(line: &str) -> Fault {
    Fault::Refused(format!("{line:?} is no answer that the benchmark understands"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut outgoing = Vec::new();
        encode(&mut outgoing, &[b"SET", b"k", b"a\r\nb"]);
        assert_eq!(outgoing, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n");
    }

    #[test]
    fn answers_are_taken_whole_however_they_come() {
        let wire = b"+OK\r\n$-1\r\n-ERR full\r\n:7\r\n$4\r\na\r\nb\r\n";
        let mut incoming = BytesMut::new();
        let mut replies = Vec::new();
        for byte in wire {
            incoming.extend_from_slice(&[*byte]);
            while let Some(reply) = decode(&mut incoming).unwrap() {
                replies.push(reply);
            }
        }
        let value = Reply::Value(Bytes::from_static(b"a\r\nb"));
        let error = Reply::Error("ERR full".to_owned());
        assert_eq!(replies, [Reply::Done, Reply::Nothing, error, Reply::Done, value]);
        assert!(incoming.is_empty());
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(decode(&mut BytesMut::from(&b"?\r\n"[..])).is_err());
        assert!(decode(&mut BytesMut::from(&b"$x\r\n"[..])).is_err());
        assert!(decode(&mut BytesMut::from(&b"\r\n"[..])).is_err());
    }
}
