//! Facts about the machine, read from the system without a library of any device.

use std::path::{Path, PathBuf};

/// The processor's name.
pub(crate) fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        line.strip_prefix("model name")?
            .split_once(':')
            .map(|(_, name)| name.trim())
    });
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

/// How many threads run at the same time.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The vector instructions that the matrix multiplications can use.
#[cfg(target_arch = "x86_64")]
pub(crate) fn simd_features() -> Vec<&'static str> {
    [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ]
    .into_iter()
    .filter_map(|(name, there)| there.then_some(name))
    .collect()
}

/// The vector instructions that the matrix multiplications can use.
#[cfg(target_arch = "aarch64")]
pub(crate) fn simd_features() -> Vec<&'static str> {
    vec!["neon"]
}

/// The vector instructions that the matrix multiplications can use.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn simd_features() -> Vec<&'static str> {
    Vec::new()
}

/// Where the dynamic linker would find a library, as far as that can be told without loading it.
pub(crate) fn shared_library(name: &str) -> Option<PathBuf> {
    let listed = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/lib/wsl/lib",
        "/usr/local/nvidia/lib64",
        "/usr/local/cuda/compat",
        "/run/opengl-driver/lib",
    ];
    std::env::split_paths(&listed)
        .chain(usual.into_iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
}

/// The version of the loaded NVIDIA kernel driver.
pub(crate) fn nvidia_driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let looks_like_one = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.split_whitespace().find(looks_like_one).map(str::to_owned)
}

/// The folder itself, or the first folder above it that exists.
fn existing(folder: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(folder).ok()?;
    absolute.ancestors().find(|path| path.exists()).map(Path::to_owned)
}

/// Free space in bytes where the folder is or would be.
pub(crate) fn free_space(folder: &Path) -> Option<u64> {
    let statistics = rustix::fs::statvfs(&existing(folder)?).ok()?;
    Some(statistics.f_bavail.saturating_mul(statistics.f_frsize))
}

/// Whether files can be made in the folder, or the folder where it would be.
pub(crate) fn is_writable(folder: &Path) -> bool {
    existing(folder).is_some_and(|folder| tempfile::tempfile_in(folder).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_does_not_exist_yet_is_judged_by_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        assert!(is_writable(&deep));
        assert!(free_space(&deep).is_some());
        assert!(!deep.exists());
    }
}
