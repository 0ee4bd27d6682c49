//! The memory of the host: what there is, and what is free.

use std::path::Path;

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

/// Bytes of the second-level cache for each thread that shares it, as the system describes it; none where it does not.
pub fn second_level_cache() -> Option<u64> {
    let read = |name: &str| {
        let folder = Path::new("/sys/devices/system/cpu/cpu0/cache/index2");
        std::fs::read_to_string(folder.join(name)).ok()
    };
    let kibibytes: u64 = read("size")?.trim().strip_suffix('K')?.parse().ok()?;
    Some(kibibytes * 1024 / threads(read("shared_cpu_list")?.trim())?.max(1))
}

/// How many threads a list such as `0-3,8` names.
fn threads(list: &str) -> Option<u64> {
    let ranges = list.split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    });
    ranges.sum()
}

#[cfg(test)]
mod tests {
    use super::{meminfo, threads};

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24589388 kB\nMemAvailable:   20000 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(20_480_000));
        assert_eq!(meminfo(text, "SwapTotal:"), None);
    }

    #[test]
    fn threads_that_share_a_cache_are_counted() {
        assert_eq!(threads("0"), Some(1));
        assert_eq!(threads("0-1,4"), Some(3));
        assert_eq!(threads("none"), None);
    }
}
