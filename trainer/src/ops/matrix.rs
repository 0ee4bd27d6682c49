//! A safe view over the `gemm` crate, the matrix multiplication that Burn's flex backend itself uses.

use std::mem::MaybeUninit;
use std::ops::Range;

use gemm::Parallelism;

use super::flex::write_all;

/// A borrowed f32 matrix with strides in elements.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major `[rows, columns]`.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "matrix of {rows} x {columns}");
        Self {
            data,
            rows,
            columns,
            row_stride: columns,
            column_stride: 1,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Some of the columns.
    pub fn column_range(self, columns: Range<usize>) -> Self {
        assert!(
            columns.start <= columns.end && columns.end <= self.columns,
            "no columns {columns:?}"
        );
        let start = (columns.start * self.column_stride).min(self.data.len());
        Self {
            data: &self.data[start..],
            columns: columns.len(),
            ..self
        }
    }

    /// The transposed view.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Products smaller than this many multiplications stay on one thread.
const PARALLEL_THRESHOLD: usize = 96 * 96 * 96;

/// `output = factor * left * right`, added to what `output` holds when `accumulate`. `output` is row-major
/// `[left.rows, right.columns]`.
pub fn multiply(output: &mut [f32], left: Matrix, right: Matrix, factor: f32, accumulate: bool) {
    assert_eq!(
        output.len(),
        left.rows * right.columns,
        "output of {} x {}",
        left.rows,
        right.columns
    );
    // SAFETY: `output` is borrowed exclusively and has the size of the product.
    unsafe { product(output.as_mut_ptr(), right.columns, left, right, factor, accumulate) };
}

/// Writes `left * right` into columns from `first` on of a row-major output with `columns` columns, added to what they hold
/// when `accumulate`.
///
/// # Safety
/// With `accumulate`, these columns are initialised.
pub(super) unsafe fn multiply_columns(
    output: &mut [MaybeUninit<f32>],
    columns: usize,
    first: usize,
    left: Matrix,
    right: Matrix,
    accumulate: bool,
) {
    assert_eq!(output.len(), left.rows * columns, "output of {} x {columns}", left.rows);
    assert!(first + right.columns <= columns, "columns of the output");
    // SAFETY: the columns lie in `output`, which is borrowed exclusively; the caller vouches for what they hold.
    unsafe {
        product(
            output.as_mut_ptr().cast::<f32>().add(first),
            columns,
            left,
            right,
            1.0,
            accumulate,
        )
    };
}

/// `factor * left * right` as a new vector.
pub fn multiplied(left: Matrix, right: Matrix, factor: f32) -> Vec<f32> {
    let length = left.rows * right.columns;
    if left.columns == 0 {
        return vec![0.0; length];
    }
    // SAFETY: the product without accumulation writes every element of its output.
    unsafe {
        write_all(length, |values| {
            product(values.as_mut_ptr().cast(), right.columns, left, right, factor, false)
        })
    }
}

/// # Safety
/// `output` points to `left.rows` rows of `right.columns` elements, `stride` apart, that nobody else reads or writes; with
/// `accumulate` they are initialised.
unsafe fn product(output: *mut f32, stride: usize, left: Matrix, right: Matrix, factor: f32, accumulate: bool) {
    let (rows, inner, columns) = (left.rows, left.columns, right.columns);
    assert_eq!(inner, right.rows, "inner sizes");
    if rows == 0 || columns == 0 {
        return;
    }
    let parallelism = if rows * columns * inner >= PARALLEL_THRESHOLD {
        Parallelism::Rayon(0)
    } else {
        Parallelism::None
    };
    // SAFETY: the operands cover their extents under the given strides, which `Matrix::new` guarantees, and the caller
    // vouches for the output.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            output,
            1,
            stride as isize,
            accumulate,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplies_transposed_views_and_accumulates() {
        let left = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let right = [1.0, 0.0, 2.0, 1.0, 1.0, 1.0];
        let mut output = [10.0; 4];
        multiply(
            &mut output,
            Matrix::new(&left, 2, 3),
            Matrix::new(&right, 2, 3).transposed(),
            2.0,
            true,
        );
        assert_eq!(
            output,
            [10.0 + 2.0 * 7.0, 10.0 + 2.0 * 6.0, 10.0 + 2.0 * 16.0, 10.0 + 2.0 * 15.0]
        );
    }
}
