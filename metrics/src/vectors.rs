//! Vectors that stand for sentences, as the other modules take them.

use nalgebra::{DMatrix, DMatrixView};

/// `[count, width]` numbers, one vector after another.
#[derive(Clone, Copy, Debug)]
pub struct Vectors<'a> {
    values: &'a [f32],
    count: usize,
    width: usize,
}

impl<'a> Vectors<'a> {
    /// Vectors of `width` numbers.
    ///
    /// # Panics
    /// When the values are no whole number of vectors.
    pub fn new(values: &'a [f32], width: usize) -> Self {
        let count = values.len() / width;
        assert_eq!(
            count * width,
            values.len(),
            "values are whole vectors of {width} numbers"
        );
        Self { values, count, width }
    }

    /// How many there are.
    pub fn count(self) -> usize {
        self.count
    }

    /// Numbers in each.
    pub fn width(self) -> usize {
        self.width
    }

    /// As columns.
    pub(crate) fn columns(self) -> DMatrixView<'a, f32> {
        DMatrixView::from_slice(self.values, self.width, self.count)
    }

    /// As columns of length 1; zeros stay zeros.
    pub(crate) fn directions(self) -> DMatrix<f32> {
        let mut columns = self.columns().into_owned();
        for mut column in columns.column_iter_mut() {
            let length = column.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            if length > 0.0 {
                column
                    .iter_mut()
                    .for_each(|value| *value = (f64::from(*value) / length) as f32);
            }
        }
        columns
    }
}
