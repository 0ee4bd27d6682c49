//! `interlingua validate RECIPE`.

use std::collections::HashMap;

use clap::Args;
use interlingua_data::batch::UNSUPERVISED;
use interlingua_data::dataset::Dataset;
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::Merge;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::exit::{CommandResult, Exit, Failure};
use crate::preparation::{self, Ready};
use crate::recipe::{self, RecipeArgument};
use crate::{output, plan, style, table};

/// The longest part of a sample that is shown, in tokens.
const LONGEST: usize = 400;

/// Checks a recipe as far as that goes without training: keys, files, model, chat template, masks. Shows a few samples with the
/// supervised tokens marked, in colour on a terminal and in square brackets elsewhere, and a table per language.
#[derive(Args)]
#[command(after_help = "Example: interlingua validate recipes/quickstart.toml --samples 5")]
pub(crate) struct Arguments {
    #[command(flatten)]
    recipe: RecipeArgument,
    /// How many samples to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    samples: usize,
}

/// A sample as the model sees it.
#[derive(Serialize)]
struct Preview {
    language: String,
    /// Source, file, line and id.
    sample: String,
    segments: Vec<Segment>,
    /// Tokens that are not shown.
    cut: usize,
}

/// Neighbouring tokens of which all carry loss, or none.
#[derive(Serialize)]
struct Segment {
    text: String,
    supervised: bool,
}

/// Checks and prints.
///
/// # Errors
/// When anything is wrong; nothing but the cache of tokenised data is written.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let recipe = recipe::load(&arguments.recipe.recipe, global)?;
    let stages = preparation::ready(&recipe, global)?;
    let previews = stages
        .iter()
        .map(|ready| previews(ready, arguments.samples))
        .collect::<Result<Vec<_>, Failure>>()?;
    let merges: Vec<(&str, &Merge)> = recipe
        .stage
        .iter()
        .filter_map(|stage| Some((stage.name.as_str(), stage.merge.as_ref()?)))
        .collect();
    if global.json {
        let merges: Vec<Value> = merges
            .iter()
            .map(|(name, merge)| json!({ "stage": name, "merge": merge }))
            .collect();
        let stages = stages.iter().zip(&previews).map(|(ready, previews)| {
            let mut stage = ready.json();
            stage["previews"] = json!(previews);
            stage
        });
        let stages: Vec<Value> = stages.collect();
        output::json(&json!({ "valid": true, "recipe": recipe.file, "stages": stages, "merges": merges }))?;
        return Ok(Exit::Done);
    }
    for (ready, previews) in stages.iter().zip(&previews) {
        print(ready, previews)?;
    }
    for (name, merge) in &merges {
        let title = style::paint(style::TITLE, &format!("\nstage {name}"));
        output::line(format!(
            "{title}  merges {} ({})",
            merge.of.join(" and "),
            merge.method.name()
        ))?;
    }
    output::line(format!("\n{} is valid.", recipe.file.display()))?;
    Ok(Exit::Done)
}

fn print(ready: &Ready, previews: &[Preview]) -> Result<(), Failure> {
    if !ready.stage.is_empty() {
        output::line(style::paint(style::TITLE, &format!("\nstage {}", ready.stage)))?;
    }
    for preview in previews {
        output::line(format!(
            "\n{} {}",
            style::paint(style::TITLE, &preview.language),
            style::paint(style::DIM, &preview.sample)
        ))?;
        output::line(render(preview, output::is_colourful()))?;
    }
    output::line(format!("\n{}\n", ready.table().render()))?;
    if let Some(table) = ready.source_table() {
        output::line(format!("{}\n", table.render()))?;
    }
    for line in ready.notes().iter().cloned().chain(ready.left_out()) {
        output::line(line)?;
    }
    let (samples, held_out) = ready.samples();
    output::line(plan::line(&ready.memory))?;
    output::line(format!(
        "{} samples to train on, {} held out; {} steps; rows {} full",
        table::count(samples),
        table::count(held_out),
        table::count(ready.steps),
        table::percent(Some(ready.fill_rate))
    ))
}

/// The first samples of each language, languages taking turns.
fn previews(ready: &Ready, count: usize) -> Result<Vec<Preview>, Failure> {
    let data = &ready.data.train;
    let mut turns = HashMap::<u16, usize>::new();
    let mut samples: Vec<(usize, usize)> = (0..data.len())
        .map(|sample| {
            let turn = turns.entry(data.language(sample)).or_default();
            *turn += 1;
            (*turn, sample)
        })
        .filter(|(turn, _)| *turn <= count)
        .collect();
    samples.sort_unstable();
    samples
        .into_iter()
        .take(count)
        .map(|(_, sample)| preview(data, sample, &ready.tokenizer))
        .collect()
}

fn preview(data: &Dataset, sample: usize, tokenizer: &Tokenizer) -> Result<Preview, Failure> {
    let (input_ids, labels) = data.tokens(sample);
    let shown = input_ids.len().min(LONGEST);
    // A label counts only if a token precedes it.
    let supervised = |position: usize| position > 0 && labels[position] != UNSUPERVISED;
    let mut segments = Vec::new();
    let mut start = 0;
    for position in 1..=shown {
        if position == shown || supervised(position) != supervised(start) {
            let ids = &input_ids[start..position];
            let mut text = tokenizer.decode(ids, false).map_err(Failure::usage)?;
            if text.is_empty() {
                // Data that came as tokens, for a model folder without a tokenizer.
                text = ids.iter().map(|id| format!("{id} ")).collect();
            }
            segments.push(Segment {
                text,
                supervised: supervised(start),
            });
            start = position;
        }
    }
    let language = data.languages()[usize::from(data.language(sample))].clone();
    Ok(Preview {
        language,
        sample: data.describe(sample),
        segments,
        cut: input_ids.len() - shown,
    })
}

fn render(preview: &Preview, colour: bool) -> String {
    let mark = |segment: &Segment| match (segment.supervised, colour) {
        (false, _) => segment.text.clone(),
        (true, true) => style::paint(style::SUPERVISED, &segment.text),
        (true, false) => format!("[{}]", segment.text),
    };
    let text: String = preview.segments.iter().map(mark).collect();
    let rest = if preview.cut == 0 {
        String::new()
    } else {
        format!(" … {} tokens more", preview.cut)
    };
    format!("{}{rest}", text.trim_end_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supervised_tokens_stand_in_brackets_or_in_colour() {
        let segment = |text: &str, supervised| Segment {
            text: text.to_owned(),
            supervised,
        };
        let segments = vec![
            segment("Q: a\n", false),
            segment("b<|end|>", true),
            segment("\n", false),
        ];
        let preview = Preview {
            language: "en".to_owned(),
            sample: String::new(),
            segments,
            cut: 2,
        };
        assert_eq!(render(&preview, false), "Q: a\n[b<|end|>] … 2 tokens more");
        assert!(render(&preview, true).contains("\u{1b}["));
    }
}
