//! `[distributed]`: how the processes of one run share the work.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How several processes share a run. Read only where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Distributed {
    /// What every process holds of the model and the optimizer.
    pub strategy: Strategy,
    /// What carries numbers from process to process. "auto": NCCL between NVIDIA GPUs, MPI between CPUs.
    pub backend: CollectiveBackend,
}

impl Default for Distributed {
    fn default() -> Self {
        Self {
            strategy: Strategy::Ddp,
            backend: CollectiveBackend::Auto,
        }
    }
}

/// What every process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Everything; gradients are added up once a step.
    Ddp,
    /// Everything but the optimizer's moments, of which each process has its part.
    Zero1,
    /// A part of everything: moments, gradients and the weights of blocks, which come together block by block.
    Zero3,
}

impl Strategy {
    /// The name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddp => "ddp",
            Self::Zero1 => "zero1",
            Self::Zero3 => "zero3",
        }
    }
}

/// What carries numbers from process to process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CollectiveBackend {
    /// As the device asks for.
    Auto,
    /// NVIDIA's library, between GPUs.
    Nccl,
    /// MPI, between CPUs.
    Mpi,
}
