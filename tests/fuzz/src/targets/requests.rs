//! Requests of the API: the first byte chooses the call, the second says how long a `grpc-timeout` header follows, the rest
//! is the message. They go through the agent's own services; behind these nothing is changed.

use std::{cell::OnceCell, sync::Arc};

use tokio::runtime::{Builder, Runtime};
use weft_api::Bytes;
use weftd::Pretend;

use super::gist;
use crate::Target;

/// See the module.
pub const TARGET: Target = Target {
    name: "requests",
    run,
    words: &[
        b"blue",
        b"full",
        b"host1",
        b"host2",
        b"web",
        b"/run/netns/web",
        b"10.1.0.5",
        b"10.1.0.0/24",
        b"fd00:1::/64",
        b"10.1.0.2-10.1.0.8",
        b"10.1.0.8-10.1.0.2",
        b"02:42:0a:01:00:05",
        b"blue/host1/web",
        b"10S",
        b"99999999H",
        b"eth0",
        // Durations: whole seconds, none, the least, the most, with a fraction.
        b"\x08\x05",
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        b"\x10\xff\x93\xeb\xdc\x03",
        b"\x10\x80\x80\x80\x80\xf8\xff\xff\xff\xff\x01",
    ],
};

thread_local! {
    static AGENT: OnceCell<(Runtime, Bytes<Pretend>)> = const { OnceCell::new() };
}

fn run(bytes: &[u8]) -> u64 {
    let [call, timeout, rest @ ..] = bytes else {
        return 0;
    };
    let (timeout, message) = rest.split_at(usize::from(*timeout % 16).min(rest.len()));
    AGENT.with(|agent| {
        let (runtime, calls) = agent.get_or_init(|| {
            let runtime = Builder::new_current_thread().enable_time().build();
            let pretend = Pretend::new();
            match (runtime, pretend) {
                (Ok(runtime), Some(pretend)) => (runtime, Bytes::new(Arc::new(pretend))),
                _ => unreachable!("a runtime and sound records"),
            }
        });
        let answer = runtime.block_on(calls.call(*call, timeout, message));
        let told = answer.map_or_else(
            |status| format!("{:?} {}", status.code(), status.message()),
            |()| String::new(),
        );
        gist(&told).wrapping_add(u64::from(*call))
    })
}
