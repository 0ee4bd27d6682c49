//! `quantization_config` of a `config.json`: how Transformers saved quantised weights.

use serde_json::Value;

use crate::config_reader::Reader;
use crate::error::CheckpointError;

/// How the weights of linear layers are quantised in a model's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredQuantization {
    /// bitsandbytes' NF4.
    Nf4 {
        /// Whether the magnitudes of blocks are quantised too.
        double: bool,
    },
    /// bitsandbytes' int8.
    Int8,
}

impl StoredQuantization {
    pub(crate) fn read(reader: &Reader) -> Result<Option<Self>, CheckpointError> {
        let Some(json) = reader.present("quantization_config") else {
            return Ok(None);
        };
        let flag = |key: &str| json.get(key).and_then(Value::as_bool).unwrap_or(false);
        let text =
            |key: &str, default: &'static str| json.get(key).and_then(Value::as_str).unwrap_or(default).to_owned();
        let refused = |what: &str| {
            CheckpointError::config(
                reader.path,
                format!(
                    "these weights are quantised in a form that this version cannot read (`quantization_config`: {what}); \
                     it reads NF4 and int8 of bitsandbytes. Take the model's 16-bit or 32-bit weights: \
                     `model.quantization` in a recipe quantises them"
                ),
            )
        };
        let method = text("quant_method", "bitsandbytes");
        if method != "bitsandbytes" {
            return Err(refused(&method));
        }
        if flag("load_in_8bit") {
            return Ok(Some(Self::Int8));
        }
        if !flag("load_in_4bit") {
            return Err(refused("neither `load_in_4bit` nor `load_in_8bit`"));
        }
        let kind = text("bnb_4bit_quant_type", "fp4");
        if kind != "nf4" {
            return Err(refused(&kind));
        }
        let storage = text("bnb_4bit_quant_storage", "uint8");
        if storage != "uint8" {
            return Err(refused(&format!("`bnb_4bit_quant_storage` {storage}")));
        }
        Ok(Some(Self::Nf4 {
            double: flag("bnb_4bit_use_double_quant"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn read(quantization: Value) -> Result<Option<StoredQuantization>, String> {
        let json = json!({ "quantization_config": quantization });
        let path = Path::new("config.json");
        StoredQuantization::read(&Reader { path, json: &json }).map_err(|error| error.to_string())
    }

    #[test]
    fn bitsandbytes_is_read() {
        let nf4 = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
                         "bnb_4bit_use_double_quant": true, "bnb_4bit_quant_storage": "uint8"});
        assert_eq!(read(nf4), Ok(Some(StoredQuantization::Nf4 { double: true })));
        let plain = json!({"load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_quant_type": "nf4"});
        assert_eq!(read(plain), Ok(Some(StoredQuantization::Nf4 { double: false })));
        let int8 = json!({"quant_method": "bitsandbytes", "load_in_8bit": true, "load_in_4bit": false});
        assert_eq!(read(int8), Ok(Some(StoredQuantization::Int8)));
        assert_eq!(read(Value::Null), Ok(None));
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        let cases = [
            (json!({"quant_method": "gptq", "bits": 4}), "gptq"),
            (json!({"quant_method": "awq"}), "awq"),
            (json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), "fp4"),
            (json!({"quant_method": "bitsandbytes"}), "neither"),
            (
                json!({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"}),
                "bfloat16",
            ),
        ];
        for (config, name) in cases {
            let error = read(config).unwrap_err();
            assert!(error.starts_with("config.json: ") && error.contains(name), "{error}");
            assert!(error.contains("model.quantization"), "{error}");
        }
    }
}
