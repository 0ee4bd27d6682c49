//! Progress bars, on a terminal only.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use interlingua_data::prepare::Progress;

use crate::cli::Global;
use crate::{logging, table};

/// Whether bars are drawn. Of several processes one draws.
pub(crate) fn wanted(global: &Global) -> bool {
    !global.quiet && logging::is_first() && io::stderr().is_terminal()
}

/// A bar over `length` units. Without a terminal it is there and draws nothing.
///
/// `template` is indicatif's; one that it cannot read leaves its own.
pub(crate) fn bar(global: &Global, length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    if wanted(global) { logging::bars().add(bar) } else { bar }
}

/// Follows tokenisation: a line that changes on a terminal, and one line for each source when it is done.
pub(crate) struct Preparation<'a> {
    global: &'a Global,
    bar: Option<ProgressBar>,
}

impl<'a> Preparation<'a> {
    /// Nothing is drawn before the first source.
    pub(crate) fn new(global: &'a Global) -> Self {
        Self { global, bar: None }
    }

    /// Takes in how far tokenisation is.
    pub(crate) fn observe(&mut self, progress: &Progress) {
        let Progress {
            source,
            number,
            count,
            rows,
            tokens,
            cached,
            done,
        } = progress;
        let text = format!(
            "source {number}/{count} {source}: {} rows, {} tokens",
            table::count(*rows),
            table::count(*tokens)
        );
        if *done {
            self.finish();
            tracing::info!("{text}{}", if *cached { ", from the cache" } else { "" });
        } else {
            let bar = self
                .bar
                .get_or_insert_with(|| bar(self.global, 0, "tokenising {msg}  {elapsed}"));
            bar.set_message(text);
            bar.tick();
        }
    }

    /// Takes the line away.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            logging::bars().remove(&bar);
        }
    }
}
