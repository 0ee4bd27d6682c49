//! Adapters: on linear layers ([`Adapter`]), after blocks ([`bottleneck`]) and between them ([`steering`]). Adding one is adding
//! a file here, and what puts it on a model in [`fresh`] and [`attach`].

pub mod attach;
pub mod bottleneck;
pub mod dora;
pub mod fresh;
pub mod lora;
pub mod steering;
pub mod write;

use dora::Dora;
use lora::Lora;

use crate::engine::languages::{LanguageRows, Rows};
use crate::parameters::ParameterId;

/// An adapter with the rows that it is for.
#[derive(Clone, Debug)]
pub struct ForRows<T> {
    /// The adapter.
    pub adapter: T,
    /// The language of its rows, a tag in canonical case; absent: all rows.
    pub language: Option<String>,
}

impl<T> ForRows<T> {
    /// Its rows; `None` when there are none.
    pub fn rows<'a>(&self, languages: Option<&'a LanguageRows>) -> Option<Rows<'a>> {
        LanguageRows::of(languages, self.language.as_deref())
    }
}

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
