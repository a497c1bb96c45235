//! What can be done to a host's way to the others: its cable, its interface `eth0`, the addresses on that.

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::{Host, Namespace};

impl Host {
    /// Pulls the cable: the host keeps its addresses and reaches nobody.
    ///
    /// # Errors
    /// When ip fails.
    pub fn unplug(&self) -> Result<()> {
        self.set_port("down")
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// When ip fails.
    pub fn plug(&self) -> Result<()> {
        self.set_port("up")
    }

    fn set_port(&self, state: &str) -> Result<()> {
        self.switch()
            .exec(&["ip", "link", "set", &self.port(), state])
            .map(drop)
    }

    fn switch(&self) -> Namespace {
        Namespace::named(&format!("{}sw", self.lab.prefix()))
    }

    fn port(&self) -> String {
        format!("h{}", self.number())
    }

    /// Takes `eth0` down: it loses its IPv6 addresses and all routes.
    ///
    /// # Errors
    /// When ip fails.
    pub fn lower_underlay(&self) -> Result<()> {
        self.exec(&["ip", "link", "set", "eth0", "down"]).map(drop)
    }

    /// Brings `eth0` up with all its addresses, whatever of that is missing.
    ///
    /// # Errors
    /// When ip fails.
    pub fn raise_underlay(&self) -> Result<()> {
        self.exec(&["ip", "link", "set", "eth0", "up"])?;
        self.addresses()
            .into_iter()
            .try_for_each(|address| self.set_address("replace", address))
    }

    /// Takes `eth0` away, with all that hangs on it.
    ///
    /// # Errors
    /// When ip fails.
    pub fn remove_underlay(&self) -> Result<()> {
        self.exec(&["ip", "link", "del", "eth0"]).map(drop)
    }

    /// Makes `eth0` anew after [`Host::remove_underlay`]: another device in the same place, with this MAC address or one of
    /// its own.
    ///
    /// # Errors
    /// When ip fails.
    pub fn make_underlay(&self, mac: Option<&str>) -> Result<()> {
        let (switch, port) = (self.switch(), self.port());
        let (mtu, path) = (self.lab.mtu, switch.path().display());
        let mac = mac.map_or_else(String::new, |mac| format!(" address {mac}"));
        let command =
            format!("ip link add eth0{mac} mtu {mtu} type veth peer name {port} netns {path} mtu {mtu}");
        self.exec(&command.split(' ').collect::<Vec<_>>())?;
        switch.exec(&["ip", "link", "set", &port, "master", "br0", "up"])?;
        self.raise_underlay()
    }

    /// Takes addresses off `eth0` and puts others on it, as when a host is given another one.
    ///
    /// # Errors
    /// When ip fails.
    pub fn renumber_underlay(&self, from: &[IpAddr], to: &[IpAddr]) -> Result<()> {
        let all = |what: &str, addresses: &[IpAddr]| -> Result<()> {
            addresses
                .iter()
                .try_for_each(|address| self.set_address(what, *address))
        };
        // The first one's removal removes all others of its subnet.
        all("del", from)?;
        all("add", to)
    }

    fn set_address(&self, what: &str, address: IpAddr) -> Result<()> {
        let bits = if address.is_ipv4() { 24 } else { 64 };
        let mut command = format!("ip addr {what} {address}/{bits} dev eth0");
        if !address.is_ipv4() && what != "del" {
            // No duplicate detection: the address must be usable at once.
            command.push_str(" nodad");
        }
        self.exec(&command.split(' ').collect::<Vec<_>>())
            .map(drop)
            .with_context(|| format!("underlay of {}", self.node()))
    }
}
