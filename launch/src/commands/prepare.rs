//! `interlingua prepare RECIPE`.

use clap::Args;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::exit::{CommandResult, Exit};
use crate::preparation::{self, Ready};
use crate::recipe::{self, RecipeArgument};
use crate::{output, table};

/// Tokenises a recipe's data into the cache, so that training starts at once.
#[derive(Args)]
#[command(after_help = "Example: interlingua prepare recipes/quickstart.toml\n\n\
    The cache is $INTERLINGUA_CACHE, else $XDG_CACHE_HOME/interlingua, else ~/.cache/interlingua.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    recipe: RecipeArgument,
}

/// Tokenises.
///
/// # Errors
/// When the recipe, the model's tokenizer or the data is wrong, or the cache cannot be written.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let recipe = recipe::load(&arguments.recipe.recipe, global)?;
    let stages = preparation::ready(&recipe, global)?;
    let cache = interlingua_data::cache::default_folder();
    if global.json {
        let stages: Vec<Value> = stages.iter().map(Ready::json).collect();
        output::json(&json!({ "cache": cache, "stages": stages }))?;
        return Ok(Exit::Done);
    }
    for ready in &stages {
        let tokens: u64 = ready.data.report.sources.iter().map(|source| source.tokens()).sum();
        let (samples, held_out) = ready.samples();
        let counts = [samples, held_out, tokens].map(table::count);
        let stage = if ready.stage.is_empty() {
            String::new()
        } else {
            format!("{}: ", ready.stage)
        };
        output::line(format!(
            "{stage}{} samples to train on, {} held out, {} tokens",
            counts[0], counts[1], counts[2]
        ))?;
    }
    output::line(format!("in the cache {}", cache.display()))?;
    Ok(Exit::Done)
}
