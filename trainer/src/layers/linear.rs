//! A linear layer of a model, with adapters or without.

use burn::tensor::Tensor;

use crate::adapters::dora::Dora;
use crate::adapters::{Adapter, ForRows};
use crate::engine::languages::{LanguageRows, Rows, row_index};
use crate::engine::pass::Pass;
use crate::ops::linear::linear;
use crate::parameters::ParameterId;

/// A linear layer: weight `[outputs, inputs]`, bias `[outputs]` where the model has one.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The module path, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Size of the input.
    pub inputs: usize,
    /// Size of the output.
    pub outputs: usize,
    /// The weight.
    pub weight: ParameterId,
    /// The bias.
    pub bias: Option<ParameterId>,
    /// The adapters on it, the lowest one first. What each of them adds is added up.
    pub adapters: Vec<ForRows<Adapter>>,
}

impl Linear {
    /// x `[tokens, inputs]` to `[tokens, outputs]`, where the languages of the rows are not known.
    pub fn forward(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        self.forward_by_language(x, pass, None)
    }

    /// x `[tokens, inputs]` to `[tokens, outputs]`: the base over all rows, and each adapter over those that it is for.
    pub fn forward_by_language(&self, x: Tensor<2>, pass: &Pass, languages: Option<&LanguageRows>) -> Tensor<2> {
        let (mut loras, mut doras) = (Vec::new(), Vec::new());
        for adapter in &self.adapters {
            match (&adapter.adapter, adapter.rows(languages)) {
                (Adapter::Lora(lora), Some(rows)) => loras.push((lora, rows)),
                (Adapter::Dora(dora), Some(rows)) => doras.push((dora, rows)),
                (_, None) => {}
            }
        }
        // The base and one low-rank addition over all rows are one operation.
        let whole = loras.iter().position(|(_, rows)| rows.are_all());
        let whole = whole.filter(|_| doras.is_empty()).map(|index| loras.remove(index));
        let output = if doras.is_empty() {
            let bias = self.bias.map(|bias| pass.vector(bias));
            let operands = whole.map(|(lora, rows)| lora.operands(&self.name, pass, rows));
            linear(x.clone(), pass.weight(self.weight), bias, operands)
        } else {
            self.with_doras(&x, &doras, pass)
        };
        loras.into_iter().fold(output, |output, (lora, rows)| {
            rows.add(output, lora.change(rows.select(&x), &self.name, pass, rows))
        })
    }

    /// The rows of each DoRA under its weights, the other rows under the base's.
    fn with_doras(&self, x: &Tensor<2>, doras: &[(&Dora, Rows)], pass: &Pass) -> Tensor<2> {
        let bias = || self.bias.map(|bias| pass.vector(bias));
        let (mut order, mut pieces) = (Vec::<u32>::new(), Vec::new());
        for (dora, rows) in doras {
            let piece = dora.forward(rows.select(x), self.weight, bias(), &self.name, pass, *rows);
            match rows {
                Rows::All => return piece,
                Rows::Of(language) => order.extend(language.rows()),
            }
            pieces.push(piece);
        }
        let tokens = x.dims()[0];
        let mut place = vec![u32::MAX; tokens];
        (0..)
            .zip(&order)
            .for_each(|(position, row)| place[*row as usize] = position);
        let others: Vec<u32> = (0..tokens as u32)
            .filter(|row| place[*row as usize] == u32::MAX)
            .collect();
        if !others.is_empty() {
            (order.len() as u32..)
                .zip(&others)
                .for_each(|(position, row)| place[*row as usize] = position);
            let x = x.clone().select(0, row_index(&others, &x.device()));
            pieces.push(linear(x, pass.weight(self.weight), bias(), None));
        }
        Tensor::cat(pieces, 0).select(0, row_index(&place, &x.device()))
    }

    /// The parameters this layer reads, those of adapters included.
    pub fn parameters(&self) -> Vec<ParameterId> {
        let adapters = self.adapters.iter().flat_map(|adapter| adapter.adapter.parameters());
        [self.weight].into_iter().chain(self.bias).chain(adapters).collect()
    }
}
