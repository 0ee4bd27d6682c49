//! Ends the process when memory has run out. It runs inside the allocator, so it allocates nothing: the message is put together on
//! the stack.

use std::ffi::CStr;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// What can be done about it.
pub(super) const ADVICE: &str = "Nothing that was saved has been changed: run again to go on from the last checkpoint. \
     `interlingua plan RECIPE` shows what takes how much, and with --budget which settings fit; a shorter data.max_length, a smaller \
     train.batch_size with more train.gradient_accumulation, and memory.recompute = \"block\" take less.";

/// Set by the first thread that runs out.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Writes what happened to standard error and ends the process with exit code 1. `budget` is `usize::MAX` where there is no cap and
/// the system refused.
pub(super) fn end(asked: usize, held: usize, budget: usize, work: &CStr) -> ! {
    if !ENDING.swap(true, Ordering::SeqCst) {
        let mut message = Message::default();
        // Whatever does not fit is left out, and there is nobody to tell that.
        let _ = compose(&mut message, asked, held, budget, work);
        message.write_to_standard_error();
        // SAFETY: ends the process without running what others registered for its end, which may allocate.
        unsafe { libc::_exit(1) }
    }
    loop {
        // SAFETY: waits for a signal; the thread that came first is about to end the process.
        unsafe { libc::pause() };
    }
}

fn compose(message: &mut Message, asked: usize, held: usize, budget: usize, work: &CStr) -> fmt::Result {
    // On a terminal a progress bar may stand in the line. SAFETY: asks about a file descriptor.
    if unsafe { libc::isatty(libc::STDERR_FILENO) } == 1 {
        message.write_char('\n')?;
    }
    message.write_str("error: Out of memory while working on ")?;
    // Labels are written as Rust literals, so they are UTF-8.
    message.write_str(work.to_str().unwrap_or("a step"))?;
    write!(
        message,
        ": {} more were asked for, {} are held, and ",
        Bytes(asked),
        Bytes(held)
    )?;
    if budget == usize::MAX {
        message.write_str("the system gives no more. ")?;
    } else {
        write!(message, "memory.budget allows {}. ", Bytes(budget))?;
    }
    message.write_str(ADVICE)?;
    message.write_char('\n')
}

/// A number of bytes as people write it.
struct Bytes(usize);

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(usize, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        for (unit, name) in UNITS {
            if self.0 >= unit {
                // Tenths, without floating-point numbers.
                let tenths = (self.0 as u128 * 10 + unit as u128 / 2) / unit as u128;
                return write!(formatter, "{}.{} {name}", tenths / 10, tenths % 10);
            }
        }
        write!(formatter, "{} bytes", self.0)
    }
}

/// A text of limited length.
struct Message {
    bytes: [u8; 1024],
    length: usize,
}

impl Default for Message {
    fn default() -> Self {
        Self {
            bytes: [0; 1024],
            length: 0,
        }
    }
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.length..];
        let taken = text.len().min(room.len());
        room[..taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.length += taken;
        if taken == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl Message {
    fn write_to_standard_error(&self) {
        let mut rest = &self.bytes[..self.length];
        while !rest.is_empty() {
            // SAFETY: the buffer holds `rest.len()` bytes.
            let written = unsafe { libc::write(libc::STDERR_FILENO, rest.as_ptr().cast(), rest.len()) };
            // Closed, or interrupted: the exit code has to do.
            let Some(written) = usize::try_from(written).ok().filter(|written| *written > 0) else {
                return;
            };
            rest = &rest[written..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(asked: usize, held: usize, budget: usize) -> String {
        let mut message = Message::default();
        compose(&mut message, asked, held, budget, c"the forward pass").unwrap();
        String::from_utf8(message.bytes[..message.length].to_vec()).unwrap()
    }

    #[test]
    fn the_message_says_what_was_asked_held_and_allowed() {
        let capped = text(3 << 20, 28 << 20, 30 << 20);
        assert!(
            capped.contains("while working on the forward pass: 3.0 MiB more"),
            "{capped}"
        );
        assert!(
            capped.contains("28.0 MiB are held, and memory.budget allows 30.0 MiB"),
            "{capped}"
        );
        assert!(capped.ends_with("take less.\n"), "{capped}");
        let refused = text(usize::MAX, 1500, usize::MAX);
        assert!(
            refused.contains("1.5 KiB are held, and the system gives no more"),
            "{refused}"
        );
    }

    #[test]
    fn a_text_that_does_not_fit_is_cut() {
        let mut message = Message::default();
        assert!(message.write_str(&"x".repeat(2000)).is_err());
        assert_eq!(message.length, 1024);
    }
}
