//! The report: what a run wrote, drawn on one HTML page that needs nothing else. `run.rs` reads, each file in `sections/` makes
//! one section of it, `lines.rs` and `dots.rs` draw, `page.rs` and `page.html` put everything together.

mod axis;
mod chart;
mod colours;
mod dots;
mod lines;
mod numbers;
mod page;
mod run;
mod sections;
mod smoothing;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use interlingua_checkpoints::atomic::write_atomically;

use crate::exit::Failure;
use colours::Languages;
use page::Page;

/// The name of the page in an output folder.
pub(crate) const FILE: &str = "report.html";

/// Draws what is in an output folder, or in those of a pipeline's stages below it, and writes the page to `out`, or into the
/// folder. Gives the path of the page.
///
/// # Errors
/// With exit code 2 when there is no run, nothing was measured yet, or a row cannot be read; with 1 when the page cannot be
/// written.
pub(crate) fn write(folder: &Path, out: Option<&Path>) -> Result<PathBuf, Failure> {
    let html = page(folder)?;
    let path = out.map_or_else(|| folder.join(FILE), Path::to_path_buf);
    write_atomically(&path, html.as_bytes()).map_err(Failure::running)?;
    Ok(path)
}

/// The page as text.
fn page(folder: &Path) -> Result<String, Failure> {
    let runs = run::read(folder)?;
    let parts = runs.iter().map(|run| sections::of(run, &Languages::of(run)));
    let page = Page {
        title: title(folder),
        parts: parts.collect::<Result<_, Failure>>()?,
    };
    page.render()
}

/// The name of the folder, also where it was given as `.`.
fn title(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    name.to_string_lossy().into_owned()
}
