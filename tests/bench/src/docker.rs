//! Docker 20.10 on etcd, on two hosts of this machine: the peer of what concerns containers. Whatever is missing for it, a
//! benchmark goes on without it and says so.

use std::{
    io::{Read as _, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{Figure, Memory, Process, Progress};
use anyhow::{Context, Result, bail, ensure};
use weft_lab::Namespace;

/// Docker 20.10 on two hosts, with running containers that are in no network; dropping it ends all of it.
#[derive(Debug)]
pub struct Docker {
    script: PathBuf,
    dir: PathBuf,
    on_each: usize,
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Err(error) = script(&self.script, &["down", &self.dir.to_string_lossy()]) {
            eprintln!("Docker's hosts were not removed completely: {error:#}");
        }
    }
}

impl Docker {
    /// The hosts, numbered from 1.
    pub const HOSTS: [usize; 2] = [1, 2];

    /// Starts both daemons and `on_each` containers on each host; below `base`, which has to be on a disk that overlayfs
    /// can be put on, it keeps the packages between runs.
    ///
    /// # Errors
    /// Why there cannot be Docker here.
    pub fn start(base: &Path, on_each: usize, progress: Progress) -> Result<Self> {
        let base = base.canonicalize().with_context(|| base.display().to_string())?;
        let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker.sh");
        let cache = base.join("docker-20.10");
        let cache = cache.to_string_lossy();
        script(&run, &["fetch", &cache])?;
        let docker = Self {
            dir: base.join(format!("docker-{}", std::process::id())),
            script: run,
            on_each,
        };
        let dir = docker.dir.to_string_lossy();
        progress.say("Docker 20.10: two daemons");
        script(&docker.script, &["up", &dir, &cache])?;
        for host in Self::HOSTS {
            script(
                &docker.script,
                &[
                    "containers",
                    &dir,
                    &cache,
                    &host.to_string(),
                    &on_each.to_string(),
                ],
            )?;
        }
        Ok(docker)
    }

    /// Lets a container enter the overlay network; how long the call took.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn connect(&self, host: usize, container: usize) -> Result<Duration> {
        self.ask(host, container, "connect")
    }

    /// Lets a container leave the overlay network; how long the call took.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn disconnect(&self, host: usize, container: usize) -> Result<Duration> {
        self.ask(host, container, "disconnect")
    }

    /// A running container's network namespace.
    ///
    /// # Errors
    /// When the daemon does not tell.
    pub fn netns(&self, host: usize, container: usize) -> Result<Namespace> {
        let told = self.inspect(host, container)?;
        let pid = told["State"]["Pid"].as_u64().context("it has no process")?;
        Ok(Namespace::at(format!("/proc/{pid}/ns/net")))
    }

    /// A container's address in the overlay network.
    ///
    /// # Errors
    /// When it is not in the network.
    pub fn address(&self, host: usize, container: usize) -> Result<IpAddr> {
        let told = self.inspect(host, container)?;
        let address = told["NetworkSettings"]["Networks"]["ov"]["IPAddress"].as_str();
        let address = address.with_context(|| format!("h{host}c{container} is not in the network"))?;
        Ok(address.parse()?)
    }

    fn inspect(&self, host: usize, container: usize) -> Result<serde_json::Value> {
        let path = format!("/containers/h{host}c{container}/json");
        let answer = request(&self.socket(host), "GET", &path, "")?;
        serde_json::from_str(&answer).with_context(|| format!("{path}: {answer}"))
    }

    fn socket(&self, host: usize) -> PathBuf {
        self.dir.join(format!("h{host}/d.sock"))
    }

    /// The namespace of the switch between both hosts.
    #[must_use]
    pub fn switch(&self) -> Namespace {
        self.place("sw")
    }

    /// The namespace of a host.
    #[must_use]
    pub fn host(&self, host: usize) -> Namespace {
        self.place(&host.to_string())
    }

    fn place(&self, name: &str) -> Namespace {
        Namespace::at(self.dir.join("netns").join(name))
    }

    /// Memory of the first host's daemon, without its containerd.
    ///
    /// # Errors
    /// When it does not run any more.
    pub fn memory(&self) -> Result<Memory> {
        let path = self.dir.join("h1/pid");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Process(text.trim().parse().with_context(|| path.display().to_string())?).memory()
    }

    fn ask(&self, host: usize, container: usize, what: &str) -> Result<Duration> {
        let started = Instant::now();
        let body = format!(r#"{{"Container":"h{host}c{container}"}}"#);
        request(&self.socket(host), "POST", &format!("/networks/ov/{what}"), &body)?;
        Ok(started.elapsed())
    }

    /// Containers that enter the network a second, one at a time on each of the two hosts, over the rounds.
    ///
    /// # Errors
    /// When not even one round could be measured.
    pub fn connects_a_second(&self, rounds: usize, progress: Progress) -> Result<Figure> {
        // What the first container on a host takes is not what the others take: not measured.
        let mut figure = Figure::default();
        for round in 0..=rounds {
            progress.say(format!("Docker 20.10: round {round} of {rounds}"));
            let took = self
                .on_both(Self::connect)
                .and_then(|took| self.on_both(Self::disconnect).map(|_| took));
            match took {
                Ok(_) if round == 0 => {}
                Ok(took) => figure.push(2.0 * self.on_each as f64 / took.as_secs_f64()),
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

    fn on_both(&self, what: fn(&Self, usize, usize) -> Result<Duration>) -> Result<Duration> {
        let started = Instant::now();
        std::thread::scope(|scope| {
            let working = Self::HOSTS.map(|host| {
                scope.spawn(move || (0..self.on_each).try_for_each(|n| what(self, host, n).map(drop)))
            });
            working.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        Ok(started.elapsed())
    }
}

/// One request by hand, and the body of its answer: no more than that is needed here, and a client program's start
/// would count as Docker's time.
fn request(socket: &Path, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    // HTTP 1.0: the body ends with the connection, in one piece.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("{path}: no answer"))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    let (_, said) = answer.split_once("\r\n\r\n").unwrap_or_default();
    ensure!(
        status == "200",
        "{path} {body} is answered with {status}: {}",
        said.trim()
    );
    Ok(said.to_owned())
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
