//! CubeCL's settings, made here instead of in a `cubecl.toml`.

use std::path::PathBuf;
use std::sync::OnceLock;

use cubecl::config::cache::CacheConfig;
use cubecl::config::streaming::StreamPolicy;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use interlingua_data::cache;

use super::gpu::Gpu;
use super::host_name;
use super::mounts::is_shared;

/// What is known about the compiled kernels of the GPU that this process uses.
#[derive(Clone, Debug)]
pub(super) struct Kernels {
    /// The folder that keeps them, and what tuning found.
    pub(super) folder: PathBuf,
    /// Whether none of this GPU were there when the process began.
    pub(super) new: bool,
}

static KERNELS: OnceLock<Kernels> = OnceLock::new();

/// Tells CubeCL, before its first use, where to keep compiled kernels and what tuning found, and to put all work on one stream
/// whatever thread it comes from: threads with streams of their own would have memory pools of their own, and wait for each other.
/// Everything else is as `cubecl.toml` and CubeCL's environment variables say.
pub(super) fn set_up(gpu: &Gpu) -> &'static Kernels {
    KERNELS.get_or_init(|| {
        let folder = folder();
        let (major, minor) = gpu.capability;
        let name = format!("{}-{major}.{minor}", gpu.name).replace(' ', "-");
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = true;
        config.streaming.policy = StreamPolicy::Single;
        config.environment.name.clone_from(&name);
        config.environment.path = CacheConfig::Directory(folder.clone());
        if !CubeClRuntimeConfig::try_set(config) {
            tracing::warn!("CubeCL was set up before the device was chosen: compiled kernels are kept where it keeps them by default");
        }
        // CubeCL makes its file when the first kernel is compiled.
        let new = !cubecl::environment::path().exists();
        Kernels { folder, new }
    })
}

/// Where compiled kernels are kept. CubeCL's file of them is made for several processes of one host, which lock each other out in memory
/// that they share; hosts that share a folder each get one of their own.
fn folder() -> PathBuf {
    let folder = cache::default_folder().join("kernels");
    if !is_shared(&folder) {
        return folder;
    }
    folder.join(host_name())
}

/// The kernels of the GPU that this process uses; none before it uses one.
pub(super) fn kernels() -> Option<&'static Kernels> {
    KERNELS.get()
}
