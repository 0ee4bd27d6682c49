//! Linear merging: the weighted mean of the tensors.

/// `W = Σ w_i W_i` with `Σ w_i = 1`, summed in f64 (model soups, Wortsman et al. 2022; weighted as in Dang et al. 2024, Aya
/// Expanse). Tensors that are equal give that tensor.
///
/// `tensors` are flat and of one length, `weights` are as many and sum to 1.
pub fn linear(tensors: &[&[f32]], weights: &[f64]) -> Vec<f32> {
    let length = tensors.first().map_or(0, |tensor| tensor.len());
    let mean = |position: usize| {
        let terms = tensors.iter().zip(weights);
        let sum: f64 = terms.map(|(tensor, weight)| weight * f64::from(tensor[position])).sum();
        sum as f32
    };
    (0..length).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_weighted_mean() {
        assert_eq!(
            linear(&[&[1.0, -2.0, 0.0], &[3.0, 2.0, 8.0]], &[0.75, 0.25]),
            [1.5, -1.0, 2.0]
        );
    }

    proptest! {
        #[test]
        fn equal_tensors_give_the_tensor(
            tensor in prop::collection::vec(-1e6..1e6_f32, 1..20),
            weights in prop::collection::vec(0.01..1.0_f64, 1..5),
        ) {
            let total: f64 = weights.iter().sum();
            let weights: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
            let tensors = vec![tensor.as_slice(); weights.len()];
            prop_assert_eq!(linear(&tensors, &weights), tensor);
        }
    }
}
