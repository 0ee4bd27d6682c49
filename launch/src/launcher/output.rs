//! The merged output of the ranks: whole lines, each error once, and of what mpirun adds nothing that has been said better.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::exit::Exit;
use crate::logging;

/// How long the output of processes that have ended may still take. One that left a process of its own behind never closes it.
const REST: Duration = Duration::from_secs(2);

/// What a rank's line begins with; its number and a bracket follow.
const RANK: &str = "[rank ";

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Writer {
    /// A rank, whose lines all count.
    Rank(usize),
    /// mpirun, which passes the lines of ranks on and adds its own.
    Mpirun,
}

/// Takes the lines of all, from threads that read them.
pub(crate) struct Output {
    merged: Arc<Mutex<Merged>>,
    done: (Sender<()>, Receiver<()>),
    readers: std::cell::Cell<usize>,
}

#[derive(Default)]
struct Merged {
    verbose: bool,
    /// Errors that were shown, without the ranks that they were first said by or happened on.
    errors: HashSet<String>,
    /// Lines of no rank, not shown yet.
    held_back: Vec<String>,
    /// The rank that a signal ended, as mpirun tells it.
    reason: Option<String>,
}

impl Output {
    /// With `verbose` everything is shown.
    pub(super) fn new(verbose: bool) -> Self {
        Self {
            merged: Arc::new(Mutex::new(Merged {
                verbose,
                ..Merged::default()
            })),
            done: channel(),
            readers: std::cell::Cell::new(0),
        }
    }

    /// Reads lines from now on, in a thread of its own.
    pub(super) fn read(&self, from: impl Read + Send + 'static, writer: Writer) {
        let (merged, done) = (self.merged.clone(), self.done.0.clone());
        self.readers.set(self.readers.get() + 1);
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line);
                let shown = lock(&merged).line(text.trim_end_matches(['\n', '\r']), writer);
                if let Some(shown) = shown {
                    logging::say(&shown);
                }
                line.clear();
            }
            // The other side is gone when nobody waits any more.
            let _ = done.send(());
        });
    }

    /// Waits until all that was written has been read.
    pub(super) fn finish(&self) {
        for _ in 0..self.readers.get() {
            if self.done.1.recv_timeout(REST).is_err() {
                return;
            }
        }
    }

    /// What mpirun said of a rank that a signal ended.
    pub(super) fn reason(&self) -> Option<String> {
        lock(&self.merged).reason.clone()
    }

    /// Shows what was held back, where the run failed and no rank has said why.
    pub(super) fn show_held_back(&self, exit: Exit) {
        let mut merged = lock(&self.merged);
        let held_back = std::mem::take(&mut merged.held_back);
        if matches!(exit, Exit::Failed | Exit::Usage) && merged.errors.is_empty() {
            held_back.iter().for_each(|line| logging::say(line));
        }
    }
}

fn lock(merged: &Mutex<Merged>) -> MutexGuard<'_, Merged> {
    merged.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Merged {
    /// Takes a line in; returns what is shown of it now.
    fn line(&mut self, line: &str, writer: Writer) -> Option<String> {
        let of_rank = line.strip_prefix(RANK).and_then(|rest| rest.split_once("] "));
        let (line, text) = match (of_rank, writer) {
            (Some((_, text)), _) => (line.to_owned(), text.to_owned()),
            (None, Writer::Rank(rank)) => (format!("{RANK}{rank}] {line}"), line.to_owned()),
            (None, Writer::Mpirun) => {
                if let Some(reason) = signal_of(line) {
                    self.reason.get_or_insert(reason);
                }
                if self.verbose {
                    return Some(line.to_owned());
                }
                self.held_back.push(line.to_owned());
                return None;
            }
        };
        if let Some(error) = text.strip_prefix("error: ")
            && !self.errors.insert(essence(error).to_owned())
            && !self.verbose
        {
            return None;
        }
        Some(line)
    }
}

/// An error without the rank that it happened on, "Rank 1 on HOST: " before it. When ranks miss each other, the first word counts.
fn essence(error: &str) -> &str {
    if error.starts_with("Rank ") && error.contains(" is lost: ") {
        return "lost";
    }
    let after_rank = error.strip_prefix("Rank ").and_then(|rest| {
        let rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let (host, message) = rest.strip_prefix(" on ")?.split_once(": ")?;
        (!host.contains(' ')).then_some(message)
    });
    after_rank.unwrap_or(error)
}

/// What mpirun says of a process that a signal ended, as "Rank 1 on HOST was ended by signal 9 (Killed)".
fn signal_of(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("process rank ")?;
    let (rank, rest) = rest.split_once(' ')?;
    let (_, rest) = rest.split_once(" on node ")?;
    let (host, rest) = rest.split_once(' ')?;
    let signal = rest.strip_prefix("exited on signal ")?.trim_end_matches('.');
    Some(format!("Rank {rank} on {host} was ended by signal {signal}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mpirun_adds_is_held_back_and_read() {
        let mut merged = Merged::default();
        let mut line = |text: &str| merged.line(text, Writer::Mpirun);
        assert_eq!(line("[rank 0] step 1").as_deref(), Some("[rank 0] step 1"));
        assert_eq!(line("-----"), None);
        let told = "mpirun noticed that process rank 1 with PID 0 on node gpu07 exited on signal 9 (Killed).";
        assert_eq!(line(told), None);
        assert_eq!(
            merged.reason.as_deref(),
            Some("Rank 1 on gpu07 was ended by signal 9 (Killed)")
        );
        assert_eq!(merged.held_back, ["-----", told]);
    }

    #[test]
    fn an_error_of_all_ranks_is_shown_once() {
        let mut merged = Merged::default();
        let mut line = |text: &str, rank| merged.line(text, Writer::Rank(rank));
        assert_eq!(line("error: no data", 1).as_deref(), Some("[rank 1] error: no data"));
        assert_eq!(line("[rank 0] error: Rank 1 on vm: no data", 0), None);
        assert_eq!(line("[rank 2] error: no data", 2), None);
        assert!(line("[rank 2] error: other", 2).is_some());
        assert!(line("[rank 2] error: Rank 1 on vm is lost: silence", 2).is_some());
        assert_eq!(line("[rank 1] error: Rank 0 on vm is lost: it has ended", 1), None);
        assert!(line("[rank 0] no data", 0).is_some());
    }
}
