//! Elementary functions on f32 in a form that the compiler turns into vector instructions: no branches, no calls, no
//! tables. They are inlined into loops that `multiversion` compiles once per instruction set.

/// Independent partial sums of a reduction: enough for two registers of AVX-512. The order of a sum is therefore the
/// same on every processor with the same instruction set, however many threads run.
pub const LANES: usize = 32;

/// `exp(x)`, within 2 units in the last place; 0 below -104, infinite above 88.73, NaN for NaN.
///
/// `exp(x) = 2^n exp(r)` with `|r| <= ln(2) / 2`, the polynomial of Cephes' `expf` for `exp(r)` (Moshier, 1989), and the
/// power of two in two factors, so that results in the subnormal range and at the overflow limit are right too.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln(2) in two parts, the first with so few bits that n * LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons and not f32::clamp's maximum, so that NaN passes.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let y = exp_minus_one_near_zero(r) + 1.0;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n.wrapping_add(127)) << 23) as u32);
    y * power(half) * power(n.wrapping_sub(half))
}

/// `exp(r) - 1` for `|r| <= ln(2) / 2`.
#[inline(always)]
fn exp_minus_one_near_zero(r: f32) -> f32 {
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p * (r * r) + r
}

/// `exp(x) - 1`, within 4 units in the last place.
#[inline(always)]
pub fn exp_minus_one(x: f32) -> f32 {
    let small = exp_minus_one_near_zero(x);
    let large = exp(x) - 1.0;
    if x * x < 0.115 { small } else { large }
}

/// `1 / (1 + exp(-x))`, within 3 units in the last place where it is a normal number.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh(x)`, within 5e-7 of the exact value relative to it.
///
/// The Taylor polynomial near 0, where the quotient of exponentials would lose digits.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = -1_382.0 / 155_925.0;
    p = p * square + 62.0 / 2_835.0;
    p = p * square - 17.0 / 315.0;
    p = p * square + 2.0 / 15.0;
    p = p * square - 1.0 / 3.0;
    let small = x + x * square * p;
    let large = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if square < 0.09 { small } else { large }
}

/// `[Φ(x), exp(-x²/2)]` with Φ the distribution function of the standard normal distribution, `(1 + erf(x / √2)) / 2`,
/// within 1e-6 of the exact values relative to them where they are normal numbers.
///
/// Of z = |x|, `Φ(-z) = exp(-z²/2) t P(t)` with `t = 1 / (1 + 0.3 z)`, the form of Hastings (1955, "Approximations for
/// digital computers", sheet 43). P is the polynomial of degree 7 whose largest relative error over 0 <= z <= 15 is
/// least: 2e-7, found by least squares with Lawson's weights (1961).
#[inline(always)]
pub fn normal_distribution(x: f32) -> [f32; 2] {
    let z = x.abs();
    let t = 1.0 / (1.0 + 0.3 * z);
    let mut p = NORMAL_TAIL[7];
    p = p * t + NORMAL_TAIL[6];
    p = p * t + NORMAL_TAIL[5];
    p = p * t + NORMAL_TAIL[4];
    p = p * t + NORMAL_TAIL[3];
    p = p * t + NORMAL_TAIL[2];
    p = p * t + NORMAL_TAIL[1];
    p = p * t + NORMAL_TAIL[0];
    let density = exp(-0.5 * x * x);
    let tail = density * t * p;
    [if x < 0.0 { tail } else { 1.0 - tail }, density]
}

/// The coefficients of P in [`normal_distribution`], that of the constant first.
pub const NORMAL_TAIL: [f32; 8] = [
    0.119_634_53,
    0.120_672_73,
    0.100_425_6,
    0.126_857_94,
    -0.050_442_744,
    0.202_814_77,
    -0.155_141_41,
    0.035_178_5,
];

/// `f` of each element, summed in lanes; then the lanes in f64.
#[inline(always)]
pub fn sum_by(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += f(*value);
    }
    total(&lanes)
}

/// `f` of each pair of elements, summed as in [`sum_by`].
#[inline(always)]
pub fn sum_pairs_by(left: &[f32], right: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let (left_chunks, right_chunks) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let (left_rest, right_rest) = (left_chunks.remainder(), right_chunks.remainder());
    for (left, right) in left_chunks.zip(right_chunks) {
        for ((lane, left), right) in lanes.iter_mut().zip(left).zip(right) {
            *lane += f(*left, *right);
        }
    }
    for ((lane, left), right) in lanes.iter_mut().zip(left_rest).zip(right_rest) {
        *lane += f(*left, *right);
    }
    total(&lanes)
}

/// The largest element; negative infinity of none. NaN is skipped: it shows in the sum that follows.
#[inline(always)]
pub fn maximum(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, *value);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = larger(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Replaces each element by `exp(x - offset)` and returns their sum.
#[inline(always)]
pub fn exp_and_sum(values: &mut [f32], offset: f32) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = values.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exp(*value - offset);
            *lane += *value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(chunks.into_remainder()) {
        *value = exp(*value - offset);
        *lane += *value;
    }
    total(&lanes)
}

/// The sum of the lanes, in f64 and halving, which a chain of additions would take five times as long for.
#[inline(always)]
fn total(lanes: &[f32; LANES]) -> f64 {
    let mut lanes = lanes.map(f64::from);
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use multiversion::multiversion;

    use super::*;

    /// The same functions as the kernels get them: compiled for this processor's vector instructions.
    #[multiversion(targets = "simd")]
    fn each(inputs: &[f32], outputs: &mut [f32], inverse: bool) {
        for (input, output) in inputs.iter().zip(outputs) {
            *output = if inverse { sigmoid(*input) } else { exp(*input) };
        }
    }

    /// Distance from the exact value in units of the last place of f32 at that value.
    fn units(computed: f32, exact: f64) -> f64 {
        let rounded = (exact as f32).abs().max(f32::MIN_POSITIVE);
        let unit = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
        (f64::from(computed) - exact).abs() / unit
    }

    fn inputs(low: f32, high: f32) -> Vec<f32> {
        let count = 2_000_003;
        (0..count)
            .map(|index| low + (high - low) * (index as f32 / count as f32))
            .collect()
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let inputs = inputs(-103.9, 88.7);
        let mut outputs = vec![0.0; inputs.len()];
        each(&inputs, &mut outputs, false);
        for (input, output) in inputs.iter().zip(&outputs) {
            let error = units(*output, f64::from(*input).exp());
            assert!(error <= 2.0, "exp({input}) = {output}, {error} units");
            assert!(
                (output - exp(*input)).abs() <= output.abs() * 1e-6 + 1e-44,
                "scalar and vector at {input}"
            );
        }
    }

    #[test]
    fn sigmoid_is_within_three_units_in_the_last_place() {
        let inputs = inputs(-87.0, 100.0);
        let mut outputs = vec![0.0; inputs.len()];
        each(&inputs, &mut outputs, true);
        for (input, output) in inputs.iter().zip(&outputs) {
            let error = units(*output, 1.0 / (1.0 + (-f64::from(*input)).exp()));
            assert!(error <= 3.0, "sigmoid({input}) = {output}, {error} units");
        }
    }

    #[test]
    fn tanh_is_close_everywhere() {
        for input in inputs(-20.0, 20.0).into_iter().chain(inputs(-0.5, 0.5)) {
            let exact = f64::from(input).tanh();
            let error = (f64::from(tanh(input)) - exact).abs();
            assert!(error <= 5e-7 * exact.abs() + 1e-30, "tanh({input}) off by {error}");
        }
        assert_eq!((tanh(1e30), tanh(-1e30), tanh(0.0)), (1.0, -1.0, 0.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn exp_minus_one_is_within_four_units_in_the_last_place() {
        for input in inputs(-20.0, 20.0).into_iter().chain(inputs(-0.5, 0.5)) {
            let error = units(exp_minus_one(input), f64::from(input).exp_m1());
            assert!(error <= 4.0, "exp({input}) - 1, {error} units");
        }
        assert_eq!((exp_minus_one(0.0), exp_minus_one(-1e30)), (0.0, -1.0));
        assert_eq!(exp_minus_one(1e30), f32::INFINITY);
        assert!(exp_minus_one(f32::NAN).is_nan());
    }

    /// Φ by its series (Marsaglia, "Evaluating the normal distribution", 2004), which is precise where Φ is not small.
    fn exact_normal_distribution(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while f64::abs(term) > 1e-18 * f64::abs(sum) {
            n += 2.0;
            term *= x * x / n;
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    #[test]
    fn the_normal_distribution_is_close_everywhere() {
        let relative = |computed: f32, exact: f64| (f64::from(computed) - exact).abs() / exact;
        for input in inputs(-5.0, 12.0) {
            let [computed, density] = normal_distribution(input);
            let error = relative(computed, exact_normal_distribution(input.into()));
            assert!(error <= 1e-6, "at {input} off by {error}");
            let error = relative(density, (-0.5 * f64::from(input) * f64::from(input)).exp());
            assert!(error <= 1e-5, "density at {input} off by {error}");
        }
        // 0.5 erfc(10 / √2) and 0.5 erfc(13 / √2).
        assert!(relative(normal_distribution(-10.0)[0], 7.619_853_024_160_526e-24) <= 1e-6);
        assert!(relative(normal_distribution(-13.0)[0], 6.117_164_399_549_8e-39) <= 1e-5);
        assert_eq!(normal_distribution(-1e30), [0.0, 0.0]);
        assert_eq!(normal_distribution(1e30), [1.0, 0.0]);
        assert_eq!(normal_distribution(0.0)[1], 1.0);
        assert!(normal_distribution(f32::NAN)[0].is_nan());
    }

    #[test]
    fn exp_at_the_ends_of_its_range() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.8), f32::INFINITY);
        assert!(exp(88.7).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(sigmoid(f32::NEG_INFINITY), 0.0);
        assert_eq!(sigmoid(f32::INFINITY), 1.0);
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_cover_every_length() {
        for length in 0..100 {
            let values: Vec<f32> = (0..length).map(|index| ((index * 37) % 101) as f32 - 50.0).collect();
            let sum: f32 = values.iter().sum();
            assert_eq!(sum_by(&values, |value| value), f64::from(sum));
            assert_eq!(sum_pairs_by(&values, &values, |a, b| a - b), 0.0);
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(maximum(&values), largest);
        }
    }
}
