//! The one thread that reads and writes the kernel. Work is handed to it in order and answered through a
//! future; it is never shared with the runtime's pool, because it may enter other namespaces.

use std::{sync::mpsc, thread};

use tokio::sync::oneshot;
use weft_kernel::Kernel;

type Job = Box<dyn FnOnce(&mut Kernel) + Send>;

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
    pub(crate) fn start(mut kernel: Kernel) -> std::io::Result<Self> {
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
        job: impl FnOnce(&mut Kernel) -> T + Send + 'static,
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
