//! One source of a recipe: its files, read into samples one row at a time.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use interlingua_recipes::{BadRow as OnBadRow, Format, Source, SourcePath};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{BadRow, DataError, RowProblem};
use crate::formats;
use crate::language::canonical;
use crate::normalize::{normalize, normalize_text};
use crate::readers::{self, Origin, Row, Rows};
use crate::sample::{Place, Sample, UNDETERMINED};

/// Opens a source. Files are read one after the other while the iterator is advanced; no more than one row (of Parquet, one page of each column) is held.
///
/// # Errors
/// When there is no such file, a file is of a kind that is not read, or `fields` names what the format does not have.
/// While reading: when a file turns out unreadable, when there is no row to give at all, and, with
/// [`OnBadRow::Fail`], at the first bad row. After an error nothing more comes.
pub fn read_source(source_index: usize, source: &Source, on_bad_row: OnBadRow) -> Result<SourceRows, DataError> {
    let files = readers::files(&source.path)?;
    let reader = RowReader::new(source)?;
    let mut rows = SourceRows {
        source_index,
        limit: if source.limit == 0 {
            u64::MAX
        } else {
            source.limit as u64
        },
        on_bad_row,
        reader,
        files: files.into_iter(),
        open: None,
        pending: Vec::new().into_iter(),
        skipped: Skipped::default(),
        good: 0,
        done: false,
    };
    if let SourcePath::Aligned(files) = &source.path {
        rows.open = Some(readers::open_aligned(source_index, files)?);
        rows.files = Vec::new().into_iter();
    }
    // A file of the wrong kind is said before anything is read.
    for file in rows.files.as_slice() {
        drop(rows.open_file(file.clone())?);
    }
    Ok(rows)
}

/// The files of a source, in the order in which they are read.
///
/// # Errors
/// As [`read_source`].
pub fn source_files(source: &Source) -> Result<Vec<PathBuf>, DataError> {
    readers::files(&source.path)
}

/// A hash (BLAKE3) of what the files of a source hold: equal when kinds, order and bytes of the files are.
///
/// # Errors
/// When a file is missing or cannot be read.
pub fn content_fingerprint(source: &Source) -> Result<[u8; 32], DataError> {
    let mut all = blake3::Hasher::new();
    for file in readers::files(&source.path)? {
        let mut hasher = blake3::Hasher::new();
        if let Err(reason) = hasher.update_mmap_rayon(&file) {
            return Err(DataError::Unreadable { file, reason });
        }
        all.update(hasher.finalize().as_bytes());
        let kind = file.extension().unwrap_or_default().to_ascii_lowercase();
        all.update(blake3::hash(kind.as_encoded_bytes()).as_bytes());
    }
    Ok(*all.finalize().as_bytes())
}

/// The rows that were left out, by the kind of what is wrong with them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Skipped {
    /// [`RowProblem::kind`] and how often it was met.
    pub kinds: BTreeMap<&'static str, SkippedKind>,
}

/// Rows that were left out for the same kind of problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedKind {
    /// How many.
    pub rows: u64,
    /// What is wrong with the first one, and where it is.
    pub first: String,
}

impl Skipped {
    /// Counts one more row.
    pub fn add(&mut self, row: &BadRow) {
        let kind = self.kinds.entry(row.problem.kind());
        kind.or_insert_with(|| SkippedKind {
            rows: 0,
            first: row.to_string(),
        })
        .rows += 1;
    }

    /// All rows that were left out.
    pub fn rows(&self) -> u64 {
        self.kinds.values().map(|kind| kind.rows).sum()
    }
}

/// The samples of a source, in the order of files and rows.
pub struct SourceRows {
    source_index: usize,
    limit: u64,
    on_bad_row: OnBadRow,
    reader: RowReader,
    files: std::vec::IntoIter<PathBuf>,
    open: Option<Rows>,
    /// The samples of the row read last that are yet to be given.
    pending: std::vec::IntoIter<Sample>,
    skipped: Skipped,
    good: u64,
    done: bool,
}

impl SourceRows {
    /// The rows left out so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    fn open_file(&self, file: PathBuf) -> Result<Rows, DataError> {
        let origin = Origin {
            source: self.source_index,
            file: Arc::from(file),
        };
        readers::open(origin, self.reader.source.format, &self.reader.columns)
    }

    /// Rows read so far, those left out included.
    pub fn rows(&self) -> u64 {
        self.good + self.skipped.rows()
    }

    fn next_row(&mut self) -> Option<Result<Row, DataError>> {
        loop {
            if let Some(row) = self.open.as_mut().and_then(Iterator::next) {
                return Some(row);
            }
            let file = self.files.next()?;
            match self.open_file(file) {
                Ok(rows) => self.open = Some(rows),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn end(&self) -> Option<DataError> {
        let path = self.reader.source.path.to_string();
        if self.good > 0 {
            return None;
        }
        Some(match self.skipped.kinds.values().next() {
            None => DataError::NoRows { path },
            Some(kind) => DataError::NoGoodRows {
                path,
                rows: self.rows(),
                first: kind.first.clone(),
            },
        })
    }
}

impl Iterator for SourceRows {
    type Item = Result<Sample, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            if let Some(sample) = self.pending.next() {
                return Some(Ok(sample));
            }
            if self.rows() == self.limit {
                break;
            }
            let Some(row) = self.next_row() else { break };
            match row.and_then(|row| self.reader.samples(row)) {
                Ok(samples) => {
                    self.good += 1;
                    self.pending = samples.into_iter();
                }
                Err(DataError::BadRow(bad)) if self.on_bad_row == OnBadRow::Skip => self.skipped.add(&bad),
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
        if self.done {
            return None;
        }
        self.done = true;
        self.end().map(Err)
    }
}

/// Turns rows of one source into samples.
pub(crate) struct RowReader {
    source: Source,
    language: Option<String>,
    /// The columns that something is read from.
    pub(crate) columns: Vec<String>,
}

impl RowReader {
    pub(crate) fn new(source: &Source) -> Result<Self, DataError> {
        let row_fields = formats::row_fields(source.format).iter().chain(&formats::COMMON);
        let known: Vec<&str> = row_fields
            .clone()
            .chain(formats::inner_fields(source.format))
            .copied()
            .collect();
        if let Some(field) = source.fields.keys().find(|field| !known.contains(&field.as_str())) {
            return Err(DataError::UnknownField {
                source_name: source.name.clone(),
                field: field.clone(),
                format: source.format.name(),
                known: known.into_iter().map(str::to_owned).collect(),
            });
        }
        let language = match &source.lang {
            None => None,
            Some(tag) => Some(canonical(tag).map_err(|advice| DataError::Language {
                source_name: source.name.clone(),
                tag: tag.clone(),
                advice,
            })?),
        };
        let renamed = |field: &&str| source.fields.get(*field).map_or(*field, String::as_str).to_owned();
        let columns: HashSet<String> = row_fields
            .map(renamed)
            .chain(source.lang_field.clone())
            .chain(source.group_field.clone())
            .collect();
        Ok(RowReader {
            source: source.clone(),
            language,
            columns: columns.into_iter().collect(),
        })
    }

    pub(crate) fn samples(&self, row: Row) -> Result<Vec<Sample>, DataError> {
        let Row { place, values } = row;
        self.read(values, &place)
            .map_err(|problem| DataError::bad_row(place, problem))
    }

    fn read(&self, values: Map<String, Value>, place: &Place) -> Result<Vec<Sample>, RowProblem> {
        let column = |field: &str| self.source.fields.get(field).map_or(field, String::as_str).to_owned();
        let id = name(&values, &column("id"), false)?;
        let group = match (&self.source.group_field, &self.source.path) {
            (Some(field), _) => name(&values, field, true)?,
            (None, SourcePath::Aligned(_)) => Some(format!("{}\0{}", self.source.name, place.line)),
            (None, SourcePath::Files(_)) => id.clone(),
        };
        let language = match (&self.language, &self.source.lang_field) {
            (Some(language), _) => language.clone(),
            (None, Some(field)) => language(&values, field, true)?,
            (None, None) => language(&values, &column("lang"), false)?,
        };
        let instruction = self.instruction(&values);
        let contents = formats::read(self.source.format, &self.source.fields, values)?;
        let samples = contents.into_iter().map(|(named, mut content)| {
            normalize(&self.source.normalize, &mut content);
            Sample {
                content,
                place: self.place(place, named.as_deref()),
                language: named.unwrap_or_else(|| language.clone()),
                group: group.clone(),
                id: id.clone(),
                instruction: instruction.clone(),
            }
        });
        Ok(samples.collect())
    }

    /// Instruction and input of an `alpaca` row, where rows are built out of it.
    fn instruction(&self, values: &Map<String, Value>) -> Option<(String, String)> {
        if self.source.build.is_empty() || self.source.format != Format::Alpaca {
            return None;
        }
        let text = |field: &str| {
            let column = self.source.fields.get(field).map_or(field, String::as_str);
            let text = values.get(column).and_then(Value::as_str).unwrap_or_default();
            let changes = self.source.normalize.iter();
            changes.fold(text.to_owned(), |text, &change| normalize_text(change, &text))
        };
        Some((text("instruction"), text("input")))
    }

    /// Where a text of a row is: of line-aligned files, in that of its language.
    fn place(&self, row: &Place, language: Option<&str>) -> Place {
        let file = match (&self.source.path, language) {
            (SourcePath::Aligned(files), Some(language)) => files
                .iter()
                .find(|(tag, _)| canonical(tag).is_ok_and(|tag| tag == language)),
            _ => None,
        };
        match file {
            Some((_, file)) => Place {
                file: Arc::from(file.as_path()),
                ..row.clone()
            },
            None => row.clone(),
        }
    }
}

/// A text or whole number that names something; `None` when it is absent or empty and need not be there.
fn name(values: &Map<String, Value>, field: &str, required: bool) -> Result<Option<String>, RowProblem> {
    let name = match values.get(field) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) if !number.is_f64() => number.to_string(),
        Some(other) => {
            let (found, expected) = (formats::kind(other), "text or a whole number");
            return Err(RowProblem::WrongType {
                field: field.to_owned(),
                found,
                expected,
            });
        }
    };
    match name.is_empty() {
        true if required => Err(absent(values, field)),
        empty => Ok((!empty).then_some(name)),
    }
}

/// The language that a row names.
fn language(values: &Map<String, Value>, field: &str, required: bool) -> Result<String, RowProblem> {
    let tag = match values.get(field) {
        None | Some(Value::Null) => "",
        Some(Value::String(tag)) => tag,
        Some(other) => {
            let (found, expected) = (formats::kind(other), "a language tag such as \"sw\"");
            return Err(RowProblem::WrongType {
                field: field.to_owned(),
                found,
                expected,
            });
        }
    };
    match tag {
        "" if required => Err(absent(values, field)),
        "" => Ok(UNDETERMINED.to_owned()),
        _ => canonical(tag).map_err(|advice| RowProblem::Language {
            field: field.to_owned(),
            found: tag.to_owned(),
            advice,
        }),
    }
}

fn absent(values: &Map<String, Value>, field: &str) -> RowProblem {
    RowProblem::MissingField {
        field: field.to_owned(),
        found: values.keys().cloned().collect(),
        expected: vec![field.to_owned()],
        advice: "Fill it in, or correct `lang_field` or `group_field` of the source.".to_owned(),
    }
}
