//! Attention in CubeCL (Dao, 2023, algorithms 1 and 2): a cube works on one tile of queries (or of keys, for their
//! gradients) and one head, and goes through the keys (or queries) it has to do with in tiles. No matrix of scores
//! leaves a cube, and no cube adds to what another one writes, so every call gives the same bits.

mod backward;
mod forward;
mod tiles;

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::CubeCount;

use self::tiles::{Bend, Tiles};
use super::{AttentionBackward, AttentionOps, Saved, Spans};
use crate::ops::cube::{
    RowCubes, buffer, close, dimensions, element, empty, lanes, most_units, open, plain, reshaped, tensor, upload,
};

impl AttentionOps for Cube {
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: Spans,
    ) -> FloatTensor<Self> {
        let [output, _] = Self::attention_saving(q, k, v, &spans);
        output
    }
}

impl AttentionBackward for Cube {
    fn attention_saving(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: &Spans,
    ) -> [FloatTensor<Self>; 2] {
        let (q, k, v) = (open(q), open(k), open(v));
        let tiles = Tiles::new(&q.client, spans.head_dim);
        run_forward([&q, &k, &v], spans, tiles).map(close)
    }

    fn attention_backward(gradient: FloatTensor<Self>, saved: Saved<Self>, spans: &Spans) -> [FloatTensor<Self>; 3] {
        let (q, k, v) = (open(saved.q), open(saved.k), open(saved.v));
        let (output, log_sums) = (open(saved.output), open(saved.log_sums));
        let tiles = Tiles::new(&q.client, spans.head_dim);
        run_backward(&open(gradient), [&q, &k, &v], [&output, &log_sums], spans, tiles).map(close)
    }
}

/// Output and gradients of q, k and v with `down` times `across` units to a cube and unrolled loops, for checks: a CPU
/// would not choose either, a GPU does. None where the device has fewer units or no kernels.
pub(in crate::ops) fn attention_in_tiles(
    [q, k, v]: [Tensor<3>; 3],
    gradient: Tensor<2>,
    spans: &Spans,
    [down, across]: [usize; 2],
) -> Option<(Tensor<2>, [Tensor<3>; 3])> {
    let (q, k, v) = (plain(q).ok()?, plain(k).ok()?, plain(v).ok()?);
    let gradient = plain(gradient).ok()?;
    if down * across > most_units(&q.client) {
        return None;
    }
    let tiles = Tiles {
        down,
        across,
        features: spans.head_dim,
        unrolled: true,
    };
    let inputs = [&q, &k, &v];
    let [output, log_sums] = run_forward(inputs, spans, tiles);
    let gradients = run_backward(&gradient, inputs, [&output, &log_sums], spans, tiles);
    Some((tensor(output), gradients.map(tensor)))
}

/// Output and log-sum-exp.
fn run_forward([q, k, v]: [&CubeTensor; 3], spans: &Spans, tiles: Tiles) -> [CubeTensor; 2] {
    check(spans, q, k, v);
    let [queries, heads, head_dim] = dimensions(q);
    let output = empty(q, [queries, heads * head_dim], q.dtype);
    let log_sums = empty(q, [heads, queries], DType::F32);
    let (bend, extents) = bend(spans);
    let places = query_places(spans, tiles);
    if !places.is_empty() {
        // SAFETY: `check` makes the places lie inside the buffers, and the kernel touches nothing else.
        unsafe {
            forward::kernel::launch_unchecked(
                &q.client,
                CubeCount::Static((places.len() / PLACE) as u32, heads as u32, 1),
                tiles.dim(),
                buffer(q),
                buffer(k),
                buffer(v),
                upload(&q.client, &places),
                upload(&q.client, &extents),
                buffer(&output),
                buffer(&log_sums),
                heads,
                spans.kv_heads,
                queries,
                window(spans),
                spans.scale,
                bend,
                tiles,
                element(q.dtype),
            );
        }
    }
    [output, log_sums]
}

/// The gradients of q, k and v.
fn run_backward(
    gradient: &CubeTensor,
    [q, k, v]: [&CubeTensor; 3],
    [output, log_sums]: [&CubeTensor; 2],
    spans: &Spans,
    tiles: Tiles,
) -> [CubeTensor; 3] {
    check(spans, q, k, v);
    let [queries, heads, head_dim] = dimensions(q);
    let [keys, kv_heads, _] = dimensions(k);
    let q_gradient = empty(q, [queries, heads, head_dim], q.dtype);
    let k_gradient = empty(q, [keys, kv_heads, head_dim], q.dtype);
    let v_gradient = empty(q, [keys, kv_heads, head_dim], q.dtype);
    let deltas = deltas(gradient, output, [queries, heads, head_dim]);
    let (bend, extents) = bend(spans);
    let places = query_places(spans, tiles);
    if !places.is_empty() {
        // SAFETY: as in the forward pass.
        unsafe {
            backward::queries::launch_unchecked(
                &q.client,
                CubeCount::Static((places.len() / PLACE) as u32, heads as u32, 1),
                tiles.dim(),
                buffer(gradient),
                buffer(q),
                buffer(k),
                buffer(v),
                buffer(log_sums),
                buffer(&deltas),
                upload(&q.client, &places),
                upload(&q.client, &extents),
                buffer(&q_gradient),
                heads,
                spans.kv_heads,
                queries,
                window(spans),
                spans.scale,
                bend,
                tiles,
                element(q.dtype),
            );
        }
    }
    let places = key_places(spans, tiles);
    if !places.is_empty() {
        // SAFETY: as in the forward pass.
        unsafe {
            backward::keys::launch_unchecked(
                &q.client,
                CubeCount::Static((places.len() / PLACE) as u32, kv_heads as u32, 1),
                tiles.dim(),
                buffer(gradient),
                buffer(q),
                buffer(k),
                buffer(v),
                buffer(log_sums),
                buffer(&deltas),
                upload(&q.client, &places),
                upload(&q.client, &extents),
                buffer(&k_gradient),
                buffer(&v_gradient),
                heads,
                spans.kv_heads,
                queries,
                window(spans),
                spans.scale,
                bend,
                tiles,
                element(q.dtype),
            );
        }
    }
    [q_gradient, k_gradient, v_gradient]
}

/// Numbers that describe a tile to a cube.
const PLACE: usize = 5;

/// Every place computed below lies inside its buffer if these hold.
fn check(spans: &Spans, q: &CubeTensor, k: &CubeTensor, v: &CubeTensor) {
    let length = |tensor: &CubeTensor| tensor.meta.num_elements();
    spans.check([length(q), length(k), length(v)]);
    assert!(
        q.dtype == k.dtype && k.dtype == v.dtype,
        "types of queries, keys and values"
    );
}

/// What happens to scores between factor and softmax, and by how much: one number, or one for each query head.
fn bend(spans: &Spans) -> (Bend, Vec<f32>) {
    match (&spans.slopes, spans.softcap) {
        (Some(slopes), _) => (Bend::Slope, slopes.to_vec()),
        (None, Some(cap)) => (Bend::Bound, vec![cap]),
        (None, None) => (Bend::None, vec![1.0]),
    }
}

/// Keys that a query sees; more than there are where there is no window.
fn window(spans: &Spans) -> usize {
    spans.window.unwrap_or(usize::MAX).clamp(1, spans.key_count().max(1))
}

/// Per tile of queries: first query, number of queries, the key row of the first query, and the keys that any of them
/// sees, first and end. The longest come first, so that no cube is left over with them at the end.
fn query_places(spans: &Spans, tiles: Tiles) -> Vec<u32> {
    let (window, rows) = (window(spans), tiles.rows());
    let mut places = Vec::new();
    for (queries, keys) in spans.queries.windows(2).zip(spans.keys.windows(2)) {
        let behind = keys[1] - queries[1];
        for first in (queries[0]..queries[1]).step_by(rows) {
            let count = rows.min(queries[1] - first);
            let position = first + behind;
            let first_key = (position + 1).saturating_sub(window).max(keys[0]);
            places.push([first, count, position, first_key, position + count].map(|number| number as u32));
        }
    }
    places.sort_by_key(|[_, _, _, first, end]| std::cmp::Reverse(end - first));
    places.concat()
}

/// Per tile of keys: first key, number of keys, the queries that see any of them, first and end, and how many rows
/// queries stand behind their keys.
fn key_places(spans: &Spans, tiles: Tiles) -> Vec<u32> {
    let (window, rows) = (window(spans), tiles.rows());
    let mut places = Vec::new();
    for (queries, keys) in spans.queries.windows(2).zip(spans.keys.windows(2)) {
        let behind = keys[1] - queries[1];
        for first in (keys[0]..keys[1]).step_by(rows) {
            let count = rows.min(keys[1] - first);
            let end_query = (first + count - 1 + window).saturating_sub(behind).min(queries[1]);
            let first_query = first
                .saturating_sub(behind)
                .max(queries[0])
                .min(end_query.max(queries[0]));
            places.push([first, count, first_query, end_query, behind].map(|number| number as u32));
        }
    }
    places.sort_by_key(|[_, _, first, end, _]| std::cmp::Reverse(end.saturating_sub(*first)));
    places.concat()
}

/// `sum(gradient * output)` of each head of each query, `[heads, queries]`.
fn deltas(gradient: &CubeTensor, output: &CubeTensor, [queries, heads, head_dim]: [usize; 3]) -> CubeTensor {
    let deltas = empty(gradient, [heads, queries], DType::F32);
    let rows = queries * heads;
    if rows > 0 {
        let lanes = lanes(gradient.dtype, head_dim);
        let cubes = RowCubes::new(&gradient.client, rows, head_dim / lanes);
        // SAFETY: the kernel touches only the rows that there are.
        unsafe {
            backward::deltas::launch_unchecked(
                &gradient.client,
                cubes.count(),
                cubes.dim(),
                lanes,
                buffer(&reshaped(gradient.clone(), [rows, head_dim])),
                buffer(&reshaped(output.clone(), [rows, head_dim])),
                buffer(&deltas),
                rows,
                head_dim / lanes,
                heads,
                cubes.width,
                cubes.height,
                element(gradient.dtype),
            );
        }
    }
    deltas
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Every visible pair of query and key belongs to exactly one place of either list.
    #[test]
    fn places_cover_what_is_visible() {
        for (queries, keys, window) in [
            (vec![0, 10, 10, 45], vec![0, 10, 12, 80], None),
            (vec![0, 33, 34], vec![0, 33, 60], Some(5)),
            (vec![0, 7], vec![0, 90], Some(1)),
        ] {
            let spans = Spans {
                queries: Arc::from(queries.clone()),
                keys: Arc::from(keys.clone()),
                window,
                scale: 1.0,
                softcap: None,
                slopes: None,
                heads: 1,
                kv_heads: 1,
                head_dim: 4,
            };
            let tiles = Tiles {
                down: 2,
                across: 1,
                features: 4,
                unrolled: false,
            };
            let mut from_queries = Vec::new();
            for place in query_places(&spans, tiles).chunks(PLACE) {
                let [first, count, position, first_key, end_key] = [0, 1, 2, 3, 4].map(|index| place[index]);
                for row in 0..count {
                    for key in first_key..end_key {
                        let seen = key <= position + row && key + window.unwrap_or(1000) as u32 > position + row;
                        if seen {
                            from_queries.push((first + row, key));
                        }
                    }
                }
            }
            let mut from_keys = Vec::new();
            for place in key_places(&spans, tiles).chunks(PLACE) {
                let [first, count, first_query, end_query, behind] = [0, 1, 2, 3, 4].map(|index| place[index]);
                for query in first_query..end_query {
                    for key in first..first + count {
                        let position = query + behind;
                        if key <= position && key + window.unwrap_or(1000) as u32 > position {
                            from_keys.push((query, key));
                        }
                    }
                }
            }
            let mut expected = Vec::new();
            for (queries, keys) in queries.windows(2).zip(keys.windows(2)) {
                for query in queries[0]..queries[1] {
                    let position = query + keys[1] - queries[1];
                    for key in keys[0]..=position {
                        if key + window.unwrap_or(1000) > position {
                            expected.push((query as u32, key as u32));
                        }
                    }
                }
            }
            from_queries.sort_unstable();
            from_keys.sort_unstable();
            assert_eq!(from_queries, expected);
            assert_eq!(from_keys, expected);
        }
    }
}
