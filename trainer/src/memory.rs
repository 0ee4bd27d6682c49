//! How much memory a run takes, and what happens when there is none left. On a CPU: what this process has allocated,
//! memory-mapped files apart, counted by its allocator, which can be given a cap. On a GPU: the device's pool.

mod exhausted;
mod host;

pub use host::{HostBytes, host_bytes, second_level_cache};

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use burn::tensor::Device;

static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static BUDGET: AtomicUsize = AtomicUsize::new(usize::MAX);
/// The most that a device's pool has been seen to hold.
static POOL_PEAK: AtomicU64 = AtomicU64::new(0);
/// The part of the work that is being done, for messages; a text without an end of life.
static WORK: AtomicPtr<std::ffi::c_char> = AtomicPtr::new(c"starting".as_ptr().cast_mut());

/// The system's allocator, counting, with a cap where [`set_budget`] sets one. A binary makes it its `#[global_allocator]`.
///
/// An allocation that fails or passes the cap ends the process with exit code 1 and a message that says what was being done, how
/// much was asked for, held and allowed. It cannot unwind from here; what is on disk stays as it is, and checkpoints are
/// complete or not there at all.
pub struct CountingAllocator;

fn grow(bytes: usize) {
    let now = CURRENT.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
    if now > BUDGET.load(Ordering::Relaxed) {
        exhausted::end(bytes, now - bytes, BUDGET.load(Ordering::Relaxed), working_on_now());
    }
}

/// Ends the process when an allocation of `bytes`, already counted, has failed.
fn check(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() {
        let held = CURRENT.load(Ordering::Relaxed).saturating_sub(bytes);
        exhausted::end(bytes, held, usize::MAX, working_on_now());
    }
    pointer
}

// SAFETY: every call goes to the system's allocator unchanged; the counters do not touch the memory, and what ends the process
// allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's guarantees are the system allocator's.
        check(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        check(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CURRENT.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        // SAFETY: as above.
        let moved = check(unsafe { System.realloc(pointer, layout, size) }, size);
        CURRENT.fetch_sub(layout.size(), Ordering::Relaxed);
        moved
    }
}

/// Bytes allocated at most at one time since the start, or since [`forget_peak`]; 0 when the binary does not count.
pub fn peak_bytes() -> u64 {
    PEAK.load(Ordering::Relaxed) as u64
}

/// From here on [`peak_bytes`] is of what is allocated now and later: what was only there to look at something does not count.
pub fn forget_peak() {
    PEAK.store(CURRENT.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// Bytes that are allocated now; 0 when the binary does not count.
pub fn current_bytes() -> u64 {
    CURRENT.load(Ordering::Relaxed) as u64
}

/// Peak memory of a run on a device, in bytes: on a CPU [`peak_bytes`]; on a GPU the most that its pool has reserved whenever
/// this was called, which is the peak itself as long as the pool gives nothing back.
pub fn peak_bytes_on(device: &Device) -> u64 {
    let pool = crate::device::pool_bytes(device);
    pool.map_or_else(peak_bytes, |held| {
        POOL_PEAK.fetch_max(held, Ordering::Relaxed).max(held)
    })
}

/// Caps what this process may allocate, memory-mapped files and the libraries' own memory apart. Above the cap the process ends;
/// see [`CountingAllocator`]. Without effect when the binary does not count.
pub fn set_budget(bytes: u64) {
    BUDGET.store(usize::try_from(bytes).unwrap_or(usize::MAX), Ordering::Relaxed);
}

/// Says which part of the work is being done from here on, for the message when memory runs out: a phrase that goes on from
/// "while working on".
pub fn working_on(part: &'static CStr) {
    WORK.store(part.as_ptr().cast_mut(), Ordering::Relaxed);
}

/// What [`working_on`] said last.
pub fn working_on_now() -> &'static CStr {
    // SAFETY: only texts without an end of life are stored, and nothing writes to them.
    unsafe { CStr::from_ptr(WORK.load(Ordering::Relaxed)) }
}

/// The message for a panic that means that a device had no memory left; none for other panics. CubeCL and LibTorch have no other
/// way to say so.
pub fn out_of_memory_message(panic: &str) -> Option<String> {
    const SIGNS: [&str; 5] = [
        "out of device memory",
        "out-of-memory error",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUDA out of memory",
        "can't allocate memory",
    ];
    let lower = panic.to_lowercase();
    SIGNS.iter().any(|sign| lower.contains(&sign.to_lowercase())).then(|| {
        // A backtrace follows after a break, or after several spaces where breaks were taken out.
        let what = panic
            .split('\n')
            .next()
            .and_then(|line| line.split("  ").next())
            .unwrap_or_default();
        format!(
            "The device is out of memory while working on {}: {what}. {}",
            working_on_now().to_string_lossy(),
            exhausted::ADVICE
        )
    })
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
    use super::*;

    #[test]
    fn panics_about_memory_are_told_from_others() {
        let cubecl = "Failed to read a tensor: out of device memory allocating 1048576 bytes\n   0: backtrace";
        for panic in [cubecl.to_owned(), cubecl.replace('\n', " ")] {
            let message = out_of_memory_message(&panic).unwrap();
            assert!(message.contains("allocating 1048576 bytes. "), "{message}");
            assert!(
                message.contains("interlingua plan") && !message.contains("backtrace"),
                "{message}"
            );
        }
        assert!(out_of_memory_message("CUDA out of memory. Tried to allocate 2.00 GiB").is_some());
        assert!(out_of_memory_message("index out of bounds: the len is 3").is_none());
    }
}
