//! One memory-mapped safetensors file: its header is checked when it is opened, tensors are read one by one, and the
//! pages of a tensor are given back to the kernel once it has been read.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;

use crate::dtype::{Dtype, HostTensor, decode_f32};
use crate::error::CheckpointError;

/// An open safetensors file.
#[derive(Debug)]
pub struct TensorsFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    start: usize,
}

impl TensorsFile {
    /// Maps a file and checks its header against its length.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(|source| CheckpointError::io(path, source))?;
        let damaged = |problem: String| CheckpointError::Damaged {
            path: path.to_owned(),
            problem,
        };
        if file
            .metadata()
            .map_err(|source| CheckpointError::io(path, source))?
            .len()
            < 8
        {
            return Err(damaged("it is shorter than the header of a safetensors file".into()));
        }
        // SAFETY: the map is only read. Another process that truncates the file while it is mapped can end this one,
        // as it can with every reader of safetensors files.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| CheckpointError::io(path, source))?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| damaged(what_is_cut(&map).unwrap_or_else(|| error.to_string())))?;
        Ok(Self {
            path: path.to_owned(),
            map,
            metadata,
            start: header + 8,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.metadata.tensors().into_keys()
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| info.shape.as_slice())
    }

    /// Number format of a tensor, where it is one of floats.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.metadata
            .info(name)
            .and_then(|info| Dtype::from_safetensors(info.dtype))
    }

    /// Number format of a tensor, as the file names it.
    pub(crate) fn stored(&self, name: &str) -> Option<safetensors::Dtype> {
        self.metadata.info(name).map(|info| info.dtype)
    }

    /// An entry of the file's metadata.
    pub(crate) fn note(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.map.get(self.range(name)?)
    }

    /// Where a tensor's bytes are in the file.
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        let (from, to) = self.metadata.info(name)?.data_offsets;
        Some(self.start + from..self.start + to)
    }

    /// The bytes of a range of the file; none where it has no such range.
    pub fn slice(&self, range: Range<usize>) -> &[u8] {
        self.map.get(range).unwrap_or_default()
    }

    /// The header's bytes.
    pub fn header(&self) -> &[u8] {
        &self.map[..self.start]
    }

    /// A tensor of integers.
    pub fn read_integers(&self, name: &str) -> Option<(Vec<usize>, Vec<i64>)> {
        let info = self.metadata.info(name)?;
        let bytes = self.bytes(name)?;
        let values = match info.dtype {
            safetensors::Dtype::I64 => bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|bytes| i64::from_le_bytes(*bytes))
                .collect(),
            safetensors::Dtype::I32 => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|bytes| i32::from_le_bytes(*bytes).into())
                .collect(),
            safetensors::Dtype::BOOL | safetensors::Dtype::U8 => bytes.iter().map(|byte| (*byte).into()).collect(),
            _ => return None,
        };
        Some((info.shape.clone(), values))
    }

    /// The numbers of a tensor that should have a shape, as f32; none when there is no such tensor. `advice` says what
    /// to do when it has another shape.
    pub fn read_f32(&self, name: &str, expected: &[usize], advice: &str) -> Result<Option<Vec<f32>>, CheckpointError> {
        self.read(name, expected, advice, decode_f32)
    }

    /// The same in the format of the file.
    pub fn read_stored(
        &self,
        name: &str,
        expected: &[usize],
        advice: &str,
    ) -> Result<Option<HostTensor>, CheckpointError> {
        let stored = |dtype, bytes: &[u8]| HostTensor {
            dtype,
            shape: expected.to_vec(),
            data: bytes.to_vec(),
        };
        self.read(name, expected, advice, stored)
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &[usize],
        advice: &str,
        convert: impl FnOnce(Dtype, &[u8]) -> T,
    ) -> Result<Option<T>, CheckpointError> {
        let (Some(info), Some(bytes)) = (self.metadata.info(name), self.bytes(name)) else {
            return Ok(None);
        };
        if info.shape != expected {
            return Err(CheckpointError::Shape {
                path: self.path.clone(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: info.shape.clone(),
                advice: advice.to_owned(),
            });
        }
        let dtype = self.float_dtype(name)?;
        let values = convert(dtype, bytes);
        let (from, to) = info.data_offsets;
        self.forget(self.start + from..self.start + to);
        Ok(Some(values))
    }

    /// The number format of a tensor that should be one of floats.
    pub(crate) fn float_dtype(&self, name: &str) -> Result<Dtype, CheckpointError> {
        self.dtype(name).ok_or_else(|| {
            let format = self
                .stored(name)
                .map_or("nothing".to_owned(), |format| format!("{format:?}"));
            CheckpointError::config(
                &self.path,
                format!("tensor `{name}` is stored as {format}; f32, bf16 and f16 can be read"),
            )
        })
    }

    /// Asks the kernel to bring a range of the file into memory, without waiting.
    pub fn prefetch(&self, range: Range<usize>) {
        // A kernel that refuses only brings the pages in later, when they are read.
        self.map.advise_range(Advice::WillNeed, range.start, range.len()).ok();
    }

    /// Gives the pages that lie wholly within a range of the file back to the kernel; they come again from the file.
    pub fn forget(&self, range: Range<usize>) {
        const PAGE: usize = 4096;
        let from = range.start.next_multiple_of(PAGE);
        let to = range.end.min(self.map.len()) / PAGE * PAGE;
        if from < to {
            // SAFETY: the map is a read-only view of a file, so dropped pages are read again with the same content.
            // A kernel that refuses only keeps them longer.
            unsafe {
                self.map
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, from, to - from)
            }
            .ok();
        }
    }
}

/// In words, what a file that is shorter than it says lacks; none when its length is not what is wrong.
fn what_is_cut(bytes: &[u8]) -> Option<String> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let header = u64::from_le_bytes(*length);
    let Some(text) = usize::try_from(header).ok().and_then(|header| rest.get(..header)) else {
        let found = rest.len();
        return Some(format!(
            "it says that its header has {header} bytes, and only {found} bytes follow"
        ));
    };
    let data = rest.len() as u64 - header;
    let tensors: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(text).ok()?;
    let end = |value: &serde_json::Value| value.get("data_offsets")?.get(1)?.as_u64();
    let last = tensors.iter().filter_map(|(name, value)| Some((end(value)?, name)));
    let (end, name) = last.filter(|(end, _)| *end > data).min()?;
    Some(format!(
        "tensor `{name}` should end at byte {end} of the data, and the file has only {data} bytes of data"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::write::write_tensors;

    fn file(folder: &Path) -> PathBuf {
        let path = folder.join("model.safetensors");
        let tensor = HostTensor::from_f32(vec![2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let half = tensor.cast(Dtype::F16);
        write_tensors(&path, &[("a".to_owned(), tensor), ("b".to_owned(), half)].into()).unwrap();
        path
    }

    fn opened(bytes: &[u8]) -> Result<TensorsFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.safetensors");
        std::fs::write(&path, bytes).unwrap();
        TensorsFile::open(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn tensors_come_in_the_format_asked_for_and_in_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = TensorsFile::open(&file(folder.path())).unwrap();
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(file.read_f32("b", &[2, 3], "").unwrap().unwrap(), values);
        let stored = file.read_stored("b", &[2, 3], "").unwrap().unwrap();
        assert_eq!((stored.dtype, stored.to_f32()), (Dtype::F16, values.to_vec()));
        assert_eq!(file.read_f32("c", &[2, 3], "").unwrap(), None);
        let error = file.read_f32("a", &[3, 2], "do this").unwrap_err().to_string();
        assert!(
            error.ends_with("tensor `a` has the shape [2, 3], expected [3, 2]; do this"),
            "{error}"
        );
    }

    #[test]
    fn a_tensor_is_still_there_after_its_pages_were_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.safetensors");
        let values: Vec<f32> = (0..100_000).map(|index| index as f32).collect();
        write_tensors(
            &path,
            &[("a".to_owned(), HostTensor::from_f32(vec![values.len()], &values))].into(),
        )
        .unwrap();
        let file = TensorsFile::open(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(file.read_f32("a", &[values.len()], "").unwrap().unwrap(), values);
        }
    }

    #[test]
    fn a_cut_file_says_where_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let whole = std::fs::read(file(folder.path())).unwrap();
        let error = opened(&whole[..whole.len() - 1]).unwrap_err();
        let expected = "tensor `b` should end at byte 36 of the data, and the file has only 35 bytes of data";
        assert!(error.contains(expected) && error.contains("fetch it again"), "{error}");
        assert!(opened(&whole[..20]).unwrap_err().contains("and only 12 bytes follow"));
        assert!(opened(&[]).unwrap_err().contains("shorter than the header"));
    }

    proptest! {
        // Each case writes and syncs files.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_cut_is_an_error(share in 0.0..1.0f64) {
            let folder = tempfile::tempdir().unwrap();
            let whole = std::fs::read(file(folder.path())).unwrap();
            let length = (share * whole.len() as f64) as usize;
            prop_assert!(opened(&whole[..length]).is_err());
        }

        #[test]
        fn a_flipped_bit_in_the_header_never_panics(byte in any::<prop::sample::Index>(), bit in 0..8u8) {
            let folder = tempfile::tempdir().unwrap();
            let mut bytes = std::fs::read(file(folder.path())).unwrap();
            let header = bytes.len() - 36;
            let byte = byte.index(header);
            bytes[byte] ^= 1 << bit;
            // A flipped bit in a name, a shape of the same size or the metadata still is a valid header.
            if let Ok(file) = opened(&bytes) {
                for name in file.names() {
                    let shape = file.shape(&name).unwrap_or_default().to_vec();
                    file.read_f32(&name, &shape, "").ok();
                }
            }
        }
    }
}
