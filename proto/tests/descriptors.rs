//! The descriptor set that the agent hands out: whole, and with every element documented.

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

fn weft() -> FileDescriptorProto {
    FileDescriptorSet::decode(weft_proto::FILE_DESCRIPTOR_SET)
        .expect("descriptors decode")
        .file
        .into_iter()
        .find(|file| file.package() == "weft.v1")
        .expect("weft.v1 is among them")
}

#[test]
fn holds_the_services_and_their_methods() {
    let methods: Vec<String> = weft()
        .service
        .iter()
        .flat_map(|service| {
            service
                .method
                .iter()
                .map(|m| format!("{}/{}", service.name(), m.name()))
        })
        .collect();
    let expected = [
        "Networks/Create",
        "Networks/List",
        "Networks/Get",
        "Networks/Update",
        "Networks/Delete",
        "Networks/Wait",
        "Endpoints/Attach",
        "Endpoints/Detach",
        "Endpoints/List",
        "Endpoints/Get",
        "Addresses/Reserve",
        "Addresses/Unreserve",
        "Addresses/List",
        "Peers/List",
        "Peers/Holdings",
        "Peers/Remove",
        "Status/Get",
        "Status/Version",
        "Status/AcceptDeletions",
        "Status/Republish",
        "Records/Audit",
        "Events/Watch",
    ];
    assert_eq!(methods, expected);
}

#[test]
fn every_element_is_documented() {
    let file = weft();
    let documented = |path: &[i32]| {
        file.source_code_info
            .iter()
            .flat_map(|info| &info.location)
            .any(|location| location.path == path && !location.leading_comments().trim().is_empty())
    };
    // Numbers of the fields within FileDescriptorProto and what it holds, as descriptor.proto has them.
    const MESSAGE: i32 = 4;
    const MESSAGE_FIELD: i32 = 2;
    const ENUM: i32 = 5;
    const ENUM_VALUE: i32 = 2;
    const SERVICE: i32 = 6;
    const SERVICE_METHOD: i32 = 2;
    let mut bare = Vec::new();
    let mut want = |path: &[i32], name: String| {
        if !documented(path) {
            bare.push(name);
        }
    };
    for (i, message) in (0..).zip(&file.message_type) {
        want(&[MESSAGE, i], message.name().to_owned());
        for (j, field) in (0..).zip(&message.field) {
            want(
                &[MESSAGE, i, MESSAGE_FIELD, j],
                format!("{}.{}", message.name(), field.name()),
            );
        }
    }
    for (i, kind) in (0..).zip(&file.enum_type) {
        want(&[ENUM, i], kind.name().to_owned());
        for (j, value) in (0..).zip(&kind.value) {
            want(&[ENUM, i, ENUM_VALUE, j], value.name().to_owned());
        }
    }
    for (i, service) in (0..).zip(&file.service) {
        want(&[SERVICE, i], service.name().to_owned());
        for (j, method) in (0..).zip(&service.method) {
            want(
                &[SERVICE, i, SERVICE_METHOD, j],
                format!("{}/{}", service.name(), method.name()),
            );
        }
    }
    assert!(bare.is_empty(), "without a comment: {bare:?}");
}
