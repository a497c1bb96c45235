//! One setting at a time: the same path with it and without it, in turns. What is a device's for life is tried on a
//! VXLAN made by hand, everything else on weft's own, whose agents are stopped meanwhile (they would put it right).

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt::Write as _,
};

use anyhow::{Context, Result};
use weft_bench::{Form, Progress, rotated};
use weft_lab::{Lab, Namespace};

use crate::{
    load::{Load, Peer, Quantity},
    path::{Path, script},
    rounds::{Series, add, turn},
    settings::{OPTIONS, Place, SETTINGS, Setting, V6},
    weft,
};

/// Without the four streams, which differ from the one hardly ever.
const LOADS: [Load; 3] = [Load::Tcp(1), Load::Packets, Load::RoundTrips];

/// A figure with a setting beside the one without it.
struct Tried {
    name: &'static str,
    without: Series,
    with: Series,
    /// Why there are no more figures.
    failed: Option<String>,
}

/// Tries all of them; a table.
pub(crate) fn measure(
    lab: &Lab,
    switch: &Namespace,
    path: Path,
    form: Form,
    progress: Progress,
) -> Result<String> {
    let rounds = form.pick(3, 7);
    for host in lab.hosts() {
        host.stop()?;
    }
    let places: BTreeMap<Place, Vec<Namespace>> = [
        (Place::Container, vec![path.from.clone(), path.to.clone()]),
        (Place::Network, vec![weft::network(lab, 1), weft::network(lab, 2)]),
        (
            Place::Host,
            vec![lab.host(1).netns().clone(), lab.host(2).netns().clone()],
        ),
        (Place::Switch, vec![switch.clone()]),
    ]
    .into();
    // Nobody asks for a MAC meanwhile: what skips the bridge skips its answers, too.
    known_to_each_other(&path)?;
    let weft = Peer::start(path)?;
    let mut all = Vec::new();
    for setting in &SETTINGS {
        progress.say(setting.name);
        let mut tried = Tried::new(setting.name);
        for round in 0..rounds {
            // A kernel without the feature, or one that does not get packets through with it, says something, too.
            if let Err(why) = setting.turns(&weft, &places, round, &mut tried) {
                progress.say(format!("{why:#}"));
                tried.failed = Some(format!("{}", why.root_cause()));
                break;
            }
        }
        all.push(tried);
    }
    drop(weft);
    for (host, address) in lab.hosts().iter().zip(V6) {
        script(host.netns(), &format!("ip addr add {address}/64 dev eth0 nodad"))?;
    }
    let mut made: BTreeMap<usize, Peer> = BTreeMap::new();
    for hand in OPTIONS.iter().flat_map(|(without, with)| [without, with]) {
        if let Entry::Vacant(place) = made.entry(hand.number) {
            place.insert(Peer::start(hand.make(lab)?)?);
        }
    }
    for (without, with) in &OPTIONS {
        progress.say(with.name);
        let mut tried = Tried::new(with.name);
        let both = [&made[&without.number], &made[&with.number]];
        for round in 0..rounds {
            if let Err(why) = turns(both, round, &mut tried) {
                progress.say(format!("{why:#}"));
                tried.failed = Some(format!("{}", why.root_cause()));
                break;
            }
        }
        all.push(tried);
    }
    Ok(table(&all, rounds))
}

/// A turn of each of two devices with each load: the one without the option, and the one with it.
fn turns(both: [&Peer; 2], round: usize, tried: &mut Tried) -> Result<()> {
    for load in LOADS {
        for which in rotated(2, round) {
            let found = both[which].measure(load, turn(load))?;
            let series = if which == 0 {
                &mut tried.without
            } else {
                &mut tried.with
            };
            add(series, found);
        }
    }
    Ok(())
}

/// Gives both containers each other's MAC for good.
fn known_to_each_other(path: &Path) -> Result<()> {
    let own = |place: &Namespace| -> Result<[String; 2]> {
        let links = place.ip_json(&["addr", "show", "dev", "eth0"])?;
        let mac = links[0]["address"].as_str().context("a MAC")?.to_owned();
        let address = links[0]["addr_info"][0]["local"].as_str().context("an address")?;
        Ok([mac, address.to_owned()])
    };
    for (here, there) in [(&path.from, &path.to), (&path.to, &path.from)] {
        let [mac, address] = own(there)?;
        script(
            here,
            &format!("ip neigh replace {address} lladdr {mac} dev eth0 nud permanent"),
        )?;
    }
    Ok(())
}

impl Setting {
    fn make(&self, places: &BTreeMap<Place, Vec<Namespace>>) -> Result<()> {
        for (place, on, _) in self.steps {
            for namespace in &places[place] {
                script(namespace, on)?;
            }
        }
        Ok(())
    }

    /// A turn of each with each load.
    fn turns(
        &self,
        weft: &Peer,
        places: &BTreeMap<Place, Vec<Namespace>>,
        round: usize,
        tried: &mut Tried,
    ) -> Result<()> {
        for load in LOADS {
            for which in rotated(2, round) {
                if which == 0 {
                    add(&mut tried.without, weft.measure(load, turn(load))?);
                    continue;
                }
                let found = self.make(places).and_then(|()| weft.measure(load, turn(load)));
                let back = self.take_back(places);
                // Failed half-way, not all of it can be taken back.
                add(&mut tried.with, found?);
                back?;
            }
        }
        Ok(())
    }

    fn take_back(&self, places: &BTreeMap<Place, Vec<Namespace>>) -> Result<()> {
        let mut all = Ok(());
        for (place, _, off) in self.steps.iter().rev() {
            for namespace in &places[place] {
                all = all.and(script(namespace, off).map(drop));
            }
        }
        all
    }
}

impl Tried {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            without: Series::new(),
            with: Series::new(),
            failed: None,
        }
    }
}

fn table(all: &[Tried], rounds: usize) -> String {
    let is_tried = |quantity: &Quantity| *quantity != Quantity::Streams;
    let quantities: Vec<_> = Quantity::ALL.into_iter().filter(is_tried).collect();
    let mut text = format!(
        "One setting at a time, {rounds} rounds of both in turns: the median figure with it, and the median of the rounds' \
         ratios to the one without it (of round trips less is better).\n\n| setting |"
    );
    for &quantity in &quantities {
        let _ = write!(text, " {}, {} |", quantity.text(), quantity.unit());
    }
    let _ = writeln!(text, "\n|---|{}", "---|".repeat(quantities.len()));
    for tried in all {
        let failed = tried.failed.as_ref().map(|why| format!(" (failed: {why})"));
        let _ = write!(text, "| {}{} |", tried.name, failed.unwrap_or_default());
        for &quantity in &quantities {
            let (with, without) = (tried.with.get(&quantity), tried.without.get(&quantity));
            let cell = with.zip(without).and_then(|(with, without)| {
                let ratio = with.ratio(without)?;
                let digits = if with.median() < 1000.0 { 1 } else { 0 };
                Some(format!("{:.digits$}, × **{ratio:.2}**", with.median()))
            });
            let _ = write!(text, " {} |", cell.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}
