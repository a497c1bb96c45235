//! What went wrong, in the API's terms.

use weft_api::{ApiError, Subject};
use weft_core::claims::Refusal;
use weft_store::StoreError;
use weft_store_schema::{Endpoint, EndpointRef, RecordError};

use crate::reconcile::chain;

pub(super) fn stopping() -> ApiError {
    ApiError::Unavailable {
        what: "the agent".to_owned(),
        why: "it is stopping".to_owned(),
    }
}

pub(super) fn store_error(error: &StoreError) -> ApiError {
    ApiError::Unavailable {
        what: "the store".to_owned(),
        why: chain(error),
    }
}

pub(super) fn record_error(error: RecordError, within: &str) -> ApiError {
    match error {
        RecordError::Field { field, why } => ApiError::invalid(format!("{within}{field}"), why),
        other => ApiError::invalid(within.trim_end_matches('.'), other.to_string()),
    }
}

pub(super) fn refusal_error(refusal: Refusal, what: &Subject) -> ApiError {
    let why = refusal.to_string();
    match refusal {
        Refusal::NoNetwork(network) => ApiError::NotFound {
            what: Subject::network(network.as_str()),
        },
        Refusal::NetworkExists(network) => ApiError::AlreadyExists {
            what: Subject::network(network.as_str()),
        },
        Refusal::VniTaken { .. } => blocked("spec.vni", what, why),
        Refusal::Exists(e) => ApiError::AlreadyExists { what: subject(&e) },
        Refusal::NoEndpoint(e) => ApiError::NotFound { what: subject(&e) },
        Refusal::Outside { .. } | Refusal::Reserved { .. } => ApiError::invalid("requested_addresses", why),
        Refusal::Taken { .. } => blocked("requested_addresses", what, why),
        Refusal::MacTaken { .. } => blocked("mac", what, why),
        Refusal::Full { network, subnets, .. } => {
            let pool: Vec<String> = subnets.iter().map(|s| s.net.to_string()).collect();
            let few = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
            ApiError::Full {
                what: Subject::network(network.as_str()),
                pool: pool.join(", "),
                used: few(subnets.iter().map(|s| s.used).sum()),
                capacity: few(subnets.iter().map(|s| s.size).sum()),
                why,
            }
        }
        // The subject is told before it.
        Refusal::InUse(network) => {
            let why = why.strip_prefix(&format!("network {network} ")).unwrap_or(&why);
            blocked("force", &Subject::network(network.as_str()), why.to_owned())
        }
        Refusal::Strands { network, .. } => {
            let why = why.strip_prefix(&format!("network {network} ")).unwrap_or(&why);
            blocked(
                "remove_subnets",
                &Subject::network(network.as_str()),
                why.to_owned(),
            )
        }
        Refusal::NotLost(_) => ApiError::AlreadyExists { what: what.clone() },
        Refusal::NoReservation(..) => blocked("reservation", what, why),
        Refusal::ReservationExists(network, (node, id)) => ApiError::AlreadyExists {
            what: Subject::reservation(network.as_str(), node.as_str(), id.as_str()),
        },
        Refusal::NoSuchFamily(..) => ApiError::invalid("families", why),
        Refusal::NoRoom(_) => ApiError::Conflict {
            what: what.clone(),
            why,
        },
        Refusal::Invalid { field, why, .. } => ApiError::invalid(field, why),
    }
}

/// Another value of a field of the request would do.
pub(super) fn blocked(field: &str, what: &Subject, why: String) -> ApiError {
    ApiError::Blocked {
        what: what.clone(),
        why,
        field: field.to_owned(),
    }
}

/// A field of an endpoint's record that is at fault, if it comes from what was asked for, so that another value would do.
pub(super) fn field_asked_for(field: &str, asked: &Endpoint) -> Option<String> {
    let (name, _) = field.split_once('[').unwrap_or((field, ""));
    let is_given = match name {
        // There is always one, be it the usual one.
        "attachment" | "attachment.ifname" => true,
        "requested_addresses" => !asked.requested().is_empty(),
        "mac" => asked.mac.is_some(),
        _ => false,
    };
    is_given.then(|| field.to_owned())
}

/// A deletion by force that others prevent: what was asked for already is no advice.
pub(super) fn although_forced(error: ApiError) -> ApiError {
    match error {
        ApiError::Blocked { what, why, field } if field == "force" => ApiError::Conflict { what, why },
        other => other,
    }
}

pub(super) fn subject(endpoint: &EndpointRef) -> Subject {
    Subject::endpoint(
        endpoint.network.as_str(),
        endpoint.node.as_str(),
        endpoint.id.as_str(),
    )
}

pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    field: &str,
    text: &str,
) -> Result<T, ApiError> {
    text.parse()
        .map_err(|error: T::Err| ApiError::invalid(field, error.to_string()))
}

#[cfg(test)]
mod tests {
    use weft_proto::v1;

    use super::*;
    use crate::control::endpoints::asked_for;

    #[test]
    fn only_what_was_asked_for_is_named_as_at_fault() {
        let attachment = Some(v1::Attachment {
            netns: "/run/netns/web".to_owned(),
            ..v1::Attachment::default()
        });
        let bare = v1::AttachEndpointRequest {
            attachment,
            ..v1::AttachEndpointRequest::default()
        };
        let full = v1::AttachEndpointRequest {
            requested_addresses: vec!["10.1.0.9".to_owned()],
            mac: "02:00:00:00:00:09".to_owned(),
            ..bare.clone()
        };
        let [bare, full] = [bare, full].map(|request| asked_for(request).unwrap().1);
        for (field, in_bare, in_full) in [
            ("attachment", true, true),
            ("attachment.ifname", true, true),
            ("attachment.netns", false, false),
            ("addresses[0]", false, false),
            ("requested_addresses[0]", false, true),
            ("mac", false, true),
        ] {
            let named = |asked| field_asked_for(field, asked).as_deref() == Some(field);
            assert_eq!((named(&bare), named(&full)), (in_bare, in_full), "{field}");
        }
    }

    #[test]
    fn force_is_no_advice_for_who_has_used_it() {
        let what = Subject::network("blue");
        let why = "it is in use: endpoints/blue/host1/a exists".to_owned();
        let error = although_forced(blocked("force", &what, why));
        assert!(matches!(error, ApiError::Conflict { .. }), "{error:?}");
        let error = although_forced(blocked("mac", &what, String::new()));
        assert!(matches!(error, ApiError::Blocked { .. }), "{error:?}");
    }
}
