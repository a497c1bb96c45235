//! Networks as requests describe them, made and changed.

use std::time::Duration;

use tokio::time::Instant;
use weft_api::{ApiError, Call, Subject};
use weft_core::{
    claims::{self, NetworkChange},
    headroom,
};
use weft_proto::v1;
use weft_store_schema::{NetworkDocument, NetworkName, SubnetDocument, check_room};

use super::{AgentControl, parse, record_error};
use crate::view;

/// How long the kernel is given to follow a change before the answer.
const KERNEL_PATIENCE: Duration = Duration::from_secs(1);

/// The record of a new network.
pub(super) fn document(spec: v1::NetworkSpec) -> Result<NetworkDocument, ApiError> {
    let document = NetworkDocument {
        version: None,
        subnets: spec.subnets.into_iter().map(subnet).collect(),
        vni: spec.vni.map(Into::into),
        mtu: spec.mtu.map(Into::into),
        multicast: spec.multicast,
        cooldown: cooldown("spec.cooldown", spec.cooldown)?.filter(|seconds| *seconds > 0),
        labels: spec.labels.into_iter().collect(),
        options: spec.options.into_iter().collect(),
    };
    document
        .clone()
        .validate()
        .and_then(|_| check_room(&document))
        .map_err(|e| record_error(e, "spec."))?;
    Ok(document)
}

fn subnet(subnet: v1::Subnet) -> SubnetDocument {
    let given = |text: String| (!text.is_empty()).then_some(text);
    SubnetDocument {
        cidr: subnet.cidr,
        gateway: given(subnet.gateway),
        range: given(subnet.range),
        reserved: subnet.reserved,
    }
}

/// A cool-down in seconds, as records have it.
fn cooldown(field: &str, asked: Option<prost_types::Duration>) -> Result<Option<u64>, ApiError> {
    let Some(asked) = asked else { return Ok(None) };
    match Duration::try_from(asked) {
        Ok(time) if time.subsec_nanos() == 0 => Ok(Some(time.as_secs())),
        _ => Err(ApiError::invalid(field, "must be whole seconds, 0 or more")),
    }
}

pub(super) fn change(request: v1::UpdateNetworkRequest) -> Result<NetworkChange, ApiError> {
    let add_subnets: Vec<SubnetDocument> = request.add_subnets.into_iter().map(subnet).collect();
    // What is wrong with them by themselves is told by the request's own fields.
    if !add_subnets.is_empty() {
        let alone = NetworkDocument {
            subnets: add_subnets.clone(),
            ..NetworkDocument::default()
        };
        alone.validate().map_err(|e| record_error(e, "add_"))?;
    }
    let remove_subnets = request
        .remove_subnets
        .iter()
        .enumerate()
        .map(|(i, net)| parse(&format!("remove_subnets[{i}]"), net))
        .collect::<Result<_, _>>()?;
    let mut labels: std::collections::BTreeMap<String, Option<String>> = request
        .labels
        .into_iter()
        .map(|(name, text)| (name, Some(text)))
        .collect();
    for (i, name) in request.remove_labels.into_iter().enumerate() {
        if let Some(Some(_)) = labels.insert(name, None) {
            let why = "is to be set as well";
            return Err(ApiError::invalid(format!("remove_labels[{i}]"), why));
        }
    }
    let change = NetworkChange {
        add_subnets,
        remove_subnets,
        mtu: request.mtu.map(Into::into),
        cooldown: cooldown("cooldown", request.cooldown)?,
        labels,
    };
    if change == NetworkChange::default() {
        return Err(ApiError::invalid(
            "add_subnets",
            "nothing is to be changed; give this or another field",
        ));
    }
    Ok(change)
}

/// Whatever is wrong with the subnets of the record, which was right before, came with the request.
pub(super) fn as_field_of_the_request(error: ApiError) -> ApiError {
    match error {
        ApiError::InvalidArgument { field, why } if field == "subnets" && why.contains("no subnet") => {
            ApiError::invalid("remove_subnets", why)
        }
        ApiError::InvalidArgument { field, why } if field.starts_with("subnets") => {
            ApiError::invalid("add_subnets", why)
        }
        other => other,
    }
}

impl AgentControl {
    /// See [`weft_api::Control::create_network`].
    pub(super) async fn make_network(
        &self,
        call: Call,
        name: String,
        spec: v1::NetworkSpec,
    ) -> Result<v1::CreateNetworkResponse, ApiError> {
        let name: NetworkName = parse("name", &name)?;
        let mtu = spec.mtu;
        let document = document(spec)?;
        let what = Subject::network(name.as_str());
        let made = name.clone();
        self.write(&call, &what, move |r, _| {
            claims::create_network(&r.snapshot, &made, &document)
        })
        .await?;
        let netns_dir = self.netns_dir.clone();
        let done = self
            .wait(call.deadline, move |r| {
                let slot = r.snapshot.network(&name)?;
                slot.value.as_ref()?.vni?;
                view::network(r, &name, slot, &netns_dir)
            })
            .await?;
        let Some(network) = done else {
            return Err(ApiError::DeadlineExceeded {
                what,
                waited: call.started.elapsed(),
                why: "the record is written, but no VNI has been claimed for it yet".to_owned(),
            });
        };
        Ok(v1::CreateNetworkResponse {
            network: Some(network),
            warnings: self.warnings(mtu).await?,
        })
    }

    /// See [`weft_api::Control::update_network`].
    pub(super) async fn change_network(
        &self,
        call: Call,
        mut request: v1::UpdateNetworkRequest,
    ) -> Result<v1::UpdateNetworkResponse, ApiError> {
        let name: NetworkName = parse("name", &std::mem::take(&mut request.name))?;
        let mtu = request.mtu;
        let change = change(request)?;
        let what = Subject::network(name.as_str());
        self.look_up_network(&call, &name).await?;
        // What is held matters only where a subnet goes.
        let _pin = if change.remove_subnets.is_empty() {
            None
        } else {
            Some(self.view_of(&call, &name).await?)
        };
        let changed = name.clone();
        self.write(&call, &what, move |r, _| {
            claims::update_network(&r.snapshot, &changed, &change)
        })
        .await
        .map_err(as_field_of_the_request)?;
        if mtu.is_some() {
            // So that the answer says what is in force then; where the kernel does not follow, it says what is.
            let followed = name.clone();
            let patience = call.deadline.min(Instant::now() + KERNEL_PATIENCE);
            self.wait(patience, move |r| r.has_followed(&followed).then_some(()))
                .await?;
        }
        let netns_dir = self.netns_dir.clone();
        let network = self
            .ask(move |r| view::network(r, &name, r.snapshot.network(&name)?, &netns_dir))
            .await?
            .ok_or(ApiError::NotFound { what })?;
        Ok(v1::UpdateNetworkResponse {
            network: Some(network),
            warnings: self.warnings(mtu).await?,
        })
    }

    /// What is to be said of an MTU that was asked for.
    async fn warnings(&self, mtu: Option<u32>) -> Result<Vec<String>, ApiError> {
        let Some(mtu) = mtu.and_then(|mtu| u16::try_from(mtu).ok()) else {
            return Ok(Vec::new());
        };
        self.ask(move |r| {
            let host = r.host()?;
            headroom::excess(&r.snapshot, &host, mtu)
        })
        .await
        .map(|warning| warning.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: v1::UpdateNetworkRequest) -> String {
        match change(request) {
            Err(error @ ApiError::InvalidArgument { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_a_change_is_named_by_its_field() {
        let empty = v1::UpdateNetworkRequest::default;
        assert!(refused(empty()).contains("nothing is to be changed"));
        let subnet = v1::Subnet {
            cidr: "10.1.0.0/24".to_owned(),
            gateway: "10.2.0.1".to_owned(),
            ..v1::Subnet::default()
        };
        let add_subnets = vec![subnet];
        assert_eq!(
            refused(v1::UpdateNetworkRequest {
                add_subnets,
                ..empty()
            }),
            "add_subnets[0].gateway: 10.2.0.1 is not inside 10.1.0.0/24"
        );
        let remove_subnets = vec!["10.1.0.0/24".to_owned(), "blue".to_owned()];
        assert!(
            refused(v1::UpdateNetworkRequest {
                remove_subnets,
                ..empty()
            })
            .starts_with("remove_subnets[1]: ")
        );
        let cooldown = Some(prost_types::Duration {
            seconds: 1,
            nanos: 500_000_000,
        });
        assert_eq!(
            refused(v1::UpdateNetworkRequest { cooldown, ..empty() }),
            "cooldown: must be whole seconds, 0 or more"
        );
        assert_eq!(
            refused(v1::UpdateNetworkRequest {
                labels: [("a".to_owned(), String::new())].into(),
                remove_labels: vec!["a".to_owned()],
                ..empty()
            }),
            "remove_labels[0]: is to be set as well"
        );
    }
}
