//! Which rows of a micro-batch belong to which language, for adapters that only some rows pass through.

use std::ops::Range;
use std::sync::OnceLock;

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::ops::dropout::Dropout;

/// The rows of a micro-batch by language.
#[derive(Debug)]
pub struct LanguageRows {
    tokens: usize,
    languages: Vec<RowsOfLanguage>,
}

/// The rows of one language, in order.
#[derive(Debug)]
pub struct RowsOfLanguage {
    language: String,
    rows: Vec<u32>,
    index: OnceLock<Tensor<1, Int>>,
}

/// The rows that an adapter is for.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// All of them.
    All,
    /// Those of a language.
    Of(&'a RowsOfLanguage),
}

impl LanguageRows {
    /// Rows of sequences that begin at `boundaries` (first 0, last the number of tokens), each in its language.
    pub fn new(boundaries: &[usize], languages: &[&str]) -> Self {
        let mut found: Vec<RowsOfLanguage> = Vec::new();
        for (range, language) in boundaries.windows(2).zip(languages) {
            let rows = range[0] as u32..range[1] as u32;
            match found.iter_mut().find(|known| known.language == *language) {
                Some(known) => known.rows.extend(rows),
                None => found.push(RowsOfLanguage {
                    language: (*language).to_owned(),
                    rows: rows.collect(),
                    index: OnceLock::new(),
                }),
            }
        }
        Self {
            tokens: boundaries.last().copied().unwrap_or(0),
            languages: found,
        }
    }

    /// The rows of a run of tokens, counted from its start.
    pub fn tile(&self, tokens: Range<usize>) -> Self {
        let (start, end) = (tokens.start as u32, tokens.end as u32);
        let within = |known: &RowsOfLanguage| {
            let rows: Vec<u32> = known
                .rows
                .iter()
                .filter(|row| (start..end).contains(row))
                .map(|row| row - start)
                .collect();
            (!rows.is_empty()).then(|| RowsOfLanguage {
                language: known.language.clone(),
                rows,
                index: OnceLock::new(),
            })
        };
        Self {
            tokens: tokens.len(),
            languages: self.languages.iter().filter_map(within).collect(),
        }
    }

    /// The rows of gathered tokens, counted as they stand there.
    pub fn of_rows(&self, rows: &[u32]) -> Self {
        let within = |known: &RowsOfLanguage| {
            let places = (0..).zip(rows).filter(|(_, row)| known.rows.binary_search(row).is_ok());
            let rows: Vec<u32> = places.map(|(place, _)| place).collect();
            (!rows.is_empty()).then(|| RowsOfLanguage {
                language: known.language.clone(),
                rows,
                index: OnceLock::new(),
            })
        };
        Self {
            tokens: rows.len(),
            languages: self.languages.iter().filter_map(within).collect(),
        }
    }

    /// The rows of an adapter that is for a language, or for all rows when it names none; `None` when no row is its own.
    /// Without knowing the languages of rows, an adapter that is for one language has none.
    pub fn of<'a>(languages: Option<&'a Self>, language: Option<&str>) -> Option<Rows<'a>> {
        let Some(language) = language else {
            return Some(Rows::All);
        };
        let languages = languages?;
        let found = languages.languages.iter().find(|known| known.language == language)?;
        Some(if found.rows.len() == languages.tokens {
            Rows::All
        } else {
            Rows::Of(found)
        })
    }
}

impl RowsOfLanguage {
    /// Their numbers.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    fn index(&self, device: &Device) -> Tensor<1, Int> {
        self.index.get_or_init(|| row_index(&self.rows, device)).clone()
    }
}

impl Rows<'_> {
    /// Whether they are all.
    pub fn are_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// These rows of x `[tokens, features]`.
    pub fn select(&self, x: &Tensor<2>) -> Tensor<2> {
        match self {
            Self::All => x.clone(),
            Self::Of(language) => x.clone().select(0, language.index(&x.device())),
        }
    }

    /// y `[tokens, features]` with something added to these rows, `[rows, features]`.
    pub fn add(&self, y: Tensor<2>, change: Tensor<2>) -> Tensor<2> {
        match self {
            Self::All => y + change,
            Self::Of(language) => {
                let index = language.index(&y.device());
                y.select_assign(0, index, change, IndexingUpdateOp::Add)
            }
        }
    }

    /// A dropout over all tokens for these rows: each token keeps its mask.
    pub fn dropout(&self, dropout: Option<Dropout>) -> Option<Dropout> {
        match self {
            Self::All => dropout,
            Self::Of(language) => dropout.map(|dropout| Dropout {
                token_keys: language
                    .rows
                    .iter()
                    .map(|row| dropout.token_keys[*row as usize])
                    .collect(),
                ..dropout
            }),
        }
    }
}

/// Row numbers as what `select` takes.
pub fn row_index(rows: &[u32], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    let length = rows.len();
    Tensor::from_data(TensorData::new(rows, [length]), &device.clone().without_autodiff())
}
