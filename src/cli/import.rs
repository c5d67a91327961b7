//! Loads JSON lines as documents, one patch a line. What is durable is noted in a cursor file, so that an import that was
//! broken off goes on where it stopped; a line that is written twice does no harm.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use isle_client::v1::WriteOperation;
use isle_client::{Client, Patch};
use serde_json::{Map, Value as Json, json};

use super::{Failure, Global, value};
use crate::output;

/// Enough to fill a commit, small enough that an interrupted import repeats little.
const BATCH_ITEMS: usize = 250;
/// Below the batch limit of 4 MiB with room for what the wire adds.
const BATCH_BYTES: usize = 2 << 20;

#[derive(Args)]
pub struct Import {
    keyspace: String,
    /// One JSON object a line
    file: PathBuf,
    /// The member that is the key
    #[arg(long, value_name = "FIELD")]
    key: String,
    /// Where to note what is done (FILE.isle-cursor by default); removed at the end
    #[arg(long, value_name = "FILE")]
    cursor: Option<PathBuf>,
}

/// What is done: bytes and lines of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    bytes: u64,
    lines: u64,
}

struct Batch {
    operations: Vec<WriteOperation>,
    /// Where the file stands behind it.
    end: Cursor,
}

impl Import {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client().await?;
        let noted = self.cursor.clone().unwrap_or_else(|| beside(&self.file));
        let start = Cursor::read(&noted)?;
        let mut lines = Lines::open(&self.file, start)?;
        let bar = progress(lines.length, start);
        let mut done = start;
        while let Some(batch) = lines.batch(&self.key)? {
            let end = batch.end;
            self.write(&client, batch, done).await?;
            end.write(&noted)?;
            bar.set_position(end.bytes);
            done = end;
        }
        bar.finish_and_clear();
        remove(&noted)?;
        self.report(global, start, done)
    }

    async fn write(&self, client: &Client, batch: Batch, from: Cursor) -> Result<(), Failure> {
        let results = client.batch_write(&self.keyspace, batch.operations).await?;
        match results.into_iter().enumerate().find_map(|(at, result)| Some((at, result.err()?))) {
            None => Ok(()),
            Some((_, error)) if error.reason.is_empty() => Err(error.into()),
            Some((_, mut error)) => {
                error.message = format!("{} (in a batch behind line {})", error.message, from.lines);
                Err(error.into())
            }
        }
    }

    fn report(&self, global: &Global, start: Cursor, end: Cursor) -> Result<(), Failure> {
        let (imported, skipped) = (end.lines - start.lines, start.lines);
        let line = if global.is_json() {
            json!({ "imported": imported, "resumed_behind": skipped, "keyspace": self.keyspace }).to_string()
        } else if skipped > 0 {
            format!("imported {imported} records into {}, resumed behind line {skipped}", self.keyspace)
        } else {
            format!("imported {imported} records into {}", self.keyspace)
        };
        Ok(output::line(&line)?)
    }
}

impl Cursor {
    fn read(path: &Path) -> Result<Cursor, Failure> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Cursor::default()),
            Err(error) => return Err(error.into()),
        };
        let numbers: Option<Vec<u64>> = text.split_whitespace().map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some([bytes, lines]) => Ok(Cursor { bytes: *bytes, lines: *lines }),
            _ => Err(Failure::Usage(format!("{} is not a cursor file; remove it to start anew", path.display()))),
        }
    }

    /// Written aside and renamed: a cursor file is whole or not there.
    fn write(self, path: &Path) -> Result<(), Failure> {
        let aside = path.with_extension("isle-cursor-new");
        let mut file = File::create(&aside)?;
        writeln!(file, "{} {}", self.bytes, self.lines)?;
        drop(file);
        Ok(std::fs::rename(&aside, path)?)
    }
}

struct Lines {
    reader: BufReader<File>,
    length: u64,
    at: Cursor,
}

impl Lines {
    fn open(path: &Path, start: Cursor) -> Result<Lines, Failure> {
        let mut file = File::open(path).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
        let length = file.metadata()?.len();
        if start.bytes > length {
            let fact = format!("{} is shorter than its cursor file says; remove that to start anew", path.display());
            return Err(Failure::Usage(fact));
        }
        file.seek(SeekFrom::Start(start.bytes))?;
        Ok(Lines { reader: BufReader::new(file), length, at: start })
    }

    /// The next lines, or `None` at the end.
    fn batch(&mut self, key_field: &str) -> Result<Option<Batch>, Failure> {
        let (mut operations, mut size, mut line) = (Vec::new(), 0, String::new());
        while operations.len() < BATCH_ITEMS && size < BATCH_BYTES {
            line.clear();
            let taken = self.reader.read_line(&mut line).context("reading the file")?;
            if taken == 0 {
                break;
            }
            self.at = Cursor { bytes: self.at.bytes + taken as u64, lines: self.at.lines + 1 };
            size += taken;
            if !line.trim().is_empty() {
                let fault = |fact| Failure::Local(anyhow::anyhow!("line {}: {fact}", self.at.lines));
                operations.push(operation(&line, key_field).map_err(fault)?);
            }
        }
        Ok((!operations.is_empty()).then_some(Batch { operations, end: self.at }))
    }
}

/// A line as a patch: every member but the key is a field, nulls are left out.
fn operation(line: &str, key_field: &str) -> Result<WriteOperation, String> {
    let members: Map<String, Json> =
        serde_json::from_str(line).map_err(|error| format!("not a JSON object: {error}"))?;
    let key = match members.get(key_field) {
        Some(Json::String(text)) => text.clone(),
        Some(Json::Number(number)) => number.to_string(),
        Some(_) => return Err(format!("{key_field:?} is neither a string nor a number")),
        None => return Err(format!("there is no {key_field:?}")),
    };
    let set: BTreeMap<_, _> =
        members.iter().filter_map(|(name, json)| Some((name.clone(), value::of_json(json)?))).collect();
    Ok(Patch { set, remove: Vec::new() }.operation(key))
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".isle-cursor");
    PathBuf::from(name)
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Draws on a terminal only; elsewhere it is silent.
fn progress(length: u64, start: Cursor) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = ProgressBar::new(length).with_position(start.bytes);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use isle_client::v1::write_operation::Operation;

    fn patch(line: &str) -> isle_client::v1::PatchRequest {
        match operation(line, "id").unwrap().operation.unwrap() {
            Operation::Patch(patch) => patch,
            other => panic!("not a patch: {other:?}"),
        }
    }

    #[test]
    fn a_line_becomes_a_patch_with_its_key() {
        let patch = patch(r#"{"id": 7, "name": "Ulm", "area": null, "tags": ["a"]}"#);
        assert_eq!(patch.key, "7");
        let names: Vec<&str> = patch.set.keys().map(String::as_str).collect();
        assert_eq!(names, ["id", "name", "tags"]);
    }

    #[test]
    fn a_line_without_key_is_refused() {
        assert!(operation("{}", "id").unwrap_err().contains("no \"id\""));
        assert!(operation("[]", "id").is_err());
        assert!(operation(r#"{"id": true}"#, "id").is_err());
    }

    #[test]
    fn a_broken_import_goes_on_behind_its_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let (file, noted) = (dir.path().join("a.jsonl"), dir.path().join("a.jsonl.isle-cursor"));
        let all: String = (0..600).map(|n| format!("{{\"id\":\"k{n}\",\"n\":{n}}}\n")).collect();
        std::fs::write(&file, all).unwrap();
        let mut lines = Lines::open(&file, Cursor::read(&noted).unwrap()).unwrap();
        lines.batch("id").unwrap().unwrap().end.write(&noted).unwrap();

        let mut rest = Lines::open(&file, Cursor::read(&noted).unwrap()).unwrap();
        let mut counts = Vec::new();
        while let Some(batch) = rest.batch("id").unwrap() {
            counts.push((batch.operations.len(), batch.end.lines));
        }
        assert_eq!(counts, [(250, 500), (100, 600)]);
        assert_eq!(beside(&file), noted);
    }
}
