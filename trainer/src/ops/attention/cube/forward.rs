//! The forward pass: output and log-sum-exp of a tile of queries.

use cubecl::prelude::*;

use super::tiles::{
    BLOCK, Bend, Rows, Tiles, accumulate, bent, extent_of, multiply_rows, scale_rows, sees, write_rows,
};

/// Below every score; finite, so that differences of it stay numbers.
const LOWEST: f32 = -3.0e38;

/// One tile of queries and one head.
#[cube(launch_unchecked)]
pub(super) fn kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    places: &[u32],
    extents: &[f32],
    output: &mut [F],
    log_sums: &mut [f32],
    heads: usize,
    kv_heads: usize,
    queries: usize,
    window: usize,
    scale: f32,
    #[comptime] bend: Bend,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let head = CUBE_POS_Y as usize;
    let kv_head = head / (heads / kv_heads);
    let extent = extent_of(extents, head, bend);
    let place = CUBE_POS_X as usize * 5;
    let position = places[place + 2] as usize;
    let mut key = places[place + 3] as usize;
    let end_key = places[place + 4] as usize;
    let features = comptime!(tiles.features);
    let query_rows = Rows {
        first: places[place] as usize,
        present: places[place + 1] as usize,
        stride: heads * features,
        offset: head * features,
    };
    let mut memory = Shared::<[f32]>::new_slice(comptime!(tiles.stage()));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tiles.rows() * tiles.pitch()));
    let mut maxima = Shared::<[f32]>::new_slice(comptime!(tiles.rows()));
    let mut sums = Shared::<[f32]>::new_slice(comptime!(tiles.rows()));
    let mut corrections = Shared::<[f32]>::new_slice(comptime!(tiles.rows()));
    let mut scores = Array::<f32>::new(comptime!(BLOCK * BLOCK));
    let mut values = Array::<f32>::new(comptime!(tiles.kept()));
    let mut row = UNIT_POS as usize;
    while row < comptime!(tiles.rows()) {
        maxima[row] = LOWEST;
        sums[row] = 0.0f32;
        row += comptime!(tiles.units());
    }
    let first_score = UNIT_POS_Y as usize * comptime!(BLOCK * tiles.pitch()) + UNIT_POS_X as usize;
    while key < end_key {
        let mut present = end_key - key;
        if present > comptime!(tiles.columns()) {
            present = comptime!(tiles.columns()).runtime();
        }
        let key_rows = Rows {
            first: key,
            present,
            stride: kv_heads * features,
            offset: kv_head * features,
        };
        multiply_rows::<F>(q, &query_rows, k, &key_rows, &mut scores, &mut memory, tiles);
        #[unroll]
        for row in 0..BLOCK {
            let query = position + UNIT_POS_Y as usize * comptime!(BLOCK) + row;
            #[unroll]
            for column in 0..BLOCK {
                let score_key = key + UNIT_POS_X as usize + comptime!(column * tiles.across);
                weights[first_score + comptime!(row * tiles.pitch() + column * tiles.across)] = bent(
                    scores[comptime!(row * BLOCK + column)],
                    scale,
                    extent,
                    query,
                    score_key,
                    bend,
                );
            }
        }
        sync_cube();
        // The softmax goes row by row, a unit per row.
        let mut row = UNIT_POS as usize;
        while row < comptime!(tiles.rows()) {
            let first = row * comptime!(tiles.pitch());
            let before = maxima[row];
            let mut largest = before;
            for column in 0..present {
                let score = weights[first + column];
                if sees(position + row, key + column, window) && score > largest {
                    largest = score;
                }
            }
            let correction = (before - largest).exp();
            let mut sum = sums[row] * correction;
            for column in 0..comptime!(tiles.columns()) {
                let mut weight = 0.0f32;
                if column < present && sees(position + row, key + column, window) {
                    weight = (weights[first + column] - largest).exp();
                }
                weights[first + column] = weight;
                sum += weight;
            }
            maxima[row] = largest;
            sums[row] = sum;
            corrections[row] = correction;
            row += comptime!(tiles.units());
        }
        sync_cube();
        scale_rows(&mut values, &corrections, tiles);
        accumulate::<F>(&weights, v, &key_rows, &mut values, &mut memory, tiles);
        key += comptime!(tiles.columns());
    }
    sync_cube();
    let mut row = UNIT_POS as usize;
    while row < comptime!(tiles.rows()) {
        if row < query_rows.present {
            log_sums[head * queries + query_rows.first + row] = maxima[row] + sums[row].ln();
            corrections[row] = 1.0f32 / sums[row];
        } else {
            corrections[row] = 0.0f32;
        }
        row += comptime!(tiles.units());
    }
    sync_cube();
    scale_rows(&mut values, &corrections, tiles);
    write_rows::<F>(&values, &query_rows, output, tiles);
}
