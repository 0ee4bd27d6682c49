//! Adapters on linear layers. Adding one is adding a file here and a variant to [`Adapter`].

pub mod attach;
pub mod dora;
pub mod lora;

use dora::Dora;
use lora::Lora;

use crate::parameters::ParameterId;

/// The adapter of one linear layer.
#[derive(Clone, Debug)]
pub enum Adapter {
    /// A low-rank addition.
    Lora(Lora),
    /// A low-rank addition with a magnitude per output.
    Dora(Dora),
}

impl Adapter {
    /// The parameters it reads.
    pub fn parameters(&self) -> Vec<ParameterId> {
        match self {
            Self::Lora(lora) => vec![lora.a, lora.b],
            Self::Dora(dora) => vec![dora.lora.a, dora.lora.b, dora.magnitude],
        }
    }

    /// The low-rank part.
    pub fn lora(&self) -> &Lora {
        match self {
            Self::Lora(lora) => lora,
            Self::Dora(dora) => &dora.lora,
        }
    }
}
