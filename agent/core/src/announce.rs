//! Which addresses have another MAC than before, so that the containers of this host have to be told.
//!
//! A container remembers the MAC of whomever it has talked to, for up to a minute, or until it talks to it again
//! and finds nobody there; it does not ask as long as it believes to know. So when an address comes to an
//! endpoint with another MAC, each host announces that to its own containers, since nothing is flooded between
//! hosts. The first holder of an address need not be announced: nobody has talked to one before it.
//!
//! In: plans, and what became of them. Out: what is to be announced. It must not know records, nor how
//! an announcement is made.

use std::{collections::BTreeMap, net::IpAddr};

use weft_store_schema::{EndpointId, EndpointRef, IfName, Mac, NetworkName, NodeName};

use crate::{
    address_map::AddressMap,
    dataplane::{Observed, ObservedNetwork},
    ownership::port_name,
    plan::{Op, Plan},
};

/// An address that has another MAC than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The address.
    pub address: IpAddr,
    /// Its MAC from now on.
    pub mac: Mac,
    /// The port of the endpoint that has it, if it is one of this host's: it need not be told.
    pub holder: Option<IfName>,
}

/// What is to be announced to the local endpoints of each network.
pub type Announcements = BTreeMap<NetworkName, Vec<Announcement>>;

/// More of an address's last MACs than this many, and than twice those in use, are not remembered.
const MOST_IDLE: usize = 4096;

/// Knows the MAC that each address had last.
#[derive(Debug)]
pub struct Announcer {
    node: NodeName,
    networks: BTreeMap<NetworkName, Last>,
}

/// The MAC that each address of a network had last on this host.
#[derive(Debug)]
struct Last {
    macs: AddressMap<Mac>,
    /// An address that is not among them has had no holder since there are containers to remember one.
    complete: bool,
    /// So many may be remembered before those of addresses that nobody has any more are forgotten.
    room: usize,
}

impl Announcer {
    /// On a node of which nothing is known yet.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            networks: BTreeMap::new(),
        }
    }

    /// What is to be announced when this plan is carried out, of which nothing has been noted yet.
    pub fn announcements(&mut self, plan: &Plan, observed: &Observed) -> Announcements {
        let mut all = Announcements::new();
        for (network, ops) in &plan.networks {
            let Some(there) = observed.networks.get(network) else {
                continue;
            };
            // Nobody is there to have talked to anybody.
            if there.ports.is_empty() {
                continue;
            }
            let mut changed = Vec::new();
            for (address, mac, endpoint) in ops.iter().flat_map(|op| bindings(op, ops, there)) {
                // Whoever asked while somebody else had changed the answer has a wrong one.
                let was_wrong = there.neighbours.get(&address).is_some_and(|other| *other != mac);
                if was_wrong || self.last(network, there).differs(address, mac) {
                    let holder = endpoint.map(|id| self.port_of(network, id));
                    changed.push(Announcement { address, mac, holder });
                }
            }
            if !changed.is_empty() {
                all.insert(network.clone(), changed);
            }
        }
        all
    }

    /// Notes that an operation of a plan was done. To be told before `observed` says so.
    pub fn note(&mut self, network: &NetworkName, op: &Op, ops: &[Op], observed: &Observed) {
        if let Op::DeleteNamespace = op {
            self.networks.remove(network);
            return;
        }
        let nothing = ObservedNetwork::default();
        let there = observed.networks.get(network);
        if there.is_none() {
            // Made by this plan: who comes from now on is all that there is.
            self.networks.entry(network.clone()).or_insert(Last {
                macs: AddressMap::default(),
                complete: true,
                room: MOST_IDLE,
            });
        }
        let there = there.unwrap_or(&nothing);
        for (address, mac, _) in bindings(op, ops, there) {
            self.last(network, there).remember(address, mac, there);
        }
    }

    fn last(&mut self, network: &NetworkName, there: &ObservedNetwork) -> &mut Last {
        self.networks.entry(network.clone()).or_insert_with(|| {
            // There before this agent was: who had the other addresses is not known.
            let ends = there.interfaces.values();
            let local = ends.flat_map(|end| end.addresses.iter().map(|net| (net.addr(), end.mac)));
            let remote = there.neighbours.iter().map(|(address, mac)| (address, *mac));
            let macs: AddressMap<Mac> = local.chain(remote).collect();
            Last {
                room: 2 * macs.len() + MOST_IDLE,
                macs,
                complete: false,
            }
        })
    }

    fn port_of(&self, network: &NetworkName, id: &EndpointId) -> IfName {
        port_name(&EndpointRef {
            network: network.clone(),
            node: self.node.clone(),
            id: id.clone(),
        })
    }
}

impl Last {
    fn differs(&self, address: IpAddr, mac: Mac) -> bool {
        self.macs
            .get(&address)
            .map_or(!self.complete, |last| *last != mac)
    }

    fn remember(&mut self, address: IpAddr, mac: Mac, there: &ObservedNetwork) {
        self.macs.insert(address, mac);
        if self.macs.len() > self.room {
            let ends = there.interfaces.values();
            let local: Vec<IpAddr> = ends
                .flat_map(|end| end.addresses.iter().map(ipnet::IpNet::addr))
                .collect();
            self.macs
                .retain(|a, _| a == address || there.neighbours.contains_key(&a) || local.contains(&a));
            self.complete = false;
            self.room = 2 * self.macs.len() + MOST_IDLE;
        }
    }
}

/// The addresses that an operation gives a MAC, and the local endpoint that then has them.
fn bindings<'a>(
    op: &'a Op,
    ops: &'a [Op],
    there: &'a ObservedNetwork,
) -> Vec<(IpAddr, Mac, Option<&'a EndpointId>)> {
    match op {
        Op::PutNeighbour(address, mac) => vec![(*address, *mac, None)],
        Op::CreateLocal(id, local) => {
            let addresses = local.interface.addresses.iter();
            addresses
                .map(|net| (net.addr(), local.interface.mac, Some(id)))
                .collect()
        }
        Op::PutInterface(id, interface) => {
            let addresses = interface.addresses.iter();
            addresses
                .map(|net| (net.addr(), interface.mac, Some(id)))
                .collect()
        }
        Op::PutAddress(id, net) => {
            let changed = ops.iter().find_map(|op| match op {
                Op::PutInterface(other, interface) if other == id => Some(interface.mac),
                _ => None,
            });
            let mac = changed.or_else(|| Some(there.interfaces.get(id)?.mac));
            mac.map(|mac| (net.addr(), mac, Some(id))).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{Forward, Interface, Local, Port, PortFlags};

    const A: &str = "10.1.0.9";

    fn mac(n: u8) -> Mac {
        Mac::new([2, 0, 0, 0, 0, n]).unwrap()
    }

    fn local(id: &str, address: &str, mac: Mac) -> Op {
        let blue: NetworkName = "blue".parse().unwrap();
        let endpoint = EndpointRef {
            network: blue,
            node: "host1".parse().unwrap(),
            id: id.parse().unwrap(),
        };
        let local = Local {
            port_name: port_name(&endpoint),
            port: Port {
                alias: format!("weft {endpoint}"),
                mtu: 1450,
                up: true,
                bridge_port: Some(PortFlags::ENDPOINT),
            },
            interface: Interface {
                attachment: weft_store_schema::Attachment {
                    netns: format!("/run/netns/{id}").into(),
                    ifname: "eth0".parse().unwrap(),
                },
                alias: format!("weft {endpoint}"),
                mac,
                mtu: 1450,
                up: true,
                addresses: [format!("{address}/24").parse().unwrap()].into(),
                routes: [].into(),
            },
        };
        Op::CreateLocal(endpoint.id, Box::new(local))
    }

    fn neighbour(address: &str, mac: Mac) -> Op {
        Op::PutNeighbour(address.parse().unwrap(), mac)
    }

    fn gone(address: &str) -> Op {
        Op::DeleteNeighbour(address.parse().unwrap())
    }

    /// An agent, as far as announcing goes.
    struct Agent {
        announcer: Announcer,
        observed: Observed,
    }

    impl Agent {
        fn new() -> Self {
            Self {
                announcer: Announcer::new("host1".parse().unwrap()),
                observed: Observed::default(),
            }
        }

        /// Another agent on the same host.
        fn restarted(self) -> Self {
            Self {
                observed: self.observed,
                ..Self::new()
            }
        }

        /// Does it, and tells what was announced.
        fn does(&mut self, ops: Vec<Op>) -> Vec<(String, Mac)> {
            let blue: NetworkName = "blue".parse().unwrap();
            let plan = Plan {
                networks: [(blue.clone(), ops)].into(),
            };
            let told = self.announcer.announcements(&plan, &self.observed);
            let ops = &plan.networks[&blue];
            for op in ops {
                self.announcer.note(&blue, op, ops, &self.observed);
                self.observed.record(&blue, op);
            }
            let told = told.get(&blue).into_iter().flatten();
            told.map(|one| (one.address.to_string(), one.mac)).collect()
        }
    }

    fn told(mac: Mac) -> Vec<(String, Mac)> {
        vec![(A.to_owned(), mac)]
    }

    #[test]
    fn another_mac_is_announced_and_the_same_is_not() {
        let mut agent = Agent::new();
        assert_eq!(agent.does(vec![Op::CreateNamespace, neighbour(A, mac(1))]), []);
        assert_eq!(agent.does(vec![local("a", "10.1.0.1", mac(9))]), []);
        assert_eq!(agent.does(vec![neighbour(A, mac(2))]), told(mac(2)));
        // Gone and back, it is the same to whoever remembers it.
        assert_eq!(agent.does(vec![gone(A)]), []);
        assert_eq!(agent.does(vec![neighbour(A, mac(2))]), []);
        // Gone, and somebody else's: here, and elsewhere again.
        assert_eq!(agent.does(vec![gone(A)]), []);
        assert_eq!(agent.does(vec![local("b", A, mac(3))]), told(mac(3)));
        let port = port_name(&EndpointRef {
            network: "blue".parse().unwrap(),
            node: "host1".parse().unwrap(),
            id: "b".parse().unwrap(),
        });
        assert_eq!(
            agent.does(vec![Op::DeletePort(port), neighbour(A, mac(1))]),
            told(mac(1))
        );
        // One that nobody has had, and one of which something else changes.
        assert_eq!(agent.does(vec![neighbour("10.1.0.77", mac(7))]), []);
        let moved = Forward::Remote("10.99.0.3".parse().unwrap());
        assert_eq!(agent.does(vec![Op::PutForward(mac(1), moved)]), []);
    }

    #[test]
    fn after_a_restart_it_is_not_known_who_had_an_address() {
        let mut agent = Agent::new();
        let made = vec![
            Op::CreateNamespace,
            local("a", "10.1.0.1", mac(9)),
            neighbour(A, mac(1)),
            neighbour("10.1.0.8", mac(8)),
        ];
        assert_eq!(agent.does(made), []);
        assert_eq!(agent.does(vec![gone(A)]), []);
        let mut agent = agent.restarted();
        assert_eq!(agent.does(vec![neighbour("10.1.0.8", mac(8))]), []);
        assert_eq!(agent.does(vec![neighbour(A, mac(1))]), told(mac(1)));
        assert_eq!(agent.does(vec![neighbour(A, mac(1))]), []);
    }

    #[test]
    fn an_address_that_comes_to_an_interface_is_announced() {
        let mut agent = Agent::new();
        agent.does(vec![
            Op::CreateNamespace,
            local("a", "10.1.0.1", mac(9)),
            local("b", "10.1.0.2", mac(8)),
            neighbour(A, mac(1)),
        ]);
        let id: EndpointId = "b".parse().unwrap();
        let net = format!("{A}/24").parse().unwrap();
        let ops = vec![Op::PutAddress(id.clone(), net), gone(A)];
        assert_eq!(agent.does(ops), told(mac(8)));
        let Op::CreateLocal(_, changed) = local("b", A, mac(5)) else {
            unreachable!()
        };
        let ops = vec![Op::PutInterface(id, Box::new(changed.interface))];
        assert_eq!(agent.does(ops), told(mac(5)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut agent = Agent::new();
        agent.does(vec![Op::CreateNamespace, local("a", "10.1.0.1", mac(9))]);
        let address = |n: u32| std::net::Ipv4Addr::from(0x0a02_0000 + n).to_string();
        for n in 0..20_000 {
            agent.does(vec![neighbour(&address(n), mac(1))]);
            agent.does(vec![gone(&address(n))]);
        }
        let last = agent.announcer.networks.values().next().unwrap();
        assert!(last.macs.len() <= 2 * MOST_IDLE, "{}", last.macs.len());
        // What was forgotten is announced, whoever has it.
        let again = agent.does(vec![neighbour(&address(1), mac(1))]);
        assert_eq!(again, [(address(1), mac(1))]);
    }
}
