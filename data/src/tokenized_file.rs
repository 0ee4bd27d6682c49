//! The file that keeps tokenised samples: written once from front to back, then memory-mapped.
//!
//! Layout, little-endian: magic · for each sample its ids (u32), labels (i32), lengths of parts (u32) and marks (u32) ·
//! padding to 8 bytes · one
//! [`Record`] per sample · the samples' ids as text · [`Info`] as JSON · [`Trailer`]. The trailer holds a BLAKE3
//! hash of everything before it, so that a torn or damaged file is recognised.

use std::io::{self, Read, Write};
use std::path::Path;

use bytemuck::{Pod, Zeroable};
use memmap2::{Mmap, MmapMut};
use serde::{Deserialize, Serialize};

use crate::batch::supervised_tokens;

const MAGIC: u64 = u64::from_le_bytes(*b"ILTOKEN2");

/// One tokenised sample on its way into a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenizedSample {
    /// Token ids, those of all parts end to end.
    pub input_ids: Vec<u32>,
    /// One label per token, not shifted, [`crate::batch::UNSUPERVISED`] where the loss leaves the token out.
    pub labels: Vec<i32>,
    /// Length of each part, where the sample has several sequences: the chosen and the rejected answer, or one sequence for
    /// each option. Empty: one sequence.
    pub parts: Vec<u32>,
    /// What else a loss reads of the sample: 1 or 0 for a desirable or undesirable one, the index of the right option, the
    /// first token and the one after the last of each aligned word.
    pub marks: Vec<u32>,
    /// Index into the list of languages of its file.
    pub language: u32,
    /// Equal for samples that are translations of one another.
    pub group: u64,
    /// Index into the list of files that the samples were read from.
    pub file: u32,
    /// Line or row in that file, from 1; 0 when not known.
    pub line: u64,
    /// The row's own id; empty when it has none.
    pub id: String,
}

/// What a file of tokenised samples says of itself.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub(crate) struct Info {
    /// Name of the source.
    pub(crate) source: String,
    /// Language tags that the samples' `language` counts into.
    pub(crate) languages: Vec<String>,
    /// The files the samples were read from.
    pub(crate) files: Vec<String>,
    /// What was read, kept and dropped, as JSON.
    pub(crate) report: serde_json::Value,
}

/// The place and the properties of one sample.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Record {
    /// Byte offset of the sample's ids; its labels, lengths of parts and marks follow them.
    offset: u64,
    pub(crate) group: u64,
    pub(crate) line: u64,
    /// End of the sample's id in the text of ids; it starts where that of the sample before ends.
    id_end: u64,
    pub(crate) length: u32,
    pub(crate) supervised: u32,
    pub(crate) language: u32,
    pub(crate) file: u32,
    parts: u32,
    marks: u32,
}

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Trailer {
    samples: u64,
    records_offset: u64,
    ids_offset: u64,
    info_offset: u64,
    info_end: u64,
    checksum: [u8; 32],
    magic: u64,
}

/// The tokens of each part of a sample of so many tokens.
pub(crate) fn ranges(parts: &[u32], length: usize) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let whole = parts.is_empty().then_some(length);
    let lengths = parts.iter().map(|&part| part as usize).chain(whole);
    lengths.scan(0, |start, length| {
        let range = *start..*start + length;
        *start = range.end;
        Some(range)
    })
}

/// Writes a file of tokenised samples, one sample at a time.
pub(crate) struct Writer<W: Write> {
    out: W,
    hasher: blake3::Hasher,
    position: u64,
    records: Vec<Record>,
    ids: String,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> io::Result<Self> {
        let mut writer = Writer {
            out,
            hasher: blake3::Hasher::new(),
            position: 0,
            records: Vec::new(),
            ids: String::new(),
        };
        writer.write(&MAGIC.to_le_bytes())?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.position += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn push(&mut self, sample: &TokenizedSample) -> io::Result<()> {
        self.ids.push_str(&sample.id);
        self.records.push(Record {
            offset: self.position,
            group: sample.group,
            line: sample.line,
            id_end: self.ids.len() as u64,
            length: sample.input_ids.len() as u32,
            supervised: ranges(&sample.parts, sample.input_ids.len())
                .map(|range| supervised_tokens(&sample.labels[range]) as u32)
                .sum(),
            language: sample.language,
            file: sample.file,
            parts: sample.parts.len() as u32,
            marks: sample.marks.len() as u32,
        });
        self.write(bytemuck::cast_slice(&sample.input_ids))?;
        self.write(bytemuck::cast_slice(&sample.labels))?;
        self.write(bytemuck::cast_slice(&sample.parts))?;
        self.write(bytemuck::cast_slice(&sample.marks))
    }

    /// Writes index and trailer; gives back what was written into, flushed.
    pub(crate) fn finish(mut self, info: &Info) -> io::Result<W> {
        let padding = self.position.next_multiple_of(8) - self.position;
        self.write(&[0; 8][..padding as usize])?;
        let records_offset = self.position;
        let records = std::mem::take(&mut self.records);
        self.write(bytemuck::cast_slice(&records))?;
        let ids_offset = self.position;
        let ids = std::mem::take(&mut self.ids);
        self.write(ids.as_bytes())?;
        let info_offset = self.position;
        self.write(&serde_json::to_vec(info)?)?;
        let info_end = self.position;
        let trailer = Trailer {
            samples: records.len() as u64,
            records_offset,
            ids_offset,
            info_offset,
            info_end,
            checksum: *self.hasher.finalize().as_bytes(),
            magic: MAGIC,
        };
        self.out.write_all(bytemuck::bytes_of(&trailer))?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A file of tokenised samples, mapped into memory.
#[derive(Debug)]
pub(crate) struct TokenizedFile {
    map: Mmap,
    trailer: Trailer,
    info: Info,
}

impl TokenizedFile {
    /// Maps a file and checks it from end to end. `Ok(None)`: the file is torn or damaged.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = std::fs::File::open(path)?;
        // SAFETY: files in the cache are written under another name and renamed when complete; nothing changes them afterwards.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self::check(map))
    }

    /// Keeps bytes of the file format in anonymous memory instead of in a file.
    pub(crate) fn in_memory(mut bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut map = MmapMut::map_anon(bytes.len().max(1))?;
        bytes.read_exact(&mut map[..bytes.len()])?;
        Ok(Self::check(map.make_read_only()?))
    }

    fn check(map: Mmap) -> Option<Self> {
        let end = map.len().checked_sub(size_of::<Trailer>())?;
        let trailer: Trailer = bytemuck::pod_read_unaligned(&map[end..]);
        let records = trailer.samples.checked_mul(size_of::<Record>() as u64)?;
        let whole = trailer.magic == MAGIC
            && trailer.info_end == end as u64
            && trailer.records_offset.is_multiple_of(8)
            && trailer.records_offset.checked_add(records) == Some(trailer.ids_offset)
            && trailer.ids_offset <= trailer.info_offset
            && trailer.info_offset <= trailer.info_end
            && blake3::Hasher::new().update_rayon(&map[..end]).finalize() == blake3::Hash::from_bytes(trailer.checksum);
        if !whole {
            return None;
        }
        let info = serde_json::from_slice(&map[trailer.info_offset as usize..end]).ok()?;
        Some(TokenizedFile { map, trailer, info })
    }

    pub(crate) fn info(&self) -> &Info {
        &self.info
    }

    pub(crate) fn records(&self) -> &[Record] {
        bytemuck::cast_slice(&self.map[self.trailer.records_offset as usize..self.trailer.ids_offset as usize])
    }

    pub(crate) fn tokens(&self, sample: usize) -> (&[u32], &[i32]) {
        let record = &self.records()[sample];
        let (start, bytes) = (record.offset as usize, record.length as usize * 4);
        (
            bytemuck::cast_slice(&self.map[start..start + bytes]),
            bytemuck::cast_slice(&self.map[start + bytes..start + 2 * bytes]),
        )
    }

    /// Lengths of the sample's parts, empty when it is one sequence, and its marks.
    pub(crate) fn parts_and_marks(&self, sample: usize) -> (&[u32], &[u32]) {
        let record = &self.records()[sample];
        let start = record.offset as usize + 8 * record.length as usize;
        let middle = start + 4 * record.parts as usize;
        let end = middle + 4 * record.marks as usize;
        (
            bytemuck::cast_slice(&self.map[start..middle]),
            bytemuck::cast_slice(&self.map[middle..end]),
        )
    }

    /// The sample's own id; empty when it has none.
    pub(crate) fn id(&self, sample: usize) -> &str {
        let records = self.records();
        let start = if sample == 0 { 0 } else { records[sample - 1].id_end };
        let base = self.trailer.ids_offset;
        let bytes = &self.map[(base + start) as usize..(base + records[sample].id_end) as usize];
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        for (length, id) in [(3_u32, "a"), (1, ""), (5, "été")] {
            let sample = TokenizedSample {
                input_ids: (0..length).collect(),
                labels: (0..length as i32)
                    .map(|label| if label == 1 { -100 } else { label })
                    .collect(),
                group: u64::from(length),
                id: id.into(),
                ..Default::default()
            };
            writer.push(&sample).unwrap();
        }
        writer
            .finish(&Info {
                source: "s".into(),
                ..Default::default()
            })
            .unwrap()
    }

    #[test]
    fn reads_back_what_was_written() {
        let file = TokenizedFile::in_memory(&bytes()).unwrap().unwrap();
        assert_eq!(file.records().len(), 3);
        assert_eq!(file.tokens(0), (&[0, 1, 2][..], &[0, -100, 2][..]));
        assert_eq!(file.tokens(2).0, &[0, 1, 2, 3, 4]);
        assert_eq!([file.id(0), file.id(1), file.id(2)], ["a", "", "été"]);
        assert_eq!(file.records()[2].supervised, 3);
        assert_eq!(file.info().source, "s");
    }

    #[test]
    fn every_damage_is_noticed() {
        let whole = bytes();
        for cut in [0, 1, 50, whole.len() / 2, whole.len() - 1] {
            assert!(
                TokenizedFile::in_memory(&whole[..cut]).unwrap().is_none(),
                "cut at {cut}"
            );
        }
        for place in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[place] ^= 4;
            assert!(TokenizedFile::in_memory(&damaged).unwrap().is_none(), "byte {place}");
        }
    }
}
