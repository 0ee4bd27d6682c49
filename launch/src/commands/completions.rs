//! `interlingua completions SHELL`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::{Cli, Global};
use crate::exit::{CommandResult, Exit};
use crate::output;

/// Prints a completion script for a shell.
#[derive(Args)]
#[command(
    after_help = "Example: interlingua completions bash > ~/.local/share/bash-completion/completions/interlingua"
)]
pub(crate) struct Arguments {
    /// The shell
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "interlingua", &mut script);
    let script = String::from_utf8_lossy(&script);
    if global.json {
        output::json(&serde_json::json!({ "shell": arguments.shell.to_string(), "script": script }))?;
    } else {
        output::line(script.trim_end())?;
    }
    Ok(Exit::Done)
}
