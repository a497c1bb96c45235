//! Plans by chance: whatever a diff could emit, in any order that it could emit it, comes to what the model says.

use std::path::PathBuf;

use fastrand::Rng;
use weft_core::{
    dataplane::{BridgeTarget, Forward, PortFlags},
    plan::Op,
};
use weft_store_schema::{Family, IfName, Mac, NetworkName};

use crate::ground::{Ground, bridge, create, id, ip, local, mac, network, on_host, tunnel};

const NAMES: [&str; 3] = ["a", "b", "c"];
const MTUS: [u16; 3] = [1300, 1430, 1500];

struct Chance<'g> {
    rng: Rng,
    ground: &'g mut Ground,
    network: NetworkName,
    containers: Vec<PathBuf>,
}

impl Chance<'_> {
    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.rng.usize(..from.len())].clone())
    }

    fn mac(&mut self) -> Mac {
        mac(self.rng.u32(1..12))
    }

    fn vtep(&mut self) -> std::net::IpAddr {
        let n = self.rng.u8(2..5);
        if self.rng.bool() {
            ip(&format!("10.99.0.{n}"))
        } else {
            ip(&format!("fd99::{n}"))
        }
    }

    fn flags(&mut self, usual: PortFlags) -> PortFlags {
        if self.rng.u8(..3) > 0 {
            return usual;
        }
        PortFlags {
            // A port that learns takes an entry away from where it was put when the container speaks.
            learning: false,
            unicast_flood: self.rng.bool(),
            multicast_flood: self.rng.bool(),
            broadcast_flood: self.rng.bool(),
            neigh_suppress: self.rng.bool(),
        }
    }

    /// One operation that makes sense now; none if the dice fell badly.
    fn op(&mut self) -> Option<Op> {
        let there = self.ground.modelled(&self.network);
        let mtu = MTUS[self.rng.usize(..MTUS.len())];
        if !self.ground.model.networks.contains_key(&self.network) {
            return Some(Op::CreateNamespace);
        }
        if there.bridge.is_none() {
            return Some(Op::PutBridge(bridge(mtu)));
        }
        let ports: Vec<IfName> = there.ports.keys().cloned().collect();
        let ends: Vec<_> = there.interfaces.keys().cloned().collect();
        let family = Family::ALL[self.rng.usize(..2)];
        Some(match self.rng.u8(..20) {
            0 => Op::PutBridge(bridge(mtu)),
            1 | 2 => {
                let (_, mut tunnel) = tunnel(family, 100, mtu);
                tunnel.bridge_port = Some(self.flags(PortFlags::TUNNEL));
                tunnel.local = match family {
                    Family::V4 => ip(&format!("10.99.0.{}", self.rng.u8(1..3))),
                    Family::V6 => ip(&format!("fd99::{}", self.rng.u8(1..3))),
                };
                tunnel.up = self.rng.u8(..4) > 0;
                Op::PutTunnel(family, tunnel)
            }
            3 => Op::DeleteTunnel(family),
            4 | 5 => {
                let n = self.rng.usize(..NAMES.len());
                if there.interfaces.contains_key(&id(NAMES[n])) {
                    return None;
                }
                let mut local = local(&self.network, NAMES[n], &self.containers[n], 5 + n as u8);
                local.port.mtu = mtu;
                local.interface.mtu = mtu;
                create(&local, NAMES[n])
            }
            6 => {
                let name = self.pick(&ports)?;
                let endpoint = weft_core::ownership::endpoint_of_alias(&there.ports[&name].alias)?;
                let mut port = there.ports[&name].clone();
                port.mtu = mtu;
                port.up = self.rng.u8(..4) > 0;
                port.bridge_port = Some(self.flags(PortFlags::ENDPOINT));
                Op::PutPort(endpoint.id, name, port)
            }
            7 => {
                let end = self.pick(&ends)?;
                let mut interface = there.interfaces[&end].clone();
                interface.mtu = mtu;
                interface.mac = self.mac();
                Op::PutInterface(end, Box::new(interface))
            }
            8 => {
                let end = self.pick(&ends)?;
                let n = self.rng.u8(1..5);
                let net = if self.rng.bool() {
                    format!("10.1.0.{n}/16")
                } else {
                    format!("fd01::{n}/64")
                };
                Op::PutAddress(end, net.parse().unwrap())
            }
            9 => {
                let end = self.pick(&ends)?;
                let addresses: Vec<_> = there.interfaces[&end].addresses.iter().copied().collect();
                let goes = self.pick(&addresses)?;
                // With an interface's last IPv4 address the kernel removes its IPv4 routes; a diff, which puts
                // addresses before it deletes others, comes to that only when none are wanted at all.
                let v4 = addresses.iter().filter(|a| a.addr().is_ipv4()).count();
                if goes.addr().is_ipv4() && v4 == 1 {
                    return None;
                }
                Op::DeleteAddress(end, goes)
            }
            10 => {
                let end = self.pick(&ends)?;
                let n = self.rng.u8(2..5);
                let net = if self.rng.bool() {
                    format!("10.{n}.0.0/16")
                } else {
                    format!("fd0{n}::/64")
                };
                Op::PutRoute(end, net.parse().unwrap())
            }
            11 => {
                let end = self.pick(&ends)?;
                let routes: Vec<_> = there.interfaces[&end].routes.iter().copied().collect();
                Op::DeleteRoute(end, self.pick(&routes)?)
            }
            12 if self.rng.bool() => Op::DeletePort(self.pick(&ports)?),
            13 | 14 => {
                let vtep = self.vtep();
                if !there.tunnels.contains_key(&Family::of(vtep)) {
                    return None;
                }
                Op::PutForward(self.mac(), Forward::Remote(vtep))
            }
            15 => Op::PutForward(self.mac(), Forward::Local(self.pick(&ports)?)),
            16 => Op::DeleteVtep(self.mac(), self.vtep()),
            17 => {
                let mac = self.mac();
                let target = match self.pick(&ports) {
                    Some(port) if self.rng.bool() => BridgeTarget::Port(port),
                    _ => BridgeTarget::Tunnel(family),
                };
                Op::DeleteBridgeEntry(mac, target)
            }
            18 => {
                let n = self.rng.u8(1..5);
                let of = if self.rng.bool() {
                    ip(&format!("10.1.0.{n}"))
                } else {
                    ip(&format!("fd01::{n}"))
                };
                if self.rng.bool() {
                    Op::PutNeighbour(of, self.mac())
                } else {
                    Op::DeleteNeighbour(of)
                }
            }
            _ => return None,
        })
    }

    /// The way a diff removes a network.
    fn removal(&self) -> Vec<Op> {
        let there = self.ground.modelled(&self.network);
        let ports = there.ports.into_keys().map(Op::DeletePort);
        let tunnels = there.tunnels.into_keys().map(Op::DeleteTunnel);
        ports.chain(tunnels).chain([Op::DeleteNamespace]).collect()
    }
}

fn by_chance(seed: u64) {
    on_host(move |ground| {
        let containers: Vec<PathBuf> = NAMES.iter().map(|n| ground.container(n)).collect();
        let mut chance = Chance {
            rng: Rng::with_seed(seed),
            network: network("blue"),
            ground,
            containers,
        };
        let blue = network("blue");
        let mut done = Vec::new();
        for round in 0..40 {
            // The plan has to make sense where it is applied, so its ops are chosen against a model ahead.
            let before = chance.ground.model.clone();
            let mut ops = Vec::new();
            for _ in 0..chance.rng.usize(1..12) {
                if let Some(op) = chance.op() {
                    chance.ground.model.record(&blue, &op);
                    ops.push(op);
                }
            }
            if chance.rng.u8(..20) == 0 {
                ops.extend(chance.removal());
            }
            chance.ground.model = before;
            if ops.is_empty() {
                continue;
            }
            done.push(ops.clone());
            chance.ground.apply(&blue, ops);
            let last = &done[done.len().saturating_sub(2)..];
            chance
                .ground
                .assert_as_modelled(&blue, &format!("seed {seed}, round {round}, {last:#?}"));
        }
    });
}

#[test]
fn plans_by_chance_1() {
    (0..3).for_each(by_chance);
}

#[test]
fn plans_by_chance_2() {
    (3..6).for_each(by_chance);
}
