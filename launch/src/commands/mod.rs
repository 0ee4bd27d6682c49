//! The commands, one file each: its arguments, and `run`.

pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod launch;
pub(crate) mod merge;
pub(crate) mod plan;
pub(crate) mod prepare;
pub(crate) mod recipes;
pub(crate) mod report;
pub(crate) mod schema;
pub(crate) mod sweep;
pub(crate) mod tokenizer;
pub(crate) mod train;
pub(crate) mod validate;
pub(crate) mod verify;

use crate::cli::{Cli, Command};
use crate::distributed::alone;
use crate::exit::CommandResult;

/// Runs the command that was asked for.
///
/// # Errors
/// What the command could not do, with its exit code.
pub(crate) fn run(cli: &Cli) -> CommandResult {
    let global = &cli.global;
    match &cli.command {
        Command::Train(arguments) => train::run(arguments, global),
        Command::Launch(arguments) => launch::run(arguments, global),
        Command::Validate(arguments) => validate::run(arguments, global),
        Command::Plan(arguments) => plan::run(arguments, global),
        Command::Prepare(arguments) => alone("prepare", || prepare::run(arguments, global)),
        Command::Sweep(arguments) => alone("sweep", || sweep::run(arguments, global)),
        Command::Tokenizer(tokenizer::Command::Train(arguments)) => tokenizer::train(arguments, global),
        Command::Eval(arguments) => alone("eval", || eval::run(arguments, global)),
        Command::Compare(arguments) => compare::run(arguments, global),
        Command::Generate(arguments) => alone("generate", || generate::run(arguments, global)),
        Command::Export(arguments) => alone("export", || export::run(arguments, global)),
        Command::Merge(arguments) => alone("merge", || merge::run(arguments, global)),
        Command::Verify(arguments) => verify::run(arguments, global),
        Command::Inspect(arguments) => inspect::run(arguments, global),
        Command::Report(arguments) => report::run(arguments, global),
        Command::Recipes(arguments) => recipes::run(arguments, global),
        Command::Init(arguments) => init::run(arguments, global),
        Command::Schema(arguments) => schema::run(arguments, global),
        Command::Doctor(arguments) => doctor::run(arguments, global),
        Command::Completions(arguments) => completions::run(arguments, global),
    }
}
