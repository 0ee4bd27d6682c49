//! Text generation with a key-value cache: greedy, or sampled with temperature and nucleus (Holtzman et al., "The Curious
//! Case of Neural Text Degeneration", 2020).

use burn::tensor::{Int, Tensor, TensorData};

use crate::engine::inputs::{Inputs, RopeLength};
use crate::models::Model;
use crate::models::attention::KeyValues;
use crate::random::{key, uniform};

/// How tokens are chosen and when a sequence ends.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// At most this many new tokens.
    pub max_new_tokens: usize,
    /// 0: greedy; else logits are divided by it.
    pub temperature: f32,
    /// Smallest set of tokens whose probability reaches this is sampled from; 1: all.
    pub top_p: f32,
    /// Seed of the sampling.
    pub seed: u64,
    /// Tokens that end a sequence; they are not returned.
    pub stop_tokens: Vec<u32>,
}

/// Whether a sequence ends after the tokens that it has so far.
pub type Until<'a> = dyn Fn(&[u32]) -> bool + 'a;

/// Sequences that are generated together.
const BATCH: usize = 16;

/// What follows each prompt, without the token that ended it. Prompts of any length share their steps; the result for a
/// prompt does not depend on the others. Adapters of one language stand still.
pub fn generate(model: &Model, prompts: &[Vec<u32>], options: &GenerateOptions) -> Vec<Vec<u32>> {
    let unknown = vec![""; prompts.len()];
    generate_by_language(model, prompts, &unknown, options, None)
}

/// The same where the language of each prompt is known, for adapters of one language: a tag in canonical case, empty where
/// it is not known. `until`: what else ends a sequence.
pub fn generate_by_language(
    model: &Model,
    prompts: &[Vec<u32>],
    languages: &[&str],
    options: &GenerateOptions,
    until: Option<&Until>,
) -> Vec<Vec<u32>> {
    // Rotations that depend on the length would make one sequence depend on its neighbours.
    let size = if model.config.depends_on_length() { 1 } else { BATCH };
    let batches = prompts.chunks(size).zip(languages.chunks(size)).enumerate();
    batches
        .flat_map(|(batch, (prompts, languages))| {
            generate_batch(model, prompts, languages, options, until, (batch * size) as u64)
        })
        .collect()
}

/// A sequence that is still growing.
struct Growing {
    /// Its place in the batch.
    index: usize,
    /// Tokens seen so far.
    length: usize,
    /// Tokens to run next.
    pending: Vec<u32>,
}

fn generate_batch(
    model: &Model,
    prompts: &[Vec<u32>],
    languages: &[&str],
    options: &GenerateOptions,
    until: Option<&Until>,
    first_index: u64,
) -> Vec<Vec<u32>> {
    let mut outputs = vec![Vec::new(); prompts.len()];
    let mut growing: Vec<Growing> = prompts
        .iter()
        .enumerate()
        .filter(|(_, prompt)| !prompt.is_empty())
        .map(|(index, prompt)| Growing {
            index,
            length: 0,
            pending: prompt.clone(),
        })
        .collect();
    let mut seen = vec![vec![KeyValues::default(); growing.len()]; model.blocks.len()];
    for step in 0..options.max_new_tokens {
        if growing.is_empty() {
            break;
        }
        let logits = run(model, &growing, languages, &mut seen);
        let mut ended = vec![false; growing.len()];
        for ((sequence, logits), ended) in growing.iter_mut().zip(&logits).zip(&mut ended) {
            let key = key(&[options.seed, first_index + sequence.index as u64]);
            let token = choose(logits, options, uniform(key, step as u64));
            sequence.length += sequence.pending.len();
            sequence.pending = vec![token];
            *ended = options.stop_tokens.contains(&token);
            if !*ended {
                outputs[sequence.index].push(token);
                // A model with learned positions has none for what would follow.
                *ended = until.is_some_and(|until| until(&outputs[sequence.index]))
                    || model
                        .config
                        .learned_positions()
                        .is_some_and(|count| sequence.length >= count);
            }
        }
        keep(&mut growing, &ended);
        seen.iter_mut().for_each(|block| keep(block, &ended));
    }
    outputs
}

fn keep<T>(list: &mut Vec<T>, ended: &[bool]) {
    let mut ended = ended.iter();
    list.retain(|_| !ended.next().copied().unwrap_or(false));
}

/// The logits after the pending tokens of each sequence.
fn run(model: &Model, growing: &[Growing], languages: &[&str], seen: &mut [Vec<KeyValues>]) -> Vec<Vec<f32>> {
    let (mut ids, mut positions, mut boundaries) = (Vec::new(), Vec::new(), vec![0]);
    for sequence in growing {
        ids.extend(&sequence.pending);
        positions.extend((0..sequence.pending.len()).map(|offset| (sequence.length + offset) as u32));
        boundaries.push(ids.len());
    }
    let longest = positions.iter().max().map_or(0, |last| *last as usize + 1);
    let length = RopeLength::Fixed(longest);
    let inputs = Inputs::new(&model.config, &ids, &positions, &boundaries, length, &model.device);
    let languages: Vec<&str> = growing.iter().map(|sequence| languages[sequence.index]).collect();
    let inputs = inputs.with_languages(&languages);
    let hidden = model.last_hidden_state(&inputs, Some(seen));
    let last: Vec<i32> = boundaries[1..].iter().map(|end| *end as i32 - 1).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(last, [growing.len()]), &model.device);
    let logits = model.logits(hidden.select(0, rows));
    let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
    values.chunks(model.config.vocab_size).map(<[f32]>::to_vec).collect()
}

/// The next token: the largest logit, or a draw from the nucleus by `uniform` in [0, 1).
fn choose(logits: &[f32], options: &GenerateOptions, uniform: f32) -> u32 {
    let best = (0..logits.len())
        .max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)))
        .unwrap_or(0);
    if options.temperature <= 0.0 {
        return best as u32;
    }
    let weight = |index: usize| f64::from((logits[index] - logits[best]) / options.temperature).exp();
    let mut order: Vec<(usize, f64)> = (0..logits.len()).map(|index| (index, weight(index))).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let total: f64 = order.iter().map(|(_, weight)| weight).sum();
    let mut kept = 0.0;
    let nucleus = order.iter().position(|(_, weight)| {
        kept += weight;
        kept >= f64::from(options.top_p) * total
    });
    order.truncate(nucleus.map_or(order.len(), |last| last + 1));
    let mut left = f64::from(uniform) * order.iter().map(|(_, weight)| weight).sum::<f64>();
    for (index, weight) in &order {
        left -= weight;
        if left < 0.0 {
            return *index as u32;
        }
    }
    order[order.len() - 1].0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(temperature: f32, top_p: f32) -> GenerateOptions {
        GenerateOptions {
            max_new_tokens: 1,
            temperature,
            top_p,
            seed: 0,
            stop_tokens: Vec::new(),
        }
    }

    #[test]
    fn greedy_takes_the_largest_logit_and_the_first_of_equals() {
        assert_eq!(choose(&[0.1, 2.0, 2.0, -1.0], &options(0.0, 1.0), 0.9), 1);
    }

    #[test]
    fn the_nucleus_leaves_out_the_tail() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        for draw in 0..100 {
            assert_ne!(choose(&logits, &options(1.0, 0.75), draw as f32 / 100.0), 2);
        }
        assert_eq!(choose(&logits, &options(1.0, 1.0), 0.95), 2);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0];
        let mut counts = [0usize; 3];
        (0..3000).for_each(|draw| counts[choose(&logits, &options(1.0, 1.0), draw as f32 / 3000.0) as usize] += 1);
        let total: f64 = logits.iter().map(|logit: &f32| f64::from(*logit).exp()).sum();
        for (count, logit) in counts.iter().zip(logits) {
            assert!((*count as f64 / 3000.0 - f64::from(logit).exp() / total).abs() < 2e-3);
        }
    }
}
