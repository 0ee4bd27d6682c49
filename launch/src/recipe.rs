//! Reading the recipe that a command names, with `--set` laid over it.

use std::path::{Path, PathBuf};

use clap::Args;
use interlingua_recipes::Recipe;

use crate::cli::Global;
use crate::exit::Failure;

/// The recipe of a command.
#[derive(Args)]
pub(crate) struct RecipeArgument {
    /// The recipe, a TOML file
    #[arg(value_name = "RECIPE")]
    pub(crate) recipe: PathBuf,
}

/// Reads a recipe.
///
/// # Errors
/// When it cannot be read, or a key or value in it or in `--set` is wrong.
pub(crate) fn load(path: &Path, global: &Global) -> Result<Recipe, Failure> {
    Recipe::load(path, &global.set).map_err(Failure::usage)
}
