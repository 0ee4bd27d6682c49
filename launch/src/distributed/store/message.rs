//! What rank 0 and the other ranks say to each other.

use serde::{Deserialize, Serialize};

/// What every rank says when it joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Name of the host.
    pub(crate) host: String,
    /// What the rank computes on, as recipes write it: "cpu", "cuda:0".
    pub(crate) device: String,
    /// What tells the device from all others of the world, such as a GPU's UUID. None: host and `device` do, unless it is a CPU.
    pub(crate) device_id: Option<String>,
    /// Version of this program.
    pub(crate) version: String,
    /// The resolved recipe as text (or a hash of it). Equal on all ranks; the first line that differs is named.
    pub(crate) recipe: String,
    /// The data files, a line `HASH PATH` for each (or a hash of all). Equal on all ranks; the first line that differs is named.
    pub(crate) data: String,
}

/// A rank as the others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// Number of the process.
    pub(crate) rank: usize,
    /// Name of its host.
    pub(crate) host: String,
    /// What it computes on.
    pub(crate) device: String,
}

/// The head of a frame. Values travel in the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Message {
    /// Either side: still alive.
    Beat,
    /// To rank 0: who is there. The first message of a connection.
    Join {
        /// Number of the process.
        rank: usize,
        /// How many processes it was told that there are.
        world_size: usize,
        /// What must fit together.
        hello: Hello,
    },
    /// From rank 0: all ranks are there, and fit together.
    Welcome {
        /// All ranks, by number.
        peers: Vec<Peer>,
    },
    /// To rank 0: the body is the value of this key from now on.
    Set {
        /// Name of the value.
        key: String,
    },
    /// To rank 0: asks for a value, now or once it is there.
    Wait {
        /// Name of the value.
        key: String,
    },
    /// From rank 0: the body is the value of this key.
    Value {
        /// Name of the value.
        key: String,
    },
    /// To rank 0: this rank ends, and the run with it.
    Fail {
        /// The exit code of all ranks.
        exit: u8,
        /// Why.
        message: String,
    },
    /// From rank 0: the run ends.
    End {
        /// The exit code of all ranks.
        exit: u8,
        /// Which rank is the cause, and why.
        message: String,
    },
    /// To rank 0: this rank is done.
    Leave,
    /// From rank 0: `Fail` or `Leave` has arrived; the connection may close.
    Bye,
}
