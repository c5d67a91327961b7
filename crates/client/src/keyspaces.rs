//! Keyspaces: made, looked at, changed and deleted.
//!
//! A change is tried again only if it surely has not come about. One that is bound to an etag is made to what its caller saw, or
//! not at all.

use bytes::Bytes;
use isle_model::policy::{Fault, Policy};
use isle_proto::policy::{policy as wire_policy, to_policy};
use isle_proto::v1;
use isle_proto::v1::keyspaces_client::KeyspacesClient;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::client::{MESSAGE_BYTES_MAX, retrying};
use crate::{Client, Error};

/// What is asked for at once of a list that is wanted whole.
const PAGE_SIZE: u32 = 500;

/// A keyspace, as the region that answered knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    pub name: String,
    /// Never given to another; 0 in the reply to a dry run that would make one.
    pub id: u64,
    pub policy: Policy,
    /// Hand it back in `ChangeOptions`. Empty in the reply to a dry run of something new.
    pub etag: String,
    /// Regions that come to hold the data, or cease to, as the region that answered knows it. A narrower residency is in force once no
    /// region hands over or purges any more.
    pub holders_changing: Vec<HolderChange>,
}

pub use isle_proto::v1::HolderStep;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderChange {
    pub region: String,
    pub step: HolderStep,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyspacePage {
    /// In the order of their names.
    pub keyspaces: Vec<Keyspace>,
    /// Empty after the last page.
    pub next: Bytes,
}

/// How to change a keyspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeOptions {
    /// Only if it is what this stands for; empty, whatever it is.
    pub etag: String,
    /// Check everything and change nothing.
    pub dry_run: bool,
}

impl Keyspace {
    fn of_wire(from: Option<v1::Keyspace>) -> Result<Keyspace, Error> {
        let v1::Keyspace { name, id, policy, etag, holders_changing } =
            from.ok_or_else(|| unreadable("it shows no keyspace"))?;
        let policy = to_policy(policy.unwrap_or_default()).map_err(|faults| {
            let faults: Vec<_> = faults.iter().map(Fault::to_string).collect();
            unreadable(&faults.join("; "))
        })?;
        let change = |from: v1::HolderChange| HolderChange { step: from.step(), region: from.region };
        let holders_changing = holders_changing.into_iter().map(change).collect();
        Ok(Keyspace { name, id, policy, etag, holders_changing })
    }
}

/// A server newer than this client may answer with settings that are unknown here. Whatever was asked for was done.
fn unreadable(why: &str) -> Error {
    let message = format!("the answer cannot be read: {why}");
    Error::local(Code::Unknown, crate::error::OUTCOME_UNKNOWN, message)
}

/// How the shipment of a keyspace to one region ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shipment {
    pub region: String,
    /// Keys of which it lacked something; `None` where they were not counted.
    pub keys: Option<u64>,
    /// Whether it has all that was written before the call. Else it gets it once it is reached.
    pub is_done: bool,
}

impl Client {
    fn keyspaces_client(&self) -> KeyspacesClient<Channel> {
        KeyspacesClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Makes a call, again if that is safe and may help.
    async fn call_keyspaces<T, R, F>(
        &self,
        read: bool,
        message: T,
        send: impl Fn(KeyspacesClient<Channel>, Request<T>) -> F,
    ) -> Result<R, Error>
    where
        T: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let attempt = || async {
            let response = send(self.keyspaces_client(), self.request(message.clone())).await;
            response.map(Response::into_inner).map_err(|status| Error::of_status(&status))
        };
        retrying(self.options.retry, read, attempt).await
    }

    pub async fn create_keyspace(&self, name: &str, policy: &Policy, dry_run: bool) -> Result<Keyspace, Error> {
        let keyspace = v1::Keyspace { name: name.to_owned(), policy: Some(wire_policy(policy)), ..Default::default() };
        let request = v1::CreateKeyspaceRequest { keyspace: Some(keyspace), validate_only: dry_run };
        let send = |mut client: KeyspacesClient<_>, request| async move { client.create_keyspace(request).await };
        Keyspace::of_wire(self.call_keyspaces(dry_run, request, send).await?.keyspace)
    }

    pub async fn get_keyspace(&self, name: &str) -> Result<Keyspace, Error> {
        let request = v1::GetKeyspaceRequest { name: name.to_owned() };
        let send = |mut client: KeyspacesClient<_>, request| async move { client.get_keyspace(request).await };
        Keyspace::of_wire(self.call_keyspaces(true, request, send).await?.keyspace)
    }

    /// One page. Start with an empty token, go on with the page's `next` until that is empty.
    pub async fn keyspace_page(&self, page_size: u32, token: Bytes) -> Result<KeyspacePage, Error> {
        let page_size = i32::try_from(page_size).unwrap_or(i32::MAX);
        let request = v1::ListKeyspacesRequest { page_size, page_token: token };
        let send = |mut client: KeyspacesClient<_>, request| async move { client.list_keyspaces(request).await };
        let reply = self.call_keyspaces(true, request, send).await?;
        let keyspaces = reply.keyspaces.into_iter().map(|keyspace| Keyspace::of_wire(Some(keyspace)));
        Ok(KeyspacePage { keyspaces: keyspaces.collect::<Result<_, _>>()?, next: reply.next_page_token })
    }

    /// All of them, in the order of their names.
    pub async fn list_keyspaces(&self) -> Result<Vec<Keyspace>, Error> {
        let mut page = self.keyspace_page(PAGE_SIZE, Bytes::new()).await?;
        let mut all = page.keyspaces;
        while !page.next.is_empty() {
            page = self.keyspace_page(PAGE_SIZE, page.next).await?;
            all.append(&mut page.keyspaces);
        }
        Ok(all)
    }

    /// Sets those settings that are named, such as `writes`, to what the policy says; without names, all of them.
    pub async fn update_keyspace(
        &self,
        name: &str,
        policy: &Policy,
        settings: &[&str],
        options: ChangeOptions,
    ) -> Result<Keyspace, Error> {
        let (policy, etag) = (Some(wire_policy(policy)), options.etag);
        let keyspace = v1::Keyspace { name: name.to_owned(), policy, etag, ..Default::default() };
        let paths = match settings {
            [] => vec!["*".to_owned()],
            named => named.iter().map(|setting| format!("policy.{setting}")).collect(),
        };
        let request = v1::UpdateKeyspaceRequest {
            keyspace: Some(keyspace),
            update_mask: Some(prost_types::FieldMask { paths }),
            validate_only: options.dry_run,
        };
        let send = |mut client: KeyspacesClient<_>, request| async move { client.update_keyspace(request).await };
        Keyspace::of_wire(self.call_keyspaces(options.dry_run, request, send).await?.keyspace)
    }

    /// Deletes a keyspace with all of its data, everywhere. Returns it as it was.
    pub async fn delete_keyspace(&self, name: &str, options: ChangeOptions) -> Result<Keyspace, Error> {
        let ChangeOptions { etag, dry_run } = options;
        let request = v1::DeleteKeyspaceRequest { name: name.to_owned(), etag, validate_only: dry_run };
        let send = |mut client: KeyspacesClient<_>, request| async move { client.delete_keyspace(request).await };
        Keyspace::of_wire(self.call_keyspaces(dry_run, request, send).await?.keyspace)
    }

    /// Ships what the region that is asked has written into a keyspace to the others, now, and waits until they have it, for as long as
    /// the call may take.
    pub async fn ship(&self, keyspace: &str) -> Result<Vec<Shipment>, Error> {
        let request = v1::ShipKeyspaceRequest { keyspace: keyspace.to_owned() };
        let send = |mut client: KeyspacesClient<_>, request| async move { client.ship_keyspace(request).await };
        let shipments = self.call_keyspaces(true, request, send).await?.shipments.into_iter();
        Ok(shipments.map(|one| Shipment { region: one.region, keys: one.keys, is_done: one.done }).collect())
    }

    /// Moves the homes of keys to another region, while they are read and written. Again, it goes on where it stopped: so it is
    /// tried again like a read.
    pub async fn move_homes(&self, keyspace: &str, what: MoveWhat, to: &str) -> Result<HomesMoved, Error> {
        use v1::move_homes_request::What;
        let what = Some(match what {
            MoveWhat::Key(key) => What::Key(key),
            MoveWhat::Prefix(prefix) => What::Prefix(prefix),
        });
        let request = v1::MoveHomesRequest { keyspace: keyspace.to_owned(), what, to: to.to_owned() };
        let send = |mut client: KeyspacesClient<_>, request| async move { client.move_homes(request).await };
        let v1::MoveHomesResponse { moved, home_epoch, .. } = self.call_keyspaces(true, request, send).await?;
        Ok(HomesMoved { keys: moved, home_epoch })
    }
}

/// Whose home is to be another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveWhat {
    Key(Bytes),
    /// All keys that begin so; empty is every key.
    Prefix(Bytes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomesMoved {
    /// How many keys had another home.
    pub keys: u64,
    pub home_epoch: u64,
}
