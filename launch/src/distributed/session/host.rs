//! A session from the side of rank 0, which serves the store.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Place;
use super::agreement::{Member, collision, disagreement, named, ranks, sentence};
use super::course::{Board, Cause, Course, Leave, Phase};
use crate::distributed::store::{Break, Frame, Hello, Link, Message, Peer, Reader, Refusal, admit};
use crate::exit::{Exit, Failure};

/// Connections that have not shown yet that they know the secret, beside one for each rank.
const STRANGERS: usize = 64;

/// Pause after the system has refused a connection, for instance because this process has too many files open.
const PAUSE: Duration = Duration::from_millis(100);

/// Rank 0.
pub(super) struct Host {
    place: Place,
    pub(super) course: Course<Hall>,
    /// Connections that are not let in yet.
    strangers: AtomicUsize,
}

/// What this side keeps.
#[derive(Debug)]
pub(super) struct Hall {
    /// By rank; that of rank 0 has no connection.
    seats: Vec<Option<Seat>>,
    /// Ranks that wait for the value of a key.
    waiting: BTreeMap<String, Vec<usize>>,
}

/// A rank that is there.
#[derive(Debug)]
struct Seat {
    hello: Hello,
    link: Option<Arc<Link>>,
    left: bool,
}

impl Hall {
    /// The ranks that are there and have not left, by number, with their connections.
    fn links(&self) -> impl Iterator<Item = (usize, &Arc<Link>)> {
        self.seats.iter().enumerate().filter_map(|(rank, seat)| match seat {
            Some(Seat {
                link: Some(link),
                left: false,
                ..
            }) => Some((rank, link)),
            _ => None,
        })
    }

    /// The link of a rank.
    fn link(&self, rank: usize) -> Option<&Arc<Link>> {
        self.seats.get(rank)?.as_ref()?.link.as_ref()
    }

    /// The ranks that are not there.
    fn missing(&self) -> Vec<usize> {
        let empty = self.seats.iter().enumerate().filter(|(_, seat)| seat.is_none());
        empty.map(|(rank, _)| rank).collect()
    }

    /// The ranks that have not left.
    fn present(&self) -> Vec<usize> {
        let present = |seat: &Option<Seat>| seat.as_ref().is_some_and(|seat| !seat.left);
        let seats = self.seats.iter().enumerate().filter(|(_, seat)| present(seat));
        seats.map(|(rank, _)| rank).collect()
    }

    /// "rank 2 on host".
    fn name(&self, rank: usize) -> String {
        match self.seats.get(rank) {
            Some(Some(seat)) => named((rank, &seat.hello)),
            _ => format!("rank {rank}"),
        }
    }
}

/// What becomes of a process that has introduced itself.
enum Admission {
    /// It is the rank that it says.
    Seated,
    /// It has no place here.
    TurnedAway(Cause),
    /// It does not fit, and without it the run cannot begin.
    Unfit(Cause),
}

/// What is said about a rank that is gone.
pub(super) fn lost(name: &str, why: &Break) -> Cause {
    Cause {
        exit: Exit::Failed.code(),
        message: sentence(&format!(
            "{name} is lost: {why}. All ranks end; start the run again to go on from its last checkpoint."
        )),
    }
}

/// What is said about a rank that says itself why it ends.
fn failed(name: &str, exit: u8, message: &str) -> Cause {
    Cause {
        exit,
        message: sentence(&format!("{name}: {message}")),
    }
}

impl Host {
    /// Waits for the other ranks.
    pub(super) fn join(
        place: Place,
        listener: Option<TcpListener>,
        hello: Hello,
        leave: Leave,
    ) -> Result<(Arc<Self>, Vec<Peer>), Failure> {
        let mut seats: Vec<_> = (0..place.world_size).map(|_| None).collect();
        if let Some(seat) = seats.first_mut() {
            *seat = Some(Seat {
                hello,
                link: None,
                left: false,
            });
        }
        let hall = Hall {
            seats,
            waiting: BTreeMap::new(),
        };
        let (timeout, pace) = (place.timeout, place.pace);
        let host = Arc::new(Self {
            place,
            course: Course::new(pace, hall, leave),
            strangers: AtomicUsize::new(0),
        });
        if let Some(listener) = listener {
            let receiving = Arc::clone(&host);
            let thread = thread::Builder::new().name("store".to_owned());
            thread
                .spawn(move || receiving.receive(&listener))
                .map_err(|error| Failure::running(format!("The system has no thread for the rendezvous: {error}.")))?;
        }
        let start = Instant::now();
        let mut reported = start;
        let mut board = host.course.board();
        loop {
            match &board.phase {
                Phase::Joining if board.own.missing().is_empty() => return Ok((Arc::clone(&host), begin(&mut board))),
                Phase::Ended(cause) => return Err(cause.clone().into()),
                _ => {}
            }
            if board.phase == Phase::Joining && start.elapsed() >= timeout {
                let cause = late(&board.own, timeout);
                drop(board);
                host.end(cause);
                board = host.course.board();
                continue;
            }
            if reported.elapsed() >= pace.report {
                reported = Instant::now();
                tracing::info!("waiting for the others: {} not there yet", ranks(&board.own.missing()));
            }
            let time = timeout.saturating_sub(start.elapsed()).min(pace.report);
            board = host.course.changed(board, time);
        }
    }

    /// Takes connections for as long as the process lives: who comes late or twice is told so.
    fn receive(self: &Arc<Self>, listener: &TcpListener) {
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
        self.course.change(|board| {
            let unfit = self.unfit(&board.own, (rank, &hello), world_size);
            match (&board.phase, unfit) {
                (Phase::Joining, Some(message)) => Admission::Unfit(cause(message)),
                (Phase::Joining, None) => {
                    if let Some(seat) = board.own.seats.get_mut(rank) {
                        *seat = Some(Seat {
                            hello,
                            link: Some(Arc::clone(link)),
                            left: false,
                        });
                    }
                    Admission::Seated
                }
                // The others have been told the same.
                (Phase::Ended(cause), _) => Admission::TurnedAway(cause.clone()),
                (_, Some(message)) => Admission::TurnedAway(cause(message)),
                (_, None) => Admission::TurnedAway(cause("The run is ending.".to_owned())),
            }
        })
    }

    /// Why a process has no place among those that are there.
    fn unfit(&self, hall: &Hall, new: Member<'_>, world_size: usize) -> Option<String> {
        let ours = self.place.world_size;
        if world_size != ours {
            return Some(sentence(&format!(
                "{} was started as one of {world_size} processes, rank 0 as one of {ours}. All ranks need the same number.",
                named(new)
            )));
        }
        let Some(seat) = hall.seats.get(new.0) else {
            return Some(sentence(&format!(
                "{} has too high a number: there are {ours} processes.",
                named(new)
            )));
        };
        if let Some(seat) = seat {
            return Some(format!(
                "There are two processes with rank {}, on {} and on {}. Each process needs a rank of its own.",
                new.0, seat.hello.host, new.1.host
            ));
        }
        let there = hall.seats.iter().enumerate();
        let mut there = there.filter_map(|(rank, seat)| Some((rank, &seat.as_ref()?.hello)));
        let first = there.clone().next();
        first
            .and_then(|first| disagreement(first, new))
            .or_else(|| there.find_map(|member| collision(member, new)))
    }

    /// Hears what a rank says until it leaves, fails or is lost.
    fn attend(&self, rank: usize, link: &Link, mut reader: Reader) {
        let lose = |why: &Break| {
            let name = self.course.board().own.name(rank);
            self.end_without(rank, lost(&name, why));
        };
        loop {
            let frame = match reader.next() {
                Ok(frame) => frame,
                Err(why) => return lose(&why),
            };
            match frame.message {
                Message::Set { key } => self.set(&key, frame.body),
                Message::Wait { key } => self.ask(rank, key, link),
                Message::Leave => {
                    // First the answer, then the change that may let rank 0 end.
                    link.send(&Message::Bye.into());
                    link.flush(self.place.pace.farewell);
                    return self.course.change(|board| leave(&mut board.own, rank));
                }
                Message::Fail { exit, message } => {
                    link.send(&Message::Bye.into());
                    link.flush(self.place.pace.farewell);
                    let name = self.course.board().own.name(rank);
                    return self.end_without(rank, failed(&name, exit, &message));
                }
                Message::Beat
                | Message::Join { .. }
                | Message::Welcome { .. }
                | Message::Value { .. }
                | Message::End { .. }
                | Message::Bye => return lose(&Break::Unreadable("it is not for rank 0 to hear".to_owned())),
            }
        }
    }

    /// A rank asks for a value.
    fn ask(&self, rank: usize, key: String, link: &Link) {
        let mut board = self.course.board();
        match board.values.get(&key) {
            Some(value) => link.send(&Frame {
                body: value.clone(),
                message: Message::Value { key },
            }),
            None => board.own.waiting.entry(key).or_default().push(rank),
        }
    }

    /// The run ends because of `rank`, which knows.
    fn end_without(&self, rank: usize, cause: Cause) {
        self.course.conclude(cause, |cause| self.tell(cause, Some(rank)));
    }

    /// The run ends.
    fn end(&self, cause: Cause) {
        self.course.conclude(cause, |cause| self.tell(cause, None));
    }

    /// Tells the ranks that are there, except one.
    fn tell(&self, cause: &Cause, except: Option<usize>) {
        let links: Vec<_> = {
            let board = self.course.board();
            let others = board.own.links().filter(|(rank, _)| Some(*rank) != except);
            others.map(|(_, link)| Arc::clone(link)).collect()
        };
        self.send_end(cause, &links);
    }

    /// Sends the end over connections, and waits until it is out.
    fn send_end(&self, cause: &Cause, links: &[Arc<Link>]) {
        let message = Message::End {
            exit: cause.exit,
            message: cause.message.clone(),
        };
        let frame = message.into();
        let out: Vec<_> = links
            .iter()
            .map(|link| {
                link.send(&frame);
                link.flushed()
            })
            .collect();
        let start = Instant::now();
        for done in out {
            let _ = done.recv_timeout(self.place.pace.farewell.saturating_sub(start.elapsed()));
        }
    }

    pub(super) fn set(&self, key: &str, value: Vec<u8>) {
        self.course.change(|board| {
            if board.values.contains_key(key) {
                return;
            }
            for rank in board.own.waiting.remove(key).unwrap_or_default() {
                if let Some(link) = board.own.link(rank) {
                    link.send(&Frame {
                        message: Message::Value { key: key.to_owned() },
                        body: value.clone(),
                    });
                }
            }
            board.values.insert(key.to_owned(), value);
        });
    }

    pub(super) fn wait(&self, key: &str) -> Vec<u8> {
        let mut board = self.course.board();
        loop {
            if let Some(value) = board.values.get(key) {
                return value.clone();
            }
            board = self.course.changed(board, Duration::MAX);
        }
    }

    pub(super) fn on_end(&self, hook: Box<dyn Fn() + Send + Sync>) {
        self.course.on_end(hook);
    }

    pub(super) fn fail(&self, exit: Exit, message: &str) {
        self.course.await_cause(exit);
        if self.course.finish() {
            let name = self.course.board().own.name(0);
            self.tell(&failed(&name, exit.code(), message), None);
        }
    }

    pub(super) fn leave(&self) {
        self.course.change(|board| leave(&mut board.own, 0));
        loop {
            let board = self.course.wait_while(self.place.pace.report, |board| {
                board.phase == Phase::Together && !board.own.present().is_empty()
            });
            let present = board.own.present();
            if board.phase != Phase::Together || present.is_empty() {
                break;
            }
            drop(board);
            tracing::info!("done, and waiting for the others: {} still at work", ranks(&present));
        }
        self.course.finish();
    }
}

/// All are there: everybody is told who the others are.
fn begin(board: &mut Board<Hall>) -> Vec<Peer> {
    let seats = board.own.seats.iter().flatten().enumerate();
    let peers: Vec<_> = seats
        .map(|(rank, seat)| Peer {
            rank,
            host: seat.hello.host.clone(),
            device: seat.hello.device.clone(),
        })
        .collect();
    let welcome = Message::Welcome { peers: peers.clone() }.into();
    for (_, link) in board.own.links() {
        link.send(&welcome);
    }
    board.phase = Phase::Together;
    peers
}

/// Some have not come.
fn late(hall: &Hall, timeout: Duration) -> Cause {
    const SHOWN: usize = 4;
    let there = hall.present();
    let mut names: Vec<_> = there.iter().take(SHOWN).map(|rank| hall.name(*rank)).collect();
    if there.len() > SHOWN {
        names.push("others".to_owned());
    }
    Cause {
        exit: Exit::Failed.code(),
        message: format!(
            "{} of {} did not come within {} s. There: {}. See whether the others were started, and whether their hosts reach this one.",
            ranks(&hall.missing()),
            hall.seats.len(),
            timeout.as_secs_f64(),
            names.join(", ")
        ),
    }
}

/// A rank is done.
fn leave(hall: &mut Hall, rank: usize) {
    if let Some(Some(seat)) = hall.seats.get_mut(rank) {
        seat.left = true;
        seat.link = None;
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
