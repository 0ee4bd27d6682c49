//! The processes that a launcher has started, until the last of them has ended.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::exit::Exit;
use crate::logging;

/// Signals that ask a run to save and leave.
pub(super) const PASSED_ON: [i32; 3] = [SIGTERM, SIGINT, SIGUSR1];

/// Two signals closer than this are one: `timeout` and terminals signal the process and its group, a moment apart.
const SAME: Duration = Duration::from_millis(50);
/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long the others may take to end by themselves once one has failed. They know within 30 s.
const FOLLOW: Duration = Duration::from_secs(40);
/// How long all may take to end once they were told to leave at once.
const LEAVE: Duration = Duration::from_secs(5);

/// One process.
pub(crate) struct Watched {
    name: String,
    /// Its standard input stays open as long as this is there.
    child: Child,
    ended: Option<ExitStatus>,
    /// Whether it was this launcher that ended it.
    ended_here: bool,
}

impl Watched {
    pub(super) fn new(name: String, child: Child) -> Self {
        Self {
            name,
            child,
            ended: None,
            ended_here: false,
        }
    }

    fn look(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended.is_some()
    }

    fn send(&self, signal: Signal) {
        if self.ended.is_none()
            && let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            // It may have ended in this moment.
            let _ = kill_process(pid, signal);
        }
    }

    fn end(&mut self) {
        if self.ended.is_none() {
            self.ended_here = true;
            self.send(Signal::KILL);
        }
    }

    /// How it ended, and the reason where that is a signal. What mpirun returns for a rank that a signal ended is 128 and the signal.
    fn ending(&self) -> (Exit, Option<String>) {
        let Some(status) = self.ended else {
            return (Exit::Failed, None);
        };
        match (status.code(), status.signal()) {
            (Some(code), _) => (u8::try_from(code).map_or(Exit::Failed, Exit::from_code), None),
            (None, Some(signal)) => {
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("unknown");
                let reason = format!("{} was ended by signal {signal} ({name})", self.name);
                (Exit::Failed, Some(reason))
            }
            (None, None) => (Exit::Failed, None),
        }
    }
}

/// How all of them ended.
#[derive(Debug, PartialEq)]
pub(super) struct Ending {
    /// The worst of all ends.
    pub(super) exit: Exit,
    /// Whether signals came.
    pub(super) interrupted: bool,
    /// Which process a signal ended.
    pub(super) reason: Option<String>,
}

/// Waits for all. The first signal is passed on as SIGUSR1, which mpirun passes on in turn, for the ranks to save and leave; after the
/// second all are ended.
pub(super) fn until_the_end(mut processes: Vec<Watched>, signals: &mut Signals) -> Ending {
    let mut asked: Option<Instant> = None;
    let mut twice = false;
    let mut deadline: Option<Instant> = None;
    loop {
        for signal in signals.pending() {
            match asked {
                None => {
                    asked = Some(Instant::now());
                    let name = signal_hook::low_level::signal_name(signal).unwrap_or("signal");
                    logging::say(&format!("{name}: passed on; once more to leave at once"));
                    processes.iter().for_each(|process| process.send(Signal::USR1));
                }
                Some(time) if time.elapsed() < SAME => {}
                Some(_) if twice => {}
                Some(_) => {
                    twice = true;
                    processes.iter().for_each(|process| process.send(Signal::TERM));
                    deadline = Some(Instant::now() + LEAVE);
                }
            }
        }
        let mut all = true;
        for process in &mut processes {
            let before = process.ended.is_some();
            all &= process.look();
            let failed = process.ended.is_some_and(|status| !status.success());
            if !before && failed && deadline.is_none() {
                deadline = Some(Instant::now() + FOLLOW);
            }
        }
        if all {
            break;
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            processes.iter_mut().for_each(Watched::end);
        }
        std::thread::sleep(LOOK);
    }
    let endings: Vec<_> = processes
        .iter()
        .filter(|process| !process.ended_here)
        .map(Watched::ending)
        .collect();
    let exit = if twice {
        Exit::Interrupted
    } else {
        worst(endings.iter().map(|(exit, _)| *exit))
    };
    Ending {
        exit,
        interrupted: asked.is_some(),
        reason: endings.into_iter().find_map(|(_, reason)| reason),
    }
}

/// A failure goes before all; among the rest, what needs a person before what goes on by itself.
fn worst(endings: impl Iterator<Item = Exit>) -> Exit {
    let weight = |exit: &Exit| match exit {
        Exit::Done => 0,
        Exit::Stopped => 1,
        Exit::Interrupted => 2,
        Exit::Usage => 3,
        Exit::Failed => 4,
    };
    endings.max_by_key(weight).unwrap_or(Exit::Failed)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn end_of(scripts: &[&str]) -> Ending {
        let processes = scripts.iter().enumerate().map(|(rank, script)| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdin(Stdio::null());
            Watched::new(format!("Rank {rank}"), command.spawn().unwrap())
        });
        until_the_end(processes.collect(), &mut Signals::new([0_i32; 0]).unwrap())
    }

    #[test]
    fn the_worst_end_counts() {
        for (scripts, exit) in [
            (["exit 0", "exit 0"], Exit::Done),
            (["exit 75", "exit 75"], Exit::Stopped),
            (["exit 2", "exit 0"], Exit::Usage),
            (["exit 2", "exit 1"], Exit::Failed),
            (["exit 0", "exit 134"], Exit::Failed),
        ] {
            let ending = end_of(&scripts);
            assert_eq!((ending.exit, ending.reason), (exit, None), "{scripts:?}");
        }
    }

    #[test]
    fn a_process_that_a_signal_ended_is_named() {
        let ending = end_of(&["exit 1", "kill -KILL $$"]);
        assert_eq!(ending.exit, Exit::Failed);
        assert_eq!(ending.reason.as_deref(), Some("Rank 1 was ended by signal 9 (SIGKILL)"));
    }
}
