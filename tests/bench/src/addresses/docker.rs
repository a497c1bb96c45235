//! Docker 20.10 on etcd, on two hosts of this machine: how many containers a second enter a network. Whatever is
//! missing for that, the benchmark goes on without it and says so.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use weft_bench::{Figure, Progress};

/// Both of Docker's hosts; dropping it ends them.
struct Hosts {
    script: PathBuf,
    dir: PathBuf,
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if let Err(error) = script(&self.script, &["down", &self.dir.to_string_lossy()]) {
            eprintln!("Docker's hosts were not removed completely: {error:#}");
        }
    }
}

/// Containers that enter the network a second, one at a time on each of two hosts, over the rounds.
///
/// # Errors
/// Why it could not be measured.
pub(crate) fn connects(base: &Path, rounds: usize, on_each: usize, progress: Progress) -> Result<Figure> {
    let base = base.canonicalize().with_context(|| base.display().to_string())?;
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker.sh");
    let cache = base.join("docker-20.10");
    let cache = cache.to_string_lossy();
    script(&run, &["fetch", &cache])?;
    let hosts = Hosts {
        script: run.clone(),
        dir: base.join(format!("docker-{}", std::process::id())),
    };
    let dir = hosts.dir.to_string_lossy();
    progress.say("Docker 20.10: two daemons");
    script(&run, &["up", &dir, &cache])?;
    for host in ["1", "2"] {
        script(&run, &["containers", &dir, &cache, host, &on_each.to_string()])?;
    }
    let sockets = [1, 2].map(|host| hosts.dir.join(format!("h{host}/d.sock")));
    // What the first container on a host takes is not what the others take: not measured.
    let mut figure = Figure::default();
    for round in 0..=rounds {
        progress.say(format!("Docker 20.10: round {round} of {rounds}"));
        let took = on_both(&sockets, "connect", on_each)
            .and_then(|took| on_both(&sockets, "disconnect", on_each).map(|_| took));
        match took {
            Ok(_) if round == 0 => {}
            Ok(took) => figure.push(2.0 * on_each as f64 / took.as_secs_f64()),
            // It sometimes finds an endpoint there that it has just removed itself. The rounds before count.
            Err(why) if figure.runs() > 0 => {
                progress.say(format!("Docker 20.10: no more rounds: {why:#}"));
                break;
            }
            Err(why) => return Err(why),
        }
    }
    Ok(figure)
}

fn on_both(sockets: &[PathBuf; 2], what: &str, count: usize) -> Result<Duration> {
    let started = Instant::now();
    std::thread::scope(|scope| {
        let hosts = [(1, &sockets[0]), (2, &sockets[1])];
        let working = hosts.map(|(host, socket)| {
            scope.spawn(move || {
                (0..count).try_for_each(|n| {
                    let body = format!(r#"{{"Container":"h{host}c{n}"}}"#);
                    post(socket, &format!("/networks/ov/{what}"), &body)
                })
            })
        });
        working.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(started.elapsed())
}

/// One request by hand: no more than that is needed here, and a client program's start would count as Docker's time.
fn post(socket: &Path, path: &str, body: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("{path}: no answer"))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    let said = answer.trim().lines().last().unwrap_or_default();
    ensure!(status == "200", "{path} {body} is answered with {status}: {said}");
    Ok(())
}

fn script(path: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new(path)
        .args(args)
        .output()
        .with_context(|| format!("starting {}", path.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}",
            said.trim().lines().last().unwrap_or("it failed without a word")
        );
    }
    Ok(())
}
