//! Stories in files: what is written, and below `----` what comes of it.
//!
//! A file is blocks with blank lines between. A block is commands, `----`, and what each host then does
//! (operations, in order) and says (`!` a problem that appeared or changed, `ok` one that is gone). After each
//! block every host is also checked: a pass over everything has to find nothing to do and nothing else to say.
//! `UPDATE_CASES=1` writes what comes now; read the difference before it is committed.
//!
//! - `host NAME v4|v6|both [mtu N]`: a host with an agent; its peer record is written by `chores`
//! - `put KEY VALUE`, `delete KEY`, `delete all below KEY`: as etcdctl does
//! - `chores`: the agents write what they owe; told as `writes`, `deletes` and `refuses`
//! - `relist`: the agents list everything again
//! - `restart`: the agents are started anew; the kernels stay as they are
//! - `distrust WHY`: the agents have reason to believe that the store has lost records
//! - `go back to N`: the store is restored from a backup of that revision
//! - `another cluster`: the store answers with another identity
//! - `empty store`: another cluster, and nothing in it
//! - `release`: an operator confirms that what is held may go
//! - `detach KEY`: the agent of the endpoint's node takes it off, before the store knows
//! - `end detach KEY`

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use weft_core::{
    chores::Chore,
    problem::Problem,
    record::{Committed, Guard, Write},
};
use weft_store_schema::{Key, NodeName};

use crate::{
    agent::Agent,
    records::{Families, host, key, node},
    show,
    store::Store,
};

#[derive(Default)]
struct Story {
    store: Store,
    backups: Vec<Store>,
    agents: Vec<Agent>,
    /// What each host has been heard saying.
    said: BTreeMap<NodeName, Said>,
}

/// Problems by their key and by who sees them, and what is held.
#[derive(Default)]
struct Said {
    problems: BTreeMap<(String, bool), Problem>,
    held: String,
}

fn line(out: &mut String, agent: Option<&Agent>, alone: bool, text: &str) {
    let name = agent.filter(|_| !alone).map(|a| format!("{}: ", a.node()));
    writeln!(out, "{}{text}", name.unwrap_or_default()).unwrap();
}

impl Story {
    fn command(&mut self, command: &str, out: &mut String) {
        self.backups.push(self.store.clone());
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        match (verb, rest) {
            ("host", rest) => {
                let mut words = rest.split(' ');
                let name = words.next().unwrap();
                let families = match words.next() {
                    Some("v4") => Families::V4,
                    Some("v6") => Families::V6,
                    _ => Families::Both,
                };
                let number = name.strip_prefix("host").unwrap().parse().unwrap();
                let mut agent = Agent::new(node(name), host(number, families));
                if words.next() == Some("mtu") {
                    agent.host.mtu = words.next().unwrap().parse().unwrap();
                }
                agent.sync(&self.store);
                self.agents.push(agent);
            }
            ("put", rest) => {
                let (key, value) = rest.split_once(' ').unwrap_or((rest, ""));
                self.store.put(&Store::key(key), value.as_bytes());
            }
            ("delete", rest) if rest.starts_with("all below") => {
                let prefix = rest.strip_prefix("all below").unwrap().trim();
                self.store.delete_below(&format!("/weft/v1/{prefix}"));
            }
            ("delete", rest) => {
                assert!(self.store.get(&Store::key(rest)).is_some(), "there is no {rest}");
                self.store.delete(&Store::key(rest));
            }
            ("chores", "") => self.chores(out),
            ("relist", "") => self.agents.iter_mut().for_each(|agent| agent.relist(&self.store)),
            ("go", rest) => {
                let revision = rest.strip_prefix("back to ").unwrap().parse().unwrap();
                let backup = self
                    .backups
                    .iter()
                    .rfind(|s| s.revision <= revision)
                    .unwrap()
                    .clone();
                assert_eq!(backup.revision, revision);
                self.store = backup;
                self.agents.iter_mut().for_each(|agent| agent.relist(&self.store));
            }
            ("another", "cluster") => {
                self.store.cluster_id += 1;
                self.agents.iter_mut().for_each(|agent| agent.relist(&self.store));
            }
            ("empty", "store") => {
                let cluster_id = self.store.cluster_id + 1;
                self.store = Store::new();
                self.store.cluster_id = cluster_id;
                self.agents.iter_mut().for_each(|agent| agent.relist(&self.store));
            }
            ("release", "") => {
                for agent in &mut self.agents {
                    let dirty = agent.snapshot.release_held();
                    agent.note(dirty);
                }
            }
            ("restart", "") => {
                for agent in &mut self.agents {
                    agent.restart();
                    agent.sync(&self.store);
                }
            }
            ("distrust", why) => {
                for agent in &mut self.agents {
                    agent.snapshot.distrust(why.to_owned());
                }
            }
            ("detach", rest) => self.detach(rest, true),
            ("end", rest) => self.detach(rest.strip_prefix("detach ").unwrap(), false),
            _ => panic!("no command {command:?}"),
        }
    }

    fn detach(&mut self, rest: &str, begin: bool) {
        let Key::Endpoint(endpoint) = key(rest) else {
            panic!("{rest} is no endpoint")
        };
        let agent = self
            .agents
            .iter_mut()
            .find(|a| *a.node() == endpoint.node)
            .unwrap();
        let snapshot = &mut agent.snapshot;
        let life = snapshot
            .endpoint(&endpoint)
            .map_or(0, |slot| slot.create_revision);
        let dirty = if begin {
            snapshot.detach(&endpoint, life)
        } else {
            snapshot.end_detach(&endpoint)
        };
        agent.note(dirty);
    }

    /// Until no agent writes anything more.
    fn chores(&mut self, out: &mut String) {
        let alone = self.agents.len() == 1;
        for _ in 0..50 {
            let mut refused = String::new();
            let mut wrote = false;
            for agent in &mut self.agents {
                agent.sync(&self.store);
                for chore in agent.book.clone() {
                    let transaction = match agent.transaction(&chore) {
                        Ok(Some(transaction)) => transaction,
                        Ok(None) => continue,
                        Err(refusal) => {
                            line(
                                &mut refused,
                                Some(agent),
                                alone,
                                &format!("refuses {}: {refusal}", subject(&chore)),
                            );
                            continue;
                        }
                    };
                    if let Committed::No { .. } = self.store.commit(&transaction, agent.node()) {
                        // What depends on more than a host has in view.
                        let empty = transaction.guards.iter().any(|g| matches!(g, Guard::Empty(_)));
                        assert!(empty, "{chore:?} with a fresh view: {transaction:#?}");
                        line(
                            &mut refused,
                            Some(agent),
                            alone,
                            &format!("cannot yet do {}", subject(&chore)),
                        );
                        continue;
                    }
                    wrote = true;
                    for write in &transaction.writes {
                        let text = match write {
                            Write::Put(key, value) | Write::PutLeased(key, value, _) => {
                                format!("writes {key} {}", String::from_utf8_lossy(value))
                            }
                            Write::Delete(key) => format!("deletes {key}"),
                            Write::DeleteAll(scope) => format!("deletes all of {scope:?}"),
                        };
                        line(out, Some(agent), alone, &text);
                    }
                    agent.sync(&self.store);
                }
            }
            if !wrote {
                out.push_str(&refused);
                return;
            }
        }
        panic!("the chores come to no end");
    }

    /// What the hosts do now and say now.
    fn react(&mut self, out: &mut String) {
        let alone = self.agents.len() == 1;
        for agent in &mut self.agents {
            let before = self.said.remove(agent.node()).unwrap_or_default();
            agent.sync(&self.store);
            let mut done = agent.settle();
            agent.follow(&self.store);
            done.extend(agent.settle());
            agent.check();
            for (network, op) in done {
                line(out, Some(agent), alone, &format!("{network}: {}", show::op(&op)));
            }
            let now = Said {
                problems: by_key(agent),
                held: held(agent),
            };
            if now.held != before.held && !(before.held.is_empty() && now.held == "holds nothing") {
                line(out, Some(agent), alone, &now.held);
            }
            for (key, problem) in &now.problems {
                if before.problems.get(key) != Some(problem) {
                    line(out, Some(agent), alone, &format!("! {problem}"));
                }
            }
            for key in before
                .problems
                .keys()
                .filter(|key| !now.problems.contains_key(*key))
            {
                line(out, Some(agent), alone, &format!("ok {}", key.0));
            }
            self.said.insert(agent.node().clone(), now);
        }
    }
}

fn subject(chore: &Chore) -> String {
    match chore {
        Chore::CompleteEndpoint(endpoint) => Key::Endpoint(endpoint.clone()).to_string(),
        Chore::FreeVni(vni) => Key::Vni(*vni).to_string(),
        other => format!("{other:?}"),
    }
}

fn held(agent: &Agent) -> String {
    let keys: Vec<String> = agent
        .snapshot
        .held_keys()
        .iter()
        .map(ToString::to_string)
        .collect();
    match (agent.snapshot.held_because(), keys.is_empty()) {
        (None, true) => "holds nothing".to_owned(),
        (None, false) => format!("holds {}", keys.join(" ")),
        (Some(why), true) => format!("holds nothing yet, because {why}"),
        (Some(why), false) => format!("holds {} because {why}", keys.join(" ")),
    }
}

/// Problems by their key and by who sees them.
fn by_key(agent: &Agent) -> BTreeMap<(String, bool), Problem> {
    let records = agent
        .snapshot
        .problems()
        .values()
        .map(|p| ((p.key.clone(), false), p.clone()));
    let others = agent
        .assessed
        .values()
        .map(|p| ((p.key.clone(), true), p.clone()));
    records.chain(others).collect()
}

/// The file as it is, with what comes now in the place of what came.
fn run(text: &str) -> String {
    let mut story = Story::default();
    let mut now = String::new();
    for block in text.trim_end().split("\n\n") {
        let (commands, told) = match block.split_once("\n----") {
            Some((commands, _)) => (commands, true),
            None => (block, false),
        };
        writeln!(now, "{commands}").unwrap();
        let mut out = String::new();
        let commands: Vec<&str> = commands.lines().filter(|l| !l.starts_with('#')).collect();
        for command in &commands {
            story.command(command, &mut out);
        }
        if !commands.is_empty() {
            assert!(told, "a block without ----:\n{block}");
            story.react(&mut out);
            let out = if out.is_empty() { "nothing\n" } else { &out };
            write!(now, "----\n{out}").unwrap();
        }
        now.push('\n');
    }
    now.trim_end().to_owned() + "\n"
}

#[test]
fn the_stories_end_as_told() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reconcile/cases");
    let update = std::env::var_os("UPDATE_CASES").is_some();
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    let mut wrong = Vec::new();
    for path in &paths {
        let text = fs::read_to_string(path).unwrap();
        let Ok(now) = std::panic::catch_unwind(|| run(&text)) else {
            wrong.push(format!("{}: panicked, see above", path.display()));
            continue;
        };
        if update {
            fs::write(path, &now).unwrap();
        } else if now != text {
            let differs = now
                .lines()
                .zip(text.lines())
                .position(|(a, b)| a != b)
                .unwrap_or(0);
            let around: Vec<_> = now.lines().skip(differs.saturating_sub(3)).take(8).collect();
            wrong.push(format!(
                "{}, line {}, is now:\n{}",
                path.display(),
                differs + 1,
                around.join("\n")
            ));
        }
    }
    assert!(!paths.is_empty());
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
