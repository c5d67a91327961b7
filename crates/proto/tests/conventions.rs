//! The API's conventions, checked on its descriptors: so that a message added later keeps them too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use isle_proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
};

fn files() -> Vec<FileDescriptorProto> {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap().file
}

fn messages() -> BTreeMap<String, DescriptorProto> {
    let named = |file: FileDescriptorProto| {
        let package = file.package().to_owned();
        file.message_type.into_iter().map(move |m| (format!(".{package}.{}", m.name()), m))
    };
    files().into_iter().flat_map(named).collect()
}

fn client_methods() -> Vec<MethodDescriptorProto> {
    let services = files().into_iter().flat_map(|file| file.service);
    services.filter(|service| service.name() != "Peer").flat_map(|service| service.method).collect()
}

fn field<'a>(message: &'a DescriptorProto, name: &str) -> Option<&'a FieldDescriptorProto> {
    message.field.iter().find(|field| field.name() == name)
}

#[test]
fn every_service_is_described_for_reflection() {
    let mut services: Vec<String> =
        files().iter().flat_map(|f| f.service.iter().map(|s| format!("{}.{}", f.package(), s.name()))).collect();
    services.sort();
    assert_eq!(services, ["isle.v1.Cluster", "isle.v1.DevLinks", "isle.v1.Keyspaces", "isle.v1.Kv", "isle.v1.Peer"]);
}

#[test]
fn every_reply_to_a_client_begins_with_the_header() {
    let messages = messages();
    for method in client_methods() {
        let header = field(&messages[method.output_type()], "header");
        let header = header.unwrap_or_else(|| panic!("{} has no header", method.output_type()));
        assert_eq!((header.number(), header.type_name()), (1, ".isle.v1.ResponseHeader"), "{}", method.output_type());
    }
}

#[test]
fn every_mutation_has_a_request_id() {
    let messages = messages();
    let operation = &messages[".isle.v1.WriteOperation"];
    assert_eq!(operation.field.len(), 4);
    for mutation in &operation.field {
        let request_id = field(&messages[mutation.type_name()], "request_id");
        assert_eq!(request_id.map(|f| f.r#type()), Some(Type::String), "{}", mutation.type_name());
    }
}

/// They have no request id: an etag, or the name that is taken, lets none take effect twice.
#[test]
fn every_change_of_a_keyspace_can_be_tried_and_bound_to_an_etag() {
    let messages = messages();
    let keyspace = &messages[".isle.v1.Keyspace"];
    assert_eq!(field(keyspace, "etag").map(|f| f.r#type()), Some(Type::String));
    for change in ["Create", "Update", "Delete"] {
        let request = &messages[&format!(".isle.v1.{change}KeyspaceRequest")];
        assert_eq!(field(request, "validate_only").map(|f| f.r#type()), Some(Type::Bool), "{change}");
        let carries = field(request, "keyspace").map(FieldDescriptorProto::type_name) == Some(".isle.v1.Keyspace");
        assert!(carries || field(request, "etag").is_some(), "{change}");
    }
}

#[test]
fn every_list_that_is_paged_follows_the_paging_rules() {
    let messages = messages();
    let paged: Vec<_> = messages.iter().filter(|(_, message)| field(message, "page_size").is_some()).collect();
    assert!(!paged.is_empty());
    for (name, request) in paged {
        let response = &messages[&name.replace("Request", "Response")];
        assert!(field(request, "page_token").is_some(), "{name}");
        assert!(field(response, "next_page_token").is_some(), "{name}");
    }
}

#[test]
fn zero_of_every_enum_is_unspecified() {
    for value in files().iter().flat_map(|file| &file.enum_type) {
        let zero = &value.value[0];
        assert!(zero.number() == 0 && zero.name().ends_with("_UNSPECIFIED"), "{}", value.name());
    }
}
