//! Matrices that are kept in fewer bits than they compute in, and decoded where they are used.
//!
//! [`Packed`] holds one: 16-bit or 32-bit floats as they stand in a file, NF4 or int8. The bits are those of bitsandbytes,
//! so that its checkpoints are read as they are and ours could be read by it.

mod absmax;
mod cache;
mod dynamic;
mod flat;
mod int8;
mod nf4;
mod quantise;
mod scheme;
pub(crate) mod stored;

use std::ops::Range;
use std::sync::Arc;

pub use absmax::Absmax;
pub use cache::PackedCache;
pub use dynamic::dynamic_map;
pub use flat::Outline;
pub use nf4::{LEVELS, is_block};
pub use scheme::{Quantization, Scheme};

use crate::dtype::{Dtype, decode_into};
use crate::tensors::TensorsFile;

/// A matrix `[rows, columns]` in row-major order, kept in fewer bits than it computes in.
#[derive(Clone, Debug)]
pub struct Packed {
    shape: [usize; 2],
    format: Format,
    codes: Bytes,
}

/// How the numbers of a [`Packed`] matrix are kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// As they stand in a file.
    Float(Dtype),
    /// Four bits each: a level of [`LEVELS`] times the largest magnitude of the number's block. Two codes share a byte,
    /// the first in the high half. Blocks run over the matrix as one row, so that they may straddle rows, and the last
    /// one may be shorter. Source: "QLoRA: Efficient Finetuning of Quantized LLMs", Dettmers et al. 2023.
    Nf4 {
        /// Numbers in a block.
        block: usize,
        /// The largest magnitude of each block.
        absmax: Absmax,
    },
    /// Eight bits each: `code · scale / 127` with the largest magnitude of its row as the scale.
    Int8 {
        /// One scale a row.
        scales: Vec<f32>,
    },
}

/// Bytes in memory or in a file.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// In memory.
    Owned(Arc<[u8]>),
    /// In a memory-mapped file; the kernel brings them in when they are read, and may drop them again.
    Mapped {
        /// The file.
        file: Arc<TensorsFile>,
        /// Where in the file.
        range: Range<usize>,
    },
}

impl Bytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped { file, range } => file.slice(range.clone()),
        }
    }

    /// The same bytes in memory.
    pub fn in_memory(&self) -> Self {
        match self {
            Self::Owned(_) => self.clone(),
            Self::Mapped { file, range } => {
                let owned = Self::Owned(file.slice(range.clone()).into());
                file.forget(range.clone());
                owned
            }
        }
    }
}

impl Packed {
    /// Puts together parts that were made elsewhere; none when their sizes do not fit the shape.
    pub fn from_parts(shape: [usize; 2], format: Format, codes: Bytes) -> Option<Self> {
        let values = shape[0].checked_mul(shape[1])?;
        let fits = match &format {
            Format::Float(dtype) => values.checked_mul(dtype.bytes()) == Some(codes.as_slice().len()),
            Format::Nf4 { block, absmax } => {
                is_block(*block) && codes.as_slice().len() == values.div_ceil(2) && absmax.fits(values.div_ceil(*block))
            }
            Format::Int8 { scales } => codes.as_slice().len() == values && scales.len() == shape[0],
        };
        fits.then_some(Self { shape, format, codes })
    }

    /// Quantises finite numbers to NF4 in blocks of `block` (see [`is_block`]); `double`: the blocks' magnitudes in 8 bits.
    ///
    /// # Panics
    /// When the shape is not that of the values, or the block no size of one.
    pub fn nf4(values: &[f32], shape: [usize; 2], block: usize, double: bool) -> Self {
        assert_eq!(values.len(), shape[0] * shape[1], "values of another shape");
        Self::encode_nf4(shape, block, double, copy(values)).0
    }

    /// Quantises finite numbers to int8, by rows.
    ///
    /// # Panics
    /// When the shape is not that of the values.
    pub fn int8(values: &[f32], shape: [usize; 2]) -> Self {
        assert_eq!(values.len(), shape[0] * shape[1], "values of another shape");
        Self::encode_int8(shape, copy(values)).0
    }

    /// Numbers as they stand in a file.
    ///
    /// # Panics
    /// When the bytes are not as many as the shape says.
    pub fn float(dtype: Dtype, shape: [usize; 2], bytes: Bytes) -> Self {
        let length = bytes.as_slice().len();
        assert_eq!(length, shape[0] * shape[1] * dtype.bytes(), "bytes of another shape");
        Self {
            shape,
            format: Format::Float(dtype),
            codes: bytes,
        }
    }

    /// [`Packed::nf4`] of numbers that `read` brings: it gets the position of the first one and the place to write them to,
    /// from several threads at once. Also the position of the first number that is not finite.
    pub(crate) fn encode_nf4(
        shape: [usize; 2],
        block: usize,
        double: bool,
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> (Self, Option<usize>) {
        assert!(is_block(block), "{block} is no size of a block");
        let (codes, absmax, not_finite) = nf4::encode(shape[0] * shape[1], block, read);
        let absmax = if double {
            Absmax::nested(&absmax)
        } else {
            Absmax::Plain(absmax)
        };
        let packed = Self {
            shape,
            format: Format::Nf4 { block, absmax },
            codes: Bytes::Owned(codes.into()),
        };
        (packed, not_finite)
    }

    /// The same for [`Packed::int8`].
    pub(crate) fn encode_int8(shape: [usize; 2], read: impl Fn(usize, &mut [f32]) + Sync) -> (Self, Option<usize>) {
        let (codes, scales, not_finite) = int8::encode(shape, read);
        let packed = Self {
            shape,
            format: Format::Int8 { scales },
            codes: Bytes::Owned(codes.into()),
        };
        (packed, not_finite)
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// How the numbers are kept.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The codes, for a device: see [`Format`].
    pub fn codes(&self) -> &[u8] {
        self.codes.as_slice()
    }

    /// Whether the codes are in a memory-mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.codes, Bytes::Mapped { .. })
    }

    /// The same matrix with its codes in memory.
    pub fn in_memory(&self) -> Self {
        Self {
            codes: self.codes.in_memory(),
            ..self.clone()
        }
    }

    /// Decodes rows into `out`, `[rows, columns]`. Several threads may decode at once.
    ///
    /// # Panics
    /// When there are no such rows, or `out` has another size.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let columns = self.shape[1];
        assert!(rows.start <= rows.end && rows.end <= self.shape[0], "no rows {rows:?}");
        assert_eq!(out.len(), rows.len() * columns, "a place for other rows");
        let first = rows.start * columns;
        match &self.format {
            Format::Float(dtype) => {
                let bytes = first * dtype.bytes()..(first + out.len()) * dtype.bytes();
                decode_into(*dtype, &self.codes()[bytes], out);
            }
            Format::Nf4 { block, absmax } => nf4::decode(self.codes(), *block, absmax, first, out),
            Format::Int8 { scales } => {
                let codes = &self.codes()[first..first + out.len()];
                int8::decode(codes, &scales[rows], columns, out);
            }
        }
    }

    /// All numbers.
    pub fn decode(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape[0] * self.shape[1]];
        self.decode_rows(0..self.shape[0], &mut values);
        values
    }

    /// Bytes that it holds in memory; what is in a mapped file is not counted.
    pub fn resident_bytes(&self) -> usize {
        let codes = match &self.codes {
            Bytes::Owned(bytes) => bytes.len(),
            Bytes::Mapped { .. } => 0,
        };
        codes
            + match &self.format {
                Format::Float(_) => 0,
                Format::Nf4 { absmax, .. } => absmax.bytes(),
                Format::Int8 { scales } => size_of_val(scales.as_slice()),
            }
    }

    /// Asks the kernel to bring the codes in from their file, without waiting; nothing for codes in memory.
    pub fn prefetch(&self) {
        if let Bytes::Mapped { file, range } = &self.codes {
            file.prefetch(range.clone());
        }
    }

    /// Gives the memory of codes in a file back to the kernel; they come again when they are read.
    pub fn release(&self) {
        if let Bytes::Mapped { file, range } = &self.codes {
            file.forget(range.clone());
        }
    }
}

/// Reads from numbers in memory.
fn copy(values: &[f32]) -> impl Fn(usize, &mut [f32]) + Sync {
    |first, out| out.copy_from_slice(&values[first..first + out.len()])
}
