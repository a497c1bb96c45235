//! A TCP proxy before an etcd member that misbehaves on demand.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// What the proxy does with connections and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Forward,
    /// Passes everything on, later.
    Delay(Duration),
    /// Accepts connections and bytes, passes nothing on, answers nothing.
    Freeze,
    /// Passes requests on and throws answers away.
    DropReplies,
    /// Ends all connections and those that are tried.
    Refuse,
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// Connections of an earlier epoch are ended.
    epoch: u64,
}

pub(crate) struct Proxy {
    pub(crate) url: String,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// In front of a URL such as `http://127.0.0.1:2379`.
    pub(crate) async fn before(url: &str) -> Self {
        let (scheme, target) = url.split_once("://").unwrap();
        let target: SocketAddr = target.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (state, receiver) = watch::channel(State {
            mode: Mode::Forward,
            epoch: 0,
        });
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let receiver = receiver.clone();
                tokio::spawn(serve(stream, target, receiver));
            }
        });
        Self { url, state, task }
    }

    /// Changes the mode for all connections, open and new.
    pub(crate) fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// Ends all open connections and treats new ones like this.
    pub(crate) fn reset(&self, mode: Mode) {
        self.state.send_modify(|state| {
            state.mode = mode;
            state.epoch += 1;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.reset(Mode::Refuse);
    }
}

async fn serve(client: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    let epoch = state.borrow().epoch;
    let _ = client.set_nodelay(true);
    let mut ended = state.clone();
    let work = async {
        if state.wait_for(|state| state.mode != Mode::Freeze).await.is_err() {
            return;
        }
        let Ok(server) = TcpStream::connect(target).await else {
            return;
        };
        let _ = server.set_nodelay(true);
        let (client_in, client_out) = client.into_split();
        let (server_in, server_out) = server.into_split();
        tokio::select! {
            () = pass(client_in, server_out, state.clone(), false) => {}
            () = pass(server_in, client_out, state.clone(), true) => {}
        }
    };
    tokio::select! {
        () = work => {}
        _ = ended.wait_for(|state| state.epoch != epoch || state.mode == Mode::Refuse) => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    replies: bool,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let Ok(now) = state
            .wait_for(|state| state.mode != Mode::Freeze)
            .await
            .map(|state| *state)
        else {
            return;
        };
        match now.mode {
            Mode::DropReplies if replies => continue,
            Mode::Delay(by) => sleep(by).await,
            _ => {}
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
