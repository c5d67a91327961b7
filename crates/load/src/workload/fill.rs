//! Puts records into a store by the fastest way that it has. Not measured for its own sake: what comes after it is.

use std::sync::Arc;

use indicatif::ProgressBar;

use super::burst::Batches;
use crate::BenchError;
use crate::drive::{self, Load};
use crate::options::{LoadOptions, Mode};
use crate::pace::Pace;
use crate::record::Records;
use crate::recorder::Measured;
use crate::target::{Fault, Target};

/// The fastest first, with how much travels at once: lanes and writes a call.
const WAYS: [(Mode, usize, usize); 3] = [(Mode::Batched, 8, 100), (Mode::Pipelined, 32, 16), (Mode::Unary, 256, 1)];

/// The records [0, count) behind the seed's first number.
pub async fn fill(
    target: &Arc<dyn Target>,
    options: &LoadOptions,
    count: u64,
    bar: &ProgressBar,
) -> Result<Measured, BenchError> {
    bar.set_length(count);
    for (mode, in_flight, batch) in WAYS {
        let first = options.first_number();
        let records = Records::new(options.shape(), options.seed);
        let steps = Box::new(Batches { records, next: first, end: first + count, mode, batch });
        let mut lanes = target.lanes(in_flight, options.connections).await?;
        let load = Load { steps, pace: Pace::Closed, bar: bar.clone() };
        match drive::calls(&mut lanes, load).await {
            Err(Fault::Unsupported { .. }) => {}
            Ok(measured) if measured.refused > 0 => {
                let reason = measured.reason.unwrap_or_default();
                return Err(Fault::Refused(format!("{} writes of the load phase: {reason}", measured.refused)).into());
            }
            done => return Ok(done?),
        }
    }
    Err(target.has_no("way to be filled").into())
}
