//! NVIDIA GPUs as their driver describes them, and what speaks against computing on one.

use std::fmt;

/// A version of CUDA as the driver counts it: 12.8 is 12080.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion(pub i32);

impl fmt::Display for CudaVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// N of `cuda:N`.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability, as in 9.0.
    pub capability: (u32, u32),
    /// All its memory, in bytes.
    pub memory: u64,
}

impl Gpu {
    /// Whether it computes in bfloat16: from compute capability 8.0 (Ampere) on (NVIDIA, CUDA C++ Programming Guide,
    /// "Compute Capabilities").
    pub fn has_bf16(&self) -> bool {
        self.capability.0 >= 8
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(formatter, "{} (compute capability {major}.{minor})", self.name)
    }
}

/// A driver that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The newest CUDA that it runs.
    pub version: CudaVersion,
    /// The GPUs that this process may use, by index.
    pub gpus: Vec<Gpu>,
}

/// Why there is no driver to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoDriver {
    /// Its library is not installed.
    Missing,
    /// Its library is there and refuses to start, for this reason.
    Refuses(String),
}

impl fmt::Display for NoDriver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => formatter.write_str(
                "there is no NVIDIA driver: libcuda.so was not found; install the driver of your distribution, or make it visible \
                 in the container (`--gpus all`)",
            ),
            Self::Refuses(reason) => write!(
                formatter,
                "the NVIDIA driver does not start: {reason}; `nvidia-smi` says more, and after an update of the driver the machine \
                 has to be started again"
            ),
        }
    }
}

/// The GPU with this index.
///
/// # Errors
/// What is in the way, as a part of a sentence: no driver, one that is older than `needed`, no such GPU.
pub fn choose(driver: &Result<Driver, NoDriver>, index: usize, needed: Option<CudaVersion>) -> Result<&Gpu, String> {
    let driver = driver.as_ref().map_err(ToString::to_string)?;
    if driver.gpus.is_empty() {
        return Err(
            "the NVIDIA driver finds no GPU; `nvidia-smi` lists those of the machine, and CUDA_VISIBLE_DEVICES hides some of them"
                .to_owned(),
        );
    }
    if let Some(needed) = needed.filter(|needed| driver.version < *needed) {
        return Err(format!(
            "the NVIDIA driver runs CUDA {} at most, and this binary needs {needed}; update the driver",
            driver.version
        ));
    }
    driver.gpus.iter().find(|gpu| gpu.index == index).ok_or_else(|| {
        let known = driver.gpus.iter().map(|gpu| format!("{} ({})", gpu.index, gpu.name));
        format!(
            "there is no GPU with the index {index}; there are {}",
            known.collect::<Vec<_>>().join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(version: i32, gpus: usize) -> Result<Driver, NoDriver> {
        let gpu = |index| Gpu {
            index,
            name: format!("Card {index}"),
            capability: (7, 5),
            memory: 16 << 30,
        };
        Ok(Driver {
            version: CudaVersion(version),
            gpus: (0..gpus).map(gpu).collect(),
        })
    }

    #[test]
    fn a_gpu_that_is_there_is_taken() {
        let driver = driver(13010, 2);
        assert_eq!(choose(&driver, 1, Some(CudaVersion(12080))).unwrap().index, 1);
        assert_eq!(choose(&driver, 0, None).unwrap().index, 0);
    }

    #[test]
    fn what_is_in_the_way_is_said() {
        let needed = Some(CudaVersion(12080));
        let reason = |driver, index| choose(&driver, index, needed).unwrap_err();
        assert!(reason(Err(NoDriver::Missing), 0).contains("libcuda.so was not found"));
        let refused = NoDriver::Refuses("system has unsupported display driver".into());
        assert!(reason(Err(refused), 0).contains("does not start: system has unsupported"));
        assert!(reason(driver(13000, 0), 0).contains("CUDA_VISIBLE_DEVICES"));
        let old = reason(driver(12040, 1), 0);
        assert!(old.contains("CUDA 12.4 at most") && old.contains("needs 12.8"), "{old}");
        let wrong = reason(driver(12080, 2), 5);
        assert!(
            wrong.contains("index 5") && wrong.contains("0 (Card 0), 1 (Card 1)"),
            "{wrong}"
        );
    }

    #[test]
    fn bf16_comes_with_ampere() {
        let gpu = |capability| Gpu {
            index: 0,
            name: String::new(),
            capability,
            memory: 0,
        };
        assert!(!gpu((7, 5)).has_bf16());
        assert!(gpu((8, 0)).has_bf16() && gpu((12, 0)).has_bf16());
    }
}
