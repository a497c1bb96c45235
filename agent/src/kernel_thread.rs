//! The one thread that reads and writes the kernel. Work is handed to it in order and answered through a
//! future; it is never shared with the runtime's pool, because it may enter other namespaces.

use std::{net::IpAddr, sync::mpsc, thread};

use tokio::sync::oneshot;
use weft_core::{
    announce::Announcements,
    dataplane::{ForwardRow, LookInto, Observed, ObservedNetwork},
    plan::{Outcome, Plan},
};
use weft_kernel::{Kernel, KernelError, Underlay, UnderlaySelection};
use weft_store_schema::{Attachment, Mac, NetworkName};

/// What the loop asks of a kernel. There is one but the real one: [`crate::simulated`].
pub(crate) trait HostKernel: Send {
    /// See [`Kernel::underlay`].
    fn underlay(&mut self, selection: &UnderlaySelection) -> Result<Underlay, KernelError>;
    /// See [`Kernel::check_attachment`].
    fn check_attachment(&mut self, attachment: &Attachment) -> Result<(), KernelError>;
    /// See [`Kernel::observe`].
    fn observe(&mut self, places: &[LookInto]) -> (Observed, Vec<(String, KernelError)>);
    /// See [`Kernel::observe_network`].
    fn observe_network(
        &mut self,
        network: &NetworkName,
        places: &[LookInto],
    ) -> Result<Option<ObservedNetwork>, KernelError>;
    /// See [`Kernel::observe_links`].
    fn observe_links(
        &mut self,
        network: &NetworkName,
        places: &[LookInto],
    ) -> Result<Option<ObservedNetwork>, KernelError>;
    /// See [`Kernel::observe_forward`].
    fn observe_forward(
        &mut self,
        network: &NetworkName,
        macs: &[Mac],
    ) -> Result<Vec<(Mac, Option<ForwardRow>)>, KernelError>;
    /// See [`Kernel::observe_neighbours`].
    fn observe_neighbours(
        &mut self,
        network: &NetworkName,
        addresses: &[IpAddr],
    ) -> Result<Vec<(IpAddr, Option<Mac>)>, KernelError>;
    /// See [`Kernel::apply`].
    fn apply(&mut self, plan: &Plan) -> Outcome<KernelError>;
    /// See [`Kernel::announce`].
    fn announce(&mut self, announcements: &Announcements);
}

impl HostKernel for Kernel {
    fn underlay(&mut self, selection: &UnderlaySelection) -> Result<Underlay, KernelError> {
        Self::underlay(self, selection)
    }

    fn check_attachment(&mut self, attachment: &Attachment) -> Result<(), KernelError> {
        Self::check_attachment(self, attachment)
    }

    fn observe(&mut self, places: &[LookInto]) -> (Observed, Vec<(String, KernelError)>) {
        Self::observe(self, places)
    }

    fn observe_network(
        &mut self,
        network: &NetworkName,
        places: &[LookInto],
    ) -> Result<Option<ObservedNetwork>, KernelError> {
        Self::observe_network(self, network, places)
    }

    fn observe_links(
        &mut self,
        network: &NetworkName,
        places: &[LookInto],
    ) -> Result<Option<ObservedNetwork>, KernelError> {
        Self::observe_links(self, network, places)
    }

    fn observe_forward(
        &mut self,
        network: &NetworkName,
        macs: &[Mac],
    ) -> Result<Vec<(Mac, Option<ForwardRow>)>, KernelError> {
        Self::observe_forward(self, network, macs)
    }

    fn observe_neighbours(
        &mut self,
        network: &NetworkName,
        addresses: &[IpAddr],
    ) -> Result<Vec<(IpAddr, Option<Mac>)>, KernelError> {
        Self::observe_neighbours(self, network, addresses)
    }

    fn apply(&mut self, plan: &Plan) -> Outcome<KernelError> {
        Self::apply(self, plan)
    }

    fn announce(&mut self, announcements: &Announcements) {
        Self::announce(self, announcements);
    }
}

type Job = Box<dyn FnOnce(&mut dyn HostKernel) + Send>;

/// Hands work to the thread. It ends when all handles are gone.
#[derive(Debug, Clone)]
pub(crate) struct KernelThread {
    jobs: mpsc::Sender<Job>,
}

impl KernelThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(mut kernel: impl HostKernel + 'static) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new().name("kernel".to_owned()).spawn(move || {
            for job in queue {
                job(&mut kernel);
            }
        })?;
        Ok(Self { jobs })
    }

    /// A thread that never does anything: tests answer in its place.
    #[cfg(test)]
    pub(crate) fn idle() -> Self {
        let (jobs, _) = mpsc::channel();
        Self { jobs }
    }

    /// Has something done there; the answer comes when all that was handed over before is done too.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn HostKernel) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (answer, receiver) = oneshot::channel();
        let job: Job = Box::new(move |kernel| {
            // Whoever asked may have gone; the work is done all the same.
            let _ = answer.send(job(kernel));
        });
        // The thread ends only when every sender is gone, so this reaches it; if it panicked, the receiver
        // sees that its answer will never come.
        let _ = self.jobs.send(job);
        receiver
    }
}
