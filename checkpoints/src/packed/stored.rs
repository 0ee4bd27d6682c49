//! Quantised matrices in safetensors files, laid out as bitsandbytes writes them.
//!
//! NF4: beside the codes `NAME` (U8) are `NAME.absmax`, `NAME.quant_map` and `NAME.quant_state.bitsandbytes__nf4` (JSON as
//! bytes), with double quantisation also `NAME.nested_absmax` and `NAME.nested_quant_map`. Int8: beside `MODULE.weight` (I8)
//! are `MODULE.SCB`, the scale of each row, and `MODULE.weight_format`, which is zero.

use std::sync::Arc;

use safetensors::Dtype as Stored;
use serde_json::{Value, json};

use super::{Absmax, Bytes, Format, LEVELS, Packed, Scheme, is_block};
use crate::dtype::{Dtype, encode_f32};
use crate::error::CheckpointError;
use crate::tensors::TensorsFile;

const ABSMAX: &str = ".absmax";
const QUANT_MAP: &str = ".quant_map";
const NESTED_ABSMAX: &str = ".nested_absmax";
const NESTED_QUANT_MAP: &str = ".nested_quant_map";
const QUANT_STATE: &str = ".quant_state.bitsandbytes__nf4";
const FP4_STATE: &str = ".quant_state.bitsandbytes__fp4";
const SCALES: &str = "SCB";
const WEIGHT_FORMAT: &str = "weight_format";

/// What to do about parts that do not fit together.
const ADVICE: &str = "the weights are not whole, fetch them again";

/// Room for the JSON of a matrix, whose length depends on its numbers; the rest is spaces.
const STATE_BYTES: usize = 256;

/// The file that has a tensor.
pub(crate) type Files<'a> = dyn Fn(&str) -> Option<&'a Arc<TensorsFile>> + 'a;

/// What a quantised matrix says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    /// Rows and columns.
    pub(crate) shape: [usize; 2],
    /// What the matrix was before; none where the file does not say.
    pub(crate) dtype: Option<Dtype>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Nf4 { block: usize, nested: Option<Nested> },
    Int8,
}

#[derive(Clone, Debug)]
struct Nested {
    block: usize,
    offset: f32,
}

/// Whether a tensor is a part of another one, which is quantised.
pub(crate) fn is_part(name: &str, files: &Files) -> bool {
    let parts = [ABSMAX, QUANT_MAP, NESTED_ABSMAX, NESTED_QUANT_MAP, QUANT_STATE];
    let of_nf4 = parts.iter().find_map(|part| name.strip_suffix(part));
    let of_int8 = [SCALES, WEIGHT_FORMAT].iter().find_map(|part| {
        Some(format!(
            "{}weight",
            name.strip_suffix(part).filter(|of| of.ends_with('.'))?
        ))
    });
    of_nf4
        .map(str::to_owned)
        .or(of_int8)
        .is_some_and(|of| is_quantised(&of, files))
}

fn is_quantised(name: &str, files: &Files) -> bool {
    let format = files(name).and_then(|file| file.stored(name));
    name.ends_with(".weight") && matches!(format, Some(Stored::U8 | Stored::I8))
}

/// What a tensor says of itself; none when it is not quantised.
pub(crate) fn header(name: &str, files: &Files) -> Result<Option<Header>, CheckpointError> {
    let Some(file) = files(name).filter(|_| is_quantised(name, files)) else {
        return Ok(None);
    };
    if file.stored(name) == Some(Stored::I8) {
        let shape = file.shape(name).unwrap_or_default();
        let shape = shape.try_into().map_err(|_| {
            let problem = format!("tensor `{name}` should be a matrix, and has the shape {shape:?}");
            CheckpointError::config(file.path(), problem)
        })?;
        return Ok(Some(Header {
            shape,
            dtype: None,
            kind: Kind::Int8,
        }));
    }
    if files(&format!("{name}{FP4_STATE}")).is_some() {
        return Err(CheckpointError::config(
            file.path(),
            format!(
                "tensor `{name}` is quantised to FP4, of which this version reads nothing; take the model's 16-bit \
                     weights and `model.quantization`, which quantises them to NF4"
            ),
        ));
    }
    nf4_header(name, files, file).map(Some)
}

fn nf4_header(name: &str, files: &Files, file: &TensorsFile) -> Result<Header, CheckpointError> {
    let part = format!("{name}{QUANT_STATE}");
    let holder = files(&part).ok_or_else(|| missing(file, &part, name))?;
    let wrong = |problem: &str| CheckpointError::config(holder.path(), format!("tensor `{part}` {problem}; {ADVICE}"));
    let state: Value = serde_json::from_slice(holder.bytes(&part).unwrap_or_default())
        .map_err(|error| wrong(&format!("should be JSON: {error}")))?;
    let size = |key: &str| state.get(key).and_then(Value::as_u64).map(|size| size as usize);
    let block = size("blocksize")
        .filter(|block| is_block(*block))
        .ok_or_else(|| wrong("should have a `blocksize` that is a power of two from 32 to 4096"))?;
    let shape: Vec<usize> = state
        .get("shape")
        .and_then(|shape| serde_json::from_value(shape.clone()).ok())
        .unwrap_or_default();
    let shape = shape
        .try_into()
        .map_err(|_| wrong("should have a `shape` of two numbers"))?;
    let nested = if state.get("nested_blocksize").is_some() {
        let offset = state
            .get("nested_offset")
            .and_then(Value::as_f64)
            .map(|offset| offset as f32);
        Some(Nested {
            block: size("nested_blocksize")
                .filter(|block| *block > 0)
                .ok_or_else(|| wrong("should have a `nested_blocksize` above 0"))?,
            offset: offset
                .filter(|offset| offset.is_finite())
                .ok_or_else(|| wrong("should have a number as `nested_offset`"))?,
        })
    } else {
        None
    };
    Ok(Header {
        shape,
        dtype: state.get("dtype").and_then(Value::as_str).and_then(Dtype::from_name),
        kind: Kind::Nf4 { block, nested },
    })
}

fn missing(file: &TensorsFile, part: &str, of: &str) -> CheckpointError {
    CheckpointError::MissingTensor {
        folder: file.path().to_owned(),
        tensor: part.to_owned(),
        advice: format!("it belongs to the quantised tensor `{of}`; {ADVICE}"),
    }
}

/// Reads a quantised matrix; its codes stay in the file.
pub(crate) fn read(name: &str, header: &Header, files: &Files) -> Result<Packed, CheckpointError> {
    let Some(file) = files(name) else {
        return Err(CheckpointError::Other(format!("the tensor `{name}` is gone")));
    };
    let values = header.shape[0].saturating_mul(header.shape[1]);
    let f32s = |part: &str, length: usize| -> Result<Vec<f32>, CheckpointError> {
        let holder = files(part).ok_or_else(|| missing(file, part, name))?;
        let read = holder.read_f32(part, &[length], ADVICE)?.unwrap_or_default();
        if read.iter().all(|value| value.is_finite()) {
            Ok(read)
        } else {
            let problem = format!("tensor `{part}` has numbers that are not finite; {ADVICE}");
            Err(CheckpointError::config(holder.path(), problem))
        }
    };
    let format = match &header.kind {
        Kind::Int8 => {
            let module = name.strip_suffix("weight").unwrap_or(name);
            Format::Int8 {
                scales: f32s(&format!("{module}{SCALES}"), header.shape[0])?,
            }
        }
        Kind::Nf4 { block, nested } => {
            let part = format!("{name}{QUANT_MAP}");
            let levels = f32s(&part, LEVELS.len())?;
            if !levels.iter().zip(LEVELS).all(|(level, nf4)| (level - nf4).abs() < 1e-6) {
                let problem = format!("tensor `{part}` has other levels than those of NF4, which is all that is read");
                return Err(CheckpointError::config(file.path(), problem));
            }
            let blocks = values.div_ceil(*block);
            let absmax = match nested {
                None => Absmax::Plain(f32s(&format!("{name}{ABSMAX}"), blocks)?),
                Some(nested) => {
                    let part = format!("{name}{ABSMAX}");
                    let holder = files(&part).ok_or_else(|| missing(file, &part, name))?;
                    let map = f32s(&format!("{name}{NESTED_QUANT_MAP}"), 256)?;
                    let map = map.try_into().unwrap_or([0.0; 256]);
                    Absmax::Nested {
                        codes: sized(holder, &part, Stored::U8, blocks)?.to_vec(),
                        absmax: f32s(&format!("{name}{NESTED_ABSMAX}"), blocks.div_ceil(nested.block))?,
                        block: nested.block,
                        offset: nested.offset,
                        map: Arc::new(map),
                    }
                }
            };
            Format::Nf4 { block: *block, absmax }
        }
    };
    let (stored, length) = match header.kind {
        Kind::Int8 => (Stored::I8, values),
        Kind::Nf4 { .. } => (Stored::U8, values.div_ceil(2)),
    };
    sized(file, name, stored, length)?;
    let codes = Bytes::Mapped {
        file: Arc::clone(file),
        range: file.range(name).unwrap_or_default(),
    };
    Packed::from_parts(header.shape, format, codes)
        .ok_or_else(|| CheckpointError::config(file.path(), format!("the parts of `{name}` do not fit; {ADVICE}")))
}

/// The bytes of a tensor that should be so many of a format.
fn sized<'a>(file: &'a TensorsFile, name: &str, format: Stored, length: usize) -> Result<&'a [u8], CheckpointError> {
    let bytes = file.bytes(name).unwrap_or_default();
    if file.stored(name) == Some(format) && bytes.len() == length {
        return Ok(bytes);
    }
    Err(CheckpointError::config(
        file.path(),
        format!(
            "tensor `{name}` should be {length} numbers of {format:?}, and has the shape {:?} in {:?}; {ADVICE}",
            file.shape(name).unwrap_or_default(),
            file.stored(name).unwrap_or(format),
        ),
    ))
}

/// A tensor that a quantised matrix is written as.
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) format: Stored,
    pub(crate) shape: Vec<usize>,
    content: Content,
}

#[derive(Clone, Copy)]
enum Content {
    Codes,
    Absmax,
    Levels,
    NestedAbsmax,
    NestedMap,
    State,
    Scales,
    WeightFormat,
}

impl Part {
    pub(crate) fn bytes(&self) -> usize {
        let width = if self.format == Stored::F32 { 4 } else { 1 };
        self.shape.iter().product::<usize>() * width
    }

    /// The part of a matrix, which was made by the scheme that the part was.
    pub(crate) fn of(&self, packed: &Packed) -> Vec<u8> {
        let f32s = |values: &[f32]| encode_f32(Dtype::F32, values);
        match (self.content, &packed.format) {
            (Content::Codes, _) => packed.codes().to_vec(),
            (Content::Levels, _) => f32s(&LEVELS),
            (Content::Absmax, Format::Nf4 { absmax, .. }) => match absmax {
                Absmax::Plain(values) => f32s(values),
                Absmax::Nested { codes, .. } => codes.clone(),
            },
            (
                Content::NestedAbsmax,
                Format::Nf4 {
                    absmax: Absmax::Nested { absmax, .. },
                    ..
                },
            ) => f32s(absmax),
            (
                Content::NestedMap,
                Format::Nf4 {
                    absmax: Absmax::Nested { map, .. },
                    ..
                },
            ) => f32s(map.as_slice()),
            (Content::State, Format::Nf4 { block, absmax }) => state(packed.shape, *block, absmax),
            (Content::Scales, Format::Int8 { scales }) => f32s(scales),
            _ => vec![0; self.bytes()],
        }
    }
}

/// What bitsandbytes writes beside the codes, filled up with spaces.
fn state(shape: [usize; 2], block: usize, absmax: &Absmax) -> Vec<u8> {
    let mut state = json!({"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": shape});
    if let Absmax::Nested { block, offset, .. } = absmax {
        state["nested_blocksize"] = json!(block);
        state["nested_dtype"] = json!("float32");
        state["nested_offset"] = json!(f64::from(*offset));
    }
    let mut bytes = state.to_string().into_bytes();
    bytes.resize(bytes.len().max(STATE_BYTES), b' ');
    bytes
}

/// The tensors that a matrix is written as under a scheme.
pub(crate) fn parts(name: &str, [rows, columns]: [usize; 2], scheme: Scheme) -> Vec<Part> {
    let part = |name: String, format, shape: &[usize], content| Part {
        name,
        format,
        shape: shape.to_vec(),
        content,
    };
    let beside = |suffix: &str, format, length, content| part(format!("{name}{suffix}"), format, &[length], content);
    match scheme {
        Scheme::Int8 => {
            let module = name.strip_suffix("weight").unwrap_or(name);
            vec![
                part(name.to_owned(), Stored::I8, &[rows, columns], Content::Codes),
                part(format!("{module}{SCALES}"), Stored::F32, &[rows], Content::Scales),
                part(
                    format!("{module}{WEIGHT_FORMAT}"),
                    Stored::U8,
                    &[],
                    Content::WeightFormat,
                ),
            ]
        }
        Scheme::Nf4 { block, double } => {
            let values = rows * columns;
            let blocks = values.div_ceil(block);
            let mut parts = vec![
                part(name.to_owned(), Stored::U8, &[values.div_ceil(2), 1], Content::Codes),
                beside(QUANT_MAP, Stored::F32, LEVELS.len(), Content::Levels),
                beside(QUANT_STATE, Stored::U8, STATE_BYTES, Content::State),
            ];
            if double {
                let nested = blocks.div_ceil(super::absmax::NESTED_BLOCK);
                parts.push(beside(ABSMAX, Stored::U8, blocks, Content::Absmax));
                parts.push(beside(NESTED_ABSMAX, Stored::F32, nested, Content::NestedAbsmax));
                parts.push(beside(NESTED_QUANT_MAP, Stored::F32, 256, Content::NestedMap));
            } else {
                parts.push(beside(ABSMAX, Stored::F32, blocks, Content::Absmax));
            }
            parts
        }
    }
}
