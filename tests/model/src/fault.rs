//! Faults put in on purpose, between the product's decisions and the model of etcd, to show that the model notices: a
//! model that cannot fail shows nothing.

use weft_core::record::{Guard, Transaction, Write};
use weft_store_schema::Key;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing.
    None,
    /// An address is claimed whether or not somebody has it.
    ClaimWhatIsTaken,
    /// A claim is given up, or taken over, whosever it is by now.
    ReleaseAnybodys,
    /// An endpoint is made whether or not its network is what it was.
    NetworkMayChange,
    /// A network is changed whether or not addresses were claimed meanwhile.
    ChangeUnsettled,
    /// A network is deleted whether or not it has endpoints.
    DeleteInUse,
    /// An endpoint's record is written or deleted whatever it is by now.
    EndpointMayChange,
    /// A VNI is claimed whether or not another network has it.
    VniWhatIsTaken,
    /// The trace of an address that is claimed stays.
    KeepTrace,
    /// An address that is given up leaves no trace.
    NoTrace,
    /// Of several addresses, the first is claimed.
    HalfAClaim,
    /// Whoever asks again does not look whether it happened the first time.
    TakeRefusalsAtTheirWord,
    /// A transaction of which nobody knows counts as done.
    TakeSilenceForYes,
    /// What was written to the disk of detached endpoints is gone when the agent ends.
    ForgetDetaches,
    /// A reservation does not end.
    ReserveForEver,
    /// A node that was removed goes on writing.
    WriteAfterTheEnd,
    /// An address is claimed whatever became of it since it was looked at.
    TraceMayChange,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::ClaimWhatIsTaken,
        Self::ReleaseAnybodys,
        Self::NetworkMayChange,
        Self::ChangeUnsettled,
        Self::DeleteInUse,
        Self::EndpointMayChange,
        Self::VniWhatIsTaken,
        Self::KeepTrace,
        Self::NoTrace,
        Self::HalfAClaim,
        Self::TakeRefusalsAtTheirWord,
        Self::TakeSilenceForYes,
        Self::ForgetDetaches,
        Self::ReserveForEver,
        Self::WriteAfterTheEnd,
        Self::TraceMayChange,
    ];

    /// What is sent in a transaction's place.
    pub(crate) fn damage(self, mut transaction: Transaction) -> Transaction {
        let guards = |transaction: &mut Transaction, drop: fn(&Guard) -> bool| {
            transaction.guards.retain(|guard| !drop(guard));
        };
        match self {
            Self::ClaimWhatIsTaken => {
                guards(&mut transaction, |g| matches!(g, Guard::Absent(Key::Address(..))));
            }
            Self::ReleaseAnybodys => {
                guards(&mut transaction, |g| {
                    matches!(g, Guard::Unchanged(Key::Address(..), _))
                });
            }
            Self::NetworkMayChange => {
                let is_network = transaction
                    .writes
                    .iter()
                    .any(|w| matches!(w.key(), Some(Key::Network(_))));
                if !is_network {
                    guards(&mut transaction, |g| {
                        matches!(g, Guard::Unchanged(Key::Network(_), _))
                    });
                }
            }
            Self::ChangeUnsettled => guards(&mut transaction, |g| matches!(g, Guard::Settled(..))),
            Self::DeleteInUse => guards(&mut transaction, |g| matches!(g, Guard::Empty(_))),
            Self::EndpointMayChange => {
                guards(&mut transaction, |g| {
                    matches!(
                        g,
                        Guard::Unchanged(Key::Endpoint(_), _) | Guard::Absent(Key::Endpoint(_))
                    )
                });
            }
            Self::VniWhatIsTaken => {
                guards(&mut transaction, |g| matches!(g, Guard::Absent(Key::Vni(_))));
            }
            Self::KeepTrace => {
                let is_trace = |w: &Write| matches!(w, Write::Delete(Key::Released(..)));
                transaction.writes.retain(|write| !is_trace(write));
            }
            Self::NoTrace => {
                let is_trace = |w: &Write| matches!(w, Write::Put(Key::Released(..), _));
                transaction.writes.retain(|write| !is_trace(write));
            }
            Self::HalfAClaim => {
                let mut claims = 0;
                transaction.writes.retain(|write| {
                    let is_claim = matches!(write, Write::Put(Key::Address(..), _));
                    claims += usize::from(is_claim);
                    !is_claim || claims == 1
                });
            }
            Self::WriteAfterTheEnd => {
                guards(&mut transaction, |g| {
                    matches!(g, Guard::Unchanged(Key::Peer(_), _) | Guard::Absent(Key::Peer(_)))
                });
            }
            Self::TraceMayChange => {
                guards(&mut transaction, |g| {
                    matches!(
                        g,
                        Guard::Unchanged(Key::Released(..), _) | Guard::Absent(Key::Released(..))
                    )
                });
            }
            Self::ReserveForEver => {
                for write in &mut transaction.writes {
                    if let Write::PutLeased(key, value, _) = write {
                        *write = Write::Put(key.clone(), std::mem::take(value));
                    }
                }
            }
            Self::None | Self::TakeRefusalsAtTheirWord | Self::TakeSilenceForYes | Self::ForgetDetaches => {}
        }
        transaction
    }
}
