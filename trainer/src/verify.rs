//! Compares this implementation with a reference file: logits, hidden states and loss of the same input.

use std::path::Path;

use burn::tensor::Tensor;
use interlingua_checkpoints::tensors::TensorsFile;

use crate::engine::head::{Targets, log_probs};
use crate::engine::inputs::{Inputs, RopeLength};
use crate::error::TrainError;
use crate::models::Model;

/// Largest differences of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Name in the reference file.
    pub tensor: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Largest difference relative to the reference.
    pub max_rel: f64,
    /// Mean absolute difference.
    pub mean_abs: f64,
    /// Elements beyond the tolerance.
    pub beyond: usize,
}

/// How far an element may be off: |a - b| ≤ atol + rtol · |b|.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub atol: f64,
    /// Relative part.
    pub rtol: f64,
}

/// A batch of a reference file, padding taken out.
struct Reference {
    /// Extents of `input_ids`.
    batch: usize,
    length: usize,
    input_ids: Vec<u32>,
    position_ids: Vec<u32>,
    boundaries: Vec<usize>,
    /// Whether rows hold several sequences.
    packed: bool,
    /// Where each token stands in the padded batch.
    places: Vec<usize>,
    labels: Option<Vec<i32>>,
}

/// Runs the reference's input and compares everything the file holds. Positions where the attention mask is 0 are left
/// out. Where the file has `position_ids`, a sequence begins wherever they are 0, so that rows may be packed.
pub fn verify(model: &Model, path: &Path, tolerance: Tolerance) -> Result<Vec<Comparison>, TrainError> {
    let languages = model.adapter_languages();
    if !languages.is_empty() {
        return Err(TrainError::Setup(format!(
            "this adapter has a copy for each of {}, and a reference does not say the language of its rows; name the folder of \
             one language",
            languages.into_iter().collect::<Vec<_>>().join(", ")
        )));
    }
    let file = TensorsFile::open(path)?;
    let reference = read(model, &file, path)?;
    // Positions are columns of the padded batch, and lengths its width, as in Transformers; packed sequences count for themselves.
    let rope_length = if reference.packed {
        RopeLength::Own
    } else {
        RopeLength::Fixed(reference.length)
    };
    let (ids, positions) = (&reference.input_ids, &reference.position_ids);
    let inputs = Inputs::new(
        &model.config,
        ids,
        positions,
        &reference.boundaries,
        rope_length,
        &model.device,
    );
    let states = model.hidden_states(&inputs);
    let last = states[states.len() - 1].clone();

    let mut comparisons = Vec::new();
    for (index, state) in states.into_iter().enumerate() {
        let name = format!("hidden_states.{index}");
        if let Some(comparison) = compare_rows(&file, path, &name, state, &reference, tolerance)? {
            comparisons.push(comparison);
        }
    }
    let logits = model.logits(last.clone());
    if let Some(comparison) = compare_rows(&file, path, "logits", logits, &reference, tolerance)? {
        comparisons.push(comparison);
    }
    if let (Some(labels), Some(_)) = (&reference.labels, file.shape("loss")) {
        let targets = Targets::of_labels(labels, &reference.boundaries);
        let losses = log_probs(model, &last, &targets);
        let sum: f64 = losses.iter().map(|log_prob| -f64::from(*log_prob)).sum();
        let shape = file.shape("loss").unwrap_or_default().to_vec();
        let expected = read_f32(&file, path, "loss", &shape)?;
        let found = [(sum / targets.len().max(1) as f64) as f32];
        comparisons.push(compare("loss", found.iter().copied().zip(expected), tolerance));
    }
    if comparisons.is_empty() {
        return Err(TrainError::Setup(format!(
            "{}: there is nothing to compare; a reference holds `logits`, `hidden_states.N` or `loss` besides `input_ids`",
            path.display()
        )));
    }
    Ok(comparisons)
}

fn wrong(path: &Path, problem: impl std::fmt::Display) -> TrainError {
    TrainError::Setup(format!("{}: {problem}", path.display()))
}

fn read(model: &Model, file: &TensorsFile, path: &Path) -> Result<Reference, TrainError> {
    let integers = |name: &str| file.read_integers(name);
    let (shape, ids) =
        integers("input_ids").ok_or_else(|| wrong(path, "there is no tensor `input_ids` of integers"))?;
    let [batch, length] = shape[..] else {
        return Err(wrong(
            path,
            format!("`input_ids` has the shape {shape:?}, expected [batch, seq]"),
        ));
    };
    let same_shape = |name: &str| match integers(name) {
        Some((found, _)) if found != shape => Err(wrong(
            path,
            format!("`{name}` has the shape {found:?}, expected {shape:?} as `input_ids`"),
        )),
        found => Ok(found.map(|(_, values)| values)),
    };
    let mask = same_shape("attention_mask")?.unwrap_or_else(|| vec![1; ids.len()]);
    let labels = same_shape("labels")?;
    let places: Vec<usize> = (0..ids.len()).filter(|place| mask[*place] != 0).collect();
    let vocabulary = model.config.vocab_size;
    let token = |place: &usize| {
        let id = u32::try_from(ids[*place]).ok().filter(|id| (*id as usize) < vocabulary);
        id.ok_or_else(|| {
            wrong(
                path,
                format!("token {} is not in the vocabulary of {vocabulary}", ids[*place]),
            )
        })
    };
    let given = same_shape("position_ids")?;
    let position = |place: &usize| match &given {
        Some(given) => given[*place] as u32,
        None => (place % length) as u32,
    };
    let mut boundaries = vec![0];
    boundaries.extend((1..=batch).map(|row| places.partition_point(|place| *place < row * length)));
    boundaries.dedup();
    let rows = boundaries.len();
    if given.is_some() {
        let starts = (0..places.len()).filter(|index| position(&places[*index]) == 0);
        boundaries.extend(starts);
        boundaries.sort_unstable();
        boundaries.dedup();
    }
    Ok(Reference {
        batch,
        length,
        input_ids: places.iter().map(token).collect::<Result<_, _>>()?,
        position_ids: places.iter().map(position).collect(),
        packed: boundaries.len() > rows,
        boundaries,
        labels: labels.map(|labels| places.iter().map(|place| labels[*place] as i32).collect()),
        places,
    })
}

fn read_f32(file: &TensorsFile, path: &Path, name: &str, shape: &[usize]) -> Result<Vec<f32>, TrainError> {
    let advice = "the reference was made with another model or input";
    file.read_f32(name, shape, advice)?
        .ok_or_else(|| wrong(path, format!("there is no tensor `{name}`")))
}

fn compare_rows(
    file: &TensorsFile,
    path: &Path,
    name: &str,
    found: Tensor<2>,
    reference: &Reference,
    tolerance: Tolerance,
) -> Result<Option<Comparison>, TrainError> {
    if file.shape(name).is_none() {
        return Ok(None);
    }
    let [_, features] = found.dims();
    let expected = read_f32(file, path, name, &[reference.batch, reference.length, features])?;
    let found: Vec<f32> = found.into_data().iter::<f32>().collect();
    let rows = reference
        .places
        .iter()
        .map(|place| &expected[place * features..(place + 1) * features]);
    let pairs = found
        .chunks(features)
        .zip(rows)
        .flat_map(|(found, expected)| found.iter().copied().zip(expected.iter().copied()));
    Ok(Some(compare(name, pairs, tolerance)))
}

fn compare(name: &str, pairs: impl Iterator<Item = (f32, f32)>, tolerance: Tolerance) -> Comparison {
    let (mut max_abs, mut max_rel, mut sum, mut count, mut beyond) = (0.0f64, 0.0f64, 0.0, 0usize, 0);
    for (found, expected) in pairs {
        let (found, expected) = (f64::from(found), f64::from(expected));
        let difference = (found - expected).abs();
        // A value that is not a number counts as infinitely far.
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        max_abs = max_abs.max(difference);
        max_rel = max_rel.max(difference / expected.abs().max(f64::MIN_POSITIVE));
        sum += difference;
        count += 1;
        beyond += usize::from(difference > tolerance.atol + tolerance.rtol * expected.abs());
    }
    Comparison {
        tensor: name.to_owned(),
        max_abs,
        max_rel,
        mean_abs: sum / count.max(1) as f64,
        beyond,
    }
}
