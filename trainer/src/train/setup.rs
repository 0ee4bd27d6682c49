//! Everything a run needs before its first step, made from the recipe: checked completely before anything is written.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::dtype::Dtype as FileDtype;
use interlingua_checkpoints::hub;
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::peft::AdapterFolder;
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::{AdapterKind, Format, Init, Recipe};
use serde_json::Value;

use super::selection::Selection;
use crate::adapters::attach::{attach_folder, attach_new};
use crate::device::{compute_dtype, device};
use crate::error::TrainError;
use crate::models::Model;
use crate::models::load::{Weights, load};

/// The base of a run.
pub struct Base {
    /// Its folder.
    pub path: PathBuf,
    /// Its shape.
    pub config: ModelConfig,
    /// `config.json` as it stands.
    pub raw_config: Value,
    /// Its weights; none when they are random.
    folder: Option<ModelFolder>,
}

impl Base {
    /// Finds and opens the model that a recipe names.
    pub fn open(recipe: &Recipe) -> Result<Self, TrainError> {
        let path = hub::resolve(&recipe.model.path)?;
        if recipe.model.init == Init::Random {
            let (config, raw_config) = ModelConfig::read(&path)?;
            return Ok(Self {
                path,
                config,
                raw_config,
                folder: None,
            });
        }
        let folder = ModelFolder::open(&path)?;
        let (config, raw_config) = (folder.config().clone(), folder.raw_config().clone());
        Ok(Self {
            path,
            config,
            raw_config,
            folder: Some(folder),
        })
    }

    /// The number format of its weights.
    pub fn dtype(&self) -> FileDtype {
        let named = self.config.dtype.unwrap_or(FileDtype::F32);
        self.folder.as_ref().map_or(named, ModelFolder::main_dtype)
    }

    /// Its tokenizer. A folder without one will do when all data is tokenised already.
    pub fn tokenizer(&self, recipe: &Recipe) -> Result<Tokenizer, TrainError> {
        let sources = recipe.data.sources.iter().map(|source| source.format);
        let mut formats = sources.chain(recipe.eval.tasks.iter().map(|task| task.format));
        if !self.path.join("tokenizer.json").exists() && formats.all(|format| format == Format::Tokens) {
            return Ok(Tokenizer::without_vocabulary(&self.path));
        }
        Ok(Tokenizer::load(&self.path)?)
    }

    /// Loads the model alone, nothing of it to be trained.
    ///
    /// # Errors
    /// When the device is not there, or the weights cannot be read.
    pub fn load_bare(&self, recipe: &Recipe) -> Result<Model, TrainError> {
        let device = device(recipe.model.device)?;
        let dtype = compute_dtype(recipe.model.dtype, self.dtype(), &device);
        load(&self.config, &self.weights(recipe), dtype, &device, &|_| false)
    }

    fn weights(&self, recipe: &Recipe) -> Weights<'_> {
        match &self.folder {
            Some(folder) => Weights::Folder(folder),
            None => Weights::Random { seed: recipe.seed },
        }
    }

    /// Loads the model and puts on it what the recipe trains.
    pub fn load(&self, recipe: &Recipe, selection: &Selection) -> Result<Model, TrainError> {
        let device = device(recipe.model.device)?;
        let dtype = compute_dtype(recipe.model.dtype, self.dtype(), &device);
        let mut model = load(&self.config, &self.weights(recipe), dtype, &device, &|name| {
            selection.selects(name, false)
        })?;
        if recipe.adapter.kind != AdapterKind::None {
            match &recipe.adapter.init_from {
                Some(path) => attach_existing(&mut model, path, recipe)?,
                None => attach_new(&mut model, &recipe.adapter, recipe.seed)?,
            }
        }
        selection.apply(&mut model, 0, 1);
        if selection.all(&model).is_empty() {
            return Err(TrainError::Setup(
                "train.parameters names no parameter of this model, so nothing would be trained".into(),
            ));
        }
        Ok(model)
    }
}

/// An adapter to go on from decides rank, alpha and targets; what the recipe says otherwise would be without effect, so
/// a difference is an error.
fn attach_existing(model: &mut Model, path: &Path, recipe: &Recipe) -> Result<(), TrainError> {
    let folder = AdapterFolder::open(path)?;
    let config = folder.config();
    let differs = |key: &str, recipe: String, found: String| {
        Err(TrainError::Setup(format!(
            "adapter.{key} is {recipe}, and the adapter that adapter.init_from names has {found}; set adapter.{key} = {found}"
        )))
    };
    let adapter = &recipe.adapter;
    if config.rank != adapter.rank {
        return differs("rank", adapter.rank.to_string(), config.rank.to_string());
    }
    if config.alpha != adapter.alpha {
        return differs("alpha", adapter.alpha.to_string(), config.alpha.to_string());
    }
    if config.use_rslora != adapter.rslora {
        return differs("rslora", adapter.rslora.to_string(), config.use_rslora.to_string());
    }
    if config.use_dora != (adapter.kind == AdapterKind::Dora) {
        let name = |dora: bool| if dora { "\"dora\"" } else { "\"lora\"" };
        return differs("kind", name(!config.use_dora).into(), name(config.use_dora).into());
    }
    if config.modules_to_save != adapter.modules_to_save {
        let list = |names: &[String]| format!("{names:?}");
        return differs(
            "modules_to_save",
            list(&adapter.modules_to_save),
            list(&config.modules_to_save),
        );
    }
    attach_folder(model, &folder, adapter.dropout as f32, true)
}

/// A model to use, not to train: a folder or hub id, with an adapter or without.
pub fn load_for_inference(
    id_or_path: &str,
    adapters: &[PathBuf],
    dtype: interlingua_recipes::Dtype,
    wanted: interlingua_recipes::Device,
) -> Result<(Model, ModelFolder), TrainError> {
    let path = hub::resolve(id_or_path)?;
    let folder = ModelFolder::open(&path)?;
    let device: Device = device(wanted)?;
    let dtype = compute_dtype(dtype, folder.main_dtype(), &device);
    let mut model = load(folder.config(), &Weights::Folder(&folder), dtype, &device, &|_| false)?;
    for adapter in adapters {
        attach_folder(&mut model, &AdapterFolder::open(adapter)?, 0.0, false)?;
    }
    Ok((model, folder))
}
