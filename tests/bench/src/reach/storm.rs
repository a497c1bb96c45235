//! Many containers attached at the same time on two hosts: endpoints a second, beside the same etcd's bare transactions
//! and beside Docker.

use std::time::Instant;

use anyhow::{Context, Result};
use std::sync::Arc;
use tokio::{runtime::Runtime, task::JoinSet};
use weft_bench::{Against, Bare, Figure, Form, Goal, Pace, Progress, Request, Row, rotated};
use weft_lab::Container;

use crate::{agent::Attached, hosts::Hosts};

/// How many are attached at a time, on each host.
const AT_A_TIME: [usize; 2] = [1, 8];

/// One concurrency: endpoints a second.
#[derive(Debug, Default)]
struct Stage {
    at_a_time: usize,
    attached: Figure,
    detached: Figure,
    bare: Figure,
}

/// All figures.
#[derive(Debug)]
pub(crate) struct Found {
    stages: Vec<Stage>,
    verified: usize,
    shape: String,
}

/// Measures it.
///
/// # Errors
/// When anything fails, or the records or kernels do not hold what they should.
pub(crate) fn measure(runtime: &Runtime, hosts: &mut Hosts, form: Form, progress: Progress) -> Result<Found> {
    let (rounds, most) = (form.pick(3, 7), form.pick(96, 192));
    progress.say(format!("attach storm: {most} containers for each host"));
    let containers = [hosts.containers("s1-", most)?, hosts.containers("s2-", most)?];
    let url = hosts.lab.etcd_endpoints().swap_remove(0);
    let bare = runtime.block_on(Bare::connect(&url, 2 * AT_A_TIME[1]))?;
    let shape = runtime.block_on(hosts.shape())?;
    let text = shape.text();
    let transaction = Request::Transaction(Arc::new(shape));
    let mut verified = 0;
    let mut stages = Vec::new();
    for at_a_time in AT_A_TIME {
        let mut stage = Stage {
            at_a_time,
            ..Stage::default()
        };
        let each = if at_a_time == 1 { most / 2 } else { most };
        for round in 0..rounds {
            progress.say(format!(
                "attach storm: {at_a_time} at a time on each host, round {} of {rounds}",
                round + 1
            ));
            for turn in rotated(2, round) {
                if turn == 0 {
                    let pace = Pace {
                        time: std::time::Duration::from_secs(10),
                        each: (each / at_a_time) as u64,
                    };
                    let paced = runtime.block_on(bare.run(&transaction, 2 * at_a_time, false, pace))?;
                    stage.bare.push(paced.rate());
                    runtime.block_on(bare.clear())?;
                    continue;
                }
                let containers = [&containers[0][..each], &containers[1][..each]];
                let (attached, rate) = runtime.block_on(attach(hosts, containers, at_a_time))?;
                stage.attached.push(rate);
                hosts.settled(&attached).context("after a storm")?;
                verified += attached.len();
                stage
                    .detached
                    .push(runtime.block_on(detach(hosts, &attached, at_a_time))?);
                hosts.settled(&[]).context("after a storm was over")?;
            }
        }
        stages.push(stage);
    }
    Ok(Found {
        stages,
        verified,
        shape: text,
    })
}

/// Attaches all of them, so many at a time on each host; and how many a second.
async fn attach(
    hosts: &Hosts,
    containers: [&[Container]; 2],
    at_a_time: usize,
) -> Result<(Vec<(usize, Attached)>, f64)> {
    let mut working = JoinSet::new();
    let started = Instant::now();
    for (host, containers) in containers.into_iter().enumerate() {
        for part in containers.chunks(containers.len().div_ceil(at_a_time)) {
            let (mut agent, part) = (hosts.agents[host].clone(), part.to_vec());
            working.spawn(async move {
                let mut attached = Vec::new();
                for container in &part {
                    attached.push((host, agent.attach(container, false).await?.0));
                }
                anyhow::Ok(attached)
            });
        }
    }
    let mut all = Vec::new();
    while let Some(done) = working.join_next().await {
        all.extend(done??);
    }
    let rate = all.len() as f64 / started.elapsed().as_secs_f64();
    Ok((all, rate))
}

/// Detaches all of them in the same way; how many a second.
async fn detach(hosts: &Hosts, attached: &[(usize, Attached)], at_a_time: usize) -> Result<f64> {
    let mut working = JoinSet::new();
    let started = Instant::now();
    for host in 0..hosts.agents.len() {
        let on_it: Vec<_> = attached.iter().filter(|(on, _)| *on == host).collect();
        for part in on_it.chunks(on_it.len().div_ceil(at_a_time).max(1)) {
            let ids: Vec<String> = part.iter().map(|(_, endpoint)| endpoint.id.clone()).collect();
            let mut agent = hosts.agents[host].clone();
            working.spawn(async move {
                for id in &ids {
                    agent.detach(id).await?;
                }
                anyhow::Ok(())
            });
        }
    }
    while let Some(done) = working.join_next().await {
        done??;
    }
    Ok(attached.len() as f64 / started.elapsed().as_secs_f64())
}

impl Found {
    /// The rows; Docker's figure is containers that enter a network a second, one at a time on each of two hosts.
    pub(crate) fn rows(&self, docker: Option<&Figure>) -> Vec<Row> {
        let mut rows = Vec::new();
        for stage in &self.stages {
            let n = stage.at_a_time;
            let name = format!("attach storm, {n} at a time on each of two hosts");
            let bare = Against {
                what: "bare transactions, as many at a time",
                figure: &stage.bare,
            };
            rows.push(Row::new(&name, "1/s", &stage.attached, Some(bare), None));
            if let Some(figure) = docker {
                let docker = Against {
                    what: "Docker 20.10: network connect, one at a time on each",
                    figure,
                };
                let goal = Some(Goal::RatioAtLeast(20.0));
                rows.push(Row::new(&name, "1/s", &stage.attached, Some(docker), goal));
            }
            let name = format!("detach storm, {n} at a time on each of two hosts");
            rows.push(Row::new(name, "1/s", &stage.detached, None, None));
        }
        rows
    }

    /// How it was measured.
    pub(crate) fn method(&self) -> String {
        format!(
            "Attach storm: the same calls, several at a time over one connection to each of two agents; after each round \
             no two of the {} endpoints so far had one address at a time, etcd held a claim for each, and the kernel of \
             the other host exactly its entries. The bare transaction: {}.",
            self.verified, self.shape
        )
    }
}
