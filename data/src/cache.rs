//! Where tokenised data is kept between runs: one file per source, named after the hash of all it depends on.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use interlingua_recipes::{BadRow, Source};
use tempfile::NamedTempFile;

use crate::error::DataError;
use crate::source::content_fingerprint;
use crate::tokenize::SampleTokenizer;
use crate::tokenized_file::{Info, TokenizedFile, TokenizedSample, Writer};

/// Raised whenever the code gives other tokens for the same rows, so that older files are not read any more.
const VERSION: u32 = 3;

/// The folder of the cache: `$INTERLINGUA_CACHE`, else `$XDG_CACHE_HOME/interlingua`, else `~/.cache/interlingua`; without a home,
/// a folder in the system's folder for temporary files.
pub fn default_folder() -> PathBuf {
    let path = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    path("INTERLINGUA_CACHE")
        .or_else(|| path("XDG_CACHE_HOME").map(|folder| folder.join("interlingua")))
        .or_else(|| path("HOME").map(|home| home.join(".cache").join("interlingua")))
        .unwrap_or_else(|| std::env::temp_dir().join("interlingua"))
}

/// The file that keeps a source as tokens. Equal when the rows, how they are read and how they are tokenised are; where rows are
/// built, the seed too.
pub(crate) fn file_of(
    folder: &Path,
    source: &Source,
    on_bad_row: BadRow,
    files: &[String],
    tokenizer: &SampleTokenizer,
    seed: u64,
) -> Result<PathBuf, DataError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&VERSION.to_le_bytes());
    hasher.update(&content_fingerprint(source)?);
    // The names of the files are kept for messages, so they belong to what is kept.
    hasher.update(format!("{source:?} {on_bad_row:?} {files:?}").as_bytes());
    hasher.update(&tokenizer.fingerprint(source.format));
    if !source.build.is_empty() {
        hasher.update(&seed.to_le_bytes());
    }
    Ok(folder.join(format!("{}.tokens", hasher.finalize().to_hex())))
}

/// Opens a file of the cache; none when it is not there, or damaged and now removed.
pub(crate) fn open(path: &Path) -> Result<Option<TokenizedFile>, DataError> {
    match TokenizedFile::open(path) {
        Ok(Some(file)) => Ok(Some(file)),
        Ok(None) => {
            // Another process may have replaced or removed it in the meantime; writing it again settles either.
            let _ = std::fs::remove_file(path);
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(reason) => Err(DataError::Cache {
            path: path.to_owned(),
            reason,
        }),
    }
}

/// A file of the cache being written: under another name until it is complete, so that it is whole or not there.
pub(crate) struct Entry {
    path: PathBuf,
    writer: Writer<BufWriter<NamedTempFile>>,
}

impl Entry {
    pub(crate) fn new(path: &Path) -> Result<Self, DataError> {
        let failed = |reason| DataError::Cache {
            path: path.to_owned(),
            reason,
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        let file = NamedTempFile::new_in(folder).map_err(failed)?;
        let writer = Writer::new(BufWriter::with_capacity(1 << 20, file)).map_err(failed)?;
        Ok(Entry {
            path: path.to_owned(),
            writer,
        })
    }

    pub(crate) fn push(&mut self, sample: &TokenizedSample) -> Result<(), DataError> {
        self.writer.push(sample).map_err(|reason| DataError::Cache {
            path: self.path.clone(),
            reason,
        })
    }

    /// Puts the complete file in its place and opens it.
    pub(crate) fn finish(self, info: &Info) -> Result<TokenizedFile, DataError> {
        let failed = |reason| DataError::Cache {
            path: self.path.clone(),
            reason,
        };
        let buffer = self.writer.finish(info).map_err(failed)?;
        let file = buffer.into_inner().map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&self.path).map_err(|error| failed(error.error))?;
        if let Some(folder) = self.path.parent() {
            // Makes the new name last through a power cut; not every file system can, and the next run would only tokenise again.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        open(&self.path)?.ok_or_else(|| failed(io::Error::other("the file that was just written reads back damaged")))
    }
}
