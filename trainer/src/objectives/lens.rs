//! Lens (Zhao et al., "Lens: Rethinking Multilingual Enhancement for Large Language Models", 2024): hidden states are split
//! into what languages share and what sets them apart, by probing the model before training. Training pulls the languages
//! together in the first subspace, moves each away from where it was along its own direction in the second, and keeps the
//! anchor where it was. With `h` the state of a text's last token, `H` the mean over its tokens, `0` the model before
//! training and `l` over the languages of a group but the anchor's, squared errors being means over features:
//! `retain · (H_en - H_en⁰)² + Σ_l align · (P_a h_en - P_a h_l)² + Σ_l (P_s (h_l - h_l⁰) - separate · d_l)²`.
//! The loss of a step is the mean over its groups.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};
use nalgebra::{DMatrix, DVector};

use super::averages::averages;

/// What probing finds, in f64. Vectors `[hidden]`.
#[derive(Clone, Debug)]
pub struct Subspaces {
    /// The axis that languages share, of length 1: P_a projects on it.
    pub agnostic: DVector<f64>,
    /// An orthonormal basis `[hidden, languages - 1]` of what sets them apart: P_s projects on it.
    pub specific: DMatrix<f64>,
    /// The direction of each language but the anchor's: `P_s (mean_l - mean_anchor)`, which is the difference itself.
    pub directions: BTreeMap<u16, DVector<f64>>,
}

impl Subspaces {
    /// From the mean state of each language (Xie et al., "Discovering Low-rank Subspaces for Language-agnostic Multilingual
    /// Representations", 2022, algorithm 1). The best fit of rank languages - 1 to what is left of the means without their
    /// own mean is exact, so its subspace is that of the differences between means, and the shared axis is what any mean
    /// has outside of it. `None`: the means are too much alike.
    pub fn of(means: &BTreeMap<u16, Vec<f64>>, anchor: u16) -> Option<Self> {
        let column = |mean: &Vec<f64>| DVector::from_column_slice(mean);
        let of_anchor = column(means.get(&anchor)?);
        let others = means.iter().filter(|(language, _)| **language != anchor);
        let differences: BTreeMap<u16, DVector<f64>> = others
            .map(|(language, mean)| (*language, column(mean) - &of_anchor))
            .collect();
        let columns: Vec<DVector<f64>> = differences.values().cloned().collect();
        if columns.is_empty() || columns.len() > of_anchor.len() {
            return None;
        }
        let (specific, triangle) = DMatrix::from_columns(&columns).qr().unpack();
        let shared = &of_anchor - &specific * (specific.transpose() * &of_anchor);
        let scale = of_anchor.norm();
        let apart = triangle.diagonal().iter().all(|length| length.abs() > 1e-9 * scale);
        (apart && shared.norm() > 1e-9 * scale).then(|| Self {
            agnostic: shared.normalize(),
            specific,
            directions: differences,
        })
    }
}

/// The loss with its numbers, ready for tensors.
#[derive(Clone, Debug)]
pub struct Lens {
    /// `[hidden, 1]`.
    agnostic: Tensor<2>,
    /// `[hidden, languages - 1]`.
    specific: Tensor<2>,
    /// By language, `[1, hidden]`: how far it is to be moved.
    targets: BTreeMap<u16, Tensor<2>>,
    retain: f64,
    align: f64,
}

/// The texts of a micro-batch: for each group the anchor's tokens, and the language and tokens of each other one.
pub type Groups = Vec<(Range<usize>, Vec<(u16, Range<usize>)>)>;

impl Lens {
    /// The loss on subspaces. `separate`: how far each language is moved along its direction.
    pub fn new(
        subspaces: &Subspaces,
        (retain, align): (f64, f64),
        separate: impl Fn(u16) -> f64,
        device: &Device,
    ) -> Self {
        let matrix = |values: &DMatrix<f64>| {
            let shape = [values.nrows(), values.ncols()];
            let rows: Vec<f32> = values.transpose().iter().map(|value| *value as f32).collect();
            Tensor::<2>::from_data(TensorData::new(rows, shape), (device, DType::F32))
        };
        let column = |vector: &DVector<f64>| matrix(&DMatrix::from_columns(std::slice::from_ref(vector)));
        let target = |(language, direction): (&u16, &DVector<f64>)| {
            (*language, column(&(direction * separate(*language))).transpose())
        };
        Self {
            agnostic: column(&subspaces.agnostic),
            specific: matrix(&subspaces.specific),
            targets: subspaces.directions.iter().map(target).collect(),
            retain,
            align,
        }
    }

    /// The three terms of a micro-batch, and the gradient of `weight` times the loss by the states `[tokens, hidden]`.
    /// `groups`: those of the whole step; `initial`: the states before training.
    pub fn loss(
        &self,
        states: &Tensor<2>,
        initial: &Tensor<2>,
        texts: &Groups,
        groups: u64,
        weight: f64,
    ) -> ([f64; 3], Tensor<2>) {
        let [length, hidden] = states.dims();
        let device = states.device();
        let (states, initial) = (states.clone().cast(DType::F32), initial.clone().cast(DType::F32));
        let share = 1.0 / (groups as f64 * hidden as f64);
        let mut gradient = states.zeros_like();
        let mut terms = [0.0; 3];
        let last = |range: &Range<usize>| averages(std::slice::from_ref(&(range.end - 1..range.end)), length, &device);
        for (anchor, others) in texts {
            let mean = averages(std::slice::from_ref(anchor), length, &device);
            let moved = mean.clone().matmul(states.clone() - initial.clone());
            terms[0] += share * squares(&moved);
            gradient = gradient + mean.transpose().matmul(moved) * (2.0 * share * weight * self.retain);
            for (language, other) in others {
                let apart = last(anchor) - last(other);
                let shared = project(apart.clone().matmul(states.clone()), &self.agnostic);
                terms[1] += share * squares(&shared);
                gradient = gradient + apart.transpose().matmul(shared) * (2.0 * share * weight * self.align);
                let Some(target) = self.targets.get(language) else {
                    continue;
                };
                let of_other = last(other);
                let moved = of_other.clone().matmul(states.clone() - initial.clone());
                let missing = project(moved, &self.specific) - target.clone();
                terms[2] += share * squares(&missing);
                let by_state = project(missing, &self.specific) * (2.0 * share * weight);
                gradient = gradient + of_other.transpose().matmul(by_state);
            }
        }
        (terms, gradient)
    }

    /// The loss from its terms.
    pub fn total(&self, terms: [f64; 3]) -> f64 {
        self.retain * terms[0] + self.align * terms[1] + terms[2]
    }
}

/// Rows `[rows, hidden]` projected on the span of orthonormal columns `[hidden, columns]`.
fn project(rows: Tensor<2>, basis: &Tensor<2>) -> Tensor<2> {
    rows.matmul(basis.clone()).matmul(basis.clone().transpose())
}

fn squares(values: &Tensor<2>) -> f64 {
    values.clone().powi_scalar(2).sum().into_data().iter::<f64>().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subspaces_are_apart_and_the_directions_lie_in_theirs() {
        let value =
            |language: usize, feature: usize| ((language * 7919 + feature * 104_729) % 997) as f64 / 997.0 - 0.3;
        let means: BTreeMap<u16, Vec<f64>> = (0..4u16)
            .map(|language| {
                (
                    language,
                    (0..24).map(|feature| value(usize::from(language), feature)).collect(),
                )
            })
            .collect();
        let subspaces = Subspaces::of(&means, 1).unwrap();
        assert!((subspaces.specific.transpose() * &subspaces.agnostic).norm() < 1e-10);
        assert_eq!(subspaces.specific.ncols(), 3);
        assert_eq!(subspaces.directions.len(), 3);
        for direction in subspaces.directions.values() {
            let projected = &subspaces.specific * (subspaces.specific.transpose() * direction);
            assert!((projected - direction).norm() < 1e-10 && direction.norm() > 1e-3);
        }
        // All languages have the same share along the axis that they have in common.
        let shares: Vec<f64> = means
            .values()
            .map(|mean| DVector::from_column_slice(mean).dot(&subspaces.agnostic))
            .collect();
        assert!(
            shares.iter().all(|share| (share - shares[0]).abs() < 1e-9),
            "{shares:?}"
        );
    }

    #[test]
    fn one_language_has_no_subspaces() {
        assert!(Subspaces::of(&[(0, vec![1.0, 2.0])].into(), 0).is_none());
    }
}
