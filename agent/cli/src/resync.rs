//! `weft resync`: ends the keeping of what the store has lost, one way or the other.
//!
//! In: the agent's answers. Out: text or JSON, and whether records are left that could not be written again.

use std::path::Path;

use weft_proto::v1;

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Paint, Tone};
use crate::progress::waiting;
use crate::table::Lines;
use crate::view::{Accepted, Republished};

/// Confirms that what is held may go.
pub(crate) async fn accept(socket: &Path) -> Result<Accepted, Failure> {
    let asked = async { Client::connect(socket).await?.accept_deletions().await };
    let answer = waiting("confirming the held deletions", asked).await?;
    Ok(Accepted {
        was_holding: answer.was_holding,
        count: answer.count,
        removal_acknowledged: answer.removal_acknowledged,
    })
}

/// What was confirmed, in words.
pub(crate) fn accepted(accepted: &Accepted) -> String {
    let mut text = String::new();
    if accepted.removal_acknowledged {
        text.push_str("the notice that this node was removed from the cluster is ended\n");
    }
    if accepted.was_holding {
        let count = accepted.count;
        text.push_str(&format!(
            "confirmed: {count} held records, and whatever no record explains, may go\n"
        ));
    } else if text.is_empty() {
        text.push_str("nothing was held\n");
    }
    text
}

/// Writes again what the store has lost.
pub(crate) async fn republish(socket: &Path) -> Result<Republished, Failure> {
    let asked = async { Client::connect(socket).await?.republish().await };
    let answer: v1::RepublishResponse = waiting("writing the lost records again", asked).await?;
    Ok(Republished::from(answer))
}

/// A line for each record that is not simply there again, and the counts.
pub(crate) fn republished(done: &Republished, paint: Paint) -> String {
    let count = |outcome: &str| {
        done.records
            .iter()
            .filter(|record| record.outcome == outcome)
            .count()
    };
    let (written, present, conflicts) = (count("written"), count("present"), count("conflict"));
    let mut text = String::new();
    if !done.records.is_empty() {
        let mut lines = Lines::new(&["KEY", "OUTCOME", "WHY"]);
        for record in &done.records {
            let bad = record.outcome == "conflict";
            let tone = if bad { Tone::Bad } else { Tone::Neutral };
            let why = record.message.clone().unwrap_or_else(|| "-".to_owned());
            lines.row(tone, &[record.key.clone(), record.outcome.clone(), why]);
        }
        text.push_str(&lines.render(paint));
        text.push('\n');
    }
    let mut told = match (written, present) {
        (0, 0) if conflicts == 0 => "nothing of this host was lost".to_owned(),
        (written, 0) => format!("{written} records written again"),
        (written, present) => format!("{written} records written again, {present} were there"),
    };
    if conflicts > 0 {
        told.push_str(&format!(", {conflicts} could not be"));
    }
    let tone = if conflicts > 0 { Tone::Bad } else { Tone::Neutral };
    text.push_str(&paint.text(tone, &told));
    text.push('\n');
    if !done.nodes.is_empty() {
        let nodes = done.nodes.join(", ");
        text.push_str(&format!(
            "still missing are records of {nodes}: run this there, too\n"
        ));
    }
    if conflicts > 0 {
        text.push_str(
            "what could not be written is kept as it runs: detach it here and attach it anew, or write it by hand\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_and_other_hosts_are_named() {
        let record = |key: &str, outcome: v1::RepublishOutcome, message: &str| v1::Republished {
            key: key.to_owned(),
            outcome: outcome.into(),
            message: message.to_owned(),
        };
        let done = Republished::from(v1::RepublishResponse {
            records: vec![
                record("networks/blue", v1::RepublishOutcome::Written, ""),
                record(
                    "endpoints/blue/host1/a",
                    v1::RepublishOutcome::Conflict,
                    "10.1.0.2 is taken",
                ),
            ],
            nodes: vec!["host2".to_owned()],
        });
        assert!(done.conflicts());
        let text = republished(&done, Paint::never());
        assert!(
            text.contains("endpoints/blue/host1/a   conflict   10.1.0.2 is taken"),
            "{text}"
        );
        assert!(text.contains("1 records written again, 1 could not be"), "{text}");
        assert!(text.contains("records of host2: run this there, too"), "{text}");
        let nothing = republished(
            &Republished::from(v1::RepublishResponse::default()),
            Paint::never(),
        );
        assert_eq!(nothing, "nothing of this host was lost\n");
    }
}
