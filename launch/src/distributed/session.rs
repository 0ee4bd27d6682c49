//! The processes of a run together: they meet, see that they fit, keep an eye on each other, and end together.
//!
//! Rank 0 ([`host`]) serves the store that all others ([`guest`]) are connected to. A connection that closes without a good-bye, or 20 s
//! of silence on it, means that a rank is lost. Rank 0 tells everybody, every process says which rank is the cause, aborts its
//! collectives and ends; none waits for an operation that cannot be completed any more. Rank 0 is watched by the others in the same way.

mod agreement;
mod course;
mod door;
mod guest;
mod hall;
mod host;

use std::fmt;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::course::Hook;
use self::course::{Leave, leave_process};
use self::guest::Guest;
use self::host::Host;
use crate::distributed::placement::Placement;
use crate::distributed::store::{self, Key, Pace};
use crate::exit::{Exit, Failure};

pub(crate) use crate::distributed::store::{Hello, Peer};

/// The processes of a run, from the side of one of them. Clones are the same session.
#[derive(Clone)]
pub(crate) struct Session {
    peers: Arc<[Peer]>,
    part: Part,
}

#[derive(Clone)]
enum Part {
    Host(Arc<Host>),
    Guest(Arc<Guest>),
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Session")
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Opens the port of rank 0; port 0 takes one that is free. Returns it with its number.
    ///
    /// # Errors
    /// With exit code 2 when the port is taken or may not be opened.
    pub(crate) fn listen(address: &(String, u16)) -> Result<(TcpListener, u16), Failure> {
        store::listen(address)
    }

    /// Meets the other ranks at `address`, where rank 0 listens (with `listener`, if the port is open already). Returns when all are
    /// there. One process is a session by itself, without a port.
    ///
    /// From then on this process ends when another one is lost or fails: whatever it is doing, within 30 s of the cause.
    ///
    /// # Errors
    /// With exit code 2 when the ranks do not fit together: another version, recipe, data or secret, two processes with one rank, two on
    /// one GPU; the message says which. With 1 when ranks have not come after `timeout`; the message names them.
    pub(crate) fn join(
        placement: &Placement,
        listener: Option<TcpListener>,
        address: &(String, u16),
        secret: &str,
        hello: Hello,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let place = Place {
            rank: placement.rank,
            world_size: placement.world_size,
            address: address.clone(),
            key: Key::new(secret),
            timeout,
            pace: Pace::default(),
        };
        Self::enter(place, listener, hello, Box::new(leave_process))
    }

    fn enter(place: Place, listener: Option<TcpListener>, hello: Hello, leave: Leave) -> Result<Self, Failure> {
        let (peers, part) = if place.rank == 0 {
            let listener = match listener {
                None if place.world_size > 1 => Some(store::listen(&place.address)?.0),
                listener => listener,
            };
            let (host, peers) = Host::join(place, listener, hello, leave)?;
            (peers, Part::Host(host))
        } else {
            let (guest, peers) = Guest::join(&place, hello, leave)?;
            (peers, Part::Guest(guest))
        };
        Ok(Self {
            peers: peers.into(),
            part,
        })
    }

    /// All ranks, by number.
    pub(crate) fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Keeps a value on rank 0 for all ranks, 64 MiB at the most. A key has the first value that it was given.
    pub(crate) fn set(&self, key: &str, value: &[u8]) {
        match &self.part {
            Part::Host(host) => host.set(key, value.to_vec()),
            Part::Guest(guest) => guest.set(key, value.to_vec()),
        }
    }

    /// The value of a key, once some rank has set it.
    pub(crate) fn wait(&self, key: &str) -> Vec<u8> {
        match &self.part {
            Part::Host(host) => host.wait(key),
            Part::Guest(guest) => guest.wait(key),
        }
    }

    /// Calls `hook` right before this process ends because of another rank, to abort what it does with the others. A hook that does not
    /// return is left behind after 5 s.
    pub(crate) fn on_end(&self, hook: Hook) {
        match &self.part {
            Part::Host(host) => host.on_end(hook),
            Part::Guest(guest) => guest.on_end(hook),
        }
    }

    /// Tells the other ranks that this one ends, and why: they say so and end with the same exit code. Returns when they know, for the
    /// caller to end this process.
    ///
    /// With [`Exit::Failed`], which may be the consequence of another rank's end, it waits a second for the news of one; if that comes,
    /// this process ends like the others, with the better message, and the call does not return.
    pub(crate) fn fail(&self, exit: Exit, message: &str) {
        match &self.part {
            Part::Host(host) => host.fail(exit, message),
            Part::Guest(guest) => guest.fail(exit, message),
        }
    }

    /// Says good-bye for a rank that is done. Its end is no loss from then on, and it hears no more of the others: call it after the
    /// last thing that needs them, communicators included. Rank 0 stays until all have left.
    pub(crate) fn leave(&self) {
        match &self.part {
            Part::Host(host) => host.leave(),
            Part::Guest(guest) => guest.leave(),
        }
    }
}

/// What a process knows before it has met the others.
#[derive(Debug, Clone)]
struct Place {
    rank: usize,
    world_size: usize,
    address: (String, u16),
    key: Key,
    timeout: Duration,
    pace: Pace,
}

#[cfg(test)]
mod tests;
