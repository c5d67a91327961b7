//! What goes wrong in a run, when, and how it is put right.

use std::time::Duration;

use isle_node::NodeState;
use isle_store::LogPosition;
use isle_store::disk::Crash;
use rand::Rng;

use super::run::{PAIRS, Run};
use super::{Mix, SITES};

/// How much is left on a disk that fills up.
const ROOM_BYTES_MAX: u64 = 64 << 10;

fn has_left(state: &NodeState) -> bool {
    let NodeState::Stopped { reason } = state else { return false };
    reason.contains("has left the cluster") || reason.contains("no region of the cluster")
}

/// A node whose disk failed: its writes are to stay stopped though the disk is well again.
pub struct Failed {
    until: Duration,
    durable: LogPosition,
}

impl Run {
    pub fn fault(&mut self) {
        let (a, b) = self.pair();
        let weight = match self.mix {
            Mix::Calm => self.rng.random_range(0..30),
            Mix::Partitions => self.rng.random_range(0..80),
            Mix::Crashes | Mix::Lying | Mix::Homed | Mix::Members | Mix::Holders | Mix::Warm => {
                self.rng.random_range(0..100)
            }
            // These have faults of their own.
            Mix::Disks | Mix::Away | Mix::Restored | Mix::Cloned | Mix::WarmRestored => self.rng.random_range(0..130),
        };
        let c = SITES.len() - a - b;
        let what = match weight {
            0..20 => self.slow(a, b),
            20..30 => self.jump(),
            30..38 => self.cut(&[(a, b)]),
            38..46 => self.cut(&[(a, b), (b, a)]),
            46..50 => self.cut(&[(a, b), (b, a), (a, c), (c, a)]),
            50..53 => {
                self.world.deafen(a);
                format!("{a} and its clients are cut apart")
            }
            53..60 => {
                self.world.hold(a, b);
                format!("{a} and {b} are held apart")
            }
            60..80 => {
                self.repair_all();
                "links heal".to_owned()
            }
            80..100 => self.crash(),
            _ => match self.mix {
                Mix::Disks => self.fail_disk(a),
                Mix::Away => self.leave(a),
                Mix::Restored | Mix::WarmRestored => self.restore(),
                _ => self.clone_directory(),
            },
        };
        self.history.event(self.world.now(), &what);
    }

    fn pair(&mut self) -> (usize, usize) {
        let a = self.rng.random_range(0..SITES.len());
        let b = (a + self.rng.random_range(1..SITES.len())) % SITES.len();
        (a, b)
    }

    fn slow(&mut self, a: usize, b: usize) -> String {
        let most = if self.rng.random_bool(0.1) { 1500 } else { 250 };
        let latency = Duration::from_millis(self.rng.random_range(1..most));
        self.world.slow(a, b, latency);
        format!("{a} and {b} are {latency:?} apart")
    }

    fn jump(&mut self) -> String {
        let site = self.rng.random_range(0..SITES.len());
        let most = match (self.mix, self.rng.random_range(0..3)) {
            (Mix::Calm, _) => 200,
            (_, 0) => 3_600_000,
            _ => 60_000,
        };
        let ms = self.rng.random_range(-most..most);
        self.world.shift_clock(site, ms);
        format!("the clock of {site} is {ms} ms off")
    }

    fn cut(&mut self, directions: &[(usize, usize)]) -> String {
        for (from, to) in directions {
            self.world.cut(*from, *to);
        }
        format!("cut: {directions:?}")
    }

    fn repair_all(&mut self) {
        for (a, b) in PAIRS {
            self.world.repair(a, b);
        }
        (0..SITES.len()).for_each(|site| self.world.hear_again(site));
        self.free_disks();
    }

    fn crash(&mut self) -> String {
        let site = self.rng.random_range(0..SITES.len());
        if !self.world.is_up(site) {
            return format!("{site} is down");
        }
        let how = match (self.mix, self.rng.random_range(0..10)) {
            (Mix::Lying, 0..5) => Crash::Lying { syncs: self.rng.random_range(1..40) },
            (_, 5..7) => Crash::Process,
            (_, 7..9) => Crash::KeepSome,
            _ => Crash::KeepSynced,
        };
        let away = match self.rng.random_range(0..10) {
            0..5 => Duration::ZERO,
            5..9 => Duration::from_millis(self.rng.random_range(0..3000)),
            _ => Duration::from_secs(self.rng.random_range(3..15)),
        };
        self.end(site, how, away);
        format!("{site} crashes, {how:?}, for {away:?}")
    }

    fn end(&mut self, site: usize, how: Crash, away: Duration) {
        self.collect(site);
        self.count_states(site);
        self.world.crash(site, how);
        self.crashes += 1;
        self.failed.remove(&site);
        self.back_at.insert(site, self.world.now() + away);
    }

    /// Away for longer than it is waited for, if the others stay together.
    fn leave(&mut self, site: usize) -> String {
        if !self.world.is_up(site) {
            return format!("{site} is down");
        }
        let away = Duration::from_secs(self.rng.random_range(4..12));
        self.end(site, Crash::KeepSynced, away);
        format!("{site} leaves for {away:?}")
    }

    fn fail_disk(&mut self, site: usize) -> String {
        if !self.world.is_up(site) {
            return format!("{site} is down");
        }
        let disk = self.world.disk(site);
        match self.rng.random_range(0..4) {
            0 | 1 => {
                let room = self.rng.random_range(0..ROOM_BYTES_MAX);
                disk.set_capacity(Some(disk.used() + room));
                self.full.insert(site);
                format!("the disk of {site} has {room} bytes left")
            }
            2 => {
                disk.fail_writes(true);
                format!("the disk of {site} fails its writes")
            }
            _ => {
                disk.fail_syncs(true);
                format!("the disk of {site} fails its syncs")
            }
        }
    }

    fn free_disks(&mut self) {
        for site in std::mem::take(&mut self.full) {
            self.world.disk(site).set_capacity(None);
        }
    }

    /// Copies the victim's directory, or puts the copy in place of it.
    fn restore(&mut self) -> String {
        let site = self.victim;
        match self.copy.take() {
            None => {
                self.copy = Some(self.world.disk(site).crash(Crash::KeepSynced, &mut |_| 0));
                format!("the directory of {site} is copied")
            }
            Some(copy) if self.world.is_up(site) => {
                self.end(site, Crash::Process, Duration::ZERO);
                self.world.put_disk(site, copy);
                format!("{site} is restored from its copy")
            }
            some => {
                self.copy = some;
                format!("{site} is down")
            }
        }
    }

    /// Starts a copy of the victim's directory beside it, once.
    fn clone_directory(&mut self) -> String {
        if self.cloned || !self.world.is_up(self.victim) {
            return "nothing is cloned".to_owned();
        }
        self.cloned = true;
        let copy = self.world.disk(self.victim).crash(Crash::Process, &mut |_| 0);
        match self.world.start_clone(self.victim, copy) {
            Ok(()) => format!("a clone of {} starts", self.victim),
            Err(error) => {
                let what = format!("the clone of {} does not start: {error}", self.victim);
                self.history.violation(what.clone());
                what
            }
        }
    }

    /// Of a region and its clone the one that is refused stops, and the operator lets the other go on in the region's place.
    fn part_clones(&mut self) -> Result<(), String> {
        let Some(clone) = self.world.clone_node() else { return Ok(()) };
        let is_replaced = |state: &NodeState| match state {
            NodeState::Stopped { reason } => reason.contains("is replaced"),
            _ => false,
        };
        let original = self.world.node(self.victim).map(|node| node.status().state);
        let (ours, theirs) = (original.as_ref().is_some_and(is_replaced), is_replaced(&clone.status().state));
        // Where two regions have each refused another, both stop: the operator starts the original again.
        if ours && theirs {
            self.history.event(self.world.now(), "both the region and its clone are refused");
            self.world.end_clone();
            self.end(self.victim, Crash::Process, Duration::ZERO);
            return Ok(());
        }
        if theirs {
            self.history.event(self.world.now(), "the clone is refused");
            self.world.end_clone();
        }
        if ours {
            self.history.event(self.world.now(), "the clone goes on in its region's place");
            self.end(self.victim, Crash::Process, Duration::ZERO);
            let disk = self.world.end_clone();
            self.world.put_disk(self.victim, disk);
        }
        Ok(())
    }

    /// Starts what has been down for long enough, and what has stopped by itself, as a supervisor would.
    pub fn bring_back(&mut self) -> Result<(), String> {
        self.part_clones()?;
        let now = self.world.now();
        let due: Vec<usize> = self.back_at.iter().filter(|(_, at)| **at <= now).map(|(site, _)| *site).collect();
        for site in due {
            self.back_at.remove(&site);
            self.start(site)?;
        }
        for site in 0..SITES.len() {
            let Some(node) = self.world.node(site) else { continue };
            let state = node.status().state;
            if !matches!(state, NodeState::Stopped { .. } | NodeState::WritesStopped { .. }) {
                if self.failed.contains_key(&site) {
                    return Err(format!("region {site} writes again after its disk failed, without a restart"));
                }
                continue;
            }
            if self.mix == Mix::Members && site == self.victim && has_left(&state) {
                self.history.event(now, &format!("{site} has left; it is to join again with an empty disk: {state:?}"));
                self.collect(site);
                self.end(site, Crash::Process, Duration::ZERO);
                self.world.begin_anew(site);
                continue;
            }
            if self.mix == Mix::Disks {
                self.hold_to_failure(site, node.store().durable())?;
                continue;
            }
            if self.mix.is_honest() {
                return Err(format!("region {site} stops by itself: {state:?}"));
            }
            self.history.event(now, &format!("{site} has stopped: {state:?}"));
            self.end(site, Crash::Process, Duration::ZERO);
        }
        Ok(())
    }

    /// A node whose disk failed does nothing more, for a while with a disk that is well again; then it is restarted.
    fn hold_to_failure(&mut self, site: usize, durable: LogPosition) -> Result<(), String> {
        let now = self.world.now();
        let Some(failed) = self.failed.get(&site) else {
            let disk = self.world.disk(site);
            if !disk.is_failing() {
                return Err(format!("the writes of region {site} stop, and its disk is well"));
            }
            disk.fail_writes(false);
            disk.fail_syncs(false);
            let until = now + Duration::from_millis(self.rng.random_range(0..1500));
            self.history.event(now, &format!("{site} takes no more writes; its disk is well again"));
            self.failed.insert(site, Failed { until, durable });
            return Ok(());
        };
        if failed.durable != durable {
            return Err(format!("region {site} has synced again after a failed sync"));
        }
        if failed.until <= now {
            let how = if self.rng.random_bool(0.5) { Crash::Process } else { Crash::KeepSynced };
            self.end(site, how, Duration::ZERO);
        }
        Ok(())
    }

    pub fn heal(&mut self) -> Result<(), String> {
        self.history.event(self.world.now(), "everything heals");
        self.world.stop_losing();
        self.repair_all();
        for (a, b) in PAIRS {
            self.world.slow(a, b, Duration::from_millis(2));
        }
        for site in 0..SITES.len() {
            self.world.shift_clock(site, 0);
        }
        self.back_at.values_mut().for_each(|at| *at = Duration::ZERO);
        self.bring_back()?;
        self.history.close();
        Ok(())
    }
}
