//! `interlingua report RUN_DIR`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit};
use crate::{output, report};

/// Draws what a run wrote as one HTML page that needs nothing else: losses by language, evaluations before and after, rewards,
/// shares, alignment by layer. A run writes it at its end by itself; of a run that goes on, it shows what is there.
#[derive(Args)]
#[command(after_help = "Example: interlingua report runs/quickstart")]
pub(crate) struct Arguments {
    /// The output folder of a run, of a pipeline, or the folder of a sweep's runs
    #[arg(value_name = "RUN_DIR")]
    folder: PathBuf,
    /// Write the page to this file in place of RUN_DIR/report.html
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Draws, and prints where the page is.
///
/// # Errors
/// With exit code 2 when there is nothing to draw or a row cannot be read, and nothing is written.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let path = report::write(&arguments.folder, arguments.out.as_deref())?;
    if global.json {
        output::json(&json!({ "report": path }))?;
    } else {
        output::line(path.display().to_string())?;
    }
    Ok(Exit::Done)
}
