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

/// The code of zero, which fills the last byte of an odd number of codes.
const ZERO: u8 = 7;

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
    const WIDTH: usize = 32;
    for (values, codes) in values.chunks(WIDTH).zip(codes.chunks_mut(WIDTH / 2)) {
        let mut levels = [ZERO; WIDTH];
        for (level, value) in levels.iter_mut().zip(values) {
            let share = share(*value).clamp(-1.0, 1.0);
            let above = BOUNDS.iter().map(|bound| u32::from(share > *bound)).sum::<u32>();
            *level = above as u8;
        }
        for (code, [high, low]) in codes.iter_mut().zip(levels.as_chunks::<2>().0) {
            *code = high << 4 | low;
        }
    }
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
        for (pair, code) in pairs.iter_mut().zip(codes) {
            let [high, low] = PAIRS[usize::from(*code)];
            *pair = [high * scale, low * scale];
        }
        if let ([single], [.., code]) = (single, codes) {
            *single = PAIRS[usize::from(*code)][0] * scale;
        }
    }
}
