//! `weft audit`: gathers the parts of the agent's answer and lays them out.
//!
//! In: the agent's stream. Out: text or JSON, and whether nothing is wrong.

use std::cell::Cell;

use tokio_stream::StreamExt as _;
use tonic::Status;
use weft_proto::v1::{self, audit_response::Part};

use crate::args::AuditArgs;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Paint, Tone};
use crate::progress::waiting_while;
use crate::table::Lines;
use crate::view::Audit;

/// Asks for an audit and waits for its end.
pub(crate) async fn ask(client: &Client, args: &AuditArgs) -> Result<Audit, Failure> {
    let progress = Cell::new(v1::AuditProgress::default());
    let doing = || {
        let v1::AuditProgress { records, mended } = progress.get();
        match mended {
            0 => format!("auditing: {records} records read"),
            _ => format!("auditing again: {records} records read, {mended} mended"),
        }
    };
    let work = async {
        let broken = |status: &Status| Failure::refused("audit the records", status);
        let mut parts = client.audit(args.repair, args.timeout).await?;
        let mut findings = Vec::new();
        while let Some(next) = parts.next().await {
            match next.map_err(|status| broken(&status))?.part {
                Some(Part::Progress(now)) => progress.set(now),
                Some(Part::Finding(finding)) => findings.push(finding),
                Some(Part::Summary(summary)) => return Ok(Audit::new(findings, &summary)),
                None => {}
            }
        }
        Err(broken(&Status::unavailable(
            "the agent's answer ended before the summary",
        )))
    };
    waiting_while(doing, work).await
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A line for each finding, and the counts.
pub(crate) fn report(audit: &Audit, paint: Paint) -> String {
    let mut text = String::new();
    if !audit.findings.is_empty() {
        let mut lines = Lines::new(&["KEY", "WRONG", "MENDED", "WHAT TO DO"]);
        for finding in &audit.findings {
            let (tone, mended) = match (finding.mended, finding.mendable) {
                (true, _) => (Tone::Neutral, "yes"),
                (false, true) => (Tone::Bad, "by --repair"),
                (false, false) => (Tone::Bad, "by you"),
            };
            lines.row(
                tone,
                &[
                    finding.key.clone(),
                    finding.message.clone(),
                    mended.to_owned(),
                    finding.remedy.clone(),
                ],
            );
        }
        text = lines.render(paint);
        text.push('\n');
    }
    let mut counts = vec![counted(audit.endpoints, "endpoint", "endpoints")];
    if audit.pending_endpoints > 0 {
        counts.push(format!("{} of them not completed yet", audit.pending_endpoints));
    }
    counts.push(counted(audit.claims, "claim", "claims"));
    if audit.reservations > 0 {
        counts.push(counted(audit.reservations, "reservation", "reservations"));
    }
    counts.push(counted(audit.networks, "network", "networks"));
    let mended = audit.findings.iter().filter(|finding| finding.mended).count();
    let left = audit.findings.len() - mended;
    let mut verdict = match left {
        0 => "clean".to_owned(),
        1 => "1 finding".to_owned(),
        _ => format!("{left} findings"),
    };
    if mended > 0 {
        verdict.push_str(&format!(", {mended} mended"));
    }
    let line = format!("{} at revision {}: {verdict}", counts.join(", "), audit.revision);
    let tone = if audit.clean { Tone::Neutral } else { Tone::Bad };
    text.push_str(&paint.text(tone, &line));
    text.push('\n');
    text
}
