//! Bare watches of one directory, a connection each, at etcd itself and through its gRPC proxies: what gathering equal watches
//! wins. Bare, since weft's client numbers its watches itself, which the proxies do not heed (docs/scale.md).

use std::{path::Path, sync::Arc, time::Duration, time::Instant};

use anyhow::{Context, Result};
use etcd_client::{Client, WatchOptions};
use tokio::sync::mpsc;
use weft_bench::quantile;
use weft_lab::Lab;

use crate::{proxy::Proxy, server::Reading};

const DIRECTORY: &str = "/fan-out/";

/// What was measured. Times in milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    /// Watches of the directory, a connection each.
    pub(crate) watches: usize,
    /// Proxies between them and etcd; none: at etcd itself.
    pub(crate) proxies: usize,
    /// Watches that etcd itself serves.
    pub(crate) at_etcd: f64,
    /// From a put until the last has it.
    pub(crate) delays: Vec<f64>,
    /// CPU for a put: etcd's, and all proxies'.
    pub(crate) cpu: [f64; 2],
    /// Sent by etcd for a put, KiB.
    pub(crate) sent: f64,
    /// Memory of etcd and of all proxies, MiB.
    pub(crate) resident: [f64; 2],
}

/// Builds a lab with one etcd, measures, and takes it down.
///
/// # Errors
/// When something does not work.
pub(crate) fn measure(watches: usize, proxies: usize, puts: u32, base: &Path) -> Result<Point> {
    // A thread of its own: it goes into the lab's namespace for good.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| on_lab(watches, proxies, puts, base));
        match thread.join() {
            Ok(point) => point,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
    .with_context(|| format!("{watches} bare watches, {proxies} proxies"))
}

fn on_lab(watches: usize, proxies: usize, puts: u32, base: &Path) -> Result<Point> {
    let lab = Lab::builder().hosts(1).data_base(base).build()?;
    lab.host(1).netns().enter()?;
    let numbers = 0..u16::try_from(proxies)?;
    let proxies: Vec<Proxy> = numbers.map(|n| Proxy::start(&lab, n)).collect::<Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let point = runtime.block_on(fan_out(&lab, watches, &proxies, puts))?;
    runtime.shutdown_timeout(Duration::from_secs(5));
    drop(proxies);
    lab.close()?;
    Ok(point)
}

async fn fan_out(lab: &Lab, watches: usize, proxies: &[Proxy], puts: u32) -> Result<Point> {
    let etcd = lab.etcd(1);
    let (tell, mut heard) = mpsc::unbounded_channel::<Instant>();
    let tell = Arc::new(tell);
    for number in 0..watches {
        let url = match proxies {
            [] => etcd.endpoint(),
            proxies => proxies[number % proxies.len()].url.clone(),
        };
        let mut client = Client::connect([url], None).await?;
        let mut stream = client
            .watch(DIRECTORY, Some(WatchOptions::new().with_prefix()))
            .await?;
        let tell = Arc::clone(&tell);
        tokio::spawn(async move {
            // The connection lives as long as its watch.
            let _client = client;
            while let Ok(Some(answer)) = stream.message().await {
                for _ in answer.events() {
                    // Whoever measures may have enough.
                    let _ = tell.send(Instant::now());
                }
            }
        });
    }
    let mut client = Client::connect([etcd.endpoint()], None).await?;
    let used = || -> Result<(f64, f64)> {
        let mut all = (0.0, 0.0);
        for proxy in proxies {
            let (cpu, resident) = proxy.used()?;
            all = (all.0 + cpu.as_secs_f64(), all.1 + resident);
        }
        Ok(all)
    };
    let mut delays = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let (before, before_proxies) = (Reading::take(etcd)?, used()?);
    for number in 0..puts {
        tick.tick().await;
        let begun = Instant::now();
        // As large as an endpoint's record.
        client
            .put(format!("{DIRECTORY}{number}"), "x".repeat(150), None)
            .await?;
        let mut last = begun;
        for _ in 0..watches {
            let one = tokio::time::timeout(Duration::from_secs(30), heard.recv()).await;
            let one = one.context("a put did not come to all watches within 30 s")?;
            last = last.max(one.context("nobody watches")?);
        }
        delays.push((last - begun).as_secs_f64() * 1000.0);
    }
    let (after, after_proxies) = (Reading::take(etcd)?, used()?);
    let spent = after.since(&before);
    let each = |all: f64| all / f64::from(puts);
    Ok(Point {
        watches,
        proxies: proxies.len(),
        at_etcd: after.watchers(),
        delays,
        cpu: [
            each(spent.cpu * 1000.0),
            each((after_proxies.0 - before_proxies.0) * 1000.0),
        ],
        sent: each(spent.sent / 1024.0),
        resident: [after.resident, after_proxies.1],
    })
}

/// The points as a table.
pub(crate) fn table(points: &[Point]) -> String {
    let head = "| watches of one directory | proxies | watches at etcd | last p50, ms | p99, ms | etcd's CPU a put, ms | proxies' CPU, ms | sent by \
                etcd, KiB | etcd, MiB | proxies, MiB |\n|";
    let rows = points.iter().map(|p| {
        format!(
            "| {} | {} | {} | {:.1} | {:.1} | {:.2} | {:.2} | {:.1} | {:.0} | {:.0} |\n",
            p.watches,
            p.proxies,
            p.at_etcd,
            quantile(&p.delays, 0.5),
            quantile(&p.delays, 0.99),
            p.cpu[0],
            p.cpu[1],
            p.sent,
            p.resident[0],
            p.resident[1]
        )
    });
    format!(
        "\nBare watches at etcd and through its proxies:\n\n{head}{}\n{}",
        "---|".repeat(10),
        rows.collect::<String>()
    )
}
