//! When operations begin.
//!
//! In a closed loop the next begins when one before it is answered: a slow store is asked less. In an open loop they begin at a
//! constant rate, as the requests of many users do, and what a store answers late counts from when it should have begun. Leaving
//! that out (coordinated omission) hides exactly the stalls that users feel.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Between two looks at what has become due. Shorter ones would cost the server its processor.
const TICK: Duration = Duration::from_micros(200);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Pace {
    #[default]
    Closed,
    Open {
        per_second: f64,
    },
}

impl Pace {
    /// When the operation of this number should begin; `None` in a closed loop.
    pub fn due(self, began: Instant, number: u64) -> Option<Instant> {
        match self {
            Pace::Closed => None,
            Pace::Open { per_second } => Some(began + Duration::from_secs_f64(number as f64 / per_second)),
        }
    }

    /// How many should have begun by now.
    pub fn arrived(self, began: Instant, now: Instant) -> u64 {
        match self {
            Pace::Closed => u64::MAX,
            Pace::Open { per_second } => 1 + (now.saturating_duration_since(began).as_secs_f64() * per_second) as u64,
        }
    }
}

/// A clock that ticks finer than the runtime's, whose timers are a millisecond apart: that would be added to every latency. So a
/// thread of its own sleeps.
pub struct Ticker {
    ticked: Arc<Notify>,
}

impl Ticker {
    #[allow(clippy::disallowed_methods, reason = "the load is the front door: it is never simulated")]
    pub fn start() -> io::Result<Ticker> {
        let ticked = Arc::new(Notify::new());
        let listener = Arc::downgrade(&ticked);
        let tick = move || {
            while let Some(ticked) = listener.upgrade() {
                ticked.notify_one();
                std::thread::sleep(TICK);
            }
        };
        std::thread::Builder::new().name("pace".to_owned()).spawn(tick)?;
        Ok(Ticker { ticked })
    }

    pub async fn tick(&self) {
        self.ticked.notified().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn arrivals_are_evenly_spaced() {
        let began = Instant::now();
        let pace = Pace::Open { per_second: 4.0 };
        assert_eq!(pace.due(began, 0), Some(began));
        assert_eq!(pace.due(began, 6), Some(began + Duration::from_millis(1_500)));
        for number in 0..10 {
            let due = pace.due(began, number).unwrap();
            assert_eq!(pace.arrived(began, due), number + 1);
        }
    }

    #[tokio::test]
    async fn ticks_are_shorter_than_a_millisecond() {
        let ticker = Ticker::start().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let began = Instant::now();
            for _ in 0..50 {
                ticker.tick().await;
            }
            let took = began.elapsed();
            assert!(took >= TICK * 40);
            // 50 ticks are 10 ms, which timers of the runtime can never do: they take 50 at least. A busy machine gets time to be quick.
            if took < Duration::from_millis(40) {
                return;
            }
            assert!(Instant::now() < deadline, "50 ticks take {took:?} at best");
        }
    }
}
