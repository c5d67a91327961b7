//! The newest entries, in memory, so that whoever follows the log closely reads no file. Bounded in bytes.

use std::collections::VecDeque;

use super::{Entry, LogPosition};

/// What an entry costs besides its payload.
const OVERHEAD: usize = 96;

pub(crate) struct Recent {
    /// Every entry that ends above is here.
    floor: LogPosition,
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub(crate) fn new(floor: LogPosition, bytes_max: usize) -> Self {
        Self { floor, entries: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.bytes += cost(&entry);
        self.entries.push_back(entry);
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= cost(&oldest);
            self.floor = oldest.end;
        }
    }

    /// The entries after a position and up to another, at least one if there is one; `None` if some are here no longer.
    pub(crate) fn read(&self, after: LogPosition, upto: LogPosition, bytes_max: usize) -> Option<Vec<Entry>> {
        if after < self.floor {
            return None;
        }
        let first = self.entries.partition_point(|entry| entry.end <= after);
        let mut bytes = 0;
        let mut out = Vec::new();
        for entry in self.entries.range(first..).take_while(|entry| entry.end <= upto) {
            out.push(entry.clone());
            bytes += entry.payload.len();
            if bytes >= bytes_max {
                break;
            }
        }
        Some(out)
    }
}

fn cost(entry: &Entry) -> usize {
    entry.payload.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn entry(end: u64) -> Entry {
        let (start, end) = (LogPosition(end - 10), LogPosition(end));
        Entry { start, end, incarnation: 1, payload: Bytes::from_static(b"0123") }
    }

    #[test]
    fn it_forgets_the_oldest_and_says_so() {
        let mut recent = Recent::new(LogPosition(0), 3 * (4 + OVERHEAD));
        for end in [10, 20, 30] {
            recent.push(entry(end));
        }
        let read = |recent: &Recent, after, upto, bytes_max| {
            let entries = recent.read(LogPosition(after), LogPosition(upto), bytes_max)?;
            Some(entries.iter().map(|entry| entry.end.0).collect::<Vec<_>>())
        };
        assert_eq!(read(&recent, 0, 99, 99), Some(vec![10, 20, 30]));
        recent.push(entry(40));
        assert_eq!(read(&recent, 0, 99, 99), None);
        assert_eq!(read(&recent, 10, 99, 99), Some(vec![20, 30, 40]));
        assert_eq!(read(&recent, 15, 39, 99), Some(vec![20, 30]));
        assert_eq!(read(&recent, 10, 99, 1), Some(vec![20]));
        assert_eq!(read(&recent, 40, 99, 99), Some(vec![]));
    }
}
