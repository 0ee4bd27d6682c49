//! Everything for standard error: log lines, plain lines, errors, and the panic hook. All of it steps around a progress bar.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{LazyLock, Mutex, OnceLock};

use anstream::AutoStream;
use indicatif::MultiProgress;
use interlingua_trainer::memory::out_of_memory_message;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::style;

/// The bars of this process. Lines are written above them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// What the last panic said, and where.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Which of several processes writes these lines.
static RANK: OnceLock<Rank> = OnceLock::new();

struct Rank {
    number: usize,
    /// Whether information is shown, and not warnings and errors alone.
    speaks: bool,
}

/// From now on lines say that they are those of a rank. Of ranks other than 0 only warnings and errors are shown, with `verbose` all.
pub(crate) fn of_rank(number: usize, verbose: bool) {
    // A process has one rank.
    let _ = RANK.set(Rank {
        number,
        speaks: number == 0 || verbose,
    });
}

/// Whether this process is the one that draws progress and prints results: rank 0, or the only one.
pub(crate) fn is_first() -> bool {
    RANK.get().is_none_or(|rank| rank.number == 0)
}

/// Whether this process is the only one.
pub(crate) fn is_alone() -> bool {
    RANK.get().is_none()
}

/// The lines of a text, each with the rank before it where there are several.
fn marked(text: &str) -> Cow<'_, str> {
    let Some(rank) = RANK.get() else {
        return Cow::Borrowed(text);
    };
    let lines = text.split_inclusive('\n');
    lines
        .map(|line| format!("[rank {}] {line}", rank.number))
        .collect::<String>()
        .into()
}

/// The place where progress bars are drawn.
pub(crate) fn bars() -> &'static MultiProgress {
    &BARS
}

/// Starts logging: `quiet` shows warnings and errors alone, each `-v` one level more; `RUST_LOG` decides when it is set.
pub(crate) fn start(quiet: bool, verbose: u8) {
    let level = match (quiet, verbose) {
        (true, _) => "warn",
        (false, 0) => {
            "interlingua=info,interlingua_recipes=info,interlingua_data=info,interlingua_checkpoints=info,interlingua_trainer=info,warn"
        }
        (false, 1) => {
            "interlingua=debug,interlingua_recipes=debug,interlingua_data=debug,interlingua_checkpoints=debug,interlingua_trainer=debug,info"
        }
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colour =
        io::stderr().is_terminal() && anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Lines)
        .with_ansi(colour)
        .event_format(Plain { targets: verbose > 0 });
    // A second subscriber in one process (tests) keeps the first.
    let _ = format.try_init();
}

/// Writes a line to standard error.
pub(crate) fn say(line: &str) {
    let mut written = AutoStream::new(Vec::new(), AutoStream::choice(&io::stderr()));
    // Memory takes everything. Standard error may be closed; there is nowhere left to say so. One call writes the whole line, so that
    // lines of several processes do not run into each other.
    let _ = writeln!(written, "{}", marked(line));
    BARS.suspend(|| {
        let _ = io::stderr().write_all(&written.into_inner());
    });
}

/// Writes an error to standard error.
pub(crate) fn error(message: &str) {
    say(&format!("{} {message}", style::paint(style::ERROR, "error:")));
}

/// Keeps panics from printing: [`panic_message`] turns them into a sentence. With `-v` the place is shown too.
pub(crate) fn catch_panics(verbose: bool) {
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("no message").replace('\n', " ");
        let place = match info.location() {
            Some(location) if verbose => format!(" ({}, line {})", location.file(), location.line()),
            _ => String::new(),
        };
        if let Ok(mut last) = PANIC.lock() {
            last.get_or_insert(format!("{text}{place}"));
        }
        if verbose {
            say(&std::backtrace::Backtrace::force_capture().to_string());
        }
    }));
}

/// The sentence for a panic that reached `main`.
pub(crate) fn panic_message() -> String {
    let what = PANIC
        .lock()
        .ok()
        .and_then(|mut last| last.take())
        .unwrap_or_else(|| "no message".to_owned());
    if let Some(message) = out_of_memory_message(&what) {
        return message;
    }
    format!(
        "Interlingua has met a mistake of its own: {what}. Checkpoints that were written are whole; run again to go on. \
         Please report it with the recipe, the output of `interlingua doctor`, and what `-v` adds to this message."
    )
}

/// A line is its message. What is no plain information says so first.
struct Plain {
    /// Whether lines say which module they come from.
    targets: bool,
}

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let is_information = *event.metadata().level() > Level::WARN;
        if is_information && RANK.get().is_some_and(|rank| !rank.speaks) {
            return Ok(());
        }
        let (word, colour) = match *event.metadata().level() {
            Level::ERROR => ("error: ", style::ERROR),
            Level::WARN => ("warning: ", style::WARNING),
            Level::INFO => ("", style::DIM),
            Level::DEBUG => ("debug: ", style::DIM),
            Level::TRACE => ("trace: ", style::DIM),
        };
        let word = if writer.has_ansi_escapes() {
            style::paint(colour, word)
        } else {
            word.to_owned()
        };
        write!(writer, "{word}")?;
        if self.targets {
            write!(writer, "{}: ", event.metadata().target())?;
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Log lines, written above the progress bars.
#[derive(Clone, Copy)]
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        BARS.suspend(|| io::stderr().write_all(marked(&text).as_bytes()))
            .map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}
