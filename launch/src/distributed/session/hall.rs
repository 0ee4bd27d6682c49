//! Who is there, as rank 0 keeps it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::agreement::{Member, collision, disagreement, named, ranks, sentence};
use super::course::Cause;
use crate::distributed::store::{Frame, Hello, Link, Message, Peer};
use crate::exit::Exit;

/// A place for each rank.
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
    /// Until it leaves.
    link: Option<Arc<Link>>,
    left: bool,
}

impl Hall {
    /// With rank 0 alone.
    pub(super) fn new(world_size: usize, hello: Hello) -> Self {
        let first = Seat {
            hello,
            link: None,
            left: false,
        };
        let others = (1..world_size).map(|_| None);
        Self {
            seats: std::iter::once(Some(first)).chain(others).collect(),
            waiting: BTreeMap::new(),
        }
    }

    /// Gives a process the place of its rank.
    ///
    /// # Errors
    /// Why it has none among those that are there, as sentences.
    pub(super) fn seat(
        &mut self,
        rank: usize,
        world_size: usize,
        hello: Hello,
        link: &Arc<Link>,
    ) -> Result<(), String> {
        self.check((rank, &hello), world_size)?;
        if let Some(seat) = self.seats.get_mut(rank) {
            *seat = Some(Seat {
                hello,
                link: Some(Arc::clone(link)),
                left: false,
            });
        }
        Ok(())
    }

    /// Whether a process has a place.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, new: Member<'_>, world_size: usize) -> Result<(), String> {
        let ours = self.seats.len();
        if world_size != ours {
            return Err(sentence(&format!(
                "{} was started as one of {world_size} processes, rank 0 as one of {ours}. All ranks need the same number.",
                named(new)
            )));
        }
        match self.seats.get(new.0) {
            None => {
                return Err(sentence(&format!(
                    "{} has too high a number: there are {ours} processes.",
                    named(new)
                )));
            }
            Some(Some(seat)) => {
                return Err(format!(
                    "There are two processes with rank {}, on {} and on {}. Each process needs a rank of its own.",
                    new.0, seat.hello.host, new.1.host
                ));
            }
            Some(None) => {}
        }
        let there = || {
            self.seats
                .iter()
                .enumerate()
                .filter_map(|(rank, seat)| Some((rank, &seat.as_ref()?.hello)))
        };
        let first = there().next();
        let unfit = first
            .and_then(|first| disagreement(first, new))
            .or_else(|| there().find_map(|member| collision(member, new)));
        unfit.map_or(Ok(()), Err)
    }

    /// The ranks that are there and have a connection, with it.
    pub(super) fn links(&self) -> impl Iterator<Item = (usize, &Arc<Link>)> {
        let seats = self.seats.iter().enumerate();
        seats.filter_map(|(rank, seat)| Some((rank, seat.as_ref()?.link.as_ref()?)))
    }

    /// The ranks that are not there yet.
    pub(super) fn missing(&self) -> Vec<usize> {
        self.numbers(Option::is_none)
    }

    /// The ranks that are there and have not left.
    pub(super) fn present(&self) -> Vec<usize> {
        self.numbers(|seat| seat.as_ref().is_some_and(|seat| !seat.left))
    }

    fn numbers(&self, which: impl Fn(&Option<Seat>) -> bool) -> Vec<usize> {
        let seats = self.seats.iter().enumerate().filter(|(_, seat)| which(seat));
        seats.map(|(rank, _)| rank).collect()
    }

    /// "rank 2 on host".
    pub(super) fn name(&self, rank: usize) -> String {
        match self.seats.get(rank) {
            Some(Some(seat)) => named((rank, &seat.hello)),
            _ => format!("rank {rank}"),
        }
    }

    /// The ranks as they see each other, once all are there.
    pub(super) fn peers(&self) -> Vec<Peer> {
        let seats = self.seats.iter().flatten().enumerate();
        let peers = seats.map(|(rank, seat)| Peer {
            rank,
            host: seat.hello.host.clone(),
            device: seat.hello.device.clone(),
        });
        peers.collect()
    }

    /// What is said when ranks have not come after a time.
    pub(super) fn late(&self, timeout: Duration) -> Cause {
        const SHOWN: usize = 4;
        let there = self.present();
        let mut names: Vec<_> = there.iter().take(SHOWN).map(|rank| self.name(*rank)).collect();
        if there.len() > SHOWN {
            names.push("others".to_owned());
        }
        Cause {
            exit: Exit::Failed.code(),
            message: format!(
                "{} of {} did not come within {} s. There: {}. See whether the others were started, and whether their hosts reach this \
                 one.",
                ranks(&self.missing()),
                self.seats.len(),
                timeout.as_secs_f64(),
                names.join(", ")
            ),
        }
    }

    /// A rank is done.
    pub(super) fn leave(&mut self, rank: usize) {
        if let Some(Some(seat)) = self.seats.get_mut(rank) {
            seat.left = true;
            seat.link = None;
        }
    }

    /// A rank waits for a value that is not there yet.
    pub(super) fn wait(&mut self, rank: usize, key: String) {
        self.waiting.entry(key).or_default().push(rank);
    }

    /// The value is there: it goes to who waits for it.
    pub(super) fn deliver(&mut self, key: &str, value: &[u8]) {
        for rank in self.waiting.remove(key).unwrap_or_default() {
            if let Some(Some(Seat { link: Some(link), .. })) = self.seats.get(rank) {
                link.send(&Frame {
                    message: Message::Value { key: key.to_owned() },
                    body: value.to_vec(),
                });
            }
        }
    }
}
