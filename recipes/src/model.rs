//! `[model]`: which weights, and where and in what precision they compute.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantization::Quantization;

/// The model to start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// A folder in Hugging Face layout (relative to the recipe file), or a hub id such as "Qwen/Qwen2-1.5B".
    pub path: String,
    /// What the frozen weights compute in. "auto": f32 on a CPU; on a GPU as they are stored.
    pub dtype: Dtype,
    /// Where the run computes: "auto", "cpu", "cuda", "cuda:N" for the GPU with index N; "tch", "tch:cuda" and "tch:cuda:N"
    /// through LibTorch.
    pub device: Device,
    /// Where the weights come from.
    pub init: Init,
    /// Frozen weights in fewer bits. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Quantization")]
    pub quantization: Option<Quantization>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            path: String::new(),
            dtype: Dtype::Auto,
            device: Device::Auto,
            init: Init::Weights,
            quantization: None,
        }
    }
}

/// A number format for weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// As the weights are stored, where the device can compute in it.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16: 8 bits of exponent, 7 of mantissa.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// Where the weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// The folder's weights.
    Weights,
    /// Random weights: the folder needs only `config.json` and the tokenizer.
    Random,
}

/// Where a run computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The best device there is.
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU: the one with this index, or the one that belongs to the process.
    Cuda(Option<usize>),
    /// The processor, through LibTorch.
    Tch,
    /// An NVIDIA GPU through LibTorch, by index as above.
    TchCuda(Option<usize>),
}

/// What a device may be, for messages.
const DEVICES: &str =
    "\"auto\", \"cpu\", \"cuda\", \"tch\", \"tch:cuda\", or \"cuda:N\" or \"tch:cuda:N\" with a GPU's index";

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(None) => formatter.write_str("cuda"),
            Self::Cuda(Some(index)) => write!(formatter, "cuda:{index}"),
            Self::Tch => formatter.write_str("tch"),
            Self::TchCuda(None) => formatter.write_str("tch:cuda"),
            Self::TchCuda(Some(index)) => write!(formatter, "tch:cuda:{index}"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let index = |prefix: &str| text.strip_prefix(prefix).and_then(|index| index.parse().ok());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            "tch" => Ok(Self::Tch),
            "tch:cuda" => Ok(Self::TchCuda(None)),
            _ => index("cuda:")
                .map(|index| Self::Cuda(Some(index)))
                .or_else(|| index("tch:cuda:").map(|index| Self::TchCuda(Some(index))))
                .ok_or_else(|| format!("{text:?} is no device. Use {DEVICES}.")),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl JsonSchema for Device {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Device".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^(auto|cpu|tch|(tch:)?cuda(:[0-9]{1,4})?)$",
            "examples": ["auto", "cpu", "cuda", "cuda:1", "tch", "tch:cuda"],
            "x-expected": DEVICES
        })
    }
}
