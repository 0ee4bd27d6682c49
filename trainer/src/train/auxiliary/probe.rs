//! Probing for Lens: what the model says of each language before training.

use std::collections::BTreeMap;

use burn::tensor::DType;
use interlingua_data::batch::MicroBatch;
use interlingua_data::dataset::Dataset;
use interlingua_recipes::Auxiliary;

use crate::models::Model;
use crate::train::step::inputs_and_targets;

/// The mean state of the last token over the first rows of each language, by its tag.
pub(super) fn probe(
    model: &Model,
    dataset: &Dataset,
    auxiliary: &Auxiliary,
    layer: usize,
) -> BTreeMap<String, Vec<f64>> {
    let rows = auxiliary.probe_rows.unwrap_or(300) as u64;
    let longest = auxiliary.probe_length.unwrap_or(64);
    let mut sums = BTreeMap::<u16, (Vec<f64>, u64)>::new();
    for sample in 0..dataset.len() {
        let language = dataset.language(sample);
        let (sum, count) = sums.entry(language).or_default();
        if *count == rows {
            continue;
        }
        let (ids, labels) = dataset.tokens(sample);
        let length = ids.len().min(longest);
        let mut batch = MicroBatch::default();
        batch.push(&ids[..length], &labels[..length], language, sample as u64, 0);
        let (inputs, _) = inputs_and_targets(model, &batch, dataset.languages());
        let state = model.hidden_state(&inputs, layer).narrow(0, length - 1, 1);
        let state: Vec<f64> = state.cast(DType::F32).into_data().iter::<f64>().collect();
        sum.resize(state.len(), 0.0);
        sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += value);
        *count += 1;
    }
    let means = sums.into_iter().map(|(language, (sum, count))| {
        let mean = sum.into_iter().map(|value| value / count as f64).collect();
        (dataset.languages()[usize::from(language)].clone(), mean)
    });
    means.collect()
}
