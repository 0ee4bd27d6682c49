//! Adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regex::Regex;
use serde_json::{Value, json};

use crate::atomic::write_atomically;
use crate::config::ModelConfig;
use crate::dtype::{Dtype, HostTensor};
use crate::error::CheckpointError;
use crate::peft_experts::unstack;
use crate::tensors::TensorsFile;
use crate::write::{pretty, write_tensors};

/// What PEFT puts before every module path.
pub const PREFIX: &str = "base_model.model.";

/// Name of the weights.
const WEIGHTS: &str = "adapter_model.safetensors";

/// Name of the config.
pub const CONFIG: &str = "adapter_config.json";

/// What PEFT calls the targets of an adapter that has none, only saved modules.
const NO_TARGETS: &str = "dummy-target-modules";

/// Keys that change what the tensors mean, in ways that only PEFT knows.
const FOREIGN: [&str; 10] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
];

/// Ways to begin that change the base's weights too, so that the adapter fits no unchanged base.
const CHANGES_BASE: [&str; 5] = ["corda", "loftq", "lora_ga", "olora", "pissa"];

/// The keys of `adapter_config.json` that matter here.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The base, as a path or hub id.
    pub base_model: String,
    /// Rank.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
    /// Dropout while training.
    pub dropout: f64,
    /// Names of the modules that have an adapter; one text is a regular expression, or "all-linear".
    pub target_modules: Value,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Vec<String>,
    /// Whether the scale is alpha / √rank.
    pub use_rslora: bool,
    /// Whether there are magnitudes.
    pub use_dora: bool,
    /// Alpha of single modules, by regular expressions for the end of their paths. The order is that of PEFT, which
    /// writes them sorted.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Endings of the names of parameters that have an adapter and are no linear layer in Transformers 5: stacked experts, and what
    /// PEFT takes for them.
    pub target_parameters: Vec<String>,
}

/// How PEFT's `get_pattern_key` reads a pattern: it matches a whole path, or what follows one of its dots.
fn pattern(text: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!(r"^(.*\.)?({text})$"))
}

/// A number without a fraction as JSON's whole number: some readers of adapters take nothing else for alpha.
fn number_json(number: f64) -> Value {
    let whole = number as i64;
    if whole as f64 == number {
        json!(whole)
    } else {
        json!(number)
    }
}

impl AdapterConfig {
    /// Alpha of a module: that of the first pattern that fits its path, else the adapter's.
    pub fn alpha_of(&self, module: &str) -> f64 {
        let fits = |text: &str| pattern(text).is_ok_and(|pattern| pattern.is_match(module));
        self.alpha_pattern
            .iter()
            .find(|(text, _)| fits(text))
            .map_or(self.alpha, |(_, alpha)| *alpha)
    }

    /// The JSON that PEFT reads. Keys that PEFT fills in itself are left out: older versions of it refuse those they do
    /// not know.
    pub fn to_json(&self) -> Value {
        let alphas = self
            .alpha_pattern
            .iter()
            .map(|(text, alpha)| (text.clone(), number_json(*alpha)));
        let mut json = json!({
            "alpha_pattern": alphas.collect::<serde_json::Map<_, _>>(),
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number_json(self.alpha),
            "lora_dropout": self.dropout,
            "modules_to_save": if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) },
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": {},
            "revision": null,
            "target_modules": self.target_modules,
            "task_type": "CAUSAL_LM",
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        });
        if !self.target_parameters.is_empty() {
            json["target_parameters"] = json!(self.target_parameters);
        }
        json
    }

    fn from_json(json: &Value, path: &Path) -> Result<Self, CheckpointError> {
        let wrong = |problem: String| CheckpointError::config(path, problem);
        let value = |key: &str| json.get(key).filter(|value| !value.is_null());
        let kind = value("peft_type").and_then(Value::as_str).unwrap_or("nothing");
        if kind != "LORA" {
            return Err(wrong(format!("`peft_type` is {kind}; LORA adapters can be read")));
        }
        let is_off = |value: &Value| [json!(false), json!([]), json!({})].contains(value);
        for key in FOREIGN {
            if let Some(found) = value(key).filter(|value| !is_off(value)) {
                return Err(wrong(format!(
                    "`{key}` is {found}, which this version does not support"
                )));
            }
        }
        let begun = value("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if CHANGES_BASE.iter().any(|kind| begun.starts_with(kind)) {
            return Err(wrong(format!(
                "`init_lora_weights` is {begun}, which changes the base's weights too; save the adapter again with \
                 PEFT's `path_initial_model_for_weight_conversion`"
            )));
        }
        if let Some(bias) = value("bias").filter(|bias| **bias != json!("none")) {
            return Err(wrong(format!("`bias` is {bias}; only \"none\" is supported")));
        }
        let number = |key: &str| {
            value(key)
                .and_then(Value::as_f64)
                .ok_or_else(|| wrong(format!("`{key}` should be a number")))
        };
        let flag = |key: &str| value(key).and_then(Value::as_bool).unwrap_or(false);
        let names = |key: &str| -> Vec<String> {
            let list = value(key).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let rank = value("r").and_then(Value::as_u64).filter(|rank| *rank > 0);
        let mut alpha_pattern = BTreeMap::new();
        for (text, alpha) in value("alpha_pattern").and_then(Value::as_object).into_iter().flatten() {
            let problem = |what: &str| wrong(format!("`alpha_pattern`: {what}"));
            pattern(text).map_err(|_| problem(&format!("`{text}` is no regular expression that can be read here")))?;
            let alpha = alpha
                .as_f64()
                .ok_or_else(|| problem(&format!("`{text}` should be a number, found {alpha}")))?;
            alpha_pattern.insert(text.clone(), alpha);
        }
        Ok(Self {
            base_model: value("base_model_name_or_path")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            rank: rank.ok_or_else(|| wrong("`r` should be a whole number above 0".into()))? as usize,
            alpha: number("lora_alpha")?,
            dropout: value("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
            target_modules: value("target_modules").cloned().unwrap_or(Value::Null),
            modules_to_save: names("modules_to_save"),
            use_rslora: flag("use_rslora"),
            use_dora: flag("use_dora"),
            alpha_pattern,
            target_parameters: names("target_parameters"),
        })
    }
}

/// An open adapter folder.
#[derive(Clone, Debug)]
pub struct AdapterFolder {
    path: PathBuf,
    config: AdapterConfig,
    file: Arc<TensorsFile>,
    /// Our name to the name in the file.
    keys: BTreeMap<String, String>,
    /// Tensors that stand for stacked ones of the file.
    unstacked: BTreeMap<String, HostTensor>,
}

impl AdapterFolder {
    /// Opens a folder that PEFT or this program wrote.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let missing = |file: &str| CheckpointError::MissingFile {
            folder: path.to_owned(),
            file: file.to_owned(),
            advice: "an adapter folder in PEFT's layout has one".into(),
        };
        let config_path = path.join(CONFIG);
        if !path.is_dir() {
            return Err(CheckpointError::NotFound(format!(
                "{}: there is no such adapter folder",
                path.display()
            )));
        }
        if !config_path.is_file() {
            return Err(missing(CONFIG));
        }
        let text = std::fs::read_to_string(&config_path).map_err(|source| CheckpointError::io(&config_path, source))?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|error| CheckpointError::config(&config_path, format!("this is not JSON: {error}")))?;
        let config = AdapterConfig::from_json(&json, &config_path)?;
        let weights = path.join(WEIGHTS);
        if !weights.is_file() {
            return Err(missing(WEIGHTS));
        }
        let file = TensorsFile::open(&weights)?;
        let keys: BTreeMap<String, String> = file.names().map(|name| (plain_name(&name), name)).collect();
        if let Some((_, name)) = keys.iter().find(|(name, _)| !is_known(&config, name)) {
            return Err(CheckpointError::config(
                &weights,
                format!(
                    "tensor `{name}` is no part of a LoRA adapter on linear layers and of no module in \
                     `modules_to_save`; it would be lost, so that the adapter is not read. Save it again without, such \
                     as with save_embedding_layers=False"
                ),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            config,
            file: Arc::new(file),
            keys,
            unstacked: BTreeMap::new(),
        })
    }

    /// The same adapter as it stands on a model: what PEFT stacked for all experts of a block belongs to each of them.
    pub fn on(&self, model: &ModelConfig) -> Result<Self, CheckpointError> {
        let found = unstack(self, model)?;
        let mut folder = self.clone();
        folder.keys.retain(|name, _| !found.stacked.contains(name));
        folder.unstacked.extend(found.tensors);
        for (module, alpha) in found.alphas {
            if folder.config.alpha_of(&module) != alpha {
                folder.config.alpha_pattern.insert(regex::escape(&module), alpha);
            }
        }
        Ok(folder)
    }

    /// Its config.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, without `base_model.model.`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().chain(self.unstacked.keys()).map(String::as_str)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match self.unstacked.get(name) {
            Some(tensor) => Some(&tensor.shape),
            None => self.file.shape(self.keys.get(name)?),
        }
    }

    /// Number format of a tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        match self.unstacked.get(name) {
            Some(tensor) => Some(tensor.dtype),
            None => self.file.dtype(self.keys.get(name)?),
        }
    }

    /// The rank of a module's adapter: the first extent of its A.
    pub fn rank_of(&self, module: &str) -> Option<usize> {
        let shape = self.shape(&format!("{module}.lora_A.weight"));
        shape.and_then(|shape| shape.first().copied())
    }

    /// The numbers of a tensor, by its name without `base_model.model.`.
    pub fn read_f32(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let advice = format!("the adapter was trained on another model ({})", self.config.base_model);
        if let Some(tensor) = self.unstacked.get(name).filter(|tensor| tensor.shape == expected) {
            return Ok(tensor.to_f32());
        }
        let key = self.keys.get(name);
        let read = key
            .map(|key| self.file.read_f32(key, expected, &advice))
            .transpose()?
            .flatten();
        read.ok_or_else(|| CheckpointError::MissingTensor {
            folder: self.path.clone(),
            tensor: format!("{PREFIX}{name}"),
            advice: format!("expected one of shape {expected:?}; {advice}, or the file is not whole"),
        })
    }

    /// An error when the folder has adapters on modules that the model lacks.
    pub fn check_modules(&self, of_model: &BTreeSet<String>) -> Result<(), CheckpointError> {
        let modules = self.names().filter_map(|name| name.strip_suffix(".lora_A.weight"));
        let unknown: Vec<&str> = modules.filter(|module| !of_model.contains(*module)).collect();
        match unknown.first() {
            None => Ok(()),
            Some(first) => Err(CheckpointError::NotFound(format!(
                "{}: the adapter sits on {} modules that this model does not have, such as `{first}`; it was trained on \
                 another model ({})",
                self.path.display(),
                unknown.len(),
                self.config.base_model
            ))),
        }
    }

    /// Writes a folder: tensors by their names without `base_model.model.`. Targets that are no list of names are
    /// written as one, and ranks that differ from the config's as `rank_pattern`, as PEFT needs them.
    pub fn write(
        path: &Path,
        config: &AdapterConfig,
        tensors: Vec<(String, HostTensor)>,
        readme: &str,
    ) -> Result<(), CheckpointError> {
        std::fs::create_dir_all(path).map_err(|source| CheckpointError::io(path, source))?;
        let json = json_of(config, &tensors);
        let tensors = tensors
            .into_iter()
            .map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor))
            .collect();
        write_tensors(&path.join(WEIGHTS), &tensors)?;
        write_atomically(&path.join("README.md"), readme.as_bytes())?;
        write_atomically(&path.join(CONFIG), pretty(&json)?.as_bytes())
    }
}

/// The config's JSON with what the tensors say about ranks and targets.
fn json_of(config: &AdapterConfig, tensors: &[(String, HostTensor)]) -> Value {
    let rank = |(name, tensor): &(String, HostTensor)| {
        Some((name.strip_suffix(".lora_A.weight")?.to_owned(), *tensor.shape.first()?))
    };
    let ranks: BTreeMap<String, usize> = tensors.iter().filter_map(rank).collect();
    let mut json = config.to_json();
    let others = ranks.iter().filter(|(_, rank)| **rank != config.rank);
    json["rank_pattern"] = others
        .map(|(module, rank)| (module.clone(), json!(rank)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let last = |module: &String| module.rsplit('.').next().unwrap_or_default().to_owned();
    json["target_modules"] = match &config.target_modules {
        _ if ranks.is_empty() => json!(NO_TARGETS),
        Value::Array(names) => json!(names),
        // PEFT matches whole paths in a list exactly, which holds for any expression.
        Value::String(expression) if expression != "all-linear" => json!(ranks.keys().collect::<Vec<_>>()),
        _ => json!(ranks.keys().map(last).collect::<BTreeSet<_>>()),
    };
    json
}

/// Whether a tensor of an adapter is one that can be put on a model.
fn is_known(config: &AdapterConfig, name: &str) -> bool {
    let is_part = |part: &str| name.ends_with(part);
    is_part(".lora_A.weight")
        || is_part(".lora_B.weight")
        || (config.use_dora && is_part(".lora_magnitude_vector"))
        || config.modules_to_save.iter().any(|module| belongs_to(name, module))
}

/// Whether a parameter belongs to a module of `modules_to_save`. PEFT takes every module whose path ends in the name, be it in
/// the middle of a word, so that `norm` means `model.layers.0.input_layernorm` too.
pub fn belongs_to(parameter: &str, module: &str) -> bool {
    let mut ends = parameter.match_indices('.').map(|(end, _)| end);
    ends.any(|end| parameter[..end].ends_with(module))
}

/// A name in a file without the prefix, the adapter's name `default` and what older versions of PEFT wrote.
fn plain_name(name: &str) -> String {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    name.replace(".default.weight", ".weight")
        .replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
        .replace(".lora_magnitude_vector.default", ".lora_magnitude_vector")
        .replace(".modules_to_save.", ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AdapterConfig {
        AdapterConfig {
            base_model: "base".into(),
            rank: 2,
            alpha: 4.0,
            dropout: 0.1,
            target_modules: json!(["q_proj"]),
            modules_to_save: vec!["lm_head".into()],
            use_rslora: true,
            use_dora: false,
            target_parameters: Vec::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let a = HostTensor::from_f32(vec![2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let tensors = vec![("model.layers.0.self_attn.q_proj.lora_A.weight".to_owned(), a.clone())];
        AdapterFolder::write(folder.path(), &config(), tensors, "readme").unwrap();
        let read = AdapterFolder::open(folder.path()).unwrap();
        assert_eq!(read.config(), &config());
        assert_eq!(read.rank_of("model.layers.0.self_attn.q_proj"), Some(2));
        let name = "model.layers.0.self_attn.q_proj.lora_A.weight";
        assert_eq!(read.read_f32(name, &[2, 3]).unwrap(), a.to_f32());
        let error = read.read_f32(name, &[2, 4]).unwrap_err().to_string();
        assert!(
            error.contains("has the shape [2, 3], expected [2, 4]") && error.contains("another model"),
            "{error}"
        );
        assert!(
            read.check_modules(&BTreeSet::new())
                .unwrap_err()
                .to_string()
                .contains("q_proj")
        );
    }

    fn written(config: &AdapterConfig, tensors: &[(&str, Vec<usize>)]) -> (tempfile::TempDir, Value) {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |shape: &Vec<usize>| HostTensor::from_f32(shape.clone(), &vec![1.0; shape.iter().product()]);
        let tensors = tensors
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), tensor(shape)))
            .collect();
        AdapterFolder::write(folder.path(), config, tensors, "").unwrap();
        let text = std::fs::read_to_string(folder.path().join(CONFIG)).unwrap();
        (folder, serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn ranks_and_targets_are_written_as_the_tensors_have_them() {
        let tensors = [
            ("a.0.q_proj.lora_A.weight", vec![2, 3]),
            ("a.1.k_proj.lora_A.weight", vec![4, 3]),
        ];
        let targets = |targets: Value| AdapterConfig {
            target_modules: targets,
            ..config()
        };
        let (_, json) = written(&targets(json!("all-linear")), &tensors);
        assert_eq!(json["target_modules"], json!(["k_proj", "q_proj"]));
        assert_eq!(json["rank_pattern"], json!({"a.1.k_proj": 4}));
        let (_, json) = written(&targets(json!(r"a\.[01]\..*")), &tensors);
        assert_eq!(json["target_modules"], json!(["a.0.q_proj", "a.1.k_proj"]));
        let (folder, json) = written(&targets(Value::Null), &[("lm_head.weight", vec![2, 3])]);
        assert_eq!(json["target_modules"], json!("dummy-target-modules"));
        assert_eq!(json["lora_alpha"].to_string(), "4");
        assert!(
            AdapterFolder::open(folder.path())
                .unwrap()
                .read_f32("lm_head.weight", &[2, 3])
                .is_ok()
        );
    }

    #[test]
    fn tensors_that_would_be_lost_are_refused() {
        for name in [
            "model.embed_tokens.lora_embedding_A",
            "model.embed_tokens.weight",
            "a.lora_B.bias",
            "a.lora_magnitude_vector",
        ] {
            let (folder, _) = written(&config(), &[("a.lora_A.weight", vec![2, 3]), (name, vec![2])]);
            let error = AdapterFolder::open(folder.path()).unwrap_err().to_string();
            assert!(
                error.contains(&format!("tensor `base_model.model.{name}` is no part")),
                "{error}"
            );
        }
    }

    #[test]
    fn alpha_patterns_are_regular_expressions_for_the_end_of_a_path() {
        let mut config = config();
        let patterns = [
            ("^model.layers.0.self_attn.q_proj", 1.0),
            ("layers\\.[12]\\..*_proj", 2.0),
            ("v_proj", 3.0),
        ];
        config.alpha_pattern = patterns
            .into_iter()
            .map(|(text, alpha)| (text.to_owned(), alpha))
            .collect();
        let read = AdapterConfig::from_json(&config.to_json(), Path::new("adapter_config.json")).unwrap();
        assert_eq!(read, config);
        assert_eq!(read.alpha_of("model.layers.0.self_attn.q_proj"), 1.0);
        assert_eq!(read.alpha_of("other.model.layers.0.self_attn.q_proj"), 4.0);
        assert_eq!(read.alpha_of("model.layers.1.self_attn.v_proj"), 2.0);
        assert_eq!(read.alpha_of("model.layers.3.self_attn.v_proj"), 3.0);
        assert_eq!(read.alpha_of("model.layers.3.self_attn.xv_proj"), 4.0);
        let mut json = config.to_json();
        json["alpha_pattern"] = json!({"q_proj(": 2});
        let error = AdapterConfig::from_json(&json, Path::new("adapter_config.json"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("`q_proj(` is no regular expression"), "{error}");
    }

    #[test]
    fn saved_modules_are_those_of_peft() {
        let norm = "model.layers.0.input_layernorm.weight";
        assert!(belongs_to(norm, "norm") && belongs_to(norm, "input_layernorm") && belongs_to(norm, "layers.0"));
        let up = "model.layers.0.mlp.up_proj.weight";
        assert!(belongs_to(up, "mlp") && belongs_to(up, "mlp.up_proj") && belongs_to("lm_head.weight", "lm_head"));
        assert!(!belongs_to(up, "weight") && !belongs_to(up, "norm"));
    }

    #[test]
    fn names_of_older_versions_are_understood() {
        assert_eq!(
            plain_name("base_model.model.lm_head.modules_to_save.weight"),
            "lm_head.weight"
        );
        assert_eq!(
            plain_name("base_model.model.a.lora_A.default.weight"),
            "a.lora_A.weight"
        );
        assert_eq!(
            plain_name("base_model.model.a.lora_magnitude_vector.weight"),
            "a.lora_magnitude_vector"
        );
    }

    #[test]
    fn other_kinds_of_adapters_are_refused() {
        let mut json = config().to_json();
        json["peft_type"] = json!("IA3");
        let error = AdapterConfig::from_json(&json, Path::new("adapter_config.json")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "adapter_config.json: `peft_type` is IA3; LORA adapters can be read"
        );
        for (key, value) in [
            ("use_qalora", json!(true)),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("r", json!(0)),
        ] {
            let mut json = config().to_json();
            json[key] = value;
            let error = AdapterConfig::from_json(&json, Path::new("adapter_config.json"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
    }
}
