//! The model of etcd, which the model of the claim protocol has, too.

pub(crate) use weft_model::etcd::{Etcd as Store, covers, key_of, revision_of};
