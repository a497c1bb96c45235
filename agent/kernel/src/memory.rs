//! Memory that this process has freed, given back to the kernel. Knows nothing of what it was used for.

/// From this size on a block is the kernel's own, and goes back to it when it is freed; and so much of what is freed at the end
/// of an arena is kept.
#[cfg(target_env = "gnu")]
const KEPT: nix::libc::c_int = 256 << 10;

/// Has the allocator keep little of what is freed. To be called before there are threads.
///
/// By itself glibc raises both limits with the largest block that was ever freed, up to 64 MB, and [`give_back`] leaves alone what
/// is at an arena's end: an agent that has taken in a large network kept twenty megabytes of nothing.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for limit in [nix::libc::M_MMAP_THRESHOLD, nix::libc::M_TRIM_THRESHOLD] {
        #[expect(unsafe_code, reason = "no crate has a safe call for it")]
        // SAFETY: it takes two numbers and sets a number; no other thread allocates yet. What it refuses stays as it was.
        let _ = unsafe { nix::libc::mallopt(limit, KEPT) };
    }
}

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
