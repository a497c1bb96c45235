//! What is logged in a test's thread.

use std::{cell::RefCell, io, sync::Once};

thread_local! {
    static KEPT: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Keeps what this thread logs while it lives.
pub(super) struct Log(());

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        KEPT.with_borrow_mut(|kept| {
            if let Some(kept) = kept {
                kept.extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(super) fn begin() -> Self {
        // One for all threads: with one for each, a place that logs first in a thread without any is taken for one that
        // nobody listens to.
        static LISTENING: Once = Once::new();
        LISTENING.call_once(|| {
            tracing_subscriber::fmt()
                .with_writer(|| Writer)
                .with_ansi(false)
                .init();
        });
        KEPT.set(Some(Vec::new()));
        Self(())
    }

    /// The lines that hold this text.
    pub(super) fn lines(&self, text: &str) -> Vec<String> {
        let log = KEPT
            .with_borrow(|kept| String::from_utf8_lossy(kept.as_deref().unwrap_or_default()).into_owned());
        log.lines()
            .filter(|line| line.contains(text))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        KEPT.set(None);
    }
}
