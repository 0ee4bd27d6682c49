//! A packed matrix as bytes, to be cut into pieces: its codes, and behind them what they are scaled by.

use std::sync::Arc;

use super::{Absmax, Bytes, Format, Packed};
use crate::dtype::Dtype;

/// What the bytes of a flattened matrix mean.
#[derive(Clone, Debug)]
pub struct Outline {
    shape: [usize; 2],
    /// Bytes of codes.
    codes: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Float(Dtype),
    Nf4 {
        block: usize,
    },
    NestedNf4 {
        block: usize,
        /// Scales in 8 bits.
        scales: usize,
        nested_block: usize,
        offset: f32,
        map: Arc<[f32; 256]>,
    },
    Int8,
}

impl Packed {
    /// All its bytes, and what they mean.
    pub fn flatten(&self) -> (Vec<u8>, Outline) {
        let mut bytes = self.codes().to_vec();
        let codes = bytes.len();
        let kind = match &self.format {
            Format::Float(dtype) => Kind::Float(*dtype),
            Format::Int8 { scales } => {
                bytes.extend_from_slice(bytemuck::cast_slice(scales));
                Kind::Int8
            }
            Format::Nf4 {
                block,
                absmax: Absmax::Plain(scales),
            } => {
                bytes.extend_from_slice(bytemuck::cast_slice(scales));
                Kind::Nf4 { block: *block }
            }
            Format::Nf4 {
                block,
                absmax:
                    Absmax::Nested {
                        codes: scales,
                        absmax,
                        block: nested_block,
                        offset,
                        map,
                    },
            } => {
                bytes.extend_from_slice(scales);
                bytes.extend_from_slice(bytemuck::cast_slice(absmax));
                Kind::NestedNf4 {
                    block: *block,
                    scales: scales.len(),
                    nested_block: *nested_block,
                    offset: *offset,
                    map: map.clone(),
                }
            }
        };
        let shape = self.shape;
        (bytes, Outline { shape, codes, kind })
    }
}

impl Outline {
    /// Rows and columns of the matrix.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The matrix of these bytes, which [`Packed::flatten`] gave with the outline; none when they are not as many.
    pub fn restore(&self, bytes: &[u8]) -> Option<Packed> {
        let (codes, rest) = bytes.split_at_checked(self.codes)?;
        let floats = |bytes: &[u8]| bytemuck::pod_collect_to_vec::<u8, f32>(bytes);
        let format = match &self.kind {
            Kind::Float(dtype) => Format::Float(*dtype),
            Kind::Int8 => Format::Int8 { scales: floats(rest) },
            Kind::Nf4 { block } => Format::Nf4 {
                block: *block,
                absmax: Absmax::Plain(floats(rest)),
            },
            Kind::NestedNf4 {
                block,
                scales,
                nested_block,
                offset,
                map,
            } => {
                let (scales, nested) = rest.split_at_checked(*scales)?;
                Format::Nf4 {
                    block: *block,
                    absmax: Absmax::Nested {
                        codes: scales.to_vec(),
                        absmax: floats(nested),
                        block: *nested_block,
                        offset: *offset,
                        map: map.clone(),
                    },
                }
            }
        };
        Packed::from_parts(self.shape, format, Bytes::Owned(codes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flattened_is_restored_to_the_bit() {
        let values: Vec<f32> = (0..70 * 130).map(|index| (index as f32 * 0.37).sin()).collect();
        let shape = [70, 130];
        let floats = Bytes::Owned(bytemuck::cast_slice(&values).into());
        for packed in [
            Packed::nf4(&values, shape, 64, false),
            Packed::nf4(&values, shape, 64, true),
            Packed::int8(&values, shape),
            Packed::float(Dtype::F32, shape, floats),
        ] {
            let (bytes, outline) = packed.flatten();
            let restored = outline.restore(&bytes).unwrap();
            assert_eq!((restored.shape(), restored.format()), (packed.shape(), packed.format()));
            assert_eq!(restored.codes(), packed.codes());
            assert!(outline.restore(&bytes[..bytes.len() / 3]).is_none());
        }
    }
}
