//! A mixture of experts: a router gives each token its experts, and only those compute it (Shazeer et al., 2017).

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::mlp::Gated;
use crate::engine::languages::{LanguageRows, row_index};
use crate::engine::pass::Pass;
use crate::engine::routing::Choices;
use crate::layers::linear::Linear;
use crate::ops::as_indices;

/// Router and experts of a block.
#[derive(Clone, Debug)]
pub struct Experts {
    /// The router, `[experts, hidden]`.
    pub router: Linear,
    /// The experts.
    pub experts: Vec<Gated>,
    /// How many each token passes through.
    pub top_k: usize,
    /// Whether the shares of the chosen ones are made to add up to 1.
    pub normalized: bool,
}

/// How tokens were routed.
#[derive(Clone, Debug)]
pub struct Routed {
    /// The experts that were chosen.
    pub choices: Choices,
    /// The router's softmax over all experts, `[tokens, experts]`, f32; with its graph in a tracked pass.
    pub probabilities: Tensor<2>,
}

impl Experts {
    /// x `[tokens, hidden]` to `[tokens, hidden]`: the sum of the outputs of each token's experts, each times its share. `choices`
    /// are taken where they are given; the shares follow the router in any case.
    pub fn forward(
        &self,
        x: Tensor<2>,
        pass: &Pass,
        languages: Option<&LanguageRows>,
        choices: Option<&Choices>,
    ) -> (Tensor<2>, Routed) {
        let [tokens, hidden] = x.dims();
        let scores = self.router.forward_by_language(x.clone(), pass, languages);
        let probabilities = softmax(scores.cast(DType::F32));
        let choices = choices.cloned().unwrap_or_else(|| self.choose(&probabilities));
        let shares = self.shares(&probabilities, &choices);

        let order = Order::of(&choices, self.experts.len());
        let device = x.device();
        let gathered = x.clone().select(0, row_index(&order.tokens, &device));
        let mut outputs = Vec::new();
        for (expert, range) in self.experts.iter().zip(order.starts.windows(2)) {
            let (start, count) = (range[0], range[1] - range[0]);
            if count == 0 {
                continue;
            }
            let rows = &order.tokens[start..start + count];
            let languages = languages.map(|languages| languages.of_rows(rows));
            let pass = pass.of_rows(rows);
            let input = gathered.clone().narrow(0, start, count);
            outputs.push(expert.forward(input, &pass, languages.as_ref()));
        }
        let shares = shares
            .reshape([tokens * self.top_k])
            .select(0, row_index(&order.pairs, &device));
        let weighted = Tensor::cat(outputs, 0) * shares.cast(x.dtype()).reshape([tokens * self.top_k, 1]);
        // Back to the order of tokens, a token's experts side by side.
        let by_token = weighted.select(0, row_index(&order.places(), &device));
        let output = by_token
            .reshape([tokens, self.top_k, hidden])
            .sum_dim(1)
            .reshape([tokens, hidden]);
        let routed = Routed { choices, probabilities };
        (output, routed)
    }

    /// The most probable experts of each token, the first of equals first.
    fn choose(&self, probabilities: &Tensor<2>) -> Choices {
        let [tokens, experts] = probabilities.dims();
        let values: Vec<f32> = probabilities
            .clone()
            .without_autodiff()
            .into_data()
            .iter::<f32>()
            .collect();
        let mut chosen = Vec::with_capacity(tokens * self.top_k);
        let mut order: Vec<u16> = Vec::with_capacity(experts);
        for row in values.chunks_exact(experts.max(1)) {
            order.clear();
            order.extend(0..experts as u16);
            order.sort_by(|one, other| row[usize::from(*other)].total_cmp(&row[usize::from(*one)]));
            chosen.extend_from_slice(&order[..self.top_k]);
        }
        Choices {
            experts: chosen.into(),
            top_k: self.top_k,
        }
    }

    /// What the output of each chosen expert is multiplied with, `[tokens, top_k]`, f32.
    fn shares(&self, probabilities: &Tensor<2>, choices: &Choices) -> Tensor<2> {
        let tokens = probabilities.dims()[0];
        let numbers: Vec<i32> = choices.experts.iter().map(|expert| i32::from(*expert)).collect();
        let data = TensorData::new(numbers, [tokens, self.top_k]);
        let index = as_indices(Tensor::<2, Int>::from_data(
            data,
            &probabilities.device().without_autodiff(),
        ));
        let shares = probabilities.clone().gather(1, index);
        if self.normalized {
            shares.clone() / shares.sum_dim(1)
        } else {
            shares
        }
    }

    /// The router and the layers of all experts.
    pub fn linears(&self) -> Vec<&Linear> {
        let of_experts = self.experts.iter().flat_map(Gated::linears);
        [&self.router].into_iter().chain(of_experts).collect()
    }

    /// The same, to put adapters on.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let of_experts = self.experts.iter_mut().flat_map(Gated::linears_mut);
        [&mut self.router].into_iter().chain(of_experts).collect()
    }
}

/// Softmax over rows, by the same operations with a graph and without, so that a block that is computed again routes as before.
fn softmax(scores: Tensor<2>) -> Tensor<2> {
    let largest = scores.clone().detach().max_dim(1);
    let exponentials = (scores - largest).exp();
    exponentials.clone() / exponentials.sum_dim(1)
}

/// Pairs of token and expert, sorted by expert.
struct Order {
    /// The token of each pair.
    tokens: Vec<u32>,
    /// The number of each pair as the choices have them.
    pairs: Vec<u32>,
    /// Where the pairs of each expert begin; last, the number of pairs.
    starts: Vec<usize>,
}

impl Order {
    fn of(choices: &Choices, experts: usize) -> Self {
        let mut starts = vec![0; experts + 1];
        for expert in choices.experts.iter() {
            starts[usize::from(*expert) + 1] += 1;
        }
        for expert in 0..experts {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let mut pairs = vec![0; choices.experts.len()];
        for (pair, expert) in choices.experts.iter().enumerate() {
            let place = &mut next[usize::from(*expert)];
            pairs[*place] = pair as u32;
            *place += 1;
        }
        Self {
            tokens: pairs.iter().map(|pair| pair / choices.top_k as u32).collect(),
            pairs,
            starts,
        }
    }

    /// Where each pair of the choices stands in this order.
    fn places(&self) -> Vec<u32> {
        let mut places = vec![0; self.pairs.len()];
        for (place, pair) in (0..).zip(&self.pairs) {
            places[*pair as usize] = place;
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_sorted_by_expert_and_found_again() {
        let choices = Choices {
            experts: [2, 0, 0, 1, 2, 1].into(),
            top_k: 2,
        };
        let order = Order::of(&choices, 4);
        assert_eq!(order.starts, [0, 2, 4, 6, 6]);
        assert_eq!(order.pairs, [1, 2, 3, 5, 0, 4]);
        assert_eq!(order.tokens, [0, 1, 1, 2, 0, 2]);
        let places = order.places();
        assert!((0..6).all(|pair| order.pairs[places[pair] as usize] == pair as u32));
    }
}
