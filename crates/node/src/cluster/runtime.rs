//! openraft's tasks, timers and chance: tokio's, with an rng of the node's seed, and every task owned by a scope.
//! openraft meets what cannot be, a disk that lied, by a panic: it stays within its task.
//!
//! openraft calls its runtime by type, without a value. What belongs to one node therefore travels with its tasks, as a task-local.

use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use openraft::AsyncRuntime;
use openraft::async_runtime::TokioOneShotSender;
use parking_lot::Mutex;
use rand::RngCore as _;
use rand::rngs::StdRng;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

tokio::task_local! {
    static SCOPE: Arc<Scope>;
}

struct Scope {
    rng: Mutex<StdRng>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// Owns what one run of openraft has started: dropped, it ends all of it.
pub(crate) struct Owner(Arc<Scope>);

impl Owner {
    pub(crate) fn new(rng: StdRng) -> Owner {
        Owner(Arc::new(Scope { rng: Mutex::new(rng), tasks: Mutex::default() }))
    }

    /// What the future starts is owned here, draws from this rng, and so on for what that starts.
    pub(crate) async fn own<F: Future>(&self, future: F) -> F::Output {
        SCOPE.scope(self.0.clone(), future).await
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.tasks.lock().drain(..).for_each(|task| task.abort());
    }
}

/// Why a task has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("panicked: {0}")]
    Panicked(String),
    #[error("was ended")]
    Aborted,
}

pub(crate) struct Task<T>(JoinHandle<Result<T, Box<dyn Any + Send>>>);

impl<T> Future for Task<T> {
    type Output = Result<T, Ended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match ready!(self.0.poll_unpin(context)) {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(panic)) => Err(Ended::Panicked(words(&*panic))),
            Err(_) => Err(Ended::Aborted),
        })
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it did not say why".to_owned())
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SeededRuntime;

/// Draws for openraft, whose `rand` is an older one than ours.
pub(crate) struct ScopedRng(Arc<Scope>);

impl rand_core::RngCore for ScopedRng {
    fn next_u32(&mut self) -> u32 {
        self.0.rng.lock().next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        self.0.rng.lock().next_u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.rng.lock().fill_bytes(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl fmt::Debug for ScopedRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScopedRng")
    }
}

impl AsyncRuntime for SeededRuntime {
    type JoinError = Ended;
    type JoinHandle<T: Send + 'static> = Task<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = Instant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = tokio::time::Timeout<T>;
    type ThreadLocalRng = ScopedRng;
    type OneshotSender<T: Send> = TokioOneShotSender<T>;
    type OneshotReceiver<T: Send> = oneshot::Receiver<T>;
    type OneshotReceiverError = oneshot::error::RecvError;

    fn spawn<T>(future: T) -> Task<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        let scope = SCOPE.with(Arc::clone);
        let task = tokio::spawn(AssertUnwindSafe(SCOPE.scope(scope.clone(), future)).catch_unwind());
        let mut tasks = scope.tasks.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.abort_handle());
        Task(task)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Instant) -> Self::Sleep {
        tokio::time::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Instant, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(deadline, future)
    }

    fn is_panic(error: &Ended) -> bool {
        matches!(error, Ended::Panicked(_))
    }

    fn thread_rng() -> ScopedRng {
        ScopedRng(SCOPE.with(Arc::clone))
    }

    fn oneshot<T: Send>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (TokioOneShotSender(sender), receiver)
    }
}
