//! What `validate` and `prepare` share: a recipe's model opened, its data tokenised, the length of the run known.

use std::path::Path;

use interlingua_checkpoints::hub;
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_data::cache::default_folder;
use interlingua_data::order::{Plan, Planned};
use interlingua_data::prepare::{Prepared, Progress, prepare};
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::{Recipe, Reference, ReferenceAdapter};
use interlingua_trainer::collectives::Alone;
use interlingua_trainer::evaluate::Evaluator;
use interlingua_trainer::train::plan::DataPlan;
use interlingua_trainer::train::setup::{Base, check_shape};
use interlingua_trainer::train::{memory, reference};
use serde_json::{Value, json};

use crate::cli::Global;
use crate::exit::Failure;
use crate::progress::Preparation;
use crate::table::{self, Table};

/// One stage of a recipe, ready to train.
pub(crate) struct Ready {
    /// The stage's name; empty for a recipe without stages.
    pub(crate) stage: String,
    /// The tokenizer.
    pub(crate) tokenizer: Tokenizer,
    /// The tokenised data.
    pub(crate) data: Prepared,
    /// Optimizer steps of the run.
    pub(crate) steps: u64,
    /// Share of the packed rows that holds tokens.
    pub(crate) fill_rate: f64,
    /// What the run takes in memory.
    pub(crate) memory: interlingua_trainer::plan::Plan,
    /// What the run reads of each language and source.
    plan: Plan,
    /// Whether the recipe asks for shares.
    mixed: bool,
}

/// Opens the model and tokenises the data of every stage that trains; of one that merges, opens the base it names.
///
/// # Errors
/// When a model, a tokenizer, a template or data is wrong.
pub(crate) fn ready(recipe: &Recipe, global: &Global) -> Result<Vec<Ready>, Failure> {
    for stage in recipe.stages().map_err(Failure::usage)? {
        if let Some(base) = stage.merge.as_ref().and_then(|merge| merge.merge.base.as_ref()) {
            let folder = hub::resolve(base).map_err(Failure::usage)?;
            ModelFolder::open(&folder).map_err(Failure::usage)?;
        }
    }
    let stages = stages(recipe)?.into_iter();
    stages.map(|(name, stage)| ready_stage(name, &stage, global)).collect()
}

/// The stages that train, each with its name (empty for a recipe without stages), before any of them has run: what an earlier
/// one is yet to make is replaced by what it is made from, or left out.
///
/// # Errors
/// When a stage's recipe is wrong.
pub(crate) fn stages(recipe: &Recipe) -> Result<Vec<(String, Recipe)>, Failure> {
    let mut stages = Vec::new();
    let mut model = recipe.model.path.clone();
    for (index, mut stage) in recipe.stages().map_err(Failure::usage)?.into_iter().enumerate() {
        if stage.merge.is_some() {
            continue;
        }
        // What an earlier stage is yet to make has the shape and the tokenizer of what it is made from.
        let made_by_a_stage = index > 0 && Path::new(&stage.model.path).starts_with(&recipe.output);
        if made_by_a_stage && !Path::new(&stage.model.path).exists() {
            stage.model.path.clone_from(&model);
        }
        model.clone_from(&stage.model.path);
        let is_yet_to_be_made = |path: &Path| index > 0 && path.starts_with(&recipe.output) && !path.exists();
        stage.adapter.init_from = stage.adapter.init_from.filter(|path| !is_yet_to_be_made(path));
        stage.adapter.under.retain(|under| !is_yet_to_be_made(&under.path));
        let name = recipe
            .stage
            .get(index)
            .map(|stage| stage.name.clone())
            .unwrap_or_default();
        if let Some(reference) = &mut stage.reference
            && let ReferenceAdapter::Folder(path) = reference.adapter()
            && is_yet_to_be_made(path)
        {
            *reference = Reference::default();
        }
        stages.push((name, stage));
    }
    Ok(stages)
}

/// Tokenises the data of every stage that trains, without looking at anything else.
///
/// # Errors
/// When a model, a tokenizer, a template or data is wrong.
pub(crate) fn fill_cache(recipe: &Recipe, global: &Global) -> Result<(), Failure> {
    for (_, stage) in stages(recipe)? {
        let base = Base::open(&stage)?;
        let tokenizer = base.tokenizer(&stage)?;
        let mut preparation = Preparation::new(global);
        // What is in the cache already is told when it is read from there.
        let mut observe = |progress: Progress| {
            if !progress.cached {
                preparation.observe(&progress);
            }
        };
        let vocabulary = base.config.vocab_size;
        let prepared = prepare(&stage, &tokenizer, vocabulary, &default_folder(), &mut observe);
        preparation.finish();
        prepared.map_err(Failure::usage)?;
    }
    Ok(())
}

fn ready_stage(stage: String, recipe: &Recipe, global: &Global) -> Result<Ready, Failure> {
    let base = Base::open(recipe)?;
    let tokenizer = base.tokenizer(recipe)?;
    let mut preparation = Preparation::new(global);
    let mut observe = |progress| preparation.observe(&progress);
    let data = prepare(
        recipe,
        &tokenizer,
        base.config.vocab_size,
        &default_folder(),
        &mut observe,
    );
    preparation.finish();
    let mut data = data.map_err(Failure::usage)?;
    let plan = DataPlan::of(recipe, base.config.num_hidden_layers, &data, (0, 1))?;
    data.report.notes.extend(plan.notes());
    data.report.notes.extend(reference::check(recipe, &base)?);
    check_shape(recipe, &base.config)?;
    Evaluator::new(recipe, &tokenizer, &base.config)?;
    let memory = memory::planner(recipe, &base, &data, &Alone)?.plan();
    let shares = plan.shares_of_the_run(&data.train);
    Ok(Ready {
        stage,
        tokenizer,
        data,
        steps: plan.total_steps,
        fill_rate: plan.fill_rate(),
        memory,
        plan: shares,
        mixed: recipe.data.mix.is_active(),
    })
}

impl Ready {
    /// Samples to train on, and held out.
    pub(crate) fn samples(&self) -> (u64, u64) {
        (
            self.data.train.len() as u64,
            self.data.heldout.as_ref().map_or(0, |heldout| heldout.len() as u64),
        )
    }

    /// A row for each language: samples, tokens, the share of them that is supervised; the share of the run that the recipe asks
    /// for and the one that the run reaches, in the mix's unit; how often the samples are seen.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new([
            "language",
            "samples",
            "tokens",
            "supervised",
            "asked",
            "reached",
            "epochs",
            "truncated",
            "dropped",
        ]);
        for (language, counts) in &self.data.report.by_language() {
            let supervised = counts.supervised_tokens as f64 / counts.tokens as f64;
            let mut row = vec![
                language.clone(),
                table::count(counts.samples),
                table::count(counts.tokens),
                table::percent((counts.tokens > 0).then_some(supervised)),
            ];
            row.extend(planned(self.plan.languages.get(language)));
            row.extend([table::count(counts.truncated), table::count(counts.dropped_rows())]);
            table.row(row);
        }
        table
    }

    /// A row for each source: shares and epochs as by language; none for a recipe that asks for no shares.
    pub(crate) fn source_table(&self) -> Option<Table> {
        let mut table = Table::new(["source", "asked", "reached", "epochs"]);
        for (source, plan) in &self.plan.sources {
            let mut row = vec![source.clone()];
            row.extend(planned(Some(plan)));
            table.row(row);
        }
        self.mixed.then_some(table)
    }

    /// What is right but may surprise.
    pub(crate) fn notes(&self) -> &[String] {
        &self.data.report.notes
    }

    /// What was left out and why, a line each.
    pub(crate) fn left_out(&self) -> Vec<String> {
        let report = &self.data.report;
        let dropped = report
            .dropped()
            .into_iter()
            .map(|((language, reason), rows)| format!("{language}: {} rows dropped: {reason}", table::count(rows)));
        let skipped = report.sources.iter().flat_map(|source| {
            let line = |(kind, skipped): (&String, &interlingua_data::report::SkippedRows)| {
                format!(
                    "{}: {} rows skipped: {kind}; the first: {}",
                    source.name,
                    table::count(skipped.rows),
                    skipped.first
                )
            };
            source.skipped.iter().map(line).collect::<Vec<_>>()
        });
        dropped.chain(skipped).collect()
    }

    /// Everything for `--json`.
    pub(crate) fn json(&self) -> Value {
        let (samples, held_out) = self.samples();
        json!({
            "stage": self.stage, "samples": samples, "held_out": held_out, "steps": self.steps, "fill_rate": self.fill_rate,
            "by_language": self.data.report.by_language(), "sources": self.data.report.sources, "notes": self.notes(),
            "shares": self.plan, "memory": self.memory,
        })
    }
}

/// Cells of what a run reads: share asked, share reached, epochs.
fn planned(planned: Option<&Planned>) -> [String; 3] {
    [
        table::percent(planned.and_then(|planned| planned.asked)),
        table::percent(planned.map(|planned| planned.reached)),
        planned.map_or_else(|| "-".to_owned(), |planned| format!("{:.2}", planned.epochs)),
    ]
}
