//! What one forward and backward pass reads: sequences laid end to end, without padding.

use crate::dataset::Dataset;

/// The label of a token that the loss leaves out.
pub const UNSUPERVISED: i32 = -100;

/// One micro-batch, without padding: sequences laid end to end.
///
/// A micro-batch of the last step of a run can have no sequence at all (see [`crate::order::Order::for_recipe`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MicroBatch {
    /// Token ids, `[tokens]`.
    pub input_ids: Vec<u32>,
    /// Labels, `[tokens]`, aligned with `input_ids` and not shifted; [`UNSUPERVISED`] where the loss leaves a token out.
    pub labels: Vec<i32>,
    /// Positions, `[tokens]`, from 0 in each sequence.
    pub position_ids: Vec<u32>,
    /// The sequences, in the order in which they lie in the lists above.
    pub sequences: Vec<Sequence>,
    /// Number of packed rows that the sequences came from; at most the batch size.
    pub rows: usize,
}

/// Where one sample lies in a [`MicroBatch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Index of its first token in the micro-batch.
    pub start: usize,
    /// Number of tokens.
    pub length: usize,
    /// Index into [`crate::dataset::Dataset::languages`].
    pub language: u16,
    /// Index of the sample in its [`crate::dataset::Dataset`]; keys dropout and names the sample in messages
    /// (see [`crate::dataset::Dataset::describe`]).
    pub sample: u64,
    /// Which of the sample's sequences it is: 0 but for answers and options (see [`crate::dataset::Dataset::parts`]).
    pub part: u16,
}

impl MicroBatch {
    /// Lays one more sequence at the end. `input_ids` and `labels` are of equal length.
    pub fn push(&mut self, input_ids: &[u32], labels: &[i32], language: u16, sample: u64, part: u16) {
        let start = self.input_ids.len();
        self.input_ids.extend_from_slice(input_ids);
        self.labels.extend_from_slice(labels);
        self.position_ids.extend(0..input_ids.len() as u32);
        self.sequences.push(Sequence {
            start,
            length: input_ids.len(),
            language,
            sample,
            part,
        });
    }

    /// Lays all sequences of a sample of a dataset at the end.
    pub fn push_sample(&mut self, dataset: &Dataset, sample: usize) {
        let (input_ids, labels) = dataset.tokens(sample);
        for (part, range) in (0..).zip(dataset.parts(sample)) {
            let (input_ids, labels) = (&input_ids[range.clone()], &labels[range]);
            self.push(input_ids, labels, dataset.language(sample), sample as u64, part);
        }
    }

    /// Lays the sequences of another micro-batch at the end.
    pub fn append(&mut self, more: &MicroBatch) {
        for sequence in &more.sequences {
            let (input_ids, labels) = (&more.input_ids[sequence.range()], &more.labels[sequence.range()]);
            self.push(input_ids, labels, sequence.language, sequence.sample, sequence.part);
        }
        self.rows += more.rows;
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Number of supervised tokens: labels that have a token before them in their sequence.
    pub fn supervised_tokens(&self) -> usize {
        self.sequences
            .iter()
            .map(|sequence| supervised_tokens(&self.labels[sequence.range()]))
            .sum()
    }
}

impl Sequence {
    /// The indices of its tokens in the micro-batch.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.length
    }
}

/// Number of supervised tokens of one sequence: labels that are not [`UNSUPERVISED`] and have a token before them.
pub fn supervised_tokens(labels: &[i32]) -> usize {
    labels.iter().skip(1).filter(|&&label| label != UNSUPERVISED).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_restart_and_first_labels_do_not_count() {
        let mut batch = MicroBatch::default();
        batch.push(&[5, 6, 7], &[5, -100, 7], 0, 3, 0);
        batch.push(&[8, 9], &[8, 9], 1, 4, 0);
        assert_eq!(batch.position_ids, [0, 1, 2, 0, 1]);
        assert_eq!(
            batch.sequences[1],
            Sequence {
                start: 3,
                length: 2,
                language: 1,
                sample: 4,
                part: 0
            }
        );
        assert_eq!(batch.tokens(), 5);
        assert_eq!(batch.supervised_tokens(), 2);
    }
}
