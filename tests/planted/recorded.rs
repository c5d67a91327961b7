//! Cases that caught each bug. A change of the code changes histories, so not each must catch it for ever, but one must.

use isle_model::planted::Bug;

use super::harness::Mix;
use super::harness::seeds::Case;

pub const RECORDED: &[(Bug, &[Case])] = &[
    (Bug::ReplyBeforeSync, &[(2, Mix::Crashes), (4, Mix::Crashes)]),
    (Bug::ForgetEarly, &[(0, Mix::Partitions), (2, Mix::Partitions), (7, Mix::Crashes)]),
    (Bug::SkipGap, &[(0, Mix::Partitions), (7, Mix::Crashes)]),
    (Bug::MergeTakesLast, &[(0, Mix::Partitions), (2, Mix::Partitions)]),
    (Bug::ClockFirst, &[(0, Mix::Partitions), (4, Mix::Partitions), (7, Mix::Crashes), (8, Mix::Partitions)]),
    (Bug::IgnoreContext, &[(0, Mix::Partitions), (7, Mix::Crashes), (16, Mix::Partitions), (23, Mix::Crashes)]),
    (Bug::LoseLoser, &[(0, Mix::Partitions), (4, Mix::Partitions), (8, Mix::Partitions)]),
    (Bug::SkipInReplay, &[(2, Mix::Crashes), (4, Mix::Crashes)]),
    (Bug::AdmitReplaced, &[(0, Mix::Cloned), (1, Mix::Cloned)]),
    (Bug::CursorBeforeLast, &[(1, Mix::Restored), (6, Mix::Away)]),
    (Bug::KeepUnlisted, &[(15, Mix::Away)]),
    (Bug::PassUnreadable, &[(3, Mix::Crashes), (9, Mix::Crashes), (18, Mix::Partitions)]),
    (Bug::ChangeBeforeCommit, &[(0, Mix::Partitions), (3, Mix::Crashes), (5, Mix::Crashes)]),
    (Bug::TakeForeignHome, &[(2, Mix::Homed), (3, Mix::Homed), (5, Mix::Homed), (7, Mix::Homed)]),
    (Bug::StrongFromHere, &[(1, Mix::Homed), (5, Mix::Homed), (6, Mix::Homed), (7, Mix::Homed)]),
    (Bug::SkipHanding, &[(40, Mix::Holders), (57, Mix::Holders), (86, Mix::Holders), (88, Mix::Holders)]),
    (Bug::ServeHalf, &[(62, Mix::Holders), (65, Mix::Holders), (91, Mix::Holders)]),
    (Bug::ForgetChange, &[(2, Mix::Warm), (3, Mix::Warm), (4, Mix::Warm), (5, Mix::Warm)]),
    (Bug::PinAtLast, &[(0, Mix::Warm), (1, Mix::Warm), (3, Mix::Warm), (6, Mix::Warm)]),
    (Bug::GoneAtOnce, &[(0, Mix::Holders), (3, Mix::Holders), (5, Mix::Holders), (7, Mix::Holders)]),
];
