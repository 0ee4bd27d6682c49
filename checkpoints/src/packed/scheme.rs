//! How the weights of a model are quantised.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What of a model is quantised, and how: the linear layers of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantization {
    /// How.
    #[serde(flatten)]
    pub scheme: Scheme,
    /// Whether a head of its own is quantised too.
    #[serde(default)]
    pub head: bool,
}

/// A number format of quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "scheme", rename_all = "lowercase")]
pub enum Scheme {
    /// NF4.
    Nf4 {
        /// Numbers in a block.
        block: usize,
        /// The blocks' magnitudes in 8 bits.
        double: bool,
    },
    /// int8 by rows.
    Int8,
}

impl fmt::Display for Scheme {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nf4 { block, double } => {
                let double = if *double { " and double quantisation" } else { "" };
                write!(formatter, "NF4 with blocks of {block}{double}")
            }
            Self::Int8 => formatter.write_str("int8"),
        }
    }
}
