//! What went wrong, told so that it helps: what failed, on which object, why, and what to do about it.
//!
//! In: gRPC statuses and errors of the socket. Out: text for people, JSON for programs, and the exit status.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::path::Path;

use serde::Serialize;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::output::plain;

/// The kinds of failure that programs tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    /// The arguments do not make sense.
    Usage,
    /// The agent does not take a value.
    InvalidArgument,
    NotFound,
    AlreadyExists,
    Conflict,
    Full,
    Unavailable,
    DeadlineExceeded,
    /// The person who was asked said no.
    Declined,
    /// Anything else.
    Internal,
}

impl Code {
    /// The exit status, part of the command's interface.
    pub(crate) const fn exit(self) -> u8 {
        match self {
            Self::Internal | Self::Full | Self::Declined => 1,
            Self::Usage | Self::InvalidArgument => 2,
            Self::NotFound => 3,
            Self::AlreadyExists | Self::Conflict => 4,
            Self::Unavailable => 5,
            Self::DeadlineExceeded => 6,
        }
    }
}

/// The detail that names hosts that have not caught up.
const BEHIND: &str = "hosts";

/// A failed command.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    /// Which kind.
    pub(crate) code: Code,
    /// What failed and why, in one sentence.
    pub(crate) message: String,
    /// What else is known, boxed: a failure is rare, and carried by every result.
    #[serde(flatten)]
    pub(crate) about: Box<About>,
}

/// The particulars of a failure.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct About {
    /// The field or option that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// The object that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resource: Option<Resource>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// What else the agent says: names and values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) details: BTreeMap<String, String>,
}

/// The object that a failure is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Resource {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: String,
}

/// The envelope of a failure in JSON.
#[derive(Serialize)]
struct Envelope<'a> {
    error: &'a Failure,
}

impl Failure {
    fn new(code: Code, message: String, about: About) -> Self {
        Self {
            code,
            message,
            about: Box::new(about),
        }
    }

    /// An option whose value does not make sense beside the others.
    pub(crate) fn usage(option: &str, why: impl Into<String>) -> Self {
        let about = About {
            field: Some(option.to_owned()),
            ..Default::default()
        };
        Self::new(Code::Usage, format!("{option}: {}", why.into()), about)
    }

    /// The person who was asked said no.
    pub(crate) fn declined() -> Self {
        Self::new(Code::Declined, "nothing is changed".to_owned(), About::default())
    }

    /// Arguments that cannot be parsed.
    pub(crate) fn arguments(why: &clap::Error) -> Self {
        let text = why.to_string();
        let message = text
            .lines()
            .take_while(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        Self::new(
            Code::Usage,
            message.trim_start_matches("error: ").to_owned(),
            About::default(),
        )
    }

    /// Nothing more can be read or written here.
    pub(crate) fn io(action: &str, why: &io::Error) -> Self {
        Self::new(
            Code::Internal,
            format!("cannot {action}: {why}"),
            About::default(),
        )
    }

    /// The agent's socket cannot be reached.
    pub(crate) fn unreachable(socket: &Path, why: &io::Error, access: Option<&SocketAccess>) -> Self {
        let at = socket.display();
        let hint = match (why.kind(), access) {
            (io::ErrorKind::PermissionDenied, Some(access)) => format!(
                "the socket is for user {} and group {}: run this as one of them (sudo weft …), or add yourself \
                 to the group (sudo usermod -aG {} $USER) and log in again",
                access.owner, access.group, access.group
            ),
            (io::ErrorKind::PermissionDenied, None) => {
                "run this as root, or as a member of the socket's group".to_owned()
            }
            _ => {
                "is weftd running? (systemctl status weftd), or name another socket with --socket".to_owned()
            }
        };
        let message = format!("cannot reach the weft agent at {at}: {}", os_text(why));
        Self::new(
            Code::Unavailable,
            message,
            About {
                hint: Some(hint),
                ..Default::default()
            },
        )
    }

    /// The agent refused or failed to do something: `action` is what was asked for ("create network blue").
    pub(crate) fn refused(action: &str, status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == "weft");
        // What the agent answers says so; the rest is this side's own, of a connection that it lost.
        let broken = info.is_none().then(|| broken_by(status)).flatten();
        let code = match (info.map(|info| info.reason.as_str()), status.code()) {
            (Some("FULL"), _) => Code::Full,
            _ if broken.is_some() => Code::Unavailable,
            (_, tonic::Code::InvalidArgument | tonic::Code::OutOfRange) => Code::InvalidArgument,
            (_, tonic::Code::NotFound) => Code::NotFound,
            (_, tonic::Code::AlreadyExists) => Code::AlreadyExists,
            (_, tonic::Code::FailedPrecondition | tonic::Code::Aborted) => Code::Conflict,
            (_, tonic::Code::Unavailable) => Code::Unavailable,
            // Cancelled is what the client's own clock gives.
            (_, tonic::Code::DeadlineExceeded | tonic::Code::Cancelled) => Code::DeadlineExceeded,
            _ => Code::Internal,
        };
        let field = details
            .bad_request()
            .and_then(|bad| bad.field_violations.first())
            .map(|violation| violation.field.clone())
            .or_else(|| info.and_then(|info| info.metadata.get("field")).cloned());
        let resource = details.resource_info().map(|resource| Resource {
            kind: resource.resource_type.clone(),
            name: resource.resource_name.clone(),
        });
        let why = match (&broken, code, status.code()) {
            (Some(broken), ..) => broken,
            (_, _, tonic::Code::Unimplemented) => {
                "the agent does not know this call; is it older than this command?"
            }
            (_, Code::DeadlineExceeded, tonic::Code::Cancelled) => "no answer in time",
            _ => status.message(),
        };
        let behind = info.filter(|info| info.metadata.contains_key(BEHIND)).map(|_| {
            "'weft peer list' shows whose agents are alive, and 'weft status' on a host what it lacks; 'weft wait' waits \
             on"
                .to_owned()
        });
        let about = About {
            hint: behind.or_else(|| {
                hint(
                    code,
                    field.as_deref(),
                    resource.as_ref(),
                    info.and_then(|info| info.metadata.get("what")),
                )
            }),
            details: info
                .map(|info| info.metadata.clone().into_iter().collect())
                .unwrap_or_default(),
            field,
            resource,
        };
        let message = match about.details.contains_key(BEHIND) {
            // It is done, here: only others have not caught up.
            true => why.to_owned(),
            false => format!("cannot {action}: {why}"),
        };
        Self::new(code, message, about)
    }

    /// For people: the failure, and on a line of its own what to do.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("weft: {}\n", plain(&self.message));
        if let Some(hint) = &self.about.hint {
            text.push_str(&format!("      {}\n", plain(hint)));
        }
        text
    }

    /// For programs: one line.
    pub(crate) fn json(&self) -> String {
        let envelope = Envelope { error: self };
        // Strings and maps of strings always serialize.
        serde_json::to_string(&envelope).unwrap_or_default() + "\n"
    }
}

/// Why the connection to the agent broke, if that is what happened: the agent ended before it had answered. What was
/// asked for may have been done or not.
fn broken_by(status: &Status) -> Option<String> {
    let mut causes = Vec::new();
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return None;
        }
        causes.push(error.to_string());
        cause = error.source();
    }
    let deepest = causes.pop()?;
    Some(format!(
        "the agent ended the connection before it had answered ({deepest}); it may have been done"
    ))
}

/// Whose a socket is.
pub(crate) struct SocketAccess {
    pub(crate) owner: String,
    pub(crate) group: String,
}

/// "No such file or directory (os error 2)" without what only programs read.
fn os_text(why: &io::Error) -> String {
    let text = why.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// What to do about it, where there is something to say.
fn hint(
    code: Code,
    field: Option<&str>,
    resource: Option<&Resource>,
    away: Option<&String>,
) -> Option<String> {
    let kind = resource.map(|resource| resource.kind.as_str());
    match code {
        Code::InvalidArgument if field == Some("families") => Some(
            "that is --family; 'weft network update NAME --add-subnet CIDR' adds a subnet of the other"
                .to_owned(),
        ),
        Code::InvalidArgument => option_of(field?).map(|option| format!("that is {option}")),
        Code::Conflict => instead_of(field?, resource),
        Code::Full if kind == Some("network") => {
            let name = resource.map_or("NAME", |network| network.name.as_str());
            Some(format!(
                "'weft network update {name} --add-subnet CIDR' makes room"
            ))
        }
        Code::NotFound => match kind {
            Some("network") => Some("'weft network list' shows those there are".to_owned()),
            Some("endpoint") => Some("'weft endpoint list' shows those there are".to_owned()),
            _ => None,
        },
        Code::AlreadyExists => match (kind, resource) {
            (Some("network"), Some(it)) => Some(format!(
                "see 'weft network inspect {0}'; 'weft network update {0}' changes it (--add-subnet, --mtu, …)",
                it.name
            )),
            (Some("endpoint"), _) => {
                Some("see 'weft endpoint list --local', or give another --id".to_owned())
            }
            (Some("reservation"), _) => Some("give another --id, or release it first".to_owned()),
            _ => None,
        },
        Code::Unavailable if away.is_some_and(|what| what.contains("store")) => {
            Some("forwarding goes on without it; 'weft status' shows the connection".to_owned())
        }
        Code::DeadlineExceeded if kind == Some("endpoint") => {
            let see = "see 'weft endpoint list --local' and 'weft status'";
            Some(format!(
                "the agent goes on with it; {see}, or give it longer with --timeout"
            ))
        }
        Code::Internal => Some("the agent's log says more (journalctl -u weftd)".to_owned()),
        _ => None,
    }
}

/// What to ask for instead, where a field of the request stands in the way.
fn instead_of(field: &str, resource: Option<&Resource>) -> Option<String> {
    if field == "force" {
        let name = resource.map_or("NAME", |network| network.name.as_str());
        return Some(format!(
            "'weft network delete {name} --force' detaches them first, on all hosts"
        ));
    }
    if matches!(field, "attachment" | "attachment.ifname") {
        return Some("give another --ifname, or remove what is there".to_owned());
    }
    if field == "remove_subnets" {
        return Some(
            "detach or release them first, or leave the subnet (--remove-subnet) as it is".to_owned(),
        );
    }
    if field == "reservation" {
        return Some("make one with 'weft address reserve', or leave --reservation out".to_owned());
    }
    let option = option_of(field).filter(|option| option.starts_with("--"));
    option.map(|option| format!("give another {option}, or none to have one chosen"))
}

/// The option or argument that a field of a request comes from.
fn option_of(field: &str) -> Option<&'static str> {
    let field = field.strip_prefix("spec.").unwrap_or(field);
    let (head, tail) = field.split_once(['.', '[']).unwrap_or((field, ""));
    Some(match head {
        "subnets" | "add_subnets" if tail.contains("gateway") => "--gateway",
        "subnets" | "add_subnets" if tail.contains("range") => "--range",
        "subnets" | "add_subnets" if tail.contains("reserved") => "--reserved",
        "subnets" => "--subnet",
        "add_subnets" => "--add-subnet",
        "remove_subnets" => "--remove-subnet",
        "cooldown" => "--cooldown",
        "remove_labels" => "--remove-label",
        "families" => "--family",
        "ttl" => "--ttl",
        "reservation" => "--reservation",
        "vni" => "--vni",
        "mtu" => "--mtu",
        "labels" => "--label",
        "options" => "--option",
        "requested_addresses" => "--address",
        "mac" => "--mac",
        "attachment" if tail == "ifname" => "--ifname",
        "attachment" => "the argument NETNS",
        "timeout" => "--timeout",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn refused(code: tonic::Code, reason: &str, more: impl FnOnce(&mut ErrorDetails)) -> Failure {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "weft", [("what".to_owned(), "the store".to_owned())]);
        more(&mut details);
        Failure::refused(
            "create network blue",
            &Status::with_error_details(code, "why not", details),
        )
    }

    #[test]
    fn each_code_has_its_exit_status() {
        for (code, reason, exit) in [
            (tonic::Code::Internal, "INTERNAL", 1),
            (tonic::Code::ResourceExhausted, "FULL", 1),
            (tonic::Code::InvalidArgument, "INVALID_ARGUMENT", 2),
            (tonic::Code::NotFound, "NOT_FOUND", 3),
            (tonic::Code::AlreadyExists, "ALREADY_EXISTS", 4),
            (tonic::Code::FailedPrecondition, "CONFLICT", 4),
            (tonic::Code::Unavailable, "UNAVAILABLE", 5),
            (tonic::Code::DeadlineExceeded, "DEADLINE_EXCEEDED", 6),
        ] {
            assert_eq!(refused(code, reason, |_| {}).code.exit(), exit, "{reason}");
        }
    }

    #[test]
    fn names_field_and_option() {
        let failure = refused(tonic::Code::InvalidArgument, "INVALID_ARGUMENT", |details| {
            details.add_bad_request_violation("spec.subnets[0].gateway", "is odd");
        });
        assert_eq!(failure.about.field.as_deref(), Some("spec.subnets[0].gateway"));
        assert_eq!(
            failure.text(),
            "weft: cannot create network blue: why not\n      that is --gateway\n"
        );
        assert_eq!(
            failure.json(),
            "{\"error\":{\"code\":\"invalid_argument\",\"message\":\"cannot create network blue: why not\",\
             \"field\":\"spec.subnets[0].gateway\",\"hint\":\"that is --gateway\",\"details\":{\"what\":\"the store\"}}}\n"
        );
    }

    #[test]
    fn what_stands_in_the_way_is_told_with_the_option_that_helps() {
        let conflict = |kind: &str, name: &str, field: &str| {
            let mut details = ErrorDetails::new();
            details.set_error_info("CONFLICT", "weft", [("field".to_owned(), field.to_owned())]);
            details.set_resource_info(kind, name, "", "");
            let status = Status::with_error_details(tonic::Code::FailedPrecondition, "why not", details);
            Failure::refused("do it", &status).about.hint.unwrap_or_default()
        };
        let endpoint = |field: &str| conflict("endpoint", "blue/host1/web", field);
        assert_eq!(
            conflict("network", "blue", "force"),
            "'weft network delete blue --force' detaches them first, on all hosts"
        );
        assert_eq!(
            endpoint("attachment.ifname"),
            "give another --ifname, or remove what is there"
        );
        assert_eq!(
            endpoint("attachment"),
            "give another --ifname, or remove what is there"
        );
        assert_eq!(endpoint("attachment.netns"), "");
        assert_eq!(
            endpoint("requested_addresses[1]"),
            "give another --address, or none to have one chosen"
        );
        assert_eq!(endpoint("mac"), "give another --mac, or none to have one chosen");
        assert_eq!(
            conflict("network", "blue", "spec.vni"),
            "give another --vni, or none to have one chosen"
        );
        assert!(endpoint("reservation").contains("weft address reserve"));
        assert!(conflict("network", "blue", "remove_subnets").contains("--remove-subnet"));
        let full = refused(tonic::Code::ResourceExhausted, "FULL", |details| {
            details.set_resource_info("network", "blue", "", "");
        });
        assert_eq!(
            full.about.hint.as_deref(),
            Some("'weft network update blue --add-subnet CIDR' makes room")
        );
        let there = refused(tonic::Code::AlreadyExists, "ALREADY_EXISTS", |details| {
            details.set_resource_info("network", "blue", "", "");
        });
        assert!(
            there
                .text()
                .contains("weft network update blue' changes it (--add-subnet")
        );
    }

    #[test]
    fn a_missing_agent_and_a_closed_door_say_what_to_do() {
        let socket = Path::new("/run/weft/weftd.sock");
        let missing = Failure::unreachable(socket, &io::Error::from_raw_os_error(2), None);
        assert_eq!(
            missing.text(),
            "weft: cannot reach the weft agent at /run/weft/weftd.sock: No such file or directory\n      \
             is weftd running? (systemctl status weftd), or name another socket with --socket\n"
        );
        let access = SocketAccess {
            owner: "root".to_owned(),
            group: "weft".to_owned(),
        };
        let denied = Failure::unreachable(socket, &io::Error::from_raw_os_error(13), Some(&access));
        assert!(
            denied.text().contains("group weft") && denied.text().contains("usermod -aG weft"),
            "{}",
            denied.text()
        );
        assert_eq!((missing.code.exit(), denied.code.exit()), (5, 5));
    }

    #[test]
    fn no_escape_sequence_of_the_agents_reaches_the_terminal() {
        let status = Status::internal("bad \u{1b}[31mthing\r\n");
        assert_eq!(
            Failure::refused("look", &status)
                .text()
                .matches(['\u{1b}', '\r'])
                .count(),
            0
        );
    }
}
