//! Standard output: results, and nothing else.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::exit::Failure;

/// Writes text and a line end, with its colours where standard output is a terminal.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    writeln!(stdout, "{}", text.as_ref())?;
    stdout.flush()?;
    Ok(())
}

/// Writes a value as indented JSON.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    line(text)
}

/// Whether a person looks at standard output in colour.
pub(crate) fn is_colourful() -> bool {
    io::stdout().is_terminal() && anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}
