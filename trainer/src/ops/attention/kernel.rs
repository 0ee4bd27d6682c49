//! The attention kernel of the CPU: tiles of queries against runs of keys, tile products by the `gemm` crate, the
//! softmax of a tile in between (Dao, 2023, algorithms 1 and 2). Memory beyond input and output is one tile per thread.
//!
//! The grid of tiles depends on shapes alone and every element is written by one task in a fixed order, so the result
//! does not depend on the number of threads.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use gemm::Parallelism;
use multiversion::multiversion;
use rayon::prelude::*;

use crate::ops::vector;

/// Queries of a tile: a multiple of 6, the rows that `gemm`'s AVX-512 kernel works on at a time, and small, because
/// the tile on the diagonal computes twice the scores that are visible.
const QUERY_TILE: usize = 48;
/// Keys of a tile: its scores and their gradients, twice 48 x 512 f32, fill 192 KiB of a core's second-level cache.
const KEY_TILE: usize = 512;
/// Products of scores below which threads cost more than they bring.
const PARALLEL_THRESHOLD: usize = 1 << 18;

/// Shapes, sequence boundaries and options of one call.
#[derive(Clone, Debug)]
pub struct Spans {
    /// Boundaries of the queries: first 0, last the number of queries.
    pub queries: Arc<[usize]>,
    /// Boundaries of the keys; the queries of a sequence are its last positions.
    pub keys: Arc<[usize]>,
    /// Keys that a query sees, itself included; all keys up to itself where None.
    pub window: Option<usize>,
    /// Factor of the scores.
    pub scale: f32,
    /// Bound of the scores after the factor.
    pub softcap: Option<f32>,
    /// For each query head, what a score gains after the factor with each position between query and key, which lies
    /// behind or at the query: `slope * (key - query)`.
    pub slopes: Option<Arc<[f32]>>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
}

impl Spans {
    /// Elements between a query (or output) row and the next.
    fn query_stride(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements between a key (or value) row and the next.
    fn key_stride(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn query_count(&self) -> usize {
        self.queries.last().copied().unwrap_or(0)
    }

    /// Rows of keys.
    pub(super) fn key_count(&self) -> usize {
        self.keys.last().copied().unwrap_or(0)
    }

    /// Every place that a kernel computes lies inside its buffer if these hold of the boundaries and of the lengths of q,
    /// k and v.
    pub(super) fn check(&self, [q, k, v]: [usize; 3]) {
        let ascending = |boundaries: &[usize]| boundaries.windows(2).all(|pair| pair[0] <= pair[1]);
        assert!(
            self.queries.first() == Some(&0) && ascending(&self.queries),
            "query boundaries"
        );
        assert!(self.keys.first() == Some(&0) && ascending(&self.keys), "key boundaries");
        assert_eq!(self.queries.len(), self.keys.len(), "sequences of queries and keys");
        let fits = |(queries, keys): (&[usize], &[usize])| queries[1] - queries[0] <= keys[1] - keys[0];
        assert!(
            self.queries.windows(2).zip(self.keys.windows(2)).all(fits),
            "more queries than keys"
        );
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "heads");
        if let Some(slopes) = &self.slopes {
            assert_eq!(slopes.len(), self.heads, "slopes of query heads");
            assert!(self.softcap.is_none(), "slopes and a bound of the scores");
        }
        assert_eq!(q, self.query_count() * self.query_stride(), "queries");
        assert_eq!(k, self.key_count() * self.key_stride(), "keys");
        assert_eq!(v, k, "values");
    }

    /// The tiles of queries of one sequence.
    fn tiles(&self, sequence: usize) -> impl Iterator<Item = Tile> + use<> {
        let (queries, keys) = (
            self.queries[sequence]..self.queries[sequence + 1],
            self.keys[sequence + 1],
        );
        let window = self.window.unwrap_or(usize::MAX);
        let (key_start, behind) = (self.keys[sequence], keys - queries.end);
        queries.clone().step_by(QUERY_TILE).map(move |start| {
            let queries = start..(start + QUERY_TILE).min(queries.end);
            // Query row i stands at key row i + keys.end - queries.end.
            let position = start + behind;
            let first = (position + 1).saturating_sub(window).max(key_start);
            Tile {
                position,
                keys: first..queries.end + behind,
                queries,
                window,
            }
        })
    }

    /// Whether the call is large enough for threads.
    fn worth_threads(&self) -> bool {
        self.query_count() * self.heads * (self.key_count() / self.keys.len().max(1)) >= PARALLEL_THRESHOLD
    }
}

/// A run of queries of one sequence and the keys that any of them sees.
#[derive(Clone, Debug)]
struct Tile {
    queries: Range<usize>,
    /// Key row of the first query.
    position: usize,
    keys: Range<usize>,
    window: usize,
}

impl Tile {
    /// The keys in runs of at most KEY_TILE, each with its band of visible scores.
    fn runs(&self) -> impl Iterator<Item = (Range<usize>, Band)> + use<> {
        let (keys, position, window) = (self.keys.clone(), self.position, self.window);
        keys.clone().step_by(KEY_TILE).map(move |start| {
            (
                start..(start + KEY_TILE).min(keys.end),
                Band {
                    start,
                    position,
                    window,
                },
            )
        })
    }
}

/// Which scores of a tile are visible.
#[derive(Clone, Copy)]
struct Band {
    /// Key row of column 0.
    start: usize,
    /// Key row of the query of row 0.
    position: usize,
    window: usize,
}

impl Band {
    /// The visible columns of a row; empty where it sees none of this run.
    #[inline(always)]
    fn visible(self, row: usize, columns: usize) -> Range<usize> {
        let end = (self.position + row + 1).saturating_sub(self.start).min(columns);
        let first = (self.position + row + 1)
            .saturating_sub(self.window)
            .saturating_sub(self.start);
        first.min(end)..end
    }
}

/// A pointer that tasks on several threads write through, each to elements of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: the pointer is only dereferenced inside the scope that borrows the buffer, and each task writes other elements.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer `offset` elements further.
    ///
    /// # Safety
    /// The offset lies inside the buffer.
    unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: promised by the caller.
        unsafe { self.0.add(offset) }
    }
}

/// A matrix in memory: pointer to its first element, elements between rows and between columns.
#[derive(Clone, Copy)]
struct Strided(*const f32, usize, usize);

impl Strided {
    fn transposed(self) -> Self {
        Self(self.0, self.2, self.1)
    }
}

/// `output = factor * left * right` or, when `accumulate`, added to it. left is `[rows, inner]`, right
/// `[inner, columns]`, output has unit column stride and `stride` elements between rows.
///
/// # Safety
/// The three matrices lie inside live buffers, and the output overlaps neither operand nor anything that another thread
/// touches.
unsafe fn multiply(
    [rows, inner, columns]: [usize; 3],
    output: *mut f32,
    stride: usize,
    left: Strided,
    right: Strided,
    factor: f32,
    accumulate: bool,
) {
    // SAFETY: promised by the caller.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            output,
            1,
            stride as isize,
            accumulate,
            left.0,
            left.2 as isize,
            left.1 as isize,
            right.0,
            right.2 as isize,
            right.1 as isize,
            1.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

thread_local! {
    /// The scores of a tile and their gradients; kept, because fresh pages cost more than the arithmetic on them.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with two buffers for the scores of a tile.
fn with_scratch(f: impl FnOnce(&mut [f32], &mut [f32])) {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.resize(2 * QUERY_TILE * KEY_TILE, 0.0);
        let (scores, gradients) = scratch.split_at_mut(QUERY_TILE * KEY_TILE);
        f(scores, gradients);
    });
}

/// Runs the tasks, on threads where that pays. Tasks are handed out one by one, since their sizes differ.
fn for_each<T: Send>(tasks: Vec<T>, threads: bool, run: impl Fn(T) + Sync + Send) {
    if threads {
        tasks.into_par_iter().with_max_len(1).for_each(run);
    } else {
        tasks.into_iter().for_each(run);
    }
}

/// Output `[queries, heads * head_dim]` and log-sum-exp of the scores `[heads, queries]`.
pub(super) fn forward(q: &[f32], k: &[f32], v: &[f32], spans: &Spans) -> (Vec<f32>, Vec<f32>) {
    spans.check([q.len(), k.len(), v.len()]);
    let count = spans.query_count();
    let mut output = Vec::<f32>::with_capacity(q.len());
    let mut log_sums = Vec::<f32>::with_capacity(count * spans.heads);
    let (output_pointer, log_sums_pointer) = (Shared(output.as_mut_ptr()), Shared(log_sums.as_mut_ptr()));
    let sequences = 0..spans.queries.len() - 1;
    let tasks: Vec<_> = sequences
        .flat_map(|sequence| (0..spans.heads).map(move |head| (sequence, head)))
        .flat_map(|(sequence, head)| spans.tiles(sequence).map(move |tile| (head, tile)))
        .collect();
    for_each(tasks, spans.worth_threads(), |(head, tile)| {
        // SAFETY: no two tiles share a head and a query, and all tiles together cover every head of every query.
        unsafe { forward_tile(q, k, v, spans, head, &tile, output_pointer, log_sums_pointer) };
    });
    // SAFETY: `check` makes the tiles cover all rows and heads, and each wrote all elements of its part.
    unsafe {
        output.set_len(q.len());
        log_sums.set_len(count * spans.heads);
    }
    (output, log_sums)
}

/// One tile of one head.
///
/// # Safety
/// `output` and `log_sums` point to buffers of the sizes that [`forward`] allocates, and no other thread touches the
/// part of this tile.
#[expect(
    clippy::too_many_arguments,
    reason = "three inputs, two outputs and where to find the tile"
)]
unsafe fn forward_tile(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    spans: &Spans,
    head: usize,
    tile: &Tile,
    output: Shared,
    log_sums: Shared,
) {
    let (head_dim, query_stride, key_stride) = (spans.head_dim, spans.query_stride(), spans.key_stride());
    let kv_head = head / (spans.heads / spans.kv_heads);
    let rows = tile.queries.len();
    let first_output = tile.queries.start * query_stride + head * head_dim;
    let queries = Strided(q[first_output..].as_ptr(), query_stride, 1);
    let mut state = [RowState {
        maximum: f32::NEG_INFINITY,
        sum: 0.0,
    }; QUERY_TILE];
    let mut corrections = [1.0f32; QUERY_TILE];
    with_scratch(|scores, _| {
        for (run, (keys, band)) in tile.runs().enumerate() {
            let columns = keys.len();
            let first_key = keys.start * key_stride + kv_head * head_dim;
            let scores = &mut scores[..rows * columns];
            let keys = Strided(k[first_key..].as_ptr(), key_stride, 1);
            let values = Strided(v[first_key..].as_ptr(), key_stride, 1);
            // SAFETY: `check` compared the buffers with the boundaries that rows and runs come from.
            unsafe {
                let shape = [rows, head_dim, columns];
                multiply(
                    shape,
                    scores.as_mut_ptr(),
                    columns,
                    queries,
                    keys.transposed(),
                    spans.scale,
                    false,
                );
            }
            bend(scores, columns, band, head, spans);
            exponentiate(scores, columns, band, &mut state[..rows], &mut corrections[..rows]);
            if run > 0 {
                for (row, correction) in corrections[..rows].iter().enumerate() {
                    // SAFETY: a row of this tile, written by the run before.
                    let row = unsafe {
                        std::slice::from_raw_parts_mut(output.at(first_output + row * query_stride), head_dim)
                    };
                    row.iter_mut().for_each(|value| *value *= correction);
                }
            }
            // SAFETY: as above; the output part belongs to this tile alone.
            unsafe {
                let scores = Strided(scores.as_ptr(), columns, 1);
                let shape = [rows, columns, head_dim];
                multiply(
                    shape,
                    output.at(first_output),
                    query_stride,
                    scores,
                    values,
                    1.0,
                    run > 0,
                );
            }
        }
    });
    for (row, state) in state[..rows].iter().enumerate() {
        // SAFETY: a row of this tile, written above.
        unsafe {
            let values = std::slice::from_raw_parts_mut(output.at(first_output + row * query_stride), head_dim);
            values.iter_mut().for_each(|value| *value /= state.sum);
            let log_sum = state.maximum + state.sum.ln();
            log_sums
                .at(head * spans.query_count() + tile.queries.start + row)
                .write(log_sum);
        }
    }
}

/// The running softmax of one query.
#[derive(Clone, Copy)]
struct RowState {
    maximum: f32,
    sum: f32,
}

/// Replaces visible scores by `exp(score - maximum so far)`, hidden ones by 0, and says by what the output so far is to
/// be multiplied.
#[multiversion(targets = "simd")]
fn exponentiate(scores: &mut [f32], columns: usize, band: Band, state: &mut [RowState], corrections: &mut [f32]) {
    for (row, scores) in scores.chunks_exact_mut(columns).enumerate() {
        let visible = band.visible(row, columns);
        let whole = whole_lanes(&visible, columns);
        corrections[row] = 1.0;
        scores[..whole.start].fill(0.0);
        scores[whole.end..].fill(0.0);
        if visible.is_empty() {
            continue;
        }
        scores[whole.start..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..whole.end].fill(f32::NEG_INFINITY);
        let scores = &mut scores[whole];
        let state = &mut state[row];
        let largest = vector::maximum(scores);
        if largest > state.maximum {
            corrections[row] = vector::exp(state.maximum - largest);
            state.maximum = largest;
        }
        let sum = vector::exp_and_sum(scores, state.maximum);
        state.sum = state.sum * corrections[row] + sum as f32;
    }
}

/// The visible columns and those beside them that fill up whole vectors: arithmetic on a few hidden scores costs less
/// than a loop over single ones. Empty where nothing is visible.
#[inline(always)]
fn whole_lanes(visible: &Range<usize>, columns: usize) -> Range<usize> {
    if visible.is_empty() {
        return 0..0;
    }
    let start = visible.start / vector::LANES * vector::LANES;
    start..visible.end.next_multiple_of(vector::LANES).min(columns)
}

/// Gradients of q, k and v out of the gradient of the output, all shaped like their tensors.
pub(super) fn backward(
    gradient: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: &[f32],
    log_sums: &[f32],
    spans: &Spans,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    spans.check([q.len(), k.len(), v.len()]);
    assert_eq!(gradient.len(), q.len(), "gradient");
    assert_eq!(output.len(), q.len(), "output");
    assert_eq!(log_sums.len(), spans.query_count() * spans.heads, "log-sum-exp");
    let mut q_gradient = Vec::<f32>::with_capacity(q.len());
    let mut k_gradient = Vec::<f32>::with_capacity(k.len());
    let mut v_gradient = Vec::<f32>::with_capacity(v.len());
    let pointers = [
        Shared(q_gradient.as_mut_ptr()),
        Shared(k_gradient.as_mut_ptr()),
        Shared(v_gradient.as_mut_ptr()),
    ];
    let inputs = Inputs {
        gradient,
        q,
        k,
        v,
        output,
        log_sums,
    };
    let sequences = 0..spans.queries.len() - 1;
    let tasks: Vec<_> = sequences
        .flat_map(|sequence| (0..spans.kv_heads).map(move |kv_head| (sequence, kv_head)))
        .collect();
    for_each(tasks, spans.worth_threads(), |(sequence, kv_head)| {
        // SAFETY: no two tasks share a sequence and a key head, and all together cover every head of every row.
        unsafe { backward_group(&inputs, spans, sequence, kv_head, pointers) };
    });
    // SAFETY: `check` makes the sequences cover all rows, and each task wrote all elements of its rows and heads.
    unsafe {
        q_gradient.set_len(q.len());
        k_gradient.set_len(k.len());
        v_gradient.set_len(v.len());
    }
    (q_gradient, k_gradient, v_gradient)
}

/// What the backward pass reads.
struct Inputs<'a> {
    gradient: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    output: &'a [f32],
    log_sums: &'a [f32],
}

/// One key head of one sequence with all query heads that share it.
///
/// # Safety
/// The three pointers are those of the gradients of q, k and v as [`backward`] allocates them, and no other thread
/// touches the rows and heads of this task.
unsafe fn backward_group(
    inputs: &Inputs,
    spans: &Spans,
    sequence: usize,
    kv_head: usize,
    [q_gradient, k_gradient, v_gradient]: [Shared; 3],
) {
    let (head_dim, query_stride, key_stride) = (spans.head_dim, spans.query_stride(), spans.key_stride());
    for key in spans.keys[sequence]..spans.keys[sequence + 1] {
        let offset = key * key_stride + kv_head * head_dim;
        // SAFETY: a row of this task. Keys that no query sees keep this zero.
        unsafe {
            k_gradient.at(offset).write_bytes(0, head_dim);
            v_gradient.at(offset).write_bytes(0, head_dim);
        }
    }
    let group = spans.heads / spans.kv_heads;
    for head in kv_head * group..(kv_head + 1) * group {
        for tile in spans.tiles(sequence) {
            let rows = tile.queries.len();
            let first = tile.queries.start * query_stride + head * head_dim;
            let queries = Strided(inputs.q[first..].as_ptr(), query_stride, 1);
            let gradients = Strided(inputs.gradient[first..].as_ptr(), query_stride, 1);
            let mut deltas = [0.0f32; QUERY_TILE];
            row_products(
                &inputs.gradient[first..],
                &inputs.output[first..],
                query_stride,
                head_dim,
                &mut deltas[..rows],
            );
            let log_sums = head * spans.query_count() + tile.queries.start;
            let log_sums = &inputs.log_sums[log_sums..log_sums + rows];
            with_scratch(|scores, score_gradients| {
                for (run, (key_rows, band)) in tile.runs().enumerate() {
                    let columns = key_rows.len();
                    let first_key = key_rows.start * key_stride + kv_head * head_dim;
                    let keys = Strided(inputs.k[first_key..].as_ptr(), key_stride, 1);
                    let values = Strided(inputs.v[first_key..].as_ptr(), key_stride, 1);
                    let scores = &mut scores[..rows * columns];
                    let score_gradients = &mut score_gradients[..rows * columns];
                    let to_scores = [rows, head_dim, columns];
                    let to_keys = [columns, rows, head_dim];
                    let to_queries = [rows, columns, head_dim];
                    // SAFETY: `check` compared the buffers with the boundaries that rows and runs come from, and the
                    // gradients' rows and heads belong to this task alone.
                    unsafe {
                        let pointer = scores.as_mut_ptr();
                        multiply(
                            to_scores,
                            pointer,
                            columns,
                            queries,
                            keys.transposed(),
                            spans.scale,
                            false,
                        );
                        let pointer = score_gradients.as_mut_ptr();
                        multiply(to_scores, pointer, columns, gradients, values.transposed(), 1.0, false);
                        bend(scores, columns, band, head, spans);
                        differentiate(scores, score_gradients, columns, band, log_sums, &deltas[..rows], spans);
                        let probabilities = Strided(scores.as_ptr(), columns, 1).transposed();
                        let output = v_gradient.at(first_key);
                        multiply(to_keys, output, key_stride, probabilities, gradients, 1.0, true);
                        let score_gradients = Strided(score_gradients.as_ptr(), columns, 1);
                        let output = k_gradient.at(first_key);
                        multiply(
                            to_keys,
                            output,
                            key_stride,
                            score_gradients.transposed(),
                            queries,
                            1.0,
                            true,
                        );
                        let output = q_gradient.at(first);
                        multiply(to_queries, output, query_stride, score_gradients, keys, 1.0, run > 0);
                    }
                }
            });
        }
    }
}

/// `sum(left * right)` of each row of head_dim elements.
#[multiversion(targets = "simd")]
fn row_products(left: &[f32], right: &[f32], stride: usize, head_dim: usize, sums: &mut [f32]) {
    for (row, sum) in sums.iter_mut().enumerate() {
        let part = row * stride..row * stride + head_dim;
        *sum = vector::sum_pairs_by(&left[part.clone()], &right[part], |left, right| left * right) as f32;
    }
}

/// What happens to scores between factor and softmax: a bound, or slopes, or nothing.
fn bend(scores: &mut [f32], columns: usize, band: Band, head: usize, spans: &Spans) {
    if let Some(cap) = spans.softcap {
        bound(scores, cap);
    }
    if let Some(slopes) = &spans.slopes {
        incline(scores, columns, band, slopes[head]);
    }
}

/// Adds `slope * (key - query)` to every score, hidden ones too.
#[multiversion(targets = "simd")]
fn incline(scores: &mut [f32], columns: usize, band: Band, slope: f32) {
    for (row, scores) in scores.chunks_exact_mut(columns).enumerate() {
        // A whole number that f32 holds exactly, as are the distances, up to 2^24.
        let first = band.start as f32 - (band.position + row) as f32;
        for (score, column) in scores.iter_mut().zip(0i32..) {
            *score += slope * (first + column as f32);
        }
    }
}

/// Bounds scores: `cap * tanh(score / cap)`.
#[multiversion(targets = "simd")]
fn bound(scores: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    scores
        .iter_mut()
        .for_each(|score| *score = cap * vector::tanh(*score * inverse));
}

/// Scores become probabilities `p = exp(score - log_sum)`, 0 where hidden; gradients of the probabilities become those
/// of the scores before scaling, `scale * p * (gradient - delta)` (Dao, 2023, algorithm 2), times the slope
/// `1 - (score / cap)²` where scores are bounded.
#[multiversion(targets = "simd")]
fn differentiate(
    scores: &mut [f32],
    gradients: &mut [f32],
    columns: usize,
    band: Band,
    log_sums: &[f32],
    deltas: &[f32],
    spans: &Spans,
) {
    let scale = spans.scale;
    let inverse_cap = spans.softcap.map_or(0.0, |cap| 1.0 / cap);
    let rows = scores
        .chunks_exact_mut(columns)
        .zip(gradients.chunks_exact_mut(columns));
    for (row, (scores, gradients)) in rows.enumerate() {
        let visible = band.visible(row, columns);
        let whole = whole_lanes(&visible, columns);
        let (log_sum, delta) = (log_sums[row], deltas[row]);
        for (score, gradient) in scores[whole.clone()].iter_mut().zip(&mut gradients[whole]) {
            let bounded = *score * inverse_cap;
            *score = vector::exp(*score - log_sum);
            *gradient = scale * (1.0 - bounded * bounded) * *score * (*gradient - delta);
        }
        for hidden in [0..visible.start, visible.end..columns] {
            scores[hidden.clone()].fill(0.0);
            gradients[hidden].fill(0.0);
        }
    }
}
