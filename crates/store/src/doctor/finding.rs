//! What the doctor says: one sentence a finding, where it is, and what to do.

use std::fmt;
use std::path::Path;

use isle_model::{Incarnation, Region};

use super::Format;
use super::comparison::Comparison;
use crate::checkpoint::CheckpointError;
use crate::log::{Cut, Damage, LogPosition, Survey};
use crate::view::ViewError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Sound,
    /// Worth knowing: the next start puts it right without losing anything.
    Note,
    /// Something that was written is not there, or cannot be read.
    Damage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Directory,
    Log,
    Checkpoint,
    View,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Sound => "sound",
            Severity::Note => "note",
            Severity::Damage => "damage",
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Part::Directory => "directory",
            Part::Log => "log",
            Part::Checkpoint => "checkpoint",
            Part::View => "view",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub part: Part,
    /// A file of the directory, or a position of the log. Empty for the part as a whole.
    pub place: String,
    pub what: String,
    /// What to do; empty where nothing is to be done.
    pub advice: String,
}

const REPAIR: &str = "run isle doctor --repair; the region's peers complete what is missing at its next start";
const REBUILT: &str = "nothing is lost: the next start builds it anew from checkpoint and log";

fn finding(severity: Severity, part: Part, place: impl fmt::Display, what: String, advice: &str) -> Finding {
    Finding { severity, part, place: place.to_string(), what, advice: advice.to_owned() }
}

pub(super) fn owner(region: &Region, shards: u32) -> Finding {
    let what = format!("it is region {region}'s, with {shards} shards, in a format that is known here");
    finding(Severity::Sound, Part::Directory, "", what, "")
}

pub(super) fn format(format: Format, found: &str) -> Finding {
    let advice = if format == Format::OtherVersion { "run the version of isle that wrote it" } else { REPAIR };
    let what = format!("its format is {:?}, which is not known here", found.trim_end());
    finding(Severity::Damage, Part::Directory, crate::open::FORMAT_FILE, what, advice)
}

pub(super) fn identity() -> Finding {
    let what = "it does not say which region's it is, and of how many shards".to_owned();
    finding(Severity::Damage, Part::Directory, crate::open::IDENTITY_FILE, what, REPAIR)
}

pub(super) fn other_owner(region: &Region, shards: u32) -> Finding {
    let what = format!("view and checkpoints are region {region}'s, with {shards} shards");
    finding(Severity::Damage, Part::Directory, crate::open::IDENTITY_FILE, what, REPAIR)
}

pub(super) fn checkpoint(position: LogPosition, items: u64) -> Finding {
    let what = format!("the checkpoint of log position {position} holds {items} items, and its checksums are right");
    finding(Severity::Sound, Part::Checkpoint, position, what, "")
}

pub(super) fn damaged_checkpoint(position: LogPosition, error: &CheckpointError) -> Finding {
    finding(Severity::Damage, Part::Checkpoint, position, error.to_string(), REPAIR)
}

pub(super) fn no_mark() -> Finding {
    let what = "there is no view yet".to_owned();
    finding(Severity::Note, Part::View, crate::maintain::VIEW_FILE, what, REBUILT)
}

pub(super) fn mark(error: &str) -> Finding {
    let what = format!("the view's mark does not decode: {error}");
    finding(Severity::Damage, Part::View, crate::maintain::VIEW_FILE, what, REBUILT)
}

pub(super) fn distrusted_view(why: &str) -> Finding {
    finding(Severity::Note, Part::View, "", format!("the view is not trusted: {why}"), REBUILT)
}

pub(super) fn view(position: LogPosition, items: u64) -> Finding {
    let what = format!("the view is flushed up to log position {position}, its {items} items have their checksums");
    finding(Severity::Sound, Part::View, "", what, "")
}

pub(super) fn damaged_view(name: &Path, error: &ViewError) -> Finding {
    finding(Severity::Damage, Part::View, name.display(), error.to_string(), REBUILT)
}

pub(super) fn log(survey: &Survey) -> Finding {
    let Survey { segments, entries, bytes, oldest, end, .. } = survey;
    let what = format!(
        "the log goes from {oldest} to {end} in {segments} segments: {entries} entries, {bytes} bytes, every checksum right"
    );
    finding(Severity::Sound, Part::Log, "", what, "")
}

pub(super) fn cut(cut: &Cut) -> Finding {
    let what = format!(
        "{} bytes after {} are a torn write: nothing says that they were durable, so they were not acknowledged",
        cut.bytes, cut.position
    );
    finding(Severity::Note, Part::Log, cut.position, what, "the next start cuts them off")
}

pub(super) fn damaged_log(damage: &Damage) -> Finding {
    finding(Severity::Damage, Part::Log, damage.position, damage.what.to_string(), REPAIR)
}

pub(super) fn short_log(end: LogPosition, durable: LogPosition) -> Finding {
    let what = format!("the log ends at {end}, although view or checkpoint know it durable up to {durable}");
    finding(Severity::Damage, Part::Log, end, what, "start the node: its peers complete what it once had")
}

pub(super) fn no_row(writer: Incarnation, at: LogPosition) -> Finding {
    let what = format!("incarnation {writer} wrote the entry at {at}, and no row says what it descends from");
    finding(Severity::Damage, Part::Log, at, what, REPAIR)
}

pub(super) fn out_of_reach(oldest: LogPosition) -> Finding {
    let what = format!("the log begins at {oldest}, and no sound checkpoint or view reaches that far");
    finding(Severity::Damage, Part::Log, oldest, what, REPAIR)
}

pub(super) fn comparison(comparison: &Comparison) -> Finding {
    let Comparison { records, ledger, differences, first } = comparison;
    match first {
        None => {
            let what = format!("the view agrees with checkpoint and log: {records} records, {ledger} ledger entries");
            finding(Severity::Sound, Part::View, "", what, "")
        }
        Some(first) => {
            let what = format!("the view differs from checkpoint and log in {differences} items, first in {first}");
            finding(Severity::Damage, Part::View, "", what, REPAIR)
        }
    }
}

pub(super) fn not_compared(why: &str) -> Finding {
    let what = format!("the view could not be held against checkpoint and log: {why}");
    finding(Severity::Note, Part::View, "", what, "")
}
