//! The 256 values that an 8-bit code can stand for: the dynamic data type (Dettmers, "8-Bit Approximations for Parallelism
//! in Deep Learning", 2016; "8-bit Optimizers via Block-wise Quantization", 2022), with the numbers of bitsandbytes. Between
//! each power of ten and the next lie twice as many values as between those below, seven powers in all, evenly spaced.

use std::sync::LazyLock;

/// Powers of ten, the largest being 1.
const POWERS: u32 = 7;

/// Values in ascending order, and what finds the nearest one.
#[derive(Debug)]
pub struct QuantileMap {
    /// What the codes stand for, in ascending order.
    pub values: [f32; 256],
    /// The middles between neighbours; the last one, which nothing exceeds, is infinite.
    pub bounds: [f32; 256],
    /// By the upper 16 bits of a number: the code of the smallest number with these bits. Numbers with the same upper bits lie so
    /// close together that at most one bound is between them.
    codes: Vec<u8>,
}

/// Values from -0.993 to 1, for moments of either sign.
pub fn signed() -> &'static QuantileMap {
    static MAP: LazyLock<QuantileMap> = LazyLock::new(|| QuantileMap::new(true));
    &MAP
}

/// Values from 0 to 1, for moments that are never negative.
pub fn unsigned() -> &'static QuantileMap {
    static MAP: LazyLock<QuantileMap> = LazyLock::new(|| QuantileMap::new(false));
    &MAP
}

impl QuantileMap {
    fn new(signed: bool) -> Self {
        let mut values = [0.0; 256];
        let mut count = 0;
        for power in 0..POWERS {
            let factor = 10f64.powi(power as i32 + 1 - POWERS as i32) as f32;
            for middle in middles(1 << if signed { power } else { power + 1 }) {
                for sign in if signed { &[1.0, -1.0][..] } else { &[1.0] } {
                    values[count] = sign * factor * middle;
                    count += 1;
                }
            }
        }
        // Zero is there already; one is the last.
        values[count + 1] = 1.0;
        values.sort_by(f32::total_cmp);
        let mut bounds = [f32::INFINITY; 256];
        for (bound, neighbours) in bounds.iter_mut().zip(values.windows(2)) {
            *bound = (neighbours[0] + neighbours[1]) / 2.0;
        }
        let smallest = |upper: u16| {
            // Negative numbers grow downwards.
            let lower = if upper >> 15 == 1 { 0xffff } else { 0 };
            f32::from_bits(u32::from(upper) << 16 | lower)
        };
        let code = |value: f32| bounds[..255].partition_point(|bound| *bound < value) as u8;
        let codes = (0..=u16::MAX).map(|upper| code(smallest(upper))).collect();
        Self { values, bounds, codes }
    }

    /// The code of the value nearest to a number between -1 and 1; in the middle between two, the lower one.
    #[inline(always)]
    pub fn nearest(&self, value: f32) -> u8 {
        let code = self.codes[(value.to_bits() >> 16) as usize];
        code + u8::from(value > self.bounds[usize::from(code)])
    }
}

/// The middles of `count` equal parts of the way from 0.1 to 1.
fn middles(count: usize) -> Vec<f32> {
    let (start, end) = (0.1f32, 1.0f32);
    let step = (end - start) / count as f32;
    // As torch.linspace: the upper half is counted from the end; each product and sum is rounded once.
    let edge = |index: usize| {
        let at = |from: f32, steps: f64| (f64::from(from) + f64::from(step) * steps) as f32;
        if index < count.div_ceil(2) {
            at(start, index as f64)
        } else {
            at(end, -((count - index) as f64))
        }
    };
    (0..count).map(|index| (edge(index) + edge(index + 1)) / 2.0).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_search(map: &QuantileMap, value: f32) -> u8 {
        map.bounds[..255].iter().filter(|bound| **bound < value).count() as u8
    }

    fn check(map: &QuantileMap, value: f32) {
        assert_eq!(map.nearest(value), by_search(map, value), "{value:e}");
    }

    #[test]
    fn values_ascend_from_end_to_end() {
        for (map, first, zero) in [(signed(), -0.992_968_8, 127), (unsigned(), 0.0, 0)] {
            assert!((map.values[0] - first).abs() < 1e-6, "{}", map.values[0]);
            assert_eq!((map.values[zero], map.values[255]), (0.0, 1.0));
            assert!(map.values.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn every_value_is_its_own_code_and_bounds_belong_to_the_lower_one() {
        for map in [signed(), unsigned()] {
            for code in 0..=255u8 {
                assert_eq!(map.nearest(map.values[usize::from(code)]), code);
            }
            for (index, bound) in map.bounds[..255].iter().enumerate() {
                assert_eq!(usize::from(map.nearest(*bound)), index);
                for value in [bound.next_up(), bound.next_down()] {
                    check(map, value);
                }
            }
            for value in [0.0, -0.0, 1.0, -1.0, f32::MIN_POSITIVE, -1e-40, 1e-20] {
                check(map, value);
            }
        }
    }

    proptest! {
        #[test]
        fn any_number_gets_the_nearest_code(value in -1.0f32..=1.0, exponent in -30i32..=0) {
            for map in [signed(), unsigned()] {
                check(map, value);
                check(map, value * 2f32.powi(exponent));
            }
        }
    }
}
