//! The scheduler's locks and threads, with the signatures of the operating system's that the store uses.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

pub(crate) use shuttle::thread::JoinHandle;

thread_local! {
    /// A bug that is put in: a wait lets go of its lock before it is known to wait, and what is told in between is lost. All
    /// threads of a schedule run on one of the operating system's.
    static LOSES_WAKE_UPS: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn lose_wake_ups(lose: bool) {
    LOSES_WAKE_UPS.set(lose);
}

pub(crate) fn spawn(_name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    Ok(shuttle::thread::spawn(work))
}

pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

/// `None` only while it waits.
pub(crate) struct Guard<'a, T>(&'a Mutex<T>, Option<shuttle::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        Guard(self, Some(self.0.lock().unwrap()))
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.1.as_ref().unwrap()
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.1.as_mut().unwrap()
    }
}

pub(crate) struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Condvar(shuttle::sync::Condvar::new())
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    pub(crate) fn wait<T>(&self, guard: &mut Guard<'_, T>) {
        if LOSES_WAKE_UPS.get() {
            guard.1 = None;
            shuttle::thread::yield_now();
            guard.1 = Some(guard.0.0.lock().unwrap());
        }
        let waiting = guard.1.take().unwrap();
        guard.1 = Some(self.0.wait(waiting).unwrap());
    }
}
