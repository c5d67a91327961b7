//! The locks and threads of what is tested under every interleaving: the operating system's here, a scheduler's in
//! `tests/interleavings`, which compiles the same sources over others.

pub(crate) use std::thread::JoinHandle;

pub(crate) use parking_lot::{Condvar, Mutex};

pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}
