//! Keyspaces: one by one, or all that a file declares.

mod apply;
mod file;
mod plan;
mod settings;

use std::io::{BufRead, IsTerminal, Write};

use clap::{Args, Subcommand};
use isle_client::{ChangeOptions, Keyspace as Shown};
use serde_json::json;

use self::plan::Change;
use self::settings::SettingFlags;
use super::status::columns;
use super::{Failure, Global};
use crate::output;

#[derive(Args)]
pub struct Keyspace {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a keyspace; what is not given has the default of its scope
    Create {
        name: String,
        #[command(flatten)]
        settings: SettingFlags,
        /// Check everything and make nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show a keyspace and every setting of it
    Get { name: String },
    /// List all keyspaces
    List,
    /// Change what is given, and nothing else
    Update {
        name: String,
        #[command(flatten)]
        settings: SettingFlags,
        /// Only if the keyspace is what this etag stands for
        #[arg(long, default_value = "", hide_default_value = true)]
        etag: String,
        /// Check everything and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete a keyspace and all of its data, in every region, for good
    Delete {
        name: String,
        /// Do not ask; needed where nobody can be asked
        #[arg(long)]
        yes: bool,
        /// Only if the keyspace is what this etag stands for
        #[arg(long, default_value = "", hide_default_value = true)]
        etag: String,
        /// Check everything and delete nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Make the keyspaces of a file what it says; again, it changes nothing
    Apply(apply::Apply),
}

impl Keyspace {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        match self.action {
            Action::Create { name, settings, dry_run } => create(global, &name, &settings, dry_run).await,
            Action::Get { name } => {
                let keyspace = global.client().await?.get_keyspace(&name).await?;
                if global.is_json() { print(&output::keyspace(&keyspace).to_string()) } else { show(&keyspace) }
            }
            Action::List => list(global).await,
            Action::Update { name, settings, etag, dry_run } => {
                update(global, &name, &settings, ChangeOptions { etag, dry_run }).await
            }
            Action::Delete { name, yes, etag, dry_run } => {
                if !yes && !dry_run {
                    confirm(&name)?;
                }
                delete(global, &name, ChangeOptions { etag, dry_run }).await
            }
            Action::Apply(apply) => apply.run(global).await,
        }
    }
}

async fn create(global: &Global, name: &str, settings: &SettingFlags, dry_run: bool) -> Result<(), Failure> {
    let policy = settings.policy()?;
    let made = global.client().await?.create_keyspace(name, &policy, dry_run).await?;
    if global.is_json() {
        let mut line = output::keyspace(&made);
        line["dry_run"] = dry_run.into();
        return print(&line.to_string());
    }
    if dry_run {
        print(&format!("would create {name}"))?;
        return show(&made);
    }
    print(&format!("created {name} (id {})", made.id))
}

async fn list(global: &Global) -> Result<(), Failure> {
    let keyspaces = global.client().await?.list_keyspaces().await?;
    if global.is_json() {
        return keyspaces.iter().try_for_each(|keyspace| print(&output::keyspace(keyspace).to_string()));
    }
    let head = ["name", "id", "scope", "home", "writes", "replication", "read_default", "residency"];
    let row = |keyspace: &Shown| {
        let policy = &keyspace.policy;
        [
            keyspace.name.clone(),
            keyspace.id.to_string(),
            policy.scope.to_string(),
            policy.home.as_ref().map_or("none".to_owned(), ToString::to_string),
            policy.writes.to_string(),
            policy.replication.to_string(),
            policy.read_default.to_string(),
            policy.residency.to_string(),
        ]
    };
    let rows = std::iter::once(head.map(str::to_owned)).chain(keyspaces.iter().map(row));
    columns(rows.collect()).iter().try_for_each(|line| print(line))
}

async fn update(global: &Global, name: &str, settings: &SettingFlags, options: ChangeOptions) -> Result<(), Failure> {
    let (policy, named) = settings.partial()?;
    let dry_run = options.dry_run;
    let client = global.client().await?;
    // Only to show what changes: what the change is made to is up to the etag.
    let old = client.get_keyspace(name).await?;
    let new = client.update_keyspace(name, &policy, &named, options).await?;
    let changes = plan::changes(&old.policy, &new.policy);
    if global.is_json() {
        let mut line = output::keyspace(&new);
        line["dry_run"] = dry_run.into();
        line["changes"] = changes.iter().map(Change::json).collect();
        return print(&line.to_string());
    }
    if changes.is_empty() {
        return print(&format!("{name} is so already"));
    }
    let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
    print(&format!("{} {name}: {}", if dry_run { "would change" } else { "changed" }, changes.join(", ")))?;
    let mut holders = new.holders_changing.iter();
    holders.try_for_each(|change| print(&output::holder_doing(&change.region, change.step)))
}

async fn delete(global: &Global, name: &str, options: ChangeOptions) -> Result<(), Failure> {
    let dry_run = options.dry_run;
    let gone = global.client().await?.delete_keyspace(name, options).await?;
    if global.is_json() {
        let line = json!({ "deleted": !dry_run, "name": gone.name, "id": gone.id, "dry_run": dry_run });
        return print(&line.to_string());
    }
    let done = if dry_run { "would delete" } else { "deleted" };
    print(&format!("{done} {name} (id {}) and all of its data", gone.id))
}

/// Asks whoever sits at the terminal for the name. Where nobody does, nothing is taken for a yes.
fn confirm(name: &str) -> Result<(), Failure> {
    let warning = format!("this deletes keyspace {name} and all of its data, in every region, for good");
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{warning}; say --yes")));
    }
    eprint!("{warning}.\nType its name to go on: ");
    std::io::stderr().flush()?;
    let mut typed = String::new();
    std::io::stdin().lock().read_line(&mut typed)?;
    if typed.trim() == name {
        Ok(())
    } else {
        Err(Failure::Usage("that is not its name; nothing was deleted".to_owned()))
    }
}

fn show(keyspace: &Shown) -> Result<(), Failure> {
    let mut rows = vec![["name".to_owned(), keyspace.name.clone()]];
    rows.extend((keyspace.id > 0).then(|| ["id".to_owned(), keyspace.id.to_string()]));
    rows.extend((!keyspace.etag.is_empty()).then(|| ["etag".to_owned(), keyspace.etag.clone()]));
    rows.extend(keyspace.policy.settings().into_iter().map(|(name, text)| [name.to_owned(), text]));
    let changing = keyspace.holders_changing.iter();
    rows.extend(changing.map(|change| ["changing".to_owned(), output::holder_doing(&change.region, change.step)]));
    columns(rows).iter().try_for_each(|line| print(line))
}

fn print(line: &str) -> Result<(), Failure> {
    Ok(output::line(line)?)
}
