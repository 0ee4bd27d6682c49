//! Adapter folders merged.
//!
//! The update of a module is `s·B·A` with A [rank, in], B [out, rank] and s = alpha / rank (with rsLoRA alpha / √rank). *Exact* puts
//! the matrices side by side, so that the update of the result is the weighted sum of the updates and ranks add up. *Entry-wise*
//! merges the entries of A, and those of B; where scales differ, both are first multiplied by √(s_i / s), s being that of the first
//! adapter, so that equal updates stay equal. Modules that are saved whole are always merged linearly: they are no differences.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::linear::linear;
use super::{Combination, Distance, Kind, Method, Options, Report, Settings, blend, readme};
use crate::dtype::{Dtype, HostTensor, decode_f32, encode_f32};
use crate::error::CheckpointError;
use crate::peft::{AdapterConfig, AdapterFolder};

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// Adapters that fit together.
#[derive(Debug)]
pub(super) struct AdapterMerge {
    adapters: Vec<AdapterFolder>,
    combination: Combination,
}

/// The update of one module by one adapter.
struct Update {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    scale: f64,
}

impl AdapterMerge {
    pub(super) fn open(
        inputs: &[PathBuf],
        base: Option<&Path>,
        settings: &Settings,
        options: &Options,
        notes: &mut Vec<String>,
    ) -> Result<Self, CheckpointError> {
        let refuse = |problem: String| Err(CheckpointError::Merge(problem));
        let linear = settings.method == Method::Linear;
        let default = if linear {
            Combination::Exact
        } else {
            Combination::EntryWise
        };
        let combination = options.combination.unwrap_or(default);
        if base.is_some() {
            return refuse("a base is for models: an adapter is what was learnt, without one; leave it out".to_owned());
        }
        if combination == Combination::Exact && !linear {
            return refuse(format!(
                "an exact combination is for linear; {} merges adapters entry-wise",
                settings.method.name()
            ));
        }
        let adapters = inputs
            .iter()
            .map(|path| AdapterFolder::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(adapter) = adapters.iter().find(|adapter| adapter.config().use_dora) {
            return refuse(format!(
                "{} is a DoRA adapter, whose magnitudes belong to its own directions and have no mean that means anything; put each \
                 adapter into its model with `interlingua export --merge`, and merge the models",
                adapter.path().display()
            ));
        }
        let first = &adapters[0];
        for other in &adapters[1..] {
            check_same(first, other, combination)?;
            let (one, two) = (&first.config().base_model, &other.config().base_model);
            if one != two {
                notes.push(format!(
                    "{} was trained on {one} and {} on {two}; the result is for the first, and good only if both are the same model",
                    first.path().display(),
                    other.path().display()
                ));
            }
        }
        Ok(Self { adapters, combination })
    }

    pub(super) fn write(&self, folder: &Path, settings: &Settings) -> Result<Report, CheckpointError> {
        let first = &self.adapters[0];
        let mut distances = vec![Distance::default(); self.adapters.len()];
        let mut tensors = Vec::new();
        let modules: BTreeSet<&str> = first.names().filter_map(|name| name.strip_suffix(A)).collect();
        let mut config = first.config().clone();
        if self.combination == Combination::Exact {
            self.add_ranks(&mut config, &modules, settings);
        }
        for module in modules {
            let updates = self
                .adapters
                .iter()
                .map(|adapter| update(adapter, module))
                .collect::<Result<Vec<_>, _>>()?;
            let mut merged = match self.combination {
                Combination::Exact => side_by_side(&updates, &settings.weights),
                Combination::EntryWise => entry_wise(&updates, module, settings),
            };
            let (inputs, outputs) = (
                updates[0].a.len() / updates[0].rank,
                updates[0].b.len() / updates[0].rank,
            );
            let shapes = [vec![merged.rank, inputs], vec![outputs, merged.rank]];
            let parts = [&mut merged.a, &mut merged.b].into_iter().zip([A, B]).zip(shapes);
            for ((values, part), shape) in parts {
                let name = format!("{module}{part}");
                let tensor = host_tensor(first, &name, shape, values);
                // What was rounded is what the distances are about.
                *values = decode_f32(tensor.dtype, &tensor.data);
                tensors.push((name, tensor));
            }
            for (distance, parent) in distances.iter_mut().zip(&updates) {
                let own = product(parent, parent);
                distance.parent += own;
                // Rounding must not make a distance of zero negative.
                distance.difference += (product(&merged, &merged) - 2.0 * product(&merged, parent) + own).max(0.0);
            }
        }
        let saved = first.names().filter(|name| !(name.ends_with(A) || name.ends_with(B)));
        for name in saved {
            let shape = first.shape(name).unwrap_or_default();
            let values = self
                .adapters
                .iter()
                .map(|adapter| adapter.read_f32(name, shape))
                .collect::<Result<Vec<_>, _>>()?;
            let slices: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
            let tensor = host_tensor(first, name, shape.to_vec(), &linear(&slices, &settings.weights));
            let merged = tensor.to_f32();
            for (distance, parent) in distances.iter_mut().zip(&values) {
                distance.add(&merged, parent);
            }
            tensors.push((name.to_owned(), tensor));
        }
        let count = tensors.len();
        let front = format!("library_name: peft\nbase_model: {}\n", config.base_model);
        let parents = self.adapters.iter().map(|adapter| adapter.path().display());
        let mut text = readme("Merged adapter", &front, parents, settings);
        text.push_str(&format!("\nCombination: {}.\n", self.combination.name()));
        AdapterFolder::write(folder, &config, tensors, &text)?;
        Ok(Report {
            kind: Kind::Adapters,
            tensors: count,
            distances: distances.iter().map(Distance::relative).collect(),
        })
    }

    /// The config of matrices side by side: ranks add up, and alpha is the rank, so that the scale is 1.
    fn add_ranks(&self, config: &mut AdapterConfig, modules: &BTreeSet<&str>, settings: &Settings) {
        let counted = || {
            self.adapters
                .iter()
                .zip(&settings.weights)
                .filter(|(_, weight)| **weight > 0.0)
        };
        config.rank = counted().map(|(adapter, _)| adapter.config().rank).sum();
        config.alpha = config.rank as f64;
        config.use_rslora = false;
        config.alpha_pattern.clear();
        for module in modules {
            let rank: usize = counted().filter_map(|(adapter, _)| adapter.rank_of(module)).sum();
            if rank != config.rank {
                config.alpha_pattern.insert((*module).to_owned(), rank as f64);
            }
        }
    }
}

fn host_tensor(like: &AdapterFolder, name: &str, shape: Vec<usize>, values: &[f32]) -> HostTensor {
    let dtype = like.dtype(name).unwrap_or(Dtype::F32);
    HostTensor {
        dtype,
        shape,
        data: encode_f32(dtype, values),
    }
}

fn update(adapter: &AdapterFolder, module: &str) -> Result<Update, CheckpointError> {
    let read = |part: &str| {
        let name = format!("{module}{part}");
        let shape = adapter.shape(&name).unwrap_or_default().to_vec();
        adapter.read_f32(&name, &shape)
    };
    let config = adapter.config();
    let rank = adapter.rank_of(module).unwrap_or(config.rank).max(1);
    let divisor = if config.use_rslora {
        (rank as f64).sqrt()
    } else {
        rank as f64
    };
    Ok(Update {
        a: read(A)?,
        b: read(B)?,
        rank,
        scale: config.alpha_of(module) / divisor,
    })
}

/// `Σ w_i s_i B_i A_i` as one B and one A with scale 1: the columns of each B times w_i s_i, side by side, and the rows of each A one
/// below the other. Adapters of weight zero are left out.
fn side_by_side(updates: &[Update], weights: &[f64]) -> Update {
    let counted: Vec<(&Update, f64)> = updates
        .iter()
        .zip(weights)
        .filter(|(_, weight)| **weight > 0.0)
        .map(|(update, weight)| (update, weight * update.scale))
        .collect();
    let rank = counted.iter().map(|(update, _)| update.rank).sum();
    let outputs = updates[0].b.len() / updates[0].rank;
    let a = counted
        .iter()
        .flat_map(|(update, _)| update.a.iter().copied())
        .collect();
    let mut b = Vec::with_capacity(outputs * rank);
    for output in 0..outputs {
        for (update, factor) in &counted {
            let row = &update.b[output * update.rank..][..update.rank];
            b.extend(row.iter().map(|value| (factor * f64::from(*value)) as f32));
        }
    }
    Update { a, b, rank, scale: 1.0 }
}

fn entry_wise(updates: &[Update], module: &str, settings: &Settings) -> Update {
    let Update { rank, scale, .. } = updates[0];
    let merged = |part: &str, of: &dyn Fn(&Update) -> Vec<f32>| {
        let parts: Vec<Vec<f32>> = updates
            .iter()
            .map(|update| scaled(of(update), (update.scale / scale).sqrt()))
            .collect();
        let slices: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
        blend(&format!("{module}{part}"), None, &slices, settings)
    };
    Update {
        a: merged(A, &|update| update.a.clone()),
        b: merged(B, &|update| update.b.clone()),
        rank,
        scale,
    }
}

fn scaled(mut values: Vec<f32>, factor: f64) -> Vec<f32> {
    if factor != 1.0 {
        values
            .iter_mut()
            .for_each(|value| *value = (factor * f64::from(*value)) as f32);
    }
    values
}

/// The inner product of two updates, `Σ_ij (s1 B1 A1)_ij (s2 B2 A2)_ij = s1 s2 Σ (B1ᵀB2) ∘ (A1 A2ᵀ)`, without making either.
fn product(one: &Update, two: &Update) -> f64 {
    let inputs = one.a.len() / one.rank;
    let outputs = one.b.len() / one.rank;
    let mut total = 0.0;
    for first in 0..one.rank {
        for second in 0..two.rank {
            let rows = one.a[first * inputs..][..inputs]
                .iter()
                .zip(&two.a[second * inputs..][..inputs]);
            let of_a: f64 = rows.map(|(one, two)| f64::from(*one) * f64::from(*two)).sum();
            let columns = (0..outputs).map(|output| {
                f64::from(one.b[output * one.rank + first]) * f64::from(two.b[output * two.rank + second])
            });
            total += of_a * columns.sum::<f64>();
        }
    }
    one.scale * two.scale * total
}

/// An error unless two adapters have the same tensors, in the same shapes but for ranks that may differ.
fn check_same(first: &AdapterFolder, other: &AdapterFolder, combination: Combination) -> Result<(), CheckpointError> {
    let paths = [first.path().display(), other.path().display()];
    let refuse = |problem: String| Err(CheckpointError::Merge(problem));
    let lacks = |lacking: usize, tensor: &str| {
        refuse(format!(
            "{}: there is no tensor `{tensor}`, which {} has; adapters are merged when they sit on the same modules",
            paths[lacking],
            paths[1 - lacking]
        ))
    };
    for name in other.names() {
        if first.shape(name).is_none() {
            return lacks(0, name);
        }
    }
    for name in first.names() {
        let shape = first.shape(name).unwrap_or_default();
        let Some(found) = other.shape(name) else {
            return lacks(1, name);
        };
        let without_rank = |shape: &[usize]| match shape {
            [_, inputs] if name.ends_with(A) => vec![*inputs],
            [outputs, _] if name.ends_with(B) => vec![*outputs],
            other => other.to_vec(),
        };
        if found == shape || (combination == Combination::Exact && without_rank(found) == without_rank(shape)) {
            continue;
        }
        let advice = if without_rank(found) == without_rank(shape) {
            "entry-wise merging needs equal ranks; --method linear with --combination exact takes different ones"
        } else {
            "the adapters were trained on different models"
        };
        return refuse(format!(
            "tensor `{name}` has the shape {shape:?} in {} and {found:?} in {}; {advice}",
            paths[0], paths[1]
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(a: &[f32], b: &[f32], rank: usize, scale: f64) -> Update {
        Update {
            a: a.to_vec(),
            b: b.to_vec(),
            rank,
            scale,
        }
    }

    /// `s·B·A`, row by row.
    fn dense(update: &Update) -> Vec<f64> {
        let (inputs, outputs) = (update.a.len() / update.rank, update.b.len() / update.rank);
        let mut dense = vec![0.0; inputs * outputs];
        for (position, value) in dense.iter_mut().enumerate() {
            let (output, input) = (position / inputs, position % inputs);
            for middle in 0..update.rank {
                let factors = [
                    update.b[output * update.rank + middle],
                    update.a[middle * inputs + input],
                ];
                *value += update.scale * f64::from(factors[0]) * f64::from(factors[1]);
            }
        }
        dense
    }

    fn two() -> [Update; 2] {
        [
            update(&[1.0, 2.0, -1.0], &[0.5, 3.0], 1, 2.0),
            update(&[0.0, 1.0, 1.0, 2.0, -1.0, 0.5], &[1.0, -1.0, 2.0, 0.25], 2, 0.5),
        ]
    }

    #[test]
    fn side_by_side_is_the_weighted_sum_of_the_updates() {
        let updates = two();
        let merged = side_by_side(&updates, &[0.25, 0.75]);
        assert_eq!((merged.rank, merged.scale), (3, 1.0));
        let parts: Vec<Vec<f64>> = updates.iter().map(dense).collect();
        let expected: Vec<f64> = (0..6).map(|at| 0.25 * parts[0][at] + 0.75 * parts[1][at]).collect();
        assert_eq!(dense(&merged), expected);
        let alone = side_by_side(&updates, &[1.0, 0.0]);
        assert_eq!((alone.rank, dense(&alone)), (1, parts[0].clone()));
    }

    #[test]
    fn the_product_is_that_of_the_dense_updates() {
        let [one, two] = two();
        let expected: f64 = dense(&one).iter().zip(dense(&two)).map(|(one, two)| one * two).sum();
        assert!((product(&one, &two) - expected).abs() < 1e-12);
    }

    #[test]
    fn equal_updates_of_different_scales_stay_that_update() {
        let updates = [
            update(&[1.0, 2.0], &[0.5, 3.0], 1, 1.0),
            update(&[0.5, 1.0], &[0.25, 1.5], 1, 4.0),
        ];
        let settings = Settings {
            method: Method::Linear,
            weights: vec![0.5, 0.5],
            density: 1.0,
            scale: 1.0,
            seed: 0,
        };
        assert_eq!(dense(&entry_wise(&updates, "m", &settings)), dense(&updates[0]));
    }
}
