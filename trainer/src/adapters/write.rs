//! Writes the trained adapter: in PEFT's layout where PEFT has the kind, with a folder for each language where there are copies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use interlingua_checkpoints::atomic::write_atomically;
use interlingua_checkpoints::dtype::{Dtype, HostTensor};
use interlingua_checkpoints::own_adapter::{Below, Description, OwnAdapter};
use interlingua_checkpoints::peft::{AdapterConfig, AdapterFolder, CONFIG};
use interlingua_checkpoints::peft_experts::for_peft;
use interlingua_recipes::{AdapterKind, Recipe, Route};
use serde_json::{Value, json};

use super::Adapter;
use super::attach::{host_tensor, saved_modules};
use super::steering::layer_of;
use crate::error::TrainError;
use crate::layers::linear::Linear;
use crate::models::Model;
use crate::parameters::ParameterId;
use crate::train::setup::quantization;
use crate::train::summary::Summary;

/// Writes `adapter/` into the output folder.
pub fn write_adapter(recipe: &Recipe, model: &Model, summary: &Summary) -> Result<(), TrainError> {
    let folder = recipe.output.join("adapter");
    let mut copies = BTreeMap::<Option<&str>, Vec<(String, HostTensor)>>::new();
    for tensor in trained_tensors(model) {
        let values = host_tensor(model.parameters.get(tensor.id), Dtype::F32);
        copies.entry(tensor.language).or_default().push((tensor.name, values));
    }
    let languages: Vec<String> = copies.keys().flatten().map(|language| (*language).to_owned()).collect();
    for (language, tensors) in copies {
        let folder = language.map_or_else(|| folder.clone(), |language| folder.join(language));
        write_copy(&folder, recipe, model, summary, language, tensors)?;
    }
    if languages.is_empty() {
        return Ok(());
    }
    let description = Description {
        languages,
        ..description(recipe, model)?
    };
    description.write(&folder)?;
    let readme = readme(recipe, summary, None);
    Ok(write_atomically(&folder.join("README.md"), readme.as_bytes())?)
}

fn write_copy(
    folder: &Path,
    recipe: &Recipe,
    model: &Model,
    summary: &Summary,
    language: Option<&str>,
    mut tensors: Vec<(String, HostTensor)>,
) -> Result<(), TrainError> {
    let (readme, description) = (readme(recipe, summary, language), description(recipe, model)?);
    if !matches!(recipe.adapter.kind, AdapterKind::Lora | AdapterKind::Dora) {
        return Ok(OwnAdapter::write(folder, &description, tensors, &readme)?);
    }
    for id in saved_modules(model, &recipe.adapter.modules_to_save)? {
        let parameter = model.parameters.get(id);
        tensors.push((parameter.name.clone(), host_tensor(parameter, Dtype::F32)));
    }
    let mut config = adapter_config(recipe, model, language)?;
    let tensors = for_peft(&mut config, tensors, &model.config);
    AdapterFolder::write(folder, &config, tensors, &readme)?;
    if !description.under.is_empty() || description.quantization.is_some() {
        description.write(folder)?;
    }
    Ok(())
}

/// What `interlingua.json` says.
fn description(recipe: &Recipe, model: &Model) -> Result<Description, TrainError> {
    let adapter = &recipe.adapter;
    let is = |kind| adapter.kind == kind;
    let under = adapter.under.iter().map(|under| Below {
        path: under.path.clone(),
        lang: under.lang.clone(),
    });
    let layer = is(AdapterKind::Steering).then(|| layer_of(adapter, &model.config));
    Ok(Description {
        kind: adapter.kind.name().to_owned(),
        base_model: recipe.model.path.clone(),
        languages: Vec::new(),
        under: under.collect(),
        quantization: quantization(recipe),
        layer: layer.transpose()?,
        scale: adapter.scale,
        reduction: adapter.reduction,
        dropout: is(AdapterKind::Bottleneck).then_some(adapter.dropout),
    })
}

/// A tensor of the trained adapter.
struct TrainedTensor<'a> {
    /// Its name in a file: without a language.
    name: String,
    language: Option<&'a str>,
    id: ParameterId,
}

/// The tensors of the trained adapter, those of frozen ones below left out.
fn trained_tensors(model: &Model) -> Vec<TrainedTensor<'_>> {
    let tensor = |name: String, language, id| TrainedTensor { name, language, id };
    let mut tensors = Vec::new();
    for linear in model.linears() {
        for adapter in &linear.adapters {
            let (language, lora) = (adapter.language.as_deref(), adapter.adapter.lora());
            let mut add = |part: &str, id| tensors.push(tensor(format!("{}.{part}", linear.name), language, id));
            add("lora_A.weight", lora.a);
            add("lora_B.weight", lora.b);
            if let Adapter::Dora(dora) = &adapter.adapter {
                add("lora_magnitude_vector", dora.magnitude);
            }
        }
    }
    for block in &model.blocks {
        let name = |part: &str| format!("{}.{part}", block.path);
        for bottleneck in &block.bottlenecks {
            let language = bottleneck.language.as_deref();
            tensors.push(tensor(name("adapter_down.weight"), language, bottleneck.adapter.down));
            tensors.push(tensor(name("adapter_up.weight"), language, bottleneck.adapter.up));
        }
        for steering in &block.steering {
            let language = steering.language.as_deref();
            tensors.push(tensor(name("steering_vector"), language, steering.adapter.vector));
        }
    }
    tensors.retain(|tensor| !model.parameters.get(tensor.id).frozen);
    tensors
}

fn adapter_config(recipe: &Recipe, model: &Model, language: Option<&str>) -> Result<AdapterConfig, TrainError> {
    let adapter = &recipe.adapter;
    // Alphas of single modules are those of the adapter that this one went on from.
    let begun: Option<PathBuf> = adapter.init_from.as_ref().map(|path| {
        let copy = language.map(|language| path.join(language));
        copy.filter(|copy| copy.join(CONFIG).is_file())
            .unwrap_or_else(|| path.clone())
    });
    let alpha_pattern = match begun.filter(|path| path.join(CONFIG).is_file()) {
        Some(path) => {
            let begun = AdapterFolder::open(&path)?.on(&model.config)?;
            begun.config().alpha_pattern.clone()
        }
        None => BTreeMap::new(),
    };
    let is_trained = |linear: &&Linear| {
        let mut adapters = linear.adapters.iter();
        adapters.any(|adapter| {
            adapter.language.as_deref() == language && !model.parameters.get(adapter.adapter.lora().a).frozen
        })
    };
    let last = |linear: &Linear| linear.name.rsplit('.').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = model.linears().filter(is_trained).map(last).collect();
    // Names are exact where every module of a name has an adapter; else the paths themselves are listed. PEFT leaves out by itself
    // what it does not take for "all-linear".
    let left_out = |linear: &Linear| model.config.has_experts() && !model.config.is_all_linear(&linear.name);
    let mut linears = model.linears();
    let exact = linears.all(|linear| names.contains(&last(linear)) == is_trained(&linear) || left_out(linear));
    let targets: Value = if exact {
        json!(names)
    } else {
        let paths = model.linears().filter(is_trained).map(|linear| linear.name.as_str());
        json!(paths.collect::<Vec<_>>())
    };
    Ok(AdapterConfig {
        base_model: recipe.model.path.clone(),
        rank: adapter.rank,
        alpha: adapter.alpha,
        dropout: adapter.dropout,
        target_modules: targets,
        modules_to_save: adapter.modules_to_save.clone(),
        use_rslora: adapter.rslora,
        use_dora: adapter.kind == AdapterKind::Dora,
        alpha_pattern,
        target_parameters: Vec::new(),
    })
}

/// The model card of an adapter, or of a language's copy: base, what it stands on, data, languages with their shares and scores.
fn readme(recipe: &Recipe, summary: &Summary, language: Option<&str>) -> String {
    let total: u64 = summary.by_language.values().map(|loss| loss.tokens).sum();
    let languages: Vec<&str> = match language {
        Some(language) => vec![language],
        None => summary.by_language.keys().map(String::as_str).collect(),
    };
    let library = match recipe.adapter.kind {
        AdapterKind::Lora | AdapterKind::Dora => "peft",
        AdapterKind::Bottleneck | AdapterKind::Steering | AdapterKind::None => "interlingua",
    };
    let mut text = format!("---\nlibrary_name: {library}\n");
    text.push_str(&format!("base_model: {}\n", recipe.model.path));
    if !languages.is_empty() {
        text.push_str("language:\n");
    }
    languages
        .iter()
        .for_each(|language| text.push_str(&format!("- {language}\n")));
    text.push_str("tags:\n- interlingua\n---\n\n# Adapter\n\n");
    text.push_str(&format!(
        "Trained with Interlingua on `{}`: {} steps, {} supervised tokens.\n\n",
        recipe.model.path, summary.steps, summary.tokens
    ));
    let kind = recipe.adapter.kind.name();
    match (language, recipe.adapter.route) {
        (Some(language), _) => text.push_str(&format!(
            "This is the copy (`{kind}`) that rows in `{language}` passed through.\n\n"
        )),
        (None, Route::Language) => text.push_str(&format!(
            "There is a copy (`{kind}`) for each language, in the folder of its name.\n\n"
        )),
        (None, Route::None) => {}
    }
    if !recipe.adapter.under.is_empty() {
        text.push_str("It stands on these adapters, the lowest one first, and is to be used on top of them:\n");
        for under in &recipe.adapter.under {
            let rows = under
                .lang
                .as_ref()
                .map(|lang| format!(" (rows in `{lang}`)"))
                .unwrap_or_default();
            text.push_str(&format!("- `{}`{rows}\n", under.path.display()));
        }
        text.push('\n');
    }
    text.push_str(
        "| language | samples | supervised tokens | share | training loss at the end |\n|---|---|---|---|---|\n",
    );
    for (language, loss) in &summary.by_language {
        let share = 100.0 * loss.tokens as f64 / (total as f64).max(1.0);
        let (samples, tokens, loss) = (loss.samples, loss.tokens, loss.loss);
        text.push_str(&format!(
            "| {language} | {samples} | {tokens} | {share:.1} % | {loss:.4} |\n"
        ));
    }
    if !summary.evaluations.is_empty() {
        text.push_str("\n| task | language | metric | before | after |\n|---|---|---|---|---|\n");
    }
    for (task, evaluation) in &summary.evaluations {
        for (language, metrics) in &evaluation.last.by_language {
            for (metric, after) in metrics {
                let before = evaluation
                    .first
                    .by_language
                    .get(language)
                    .and_then(|metrics| metrics.get(metric));
                let before = before.map_or_else(|| "-".to_owned(), |before| format!("{before:.4}"));
                text.push_str(&format!("| {task} | {language} | {metric} | {before} | {after:.4} |\n"));
            }
        }
    }
    text.push_str("\nData:\n");
    for source in &recipe.data.sources {
        let files = source.path.paths().map(|path| path.file_name().unwrap_or_default());
        let files: Vec<String> = files.map(|name| format!("`{}`", name.to_string_lossy())).collect();
        text.push_str(&format!("- {} ({})\n", source.name, files.join(", ")));
    }
    text
}
