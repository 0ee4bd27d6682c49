//! The processes of a run together.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crate::distributed::placement::Placement;
use crate::exit::{Exit, Failure};

/// What every rank says when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Name of the host.
    pub(crate) host: String,
    /// What the rank computes on, as recipes write it: "cpu", "cuda:0".
    pub(crate) device: String,
    /// What tells the device from all others of the world, such as a GPU's UUID. None: its host and `device` do.
    pub(crate) device_id: Option<String>,
    /// Version of this program.
    pub(crate) version: String,
    /// The resolved recipe as text. Equal on all ranks; the first line that differs is named.
    pub(crate) recipe: String,
    /// The data files, a line `HASH PATH` for each. Equal on all ranks; the first line that differs is named.
    pub(crate) data: String,
}

/// A rank as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Number of the process.
    pub(crate) rank: usize,
    /// Name of its host.
    pub(crate) host: String,
    /// What it computes on.
    pub(crate) device: String,
}

/// The processes of a run, which know each other and end together.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    peers: Arc<Vec<Peer>>,
}

impl Session {
    pub(crate) fn listen(address: &(String, u16)) -> Result<(TcpListener, u16), Failure> {
        todo!("{address:?}")
    }

    pub(crate) fn join(
        placement: &Placement,
        listener: Option<TcpListener>,
        address: &(String, u16),
        secret: &str,
        hello: Hello,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        todo!("{placement:?} {listener:?} {address:?} {secret} {hello:?} {timeout:?}")
    }

    pub(crate) fn peers(&self) -> &[Peer] {
        &self.peers
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) {
        todo!("{key} {value:?}")
    }

    pub(crate) fn wait(&self, key: &str) -> Vec<u8> {
        todo!("{key}")
    }

    pub(crate) fn on_end(&self, hook: Box<dyn Fn() + Send + Sync>) {
        hook();
    }

    pub(crate) fn fail(&self, exit: Exit, message: &str) {
        todo!("{exit:?} {message}")
    }

    pub(crate) fn leave(&self) {
        todo!()
    }
}
