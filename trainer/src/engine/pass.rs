//! One run through one part: hands out parameters, as leaves of the part's graph when gradients are asked for.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use burn::tensor::{DType, Gradients as BurnGradients, Tensor};

use super::gradients::Gradients;
use crate::ops::dropout::Dropout;
use crate::ops::weight::Weight;
use crate::parameters::{ParameterId, Parameters, Stored};
use crate::random::text_key;

/// What a layer needs besides its input.
pub struct Pass<'a> {
    parameters: &'a Parameters,
    dtype: DType,
    tracked: bool,
    /// One key per token of the batch; absent when nothing is to be dropped.
    token_keys: Option<Arc<[u64]>>,
    leaves: Rc<RefCell<Vec<(ParameterId, Tensor<1>)>>>,
}

impl<'a> Pass<'a> {
    /// A pass in the compute dtype. `tracked`: trainable parameters become leaves. `token_keys`: dropout is on.
    pub fn new(parameters: &'a Parameters, dtype: DType, tracked: bool, token_keys: Option<Arc<[u64]>>) -> Self {
        Self {
            parameters,
            dtype,
            tracked,
            token_keys,
            leaves: Rc::default(),
        }
    }

    /// The same pass for gathered tokens; its leaves are this one's.
    pub fn of_rows(&self, rows: &[u32]) -> Self {
        let gathered = |keys: &Arc<[u64]>| rows.iter().map(|row| keys[*row as usize]).collect();
        Self {
            parameters: self.parameters,
            dtype: self.dtype,
            tracked: self.tracked,
            token_keys: self.token_keys.as_ref().map(gathered),
            leaves: Rc::clone(&self.leaves),
        }
    }

    /// What is computed in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows of a table.
    pub fn rows_of(&self, id: ParameterId) -> usize {
        self.parameters.get(id).shape[0]
    }

    /// A parameter as a vector, in the compute dtype.
    pub fn vector(&self, id: ParameterId) -> Tensor<1> {
        let value = self.leaf(id);
        if value.dtype() == self.dtype {
            value
        } else {
            value.cast(self.dtype)
        }
    }

    /// A parameter as the matrix that its shape says, in the compute dtype.
    pub fn matrix(&self, id: ParameterId) -> Tensor<2> {
        let shape = &self.parameters.get(id).shape;
        let shape = [shape[0], shape[1]];
        self.vector(id).reshape(shape)
    }

    /// A parameter as the weight of a linear layer.
    pub fn weight(&self, id: ParameterId) -> Weight {
        match &self.parameters.get(id).value {
            Stored::Dense(_) | Stored::Spread(_) => Weight::Dense(self.matrix(id)),
            Stored::Packed(weight) => Weight::Packed(weight.clone()),
        }
    }

    /// A parameter as a matrix in f32, detached: for values that no gradient flows through.
    pub fn detached_matrix(&self, id: ParameterId) -> Tensor<2> {
        self.parameters.get(id).matrix()
    }

    /// The dropout of a module, when this pass drops anything.
    pub fn dropout(&self, module: &str, probability: f32) -> Option<Dropout> {
        let token_keys = self.token_keys.clone().filter(|_| probability > 0.0)?;
        Some(Dropout {
            token_keys,
            module_key: text_key(module),
            probability,
        })
    }

    fn leaf(&self, id: ParameterId) -> Tensor<1> {
        let parameter = self.parameters.get(id);
        if !(self.tracked && parameter.trainable) {
            return parameter.values();
        }
        let leaf = parameter.values().autodiff().require_grad();
        self.leaves.borrow_mut().push((id, leaf.clone()));
        leaf
    }

    /// Moves the gradients of this pass's leaves to where they add up.
    pub fn collect(self, from: &mut BurnGradients, into: &mut Gradients) {
        for (id, leaf) in self.leaves.take() {
            if let Some(gradient) = leaf.grad_remove(from) {
                into.add(id, gradient);
            }
        }
    }
}
