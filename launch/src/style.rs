//! The few colours in use. They are written always and stripped by `anstream` where the reader is not a terminal.

use anstyle::{AnsiColor, Style};

/// The word `error`.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
/// Passed, present, good.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// Missing, or worth a look.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// Titles and table headers.
pub(crate) const TITLE: Style = Style::new().bold();
/// What matters least.
pub(crate) const DIM: Style = Style::new().dimmed();
/// Tokens that the loss reads.
pub(crate) const SUPERVISED: Style = AnsiColor::Green.on_default();

/// `text` in a style.
pub(crate) fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}
