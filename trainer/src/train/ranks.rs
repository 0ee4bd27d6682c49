//! What the processes of a run agree on.

use crate::collectives::{Alone, Collectives};
use crate::device::host_name;
use crate::error::TrainError;
use crate::train::Outcome;

/// A stage that the first process does while the others wait. Where it fails, the run ends on all of them.
pub fn first_alone(
    collectives: &dyn Collectives,
    stage: impl FnOnce() -> Result<Outcome, TrainError>,
) -> Result<Outcome, TrainError> {
    let is_new = collectives.rank() == 0 && stage()? != Outcome::AlreadyFinished;
    Ok(match agree(collectives, is_new.then_some(0)) {
        Some(_) => Outcome::Finished,
        None => Outcome::AlreadyFinished,
    })
}

/// The number that the first process has, where it has one.
pub fn agree(collectives: &dyn Collectives, number: Option<u64>) -> Option<u64> {
    let bytes = number.map_or_else(Vec::new, |number| number.to_le_bytes().to_vec());
    let all = collectives.gather(&bytes);
    all.first().filter(|bytes| !bytes.is_empty()).map(|bytes| word(bytes))
}

/// The numbers of all processes, by rank.
pub fn numbers(collectives: &dyn Collectives, number: u64) -> Vec<u64> {
    let all = collectives.gather(&number.to_le_bytes());
    all.iter().map(|bytes| word(bytes)).collect()
}

/// How many of the processes run on this host. Where hosts cannot be told apart, all of them.
pub fn on_this_host(collectives: &dyn Collectives) -> usize {
    let name = host_name();
    let names = collectives.gather(name.as_bytes());
    names.iter().filter(|other| **other == name.as_bytes()).count()
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(word)
}

/// How the batches of a pass without gradients are dealt to the processes.
#[derive(Clone, Copy)]
pub struct Deal<'a> {
    collectives: &'a dyn Collectives,
    /// Whether every process has to compute all of them, as where weights come together from all processes.
    together: bool,
}

impl<'a> Deal<'a> {
    /// Among these processes.
    pub fn new(collectives: &'a dyn Collectives, together: bool) -> Self {
        Self { collectives, together }
    }

    /// Whether this process computes the batch with this number.
    pub fn is_mine(self, number: usize) -> bool {
        self.together || number % self.collectives.world_size() == self.collectives.rank()
    }

    /// Whether this process speaks for all.
    pub fn is_first(self) -> bool {
        self.collectives.rank() == 0
    }

    /// Whether something holds on all processes.
    pub fn all(self, holds: bool) -> bool {
        !numbers(self.collectives, u64::from(holds)).contains(&0)
    }

    /// Adds up what the processes computed.
    pub fn add_up(self, values: &mut [f64]) {
        if !self.together {
            self.collectives.sum(values);
        }
    }

    /// What each process has to say, by rank; of all that computed the same only one.
    pub fn gather(self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        if self.together {
            vec![bytes]
        } else {
            self.collectives.gather(&bytes)
        }
    }

    /// Among how many the batches are dealt.
    pub fn shares(self) -> usize {
        if self.together {
            1
        } else {
            self.collectives.world_size()
        }
    }

    /// What the first process has to say.
    pub fn from_first(self, bytes: Vec<u8>) -> Vec<u8> {
        let own = if self.is_first() { bytes } else { Vec::new() };
        self.collectives.gather(&own).into_iter().next().unwrap_or_default()
    }

    /// The processes whose sums are to be added up; none but this one where all compute everything.
    pub fn collectives(self) -> &'a dyn Collectives {
        if self.together { &Alone } else { self.collectives }
    }
}
