//! How ranks notice that their launcher is gone: it keeps their standard input open, and writes nothing to it.

use std::io::{self, Read};
use std::process::Command;
use std::time::Duration;

use crate::exit::Exit;
use crate::logging;

/// The variable that says whose standard input is held by a launcher.
const HELD: &str = "INTERLINGUA_LAUNCHED";
/// That of every rank.
const ALL: &str = "all";
/// That of rank 0: mpirun passes its own on to it.
const FIRST: &str = "first";

/// How long a rank waits for its end from elsewhere before it ends by itself.
const GRACE: Duration = Duration::from_secs(3);

/// Says to the processes of a command that their standard input is held by this one.
pub(super) fn hold(command: &mut Command, all: bool) {
    command.env(HELD, if all { ALL } else { FIRST });
}

/// Ends this rank and, through `tell`, all others once the launcher is gone. Does nothing where there is none.
pub(crate) fn follow(rank: usize, tell: impl Fn(Exit, &str) + Send + 'static) {
    let held = match std::env::var(HELD).as_deref() {
        Ok(ALL) => true,
        Ok(FIRST) => rank == 0,
        _ => false,
    };
    if !held {
        return;
    }
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut byte = [0];
        // Whatever somebody may write is passed over.
        while stdin.read(&mut byte).is_ok_and(|read| read > 0) {}
        // mpirun lets go of it, too, when it ends a job of which another rank has failed; that rank has said why.
        std::thread::sleep(GRACE);
        let message = "The launcher is gone. The last checkpoint is whole; run again to go on from it.";
        tell(Exit::Failed, message);
        logging::error(message);
        signal_hook::low_level::exit(i32::from(Exit::Failed.code()));
    });
}
