//! How much memory a run takes: on a CPU, what this process has allocated, memory-mapped files apart.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting. A binary makes it its `#[global_allocator]`.
pub struct CountingAllocator;

fn grow(bytes: usize) {
    let now = CURRENT.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged; the counters do not touch the memory.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's guarantees are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CURRENT.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        CURRENT.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Bytes allocated at most at one time since the start; 0 when the binary does not count.
pub fn peak_bytes() -> u64 {
    PEAK.load(Ordering::Relaxed) as u64
}

/// Bytes allocated now; 0 when the binary does not count.
pub fn current_bytes() -> u64 {
    CURRENT.load(Ordering::Relaxed) as u64
}

/// The host's memory in bytes.
#[derive(Clone, Copy, Debug)]
pub struct HostBytes {
    /// All there is, or what the control group allows.
    pub total: u64,
    /// What a new program can have.
    pub available: u64,
}

/// The host's memory: the system's, or the control group's where that allows less. None where the system does not say.
pub fn host_bytes() -> Option<HostBytes> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let system = HostBytes {
        total: meminfo(&text, "MemTotal:")?,
        available: meminfo(&text, "MemAvailable:")?,
    };
    let read = |name: &str| {
        std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let Some(limit) = read("memory.max").filter(|limit| *limit < system.total) else {
        return Some(system);
    };
    let free = limit.saturating_sub(read("memory.current").unwrap_or(0));
    Some(HostBytes {
        total: limit,
        available: system.available.min(free),
    })
}

/// One line of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Makes the C library keep large freed blocks for the next allocation of their size instead of returning them to the
/// kernel: a training step allocates the same tensors again and again, and fresh pages cost more than the arithmetic on
/// them. Call it once, before anything large is allocated. Without effect where the C library is not glibc.
pub fn keep_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` only sets parameters of the allocator; both are documented ones.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}

#[cfg(test)]
mod tests {
    use super::meminfo;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24589388 kB\nMemAvailable:   20000 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(20_480_000));
        assert_eq!(meminfo(text, "SwapTotal:"), None);
    }
}
