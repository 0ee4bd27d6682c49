//! Steering vectors in closed form: `v = mean(h_anchor) - mean(h_language)`, the means over the rows of a source of
//! translations, each row the mean over its tokens of the hidden states that the vector is added to.

use std::collections::BTreeMap;

use burn::tensor::DType;
use interlingua_data::batch::MicroBatch;
use interlingua_data::dataset::Dataset;
use interlingua_data::language::canonical;
use interlingua_data::prepare::Prepared;
use interlingua_recipes::Adapter;

use super::step::inputs_and_targets;
use crate::adapters::steering::layer_of;
use crate::error::TrainError;
use crate::models::Model;
use crate::models::load::tensor;

/// Tokens that are run at once.
const BATCH_TOKENS: usize = 4096;

/// The rows of the source that `adapter.source` names: one that only this reads, or rows that are trained on too.
fn rows<'a>(adapter: &Adapter, data: &'a Prepared) -> (&'a Dataset, Vec<usize>) {
    let name = adapter.source.as_deref().unwrap_or_default();
    match data.auxiliary.get(name) {
        Some(dataset) => (dataset, (0..dataset.len()).collect()),
        None => {
            let of_source = (0..data.train.len()).filter(|sample| data.train.source(*sample) == name);
            (&data.train, of_source.collect())
        }
    }
}

fn anchor(adapter: &Adapter) -> String {
    let anchor = adapter.anchor.as_deref().unwrap_or_default();
    canonical(anchor).unwrap_or_else(|_| anchor.to_owned())
}

/// The languages of the source but the anchor, sorted: those that get a vector.
pub fn languages(adapter: &Adapter, data: &Prepared) -> Vec<String> {
    let (dataset, samples) = rows(adapter, data);
    let mut languages: Vec<String> = samples
        .into_iter()
        .map(|sample| dataset.languages()[usize::from(dataset.language(sample))].clone())
        .collect();
    languages.sort();
    languages.dedup();
    languages.retain(|language| *language != anchor(adapter));
    languages
}

/// Computes the vectors that are on the model, which are zero so far.
pub fn fit(model: &mut Model, adapter: &Adapter, data: &Prepared) -> Result<(), TrainError> {
    let source = adapter.source.as_deref().unwrap_or_default();
    let layer = layer_of(adapter, &model.config)?;
    let means = means(model, layer, adapter, data);
    let anchor = anchor(adapter);
    let Some(target) = means.get(&anchor) else {
        return Err(TrainError::Setup(format!(
            "adapter.source: `{source}` has no row in {anchor}, the language to steer to; name another one in adapter.anchor"
        )));
    };
    let others: Vec<&String> = means.keys().filter(|language| **language != anchor).collect();
    let device = model.device.clone();
    for steering in model.blocks[layer - 1].steering.clone() {
        if model.parameters.get(steering.adapter.vector).frozen {
            continue;
        }
        let language = match (&steering.language, others.as_slice()) {
            (Some(language), _) => language,
            (None, [language]) => *language,
            (None, _) => {
                return Err(TrainError::Setup(format!(
                    "adapter.source: `{source}` has {} languages besides {anchor}, and one vector is fitted to one; write \
                     adapter.route = \"language\" for a vector each",
                    others.len()
                )));
            }
        };
        let vector = target
            .iter()
            .zip(&means[language])
            .map(|(target, mean)| (target - mean) as f32);
        let value = tensor(vector.collect(), &device, DType::F32);
        model.parameters.set_value(steering.adapter.vector, value);
    }
    Ok(())
}

/// The mean over rows of their mean states, `[hidden]`, by language.
fn means(model: &Model, layer: usize, adapter: &Adapter, data: &Prepared) -> BTreeMap<String, Vec<f64>> {
    let (dataset, samples) = rows(adapter, data);
    let mut sums = BTreeMap::<u16, (Vec<f64>, usize)>::new();
    let mut batch = MicroBatch::default();
    for (index, sample) in samples.iter().enumerate() {
        batch.push_sample(dataset, *sample);
        if batch.tokens() >= BATCH_TOKENS || index + 1 == samples.len() {
            add_means(
                model,
                layer,
                &std::mem::take(&mut batch),
                dataset.languages(),
                &mut sums,
            );
        }
    }
    let mean = |(language, (sum, rows)): (u16, (Vec<f64>, usize))| {
        let mean = sum.into_iter().map(|sum| sum / rows as f64).collect();
        (dataset.languages()[usize::from(language)].clone(), mean)
    };
    sums.into_iter().map(mean).collect()
}

fn add_means(
    model: &Model,
    layer: usize,
    batch: &MicroBatch,
    languages: &[String],
    sums: &mut BTreeMap<u16, (Vec<f64>, usize)>,
) {
    let (inputs, _) = inputs_and_targets(model, batch, languages);
    let hidden = model.output_of_blocks(&inputs, layer);
    let size = model.config.hidden_size;
    let values: Vec<f32> = hidden.cast(DType::F32).into_data().iter::<f32>().collect();
    for sequence in batch.sequences.iter().filter(|sequence| sequence.length > 0) {
        let (sum, rows) = sums.entry(sequence.language).or_insert_with(|| (vec![0.0; size], 0));
        *rows += 1;
        for row in values[sequence.start * size..][..sequence.length * size].chunks(size) {
            let share = sequence.length as f64;
            sum.iter_mut()
                .zip(row)
                .for_each(|(sum, value)| *sum += f64::from(*value) / share);
        }
    }
}
