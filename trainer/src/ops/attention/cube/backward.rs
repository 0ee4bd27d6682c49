//! The backward pass. Probabilities are computed again, tile by tile, from the scores and the log-sum-exp. The gradients
//! of queries and those of keys and values are two kernels, so that each gradient is summed by one cube.

use cubecl::prelude::*;

use super::tiles::{BLOCK, Bend, Rows, Tiles, accumulate, bent, extent_of, multiply_rows, sees, write_rows};
use crate::ops::cube::{lane_sum, row_sum};

/// `sum(gradient * output)` of each row of one head, written as `[heads, queries]`.
#[cube(launch_unchecked)]
pub(super) fn deltas<F: Float, N: Size>(
    gradient: &[Vector<F, N>],
    output: &[Vector<F, N>],
    deltas: &mut [f32],
    rows: usize,
    vectors: usize,
    heads: usize,
    #[comptime] width: usize,
    #[comptime] height: usize,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS_X as usize * height + UNIT_POS_Y as usize;
    let mut products = Vector::<f32, N>::new(0.0f32);
    if row < rows {
        let mut column = UNIT_POS_X as usize;
        while column < vectors {
            let position = row * vectors + column;
            products += Vector::<f32, N>::cast_from(gradient[position]) * Vector::<f32, N>::cast_from(output[position]);
            column += width;
        }
    }
    let total = row_sum(lane_sum::<N>(products), width, height);
    if row < rows && UNIT_POS_X == 0 {
        deltas[row % heads * (rows / heads) + row / heads] = total;
    }
}

/// `scale p slope`, what the difference of a probability's gradient and its delta is multiplied with: the probability p
/// of a visible score and the slope of its bound.
#[cube]
fn factor(probability: f32, score: f32, scale: f32, extent: f32, #[comptime] bend: Bend) -> f32 {
    if comptime!(bend == Bend::Bound) {
        let share = score / extent;
        scale * probability * (1.0f32 - share * share)
    } else {
        scale * probability
    }
}

/// The gradient of a tile of queries of one head.
#[cube(launch_unchecked)]
pub(super) fn queries<F: Float>(
    gradient: &[F],
    q: &[F],
    k: &[F],
    v: &[F],
    log_sums: &[f32],
    deltas: &[f32],
    places: &[u32],
    extents: &[f32],
    q_gradient: &mut [F],
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
    let mut scores = Array::<f32>::new(comptime!(BLOCK * BLOCK));
    let mut slopes = Array::<f32>::new(comptime!(BLOCK * BLOCK));
    let mut sums = Array::<f32>::new(comptime!(tiles.kept()));
    let mut row_log_sums = Array::<f32>::new(comptime!(BLOCK));
    let mut row_deltas = Array::<f32>::new(comptime!(BLOCK));
    let first_row = UNIT_POS_Y as usize * comptime!(BLOCK);
    #[unroll]
    for row in 0..BLOCK {
        if first_row + row < query_rows.present {
            let index = head * queries + query_rows.first + first_row + row;
            row_log_sums[row] = log_sums[index];
            row_deltas[row] = deltas[index];
        }
    }
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
        multiply_rows::<F>(gradient, &query_rows, v, &key_rows, &mut slopes, &mut memory, tiles);
        #[unroll]
        for row in 0..BLOCK {
            #[unroll]
            for column in 0..BLOCK {
                let element = comptime!(row * BLOCK + column);
                let tile_row = first_row + row;
                let tile_column = UNIT_POS_X as usize + comptime!(column * tiles.across);
                let mut weight = 0.0f32;
                if tile_row < query_rows.present
                    && tile_column < present
                    && sees(position + tile_row, key + tile_column, window)
                {
                    let score = bent(
                        scores[element],
                        scale,
                        extent,
                        position + tile_row,
                        key + tile_column,
                        bend,
                    );
                    let probability = (score - row_log_sums[row]).exp();
                    weight = factor(probability, score, scale, extent, bend) * (slopes[element] - row_deltas[row]);
                }
                weights[tile_row * comptime!(tiles.pitch()) + tile_column] = weight;
            }
        }
        accumulate::<F>(&weights, k, &key_rows, &mut sums, &mut memory, tiles);
        key += comptime!(tiles.columns());
    }
    write_rows::<F>(&sums, &query_rows, q_gradient, tiles);
}

/// The gradients of a tile of keys and values of one key head, over all query heads that share it.
#[cube(launch_unchecked)]
pub(super) fn keys<F: Float>(
    gradient: &[F],
    q: &[F],
    k: &[F],
    v: &[F],
    log_sums: &[f32],
    deltas: &[f32],
    places: &[u32],
    extents: &[f32],
    k_gradient: &mut [F],
    v_gradient: &mut [F],
    heads: usize,
    kv_heads: usize,
    queries: usize,
    window: usize,
    scale: f32,
    #[comptime] bend: Bend,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let kv_head = CUBE_POS_Y as usize;
    let group = heads / kv_heads;
    let place = CUBE_POS_X as usize * 5;
    let first_query = places[place + 2] as usize;
    let end_query = places[place + 3] as usize;
    let behind = places[place + 4] as usize;
    let features = comptime!(tiles.features);
    let key_rows = Rows {
        first: places[place] as usize,
        present: places[place + 1] as usize,
        stride: kv_heads * features,
        offset: kv_head * features,
    };
    let mut memory = Shared::<[f32]>::new_slice(comptime!(tiles.stage()));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tiles.rows() * tiles.pitch()));
    let mut scores = Array::<f32>::new(comptime!(BLOCK * BLOCK));
    let mut factors = Array::<f32>::new(comptime!(BLOCK * BLOCK));
    let mut k_sums = Array::<f32>::new(comptime!(tiles.kept()));
    let mut v_sums = Array::<f32>::new(comptime!(tiles.kept()));
    let first_row = UNIT_POS_Y as usize * comptime!(BLOCK);
    for member in 0..group {
        let head = kv_head * group + member;
        let extent = extent_of(extents, head, bend);
        let mut query = first_query;
        while query < end_query {
            let mut present = end_query - query;
            if present > comptime!(tiles.columns()) {
                present = comptime!(tiles.columns()).runtime();
            }
            let query_rows = Rows {
                first: query,
                present,
                stride: heads * features,
                offset: head * features,
            };
            multiply_rows::<F>(k, &key_rows, q, &query_rows, &mut scores, &mut memory, tiles);
            #[unroll]
            for column in 0..BLOCK {
                let tile_column = UNIT_POS_X as usize + comptime!(column * tiles.across);
                let mut log_sum = 0.0f32;
                if tile_column < present {
                    log_sum = log_sums[head * queries + query + tile_column];
                }
                #[unroll]
                for row in 0..BLOCK {
                    let element = comptime!(row * BLOCK + column);
                    let tile_row = first_row + row;
                    let mut probability = 0.0f32;
                    let position = query + tile_column + behind;
                    let key = key_rows.first + tile_row;
                    let score = bent(scores[element], scale, extent, position, key, bend);
                    if tile_row < key_rows.present && tile_column < present && sees(position, key, window) {
                        probability = (score - log_sum).exp();
                    }
                    factors[element] = factor(probability, score, scale, extent, bend);
                    weights[tile_row * comptime!(tiles.pitch()) + tile_column] = probability;
                }
            }
            accumulate::<F>(&weights, gradient, &query_rows, &mut v_sums, &mut memory, tiles);
            multiply_rows::<F>(v, &key_rows, gradient, &query_rows, &mut scores, &mut memory, tiles);
            #[unroll]
            for column in 0..BLOCK {
                let tile_column = UNIT_POS_X as usize + comptime!(column * tiles.across);
                let mut delta = 0.0f32;
                if tile_column < present {
                    delta = deltas[head * queries + query + tile_column];
                }
                #[unroll]
                for row in 0..BLOCK {
                    let element = comptime!(row * BLOCK + column);
                    weights[(first_row + row) * comptime!(tiles.pitch()) + tile_column] =
                        factors[element] * (scores[element] - delta);
                }
            }
            accumulate::<F>(&weights, q, &query_rows, &mut k_sums, &mut memory, tiles);
            query += comptime!(tiles.columns());
        }
    }
    write_rows::<F>(&k_sums, &key_rows, k_gradient, tiles);
    write_rows::<F>(&v_sums, &key_rows, v_gradient, tiles);
}
