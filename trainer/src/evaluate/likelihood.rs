//! How likely several texts are after one prompt, which runs once: each text goes on from its keys and values.

use super::perplexity::BATCH_TOKENS;
use crate::engine::head::{Targets, log_probs};
use crate::engine::inputs::{Inputs, RopeLength};
use crate::models::Model;
use crate::models::attention::KeyValues;

/// A prompt and the texts that may follow it, as tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Branches {
    /// What all of them begin with.
    pub(super) prefix: Vec<u32>,
    /// What follows, and where in it the tokens that count begin.
    pub(super) branches: Vec<(Vec<u32>, usize)>,
}

impl Branches {
    /// Of whole sequences, each with the index of the first token that counts: what they have in common before that is the prefix.
    pub(super) fn new(sequences: &[(Vec<u32>, usize)]) -> Self {
        let first = sequences.first().map_or(&[][..], |(ids, _)| ids);
        let is_shared = |index: usize| {
            let mut all = sequences.iter();
            all.all(|(ids, start)| index < *start && ids.get(index) == Some(&first[index]))
        };
        let shared = (0..first.len()).take_while(|index| is_shared(*index)).count();
        let branch = |(ids, start): &(Vec<u32>, usize)| (ids[shared..].to_vec(), start - shared);
        Self {
            prefix: first[..shared].to_vec(),
            branches: sequences.iter().map(branch).collect(),
        }
    }

    fn tokens(&self) -> usize {
        self.prefix.len() + self.branches.iter().map(|(ids, _)| ids.len()).sum::<usize>()
    }
}

/// Sums of the log-probabilities of the tokens that count, for each branch of each item. A first token that nothing precedes counts
/// nothing. `languages`: one for each item.
pub(super) fn branch_log_probs(model: &Model, items: &[&Branches], languages: &[&str]) -> Vec<Vec<f64>> {
    let mut sums = Vec::with_capacity(items.len());
    let mut start = 0;
    while start < items.len() {
        let mut tokens = 0;
        let fits = |item: &&&Branches| {
            tokens += item.tokens();
            tokens <= BATCH_TOKENS
        };
        let count = items[start..].iter().take_while(fits).count().max(1);
        let range = start..start + count;
        sums.extend(batch(model, &items[range.clone()], &languages[range]));
        start += count;
    }
    sums
}

fn batch(model: &Model, items: &[&Branches], languages: &[&str]) -> Vec<Vec<f64>> {
    // Rotations that depend on the length of the whole sequence cannot be shared.
    if model.config.depends_on_length() || items.iter().any(|item| item.prefix.is_empty()) {
        return whole(model, items, languages);
    }
    let mut sums: Vec<Vec<f64>> = items.iter().map(|item| vec![0.0; item.branches.len()]).collect();

    let prefixes: Vec<Sequence> = items
        .iter()
        .zip(languages)
        .map(|(item, language)| Sequence {
            ids: &item.prefix,
            first: 0,
            language,
        })
        .collect();
    let mut seen = vec![vec![KeyValues::default(); items.len()]; model.blocks.len()];
    let (inputs, ends) = inputs(model, &prefixes);
    let hidden = model.last_hidden_state(&inputs, Some(&mut seen));
    // The last token of a prefix says what each branch begins with.
    let mut targets = Targets::default();
    let mut owners = Vec::new();
    let mut going_on: Vec<(usize, usize)> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        for (branch, (ids, from)) in item.branches.iter().enumerate() {
            if *from == 0 && !ids.is_empty() {
                targets.positions.push(ends[index] as u32 - 1);
                targets.tokens.push(ids[0]);
                owners.push((index, branch));
            }
            if ids.len() > 1 {
                going_on.push((index, branch));
            }
        }
    }
    add(&mut sums, &owners, log_probs(model, &hidden, &targets));

    let sequences: Vec<Sequence> = going_on
        .iter()
        .map(|(index, branch)| {
            let ids = &items[*index].branches[*branch].0;
            Sequence {
                ids: &ids[..ids.len() - 1],
                first: items[*index].prefix.len(),
                language: languages[*index],
            }
        })
        .collect();
    if sequences.is_empty() {
        return sums;
    }
    let branch_seen = |block: &Vec<KeyValues>| going_on.iter().map(|(index, _)| block[*index].clone()).collect();
    let mut seen: Vec<Vec<KeyValues>> = seen.iter().map(branch_seen).collect();
    let (inputs, ends) = self::inputs(model, &sequences);
    let hidden = model.last_hidden_state(&inputs, Some(&mut seen));
    let mut targets = Targets::default();
    let mut owners = Vec::new();
    for ((index, branch), end) in going_on.iter().zip(ends) {
        let (ids, from) = &items[*index].branches[*branch];
        for (place, token) in ids.iter().enumerate().skip((*from).max(1)) {
            targets.positions.push((end - (ids.len() - place)) as u32);
            targets.tokens.push(*token);
            owners.push((*index, *branch));
        }
    }
    add(&mut sums, &owners, log_probs(model, &hidden, &targets));
    sums
}

/// Every branch with its prefix, as a sequence by itself.
fn whole(model: &Model, items: &[&Branches], languages: &[&str]) -> Vec<Vec<f64>> {
    let mut sums: Vec<Vec<f64>> = items.iter().map(|item| vec![0.0; item.branches.len()]).collect();
    for (index, item) in items.iter().enumerate() {
        for (branch, (ids, from)) in item.branches.iter().enumerate() {
            let all: Vec<u32> = item.prefix.iter().chain(ids).copied().collect();
            let sequence = Sequence {
                ids: &all,
                first: 0,
                language: languages[index],
            };
            let (inputs, _) = inputs(model, &[sequence]);
            let hidden = model.last_hidden_state(&inputs, None);
            let counted = (item.prefix.len() + from).max(1)..all.len();
            let targets = Targets {
                positions: counted.clone().map(|place| place as u32 - 1).collect(),
                tokens: all[counted].to_vec(),
            };
            sums[index][branch] = log_probs(model, &hidden, &targets).into_iter().map(f64::from).sum();
        }
    }
    sums
}

fn add(sums: &mut [Vec<f64>], owners: &[(usize, usize)], log_probs: Vec<f32>) {
    for ((index, branch), log_prob) in owners.iter().zip(log_probs) {
        sums[*index][*branch] += f64::from(log_prob);
    }
}

/// Tokens that stand from a position on.
struct Sequence<'a> {
    ids: &'a [u32],
    first: usize,
    language: &'a str,
}

/// Sequences end to end, and where each ends.
fn inputs(model: &Model, sequences: &[Sequence]) -> (Inputs, Vec<usize>) {
    let (mut ids, mut positions, mut boundaries) = (Vec::new(), Vec::new(), vec![0]);
    for sequence in sequences {
        ids.extend(sequence.ids);
        positions.extend((0..sequence.ids.len()).map(|place| (sequence.first + place) as u32));
        boundaries.push(ids.len());
    }
    let inputs = Inputs::new(
        &model.config,
        &ids,
        &positions,
        &boundaries,
        RopeLength::Own,
        &model.device,
    );
    let languages: Vec<&str> = sequences.iter().map(|sequence| sequence.language).collect();
    (inputs.with_languages(&languages), boundaries.split_off(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_before_the_counted_tokens_is_the_prefix() {
        let branches = Branches::new(&[(vec![1, 2, 3, 4], 2), (vec![1, 2, 3, 5, 6], 3)]);
        assert_eq!(branches.prefix, [1, 2]);
        assert_eq!(branches.branches, [(vec![3, 4], 0), (vec![3, 5, 6], 1)]);
        // A tokenizer that joins the end of the prompt with the answer.
        let joined = Branches::new(&[(vec![1, 9], 1), (vec![1, 2, 5], 2)]);
        assert_eq!(
            (joined.prefix, joined.branches),
            (vec![1], vec![(vec![9], 0), (vec![2, 5], 1)])
        );
    }
}
