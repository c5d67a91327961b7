//! How far the commit log is durable, as everybody who waits for it sees it.

use std::sync::Arc;

use isle_store::LogPosition;
use tokio::sync::watch;

/// The durable mark, and why it will never move again, if so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durable {
    pub(crate) position: LogPosition,
    pub(crate) failed: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Durability {
    mark: Arc<watch::Sender<Durable>>,
}

impl Durability {
    pub(crate) fn new(position: LogPosition) -> Self {
        Durability { mark: Arc::new(watch::Sender::new(Durable { position, failed: None })) }
    }

    pub(crate) fn reached(&self, position: LogPosition) {
        self.mark.send_if_modified(|mark| {
            let moved = position > mark.position;
            mark.position = mark.position.max(position);
            moved
        });
    }

    /// Everything above the mark has an unknown outcome from now on.
    pub(crate) fn failed(&self, reason: &str) {
        self.mark.send_if_modified(|mark| {
            let first = mark.failed.is_none();
            mark.failed.get_or_insert_with(|| Arc::from(reason));
            first
        });
    }

    pub(crate) fn failure(&self) -> Option<Arc<str>> {
        self.mark.borrow().failed.clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Durable> {
        self.mark.subscribe()
    }
}

/// Waits until `position` is durable; an error is the reason why it may never be.
pub(crate) async fn until_durable(mark: &mut watch::Receiver<Durable>, position: LogPosition) -> Result<(), Arc<str>> {
    let settled = mark.wait_for(|now| now.position >= position || now.failed.is_some()).await;
    match settled {
        Ok(now) if now.position >= position => Ok(()),
        Ok(now) => Err(now.failed.clone().unwrap_or_else(|| Arc::from("the commit log has failed"))),
        Err(_) => Err(Arc::from("the node has stopped")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_durable_before_a_failure_stays_so() {
        let durability = Durability::new(LogPosition(0));
        durability.reached(LogPosition(8));
        durability.failed("no such luck");
        let mut mark = durability.subscribe();
        assert_eq!(until_durable(&mut mark, LogPosition(8)).await, Ok(()));
        assert_eq!(until_durable(&mut mark, LogPosition(9)).await, Err(Arc::from("no such luck")));
    }
}
