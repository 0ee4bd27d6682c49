//! Which experts the tokens of a micro-batch pass through, block by block: kept from the forward pass for the backward pass, which
//! makes the same graph again, and for the router's loss and the use of experts by language.

use std::ops::Range;
use std::sync::Arc;

/// The experts that the tokens of a block pass through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices {
    /// Expert of each token and place, `[tokens, top_k]`; a token's experts are in falling order of their shares.
    pub experts: Arc<[u16]>,
    /// How many each token has.
    pub top_k: usize,
}

impl Choices {
    /// The choices of a run of tokens.
    #[must_use]
    pub fn tile(&self, tokens: &Range<usize>) -> Self {
        Self {
            experts: self.experts[tokens.start * self.top_k..tokens.end * self.top_k].into(),
            top_k: self.top_k,
        }
    }

    /// Those of one run of tokens after another.
    pub fn joined(parts: &[Self]) -> Option<Self> {
        let top_k = parts.first()?.top_k;
        let experts = parts.iter().flat_map(|part| part.experts.iter().copied());
        Some(Self {
            experts: experts.collect(),
            top_k,
        })
    }
}

/// What the router of one block made of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// The block.
    pub block: usize,
    /// The experts that were chosen.
    pub choices: Choices,
    /// The sum over tokens of each expert's probability, `[experts]`.
    pub probabilities: Vec<f64>,
}

impl Routing {
    /// How many experts there are.
    pub fn experts(&self) -> usize {
        self.probabilities.len()
    }

    /// How often each expert was chosen by a run of tokens.
    pub fn counts(&self, tokens: &Range<usize>) -> Vec<u64> {
        let mut counts = vec![0; self.experts()];
        let top_k = self.choices.top_k;
        let chosen = &self.choices.experts[tokens.start * top_k..tokens.end * top_k];
        chosen.iter().for_each(|expert| counts[usize::from(*expert)] += 1);
        counts
    }
}

/// How often the tokens of a language, or of an item, pass through each expert of each block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertUse {
    /// Tokens by block and expert; a block without experts has none.
    pub counts: Vec<Vec<u64>>,
}

impl ExpertUse {
    /// Adds a run of a micro-batch's tokens.
    pub fn add(&mut self, routing: &[Routing], tokens: &Range<usize>) {
        for routing in routing {
            let counts = routing.counts(tokens);
            self.add_counts(routing.block, &counts);
        }
    }

    /// Adds what was counted elsewhere.
    pub fn add_all(&mut self, counts: &[Vec<u64>]) {
        for (block, counts) in counts.iter().enumerate() {
            self.add_counts(block, counts);
        }
    }

    fn add_counts(&mut self, block: usize, counts: &[u64]) {
        if self.counts.len() <= block {
            self.counts.resize(block + 1, Vec::new());
        }
        let sums = &mut self.counts[block];
        sums.resize(counts.len().max(sums.len()), 0);
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }

    /// The shares of experts in each block, which add up to 1.
    pub fn shares(&self) -> Vec<Vec<f64>> {
        let of_block = |counts: &Vec<u64>| {
            let all: u64 = counts.iter().sum();
            counts.iter().map(|count| *count as f64 / all.max(1) as f64).collect()
        };
        self.counts.iter().map(of_block).collect()
    }

    /// The entropy of the shares over its largest value, `ln(experts)`, averaged over blocks: 1 where all experts are used alike, 0
    /// where one does everything. Nothing without experts.
    pub fn entropy(&self) -> Option<f64> {
        let shares = self.shares();
        let of_block = |shares: &&Vec<f64>| {
            let terms = shares
                .iter()
                .filter(|share| **share > 0.0)
                .map(|share| -share * share.ln());
            terms.sum::<f64>() / (shares.len() as f64).ln()
        };
        let entropies: Vec<f64> = shares
            .iter()
            .filter(|shares| shares.len() > 1)
            .map(|shares| of_block(&shares))
            .collect();
        (!entropies.is_empty()).then(|| entropies.iter().sum::<f64>() / entropies.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_counted_by_range_and_its_entropy_lies_between_none_and_all() {
        let routing = Routing {
            block: 1,
            choices: Choices {
                experts: [0, 1, 2, 3, 0, 1].into(),
                top_k: 2,
            },
            probabilities: vec![0.0; 4],
        };
        let mut used = ExpertUse::default();
        let routing = [routing];
        used.add(&routing, &(0..2));
        assert_eq!(used.counts, [vec![], vec![1, 1, 1, 1]]);
        assert_eq!(used.entropy(), Some(1.0));
        used.add(&routing, &(2..3));
        assert_eq!(used.shares()[1], [2.0 / 6.0, 2.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0]);
        assert!(used.entropy().is_some_and(|entropy| entropy < 1.0));
        assert_eq!(ExpertUse::default().entropy(), None);
    }
}
