//! The 8-bit dynamic numbers of bitsandbytes, for the magnitudes of blocks.
//! Source: "8-bit Optimizers via Block-wise Quantization", Dettmers et al. 2022.

/// What the 256 codes stand for, ascending: 0, 1, and for each power of ten from 10⁻⁶ to 1 the means of neighbours of an
/// even division of [0.1, 1] into 1, 2, 4, … 64 parts, of both signs.
pub fn dynamic_map() -> [f32; 256] {
    let mut map = [0.0; 256];
    map[1] = 1.0;
    let mut next = 2;
    for exponent in 0..7_u8 {
        let parts = 1_u8 << exponent;
        let scale = 10_f64.powi(i32::from(exponent) - 6) as f32;
        for part in 0..parts {
            let value = scale * ((bound(part, parts) + bound(part + 1, parts)) / 2.0);
            map[next] = value;
            map[next + 1] = -value;
            next += 2;
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

/// The bound of a part of [0.1, 1], computed from the nearer end and with one rounding, as PyTorch's `linspace`.
fn bound(index: u8, parts: u8) -> f32 {
    let step = (1.0 - 0.1_f32) / f32::from(parts);
    if index < parts.div_ceil(2) {
        step.mul_add(f32::from(index), 0.1)
    } else {
        (-step).mul_add(f32::from(parts - index), 1.0)
    }
}

/// Codes of numbers, and the largest magnitude of each block of them.
///
/// A number over its block's magnitude is first rounded to one of 65,536 even steps of [-1, 1], then to the nearest value
/// of the map, the lower one on a tie. The steps are those of bitsandbytes' table for CPUs; its GPU kernels have none, so
/// that one code in several hundred is the neighbour there.
pub(super) fn quantise(values: &[f32], map: &[f32; 256], block: usize) -> (Vec<u8>, Vec<f32>) {
    const STEPS: f32 = 65_535.0;
    let middles: Vec<f32> = map.windows(2).map(|pair| (pair[0] + pair[1]) * 0.5).collect();
    let mut codes = Vec::with_capacity(values.len());
    let mut magnitudes = Vec::with_capacity(values.len().div_ceil(block));
    for block in values.chunks(block) {
        let magnitude = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        magnitudes.push(magnitude);
        if magnitude == 0.0 {
            codes.resize(codes.len() + block.len(), 0);
            continue;
        }
        let inverse = 1.0 / magnitude;
        codes.extend(block.iter().map(|value| {
            let share = (value * inverse).clamp(-1.0, 1.0);
            let step = ((share + 1.0) * 0.5).mul_add(STEPS, 0.5).trunc();
            let rounded = (step + step) / STEPS - 1.0;
            middles.partition_point(|middle| *middle < rounded) as u8
        }));
    }
    (codes, magnitudes)
}

/// The mean, with the additions in the order in which PyTorch does them on one thread: eight lanes, four rows at a time,
/// sums of sums on four levels, so that the last bit is the same; 0 of nothing.
pub(super) fn mean(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    const ROWS: usize = 4;
    if values.is_empty() {
        return 0.0;
    }
    let (lanes, rest) = values.as_chunks::<LANES>();
    let (rows, single) = lanes.as_chunks::<ROWS>();
    let mut sums = cascade(rows);
    single.iter().for_each(|lane| add(&mut sums[0], lane));
    let [mut total, others @ ..] = sums;
    others.iter().for_each(|row| add(&mut total, row));
    let rest = rest.iter().fold(0.0, |sum, value| sum + value);
    total.iter().fold(rest, |sum, value| sum + value) / values.len() as f32
}

fn add<const N: usize>(sum: &mut [f32; N], values: &[f32; N]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// Sums of rows by lane and place, in cascades: a level is added to the next one when it holds as many rows as it may.
fn cascade<const LANES: usize, const ROWS: usize>(rows: &[[[f32; LANES]; ROWS]]) -> [[f32; LANES]; ROWS] {
    const LEVELS: usize = 4;
    let power = (rows.len().max(1).next_power_of_two().ilog2() / LEVELS as u32).max(4);
    let mut levels = [[[0.0; LANES]; ROWS]; LEVELS];
    let add_all = |sum: &mut [[f32; LANES]; ROWS], values: &[[f32; LANES]; ROWS]| {
        sum.iter_mut().zip(values).for_each(|(sum, values)| add(sum, values));
    };
    for (index, step) in rows.chunks(1 << power).enumerate() {
        step.iter().for_each(|row| add_all(&mut levels[0], row));
        if step.len() < 1 << power {
            break;
        }
        for level in 1..LEVELS {
            let full = std::mem::replace(&mut levels[level - 1], [[0.0; LANES]; ROWS]);
            add_all(&mut levels[level], &full);
            let mask = ((1_usize << power) - 1) << ((level - 1) as u32 * power);
            if (index + 1) & mask != 0 {
                break;
            }
        }
    }
    let [mut total, others @ ..] = levels;
    others.iter().for_each(|level| add_all(&mut total, level));
    total
}
