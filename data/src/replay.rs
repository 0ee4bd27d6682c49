//! Reading a sequence that can only be made from its beginning, at any place.

use std::collections::VecDeque;

/// Items that are kept behind the furthest one that was asked for; whoever asks for earlier ones waits until they are made again.
const KEPT: usize = 1 << 18;

/// The items of an iterator by their number. The latest are kept, so that walking forward makes each item once.
#[derive(Debug)]
pub(crate) struct Replay<I: Iterator> {
    beginning: I,
    rest: I,
    kept: VecDeque<I::Item>,
    /// Number of the first item that is kept.
    first: u64,
}

impl<I: Iterator + Clone> Replay<I> {
    /// The items of this iterator; cloning it must not cost much.
    pub(crate) fn new(beginning: I) -> Self {
        Replay {
            rest: beginning.clone(),
            beginning,
            kept: VecDeque::new(),
            first: 0,
        }
    }

    /// An item; none past the end.
    pub(crate) fn get(&mut self, number: u64) -> Option<&I::Item> {
        if number < self.first {
            self.rest = self.beginning.clone();
            self.kept.clear();
            self.first = 0;
        }
        while number >= self.first + self.kept.len() as u64 {
            self.kept.push_back(self.rest.next()?);
            if self.kept.len() > KEPT {
                self.kept.pop_front();
                self.first += 1;
            }
        }
        self.kept.get((number - self.first) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_can_be_asked_for_in_any_order() {
        let mut replay = Replay::new(0_u64..KEPT as u64 + 50);
        for number in [3, 0, KEPT as u64 + 20, 1, 49] {
            assert_eq!(replay.get(number), Some(&number));
        }
        assert_eq!(replay.get(KEPT as u64 + 50), None);
        assert_eq!(replay.get(7), Some(&7));
    }
}
