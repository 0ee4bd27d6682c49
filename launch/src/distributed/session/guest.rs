//! A session from the side of a rank other than 0.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Place;
use super::course::{Cause, Course, Hook, Leave, Phase};
use super::host::lost;
use crate::distributed::store::{Break, Frame, Hello, Link, Message, Peer, Reader, connect};
use crate::exit::{Exit, Failure};

/// A rank that is connected to rank 0.
pub(super) struct Guest {
    pub(super) course: Course<Known>,
    link: Arc<Link>,
}

/// What this side keeps.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Once all ranks are there.
    peers: Vec<Peer>,
    /// Keys whose values are on their way.
    asked: BTreeSet<String>,
    /// Whether rank 0 has said good-bye.
    dismissed: bool,
}

impl Guest {
    /// Meets the others at rank 0.
    pub(super) fn join(place: &Place, hello: Hello, leave: Leave) -> Result<(Arc<Self>, Vec<Peer>), Failure> {
        let stream = connect(&place.address, &place.key, place.timeout, &place.pace)?;
        let broken = |error| Failure::running(format!("The connection to rank 0 cannot be used: {error}."));
        let (link, reader) = Link::open(stream, place.pace).map_err(broken)?;
        let guest = Arc::new(Self {
            course: Course::new(place.pace, Known::default(), leave),
            link,
        });
        let listening = Arc::clone(&guest);
        let thread = thread::Builder::new().name("store-in".to_owned());
        thread.spawn(move || listening.listen(reader)).map_err(broken)?;
        guest.send(Message::Join {
            rank: place.rank,
            world_size: place.world_size,
            hello,
        });
        // Rank 0 watches the time, and this side watches rank 0.
        let board = guest.course.wait_while(Duration::MAX, |board| {
            matches!(board.phase, Phase::Joining | Phase::Ending(_))
        });
        if let Phase::Ended(cause) = &board.phase {
            return Err(cause.clone().into());
        }
        let peers = board.own.peers.clone();
        drop(board);
        Ok((guest, peers))
    }

    fn send(&self, message: Message) {
        self.link.send(&message.into());
    }

    /// Hears what rank 0 says, until there is nothing more to hear.
    fn listen(&self, mut reader: Reader) {
        loop {
            match reader.next() {
                Ok(frame) => self.hear(frame),
                Err(why) => return self.lose_host(&why),
            }
        }
    }

    fn hear(&self, frame: Frame) {
        match frame.message {
            Message::Welcome { peers } => self.course.change(|board| {
                if board.phase == Phase::Joining {
                    board.own.peers = peers;
                    board.phase = Phase::Together;
                }
            }),
            Message::Value { key } => self.course.change(|board| {
                board.values.entry(key).or_insert(frame.body);
            }),
            Message::End { exit, message } => {
                self.nothing_to_wait_for();
                self.course.conclude(Cause { exit, message }, |_| {});
            }
            Message::Bye => self.course.change(|board| board.own.dismissed = true),
            Message::Beat
            | Message::Join { .. }
            | Message::Set { .. }
            | Message::Wait { .. }
            | Message::Fail { .. }
            | Message::Leave => {}
        }
    }

    /// A rank that has failed itself waits for the answer of rank 0, and gets none when rank 0 ends too.
    fn nothing_to_wait_for(&self) {
        self.course
            .change(|board| board.own.dismissed |= board.phase == Phase::Over);
    }

    /// Nothing more comes from rank 0.
    fn lose_host(&self, why: &Break) {
        self.nothing_to_wait_for();
        let board = self.course.board();
        // After its good-bye rank 0 may go.
        if board.own.dismissed {
            return;
        }
        let place = board.own.peers.first().map(|peer| format!(" on {}", peer.host));
        drop(board);
        let cause = lost(&format!("rank 0{}", place.unwrap_or_default()), why);
        // Should rank 0 go on later, it learns why it is alone.
        self.course.conclude(cause, |cause| {
            self.send(Message::Fail {
                exit: cause.exit,
                message: cause.message.clone(),
            });
            self.link.flush(self.course.pace.farewell);
        });
    }

    pub(super) fn set(&self, key: &str, value: Vec<u8>) {
        self.link.send(&Frame {
            message: Message::Set { key: key.to_owned() },
            body: value,
        });
    }

    pub(super) fn wait(&self, key: &str) -> Vec<u8> {
        let mut board = self.course.board();
        loop {
            if let Some(value) = board.values.get(key) {
                return value.clone();
            }
            if board.own.asked.insert(key.to_owned()) {
                self.send(Message::Wait { key: key.to_owned() });
            }
            board = self.course.changed(board, Duration::MAX);
        }
    }

    pub(super) fn on_end(&self, hook: Hook) {
        self.course.on_end(hook);
    }

    pub(super) fn fail(&self, exit: Exit, message: &str) {
        self.course.await_cause(exit);
        if !self.course.finish() {
            return;
        }
        self.send(Message::Fail {
            exit: exit.code(),
            message: message.to_owned(),
        });
        drop(
            self.course
                .wait_while(self.course.pace.farewell, |board| !board.own.dismissed),
        );
    }

    pub(super) fn leave(&self) {
        self.send(Message::Leave);
        let board = self.course.wait_while(Duration::MAX, |board| {
            board.phase == Phase::Together && !board.own.dismissed
        });
        drop(board);
        self.course.finish();
    }
}
