//! `interlingua recipes`.

use clap::Args;
use interlingua_recipes::shipped;
use serde_json::json;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit};
use crate::{output, style, table};

/// Lists the recipes that are in this binary. `interlingua init NAME` writes one out.
#[derive(Args)]
#[command(after_help = "Example: interlingua recipes")]
pub(crate) struct Arguments {}

/// Prints the list.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn run(_: &Arguments, global: &Global) -> CommandResult {
    let recipes = shipped::list();
    if global.json {
        let rows = recipes.iter().map(|recipe| {
            let files: Vec<&str> = recipe.files.iter().map(|(path, _)| *path).collect();
            json!({ "name": recipe.name, "summary": recipe.summary, "files": files, "bytes": size(recipe) })
        });
        output::json(&rows.collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    }
    let width = recipes.iter().map(|recipe| recipe.name.len()).max().unwrap_or_default();
    for recipe in recipes {
        let name = style::paint(style::TITLE, &format!("{:<width$}", recipe.name));
        let size = style::paint(style::DIM, &format!("({})", table::bytes(size(recipe))));
        output::line(format!("{name}  {} {size}", recipe.summary))?;
    }
    Ok(Exit::Done)
}

/// Size in bytes of what `init` writes.
fn size(recipe: &shipped::Shipped) -> u64 {
    recipe.files.iter().map(|(_, content)| content.len() as u64).sum()
}
