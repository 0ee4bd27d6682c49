//! SIGTERM, SIGINT and SIGUSR1: the first asks the run to finish its step, save and leave; the second ends it at once.

use std::time::{Duration, Instant};

use interlingua_trainer::train::StopFlag;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::exit::{Exit, Failure};
use crate::logging;

/// Two signals closer than this are one: `timeout` and terminals signal the process and its group, a moment apart.
const SAME: Duration = Duration::from_millis(50);
/// mpirun ends ranks with SIGTERM when another one has failed, and a second later for good. They are gone before they would say that
/// they save.
const BEFORE_SAYING: Duration = Duration::from_secs(2);

/// Listens from now on. The flag is set when the run should finish its step, save and leave.
///
/// # Errors
/// When the system refuses a signal handler.
pub(crate) fn stop_flag() -> Result<StopFlag, Failure> {
    let flag = StopFlag::default();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])
        .map_err(|error| Failure::running(format!("Signals cannot be handled on this system: {error}.")))?;
    let shared = flag.clone();
    std::thread::spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            match first {
                None => {
                    first = Some(Instant::now());
                    shared.stop();
                    let name = signal_hook::low_level::signal_name(signal).unwrap_or("signal");
                    let said = format!("{name}: finishing the step, then saving; once more to leave at once");
                    if logging::is_alone() || (logging::is_first() && signal != SIGTERM) {
                        logging::say(&said);
                    } else if logging::is_first() {
                        std::thread::spawn(move || {
                            std::thread::sleep(BEFORE_SAYING);
                            logging::say(&said);
                        });
                    }
                }
                Some(time) if time.elapsed() < SAME => {}
                Some(_) => {
                    if logging::is_first() {
                        logging::error(
                            "Interrupted twice: left at once. The last checkpoint is whole; run again to go on from it.",
                        );
                    }
                    std::process::exit(i32::from(Exit::Interrupted.code()));
                }
            }
        }
    });
    Ok(flag)
}
