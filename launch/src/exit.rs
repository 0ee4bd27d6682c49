//! How a command ends: the exit codes of the contract, and failures that know theirs.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use interlingua_trainer::error::TrainError;

/// What the process ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, or was already done.
    Done,
    /// Failed while running.
    Failed,
    /// Wrong usage, recipe, data or model: nothing was started, nothing written.
    Usage,
    /// Stopped by a signal with everything saved: run again to go on.
    Stopped,
    /// Interrupted a second time.
    Interrupted,
}

impl Exit {
    /// The number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Stopped => 75,
            Self::Interrupted => 130,
        }
    }

    /// The way to end with this code. What is none of the contract is a failure.
    pub(crate) fn from_code(code: u8) -> Self {
        let all = [Self::Done, Self::Usage, Self::Stopped, Self::Interrupted];
        all.into_iter().find(|exit| exit.code() == code).unwrap_or(Self::Failed)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command did not do what it was asked to. The message is for people: what is wrong, where, what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    /// How the process ends.
    pub(crate) exit: Exit,
    /// Sentences for standard error; empty: say nothing (the reader of standard output went away).
    pub(crate) message: String,
}

impl Failure {
    /// The usage, the recipe, the data or the model is wrong.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self {
            exit: Exit::Usage,
            message: message.to_string(),
        }
    }

    /// Something went wrong while running.
    pub(crate) fn running(message: impl Display) -> Self {
        Self {
            exit: Exit::Failed,
            message: message.to_string(),
        }
    }
}

/// Writing the result failed. A closed pipe (`interlingua recipes | head -1`) is no failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self {
                exit: Exit::Done,
                message: String::new(),
            };
        }
        Self::running(format!("The result could not be written to standard output: {error}."))
    }
}

/// The trainer knows whether anything had been started.
impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        let exit = if error.exit_code() == Exit::Usage.code() {
            Exit::Usage
        } else {
            Exit::Failed
        };
        Self {
            exit,
            message: error.to_string(),
        }
    }
}

/// What every command returns.
pub(crate) type CommandResult = Result<Exit, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_the_contract() {
        let codes = [Exit::Done, Exit::Failed, Exit::Usage, Exit::Stopped, Exit::Interrupted].map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 75, 130]);
    }

    #[test]
    fn a_code_is_a_way_to_end() {
        for exit in [Exit::Done, Exit::Failed, Exit::Usage, Exit::Stopped, Exit::Interrupted] {
            assert_eq!(Exit::from_code(exit.code()), exit);
        }
        assert_eq!(Exit::from_code(77), Exit::Failed);
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Done, ""));
    }
}
