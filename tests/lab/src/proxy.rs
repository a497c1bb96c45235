//! A TCP proxy between one host and a member of etcd, which misbehaves on demand. It knows TCP and the frames of HTTP/2
//! (RFC 9113, section 4.1), nothing of what they carry.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Namespace;

/// How long a thread sleeps in the kernel at most before it looks what is wanted.
const TICK: Duration = Duration::from_millis(20);
/// Length of a frame's head.
const HEAD: usize = 9;
/// The kind of frame that carries what a watch has to say.
const DATA: u8 = 0;

/// What a proxy does with connections and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Pass,
    /// Passes everything on, each piece this much later.
    Delay(Duration),
    /// Accepts connections and bytes, passes nothing on, answers nothing. What came before is passed on afterwards.
    Stall,
    /// As [`Mode::Stall`] for connections that are open by then; later ones are passed on.
    StallOpen,
    /// Passes everything on but the contents of answers (DATA frames) on connections that are open by then: pings are
    /// answered, and whoever waits for news hears none. Later connections are passed on.
    Mute,
    /// Ends all connections, and new ones at once.
    Refuse,
}

/// The present mode, and how many connections had been accepted when it was set.
#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    before: u64,
    accepted: u64,
    stop: bool,
}

impl State {
    /// What is done with a connection.
    fn mode_of(self, connection: u64) -> Mode {
        match self.mode {
            Mode::StallOpen if connection < self.before => Mode::Stall,
            Mode::Mute if connection < self.before => Mode::Mute,
            Mode::StallOpen | Mode::Mute => Mode::Pass,
            mode => mode,
        }
    }
}

/// A proxy that listens on a host's loopback. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    at: SocketAddr,
    state: Arc<Mutex<State>>,
    listener: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> State {
    *state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Begins to listen in a namespace, from where `target` must be reachable.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or a socket not be made.
    pub fn start(netns: &Namespace, target: SocketAddr) -> Result<Self> {
        let listener = netns
            .within(|| TcpListener::bind((IpAddr::from([127, 0, 0, 1]), 0)))?
            .context("listening")?;
        listener.set_nonblocking(true).context("listening")?;
        let at = listener.local_addr().context("listening")?;
        let state = Arc::new(Mutex::new(State {
            mode: Mode::Pass,
            before: 0,
            accepted: 0,
            stop: false,
        }));
        let (netns, shared) = (netns.clone(), Arc::clone(&state));
        let thread = std::thread::Builder::new().name("proxy".to_owned());
        let listener = thread.spawn(move || {
            // Connections to the target are made by threads of this one, in the namespace that it is in.
            if netns.enter().is_ok() {
                accept(&listener, target, &shared);
            }
        })?;
        Ok(Self {
            at,
            state,
            listener: Some(listener),
        })
    }

    /// Its URL, for `weftd --etcd`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    /// Changes what is done with all connections.
    pub fn set(&self, mode: Mode) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.mode = mode;
        state.before = state.accepted;
    }

    /// How many connections have been accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        lock(&self.state).accepted
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, state: &Arc<Mutex<State>>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while !lock(state).stop {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(TICK);
            continue;
        };
        let number = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.accepted += 1;
            state.accepted - 1
        };
        threads.retain(|thread| !thread.is_finished());
        let state = Arc::clone(state);
        threads.push(std::thread::spawn(move || serve(&client, number, target, &state)));
    }
    for thread in threads {
        let _ = thread.join();
    }
}

/// Passes on between two connections until either ends.
fn serve(client: &TcpStream, number: u64, target: SocketAddr, state: &Mutex<State>) {
    // Accepted and never answered: nobody is connected to.
    let server = loop {
        let now = lock(state);
        match now.mode_of(number) {
            _ if now.stop => return,
            Mode::Refuse => return,
            Mode::Stall => std::thread::sleep(TICK),
            _ => match TcpStream::connect_timeout(&target, Duration::from_secs(5)) {
                Ok(server) => break server,
                Err(_) => return,
            },
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| pass(client, &server, false, number, state));
        pass(&server, client, true, number, state);
    });
}

/// Passes on in one direction. Ends both connections when it ends.
fn pass(from: &TcpStream, to: &TcpStream, answers: bool, number: u64, state: &Mutex<State>) {
    let _ = to.set_nodelay(true);
    let _ = from.set_read_timeout(Some(TICK));
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut frames = Frames::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let now = lock(state);
        let mode = now.mode_of(number);
        if now.stop || mode == Mode::Refuse {
            break;
        }
        let due = |at: &Instant| mode != Mode::Stall && *at <= Instant::now();
        let mut failed = false;
        while waiting.front().is_some_and(|(at, _)| due(at)) {
            let piece = waiting.pop_front().map(|(_, piece)| piece).unwrap_or_default();
            failed |= send(to, &piece).is_err();
        }
        if failed {
            break;
        }
        let patience = waiting.front().map_or(TICK, |(at, _)| {
            at.saturating_duration_since(Instant::now())
                .clamp(Duration::from_millis(1), TICK)
        });
        let _ = from.set_read_timeout(Some(patience));
        let mut reader = from;
        let piece = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => buffer.get(..length).unwrap_or_default().to_vec(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        // As it is now: the mode may have changed while nothing came.
        let mode = lock(state).mode_of(number);
        let piece = if answers {
            frames.filter(&piece, mode == Mode::Mute)
        } else {
            piece
        };
        let delay = if let Mode::Delay(by) = mode {
            by
        } else {
            Duration::ZERO
        };
        waiting.push_back((Instant::now() + delay, piece));
    }
    for side in [from, to] {
        let _ = side.shutdown(Shutdown::Both);
    }
}

fn send(mut to: &TcpStream, piece: &[u8]) -> std::io::Result<()> {
    to.set_write_timeout(Some(Duration::from_secs(5)))?;
    to.write_all(piece)
}

/// Where in the frames of a connection a direction is.
#[derive(Debug, Default)]
struct Frames {
    /// The head that is being read.
    head: Vec<u8>,
    /// Bytes that are left of the present frame, and whether it is kept from going on.
    left: usize,
    held: bool,
}

impl Frames {
    /// What is passed on of a piece: all, or all but DATA frames that begin in it.
    fn filter(&mut self, mut piece: &[u8], mute: bool) -> Vec<u8> {
        let mut passed = Vec::with_capacity(piece.len());
        while !piece.is_empty() {
            if self.left > 0 {
                let (body, rest) = piece.split_at(self.left.min(piece.len()));
                if !self.held {
                    passed.extend(body);
                }
                self.left -= body.len();
                piece = rest;
                continue;
            }
            let (head, rest) = piece.split_at((HEAD - self.head.len()).min(piece.len()));
            self.head.extend(head);
            piece = rest;
            if let [a, b, c, kind, ..] = *self.head
                && self.head.len() == HEAD
            {
                self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.held = mute && kind == DATA;
                if !self.held {
                    passed.extend(&self.head);
                }
                self.head.clear();
            }
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u8::try_from(body.len()).unwrap();
        [&[0, 0, length, kind, 0, 0, 0, 0, 1], body].concat()
    }

    #[test]
    fn only_data_frames_are_held_however_they_are_cut() {
        let (data, ping) = (frame(DATA, b"news"), frame(6, b"pingpong"));
        let all = [&data[..], &ping, &data, &frame(4, b""), &data].concat();
        for cut in 1..all.len() {
            let mut frames = Frames::default();
            let passed: Vec<u8> = all.chunks(cut).flat_map(|c| frames.filter(c, true)).collect();
            assert_eq!(passed, [&ping[..], &frame(4, b"")].concat(), "cut at {cut}");
            let mut frames = Frames::default();
            let passed: Vec<u8> = all.chunks(cut).flat_map(|c| frames.filter(c, false)).collect();
            assert_eq!(passed, all);
        }
    }
}
