//! etcd's own gRPC proxy between the store and etcd: it cannot be watched through, and that is said.

use std::{
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use weft_core::record::Scope;

use crate::{
    config,
    etcd::{Etcd, free_port},
    eventually, open,
};

struct GrpcProxy {
    child: Child,
    address: String,
}

impl GrpcProxy {
    async fn before(etcd: &Etcd) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let child = Command::new("etcd")
            .args(["grpc-proxy", "start"])
            .arg(format!("--endpoints={}", etcd.url()))
            .arg(format!("--listen-addr={address}"))
            .arg(format!("--advertise-client-url={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Self { child, address };
        eventually("the proxy listens", || TcpStream::connect(&proxy.address).is_ok()).await;
        proxy
    }
}

impl Drop for GrpcProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_proxy_is_named_with_what_to_do() {
    let etcd = Etcd::one().await;
    let proxy = GrpcProxy::before(&etcd).await;
    let url = format!("http://{}", proxy.address);
    let (first, _first_events) = open(config(std::slice::from_ref(&url))).await;
    first.want([Scope::Peers].into());
    eventually("the first client's watch stands", || first.health().streams > 0).await;
    // The proxy joins one of the second client's watches to the first one's, after another one that nobody else has stands.
    let (second, _events) = open(config(&[url])).await;
    second.want([Scope::Networks, Scope::Peers].into());
    eventually("the proxy is named", || {
        let error = second.health().last_error.unwrap_or_default();
        error.contains("gRPC proxy") && error.contains("addresses of etcd's members")
    })
    .await;
}
