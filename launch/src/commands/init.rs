//! `interlingua init NAME`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use interlingua_recipes::shipped;
use serde_json::json;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output;

/// Writes one of the recipes in this binary out, with the small files it needs. Files that are there and differ are kept.
#[derive(Args)]
#[command(after_help = "Example: interlingua init quickstart && interlingua train recipes/quickstart.toml")]
pub(crate) struct Arguments {
    /// The recipe's name, as `interlingua recipes` lists it
    name: String,
    /// The folder to write into
    #[arg(long, value_name = "FOLDER", default_value = "recipes")]
    to: PathBuf,
    /// Overwrite files that are there
    #[arg(long)]
    force: bool,
}

/// Writes the files.
///
/// # Errors
/// When there is no such recipe, a file would be overwritten, or the folder cannot be written.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let Some(recipe) = shipped::find(&arguments.name) else {
        let names: Vec<&str> = shipped::list().iter().map(|recipe| recipe.name).collect();
        return Err(Failure::usage(format!(
            "There is no recipe named {} in this binary. There are: {}.",
            arguments.name,
            names.join(", ")
        )));
    };
    let files: Vec<(PathBuf, &[u8])> = recipe
        .files
        .iter()
        .map(|(name, content)| (arguments.to.join(name), *content))
        .collect();
    // Nothing is written before everything may be. Recipes share files, so the same content is no conflict.
    let kept: Vec<String> = files
        .iter()
        .filter(|(path, content)| !arguments.force && path.exists() && fs::read(path).ok().as_deref() != Some(*content))
        .map(|(path, _)| path.display().to_string())
        .collect();
    if !kept.is_empty() {
        return Err(Failure::usage(format!(
            "{} would be overwritten. Choose another folder with --to, or add --force.",
            kept.join(", ")
        )));
    }
    for (path, content) in &files {
        write(path, content)?;
    }
    let names: Vec<&Path> = files.iter().map(|(path, _)| path.as_path()).collect();
    if global.json {
        output::json(&json!({ "recipe": names.first(), "files": names }))?;
        return Ok(Exit::Done);
    }
    for name in &names {
        output::line(format!("wrote {}", name.display()))?;
    }
    if let Some(recipe) = names.first() {
        output::line(format!("\nnext: interlingua train {}", recipe.display()))?;
    }
    Ok(Exit::Done)
}

fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, content))
        .map_err(|error| {
            Failure::usage(format!(
                "{} cannot be written: {error}. Choose another folder with --to.",
                path.display()
            ))
        })
}
