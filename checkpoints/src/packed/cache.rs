//! Quantised weights kept on disk, so that the next start need not quantise them again.
//!
//! One safetensors file for a base and a scheme, in bitsandbytes' layout, complete or absent. Its name and its metadata carry
//! a key of everything it was made from, and its metadata a hash of everything in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype as Stored;
use serde_json::{Map, Value, json};

use super::stored::{self, Part};
use super::{Packed, Scheme};
use crate::atomic::write_through;
use crate::error::CheckpointError;
use crate::model_folder::ModelFolder;
use crate::tensors::TensorsFile;

/// Changes with the layout, and with anything that quantises differently.
const VERSION: &str = "1";

/// Entries of the file's metadata.
const KEY: &str = "interlingua.key";
const HASH: &str = "interlingua.blake3";

/// Stands for the hash until it is known.
const UNKNOWN: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The quantised weights of a model folder in a file.
#[derive(Debug)]
pub struct PackedCache {
    file: Arc<TensorsFile>,
}

impl PackedCache {
    /// Opens the quantised weights of a folder, or quantises the named matrices and keeps them. None when they cannot be kept:
    /// `say` gets the reason, in a sentence for the user, and likewise that a damaged file is made again.
    ///
    /// # Errors
    /// When the weights themselves cannot be read or quantised.
    pub fn open_or_make(
        folder: &Path,
        model: &ModelFolder,
        scheme: Scheme,
        tensors: &[(String, [usize; 2])],
        say: &mut dyn FnMut(&str),
    ) -> Result<Option<Self>, CheckpointError> {
        let key = key(model, scheme, tensors)?;
        let path = folder.join(format!("{key}.safetensors"));
        let found = |say: &mut dyn FnMut(&str)| {
            Self::open(&path, &key).unwrap_or_else(|error| {
                let reason = match error {
                    CheckpointError::Damaged { problem, .. } => format!("{}: {problem}", path.display()),
                    other => other.to_string(),
                };
                say(&format!(
                    "{reason}; the quantised weights that were kept there are damaged, and they are made again"
                ));
                None
            })
        };
        if let Some(cache) = found(say) {
            return Ok(Some(cache));
        }
        let not_kept =
            |error: &CheckpointError| format!("the quantised weights are not kept for the next start: {error}");
        if let Err(source) = std::fs::create_dir_all(folder) {
            say(&not_kept(&CheckpointError::io(folder, source)));
            return Ok(None);
        }
        // Another run that makes the same file is waited for. Where files cannot be locked, both write the same bytes.
        let lock = File::create(folder.join(format!("{key}.lock"))).and_then(|lock| lock.lock().map(|()| lock));
        if lock.is_ok()
            && let Some(cache) = found(&mut |_| ())
        {
            return Ok(Some(cache));
        }
        match write(&path, &key, model, scheme, tensors) {
            Ok(()) => {}
            Err(Failure::Weights(error)) => return Err(error),
            Err(Failure::Disk(error)) => {
                say(&not_kept(&error));
                return Ok(None);
            }
        }
        let file = Arc::new(TensorsFile::open(&path)?);
        Ok(Some(Self { file }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// A matrix, with its codes in the file; [`Packed::in_memory`] brings them in.
    ///
    /// # Errors
    /// When the file has no such matrix, or one of another shape.
    pub fn read(&self, name: &str, shape: [usize; 2]) -> Result<Packed, CheckpointError> {
        let files = self.files();
        let header = stored::header(name, &files)?.ok_or_else(|| CheckpointError::MissingTensor {
            folder: self.path().to_owned(),
            tensor: name.to_owned(),
            advice: "delete this file, it is made again".into(),
        })?;
        if header.shape != shape {
            return Err(CheckpointError::Shape {
                path: self.path().to_owned(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: header.shape.to_vec(),
                advice: "delete this file, it is made again".into(),
            });
        }
        stored::read(name, &header, &files)
    }

    fn files<'a>(&'a self) -> impl Fn(&str) -> Option<&'a Arc<TensorsFile>> {
        |name| self.file.stored(name).map(|_| &self.file)
    }

    /// Opens a file and checks all of it; none when there is none.
    fn open(path: &Path, key: &str) -> Result<Option<Self>, CheckpointError> {
        if !path.is_file() {
            return Ok(None);
        }
        let file = TensorsFile::open(path)?;
        let damaged = |problem: &str| CheckpointError::Damaged {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        if file.note(KEY) != Some(key) {
            return Err(damaged("its key is another one"));
        }
        let noted = file.note(HASH).ok_or_else(|| damaged("it has no hash"))?;
        let header = String::from_utf8_lossy(&file.header()[8..]).replacen(noted, UNKNOWN, 1);
        let mut names: Vec<String> = file.names().collect();
        names.sort();
        let hashes = names.into_iter().map(|name| {
            let hash = hash(file.bytes(&name).unwrap_or_default());
            file.forget(file.range(&name).unwrap_or_default());
            (name, hash)
        });
        if combined(&header, &hashes.collect()) != noted {
            return Err(damaged("its content is not what was written"));
        }
        Ok(Some(Self { file: Arc::new(file) }))
    }
}

/// Everything the file depends on: the weights with their sizes and times of change, what of them is quantised, and how.
fn key(model: &ModelFolder, scheme: Scheme, tensors: &[(String, [usize; 2])]) -> Result<String, CheckpointError> {
    let mut hasher = blake3::Hasher::new();
    let stamp = model.stamp()?;
    hasher.update(format!("{VERSION} {} {stamp} {scheme} {tensors:?}", model.fingerprint()).as_bytes());
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

fn hash(bytes: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update_rayon(bytes).finalize()
}

fn combined(header: &str, hashes: &BTreeMap<String, blake3::Hash>) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header.as_bytes());
    hashes.values().for_each(|hash| {
        hasher.update(hash.as_bytes());
    });
    hasher.finalize().to_hex().to_string()
}

enum Failure {
    /// The weights cannot be read or quantised.
    Weights(CheckpointError),
    /// The file cannot be written.
    Disk(CheckpointError),
}

/// Quantises and writes tensor by tensor. Sizes are known before, so that every part has its place.
fn write(
    path: &Path,
    key: &str,
    model: &ModelFolder,
    scheme: Scheme,
    tensors: &[(String, [usize; 2])],
) -> Result<(), Failure> {
    let parts: Vec<Vec<Part>> = tensors
        .iter()
        .map(|(name, shape)| stored::parts(name, *shape, scheme))
        .collect();
    let (header, places) = header(key, &parts);
    let start = 8 + header.len() as u64;
    let mut hashes = BTreeMap::new();
    let mut failure = None;
    let written = write_through(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for ((name, shape), parts) in tensors.iter().zip(&parts) {
            let packed = model.pack(name, *shape, scheme).map_err(|error| {
                failure = Some(error);
                std::io::Error::from(std::io::ErrorKind::InvalidData)
            })?;
            for part in parts {
                let bytes = part.of(&packed);
                file.seek(SeekFrom::Start(start + places[&part.name]))?;
                file.write_all(&bytes)?;
                hashes.insert(part.name.clone(), hash(&bytes));
            }
        }
        let at = header.find(UNKNOWN).unwrap_or_default();
        file.seek(SeekFrom::Start(8 + at as u64))?;
        file.write_all(combined(&header, &hashes).as_bytes())
    });
    match failure {
        Some(error) => Err(Failure::Weights(error)),
        None => written.map_err(Failure::Disk),
    }
}

/// The header with a hash to be filled in, and where in the data each part begins.
fn header(key: &str, parts: &[Vec<Part>]) -> (String, BTreeMap<String, u64>) {
    let mut order: Vec<&Part> = parts.iter().flatten().collect();
    // Readers want numbers of four bytes at multiples of four: they come first.
    order.sort_by_key(|part| part.format != Stored::F32);
    let mut header = Map::new();
    let metadata = json!({"format": "pt", KEY: key, HASH: UNKNOWN});
    header.insert("__metadata__".into(), metadata);
    let mut places = BTreeMap::new();
    let mut offset = 0;
    for part in order {
        let end = offset + part.bytes() as u64;
        let format = format!("{:?}", part.format);
        let entry = json!({"dtype": format, "shape": part.shape, "data_offsets": [offset, end]});
        header.insert(part.name.clone(), entry);
        places.insert(part.name.clone(), offset);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    let padding = header.len().next_multiple_of(8) - header.len();
    header.push_str(&" ".repeat(padding));
    (header, places)
}
