//! The page that a scrape reads, made anew each time: the loop's own counters, its state as it answers now, the store's
//! client, the process.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, Instant, SystemTime},
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Metric, Registry},
};
use tokio::time::timeout;
use weft_store::{Health, Store};

use super::{Labels, Metrics, process::Process};
use crate::{
    node::{Node, VERSION},
    reconcile::Asker,
    view,
};

/// A loop that does not answer within this time is told to be stuck.
const PATIENCE: Duration = Duration::from_secs(2);

type Whole = Gauge<u64, AtomicU64>;
type Seconds = Gauge<f64, AtomicU64>;

/// The loop's state, as far as it is told. Durations in seconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    /// Whether the first pass is done.
    pub(crate) ready: bool,
    /// Up to this revision, every record is in the kernel, or its failure is known.
    pub(crate) applied_revision: i64,
    /// Networks with a good record.
    pub(crate) networks: u64,
    /// Networks carried here.
    pub(crate) local_networks: u64,
    /// Endpoints here.
    pub(crate) local_endpoints: u64,
    /// Of them, those that are carried.
    pub(crate) ready_endpoints: u64,
    /// Endpoints elsewhere.
    pub(crate) remote_endpoints: u64,
    /// Peers.
    pub(crate) peers: u64,
    /// Forwarding entries in the kernel.
    pub(crate) fdb_entries: u64,
    /// Neighbours in the kernel.
    pub(crate) neighbours: u64,
    /// Problems by source.
    pub(crate) problems: Vec<(&'static str, u64)>,
    /// Records whose deletion is held.
    pub(crate) held_deletions: u64,
    /// Writes that are owed to the store.
    pub(crate) chores_owed: u64,
    /// How long the kernel's thread has been at what it is doing.
    pub(crate) kernel_busy: f64,
}

/// What the page is made of.
pub(crate) struct Page {
    /// What the loop counts.
    pub(crate) metrics: Metrics,
    /// The loop.
    pub(crate) asker: Asker,
    /// The store.
    pub(crate) store: Store,
    /// This node.
    pub(crate) node: Node,
}

impl Page {
    /// The page as it is now. Without the loop's state if that does not answer: what it was before is not what it is.
    pub(super) async fn render(&self) -> String {
        let figures = timeout(PATIENCE, self.asker.ask(|r| view::figures(r))).await;
        text(
            &self.metrics,
            figures.ok().flatten().as_ref(),
            &self.store.health(),
            &self.node,
            &Process::read(),
        )
    }
}

/// All metrics, their names and what they mean.
fn text(
    metrics: &Metrics,
    figures: Option<&Figures>,
    health: &Health,
    node: &Node,
    process: &Process,
) -> String {
    let mut page = Sheet(Registry::default());
    page.agent(figures, node);
    page.kernel(metrics, figures);
    if let Some(figures) = figures {
        page.state(figures);
    }
    page.store(health);
    page.process(process, node);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = encode(&mut text, &page.0);
    text
}

struct Sheet(Registry);

impl Sheet {
    fn add(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.0.register(name, help, metric);
    }

    fn number(&mut self, name: &str, help: &str, value: u64) {
        let gauge = Whole::default();
        gauge.set(value);
        self.add(name, help, gauge);
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Seconds::default();
        gauge.set(value);
        self.add(name, help, gauge);
    }

    fn count(&mut self, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.add(name, help, counter);
    }

    fn numbers(&mut self, name: &str, help: &str, label: &'static str, values: &[(&'static str, u64)]) {
        let family = Family::<Labels<1>, Whole>::default();
        for (of, value) in values {
            family.get_or_create(&[(label, of)]).set(*value);
        }
        self.add(name, help, family);
    }

    fn agent(&mut self, figures: Option<&Figures>, node: &Node) {
        let build = [
            ("version", VERSION.to_owned()),
            ("node", node.name.to_string()),
            ("boot_id", node.boot_id.clone()),
        ];
        self.add(
            "weft_build",
            "The agent: its version, its node, and the host's boot",
            Info::new(build.to_vec()),
        );
        self.number(
            "weft_loop_responding",
            "Whether the agent's loop has answered within 2 s; if not, metrics of its state are missing",
            u64::from(figures.is_some()),
        );
    }

    fn kernel(&mut self, metrics: &Metrics, figures: Option<&Figures>) {
        self.add(
            "weft_passes",
            "Passes of the loop that compared what should be with what is, over a part or over everything",
            metrics.passes.clone(),
        );
        self.add(
            "weft_kernel_changes",
            "Changes of the kernel that were carried out, by kind of object, repairs of drift among them",
            metrics.changes.clone(),
        );
        self.add(
            "weft_drift_repaired",
            "Objects in the kernel, and claims in the store, that somebody else had changed or removed and that were put right, by kind",
            metrics.drift.clone(),
        );
        self.add(
            "weft_netlink_writes",
            "Netlink messages sent to change something, and namespaces made or removed",
            metrics.netlink_writes.clone(),
        );
        self.add(
            "weft_kernel_errors",
            "What the kernel refused or could not tell, each try: refused by netlink, the answer was lost, the socket \
             failed, an object was gone, a namespace failed, an attachment is not (yet) usable",
            metrics.errors.clone(),
        );
        self.add(
            "weft_netlink_overruns",
            "Times that notifications of the kernel were lost because they came too fast; each is followed by a look at everything",
            metrics.overruns.clone(),
        );
        self.add(
            "weft_convergence_seconds",
            "From the arrival of a store event here (by the watch, or as the answer to a transaction of this agent) until the \
             plan made from it had been applied to this host's kernel. One observation for each event after the first pass \
             that touched what this host may forward; changes of one scope that arrive together are one event. What the \
             kernel refused counts as tried, not as done",
            metrics.convergence.clone(),
        );
        if let Some(figures) = figures {
            self.seconds(
                "weft_kernel_busy_seconds",
                "How long the kernel's thread has been at its present look or plan; 0 when it has nothing to do",
                figures.kernel_busy,
            );
        }
    }

    fn state(&mut self, figures: &Figures) {
        self.number(
            "weft_ready",
            "Whether the first pass is done: until then the agent has changed nothing",
            u64::from(figures.ready),
        );
        self.number(
            "weft_applied_revision",
            "Up to this revision of the store, every record is in the kernel, or its failure is known; 0 before the first pass",
            u64::try_from(figures.applied_revision).unwrap_or_default(),
        );
        self.number("weft_networks", "Networks with a good record", figures.networks);
        self.number(
            "weft_local_networks",
            "Networks that this host carries",
            figures.local_networks,
        );
        self.numbers(
            "weft_endpoints",
            "Endpoints on this host, and those elsewhere in the networks that it knows",
            "location",
            &[
                ("local", figures.local_endpoints),
                ("remote", figures.remote_endpoints),
            ],
        );
        self.number(
            "weft_ready_endpoints",
            "Endpoints on this host that its data plane carries",
            figures.ready_endpoints,
        );
        self.number("weft_peers", "Peers, this host included", figures.peers);
        self.number(
            "weft_fdb_entries",
            "MACs that the kernel forwards",
            figures.fdb_entries,
        );
        self.number("weft_neighbours", "Neighbours in the kernel", figures.neighbours);
        self.numbers(
            "weft_problems",
            "What is wrong now, by who sees it, as `weft status` lists it",
            "source",
            &figures.problems,
        );
        self.number(
            "weft_held_deletions",
            "Records that the store no longer has and that are kept until somebody confirms; 0 if none is held back",
            figures.held_deletions,
        );
        self.number(
            "weft_chores_owed",
            "Writes to the store that this agent owes: records to complete, claims to give up, its own records",
            figures.chores_owed,
        );
    }

    fn store(&mut self, health: &Health) {
        let now = Instant::now();
        self.number(
            "weft_store_connected",
            "Whether the watch stands and etcd answers",
            u64::from(health.connected),
        );
        self.seconds(
            "weft_store_lag_seconds",
            "How long ago the watch last heard of etcd: the state of the store is known up to then. Up to about 10 s while all is \
             well and nothing changes",
            now.saturating_duration_since(health.heard).as_secs_f64(),
        );
        self.number(
            "weft_store_revision",
            "The newest revision of the store that any answer told of, of records of weft's or not",
            u64::try_from(health.revision).unwrap_or_default(),
        );
        self.number(
            "weft_store_known_revision",
            "Up to this revision every change is certainly known",
            u64::try_from(health.progress).unwrap_or_default(),
        );
        for (name, help, value) in [
            (
                "weft_store_disconnects",
                "Times the connection of the watch was lost",
                health.disconnects,
            ),
            (
                "weft_store_watches",
                "Watch streams opened; all but the first are reconnects",
                health.streams,
            ),
            (
                "weft_store_resumes",
                "Watch streams that went on where the last one ended, without a listing",
                health.resumes,
            ),
            (
                "weft_store_listings",
                "Listings, of one or more scopes each",
                health.lists,
            ),
            (
                "weft_store_relistings",
                "Scopes listed again because of compaction, cancellation or another history",
                health.relists,
            ),
            (
                "weft_store_silences",
                "Watches replaced because they gave no sign of life",
                health.silences,
            ),
            (
                "weft_store_leases",
                "Leases granted for this node's presence",
                health.leases,
            ),
            (
                "weft_store_retries",
                "Requests sent again after a failure",
                health.retries,
            ),
        ] {
            self.count(name, help, value);
        }
    }

    fn process(&mut self, process: &Process, node: &Node) {
        let cpu = Counter::<f64, AtomicU64>::default();
        cpu.inc_by(process.cpu_seconds);
        self.add(
            "process_cpu_seconds",
            "Processor time of the agent, user and system",
            cpu,
        );
        let started = node.started.duration_since(SystemTime::UNIX_EPOCH);
        self.seconds(
            "process_start_time_seconds",
            "When the agent started, in seconds since 1970",
            started.unwrap_or_default().as_secs_f64(),
        );
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Memory of the agent that is in use",
                process.resident_bytes,
            ),
            (
                "process_virtual_memory_bytes",
                "Address space of the agent",
                process.virtual_bytes,
            ),
            (
                "process_open_fds",
                "File descriptors that the agent has open",
                process.open_files,
            ),
            (
                "process_max_fds",
                "File descriptors that it may have open",
                process.most_files,
            ),
            ("process_threads", "Threads of the agent", process.threads),
        ] {
            self.number(name, help, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

    use super::*;
    use crate::config::{Args, Config};

    fn page(figures: Option<&Figures>) -> String {
        let args = Args {
            node: Some("host1".to_owned()),
            ..Args::default()
        };
        let node = Node::new(&Config::load(args).unwrap()).unwrap();
        let health = Health::unknown(vec!["http://127.0.0.1:2379".to_owned()]);
        text(&Metrics::new(), figures, &health, &node, &Process::read())
    }

    fn figures() -> Figures {
        let sources = crate::problems::Source::ALL;
        Figures {
            problems: sources.map(|source| (source.name(), 0)).to_vec(),
            ..Figures::default()
        }
    }

    /// The rows of the documentation's table, from a page: samples' names, not families'.
    fn table(page: &str) -> String {
        let mut rows = String::new();
        for line in page.lines() {
            let Some((family, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) else {
                continue;
            };
            let kind = page
                .lines()
                .find_map(|l| l.strip_prefix(&format!("# TYPE {family} ")))
                .unwrap();
            let name = match kind {
                "counter" => format!("{family}_total"),
                "info" => format!("{family}_info"),
                _ => family.to_owned(),
            };
            let samples = page.lines().filter_map(|l| l.strip_prefix(&format!("{name}{{")));
            let mut labels: BTreeSet<String> = BTreeSet::new();
            for sample in samples {
                for label in sample.split_once('}').unwrap().0.split(',') {
                    let (label, value) = label.split_once('=').unwrap();
                    labels.insert(match kind {
                        "info" => format!("`{label}`"),
                        _ => format!("`{label}={value}`").replace('"', ""),
                    });
                }
            }
            let labels = Vec::from_iter(labels).join(" ");
            let help = help.trim_end_matches('.').replace('|', "\\|");
            writeln!(rows, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
        }
        rows
    }

    #[test]
    fn the_documentation_lists_every_metric() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
        let text = fs::read_to_string(&path).unwrap();
        let head = "| metric | type | labels | what it says |\n|---|---|---|---|\n";
        let (before, rest) = text.split_once(head).expect("a table of metrics");
        let (there, after) = rest.split_once("\n\n").expect("something after the table");
        let wanted = table(&page(Some(&figures())));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&path, format!("{before}{head}{wanted}\n{after}")).unwrap();
            return;
        }
        assert_eq!(
            format!("{there}\n"),
            wanted,
            "docs/operations.md; UPDATE_DOCS=1 writes it"
        );
    }

    #[test]
    fn names_follow_the_conventions() {
        let page = page(Some(&figures()));
        assert!(page.ends_with("# EOF\n"));
        for line in page.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(
                name.starts_with("weft_") || name.starts_with("process_"),
                "{line}"
            );
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{line}"
            );
            // Bounded: whatever the networks and endpoints are.
            assert!(!line.contains("blue"), "{line}");
        }
        assert!(
            page.contains("\nweft_drift_repaired_total{kind=\"fdb\"} 0\n"),
            "{page}"
        );
        assert!(
            page.contains("\nweft_convergence_seconds_bucket{le=\"+Inf\"} 0\n"),
            "{page}"
        );
        assert!(
            page.contains("\nweft_endpoints{location=\"remote\"} 0\n"),
            "{page}"
        );
    }

    #[test]
    fn a_loop_that_does_not_answer_is_told_and_nothing_is_made_up() {
        let page = page(None);
        assert!(page.contains("\nweft_loop_responding 0\n"), "{page}");
        assert!(!page.contains("weft_applied_revision"), "{page}");
        // What is counted beside it is there all the same.
        assert!(page.contains("\nweft_passes_total{scope=\"full\"} 0\n"), "{page}");
    }
}
