//! How long things may take.

use std::time::Duration;

/// The times of a session. Tests have shorter ones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// A side that has had nothing to say for so long says that it is alive.
    pub(crate) beat: Duration,
    /// Silence is counted in steps of this size, so that a process which did not run itself does not take the others for silent.
    pub(crate) tick: Duration,
    /// A side that has said nothing for so long is lost.
    pub(crate) silence: Duration,
    /// Both sides of a connection must have proved by then that they know the secret.
    pub(crate) handshake: Duration,
    /// Pause between two attempts to reach rank 0.
    pub(crate) retry: Duration,
    /// Who waits for other ranks says so after each such time.
    pub(crate) report: Duration,
    /// A rank whose own work failed waits so long for the news that another rank is the cause.
    pub(crate) grace: Duration,
    /// Last messages must be out after this time.
    pub(crate) farewell: Duration,
    /// A process that is to end does so after this time, whatever its hooks do.
    pub(crate) hooks: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(2),
            tick: Duration::from_millis(500),
            silence: Duration::from_secs(20),
            handshake: Duration::from_secs(10),
            retry: Duration::from_millis(250),
            report: Duration::from_secs(30),
            grace: Duration::from_secs(1),
            farewell: Duration::from_secs(2),
            hooks: Duration::from_secs(5),
        }
    }
}
