//! Memory that this process has freed, given back to the kernel. Knows nothing of what it was used for.

/// Gives back what the allocator keeps of freed memory. Takes some milliseconds where there is much of it.
///
/// A listing of many records, and the plan made from it, are taken apart on several threads, each with an arena of its own;
/// glibc returns only what lies at an arena's end, so without this an agent keeps several times what it needs for good.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "no crate has a safe call for it")]
        // SAFETY: it takes a number, locks what it works on, and touches memory that is free only.
        let _ = unsafe { nix::libc::malloc_trim(0) };
    }
}
