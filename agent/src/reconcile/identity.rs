//! Whether this host is the node that it was told to be. Until that is known, and for as long as the name is another
//! host's, this agent writes neither to the kernel nor to the store, and says why.
//!
//! The name is taken by publishing the node's record, which happens once. Whether another agent is alive under it
//! decides nothing but for a copy of a host; it is asked for so that people are told.

use std::time::{Duration, SystemTime};

use tokio::{sync::mpsc, time::Instant};
use weft_core::{
    identity::{Own, Whose, whose},
    problem::Problem,
    record::Scope,
};
use weft_store_schema::{AliveDocument, Key, Peer, encode};

use super::Reconciler;
use crate::problems::Source;

/// How often it is asked whether another agent is alive under the name.
const LOOK: Duration = Duration::from_secs(2);
/// How long nobody may have been seen alive: an agent that has just published its record comes alive within that.
const QUIET: Duration = Duration::from_secs(5);
/// How long the store may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether this host is the node that it was told to be.
#[derive(Debug)]
pub(super) struct Identity {
    standing: Standing,
    /// When the record that was last judged to be this host's was created, as a revision.
    record_of: i64,
    look_at: Option<Instant>,
    /// The agent that was last seen alive under the name.
    alive: Option<AliveDocument>,
    /// Since when it is known that none is.
    quiet_since: Option<Instant>,
    looks: mpsc::UnboundedSender<AliveSeen>,
}

/// How this host stands to the node's name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// The node's record has not been seen yet.
    Unknown,
    /// It may be taken.
    Free,
    /// It is this host's.
    Ours,
    /// It is another host's, or may be; in words for people.
    Anothers(String),
}

/// What a look for another agent has found; nothing if the store did not answer.
pub(super) type AliveSeen = Option<Option<AliveDocument>>;

impl Identity {
    /// Nothing is known; and where it is told what looks find.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<AliveSeen>) {
        let (looks, seen) = mpsc::unbounded_channel();
        let identity = Self {
            standing: Standing::Unknown,
            record_of: 0,
            look_at: None,
            alive: None,
            quiet_since: None,
            looks,
        };
        (identity, seen)
    }

    /// When to look again for another agent.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.look_at
    }

    fn is_alone(&self) -> bool {
        self.quiet_since.is_some_and(|since| since.elapsed() >= QUIET)
    }
}

impl Reconciler {
    /// Whether this host is the node that it was told to be, so that the node's part in the kernel is its own.
    pub(super) fn is_the_node(&self) -> bool {
        self.identity.standing == Standing::Ours
    }

    /// Whether this agent may write in the node's name.
    pub(super) fn may_speak(&self) -> bool {
        matches!(self.identity.standing, Standing::Ours | Standing::Free)
    }

    /// Why this agent does nothing, if its node's name is another host's.
    pub(crate) fn fenced(&self) -> Option<&str> {
        match &self.identity.standing {
            Standing::Anothers(why) => Some(why),
            _ => None,
        }
    }

    /// A life of this node has ended: whose the name is has to be found out anew.
    pub(super) fn question_identity(&mut self) {
        self.identity.standing = Standing::Unknown;
    }

    /// Judges the node's record. Once it is this host's it stays so, whatever is written there, until it was deleted and
    /// another host has made one.
    pub(super) fn settle_identity(&mut self) {
        if !self.snapshot.is_complete(&[Scope::Peers].into()) {
            return;
        }
        let underlay = self.underlay.iter();
        let own = Own {
            incarnation: self.history.incarnation(),
            boot_id: &self.node.boot_id,
            vteps: underlay.flat_map(|u| [u.v4, u.v6]).flatten().collect(),
        };
        let slot = self.snapshot.peer_slot(&self.node.name);
        let created = slot.map_or(0, |slot| slot.create_revision);
        let judged = whose(slot, &own);
        if judged == Whose::Ours {
            self.identity.record_of = created;
        }
        if self.is_the_node() {
            let made_anew = created > self.identity.record_of && !self.snapshot.is_distrusted();
            if !(made_anew && matches!(judged, Whose::Anothers(_))) {
                return;
            }
        }
        let standing = match judged {
            Whose::Free => Standing::Free,
            Whose::Ours => Standing::Ours,
            // Without an underlay, it is not known which address is this host's.
            Whose::OursIfAlone(_) | Whose::Anothers(_) if self.underlay.is_none() => Standing::Unknown,
            Whose::OursIfAlone(_) if self.identity.is_alone() => Standing::Ours,
            Whose::OursIfAlone(peer) => Standing::Anothers(self.told(peer, true)),
            Whose::Anothers(peer) => Standing::Anothers(self.told(peer, false)),
        };
        if standing == self.identity.standing {
            return;
        }
        self.identity.standing = standing;
        let key = Key::Peer(self.node.name.clone()).to_string();
        match &self.identity.standing {
            Standing::Ours | Standing::Free => {
                self.problems.set(Source::Identity, &key, None);
                self.identity.look_at = None;
                if self.is_the_node() {
                    self.store.presence(encode(&self.node.alive_document()));
                    self.dirty.everything = true;
                }
                // What was owed while nothing could be written.
                let everything = weft_core::dirty::Dirty::everything();
                self.add_chores(&everything);
            }
            Standing::Anothers(why) => {
                let problem = Problem::new(&key, why.clone());
                self.problems.set(Source::Identity, &key, Some(problem));
                self.identity.look_at.get_or_insert_with(Instant::now);
                self.stand_still();
            }
            Standing::Unknown => {}
        }
        self.bump();
    }

    /// The name that this host had is another's now: what it forwards stays as it is, and nothing is done in the name.
    fn stand_still(&mut self) {
        if std::mem::take(&mut self.adopted) {
            tracing::error!(
                node = %self.node.name,
                "another host was given this one's name: nothing is done here any more, and what is forwarded stays as it \
                 is (see 'weft status'; 'weftd --teardown' removes it)"
            );
            self.store.withdraw();
        }
    }

    /// Looks whether another agent is alive under this node's name, if it is time.
    pub(super) fn look_for_others(&mut self) {
        let now = Instant::now();
        if self.identity.look_at.is_none_or(|at| at > now) {
            return;
        }
        self.identity.look_at = Some(now + LOOK);
        let (store, looks) = (self.store.clone(), self.identity.looks.clone());
        let key = Key::Alive(self.node.name.clone());
        tokio::spawn(async move {
            let fetched = store.get(&key, PATIENCE).await.ok();
            let seen = fetched.map(|fetched| {
                // What cannot be read is somebody, too.
                fetched
                    .entry
                    .map(|entry| serde_json::from_slice(&entry.value).unwrap_or_default())
            });
            // The loop may have ended meanwhile.
            let _ = looks.send(seen);
        });
    }

    pub(super) fn on_alive_seen(&mut self, seen: AliveSeen) {
        match seen {
            Some(Some(alive)) => {
                self.identity.quiet_since = None;
                self.identity.alive = Some(alive);
            }
            Some(None) => {
                self.identity.alive = None;
                self.identity.quiet_since.get_or_insert_with(Instant::now);
            }
            // It is not known: the time of quiet begins anew.
            None => self.identity.quiet_since = None,
        }
        self.settle_identity();
        self.run_chores();
    }

    fn told(&self, peer: &Peer, may_be_ours: bool) -> String {
        let node = &self.node.name;
        let vteps: Vec<String> = peer.vteps().map(|vtep| vtep.to_string()).collect();
        let own = self
            .underlay
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let boot = peer.boot_id.as_deref().map(|boot| format!(", boot {boot}"));
        let agent = match &self.identity.alive {
            Some(alive) => format!("its agent runs since {}", time(alive.since)),
            None if self.identity.quiet_since.is_some() => "its agent is not running".to_owned(),
            None => "whether its agent runs is not known yet".to_owned(),
        };
        let rest = if may_be_ours {
            "If this is that host with another address, it goes on by itself when its last lease is over, within a \
             minute; if it is a copy of that host, give it a node name of its own and an empty state_dir"
                .to_owned()
        } else {
            format!(
                "Give this host a name of its own (setting node); or, if the other one is gone for good, release it: \
                 'weft peer remove {node}'"
            )
        };
        format!(
            "node name {node} is that of another host, {}{} ({agent}), so this one, {own}, does nothing. {rest}",
            vteps.join(", "),
            boot.unwrap_or_default()
        )
    }
}

/// Seconds since 1970 for people.
fn time(since: u64) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(since))
}
