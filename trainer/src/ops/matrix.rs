//! A safe view over the `gemm` crate, the matrix multiplication that Burn's flex backend itself uses.

use gemm::Parallelism;

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
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
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
    let (rows, inner, columns) = (left.rows, left.columns, right.columns);
    assert_eq!(inner, right.rows, "inner sizes");
    assert_eq!(output.len(), rows * columns, "output of {rows} x {columns}");
    if rows == 0 || columns == 0 {
        return;
    }
    let parallelism =
        if rows * columns * inner >= PARALLEL_THRESHOLD { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: the three pointers cover rows x columns elements under the given strides, which `Matrix::new` and the
    // assertions above guarantee; `output` is borrowed exclusively, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            output.as_mut_ptr(),
            1,
            columns as isize,
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
        multiply(&mut output, Matrix::new(&left, 2, 3), Matrix::new(&right, 2, 3).transposed(), 2.0, true);
        assert_eq!(output, [10.0 + 2.0 * 7.0, 10.0 + 2.0 * 6.0, 10.0 + 2.0 * 16.0, 10.0 + 2.0 * 15.0]);
    }
}
