//! Faults of a host's way to the others: its cable, its interface, its addresses.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use weft_e2e::link;
use weft_lab::{Host, Lab};
use weft_storm::fault::Course;
use weft_storm::verdict::Verdict;

use crate::choice::Way;
use crate::faults::promised;

/// Added to a host's number for the addresses that it is given for a while: no host and no member has them.
const ELSEWHERE: usize = 100;

/// Does one of the things that are done to an interface.
pub(crate) fn strike(lab: &Lab, host: &Host, how: Way, course: &Course<'_>, verdict: &Verdict) -> Result<()> {
    match how {
        Way::Flaps(times) => {
            // As long down as up.
            let each = course.lasts / (2 * times);
            for time in 0..times {
                host.lower_underlay()?;
                course.rest_for(each * (2 * time + 1));
                host.raise_underlay()?;
                know_neighbours(lab, host)?;
                course.rest_for(each * (2 * time + 2));
            }
            Ok(())
        }
        Way::MadeAnew => {
            host.remove_underlay()?;
            course.rest();
            host.make_underlay(Some(&mac(host)?))?;
            know_neighbours(lab, host)
        }
        Way::Renumbered => renumbered(lab, host, course, verdict),
    }
}

/// The host has other addresses for a while, which its agent tells all.
fn renumbered(lab: &Lab, host: &Host, course: &Course<'_>, verdict: &Verdict) -> Result<()> {
    let own = host.addresses();
    let others = lab.record().host_addresses(host.number() + ELSEWHERE);
    host.renumber_underlay(&own, &others)?;
    know_neighbours(lab, host)?;
    let key = format!("/weft/v1/peers/{}", host.node());
    let what = format!("{key} tells the new addresses {others:?}");
    promised(verdict, &what, || {
        let record = lab.get_json(&key)?.context("it is not there")?;
        let told = record["vteps"].as_array().into_iter().flatten();
        let told: Vec<IpAddr> = told
            .filter_map(|address| address.as_str()?.parse().ok())
            .collect();
        ensure!(told == others, "it is {record}");
        Ok(())
    });
    course.rest();
    host.renumber_underlay(&others, &own)?;
    know_neighbours(lab, host)
}

/// The cable is out for a while.
pub(crate) fn unplug(host: &Host, course: &Course<'_>) -> Result<()> {
    host.unplug()?;
    course.rest();
    host.plug()
}

/// Takes down the MAC address of each host, which its underlay keeps, and has all know all.
///
/// # Errors
/// When ip fails.
pub(crate) fn know_all_neighbours(lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        let mac = link(host.netns(), "eth0")?["address"].clone();
        std::fs::write(note(host), mac.as_str().context("no MAC address")?)?;
    }
    lab.hosts().iter().try_for_each(|host| know_neighbours(lab, host))
}

fn note(host: &Host) -> PathBuf {
    host.dir().join("underlay-mac")
}

fn mac(host: &Host) -> Result<String> {
    std::fs::read_to_string(note(host)).context("the MAC address that was taken down")
}

/// Has a host know for good which MAC address every other one has, under all addresses that it may be given.
///
/// It would ask for them anew for seconds where nobody answers, and keep that long all answers of its containers to echo
/// requests: hosts of a lab, and all labs of a machine, share one kernel, which answers from one socket for all of them
/// (a processor, a family), and with that one's buffer full no container of any host is answered any more.
pub(crate) fn know_neighbours(lab: &Lab, host: &Host) -> Result<()> {
    let mut script = String::new();
    for other in lab.hosts().iter().filter(|other| other.number() != host.number()) {
        let mac = mac(other)?;
        let elsewhere = lab.record().host_addresses(other.number() + ELSEWHERE);
        for address in other.addresses().iter().chain(&elsewhere) {
            script.push_str(&format!(
                "neigh replace {address} lladdr {mac} dev eth0 nud permanent\n"
            ));
        }
    }
    host.exec(&["sh", "-c", "echo \"$0\" | ip -batch -", &script])
        .map(drop)
}

/// Gives the interface another MTU.
pub(crate) fn set_mtu(host: &Host, mtu: u16) -> Result<()> {
    let mtu = mtu.to_string();
    host.exec(&["ip", "link", "set", "dev", "eth0", "mtu", &mtu])
        .map(drop)
}
