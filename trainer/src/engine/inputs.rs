//! A micro-batch on the device, without padding: sequences laid end to end.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::rope::{Rope, inv_freq};

use super::languages::LanguageRows;
use crate::ops::dropout::Dropout;
use crate::ops::rotary::RotaryTable;

/// What every part reads besides its chain input.
#[derive(Clone)]
pub struct Inputs {
    /// The tokens on the device, `[tokens]`.
    pub input_ids: Tensor<1, Int>,
    /// The same on the host.
    pub token_ids: Arc<[u32]>,
    /// Where sequences begin: first 0, last `tokens`.
    pub boundaries: Arc<[usize]>,
    /// Where each token stands in its sequence.
    pub position_ids: Arc<[u32]>,
    /// Rotations of queries and keys, for each of the model's ropes.
    pub rotary: Arc<[RotaryTable]>,
    /// One key per token, for dropout; absent when nothing is dropped.
    pub token_keys: Option<Arc<[u64]>>,
    /// Which rows belong to which language; absent when that is not known, and then adapters of one language stand still.
    pub languages: Option<Arc<LanguageRows>>,
}

/// How long a sequence counts as, for rotary embeddings whose frequencies depend on it (`dynamic`).
#[derive(Clone, Copy, Debug)]
pub enum RopeLength {
    /// Each sequence its own: packing changes nothing.
    Own,
    /// All of them the same: a padded batch as Transformers sees it, or a sequence that is being generated.
    Fixed(usize),
}

impl Inputs {
    /// Flat `input_ids` and `position_ids` `[tokens]` of sequences that begin at `boundaries`.
    pub fn new(
        config: &ModelConfig,
        input_ids: &[u32],
        position_ids: &[u32],
        boundaries: &[usize],
        rope_length: RopeLength,
        device: &Device,
    ) -> Self {
        let ids: Vec<i32> = input_ids.iter().map(|id| *id as i32).collect();
        Self {
            input_ids: Tensor::from_data(TensorData::new(ids, [input_ids.len()]), device),
            token_ids: input_ids.into(),
            boundaries: boundaries.into(),
            position_ids: position_ids.into(),
            rotary: config
                .ropes
                .iter()
                .map(|rope| rotary_table(rope, position_ids, boundaries, rope_length, device))
                .collect(),
            token_keys: None,
            languages: None,
        }
    }

    /// Says the language of each sequence, for adapters that are for one language. Languages are told apart by their tags
    /// in canonical case.
    pub fn with_languages(mut self, languages: &[&str]) -> Self {
        self.languages = Some(Arc::new(LanguageRows::new(&self.boundaries, languages)));
        self
    }

    /// Turns dropout on: `samples` holds one global index per sequence.
    pub fn with_dropout(mut self, seed: u64, step: u64, samples: &[u64]) -> Self {
        let sequences = self.boundaries.windows(2).zip(samples);
        let keys = sequences.flat_map(|(range, sample)| {
            (0..range[1] - range[0]).map(|position| Dropout::token_key(seed, step, *sample, position as u32))
        });
        self.token_keys = Some(keys.collect());
        self
    }

    /// A run of tokens by itself, for what works token by token: it knows nothing of where sequences begin.
    #[must_use]
    pub fn tile(&self, tokens: Range<usize>) -> Self {
        let narrow = |table: &Tensor<2>| table.clone().narrow(0, tokens.start, tokens.len());
        Self {
            input_ids: self.input_ids.clone().narrow(0, tokens.start, tokens.len()),
            token_ids: self.token_ids[tokens.clone()].into(),
            boundaries: [0, tokens.len()].into(),
            position_ids: self.position_ids[tokens.clone()].into(),
            rotary: self
                .rotary
                .iter()
                .map(|table| RotaryTable {
                    cos: narrow(&table.cos),
                    sin: narrow(&table.sin),
                    interleaved: table.interleaved,
                })
                .collect(),
            token_keys: self.token_keys.as_ref().map(|keys| keys[tokens.clone()].into()),
            languages: self
                .languages
                .as_ref()
                .map(|languages| Arc::new(languages.tile(tokens))),
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.boundaries.last().copied().unwrap_or(0)
    }
}

fn rotary_table(
    rope: &Rope,
    position_ids: &[u32],
    boundaries: &[usize],
    length: RopeLength,
    device: &Device,
) -> RotaryTable {
    let table = |positions: &[u32], length: usize| {
        let (frequencies, attention_factor) = inv_freq(rope, length);
        RotaryTable::new(&frequencies, attention_factor, positions, rope.interleaved, device)
    };
    match length {
        RopeLength::Fixed(length) => table(position_ids, length),
        RopeLength::Own if !rope.depends_on_length() => table(position_ids, 0),
        RopeLength::Own => {
            let tables = boundaries.windows(2).map(|range| {
                let positions = &position_ids[range[0]..range[1]];
                table(positions, positions.iter().max().map_or(0, |last| *last as usize + 1))
            });
            let (cos, sin) = tables.map(|table| (table.cos, table.sin)).unzip();
            RotaryTable {
                cos: Tensor::cat(cos, 0),
                sin: Tensor::cat(sin, 0),
                interleaved: rope.interleaved,
            }
        }
    }
}
