//! Tokenised samples of all sources of a recipe, memory-mapped.

use std::collections::HashMap;
use std::sync::Arc;

use crate::tokenized_file::{Info, Record, TokenizedFile, Writer, ranges};

pub use crate::tokenized_file::TokenizedSample;

/// Tokenised samples, in the order of the sources and of the rows in their files.
#[derive(Debug, Clone)]
pub struct Dataset {
    parts: Arc<Vec<Part>>,
    languages: Arc<Vec<String>>,
    /// For each sample its part and its index there.
    samples: Vec<(u32, u32)>,
}

#[derive(Debug)]
struct Part {
    file: TokenizedFile,
    /// Index into [`Dataset::languages`] for each language of the file.
    languages: Vec<u16>,
}

impl Dataset {
    /// All samples of these files.
    pub(crate) fn new(files: Vec<TokenizedFile>) -> Self {
        let mut languages: Vec<String> = files.iter().flat_map(|file| file.info().languages.clone()).collect();
        languages.sort();
        languages.dedup();
        let index: HashMap<&String, u16> = languages.iter().zip(0..).collect();
        let parts: Vec<Part> = files
            .into_iter()
            .map(|file| Part {
                languages: file.info().languages.iter().map(|tag| index[tag]).collect(),
                file,
            })
            .collect();
        let samples = (0..)
            .zip(&parts)
            .flat_map(|(number, part)| (0..part.file.records().len() as u32).map(move |sample| (number, sample)))
            .collect();
        Dataset {
            parts: Arc::new(parts),
            languages: Arc::new(languages),
            samples,
        }
    }

    /// A dataset out of samples in memory, as tests and benchmarks need it. The samples' `language` counts into `languages`,
    /// which is sorted here if it is not yet.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub fn in_memory(languages: &[&str], samples: &[TokenizedSample]) -> std::io::Result<Self> {
        let mut writer = Writer::new(Vec::new())?;
        for sample in samples {
            writer.push(sample)?;
        }
        let languages = languages.iter().map(|&tag| tag.to_owned()).collect();
        let info = Info {
            source: "memory".into(),
            languages,
            files: vec!["memory".into()],
            ..Default::default()
        };
        let file = TokenizedFile::in_memory(&writer.finish(&info)?)?;
        Ok(Dataset::new(file.into_iter().collect()))
    }

    /// The samples with these indices, in this order, over the same files.
    pub fn select(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let samples = indices.into_iter().map(|index| self.samples[index]).collect();
        Dataset {
            parts: self.parts.clone(),
            languages: self.languages.clone(),
            samples,
        }
    }

    fn record(&self, sample: usize) -> (&Part, &Record) {
        let (part, index) = self.samples[sample];
        let part = &self.parts[part as usize];
        (part, &part.file.records()[index as usize])
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The BCP-47 tags that [`Dataset::language`] counts into, sorted. Equal for the training and the held-out samples of a recipe.
    pub fn languages(&self) -> &[String] {
        &self.languages
    }

    /// Ids and labels of a sample, of equal length; labels are not shifted.
    pub fn tokens(&self, sample: usize) -> (&[u32], &[i32]) {
        let (part, index) = self.samples[sample];
        self.parts[part as usize].file.tokens(index as usize)
    }

    /// The tokens of each part of a sample: one range unless it holds several sequences (answers, options).
    pub fn parts(&self, sample: usize) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let (part, index) = self.samples[sample];
        let (parts, _) = self.parts[part as usize].file.parts_and_marks(index as usize);
        ranges(parts, self.length(sample))
    }

    /// What else a loss reads of a sample (see [`TokenizedSample::marks`]).
    pub fn marks(&self, sample: usize) -> &[u32] {
        let (part, index) = self.samples[sample];
        self.parts[part as usize].file.parts_and_marks(index as usize).1
    }

    /// Number of tokens of a sample.
    pub fn length(&self, sample: usize) -> usize {
        self.record(sample).1.length as usize
    }

    /// Number of supervised tokens of a sample (labels that have a token before them).
    pub fn supervised(&self, sample: usize) -> usize {
        self.record(sample).1.supervised as usize
    }

    /// Language of a sample, an index into [`Dataset::languages`].
    pub fn language(&self, sample: usize) -> u16 {
        let (part, record) = self.record(sample);
        part.languages[record.language as usize]
    }

    /// The group of a sample: equal for samples that are translations of one another.
    pub fn group(&self, sample: usize) -> u64 {
        self.record(sample).1.group
    }

    /// Name of the source that a sample came from.
    pub fn source(&self, sample: usize) -> &str {
        &self.record(sample).0.file.info().source
    }

    /// Source, file, line and id of a sample, for messages.
    pub fn describe(&self, sample: usize) -> String {
        let (part, record) = self.record(sample);
        let info = part.file.info();
        let file = info.files.get(record.file as usize).map_or("", String::as_str);
        let mut text = format!("{} ({file}", info.source);
        if record.line > 0 {
            text.push_str(&format!(":{}", record.line));
        }
        let id = part.file.id(self.samples[sample].1 as usize);
        if !id.is_empty() {
            text.push_str(&format!(", id {id}"));
        }
        text.push(')');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(language: u32, id: &str) -> TokenizedSample {
        TokenizedSample {
            input_ids: vec![1, 2, 3],
            labels: vec![-100, 2, 3],
            language,
            group: 7,
            line: 4,
            id: id.into(),
            ..Default::default()
        }
    }

    #[test]
    fn languages_are_sorted_and_samples_keep_theirs() {
        let data = Dataset::in_memory(&["sw", "ar"], &[sample(0, ""), sample(1, "x")]).unwrap();
        assert_eq!(data.languages(), ["ar", "sw"]);
        assert_eq!((data.language(0), data.language(1)), (1, 0));
        assert_eq!(data.describe(0), "memory (memory:4)");
        assert_eq!(data.describe(1), "memory (memory:4, id x)");
        assert_eq!((data.length(1), data.supervised(1), data.group(1)), (3, 2, 7));
        let selected = data.select([1]);
        assert_eq!((selected.len(), selected.language(0)), (1, 0));
        assert_eq!(selected.languages(), data.languages());
    }
}
