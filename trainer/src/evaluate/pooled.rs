//! What stands for a sentence at each layer.

use burn::tensor::{DType, Tensor};
use interlingua_metrics::vectors::Vectors;
use interlingua_recipes::{Pool, Task};

use super::parallel::{Parallel, batches, inputs};
use super::setting::Setting;
use crate::error::TrainError;
use crate::models::Model;
use crate::objectives::averages::averages;
use crate::objectives::middle_layer::pooled_ranges;

/// The sentences of one language at each of `hidden_states.0` to `.L`: for each layer `[sentences, hidden]`, one after another.
pub(super) struct Pooled {
    layers: Vec<Vec<f32>>,
    hidden: usize,
}

impl Pooled {
    /// How many layers there are: L + 1.
    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The sentences at one layer.
    pub(super) fn at(&self, layer: usize) -> Vectors<'_> {
        Vectors::new(&self.layers[layer], self.hidden)
    }
}

impl Parallel {
    /// The sentences of a language, pooled in each of these ways; the model runs once.
    ///
    /// # Errors
    /// When a state is not finite.
    pub(super) fn pooled<const N: usize>(
        &self,
        model: &Model,
        language: usize,
        pools: [Pool; N],
    ) -> Result<[Pooled; N], TrainError> {
        let (tag, sentences) = (self.languages[language].as_str(), &self.sentences[language]);
        let hidden = model.config.hidden_size;
        let mut pooled = pools.map(|_| Pooled {
            layers: vec![Vec::new(); model.blocks.len() + 1],
            hidden,
        });
        for range in batches(sentences.iter().map(Vec::len)) {
            let batch: Vec<(&[u32], &str)> = sentences[range.clone()].iter().map(|ids| (&ids[..], tag)).collect();
            let inputs = inputs(model, &batch);
            let matrix = |pool| averages(&pooled_ranges(pool, &inputs.boundaries), inputs.tokens(), &model.device);
            let matrices: [Tensor<2>; N] = pools.map(matrix);
            model.visit_hidden_states(&inputs, |layer, states| {
                let states = states.cast(DType::F32);
                for (pooled, matrix) in pooled.iter_mut().zip(&matrices) {
                    let rows = matrix.clone().matmul(states.clone()).into_data();
                    pooled.layers[layer].extend(rows.iter::<f32>());
                }
            });
            let is_finite = |sentence: usize| {
                let numbers = sentence * hidden..(sentence + 1) * hidden;
                let mut layers = pooled.iter().flat_map(|pooled| &pooled.layers);
                layers.all(|layer| layer[numbers.clone()].iter().all(|number| number.is_finite()))
            };
            if let Some(sentence) = range.into_iter().find(|sentence| !is_finite(*sentence)) {
                return Err(TrainError::Evaluation {
                    item: self.names[sentence].clone(),
                    language: tag.to_owned(),
                });
            }
        }
        Ok(pooled)
    }
}

/// The layer of a task, as N of `hidden_states.N`.
///
/// # Errors
/// When the model has no such layer.
pub(super) fn layer_of(setting: &Setting, task: &Task) -> Result<usize, TrainError> {
    let blocks = setting.config.num_hidden_layers;
    let layer = task.layer;
    layer.of(blocks).ok_or_else(|| {
        TrainError::Setup(format!(
            "eval task `{}`: `layer` is {layer}, but this model has {blocks} blocks, so layers go from 0 (the embedding) to \
             {blocks} (after the final norm); choose one of them, \"middle\" or \"last\"",
            task.name
        ))
    })
}
