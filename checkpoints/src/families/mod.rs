//! The decoder families: one file each, and the table that finds one by its name in `config.json`.
//!
//! A family reads its configuration into a [`ModelConfig`], with the defaults of its configuration class in Transformers where a key
//! is absent. docs/adding-a-model.md shows how to add one.

mod apertus;
mod bloom;
mod cohere;
mod cohere2;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt_bigcode;
mod gpt_neox;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
pub mod options;
mod parts;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;
mod xglm;

use serde_json::Value;

use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;
use options::OptionName;

/// A family of models.
pub struct Family {
    /// The name in `architectures` of a `config.json`.
    pub architecture: &'static str,
    /// The name in `model_type`.
    pub model_type: &'static str,
    /// Models that belong to it.
    pub models: &'static str,
    /// The path that a file's tensor names may lack, or have where Transformers has none: that of the part without the head.
    pub prefix: &'static str,
    /// Parts of tensor names that the files spell otherwise: here and there.
    pub renamed: &'static [(&'static str, &'static str)],
    /// What its models have, and where that is read from.
    pub options: &'static [(OptionName, &'static str)],
    /// Reads a configuration.
    pub(crate) read: fn(&'static Family, &Reader) -> Result<ModelConfig, CheckpointError>,
}

impl std::fmt::Debug for Family {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.architecture)
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.architecture == other.architecture
    }
}

/// All families, in the order of the support matrix.
pub static FAMILIES: [&Family; 19] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &smollm3::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &olmo2::FAMILY,
    &cohere::FAMILY,
    &cohere2::FAMILY,
    &apertus::FAMILY,
    &bloom::FAMILY,
    &gpt_neox::FAMILY,
    &gpt_bigcode::FAMILY,
    &xglm::FAMILY,
    &mixtral::FAMILY,
    &qwen3_moe::FAMILY,
];

impl Family {
    /// The name of a tensor as the family's files have it.
    pub fn name_in_files(&self, name: &str) -> String {
        match self.renamed.iter().find(|(here, _)| name.starts_with(here)) {
            Some((here, there)) => format!("{there}{}", &name[here.len()..]),
            None => name.to_owned(),
        }
    }
}

/// The family that a configuration names.
pub(crate) fn find(reader: &Reader) -> Result<&'static Family, CheckpointError> {
    let named = reader
        .json
        .get("architectures")
        .and_then(|list| list.get(0))
        .and_then(Value::as_str);
    let model_type = reader.json.get("model_type").and_then(Value::as_str);
    let known = FAMILIES.iter().find(|family| match named {
        // A config without `architectures` is still told apart by its `model_type`.
        None => model_type == Some(family.model_type),
        // Files of the part without a head name its class, and are read with a tied head.
        Some(named) => named == family.architecture || named == family.architecture.replace("ForCausalLM", "Model"),
    });
    known.copied().ok_or_else(|| {
        let found = named.or(model_type).unwrap_or("none");
        let likeness = |family: &&&Family| {
            let by_type = model_type.map_or(0.0, |kind| strsim::jaro_winkler(kind, family.model_type));
            let by_name = named.map_or(0.0, |name| strsim::jaro_winkler(name, family.architecture));
            by_type + by_name
        };
        let nearest = FAMILIES.iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
        let nearest = nearest.map(|family| format!(" ({}: {})", family.architecture, family.models));
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.architecture).collect();
        CheckpointError::config(
            reader.path,
            format!(
                "the architecture {found} is not supported. The nearest by name that is{}, but its weights are read only if the \
                 model has that architecture. All that are supported: {}. docs/support-matrix.md says what each of them covers",
                nearest.unwrap_or_default(),
                names.join(", ")
            ),
        )
    })
}
