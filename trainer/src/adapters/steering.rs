//! Steering: a vector added to the residual stream, `h ← h + s · v` at every position of `hidden_states.N`, all weights frozen.
//! At the last layer it is added before the final norm.

use burn::tensor::Tensor;
use interlingua_checkpoints::config::ModelConfig;
use interlingua_recipes::{Adapter as AdapterRecipe, Layer};

use crate::engine::pass::Pass;
use crate::error::TrainError;
use crate::parameters::ParameterId;

/// A vector `[hidden]` for the output of one block.
#[derive(Clone, Debug)]
pub struct Steering {
    /// v.
    pub vector: ParameterId,
    /// s.
    pub scale: f32,
}

impl Steering {
    /// What is added to these rows, `[rows, hidden]`.
    pub fn change(&self, rows: &Tensor<2>, pass: &Pass) -> Tensor<2> {
        (pass.vector(self.vector) * self.scale)
            .unsqueeze::<2>()
            .expand(rows.dims())
    }
}

/// N of a recipe's `adapter.layer` in a model: from 1, the first block's output, to the number of blocks.
pub fn layer_of(recipe: &AdapterRecipe, config: &ModelConfig) -> Result<usize, TrainError> {
    let blocks = config.num_hidden_layers;
    let layer = recipe.layer.unwrap_or(Layer::Middle);
    layer.of(blocks).filter(|layer| *layer > 0).ok_or_else(|| {
        let written = match layer {
            Layer::Number(layer) => layer.to_string(),
            Layer::Middle => "\"middle\"".to_owned(),
            Layer::Last => "\"last\"".to_owned(),
        };
        TrainError::Setup(format!(
            "adapter.layer is {written}, but this model has {blocks} blocks: write a number from 1 to {blocks}"
        ))
    })
}
