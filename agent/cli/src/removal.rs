//! `weft peer remove`: says what a host holds, asks, and tells what is released.
//!
//! In: the agent's answers and, on a terminal, a person's. Out: lines as things happen, and the sum of it.

use std::io::{self, IsTerminal as _};

use tokio_stream::StreamExt as _;
use tonic::Status;
use weft_proto::v1::{self, remove_peer_response::Part};

use crate::args::RemoveArgs;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Paint, complain, plain};
use crate::progress::waiting;
use crate::table::{Lines, or_dash};
use crate::view::{Held, Removed};

/// One endpoint that is gone: "released blue/host3/web 10.1.0.5".
pub(crate) fn line(done: &str, held: &Held) -> String {
    let mut text = format!("{done} {}/{}/{}", held.network, held.node, held.id);
    for address in &held.addresses {
        text.push(' ');
        text.push_str(address);
    }
    plain(&text) + "\n"
}

/// The last line of a removal.
pub(crate) fn summary(removed: &Removed) -> String {
    let mut text = format!(
        "{} is removed; {} released",
        removed.removed,
        counted(removed.released.len() as u64, "endpoint", "endpoints")
    );
    if removed.stray_addresses > 0 {
        let strays = counted(removed.stray_addresses, "address", "addresses");
        text.push_str(&format!(", and {strays} without endpoint"));
    }
    plain(&text) + "\n"
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// What a host holds, for who is about to say yes.
fn holdings(node: &str, holdings: v1::HoldingsResponse, paint: Paint) -> String {
    let endpoints: Vec<Held> = holdings.endpoints.into_iter().map(Held::from).collect();
    let mut text = match (endpoints.len() as u64, holdings.known) {
        (0, true) => format!("{node} holds no endpoint\n"),
        (0, false) => format!("{node} has no record and holds no endpoint\n"),
        (count, _) => format!("{node} holds {}:\n", counted(count, "endpoint", "endpoints")),
    };
    text = plain(text.trim_end()) + "\n";
    if !endpoints.is_empty() {
        let mut lines = Lines::new(&["NETWORK", "ID", "NAME", "ADDRESSES"]);
        for held in &endpoints {
            lines.row(
                crate::output::Tone::Neutral,
                &[
                    held.network.clone(),
                    held.id.clone(),
                    or_dash(held.name.as_deref()),
                    or_dash(Some(&held.addresses.join(","))),
                ],
            );
        }
        text.push_str(&lines.render(paint));
    }
    for stray in holdings.stray_addresses {
        text.push_str(&format!(
            "and {}, for an endpoint that does not exist\n",
            plain(&stray)
        ));
    }
    text
}

/// Removes a host, if that is wanted; `each` is called for every endpoint that is released.
pub(crate) async fn remove(
    client: &Client,
    args: &RemoveArgs,
    paint: Paint,
    each: impl Fn(&Held) -> Result<(), Failure>,
) -> Result<Removed, Failure> {
    let node = &args.node;
    let action = format!("remove peer {node}");
    if !args.yes {
        // What would be refused anyway is nobody asked about.
        let held = waiting("asking what it holds", client.holdings(node)).await?;
        let refusal = if held.local {
            Some(format!(
                "peer {node}: this is its own agent; ask the agent of another host"
            ))
        } else if held.alive && !args.force {
            Some(format!(
                "the agent of {node} is alive; stop weftd there first, or add --force"
            ))
        } else {
            None
        };
        if let Some(why) = refusal {
            return Err(Failure::refused(&action, &Status::failed_precondition(why)));
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::usage(
                "--yes",
                "is needed where there is no terminal to ask on; nothing is changed",
            ));
        }
        let known = held.known;
        complain(&holdings(node, held, paint));
        let question = match known {
            true => format!("Remove {node} from the cluster and release all of this? [y/N] "),
            false => "Release all of this? [y/N] ".to_owned(),
        };
        complain(&plain(&question));
        if !said_yes(&action).await? {
            return Err(Failure::declined());
        }
    }
    let mut parts = client.remove_peer(node, args.force, args.timeout).await?;
    let mut released = Vec::new();
    loop {
        let next = waiting("releasing what it held", parts.next()).await;
        let part = next.map(|part| part.map_err(|status| Failure::refused(&action, &status)));
        match part.transpose()?.map(|part| part.part) {
            Some(Some(Part::Released(held))) => {
                let held = Held::from(held);
                each(&held)?;
                released.push(held);
            }
            Some(Some(Part::Summary(summary))) => {
                return Ok(Removed {
                    removed: node.clone(),
                    released,
                    stray_addresses: summary.stray_addresses,
                });
            }
            Some(None) => {}
            None => {
                let why = Status::unavailable("the agent's answer ended before the summary");
                return Err(Failure::refused(&action, &why));
            }
        }
    }
}

async fn said_yes(action: &str) -> Result<bool, Failure> {
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer
        .await
        .map_err(io::Error::from)
        .and_then(std::convert::identity);
    let answer = answer.map_err(|why| Failure::io(&format!("{action}: read the answer"), &why))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(id: &str, addresses: &[&str]) -> v1::HeldEndpoint {
        v1::HeldEndpoint {
            network: "blue".to_owned(),
            node: "host3".to_owned(),
            id: id.to_owned(),
            name: String::new(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn what_is_to_go_is_shown_before() {
        let response = v1::HoldingsResponse {
            endpoints: vec![held("web", &["10.1.0.5", "fd00::5"]), held("new", &[])],
            stray_addresses: vec!["blue 10.1.0.9".to_owned()],
            known: true,
            ..Default::default()
        };
        assert_eq!(
            holdings("host3", response, Paint::never()),
            "host3 holds 2 endpoints:\n\
             NETWORK   ID    NAME   ADDRESSES\n\
             blue      web   -      10.1.0.5,fd00::5\n\
             blue      new   -      -\n\
             and blue 10.1.0.9, for an endpoint that does not exist\n"
        );
        let nothing = v1::HoldingsResponse {
            known: true,
            ..Default::default()
        };
        assert_eq!(
            holdings("host3", nothing, Paint::never()),
            "host3 holds no endpoint\n"
        );
    }

    #[test]
    fn what_is_gone_is_told() {
        let released = vec![Held::from(held("web", &["10.1.0.5"]))];
        assert_eq!(
            line("released", &released[0]),
            "released blue/host3/web 10.1.0.5\n"
        );
        let removed = Removed {
            removed: "host3".to_owned(),
            released,
            stray_addresses: 2,
        };
        assert_eq!(
            summary(&removed),
            "host3 is removed; 1 endpoint released, and 2 addresses without endpoint\n"
        );
    }
}
