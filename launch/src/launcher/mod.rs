//! Starting the ranks of a run on this host and staying with them: their output is merged, signals are passed on, their end is told.

mod lifeline;
mod mpirun;
mod output;
mod ranks;
mod watch;

pub(crate) use lifeline::follow;
pub(crate) use mpirun::Mpirun;
pub(crate) use ranks::{Ranks, program};

use signal_hook::iterator::Signals;

use self::output::Output;
use self::watch::{Ending, Watched};
use crate::exit::{Exit, Failure};

/// What starts a run's processes, as often as it takes.
pub(crate) trait Start {
    /// Starts all, with these arguments of the binary, and gives their output to `output`.
    ///
    /// # Errors
    /// With exit code 2 when something is missing that has to be installed or given.
    fn start(&self, arguments: &[String], output: &Output) -> Result<Vec<Watched>, Failure>;
}

/// Starts a run and stays with it; starts it again up to `max_restarts` times when it failed while running.
///
/// # Errors
/// When it cannot be started, or failed: the message is empty if the processes have said it all.
pub(crate) fn run(
    start: &dyn Start,
    mut arguments: Vec<String>,
    max_restarts: u32,
    verbose: bool,
) -> Result<Exit, Failure> {
    let mut signals = Signals::new(watch::PASSED_ON)
        .map_err(|error| Failure::running(format!("Signals cannot be handled on this system: {error}.")))?;
    for restart in 0..=max_restarts {
        let output = Output::new(verbose);
        let Ending {
            exit,
            interrupted,
            reason,
        } = watch::until_the_end(start.start(&arguments, &output)?, &mut signals);
        output.finish();
        let reason = output.reason().or(reason);
        if exit != Exit::Failed || interrupted || restart == max_restarts {
            output.show_held_back(exit);
            return match exit {
                Exit::Done | Exit::Stopped => Ok(exit),
                Exit::Failed | Exit::Usage | Exit::Interrupted => Err(Failure {
                    exit,
                    message: reason.map_or_else(String::new, |reason| format!("{reason}.")),
                }),
            };
        }
        tracing::warn!(
            "{}; starting again from the last checkpoint, for the {}. time of {max_restarts} at the most",
            reason.unwrap_or_else(|| "A rank has failed".to_owned()),
            restart + 1
        );
        // What this run has written is what the next one goes on from.
        arguments.retain(|argument| argument != FRESH);
    }
    Ok(Exit::Failed)
}

/// The argument that starts a run anew.
pub(crate) const FRESH: &str = "--fresh";
