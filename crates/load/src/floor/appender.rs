//! Group commit at its barest. Requests put their bytes into a buffer; one thread takes the buffer, writes it, syncs the file, and
//! answers everybody whose bytes were in it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{mpsc, oneshot};

/// Zeros are written ahead in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

type Waiters = Vec<oneshot::Sender<Result<(), String>>>;

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    waiters: Waiters,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

pub struct Appender {
    queue: Arc<Queue>,
}

impl Appender {
    pub fn open(path: &Path, file_bytes: u64) -> io::Result<Appender> {
        let file = preallocated(path, file_bytes)?;
        let queue = Arc::new(Queue::default());
        let (synced, answers) = mpsc::unbounded_channel();
        tokio::spawn(answer(answers));
        let log = Log { file, file_bytes, at: 0, queue: queue.clone() };
        #[allow(clippy::disallowed_methods, reason = "fdatasync blocks, and the floor is never simulated")]
        std::thread::Builder::new().name("floor-sync".to_owned()).spawn(move || log.run(&synced))?;
        Ok(Appender { queue })
    }

    /// Appends what `encode` writes. The reply comes once it is synced.
    pub fn append(&self, encode: impl FnOnce(&mut Vec<u8>)) -> oneshot::Receiver<Result<(), String>> {
        let (waiter, reply) = oneshot::channel();
        let mut waiting = self.queue.waiting.lock();
        encode(&mut waiting.bytes);
        waiting.waiters.push(waiter);
        // The thread sleeps only while nothing waits: whoever comes first wakes it.
        if waiting.waiters.len() == 1 {
            self.queue.filled.notify_one();
        }
        reply
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.queue.waiting.lock().closed = true;
        self.queue.filled.notify_one();
    }
}

/// Answers from inside the runtime: woken from another thread one by one, a batch of 256 would cost 256 wake-ups.
async fn answer(mut answers: mpsc::UnboundedReceiver<(Waiters, Result<(), String>)>) {
    while let Some((waiters, synced)) = answers.recv().await {
        for waiter in waiters {
            // Whoever has gone away does not want to know.
            let _ = waiter.send(synced.clone());
        }
    }
}

struct Log {
    file: File,
    file_bytes: u64,
    at: u64,
    queue: Arc<Queue>,
}

impl Log {
    fn run(mut self, synced: &mpsc::UnboundedSender<(Waiters, Result<(), String>)>) {
        let mut bytes = Vec::new();
        loop {
            let Some(waiters) = self.take(&mut bytes) else { return };
            let result = self.write(&bytes).map_err(|error| error.to_string());
            bytes.clear();
            if synced.send((waiters, result)).is_err() {
                return;
            }
        }
    }

    /// All that waits. `bytes` is handed back as the next buffer, so that none is allocated twice.
    fn take(&self, bytes: &mut Vec<u8>) -> Option<Waiters> {
        let mut waiting = self.queue.waiting.lock();
        while waiting.waiters.is_empty() {
            if waiting.closed {
                return None;
            }
            self.queue.filled.wait(&mut waiting);
        }
        std::mem::swap(&mut waiting.bytes, bytes);
        Some(std::mem::take(&mut waiting.waiters))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.at + bytes.len() as u64 > self.file_bytes {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        self.file.sync_data()
    }
}

/// Written ahead, so that a sync moves data alone and no metadata, as isle's log segments are.
fn preallocated(path: &Path, file_bytes: u64) -> io::Result<File> {
    let mut file = File::create(path)?;
    let zeros = vec![0; PIECE_BYTES];
    let mut left = file_bytes;
    while left > 0 {
        let piece = left.min(PIECE_BYTES as u64);
        file.write_all(&zeros[..piece as usize])?;
        left -= piece;
    }
    file.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn what_is_answered_is_in_the_file_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("floor");
        let appender = Appender::open(&path, 1 << 10).unwrap();
        let first = appender.append(|bytes| bytes.extend(b"one "));
        let second = appender.append(|bytes| bytes.extend(b"two "));
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(b"one two "));
    }

    #[tokio::test]
    async fn the_file_does_not_grow() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("floor");
        let appender = Appender::open(&path, 1 << 10).unwrap();
        for _ in 0..40 {
            appender.append(|bytes| bytes.extend([7; 100])).await.unwrap().unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 10);
    }
}
