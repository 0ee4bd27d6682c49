//! The course of a session on one process, whichever its rank: joining, together, and one of two ends. What rank 0 and the others keep
//! beside that is theirs.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::distributed::store::Pace;
use crate::exit::{Exit, Failure};
use crate::logging;

/// Ends the process.
pub(super) type Leave = Box<dyn Fn(u8) + Send + Sync>;

/// What is done right before that. It is given the exit code.
pub(crate) type Hook = Box<dyn Fn(u8) + Send + Sync>;

/// Ends this process at once: locks, buffers and libraries that wait for other ranks have no say.
pub(super) fn leave_process(code: u8) {
    signal_hook::low_level::exit(i32::from(code));
}

/// Where a process stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not all ranks are known to be there.
    Joining,
    /// All are there.
    Together,
    /// The run ends because of a rank, and the others are being told.
    Ending(Cause),
    /// The run has ended because of a rank.
    Ended(Cause),
    /// This process is done with the others.
    Over,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) exit: u8,
    pub(super) message: String,
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self {
            exit: Exit::from_code(cause.exit),
            message: cause.message,
        }
    }
}

/// What is known, behind one lock.
#[derive(Debug)]
pub(super) struct Board<T> {
    pub(super) phase: Phase,
    pub(super) values: BTreeMap<String, Vec<u8>>,
    /// What this side alone keeps.
    pub(super) own: T,
}

/// The course of a session.
pub(super) struct Course<T> {
    pub(super) pace: Pace,
    board: Mutex<Board<T>>,
    changed: Condvar,
    hooks: Mutex<Vec<Hook>>,
    leave: Leave,
}

impl<T: Send> Course<T> {
    pub(super) fn new(pace: Pace, own: T, leave: Leave) -> Self {
        let board = Board {
            phase: Phase::Joining,
            values: BTreeMap::new(),
            own,
        };
        Self {
            pace,
            board: Mutex::new(board),
            changed: Condvar::new(),
            hooks: Mutex::new(Vec::new()),
            leave,
        }
    }

    /// The board. A thread that panicked with it has left it whole: every change is one assignment or insertion.
    pub(super) fn board(&self) -> MutexGuard<'_, Board<T>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the board, and tells who waits for a change.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Board<T>) -> R) -> R {
        let result = change(&mut self.board());
        self.changed.notify_all();
        result
    }

    /// Waits for a change, for so long at the most.
    pub(super) fn changed<'a>(&self, board: MutexGuard<'a, Board<T>>, time: Duration) -> MutexGuard<'a, Board<T>> {
        let waited = self.changed.wait_timeout(board, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until `done`, for so long at the most.
    pub(super) fn wait_while(
        &self,
        time: Duration,
        mut waiting: impl FnMut(&mut Board<T>) -> bool,
    ) -> MutexGuard<'_, Board<T>> {
        let waited = self
            .changed
            .wait_timeout_while(self.board(), time, |board| waiting(board));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    pub(super) fn on_end(&self, hook: Hook) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(hook);
    }

    /// The run ends because of another rank. The first cause counts: `tell` passes it on, then this process ends, or `join` returns it
    /// as its error.
    pub(super) fn conclude(&self, cause: Cause, tell: impl FnOnce(&Cause)) {
        let before = self.change(|board| match board.phase {
            Phase::Joining | Phase::Together => std::mem::replace(&mut board.phase, Phase::Ending(cause.clone())),
            Phase::Ending(_) | Phase::Ended(_) | Phase::Over => Phase::Over,
        });
        if before == Phase::Over {
            return;
        }
        tell(&cause);
        self.change(|board| board.phase = Phase::Ended(cause.clone()));
        if before == Phase::Together {
            self.end_process(&cause);
        }
    }

    /// The end of this process because of another rank. A thread that stands still, in a hook or with a lock that the log needs, does
    /// not keep it from ending.
    fn end_process(&self, cause: &Cause) {
        thread::scope(|scope| {
            let (done, finished) = mpsc::channel::<()>();
            let watch = move || {
                if finished.recv_timeout(self.pace.hooks) == Err(RecvTimeoutError::Timeout) {
                    (self.leave)(cause.exit);
                }
            };
            // Without a thread to watch them, the hooks are trusted.
            let _ = thread::Builder::new()
                .name("store-end".to_owned())
                .spawn_scoped(scope, watch);
            logging::error(&cause.message);
            for hook in &*self.hooks.lock().unwrap_or_else(PoisonError::into_inner) {
                // A hook that fails has nothing more to abort.
                let _ = catch_unwind(AssertUnwindSafe(|| hook(cause.exit)));
            }
            drop(done);
        });
        (self.leave)(cause.exit);
    }

    /// From here on this process is done with the others. False if it was already. If another rank has ended the run, this process is
    /// being ended too, and the call does not return before.
    pub(super) fn finish(&self) -> bool {
        let before = self.change(|board| match board.phase {
            Phase::Together => std::mem::replace(&mut board.phase, Phase::Over),
            _ => board.phase.clone(),
        });
        if matches!(before, Phase::Ending(_) | Phase::Ended(_)) {
            self.await_end();
        }
        before == Phase::Together
    }

    /// For a thread that must not go on because this process is being ended by another thread.
    fn await_end(&self) {
        thread::sleep(self.pace.hooks + self.pace.farewell * 2);
    }

    /// Why another rank has ended the run.
    #[cfg(test)]
    pub(super) fn cause(&self) -> Option<Cause> {
        match &self.board().phase {
            Phase::Ended(cause) => Some(cause.clone()),
            _ => None,
        }
    }

    /// Waits a moment for the news that another rank is the cause of a failure here. If it comes, this process is being ended.
    pub(super) fn await_cause(&self, exit: Exit) {
        if exit == Exit::Failed {
            drop(self.wait_while(self.pace.grace, |board| board.phase == Phase::Together));
        }
    }
}
