//! A session from the side of rank 0, which serves the store.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::{Duration, Instant};

use super::Place;
use super::agreement::{ranks, sentence};
use super::course::{Board, Cause, Course, Hook, Leave, Phase};
use super::hall::Hall;
use crate::distributed::store::{Break, Frame, Hello, Link, Message, Peer, Reader};
use crate::exit::{Exit, Failure};

/// A wait is not shorter than this, so that the end of a time-out is no busy loop.
const LEAST: Duration = Duration::from_millis(10);

/// Rank 0.
pub(super) struct Host {
    pub(super) place: Place,
    pub(super) course: Course<Hall>,
    /// Number of connections that are not let in yet.
    pub(super) strangers: AtomicUsize,
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
        let hall = Hall::new(place.world_size, hello);
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
                Phase::Joining if board.own.missing().is_empty() => {
                    let peers = begin(&mut board);
                    drop(board);
                    return Ok((host, peers));
                }
                Phase::Joining if start.elapsed() >= timeout => {
                    let cause = board.own.late(timeout);
                    drop(board);
                    host.end(cause);
                    board = host.course.board();
                    continue;
                }
                Phase::Ended(cause) => return Err(cause.clone().into()),
                _ => {}
            }
            if reported.elapsed() >= pace.report {
                reported = Instant::now();
                tracing::info!("waiting for the others: {} not there yet", ranks(&board.own.missing()));
            }
            let left = timeout.saturating_sub(start.elapsed());
            board = host.course.changed(board, left.max(LEAST).min(pace.report));
        }
    }

    /// Hears what a rank says until it leaves, fails or is lost.
    pub(super) fn attend(&self, rank: usize, link: &Link, mut reader: Reader) {
        let lose = |why: &Break| {
            let name = self.course.board().own.name(rank);
            // It is told like the others: a process that stood still may go on and read it.
            self.end(lost(&name, why));
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
                    return self.course.change(|board| board.own.leave(rank));
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
            None => board.own.wait(rank, key),
        }
    }

    /// The run ends because of `rank`, which knows.
    fn end_without(&self, rank: usize, cause: Cause) {
        self.course.conclude(cause, |cause| self.tell(cause, Some(rank)));
    }

    /// The run ends.
    pub(super) fn end(&self, cause: Cause) {
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
    pub(super) fn send_end(&self, cause: &Cause, links: &[Arc<Link>]) {
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
            board.own.deliver(key, &value);
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

    pub(super) fn on_end(&self, hook: Hook) {
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
        self.course.change(|board| board.own.leave(0));
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
    let peers = board.own.peers();
    let welcome = Message::Welcome { peers: peers.clone() }.into();
    for (_, link) in board.own.links() {
        link.send(&welcome);
    }
    board.phase = Phase::Together;
    peers
}
