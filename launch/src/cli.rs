//! What there is to type. The help texts are the reference of the command line.

use std::ffi::OsString;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::commands::{
    compare, completions, doctor, eval, export, generate, init, inspect, launch, merge, plan, prepare, recipes, report,
    schema, sweep, tokenizer, train, validate, verify,
};

/// Fine-tunes language models in many languages from one TOML recipe, and hands back standard safetensors folders.
#[derive(Parser)]
#[command(name = "interlingua", version, disable_help_subcommand = true, max_term_width = 110)]
#[command(
    after_help = "Example: interlingua init quickstart && interlingua train recipes/quickstart.toml\n\n\
    Exit codes: 0 done; 1 failed while running; 2 wrong usage, recipe, data or model (nothing was started);\n\
    75 stopped by a signal with everything saved, run again to go on; 130 interrupted twice."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// Override one key of the recipe: a TOML value or a bare string, as in `--set train.steps=50`
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub(crate) set: Vec<String>,
    /// Write the result as JSON to standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Show warnings and errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Show more; twice: everything (RUST_LOG decides more finely)
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,
}

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Train: the main job. Goes on from the last checkpoint in the output folder by itself
    Train(train::Arguments),
    /// Train with several processes: one for each GPU, or several on a CPU through mpirun
    Launch(launch::Arguments),
    /// Check a recipe without training: keys, files, template, masks; with a table per language
    Validate(validate::Arguments),
    /// Predict memory by part and the time of a step; with --budget, say what fits
    Plan(plan::Arguments),
    /// Tokenise a recipe's data into the cache
    Prepare(prepare::Arguments),
    /// Train once per point of a grid, with one table at the end
    Sweep(sweep::Arguments),
    /// Make a tokenizer
    #[command(subcommand)]
    Tokenizer(tokenizer::Command),
    /// Measure a recipe's tasks on its base or with an adapter; and what quantising costs each language
    Eval(eval::Arguments),
    /// Compare the answers of two models item by item: differences, intervals, p-values; texts side by side for judges
    Compare(compare::Arguments),
    /// Write text with a model, and an adapter on it
    Generate(generate::Arguments),
    /// Merge an adapter into its model and write a Hugging Face folder
    Export(export::Arguments),
    /// Merge several models, or several adapters, into one
    Merge(merge::Arguments),
    /// Compare a model's numbers with a reference file
    Verify(verify::Arguments),
    /// Say what a model folder, adapter, checkpoint, data file, recipe or run folder is
    Inspect(inspect::Arguments),
    /// Draw what a run wrote as one HTML page: losses, scores, shares, rewards, layers
    Report(report::Arguments),
    /// List the recipes that are in this binary
    Recipes(recipes::Arguments),
    /// Write one of those recipes out, with the files it needs
    Init(init::Arguments),
    /// Print the JSON Schema of the recipe
    Schema(schema::Arguments),
    /// Say what this machine has and lacks for each device, and what to do
    Doctor(doctor::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

/// The command line with each `--set` that stands before the command moved behind it: of a global option that is given on
/// both sides, clap keeps one side only.
pub(crate) fn arguments(typed: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut typed = typed.into_iter();
    let (mut before, mut moved): (Vec<_>, Vec<_>) = (typed.next().into_iter().collect(), Vec::new());
    while let Some(argument) = typed.next() {
        let text = argument.to_string_lossy();
        if text == "--set" {
            moved.push(argument);
            moved.extend(typed.next());
        } else if text.starts_with("--set=") {
            moved.push(argument);
        } else {
            let is_command = !text.starts_with('-');
            before.push(argument);
            if is_command {
                break;
            }
        }
    }
    before.extend(moved);
    before.extend(typed);
    before
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_override_is_lost() {
        let typed = [
            "interlingua",
            "--set",
            "a=1",
            "-v",
            "--set=b=2",
            "schema",
            "--set",
            "c=3",
        ];
        let cli = Cli::parse_from(arguments(typed.map(OsString::from)));
        assert_eq!(cli.global.set, ["a=1", "b=2", "c=3"]);
        assert_eq!(cli.global.verbose, 1);
        let cut = arguments(["interlingua", "--set"].map(OsString::from));
        assert!(Cli::try_parse_from(cut).is_err());
    }

    #[test]
    fn every_command_shows_an_example() {
        fn check(command: &clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands().for_each(check);
            } else {
                let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(text.contains("Example"), "{} has no example", command.get_name());
            }
        }
        check(&Cli::command());
    }
}
