//! `interlingua schema`.

use clap::Args;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit};
use crate::output;

/// Prints the JSON Schema of the recipe, for editors and checkers.
#[derive(Args)]
#[command(after_help = "Example: interlingua schema > recipe.schema.json\n\n\
    An editor with a TOML language server checks a recipe whose first line is\n\
    #:schema ./recipe.schema.json")]
pub(crate) struct Arguments {}

/// Prints the schema, which is JSON with and without `--json`.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn run(_: &Arguments, _: &Global) -> CommandResult {
    output::json(&interlingua_recipes::json_schema())?;
    Ok(Exit::Done)
}
