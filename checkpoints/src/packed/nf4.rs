//! Four-bit numbers whose levels suit normally distributed weights.

use multiversion::multiversion;
use rayon::prelude::*;

use super::absmax::Absmax;

/// What the 16 codes stand for.
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A number above the bound between two levels gets the upper one; one on it the lower.
const BOUNDS: [f32; 15] = {
    let mut bounds = [0.0; 15];
    let mut index = 0;
    while index < 15 {
        bounds[index] = (LEVELS[index] + LEVELS[index + 1]) / 2.0;
        index += 1;
    }
    bounds
};

/// More cells than the 33 that the numbers from -1 to 1 fall into, so that any six bits are one.
const CELLS: usize = 64;

/// The cell of a number: the nearest sixteenth, counted from -1. Adding so much leaves whole numbers in the last bits. A
/// larger number has the same cell or a higher one.
const fn cell(share: f32) -> usize {
    (share * 16.0 + 8_388_624.0).to_bits() as usize % CELLS
}

/// How many bounds are in cells below each cell.
static BELOW: [u8; CELLS] = {
    let mut below = [0; CELLS];
    let mut index = 0;
    while index < 15 {
        let mut above = cell(BOUNDS[index]) + 1;
        while above < CELLS {
            below[above] += 1;
            above += 1;
        }
        index += 1;
    }
    below
};

/// The bound in each cell; there is never more than one.
static WITHIN: [f32; CELLS] = {
    let mut within = [f32::INFINITY; CELLS];
    let mut index = 0;
    while index < 15 {
        let cell = cell(BOUNDS[index]);
        assert!(within[cell] == f32::INFINITY, "two bounds in a cell");
        within[cell] = BOUNDS[index];
        index += 1;
    }
    within
};

/// The two levels of every byte.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [LEVELS[byte >> 4], LEVELS[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Numbers that are encoded, or pairs that are decoded, at a time, so that the compiler knows how many.
const WIDTH: usize = 32;

/// The smallest magnitude that is divided by.
const SMALLEST: f32 = 1e-38;

/// Numbers that one thread quantises at a time: many blocks of any size, and few enough for its cache.
const CHUNK: usize = 1 << 16;

/// Whether blocks may have this size: the powers of two from 32 to 4096, which bitsandbytes knows.
pub fn is_block(size: usize) -> bool {
    size.is_power_of_two() && (32..=4096).contains(&size)
}

/// Codes, magnitudes, and the position of the first number that is not finite.
pub(super) fn encode(
    values: usize,
    block: usize,
    read: impl Fn(usize, &mut [f32]) + Sync,
) -> (Vec<u8>, Vec<f32>, Option<usize>) {
    let mut codes = vec![0; values.div_ceil(2)];
    let mut absmax = vec![0.0; values.div_ceil(block)];
    let not_finite = codes
        .par_chunks_mut(CHUNK / 2)
        .zip(absmax.par_chunks_mut(CHUNK / block))
        .enumerate()
        .map_init(Vec::new, |buffer: &mut Vec<f32>, (index, (codes, absmax))| {
            let first = index * CHUNK;
            buffer.resize(CHUNK.min(values - first), 0.0);
            read(first, buffer);
            encode_chunk(buffer, block, codes, absmax);
            let finite = absmax.iter().all(|value| value.is_finite());
            let position = || buffer.iter().position(|value| !value.is_finite());
            if finite { None } else { Some(first + position()?) }
        })
        .flatten()
        .min();
    (codes, absmax, not_finite)
}

#[multiversion(targets = "simd")]
fn encode_chunk(values: &[f32], block: usize, codes: &mut [u8], absmax: &mut [f32]) {
    for ((values, codes), absmax) in values.chunks(block).zip(codes.chunks_mut(block / 2)).zip(absmax) {
        // Magnitudes in the order of their bits, in which what is not finite comes last.
        let magnitude = |value: &f32| value.to_bits() & 0x7fff_ffff;
        let largest = f32::from_bits(values.iter().map(magnitude).fold(0, u32::max));
        // bitsandbytes multiplies in whole blocks, divides in the last short one, and keeps what it divided by.
        if values.len() == block {
            *absmax = largest;
            let inverse = 1.0 / largest.max(SMALLEST);
            encode_block(values, |value| value * inverse, codes);
        } else {
            let largest = largest.max(SMALLEST);
            *absmax = largest;
            encode_block(values, |value| value / largest, codes);
        }
    }
}

#[inline(always)]
fn encode_block(values: &[f32], share: impl Fn(f32) -> f32, codes: &mut [u8]) {
    let (whole, rest) = values.as_chunks::<WIDTH>();
    let (whole_codes, rest_codes) = codes.split_at_mut(whole.len() * WIDTH / 2);
    for (codes, values) in whole_codes.as_chunks_mut().0.iter_mut().zip(whole) {
        let mut shares = [0.0; WIDTH];
        for (place, value) in shares.iter_mut().zip(values) {
            *place = share(*value);
        }
        *codes = encode_array(&shares);
    }
    if !rest.is_empty() {
        // What fills the last byte of an odd number is the code of zero.
        let mut shares = [0.0; WIDTH];
        for (place, value) in shares.iter_mut().zip(rest) {
            *place = share(*value);
        }
        let encoded = encode_array(&shares);
        rest_codes.copy_from_slice(&encoded[..rest_codes.len()]);
    }
}

#[inline(always)]
fn encode_array(shares: &[f32; WIDTH]) -> [u8; WIDTH / 2] {
    let mut codes = [0; WIDTH / 2];
    for (code, [high, low]) in codes.iter_mut().zip(shares.as_chunks::<2>().0) {
        *code = code_of(*high) << 4 | code_of(*low);
    }
    codes
}

/// The code of a number over its block's magnitude: how many bounds it is above. All but at most one of them are in other
/// cells, so that the cell says where the number lies to them.
#[inline(always)]
fn code_of(share: f32) -> u8 {
    let cell = cell(share);
    BELOW[cell] + u8::from(share > WITHIN[cell])
}

/// Decodes the numbers from the one at `first` on.
#[multiversion(targets = "simd")]
pub(super) fn decode(codes: &[u8], block: usize, absmax: &Absmax, first: usize, out: &mut [f32]) {
    let mut position = first;
    let mut out = out;
    while !out.is_empty() {
        let index = position / block;
        let here = ((index + 1) * block - position).min(out.len());
        let (part, rest) = out.split_at_mut(here);
        out = rest;
        let scale = absmax.get(index);
        let mut codes = &codes[position / 2..(position + here).div_ceil(2)];
        position += here;
        let mut part = part;
        if (position - here) % 2 == 1 {
            part[0] = PAIRS[usize::from(codes[0])][1] * scale;
            (part, codes) = (&mut part[1..], &codes[1..]);
        }
        let (pairs, single) = part.as_chunks_mut::<2>();
        let (codes, code_of_single) = codes.split_at(pairs.len());
        let (whole_pairs, rest) = pairs.as_chunks_mut::<WIDTH>();
        let (whole_codes, rest_codes) = codes.as_chunks::<WIDTH>();
        for (pairs, codes) in whole_pairs.iter_mut().zip(whole_codes) {
            decode_pairs(codes, scale, pairs);
        }
        decode_pairs(rest_codes, scale, rest);
        if let ([single], [code]) = (single, code_of_single) {
            *single = PAIRS[usize::from(*code)][0] * scale;
        }
    }
}

#[inline(always)]
fn decode_pairs(codes: &[u8], scale: f32, pairs: &mut [[f32; 2]]) {
    for (pair, code) in pairs.iter_mut().zip(codes) {
        let [high, low] = PAIRS[usize::from(*code)];
        *pair = [high * scale, low * scale];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_give_the_number_of_bounds_below() {
        let near = BOUNDS
            .iter()
            .flat_map(|bound| [bound.next_down(), *bound, bound.next_up()]);
        let even = (-1100..=1100).map(|step| step as f32 / 1100.0);
        for share in near.chain(even).chain(LEVELS).chain([1.0_f32.next_up(), -0.0]) {
            let below = BOUNDS.iter().filter(|bound| **bound < share).count();
            assert_eq!(usize::from(code_of(share)), below, "{share}");
        }
    }
}
