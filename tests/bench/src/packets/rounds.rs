//! Peers taking turns, in many short rounds: what disturbs one disturbs its neighbours.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use weft_bench::{Against, Figure, Goal, Progress, Row, rotated};

use crate::load::{Load, Peer, Quantity};

/// The figures of one peer.
pub(crate) type Series = BTreeMap<Quantity, Figure>;

/// How long one turn sends.
pub(crate) fn turn(load: Load) -> Duration {
    match load {
        Load::Tcp(_) => Duration::from_secs(1),
        Load::Packets | Load::RoundTrips => Duration::from_millis(400),
    }
}

/// Measures all peers with all loads; the series are in the peers' order.
pub(crate) fn measure(peers: &[Peer], rounds: usize, progress: Progress) -> Result<Vec<Series>> {
    let mut series = vec![Series::new(); peers.len()];
    for round in 0..rounds {
        progress.say(format!("round {} of {rounds}", round + 1));
        for load in Load::ALL {
            for i in rotated(peers.len(), round) {
                add(&mut series[i], peers[i].measure(load, turn(load))?);
            }
        }
    }
    Ok(series)
}

/// Adds what a turn has found.
pub(crate) fn add(series: &mut Series, found: Vec<(Quantity, f64)>) {
    for (quantity, value) in found {
        series.entry(quantity).or_default().push(value);
    }
}

/// The rows of the first peer, weft, beside each of the others, which have their goals.
pub(crate) fn rows(peers: &[(&'static str, Option<f64>)], series: &[Series]) -> Vec<Row> {
    let mut rows = Vec::new();
    let Some((weft, others)) = series.split_first() else {
        return rows;
    };
    for quantity in Quantity::ALL {
        for ((what, goal), other) in peers.iter().skip(1).zip(others) {
            let (Some(mine), Some(figure)) = (weft.get(&quantity), other.get(&quantity)) else {
                continue;
            };
            // What a datagram costs explains the rate, and has no goal of its own.
            let goal = goal.filter(|_| quantity != Quantity::Cost).map(|goal| {
                if quantity.is_time() {
                    // As much more as the other may be less.
                    Goal::RatioAtMost((100.0 / goal).round() / 100.0)
                } else {
                    Goal::RatioAtLeast(goal)
                }
            });
            let against = Against { what, figure };
            rows.push(Row::new(
                quantity.text(),
                quantity.unit(),
                mine,
                Some(against),
                goal,
            ));
        }
    }
    rows
}
