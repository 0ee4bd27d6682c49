//! Centred kernel alignment with a linear kernel: how alike two sets of vectors lie, whatever their rotation and scale.

use nalgebra::DMatrix;

use crate::vectors::Vectors;

/// Linear CKA, columns centred: `‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)` (Kornblith et al., "Similarity of Neural Network
/// Representations Revisited", 2019), from 0 to 1. With more numbers in a vector than vectors it is large for whatever
/// vectors; then see [`debiased`]. NaN where all vectors of a side are equal.
///
/// # Panics
/// When the sides have different numbers of vectors.
pub fn linear(first: Vectors<'_>, second: Vectors<'_>) -> f64 {
    of(first, second, |first, second| product(&first.rows, &second.rows))
}

/// Linear CKA from unbiased estimates of HSIC (Song et al., "Feature Selection via Dependence Maximization", 2012, equation
/// 5; in CKA: Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", 2021). It may be a little below zero.
/// NaN with fewer than four vectors, and where a side's own estimate is not above zero.
///
/// # Panics
/// When the sides have different numbers of vectors.
pub fn debiased(first: Vectors<'_>, second: Vectors<'_>) -> f64 {
    if first.count() < 4 {
        return f64::NAN;
    }
    of(first, second, hsic)
}

fn of(first: Vectors<'_>, second: Vectors<'_>, hsic: impl Fn(&Side, &Side) -> f64) -> f64 {
    assert_eq!(first.count(), second.count(), "the same sentences on both sides");
    let (first, second) = (Side::new(first), Side::new(second));
    let own = hsic(&first, &first) * hsic(&second, &second);
    if own > 0.0 && hsic(&first, &first) > 0.0 {
        hsic(&first, &second) / own.sqrt()
    } else {
        f64::NAN
    }
}

/// Vectors of one side.
struct Side {
    /// `[count, width]`, centred.
    rows: DMatrix<f64>,
    /// The squared length of each row, which is the diagonal of the kernel K.
    lengths: Vec<f64>,
}

impl Side {
    fn new(vectors: Vectors<'_>) -> Self {
        let mut rows = vectors.columns().map(f64::from).transpose();
        for mut column in rows.column_iter_mut() {
            let mean = column.mean();
            column.add_scalar_mut(-mean);
        }
        let lengths = rows.row_iter().map(|row| row.norm_squared()).collect();
        Self { rows, lengths }
    }
}

/// `‖XᵀY‖²`, the sum over the products of the kernels' elements, through whichever matrices are smaller.
fn product(first: &DMatrix<f64>, second: &DMatrix<f64>) -> f64 {
    let (count, widths) = (first.nrows(), [first.ncols(), second.ncols()]);
    if count * (widths[0] + widths[1]) < widths[0] * widths[1] {
        let kernel = |rows: &DMatrix<f64>| rows * rows.transpose();
        kernel(first).dot(&kernel(second))
    } else {
        (first.transpose() * second).norm_squared()
    }
}

/// The unbiased estimate, up to its factor `1 / n(n - 3)`. The kernels without their diagonals have sums of rows that are
/// minus the diagonals, since columns are centred: a row of a centred kernel adds up to zero.
fn hsic(first: &Side, second: &Side) -> f64 {
    let count = first.lengths.len() as f64;
    let diagonals = first
        .lengths
        .iter()
        .zip(&second.lengths)
        .map(|(one, other)| one * other)
        .sum::<f64>();
    let sums = [first, second].map(|side| -side.lengths.iter().sum::<f64>());
    product(&first.rows, &second.rows) - diagonals + sums[0] * sums[1] / ((count - 1.0) * (count - 2.0))
        - 2.0 / (count - 2.0) * diagonals
}
