//! `isle.v1.Keyspaces`: what all regions agree on, shown and changed. What may be is decided by the model's rules; that it comes about,
//! by the cluster. This node's own knowledge only answers reads, and refuses early what the cluster would refuse as well.

use std::sync::Arc;
use std::time::Duration;

use isle_model::Region;
use isle_model::limits::{BATCH_BYTES_MAX, NAME_BYTES_MAX, PAGE_ITEMS_MAX};
use isle_model::metadata::{Command, Holding, Keyspace, Metadata, Refused, Step, is_name};
use isle_model::policy::{Fault, Policy};
use isle_node::{ChangeError, MoveReply, MoveRequest, Moved, Node, RequestContext, Shipped};
use isle_proto::policy::{masked, policy, to_policy};
use isle_proto::v1;
use isle_proto::v1::keyspaces_server::Keyspaces;
use isle_proto::v1::move_homes_request::What;
use prost::Message;
use tonic::{Request, Response, Status};

use crate::page_token::PageKey;
use crate::status_table::{
    bad_field, bad_settings, etag_not_reached, incompatible_settings, internal_fault, of_change, of_move, of_node,
    settings_not_served, unknown_keyspace,
};
use crate::{etag, request_context};

const PAGE_ITEMS_DEFAULT: usize = 100;
/// What page tokens of a list are bound to: the list has no other question than this.
const QUESTION: [&[u8]; 1] = [b"keyspaces"];
/// How often a change that is bound to no etag is made anew after another came before it, and how long this node is given to hear
/// of that one.
const ATTEMPTS_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_millis(50);

pub struct KeyspacesService {
    node: Arc<Node>,
    pages: PageKey,
}

impl KeyspacesService {
    pub fn new(node: Arc<Node>, pages: PageKey) -> KeyspacesService {
        KeyspacesService { node, pages }
    }

    fn header(&self) -> Option<v1::ResponseHeader> {
        Some(v1::ResponseHeader { served_by: self.node.config().region.to_string(), ..v1::ResponseHeader::default() })
    }

    async fn change(&self, context: &RequestContext, command: Command) -> Result<Keyspace, ChangeFailure> {
        match self.node.change(context, command).await {
            Ok(Some(changed)) => Ok(changed),
            Ok(None) => Err(ChangeFailure::Told(internal_fault("a change of a keyspace left none to show"))),
            Err(error) => Err(ChangeFailure::Error(error)),
        }
    }

    async fn create(
        &self,
        context: &RequestContext,
        name: &str,
        policy: Policy,
        validate_only: bool,
    ) -> Result<v1::Keyspace, Status> {
        let metadata = self.node.metadata();
        refuse(policy.faults(&metadata.members), policy.unimplemented())?;
        let command = Command::Create { name: name.to_owned(), policy };
        if validate_only {
            let made = tried(&metadata, command).map_err(|failure| failure.told(name))?;
            return Ok(v1::Keyspace { id: 0, etag: String::new(), ..shown(&made) });
        }
        let made = self.change(context, command).await;
        made.map(|made| shown(&made)).map_err(|failure| failure.told(name))
    }

    async fn update(&self, context: &RequestContext, asked: &Update) -> Result<v1::Keyspace, Status> {
        let mut attempt = 1;
        loop {
            match self.update_once(context, asked).await {
                Ok(changed) => return Ok(changed),
                // The change is of whatever there is: so of what there is now.
                Err(ChangeFailure::Error(ChangeError::Refused(Refused::Changed { .. })))
                    if asked.expected.is_none() && attempt < ATTEMPTS_MAX =>
                {
                    attempt += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(failure) => return Err(failure.told(&asked.name)),
            }
        }
    }

    async fn update_once(&self, context: &RequestContext, asked: &Update) -> Result<v1::Keyspace, ChangeFailure> {
        let metadata = self.node.metadata();
        let old = metadata.named(&asked.name).ok_or_else(|| unknown_keyspace(&asked.name))?;
        match asked.expected {
            Some(expected) if expected > old.revision => return Err(etag_not_reached().into()),
            Some(expected) if expected < old.revision => return Err(Refused::Changed { revision: old.revision }.into()),
            _ => {}
        }
        let merged = masked(&old.policy, asked.policy.clone(), &asked.paths);
        let merged = merged.map_err(|unknown| bad_field("update_mask", unknown))?;
        let policy = to_policy(merged).map_err(|faults| bad_settings(&faults))?;
        let mut faults = policy.faults(&metadata.members);
        faults.extend(policy.faults_after(&old.policy));
        refuse(faults, policy.unimplemented())?;
        if policy == old.policy {
            return Ok(shown(old));
        }
        let command = Command::Update { id: old.id, expected: old.revision, policy };
        if asked.validate_only {
            return Ok(v1::Keyspace { etag: String::new(), ..shown(&tried(&metadata, command)?) });
        }
        self.change(context, command).await.map(|changed| shown(&changed))
    }

    async fn delete(
        &self,
        context: &RequestContext,
        name: &str,
        expected: Option<u64>,
        validate_only: bool,
    ) -> Result<v1::Keyspace, ChangeFailure> {
        let metadata = self.node.metadata();
        let id = metadata.named(name).ok_or_else(|| unknown_keyspace(name))?.id;
        let command = Command::Delete { id, expected };
        let deleted = match validate_only {
            true => tried(&metadata, command),
            false => self.change(context, command).await,
        };
        deleted.map(|deleted| shown(&deleted))
    }

    fn page(&self, asked: &v1::ListKeyspacesRequest) -> Result<(Vec<v1::Keyspace>, Option<String>), Status> {
        let limit = match asked.page_size {
            0 => PAGE_ITEMS_DEFAULT,
            size => usize::try_from(size).map_err(|_| bad_field("page_size", "is negative"))?.min(PAGE_ITEMS_MAX),
        };
        let start = match asked.page_token.is_empty() {
            true => bytes::Bytes::new(),
            false => {
                let opened = self.pages.open(&QUESTION, &asked.page_token);
                opened.map_err(|error| bad_field("page_token", error))?
            }
        };
        let metadata = self.node.metadata();
        let mut rest: Vec<&Keyspace> =
            metadata.keyspaces.values().filter(|keyspace| keyspace.name.as_bytes() >= start.as_ref()).collect();
        rest.sort_by(|a, b| a.name.cmp(&b.name));
        let (mut page, mut size) = (Vec::new(), 0);
        for keyspace in &rest {
            let row = shown(keyspace);
            size += row.encoded_len();
            if page.len() == limit || (size > BATCH_BYTES_MAX && !page.is_empty()) {
                return Ok((page, Some(keyspace.name.clone())));
            }
            page.push(row);
        }
        Ok((page, None))
    }
}

/// What is asked of an update, read once and tried as often as needed.
struct Update {
    name: String,
    policy: v1::Policy,
    expected: Option<u64>,
    paths: Vec<String>,
    validate_only: bool,
}

impl Update {
    fn of_wire(from: v1::UpdateKeyspaceRequest) -> Result<Update, Status> {
        let v1::UpdateKeyspaceRequest { keyspace, update_mask, validate_only } = from;
        let v1::Keyspace { name, policy, etag, .. } = keyspace.ok_or_else(|| bad_field("keyspace", "is missing"))?;
        let expected = etag::parse(&etag).map_err(|error| bad_field("keyspace.etag", error))?;
        let paths = update_mask.unwrap_or_default().paths;
        Ok(Update { name, policy: policy.unwrap_or_default(), expected, paths, validate_only })
    }
}

/// Why a change did not come about: in the node's words, or in those of a status already.
enum ChangeFailure {
    Error(ChangeError),
    Told(Status),
}

impl ChangeFailure {
    fn told(self, name: &str) -> Status {
        match self {
            ChangeFailure::Error(error) => of_change(&error, name),
            ChangeFailure::Told(status) => status,
        }
    }
}

impl From<Status> for ChangeFailure {
    fn from(status: Status) -> ChangeFailure {
        ChangeFailure::Told(status)
    }
}

impl From<Refused> for ChangeFailure {
    fn from(refused: Refused) -> ChangeFailure {
        ChangeFailure::Error(refused.into())
    }
}

/// What would come of a command, as far as this node knows.
fn tried(metadata: &Metadata, command: Command) -> Result<Keyspace, ChangeFailure> {
    let mut tried = metadata.clone();
    let made = tried.apply(metadata.revision + 1, command)?;
    made.ok_or_else(|| internal_fault("a change of a keyspace left none to show").into())
}

/// What cannot be is said before what is only not there yet.
fn refuse(faults: Vec<Fault>, later: Vec<Fault>) -> Result<(), Status> {
    if !faults.is_empty() {
        return Err(incompatible_settings(&faults));
    }
    if later.is_empty() { Ok(()) } else { Err(settings_not_served(&later)) }
}

/// Who comes to hold it and who ceases to; whoever is done is not named.
pub(super) fn holders_changing(keyspace: &Keyspace) -> Vec<v1::HolderChange> {
    let step = |step: Step| match step {
        Step::Taking => Some(v1::HolderStep::Taking),
        Step::Handing => Some(v1::HolderStep::Handing),
        Step::Purging => Some(v1::HolderStep::Purging),
        Step::Gone => None,
    };
    let change = |(region, holding): (&Region, &Holding)| {
        let step = step(holding.step)?.into();
        Some(v1::HolderChange { keyspace: keyspace.name.clone(), region: region.to_string(), step })
    };
    keyspace.holding.iter().filter_map(change).collect()
}

fn shown(from: &Keyspace) -> v1::Keyspace {
    let (name, policy) = (from.name.clone(), Some(policy(&from.policy)));
    v1::Keyspace {
        name,
        id: from.id.0,
        policy,
        etag: etag::of(from.revision),
        holders_changing: holders_changing(from),
    }
}

#[tonic::async_trait]
impl Keyspaces for KeyspacesService {
    async fn create_keyspace(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::CreateKeyspaceResponse>, Status> {
        let context = request_context::of(&request);
        let v1::CreateKeyspaceRequest { keyspace, validate_only } = request.into_inner();
        let v1::Keyspace { name, policy, .. } = keyspace.ok_or_else(|| bad_field("keyspace", "is missing"))?;
        if !is_name(&name) {
            let rule = format!("{name:?} is not 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes and underscores");
            return Err(bad_field("keyspace.name", rule));
        }
        let policy = to_policy(policy.unwrap_or_default()).map_err(|faults| bad_settings(&faults))?;
        let keyspace = self.create(&context, &name, policy, validate_only).await?;
        Ok(Response::new(v1::CreateKeyspaceResponse { header: self.header(), keyspace: Some(keyspace) }))
    }

    async fn get_keyspace(
        &self,
        request: Request<v1::GetKeyspaceRequest>,
    ) -> Result<Response<v1::GetKeyspaceResponse>, Status> {
        let name = request.into_inner().name;
        let metadata = self.node.metadata();
        let keyspace = metadata.named(&name).map(shown).ok_or_else(|| unknown_keyspace(&name))?;
        Ok(Response::new(v1::GetKeyspaceResponse { header: self.header(), keyspace: Some(keyspace) }))
    }

    async fn list_keyspaces(
        &self,
        request: Request<v1::ListKeyspacesRequest>,
    ) -> Result<Response<v1::ListKeyspacesResponse>, Status> {
        let (keyspaces, next) = self.page(&request.into_inner())?;
        let next = next.map(|next| self.pages.seal(&QUESTION, next.as_bytes()));
        Ok(Response::new(v1::ListKeyspacesResponse {
            header: self.header(),
            keyspaces,
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn update_keyspace(
        &self,
        request: Request<v1::UpdateKeyspaceRequest>,
    ) -> Result<Response<v1::UpdateKeyspaceResponse>, Status> {
        let context = request_context::of(&request);
        let keyspace = self.update(&context, &Update::of_wire(request.into_inner())?).await?;
        Ok(Response::new(v1::UpdateKeyspaceResponse { header: self.header(), keyspace: Some(keyspace) }))
    }

    async fn delete_keyspace(
        &self,
        request: Request<v1::DeleteKeyspaceRequest>,
    ) -> Result<Response<v1::DeleteKeyspaceResponse>, Status> {
        let context = request_context::of(&request);
        let v1::DeleteKeyspaceRequest { name, etag, validate_only } = request.into_inner();
        let expected = etag::parse(&etag).map_err(|error| bad_field("etag", error))?;
        let deleted = self.delete(&context, &name, expected, validate_only).await;
        let keyspace = deleted.map_err(|failure| failure.told(&name))?;
        Ok(Response::new(v1::DeleteKeyspaceResponse { header: self.header(), keyspace: Some(keyspace) }))
    }

    async fn move_homes(
        &self,
        request: Request<v1::MoveHomesRequest>,
    ) -> Result<Response<v1::MoveHomesResponse>, Status> {
        let context = request_context::of(&request);
        let v1::MoveHomesRequest { keyspace, what, to } = request.into_inner();
        let what = match what.ok_or_else(|| bad_field("what", "give a key or a prefix"))? {
            What::Key(key) => Moved::Key(key),
            What::Prefix(prefix) => Moved::Prefix(prefix),
        };
        if !is_name(&to) {
            return Err(bad_field("to", "is no name of a region"));
        }
        let asked = MoveRequest { keyspace: keyspace.clone(), what, to: Region::new(&to) };
        let moved = self.node.move_homes(&context, asked).await.map_err(|error| of_move(&error, &keyspace))?;
        let MoveReply { moved, epoch } = moved;
        Ok(Response::new(v1::MoveHomesResponse { header: self.header(), moved, home_epoch: epoch.0 }))
    }

    async fn ship_keyspace(
        &self,
        request: Request<v1::ShipKeyspaceRequest>,
    ) -> Result<Response<v1::ShipKeyspaceResponse>, Status> {
        let context = request_context::of(&request);
        let keyspace = request.into_inner().keyspace;
        let shipped = self.node.ship(&context, &keyspace).await.map_err(|error| of_node(&error))?;
        let one = |Shipped { region, keys, is_done }| v1::Shipment { region: region.to_string(), keys, done: is_done };
        let shipments = shipped.into_iter().map(one).collect();
        Ok(Response::new(v1::ShipKeyspaceResponse { header: self.header(), shipments }))
    }
}
