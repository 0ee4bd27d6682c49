//! Spherical linear interpolation of two tensors.

use super::linear::linear;

/// Below this sine of the angle the spherical and the linear path are the same up to rounding, or the sphere has no shortest
/// path (opposite tensors), and the linear one is taken.
const SMALL_SINE: f64 = 1e-6;

/// `W = sin((1−t)Ω)/sin Ω · W1 + sin(tΩ)/sin Ω · W2`, Ω the angle between the flattened tensors (Shoemake 1985; per tensor as in
/// Branch-and-Merge, Alexandrov et al. 2024). Computed in f64. Where sin Ω is tiny or a tensor is zero: `(1−t) W1 + t W2`.
///
/// `t` is from 0, which gives `first` exactly, to 1, which gives `second`.
pub fn slerp(first: &[f32], second: &[f32], t: f64) -> Vec<f32> {
    let product = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let norms = (product(first, first) * product(second, second)).sqrt();
    if norms == 0.0 {
        return linear(&[first, second], &[1.0 - t, t]);
    }
    let angle = (product(first, second) / norms).clamp(-1.0, 1.0).acos();
    let sine = angle.sin();
    if sine < SMALL_SINE {
        return linear(&[first, second], &[1.0 - t, t]);
    }
    let weights = [((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine];
    linear(&[first, second], &weights)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn half_way_between_perpendicular_tensors_keeps_their_length() {
        let half = slerp(&[3.0, 0.0], &[0.0, 3.0], 0.5);
        let expected = 3.0 * std::f32::consts::FRAC_1_SQRT_2;
        assert!(half.iter().all(|value| (value - expected).abs() < 1e-6), "{half:?}");
        let third = slerp(&[1.0, 0.0], &[0.0, 1.0], 1.0 / 3.0);
        assert!(
            (third[0] - 0.866_025_4).abs() < 1e-6 && (third[1] - 0.5).abs() < 1e-6,
            "{third:?}"
        );
    }

    #[test]
    fn without_an_angle_it_is_linear() {
        assert_eq!(slerp(&[0.0, 0.0], &[2.0, 4.0], 0.25), [0.5, 1.0]);
        assert_eq!(slerp(&[1.0, 2.0], &[3.0, 6.0], 0.5), [2.0, 4.0]);
        assert_eq!(slerp(&[1.0, 2.0], &[-1.0, -2.0], 0.25), [0.5, 1.0]);
    }

    fn pair() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
        (1..20_usize).prop_flat_map(|length| {
            let tensor = || prop::collection::vec(-100.0..100.0_f32, length);
            (tensor(), tensor())
        })
    }

    proptest! {
        #[test]
        fn it_begins_at_the_first_and_ends_at_the_second((first, second) in pair()) {
            prop_assert_eq!(&slerp(&first, &second, 0.0), &first);
            prop_assert_eq!(&slerp(&first, &second, 1.0), &second);
        }

        #[test]
        fn equal_tensors_give_the_tensor((tensor, _) in pair(), t in 0.0..1.0_f64) {
            prop_assert_eq!(slerp(&tensor, &tensor, t), tensor);
        }
    }
}
