//! What an agent has under way: transactions between being worked out and being learned from, calls of the API between
//! being asked and being answered.

use weft_core::{
    chores::Chore,
    record::{Committed, Transaction},
};
use weft_store_schema::{EndpointRef, Key, NetworkName, NodeName};

use crate::{
    deed::Ask,
    etcd::{Answer, NoSuchLease},
};

/// Something under way.
#[derive(Debug, Clone)]
pub(crate) enum Doing {
    /// A chore's transaction.
    Chore(Chore, Flight),
    /// A call.
    Call(Call),
}

impl Doing {
    pub(crate) fn flight(&self) -> Option<&Flight> {
        match self {
            Self::Chore(_, flight) => Some(flight),
            Self::Call(call) => match &call.stage {
                Stage::Flying(flight) | Stage::Asking(flight) => Some(flight),
                _ => None,
            },
        }
    }

    pub(crate) fn flight_mut(&mut self) -> Option<&mut Flight> {
        match self {
            Self::Chore(_, flight) => Some(flight),
            Self::Call(call) => match &mut call.stage {
                Stage::Flying(flight) => Some(flight),
                _ => None,
            },
        }
    }

    pub(crate) fn call(&self) -> Option<usize> {
        match self {
            Self::Chore(..) => None,
            Self::Call(call) => Some(call.number),
        }
    }
}

/// A transaction on its way.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    pub(crate) transaction: Transaction,
    /// The claims that it means to take over or give up, by their revisions.
    pub(crate) means: Vec<(Key, i64)>,
    /// A revision older than the first sending; none before that.
    pub(crate) before: Option<i64>,
    pub(crate) place: Place,
    /// The node's life in which it was worked out.
    pub(crate) life: (NodeName, String),
    /// An answer was lost already.
    pub(crate) lost: bool,
    /// The revisions at which it happened.
    pub(crate) happened: Vec<i64>,
    /// It was judged to have happened, with no answer that says so.
    pub(crate) found_out: bool,
}

/// Where a transaction is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// Worked out, to be sent; or to be sent again.
    Here,
    /// Sent.
    Out,
    /// Carried out or refused; the answer is on its way.
    Back(Result<Answer, NoSuchLease>),
    /// What became of it is known as well as it can be.
    Known(Outcome),
}

/// What the store's client makes of a transaction.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// An answer.
    Committed(Committed),
    /// Answers were lost, and what is there does not decide it.
    Unknown,
    /// It was not carried out, for another reason than its guards.
    Failed,
}

impl Flight {
    pub(crate) fn new(transaction: Transaction, means: Vec<(Key, i64)>, life: (NodeName, String)) -> Self {
        Self {
            life,
            transaction,
            means,
            before: None,
            place: Place::Here,
            lost: false,
            happened: Vec::new(),
            found_out: false,
        }
    }
}

/// A call of the API.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Unlike that of any other call.
    pub(crate) number: usize,
    pub(crate) ask: Ask,
    pub(crate) stage: Stage,
    /// The node's life in which it was begun.
    pub(crate) life: String,
    /// What it keeps in view.
    pub(crate) pins: Vec<NetworkName>,
    /// How often another writer was faster.
    pub(crate) lost: u32,
    /// The lease of a reservation.
    pub(crate) lease: Option<i64>,
    /// What the caller is told of was found out, not answered.
    pub(crate) found_out: bool,
    /// The revision at which the life of a node that is removed has ended.
    pub(crate) ended: Option<i64>,
}

/// Where a call is.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// Asked.
    Start,
    /// Waits until all is in view, then works out a transaction.
    Looking,
    /// The transaction is on its way.
    Flying(Flight),
    /// It is not known whether it happened: the records are asked.
    Asking(Flight),
    /// Removes a node: looks what is left of it.
    Removing,
    /// The endpoint is off the host; waits for its record to go. With the life that is meant, and
    /// the store's revision when that was asked.
    Leaving(EndpointRef, i64, i64),
}

/// What a caller is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// It happened.
    Done,
    /// It did not.
    Not,
    /// It may have happened.
    Unknown,
    /// It is being done: the record goes later.
    Pending,
    /// There was nothing to do.
    Nothing,
}
