//! The doctor looks a stopped data directory over, says what it finds, and repairs it where asked.
//!
//! ```text
//! examine: FORMAT, IDENTITY ─▶ checkpoints ─▶ VIEW, view ─▶ log ─▶ view against checkpoint and log ─▶ findings
//! repair:  what is damaged is moved to damaged-…/ ─▶ the store opens ─▶ a new checkpoint
//! ```
//! The law it keeps: an examination changes nothing in the directory, and a repair deletes nothing of what is damaged. What a
//! repair cannot bring back it leaves to the region's peers: a node that holds less than it once stated is completed by them.

mod comparison;
mod finding;
mod repair;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use isle_model::{Incarnation, IncarnationTree, Region};

use crate::checkpoint::{self, CheckpointError, Loaded};
use crate::codec;
use crate::disk::{Disk, RealDisk};
use crate::entry::Entry;
use crate::log::{self, LogError, LogPosition, Survey};
use crate::maintain::VIEW_FILE;
use crate::meta::ViewMark;
use crate::open::{self, BootIdentity, OpenError};
use crate::view::{View, ViewError, ViewPlace, directory_of};

pub use finding::{Finding, Part, Severity};
pub use repair::Repair;

/// sled's cache while a view is read once from end to end.
const CACHE_BYTES: u64 = 32 << 20;
const FINDINGS_A_KIND_MAX: usize = 10;

#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    #[error("{} is no data directory of isle: it has no {}", .path.display(), open::FORMAT_FILE)]
    NoData { path: PathBuf },
    #[error("a node runs in {}: stop it first", .path.display())]
    Running { path: PathBuf },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error(transparent)]
    Log(#[from] LogError),
    /// Only where the data directory cannot be opened after it was repaired.
    #[error("the repaired directory does not open: {0}")]
    Open(#[from] OpenError),
    #[error("the repaired directory cannot be written: {0}")]
    Write(String),
    #[error("it is of another version of isle, which is the one to repair it")]
    OtherVersion,
    #[error("whose directory it is cannot be told: {what}")]
    Unknown { what: &'static str },
}

fn io_at(what: impl Into<String>) -> impl FnOnce(io::Error) -> DoctorError {
    let what = what.into();
    move |source| DoctorError::Io { what, source }
}

/// What an examination found.
pub struct Examination {
    pub findings: Vec<Finding>,
    pub(crate) facts: Facts,
}

impl Examination {
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Damage)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Known,
    OtherVersion,
    Damaged,
}

/// What repairs go by.
pub(crate) struct Facts {
    owner: Option<(Region, u32)>,
    format: Format,
    identity_is_damaged: bool,
    /// Sound ones, oldest first.
    checkpoints: Vec<LogPosition>,
    damaged_checkpoints: Vec<LogPosition>,
    mark: Option<ViewMark>,
    mark_is_damaged: bool,
    /// Where the view may be taken over from; `None` where it is to be built anew.
    view: Option<LogPosition>,
    view_is_damaged: bool,
    survey: Survey,
}

impl Facts {
    /// The latest position of which there is a sound state.
    fn state(&self) -> Option<LogPosition> {
        self.view.max(self.checkpoints.last().copied())
    }

    /// What is known to have been durable, whatever the log says.
    fn known_durable(mark: Option<&ViewMark>, checkpoints: &[LogPosition]) -> LogPosition {
        let marked = mark.map_or(LogPosition::ZERO, |mark| mark.meta.position);
        marked.max(checkpoints.last().copied().unwrap_or_default())
    }
}

/// A stopped data directory, locked.
pub struct Doctor {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    boot: BootIdentity,
    /// For copies: an examination leaves the directory as it is.
    scratch: PathBuf,
    lock: Option<File>,
}

impl Doctor {
    /// Takes the directory's lock. `scratch` is an empty directory with room for a copy of the view.
    pub fn call(root: &Path, boot: BootIdentity, scratch: &Path) -> Result<Doctor, DoctorError> {
        if !root.join("log").is_dir() && !root.join(open::FORMAT_FILE).exists() {
            return Err(DoctorError::NoData { path: root.to_owned() });
        }
        let disk = RealDisk::open(root.to_owned()).map_err(io_at("opening the directory"))?;
        let mut doctor =
            Doctor { root: root.to_owned(), disk: Arc::new(disk), boot, scratch: scratch.to_owned(), lock: None };
        doctor.take_lock()?;
        Ok(doctor)
    }

    fn take_lock(&mut self) -> Result<(), DoctorError> {
        let lock = open::lock(&ViewPlace::Directory(self.root.clone()));
        self.lock = lock.map_err(|error| match error {
            OpenError::Locked => DoctorError::Running { path: self.root.clone() },
            OpenError::Io(source) => DoctorError::Io { what: "taking the lock".to_owned(), source },
            other => DoctorError::Open(other),
        })?;
        Ok(())
    }

    /// Looks everything over. `progress` is told what it is at.
    pub fn examine(&self, progress: &mut dyn FnMut(&str)) -> Result<Examination, DoctorError> {
        let mut findings = Vec::new();
        progress("format and identity");
        let (format, identity) = self.look_at_names(&mut findings)?;
        progress("checkpoints");
        let (loaded, damaged_checkpoints) = self.look_at_checkpoints(&mut findings)?;
        let checkpoints: Vec<LogPosition> = loaded.iter().map(|one| one.meta.position).collect();
        progress("view");
        let (mark, mark_is_damaged) = self.look_at_mark(&mut findings)?;
        let (view, view_is_damaged) = self.look_at_view(mark.as_ref(), &mut findings)?;
        progress("commit log");
        let durable = Facts::known_durable(mark.as_ref(), &checkpoints);
        let durable = loaded.iter().map(|one| one.durable).fold(durable, LogPosition::max);
        let tree = known_rows(mark.as_ref(), &loaded);
        let survey = self.look_at_log(durable, tree, &mut findings)?;
        let owner = owner_of(mark.as_ref(), &loaded);
        let identity_is_damaged = identity.is_none() || (owner.is_some() && owner != identity);
        if let Some((region, shards)) = owner.as_ref().filter(|_| identity_is_damaged && identity.is_some()) {
            findings.push(finding::other_owner(region, *shards));
        }
        let owner = owner.or(identity);
        let facts = Facts {
            owner,
            format,
            identity_is_damaged,
            checkpoints,
            damaged_checkpoints,
            mark,
            mark_is_damaged,
            view: view.filter(|_| !view_is_damaged),
            view_is_damaged,
            survey,
        };
        self.look_at_reach(&facts, &mut findings);
        let mut examination = Examination { findings, facts };
        if examination.facts.view.is_some() && examination.is_sound() {
            progress("view against checkpoint and log");
            self.compare(&mut examination)?;
        }
        Ok(examination)
    }

    fn look_at_names(&self, findings: &mut Vec<Finding>) -> Result<(Format, Option<(Region, u32)>), DoctorError> {
        let read = |name: &str| match self.disk.read(name) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_at(name)(error)),
        };
        let found = read(open::FORMAT_FILE)?;
        let format = match found.as_deref() {
            Some(open::FORMAT) => Format::Known,
            Some(text) if text.starts_with("isle data directory, format ") => Format::OtherVersion,
            _ => Format::Damaged,
        };
        if format != Format::Known {
            findings.push(finding::format(format, &found.unwrap_or_default()));
        }
        let identity = read(open::IDENTITY_FILE)?.and_then(|text| open::parse_identity(&text));
        match &identity {
            Some((region, shards)) => findings.push(finding::owner(region, *shards)),
            None => findings.push(finding::identity()),
        }
        Ok((format, identity))
    }

    /// The sound ones, and the positions of the others.
    fn look_at_checkpoints(&self, findings: &mut Vec<Finding>) -> Result<(Vec<Loaded>, Vec<LogPosition>), DoctorError> {
        let (mut sound, mut damaged) = (Vec::new(), Vec::new());
        for position in checkpoint::list(self.disk.as_ref()).map_err(io_at("listing checkpoints"))? {
            let mut items = 0;
            let loaded = checkpoint::load(self.disk.as_ref(), position, |_, _| {
                items += 1;
                Ok::<(), CheckpointError>(())
            });
            match loaded {
                Ok(loaded) => {
                    findings.push(finding::checkpoint(position, items));
                    sound.push(loaded);
                }
                Err(error) => {
                    findings.push(finding::damaged_checkpoint(position, &error));
                    damaged.push(position);
                }
            }
        }
        Ok((sound, damaged))
    }

    fn look_at_mark(&self, findings: &mut Vec<Finding>) -> Result<(Option<ViewMark>, bool), DoctorError> {
        if !self.disk.exists(VIEW_FILE).map_err(io_at(VIEW_FILE))? {
            findings.push(finding::no_mark());
            return Ok((None, false));
        }
        let bytes = self.disk.read(VIEW_FILE).map_err(io_at(VIEW_FILE))?;
        match codec::decode_view_mark(Bytes::from(bytes)) {
            Ok(mark) => Ok((Some(mark), false)),
            Err(error) => {
                findings.push(finding::mark(&error.to_string()));
                Ok((None, true))
            }
        }
    }

    /// From where the view may be taken over, if it may, and whether it is damaged. It is a copy that is opened: sled writes
    /// to what it opens.
    fn look_at_view(
        &self,
        mark: Option<&ViewMark>,
        findings: &mut Vec<Finding>,
    ) -> Result<(Option<LogPosition>, bool), DoctorError> {
        let Some(mark) = mark else { return Ok((None, false)) };
        let place = ViewPlace::Directory(self.root.clone());
        if let Some(why) = open::distrust(mark, &place, &self.boot) {
            findings.push(finding::distrusted_view(why));
            return Ok((None, false));
        }
        let name = directory_of(Path::new(""), mark.generation);
        self.copy_view(mark.generation)?;
        match read_view(&self.scratch, mark) {
            Ok(items) => {
                findings.push(finding::view(mark.meta.position, items));
                Ok((Some(mark.meta.position), false))
            }
            Err(error) => {
                findings.push(finding::damaged_view(&name, &error));
                Ok((None, true))
            }
        }
    }

    fn copy_view(&self, generation: u64) -> Result<(), DoctorError> {
        let name = directory_of(Path::new(""), generation);
        let copy = self.scratch.join(&name);
        if copy.exists() {
            std::fs::remove_dir_all(&copy).map_err(io_at("removing a copy"))?;
        }
        copy_all(&self.root.join(&name), &copy).map_err(io_at("copying the view"))
    }

    fn look_at_log(
        &self,
        durable: LogPosition,
        mut tree: IncarnationTree,
        findings: &mut Vec<Finding>,
    ) -> Result<Survey, DoctorError> {
        let mut unknown = Vec::new();
        let mut visit = |logged: log::Entry| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let entry = codec::decode_entry(logged.payload)?;
            if let Entry::Rows(rows) = &entry {
                for (incarnation, row) in rows {
                    tree.insert(*incarnation, row.clone())?;
                }
            }
            let writer = Incarnation(logged.incarnation);
            if !tree.contains(writer) && unknown.len() < FINDINGS_A_KIND_MAX && !unknown.contains(&writer) {
                unknown.push(writer);
                findings.push(finding::no_row(writer, logged.start));
            }
            Ok(())
        };
        let survey = log::survey(self.disk.as_ref(), durable, &mut visit, &mut |_| ())?;
        match &survey.damage {
            Some(damage) => findings.push(finding::damaged_log(damage)),
            None => findings.push(finding::log(&survey)),
        }
        findings.extend(survey.cuts.iter().map(finding::cut));
        if survey.damage.is_none() && survey.end < durable {
            findings.push(finding::short_log(survey.end, durable));
        }
        Ok(survey)
    }

    /// Whether the log reaches back to a state that it can go on from.
    fn look_at_reach(&self, facts: &Facts, findings: &mut Vec<Finding>) {
        let oldest = facts.survey.oldest;
        if facts.survey.damage.is_none() && facts.state().unwrap_or_default() < oldest {
            findings.push(finding::out_of_reach(oldest));
        }
    }

    fn compare(&self, examination: &mut Examination) -> Result<(), DoctorError> {
        let Some((region, shards)) = examination.facts.owner.clone() else { return Ok(()) };
        if let Some(mark) = &examination.facts.mark {
            // Another copy: sled holds the lock of the one that was read for a moment longer.
            self.copy_view(mark.generation)?;
        }
        let from = comparison::Stores { disk: &self.disk, scratch: &self.scratch, boot: &self.boot, region, shards };
        match from.compare() {
            Ok(comparison) => {
                examination.facts.view_is_damaged = comparison.differences > 0;
                examination.findings.push(finding::comparison(&comparison));
            }
            Err(why) => examination.findings.push(finding::not_compared(&why)),
        }
        if examination.facts.view_is_damaged {
            examination.facts.view = None;
        }
        Ok(())
    }
}

/// Everything that the marks and checkpoints name.
fn known_rows(mark: Option<&ViewMark>, loaded: &[Loaded]) -> IncarnationTree {
    let mut tree = IncarnationTree::new();
    let trees = loaded.iter().map(|one| &one.meta.tree).chain(mark.map(|mark| &mark.meta.tree));
    for (incarnation, row) in trees.flat_map(IncarnationTree::rows) {
        // Of two that contradict each other the first counts; the log's own rows are held against it.
        let _ = tree.insert(incarnation, row.clone());
    }
    tree
}

/// Whose directory it is, from what else it holds.
fn owner_of(mark: Option<&ViewMark>, loaded: &[Loaded]) -> Option<(Region, u32)> {
    let metas = mark.map(|mark| &mark.meta).into_iter().chain(loaded.iter().map(|one| &one.meta));
    metas.into_iter().find_map(|meta| {
        let region = meta.tree.region(meta.last_incarnation?)?;
        Some((region.clone(), meta.last_seqs.len() as u32))
    })
}

/// Reads every item of a view; returns how many there are.
fn read_view(root: &Path, mark: &ViewMark) -> Result<u64, ViewError> {
    let view = Arc::new(View::open(&ViewPlace::Directory(root.to_owned()), mark.generation, CACHE_BYTES)?);
    view.check_sealed(mark.seal)?;
    let (mut items, mut after) = (0, None);
    loop {
        let some = view.after(after.as_ref(), 1024)?;
        items += some.len() as u64;
        match some.into_iter().last() {
            Some((key, _)) => after = Some(key),
            None => return Ok(items),
        }
    }
}

pub(crate) fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
