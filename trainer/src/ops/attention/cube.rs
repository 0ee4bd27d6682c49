//! Attention in CubeCL (Dao, 2023, algorithms 1 and 2): a cube works on one tile of queries (or of keys, for their
//! gradients) and one head, and goes through the keys (or queries) it has to do with in tiles. No matrix of scores
//! leaves a cube, and no cube adds to what another one writes, so every call gives the same bits.

mod backward;
mod forward;
mod tiles;

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{CubeCount, CubeDim};

use self::tiles::Tiles;
use super::{AttentionBackward, AttentionOps, Saved, Spans};
use crate::ops::cube::{RowCubes, buffer, close, dimensions, element, empty, lanes, open, reshaped, upload};

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
        check(spans, &q, &k, &v);
        let [queries, heads, head_dim] = dimensions(&q);
        let output = empty(&q, [queries, heads * head_dim], q.dtype);
        let log_sums = empty(&q, [heads, queries], DType::F32);
        let tiles = Tiles::new(&q.client, head_dim);
        let places = query_places(spans, tiles);
        if !places.is_empty() {
            // SAFETY: `check` makes the places lie inside the buffers, and the kernel touches nothing else.
            unsafe {
                forward::kernel::launch_unchecked(
                    &q.client,
                    CubeCount::Static((places.len() / PLACE) as u32, heads as u32, 1),
                    tiles.dim(),
                    buffer(&q),
                    buffer(&k),
                    buffer(&v),
                    upload(&q.client, &places),
                    buffer(&output),
                    buffer(&log_sums),
                    heads,
                    spans.kv_heads,
                    queries,
                    window(spans),
                    spans.scale,
                    spans.softcap.unwrap_or(1.0),
                    spans.softcap.is_some(),
                    tiles,
                    element(q.dtype),
                );
            }
        }
        [close(output), close(log_sums)]
    }

    fn attention_backward(gradient: FloatTensor<Self>, saved: Saved<Self>, spans: &Spans) -> [FloatTensor<Self>; 3] {
        let (gradient, q, k, v) = (open(gradient), open(saved.q), open(saved.k), open(saved.v));
        let (output, log_sums) = (open(saved.output), open(saved.log_sums));
        check(spans, &q, &k, &v);
        let [queries, heads, head_dim] = dimensions(&q);
        let [keys, kv_heads, _] = dimensions(&k);
        let q_gradient = empty(&q, [queries, heads, head_dim], q.dtype);
        let k_gradient = empty(&q, [keys, kv_heads, head_dim], q.dtype);
        let v_gradient = empty(&q, [keys, kv_heads, head_dim], q.dtype);
        let deltas = deltas(&gradient, &output, [queries, heads, head_dim]);
        let tiles = Tiles::new(&q.client, head_dim);
        let places = query_places(spans, tiles);
        if !places.is_empty() {
            // SAFETY: as in the forward pass.
            unsafe {
                backward::queries::launch_unchecked(
                    &q.client,
                    CubeCount::Static((places.len() / PLACE) as u32, heads as u32, 1),
                    tiles.dim(),
                    buffer(&gradient),
                    buffer(&q),
                    buffer(&k),
                    buffer(&v),
                    buffer(&log_sums),
                    buffer(&deltas),
                    upload(&q.client, &places),
                    buffer(&q_gradient),
                    heads,
                    spans.kv_heads,
                    queries,
                    window(spans),
                    spans.scale,
                    spans.softcap.unwrap_or(1.0),
                    spans.softcap.is_some(),
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
                    buffer(&gradient),
                    buffer(&q),
                    buffer(&k),
                    buffer(&v),
                    buffer(&log_sums),
                    buffer(&deltas),
                    upload(&q.client, &places),
                    buffer(&k_gradient),
                    buffer(&v_gradient),
                    heads,
                    spans.kv_heads,
                    queries,
                    window(spans),
                    spans.scale,
                    spans.softcap.unwrap_or(1.0),
                    spans.softcap.is_some(),
                    tiles,
                    element(q.dtype),
                );
            }
        }
        [close(q_gradient), close(k_gradient), close(v_gradient)]
    }
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
        let dim: CubeDim = cubes.dim();
        // SAFETY: the kernel touches only the rows that there are.
        unsafe {
            backward::deltas::launch_unchecked(
                &gradient.client,
                cubes.count(),
                dim,
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
                heads: 1,
                kv_heads: 1,
                head_dim: 4,
            };
            let tiles = Tiles {
                down: 2,
                across: 1,
                features: 4,
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
