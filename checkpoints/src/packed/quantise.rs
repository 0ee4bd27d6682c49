//! Quantises the weights of a model folder, one tensor at a time.

use super::{Absmax, Bytes, Format, Packed, Scheme};
use crate::dtype::{Dtype, decode_into};
use crate::error::CheckpointError;
use crate::model_folder::ModelFolder;

impl ModelFolder {
    /// A matrix of a folder, quantised. A few thousand numbers are in memory as f32 at a time, and pages that were read are
    /// given back, so that the peak is the quantised matrix. One that is quantised so in the folder is read as it is.
    ///
    /// # Errors
    /// When the matrix is missing or has another shape, when a number is not finite, or when the folder has it quantised in
    /// another way.
    pub fn pack(&self, name: &str, shape: [usize; 2], scheme: Scheme) -> Result<Packed, CheckpointError> {
        let source = self.read_packed(name, shape)?;
        let dtype = match (source.format(), source.scheme()) {
            (Format::Float(dtype), _) => *dtype,
            (_, Some(found)) if found != scheme => {
                return Err(CheckpointError::config(
                    self.path(),
                    format!(
                        "tensor `{name}` is quantised already, as {found}, and {scheme} is asked for; ask for the same, \
                         or leave `model.quantization` out"
                    ),
                ));
            }
            _ => return Ok(source.in_memory()),
        };
        let (packed, not_finite) = source.quantise(dtype, scheme);
        let Some(position) = not_finite else {
            return Ok(packed);
        };
        let (row, column) = (position / shape[1], position % shape[1]);
        let mut values = vec![0.0; shape[1]];
        source.decode_rows(row..row + 1, &mut values);
        let value = values[column];
        Err(CheckpointError::config(
            self.path(),
            format!(
                "tensor `{name}` has {value} in row {row}, column {column}, and only finite numbers can be quantised; the \
                 weights are damaged, fetch them again or take another checkpoint"
            ),
        ))
    }
}

impl Packed {
    /// What it is quantised by; none for floats.
    pub fn scheme(&self) -> Option<Scheme> {
        match &self.format {
            Format::Float(_) => None,
            Format::Nf4 { block, absmax } => Some(Scheme::Nf4 {
                block: *block,
                double: matches!(absmax, Absmax::Nested { .. }),
            }),
            Format::Int8 { .. } => Some(Scheme::Int8),
        }
    }

    /// Floats quantised, and the position of the first number that is not finite, where there is one.
    fn quantise(&self, dtype: Dtype, scheme: Scheme) -> (Self, Option<usize>) {
        let read = |first: usize, out: &mut [f32]| self.read_floats(dtype, first, out);
        match scheme {
            Scheme::Nf4 { block, double } => Self::encode_nf4(self.shape, block, double, read),
            Scheme::Int8 => Self::encode_int8(self.shape, read),
        }
    }

    fn read_floats(&self, dtype: Dtype, first: usize, out: &mut [f32]) {
        let bytes = first * dtype.bytes()..(first + out.len()) * dtype.bytes();
        decode_into(dtype, &self.codes()[bytes.clone()], out);
        if let Bytes::Mapped { file, range } = &self.codes {
            file.forget(range.start + bytes.start..range.start + bytes.end);
        }
    }
}
