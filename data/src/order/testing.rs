//! Small datasets and recipes for the tests of the order.

use std::path::Path;
use std::sync::OnceLock;

use interlingua_recipes::{Mix, Parallel, Recipe};

use super::Order;
use crate::dataset::Dataset;
use crate::tokenized_file::TokenizedSample;

pub(super) const LANGUAGES: [&str; 4] = ["ar", "en", "hi", "sw"];

/// A sample of so many tokens, all supervised but the first.
pub(super) fn sample(language: u32, group: u64, tokens: usize) -> TokenizedSample {
    TokenizedSample {
        input_ids: vec![1; tokens],
        labels: vec![1; tokens],
        language,
        group,
        ..Default::default()
    }
}

pub(super) fn dataset(samples: &[TokenizedSample]) -> Dataset {
    Dataset::in_memory(&LANGUAGES, samples).unwrap()
}

/// A recipe with rows of 32 tokens, and what is asked for in these.
pub(super) fn recipe(
    mix: Mix,
    parallel: Option<Parallel>,
    shuffle: bool,
    packing: bool,
    batch: (usize, usize),
) -> Recipe {
    static BASE: OnceLock<Recipe> = OnceLock::new();
    let text = "output = \"out\"\n[model]\npath = \"m\"\n[[data.sources]]\npath = \"a.txt\"\nformat = \"text\"\n";
    let mut recipe = BASE
        .get_or_init(|| Recipe::parse(text, Path::new("/recipe.toml"), &[]).unwrap())
        .clone();
    recipe.seed = 3;
    recipe.data.max_length = 32;
    recipe.data.mix = mix;
    recipe.data.parallel = parallel;
    recipe.data.shuffle = shuffle;
    recipe.data.packing = packing;
    (recipe.train.batch_size, recipe.train.gradient_accumulation) = batch;
    recipe
}

/// All rows of a step over micro-batches and ranks, in global order.
pub(super) fn step(order: &Order, step: u64, world: usize) -> Vec<Vec<u32>> {
    let ranks: Vec<_> = (0..world).map(|rank| order.step_rows(step, rank, world)).collect();
    let micro_steps = ranks[0].len();
    assert!(ranks.iter().all(|rank| rank.len() == micro_steps));
    (0..micro_steps)
        .flat_map(|micro| ranks.iter().flat_map(move |rank| rank[micro].clone()))
        .collect()
}
