//! Ctrl-C and SIGTERM: the first asks to stop, the second does not ask.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Failure;

/// What the shell shows of a process that Ctrl-C ended.
const KILLED: i32 = 130;

/// True from the first signal on.
pub fn stop() -> Result<watch::Receiver<bool>, Failure> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        for asked_before in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if asked_before {
                std::process::exit(KILLED);
            }
            stop.send_replace(true);
        }
    });
    Ok(stopped)
}
