//! First-fit-decreasing packing of samples into rows.
//!
//! Only lengths are looked at. A sample is never split, and a row never holds more than `max_length` tokens unless a single
//! sample is longer than that. Sequences of a row stay isolated: packing decides what is computed together, not what attends to what.

/// Rows of samples: row `r` holds `samples[starts[r]..starts[r + 1]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    starts: Vec<u32>,
    samples: Vec<u32>,
}

impl Rows {
    /// One sample a row.
    pub fn one_each(samples: Vec<u32>) -> Self {
        Rows {
            starts: (0..=samples.len() as u32).collect(),
            samples,
        }
    }

    /// These rows, in this order.
    pub fn from_rows<'a>(rows: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut all = Rows {
            starts: vec![0],
            samples: Vec::new(),
        };
        for row in rows {
            all.samples.extend_from_slice(row);
            all.starts.push(all.samples.len() as u32);
        }
        all
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples of a row.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.samples[self.starts[row] as usize..self.starts[row + 1] as usize]
    }

    /// All rows.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        (0..self.len()).map(|row| self.row(row))
    }
}

/// Packs samples by first-fit-decreasing, window by window in the order given.
///
/// Rows come out in the order of their earliest sample, and samples within a row in the order given, so that packing disturbs an
/// order as little as it can.
pub fn pack(samples: &[u32], length: impl Fn(u32) -> usize, max_length: usize, window: usize) -> Rows {
    let mut rows: Vec<Vec<u32>> = Vec::new();
    for window in samples.chunks(window.max(1)) {
        let lengths: Vec<usize> = window.iter().map(|&sample| length(sample)).collect();
        let packed = first_fit_decreasing(&lengths, max_length);
        rows.extend(
            packed
                .into_iter()
                .map(|row| row.into_iter().map(|place| window[place]).collect()),
        );
    }
    Rows::from_rows(rows.iter().map(Vec::as_slice))
}

/// Rows of indices into `lengths`, each row sorted, the rows sorted by their first index.
fn first_fit_decreasing(lengths: &[usize], max_length: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&place| (std::cmp::Reverse(lengths[place]), place));
    let mut space = Space::new(lengths.len(), max_length);
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for place in order {
        let row = space.take_first(lengths[place].min(max_length));
        if row == rows.len() {
            rows.push(Vec::new());
        }
        rows[row].push(place);
    }
    for row in &mut rows {
        row.sort_unstable();
    }
    rows.sort_unstable_by_key(|row| row[0]);
    rows
}

/// A tournament tree over the free space of the rows: finds the first row with enough of it in O(log rows).
struct Space {
    leaves: usize,
    most: Vec<usize>,
}

impl Space {
    fn new(rows: usize, free: usize) -> Self {
        let leaves = rows.max(1).next_power_of_two();
        Space {
            leaves,
            most: vec![free; 2 * leaves],
        }
    }

    /// Takes `size` out of the first row that has it. There is one row per sample, so that one always has.
    fn take_first(&mut self, size: usize) -> usize {
        let mut node = 1;
        while node < self.leaves {
            node *= 2;
            if self.most[node] < size {
                node += 1;
            }
        }
        let row = node - self.leaves;
        self.most[node] -= size;
        while node > 1 {
            node /= 2;
            self.most[node] = self.most[2 * node].max(self.most[2 * node + 1]);
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_case() {
        let lengths = [2, 5, 4, 7, 1, 3, 8];
        let samples: Vec<u32> = (0..7).collect();
        let rows = pack(&samples, |sample| lengths[sample as usize], 10, 100);
        let rows: Vec<&[u32]> = rows.iter().collect();
        // 8+2, 7+3, 5+4+1
        assert_eq!(rows, [&[0, 6][..], &[1, 2, 4], &[3, 5]]);
    }

    /// First-fit-decreasing the slow way.
    fn reference(lengths: &[usize], max_length: usize) -> usize {
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let mut free: Vec<usize> = Vec::new();
        for length in sorted {
            match free.iter_mut().find(|space| **space >= length) {
                Some(space) => *space -= length,
                None => free.push(max_length - length),
            }
        }
        free.len()
    }

    proptest! {
        #[test]
        fn each_sample_once_and_no_row_too_long(lengths in prop::collection::vec(1_usize..=64, 0..300), window in 1_usize..400) {
            let samples: Vec<u32> = (0..lengths.len() as u32).rev().collect();
            let rows = pack(&samples, |sample| lengths[sample as usize], 64, window);
            let mut seen: Vec<u32> = rows.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len() as u32).collect::<Vec<_>>());
            for row in rows.iter() {
                prop_assert!(!row.is_empty());
                prop_assert!(row.iter().map(|&sample| lengths[sample as usize]).sum::<usize>() <= 64);
            }
            if window >= lengths.len() {
                prop_assert_eq!(rows.len(), reference(&lengths, 64));
            }
        }
    }
}
