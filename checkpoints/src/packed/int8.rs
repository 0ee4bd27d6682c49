//! Eight-bit numbers with one scale a row.

use multiversion::multiversion;
use rayon::prelude::*;

/// 1 / 127, as bitsandbytes multiplies with it.
const INVERSE_127: f32 = 7.874_016e-3;

/// Codes, scales, and the position of the first number that is not finite.
pub(super) fn encode(
    [rows, columns]: [usize; 2],
    read: impl Fn(usize, &mut [f32]) + Sync,
) -> (Vec<u8>, Vec<f32>, Option<usize>) {
    let mut codes = vec![0; rows * columns];
    let mut scales = vec![0.0; rows];
    let not_finite = codes
        .par_chunks_mut(columns.max(1))
        .zip(&mut scales)
        .enumerate()
        .map_init(
            || vec![0.0; columns],
            |buffer, (row, (codes, scale))| {
                read(row * columns, buffer);
                *scale = encode_row(buffer, codes);
                let position = || buffer.iter().position(|value| !value.is_finite());
                if scale.is_finite() {
                    None
                } else {
                    Some(row * columns + position()?)
                }
            },
        )
        .flatten()
        .min();
    (codes, scales, not_finite)
}

/// The row's scale: its largest magnitude.
#[multiversion(targets = "simd")]
fn encode_row(values: &[f32], codes: &mut [u8]) -> f32 {
    // Magnitudes in the order of their bits, in which what is not finite comes last.
    let magnitude = |value: &f32| value.to_bits() & 0x7fff_ffff;
    let scale = f32::from_bits(values.iter().map(magnitude).fold(0, u32::max));
    // A row of zeros, or of numbers so small that the quotient overflows, is zero.
    let inverse = Some(127.0 / scale).filter(|inverse| inverse.is_finite()).unwrap_or(0.0);
    for (code, value) in codes.iter_mut().zip(values) {
        *code = ((value * inverse).round_ties_even() as i8).cast_unsigned();
    }
    scale
}

/// Decodes whole rows.
#[multiversion(targets = "simd")]
pub(super) fn decode(codes: &[u8], scales: &[f32], columns: usize, out: &mut [f32]) {
    if columns == 0 {
        return;
    }
    let rows = codes.chunks_exact(columns).zip(out.chunks_exact_mut(columns));
    for ((codes, out), scale) in rows.zip(scales) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = f32::from(code.cast_signed()) * scale * INVERSE_127;
        }
    }
}
