//! Returns free memory to the system. A crate of its own, because it calls a C function: the other
//! crates of this workspace contain no `unsafe`.

/// Returns free memory of glibc's allocator to the system; does nothing with other allocators.
/// Takes a few milliseconds, during part of which allocations of other threads may wait.
/// <https://man7.org/linux/man-pages/man3/malloc_trim.3.html>
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
