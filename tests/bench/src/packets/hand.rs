//! A VXLAN made by hand, as a careful administrator does it with `ip` and `bridge`: the limit of what can be had.

use std::net::IpAddr;

use anyhow::Result;
use weft_lab::Lab;

use crate::path::{Path, script};

/// What is to be made, on hosts 1 and 2 of a lab.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hand {
    /// What it is called in the table.
    pub(crate) name: &'static str,
    /// Another one for each: part of all names, addresses and the VNI. 1 to 99.
    pub(crate) number: usize,
    /// The underlay's addresses of both hosts.
    pub(crate) hosts: [&'static str; 2],
    /// UDP port; not weft's, whose socket would be shared otherwise.
    pub(crate) port: u16,
    /// MTU inside.
    pub(crate) mtu: u32,
    /// More words for `ip link add … type vxlan`.
    pub(crate) options: &'static str,
    /// What else is done on each host, and in each container: scripts.
    pub(crate) then: [&'static str; 2],
}

impl Hand {
    /// Makes it: bridge, VXLAN device that learns nothing, static entries for both containers, a veth for each.
    ///
    /// # Errors
    /// When a step fails.
    pub(crate) fn make(self, lab: &Lab) -> Result<Path> {
        let Self {
            number: n,
            port,
            mtu,
            options,
            then: [outside, inside],
            ..
        } = self;
        let containers = [1, 2].map(|host| lab.container(&format!("hand{n}h{host}")));
        let [Ok(first), Ok(second)] = containers else {
            anyhow::bail!("a container for a VXLAN by hand cannot be made");
        };
        let ends = [&first, &second];
        let mac = |host: usize| format!("02:43:00:00:{n:02}:{host:02}");
        for (i, end) in ends.into_iter().enumerate() {
            let (host, other) = (i + 1, 2 - i);
            let [here, there] = [self.hosts[i], self.hosts[1 - i]];
            let made = format!(
                "ip link add hb{n} mtu {mtu} type bridge mcast_snooping 0
                 ip link add hx{n} mtu {mtu} type vxlan id {n} local {here} dstport {port} nolearning {options}
                 ip link set hx{n} master hb{n} up
                 bridge link set dev hx{n} learning off flood off mcast_flood off bcast_flood off neigh_suppress on
                 ip link add hv{n} mtu {mtu} type veth peer name eth0 mtu {mtu} address {} netns {}
                 ip link set hv{n} master hb{n} up
                 bridge link set dev hv{n} learning off flood off
                 ip link set hb{n} up
                 bridge fdb replace {} dev hx{n} dst {there} self permanent
                 bridge fdb replace {} dev hx{n} master static
                 bridge fdb replace {} dev hv{n} master static
                 {outside}",
                mac(host),
                name(end)?,
                mac(other),
                mac(other),
                mac(host),
            );
            script(lab.host(host).netns(), &made)?;
            let within = format!(
                "ip addr add 10.200.{n}.{host}/24 dev eth0
                 ip link set eth0 up
                 ip neigh replace 10.200.{n}.{other} lladdr {} dev eth0 nud permanent
                 {inside}",
                mac(other)
            );
            script(end.netns(), &within)?;
        }
        Ok(Path {
            name: self.name,
            from: first.netns().clone(),
            to: second.netns().clone(),
            address: IpAddr::from([10, 200, u8::try_from(n)?, 2]),
        })
    }
}

/// What `ip` calls the container's namespace.
fn name(container: &weft_lab::Container) -> Result<String> {
    let path = container.netns().path();
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| anyhow::anyhow!("{} has no name", path.display()))
}
