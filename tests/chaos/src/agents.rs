//! Faults of agents that run: what is beside them, before them, or in their clock.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_e2e::status;
use weft_lab::{Clock, Host, Lab, Mode, Proxy, eventually};
use weft_storm::fault::{Course, runs};
use weft_storm::verdict::Verdict;

use crate::faults::promised;

/// After this many seconds, a second agent has not refused to run beside the first.
const REFUSAL: &str = "8";
/// How long an agent has to connect before the proxies stall; it may be that etcd is down just now.
const CONNECTING: Duration = Duration::from_secs(2);
/// How far the clock is off, as libfaketime is told it, one after another. The last one stays.
const JUMPS: [&str; 4] = ["+7h", "-30h", "+0", "+10y"];

/// One more agent with the same configuration: it refuses to run, whatever else is down.
pub(crate) fn second(host: &Host, verdict: &Verdict) -> Result<()> {
    runs(host, verdict);
    let weftd = host.weft_path()?.with_file_name("weftd");
    let mut command = host.netns().command("timeout");
    command.args(["--signal=KILL", REFUSAL]);
    let output = command
        .arg(weftd)
        .arg("--config")
        .arg(host.config_path())
        .output()
        .context("starting a second agent")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let refused = output.status.code().is_some_and(|code| (1..100).contains(&code));
    if !refused || said.contains("panicked") {
        verdict.violated(format!(
            "a second agent on {} ended with {}: {said}",
            host.node(),
            output.status
        ));
    }
    Ok(())
}

/// The agent reaches etcd through proxies only, one for each member, which are slow or stall. It gets along by itself.
pub(crate) fn proxied(
    lab: &Lab,
    host: &Host,
    how: Mode,
    course: &Course<'_>,
    verdict: &Verdict,
) -> Result<()> {
    runs(host, verdict);
    let members = lab.etcd_members().iter();
    let proxies = members
        .map(|member| Proxy::start(host.netns(), SocketAddr::new(member.addresses()[0], 2379)))
        .collect::<Result<Vec<_>>>()?;
    let urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
    let set = |mode| proxies.iter().for_each(|proxy| proxy.set(mode));
    let connected = || {
        let store = &status(host)?["store"];
        ensure!(store["connected"] == true, "{store}");
        Ok(())
    };
    host.stop()?;
    host.spawn_weftd(&["--etcd", &urls.join(",")])?;
    if !matches!(how, Mode::Delay(_)) && eventually(CONNECTING, "it is connected", connected).is_err() {
        verdict.count("faults", "proxies that stalled before there was a connection", 1);
    }
    set(how);
    course.rest();
    set(Mode::Pass);
    let what = format!("{} is connected through proxies that pass all on", host.node());
    promised(verdict, &what, connected);
    host.stop()?;
    host.spawn_weftd(&[])
}

/// The time of day jumps under an agent. It goes on with a wrong one.
pub(crate) fn clock_jumps(host: &Host, course: &Course<'_>, verdict: &Verdict) -> Result<()> {
    runs(host, verdict);
    let clock = Clock::of(host)?;
    host.stop()?;
    host.spawn_weftd_in(&[], &clock.env())?;
    let pause = course.lasts / u32::try_from(JUMPS.len())?;
    for (number, jump) in (1..).zip(JUMPS) {
        course.rest_for(pause * number);
        clock.set(jump)?;
    }
    Ok(())
}
