//! Everything a run needs before its first step, made from the recipe: checked completely before anything is written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::dtype::Dtype as FileDtype;
use interlingua_checkpoints::hub;
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::own_adapter::{AnyAdapter, Description};
use interlingua_checkpoints::packed::{Quantization, Scheme};
use interlingua_data::cache;
use interlingua_data::language::canonical;
use interlingua_data::prepare::Prepared;
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::{
    Adapter, AdapterKind, AuxiliaryKind, Format, Init, Offload, QuantizationScheme, Recipe, Route, Strategy, Under,
};
use serde_json::Value;

use super::closed_form;
use super::selection::Selection;
use crate::adapters::attach::{Placement, attach};
use crate::adapters::fresh::attach_new;
use crate::adapters::steering::layer_of;
use crate::collectives::Collectives;
use crate::device::{compute_dtype, device};
use crate::error::TrainError;
use crate::models::Model;
use crate::models::load::{Storage, Weights, load};

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
        let dtype = compute_dtype(recipe.model.dtype, self.dtype(), &device)?;
        let cache = quantised_folder();
        let storage = Storage {
            quantization: quantization(recipe),
            offload: recipe.memory.offload == Offload::Weights,
            cache: Some(&cache),
            ..Storage::frozen(dtype, &device)
        };
        load(&self.config, &self.weights(recipe), &storage)
    }

    /// Loads the model to measure it, with adapters stacked on it or without.
    ///
    /// # Errors
    /// When the device is not there, the weights or an adapter cannot be read, or an adapter does not fit.
    pub fn load_with_adapters(
        &self,
        recipe: &Recipe,
        adapters: &[PathBuf],
        quantization: Option<Quantization>,
    ) -> Result<Model, TrainError> {
        let device = device(recipe.model.device)?;
        let dtype = compute_dtype(recipe.model.dtype, self.dtype(), &device)?;
        let cache = quantised_folder();
        let storage = Storage {
            quantization,
            offload: recipe.memory.offload == Offload::Weights,
            cache: Some(&cache),
            ..Storage::frozen(dtype, &device)
        };
        let mut model = load(&self.config, &self.weights(recipe), &storage)?;
        stack(&mut model, adapters)?;
        Ok(model)
    }

    fn weights(&self, recipe: &Recipe) -> Weights<'_> {
        match &self.folder {
            Some(folder) => Weights::Folder(folder),
            None => Weights::Random { seed: recipe.seed },
        }
    }

    /// Loads the model and puts on it what the recipe trains. `data` decides which languages have an adapter of their own.
    pub fn load(
        &self,
        recipe: &Recipe,
        selection: &Selection,
        data: &Prepared,
        collectives: &Arc<dyn Collectives>,
    ) -> Result<Model, TrainError> {
        check_shape(recipe, &self.config)?;
        let device = device(recipe.model.device)?;
        let dtype = compute_dtype(recipe.model.dtype, self.dtype(), &device)?;
        let cache = quantised_folder();
        let storage = Storage {
            trainable: &|name| selection.selects(name, false),
            spread: spreads(recipe, &**collectives).then(|| collectives.clone()),
            quantization: quantization(recipe),
            offload: recipe.memory.offload == Offload::Weights,
            cache: Some(&cache),
            ..Storage::frozen(dtype, &device)
        };
        let mut model = load(&self.config, &self.weights(recipe), &storage)?;
        put_adapters(&mut model, recipe, data)?;
        if recipe.adapter.is_closed_form() {
            closed_form::fit(&mut model, &recipe.adapter, data)?;
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

/// Whether the weights of blocks are spread over the processes of a run.
pub fn spreads(recipe: &Recipe, collectives: &dyn Collectives) -> bool {
    recipe.distributed.strategy == Strategy::Zero3 && collectives.world_size() > 1
}

/// What can be said about a recipe and the shape of its model before that is loaded.
pub fn check_shape(recipe: &Recipe, config: &ModelConfig) -> Result<(), TrainError> {
    let mut auxiliary = recipe.objective.auxiliary.iter();
    let router = auxiliary.position(|auxiliary| auxiliary.kind == AuxiliaryKind::Router);
    if let (Some(index), false) = (router, config.has_experts()) {
        return Err(TrainError::Setup(format!(
            "objective.auxiliary.{index}: \"router\" balances the experts of a mixture, and this model ({}) has none; leave it out",
            config.family.architecture
        )));
    }
    if let Some(count) = config
        .learned_positions()
        .filter(|count| recipe.data.max_length > *count)
    {
        return Err(TrainError::Setup(format!(
            "data.max_length is {}, but this model learnt positions for {count} tokens and has none for more; set data.max_length \
             to {count} or less",
            recipe.data.max_length
        )));
    }
    check_adapters(recipe, config)
}

/// What can be said about a recipe's adapters before the model is loaded: whether they fit its shape, and their folders are
/// there.
pub fn check_adapters(recipe: &Recipe, config: &ModelConfig) -> Result<(), TrainError> {
    let adapter = &recipe.adapter;
    if adapter.kind == AdapterKind::Steering {
        layer_of(adapter, config)?;
    }
    if let Some(reduction) = adapter.reduction.filter(|reduction| *reduction > config.hidden_size) {
        return Err(TrainError::Setup(format!(
            "adapter.reduction is {reduction}, but the hidden size of this model is {}, so that nothing would be left",
            config.hidden_size
        )));
    }
    for (index, under) in adapter.under.iter().enumerate() {
        open_under(index, under)?;
    }
    if let Some(path) = adapter.init_from.as_ref().filter(|_| adapter.kind != AdapterKind::None) {
        for (_, existing) in open_existing(path, adapter)? {
            check_existing(&existing, adapter, config)?;
        }
    }
    Ok(())
}

/// The adapters that an entry of `adapter.under` stands for, each with its language.
fn open_under(index: usize, under: &Under) -> Result<Vec<(Option<String>, AnyAdapter)>, TrainError> {
    let wrong =
        |problem: String| TrainError::Setup(format!("adapter.under.{index}: {}: {problem}", under.path.display()));
    let wanted = under
        .lang
        .as_ref()
        .map(|lang| canonical(lang).unwrap_or_else(|_| lang.clone()));
    let mut copies = AnyAdapter::open(&under.path)?;
    let known: Vec<String> = copies.iter().filter_map(|(language, _)| language.clone()).collect();
    if let (Some(wanted), false) = (&wanted, known.is_empty()) {
        copies.retain(|(language, _)| language.as_ref() == Some(wanted));
        if copies.is_empty() {
            return Err(wrong(format!(
                "there is no copy for {wanted}; it has {}",
                known.join(", ")
            )));
        }
    }
    if copies.iter().any(|(_, adapter)| adapter.kind() == "dora") {
        return Err(wrong(
            "a DoRA adapter rescales the weight below it and cannot stand under another one; merge it into the model with \
             `interlingua export --merge`, or train a LoRA"
                .into(),
        ));
    }
    let of_language =
        |(language, adapter): (Option<String>, AnyAdapter)| (language.or_else(|| wanted.clone()), adapter);
    Ok(copies.into_iter().map(of_language).collect())
}

/// What `adapter.init_from` holds; a copy for each language only where the recipe has such copies.
fn open_existing(path: &Path, adapter: &Adapter) -> Result<Vec<(Option<String>, AnyAdapter)>, TrainError> {
    let copies = AnyAdapter::open(path)?;
    let languages: Vec<&str> = copies.iter().filter_map(|(language, _)| language.as_deref()).collect();
    if adapter.route == Route::None && !languages.is_empty() {
        return Err(TrainError::Setup(format!(
            "adapter.init_from: {} has a copy for each of {}; write adapter.route = \"language\" to go on with all of them, \
             or name the folder of one",
            path.display(),
            languages.join(", ")
        )));
    }
    Ok(copies)
}

/// Puts the frozen adapters on the model, and on top of them the one to train, with a copy for each language where the recipe
/// says so.
fn put_adapters(model: &mut Model, recipe: &Recipe, data: &Prepared) -> Result<(), TrainError> {
    let adapter = &recipe.adapter;
    for (index, under) in adapter.under.iter().enumerate() {
        for (language, below) in open_under(index, under)? {
            let copy = match &language {
                Some(language) => format!("under.{index}.{language}"),
                None => format!("under.{index}"),
            };
            let placement = Placement {
                copy: Some(&copy),
                language: language.as_deref(),
                ..Placement::default()
            };
            attach(model, &below, placement)?;
        }
    }
    let mut missing: Vec<Option<String>> = match adapter.route {
        Route::None => vec![None],
        Route::Language if adapter.is_closed_form() => {
            closed_form::languages(adapter, data).into_iter().map(Some).collect()
        }
        Route::Language => data.train.languages().iter().cloned().map(Some).collect(),
    };
    if let Some(path) = &adapter.init_from {
        for (language, existing) in open_existing(path, adapter)? {
            check_existing(&existing, adapter, &model.config)?;
            // An adapter without a language is where the copies of all languages start.
            let of_folder = if language.is_some() {
                vec![language]
            } else {
                std::mem::take(&mut missing)
            };
            for language in of_folder {
                let placement = Placement {
                    copy: language.as_deref(),
                    language: language.as_deref(),
                    dropout: adapter.dropout as f32,
                    trainable: true,
                };
                attach(model, &existing, placement)?;
                missing.retain(|missing| *missing != language);
            }
        }
    }
    for language in missing {
        attach_new(model, adapter, recipe.seed, language.as_deref())?;
    }
    Ok(())
}

/// An adapter to go on from decides kind, rank, alpha and targets; what the recipe says otherwise would be without effect, so
/// a difference is an error.
fn check_existing(existing: &AnyAdapter, adapter: &Adapter, model: &ModelConfig) -> Result<(), TrainError> {
    let differs = |key: &str, recipe: String, found: String| {
        Err(TrainError::Setup(format!(
            "adapter.{key} is {recipe}, and the adapter that adapter.init_from names has {found}; set adapter.{key} = {found}"
        )))
    };
    if existing.kind() != adapter.kind.name() {
        let quoted = |name: &str| format!("{name:?}");
        return differs("kind", quoted(adapter.kind.name()), quoted(existing.kind()));
    }
    match existing {
        AnyAdapter::Peft(folder) => {
            let config = folder.config();
            if config.rank != adapter.rank {
                return differs("rank", adapter.rank.to_string(), config.rank.to_string());
            }
            if config.alpha != adapter.alpha {
                return differs("alpha", adapter.alpha.to_string(), config.alpha.to_string());
            }
            if config.use_rslora != adapter.rslora {
                return differs("rslora", adapter.rslora.to_string(), config.use_rslora.to_string());
            }
            if config.modules_to_save != adapter.modules_to_save {
                let list = |names: &[String]| format!("{names:?}");
                return differs(
                    "modules_to_save",
                    list(&adapter.modules_to_save),
                    list(&config.modules_to_save),
                );
            }
        }
        AnyAdapter::Own(folder) => {
            let found = folder.description();
            if let (Some(recipe), Some(found)) = (adapter.reduction, found.reduction)
                && recipe != found
            {
                return differs("reduction", recipe.to_string(), found.to_string());
            }
            if let (AdapterKind::Steering, Some(found)) = (adapter.kind, found.layer) {
                let recipe = layer_of(adapter, model)?;
                if recipe != found {
                    return differs("layer", recipe.to_string(), found.to_string());
                }
            }
            if let (Some(recipe), Some(found)) = (adapter.scale, found.scale)
                && recipe != found
            {
                return differs("scale", recipe.to_string(), found.to_string());
            }
        }
    }
    Ok(())
}

/// How a recipe quantises its base.
pub fn quantization(recipe: &Recipe) -> Option<Quantization> {
    let wanted = recipe.model.quantization.as_ref()?;
    let scheme = match wanted.scheme {
        QuantizationScheme::Nf4 => Scheme::Nf4 {
            block: wanted.block.unwrap_or(64),
            double: wanted.double.unwrap_or(true),
        },
        QuantizationScheme::Int8 => Scheme::Int8,
    };
    Some(Quantization {
        scheme,
        head: wanted.head,
    })
}

/// Where quantised weights are kept between starts.
fn quantised_folder() -> PathBuf {
    cache::default_folder().join("quantised")
}

/// A model to use, not to train: a folder or hub id, with adapters stacked on it or without. One with a copy for each language
/// is put on with all of them; see [`Model::adapter_languages`].
pub fn load_for_inference(
    id_or_path: &str,
    adapters: &[PathBuf],
    dtype: interlingua_recipes::Dtype,
    wanted: interlingua_recipes::Device,
    quantization: Option<Quantization>,
) -> Result<(Model, ModelFolder), TrainError> {
    let path = hub::resolve(id_or_path)?;
    let folder = ModelFolder::open(&path)?;
    let device: Device = device(wanted)?;
    let dtype = compute_dtype(dtype, folder.main_dtype(), &device)?;
    let cache = quantised_folder();
    let storage = Storage {
        quantization,
        cache: Some(&cache),
        ..Storage::frozen(dtype, &device)
    };
    let mut model = load(folder.config(), &Weights::Folder(&folder), &storage)?;
    stack(&mut model, adapters)?;
    Ok((model, folder))
}

/// Puts adapters on a model, each on top of those before it.
fn stack(model: &mut Model, adapters: &[PathBuf]) -> Result<(), TrainError> {
    for (index, path) in adapters.iter().enumerate() {
        let stands_on = Description::read(path)?.unwrap_or_default().under;
        if !stands_on.is_empty() && index == 0 {
            tracing::warn!(
                "{} was trained on top of {}: put it on top of that, with an --adapter for each, in this order",
                path.display(),
                stands_on
                    .iter()
                    .map(|below| below.path.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        for (language, adapter) in AnyAdapter::open(path)? {
            let copy = match &language {
                Some(language) => format!("{index}.{language}"),
                None => index.to_string(),
            };
            let placement = Placement {
                copy: Some(&copy),
                language: language.as_deref(),
                ..Placement::default()
            };
            attach(model, &adapter, placement)?;
        }
    }
    Ok(())
}
