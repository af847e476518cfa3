//! Gives free memory back to the system. A crate of its own, because the call is a C function:
//! nothing else here is `unsafe`.

/// Gives back what glibc's allocator holds free; elsewhere does nothing. Takes a few milliseconds,
/// and allocations of other threads may wait for a part of that.
/// <https://man7.org/linux/man-pages/man3/malloc_trim.3.html>
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
