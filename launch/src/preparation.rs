//! What `validate` and `prepare` share: a recipe's model opened, its data tokenised, the length of the run known.

use std::path::Path;

use interlingua_data::cache::default_folder;
use interlingua_data::order::{Order, OrderSettings};
use interlingua_data::prepare::{Prepared, prepare};
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::{Length, Recipe};
use interlingua_trainer::train::evaluate::Evaluator;
use interlingua_trainer::train::setup::{Base, check_adapters};
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
}

/// Opens the model and tokenises the data of every stage.
///
/// # Errors
/// When a model, a tokenizer, a template or data is wrong.
pub(crate) fn ready(recipe: &Recipe, global: &Global) -> Result<Vec<Ready>, Failure> {
    let mut stages = Vec::new();
    let mut model = recipe.model.path.clone();
    for (index, mut stage) in recipe.stages().map_err(Failure::usage)?.into_iter().enumerate() {
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
        stages.push(ready_stage(name, &stage, global)?);
    }
    Ok(stages)
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
    let data = data.map_err(Failure::usage)?;
    let order = Order::new(&data.train, OrderSettings::from_recipe(recipe));
    if !recipe.adapter.is_closed_form() {
        order.check(1).map_err(Failure::usage)?;
    }
    let steps = match recipe.train.length() {
        Length::Steps(steps) => steps,
        Length::Tokens(tokens) => order.steps_for_tokens(tokens, 1),
        Length::Epochs(epochs) => order.steps_for_epochs(epochs, 1),
    };
    let fill_rate = order.fill_rate();
    check_adapters(recipe, &base.config)?;
    Evaluator::new(recipe, &tokenizer, &base.config)?;
    Ok(Ready {
        stage,
        tokenizer,
        data,
        steps,
        fill_rate,
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

    /// A row for each language: samples, tokens, the share of them that is supervised, the language's share of all tokens.
    pub(crate) fn table(&self) -> Table {
        let languages = self.data.report.by_language();
        let all: u64 = languages.values().map(|counts| counts.tokens).sum();
        let share = |part: u64, whole: u64| table::percent((whole > 0).then(|| part as f64 / whole as f64));
        let mut table = Table::new([
            "language",
            "samples",
            "tokens",
            "supervised",
            "share",
            "truncated",
            "dropped",
        ]);
        for (language, counts) in &languages {
            table.row([
                language.clone(),
                table::count(counts.samples),
                table::count(counts.tokens),
                share(counts.supervised_tokens, counts.tokens),
                share(counts.tokens, all),
                table::count(counts.truncated),
                table::count(counts.dropped_rows()),
            ]);
        }
        table
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
            "by_language": self.data.report.by_language(), "sources": self.data.report.sources,
        })
    }
}
