//! The door of rank 0: who connects shows that it knows the secret, says which rank it is, and gets its place or is turned away.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::course::{Cause, Phase};
use super::host::Host;
use crate::distributed::store::{Frame, Hello, Link, Message, Refusal, admit};
use crate::exit::Exit;

/// Connections that have not shown yet that they know the secret, beside one for each rank.
const STRANGERS: usize = 64;

/// Pause after the system has refused a connection, for instance because this process has too many files open.
const PAUSE: Duration = Duration::from_millis(100);

/// What becomes of a process that has introduced itself.
enum Admission {
    /// It is the rank that it says.
    Seated,
    /// It has no place here.
    TurnedAway(Cause),
    /// It does not fit, and without it the run cannot begin.
    Unfit(Cause),
}

impl Host {
    /// Takes connections for as long as the process lives: who comes late or twice is told so.
    pub(super) fn receive(self: &Arc<Self>, listener: &TcpListener) {
        let mut warned = false;
        loop {
            match listener.accept() {
                Ok((stream, address)) => self.greet(stream, address),
                Err(error) => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!(
                            "A connection of another rank cannot be taken: {error}. With many ranks, `ulimit -n` must allow for a file \
                             each on the host of rank 0."
                        );
                    }
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Gives a connection its thread. Too many that have not shown that they know the secret: the rest may come again.
    fn greet(self: &Arc<Self>, stream: TcpStream, address: SocketAddr) {
        if self.strangers.fetch_add(1, Ordering::Relaxed) >= STRANGERS + self.place.world_size {
            self.strangers.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let host = Arc::clone(self);
        let thread = thread::Builder::new().name("store-in".to_owned());
        let spawned = thread.spawn(move || {
            let admitted = admit(&stream, &host.place.key, host.place.pace.handshake);
            host.strangers.fetch_sub(1, Ordering::Relaxed);
            match admitted {
                Ok(()) => host.serve(stream, address),
                Err(refusal) => report(&refusal, address),
            }
        });
        if spawned.is_err() {
            self.strangers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A connection that knows the secret, from its first message to its end.
    fn serve(&self, stream: TcpStream, address: SocketAddr) {
        let Ok((link, mut reader)) = Link::open(stream, self.place.pace) else {
            return;
        };
        let Ok(Frame {
            message:
                Message::Join {
                    rank,
                    world_size,
                    hello,
                },
            ..
        }) = reader.next()
        else {
            tracing::debug!("{address} has left without saying who it is");
            return;
        };
        match self.seat(rank, world_size, hello, &link) {
            Admission::Seated => self.attend(rank, &link, reader),
            Admission::TurnedAway(cause) => {
                tracing::warn!("A process at {address} was turned away. {}", cause.message);
                self.send_end(&cause, &[link]);
            }
            Admission::Unfit(cause) => {
                self.send_end(&cause, &[link]);
                self.end(cause);
            }
        }
    }

    /// Finds the place of a process that says who it is.
    fn seat(&self, rank: usize, world_size: usize, hello: Hello, link: &Arc<Link>) -> Admission {
        let cause = |message: String| Cause {
            exit: Exit::Usage.code(),
            message,
        };
        self.course.change(|board| match &board.phase {
            Phase::Joining => match board.own.seat(rank, world_size, hello, link) {
                Ok(()) => Admission::Seated,
                Err(message) => Admission::Unfit(cause(message)),
            },
            // The others are told the same.
            Phase::Ending(cause) | Phase::Ended(cause) => Admission::TurnedAway(cause.clone()),
            Phase::Together | Phase::Over => {
                Admission::TurnedAway(cause(match board.own.check((rank, &hello), world_size) {
                    Err(message) => message,
                    Ok(()) => "The run has begun with all its ranks.".to_owned(),
                }))
            }
        })
    }
}

/// What a person should know of a connection that was not let in.
fn report(refusal: &Refusal, address: SocketAddr) {
    match refusal {
        Refusal::Secret => tracing::warn!(
            "A process at {address} has another secret than this run, and was turned away. If it is meant to be a rank, give it the same \
             secret."
        ),
        Refusal::Version(version) => tracing::warn!(
            "A process at {address} speaks version {version} of the rendezvous, this one another, and was turned away. Install the same \
             version of interlingua on all hosts."
        ),
        Refusal::Foreign => tracing::debug!("{address} has connected and does not speak interlingua's protocol"),
        Refusal::Broken(error) => tracing::debug!("{address} has connected and said nothing: {error}"),
    }
}
