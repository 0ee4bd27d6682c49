//! Answers: dealt to the processes, kept in files, and taken from there when they are there already.
//!
//! A file has a first line that says what the answers are of, and one line for each answer, in the order in which they were given.
//! A last line that was cut by an interruption is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use interlingua_checkpoints::atomic::write_atomically;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use interlingua_recipes::Task;

use super::work::{Answer, Work};
use crate::error::TrainError;
use crate::models::Model;
use crate::train::ranks::Deal;

/// Where answers are kept, and of what model they are.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The folder: one file for each task.
    pub folder: PathBuf,
    /// What tells the model from others; `None`: whatever model the files are of.
    pub model: Option<String>,
}

/// The first line of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    /// The task.
    pub(super) task: Task,
    /// How many answers there will be.
    items: usize,
    /// What tells the model from others.
    model: String,
    /// What else the answers depend on.
    fingerprint: String,
}

impl Answers {
    /// The file of a task.
    pub fn file(&self, task: &str) -> PathBuf {
        let plain = |sign: char| {
            if sign.is_alphanumeric() || "-_.".contains(sign) {
                sign
            } else {
                '_'
            }
        };
        self.folder
            .join(format!("{}.jsonl", task.chars().map(plain).collect::<String>()))
    }
}

/// What tells a model with its adapters from others: a hash of their files.
///
/// # Errors
/// When a file cannot be read.
pub fn model_fingerprint(folders: &[PathBuf], how: &str) -> Result<String, TrainError> {
    let mut all = blake3::Hasher::new();
    for folder in folders {
        let entries = std::fs::read_dir(folder).map_err(|source| TrainError::io(folder, source))?;
        let mut files: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
        files.retain(|file| {
            file.extension()
                .is_some_and(|ending| ending == "safetensors" || ending == "json")
        });
        files.sort();
        for file in files {
            let mut hasher = blake3::Hasher::new();
            hasher
                .update_mmap_rayon(&file)
                .map_err(|source| TrainError::io(&file, source))?;
            all.update(hasher.finalize().as_bytes());
        }
        all.update(b"/");
    }
    all.update(how.as_bytes());
    Ok(all.finalize().to_hex().to_string())
}

fn header(task: &Task, work: &dyn Work, kept: &Answers) -> Header {
    Header {
        task: task.clone(),
        items: work.items(),
        model: kept.model.clone().unwrap_or_default(),
        fingerprint: work.fingerprint().to_hex().to_string(),
    }
}

/// Checks that the answers of a task, where some are kept, are of it.
pub(super) fn check(task: &Task, work: &dyn Work, kept: &Answers) -> Result<(), TrainError> {
    read(&kept.file(&task.name), &header(task, work, kept), kept.model.is_some()).map(drop)
}

/// The answers to all items of a task, in the order of their numbers: those of the file, where there is one, and the model's to the
/// rest.
///
/// # Errors
/// When the file belongs to another model or task, lacks answers and there is no model, or cannot be read or written.
pub(super) fn answered(
    task: &Task,
    work: &dyn Work,
    model: Option<&Model>,
    kept: Option<&Answers>,
    deal: Deal,
) -> Result<Vec<Answer>, TrainError> {
    let mut known = BTreeMap::new();
    let mut file = None;
    if let Some(kept) = kept.filter(|_| deal.is_first()) {
        let header = header(task, work, kept);
        let path = kept.file(&task.name);
        known = read(&path, &header, kept.model.is_some())?;
        if model.is_some() {
            file = Some(open(&path, &header, &known)?);
        }
    }
    let said: BTreeSet<usize> = decode(&deal.from_first(encode(&known.keys().collect::<Vec<_>>())?))?;
    let open: Vec<usize> = (0..work.items()).filter(|number| !said.contains(number)).collect();
    let Some(model) = model else {
        return match open.first() {
            None => Ok(known.into_values().collect()),
            Some(_) => Err(TrainError::Setup(format!(
                "{} has {} of the {} answers of the task `{}`. Evaluate with --save-answers first, until it is done.",
                kept.map_or_else(PathBuf::new, |kept| kept.file(&task.name)).display(),
                known.len(),
                work.items(),
                task.name
            ))),
        };
    };
    let chunks: Vec<&[usize]> = open.chunks(work.at_a_time()).collect();
    for (round, chunks) in chunks.chunks(deal.shares()).enumerate() {
        let mut own = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            if deal.is_mine(round * deal.shares() + index) {
                own.extend(work.answer(model, chunk)?);
            }
        }
        for said in deal.gather(encode(&own)?) {
            let answers: Vec<Answer> = decode(&said)?;
            if let Some((file, path)) = &mut file {
                let mut lines = Vec::new();
                for answer in &answers {
                    lines.extend(encode(answer)?);
                    lines.push(b'\n');
                }
                file.write_all(&lines).map_err(|source| TrainError::io(path, source))?;
            }
            known.extend(answers.into_iter().map(|answer| (answer.number, answer)));
        }
    }
    if let Some((file, path)) = file {
        file.sync_all().map_err(|source| TrainError::io(&path, source))?;
    }
    decode(&deal.from_first(encode(&known.into_values().collect::<Vec<_>>())?))
}

fn decode<T: DeserializeOwned>(said: &[u8]) -> Result<T, TrainError> {
    serde_json::from_slice(said).map_err(|source| TrainError::Encode {
        what: "answers",
        source,
    })
}

fn encode(what: &impl Serialize) -> Result<Vec<u8>, TrainError> {
    serde_json::to_vec(what).map_err(|source| TrainError::Encode {
        what: "answers",
        source,
    })
}

/// The answers of a file; none when it is not there.
fn read(path: &Path, expected: &Header, same_model: bool) -> Result<BTreeMap<usize, Answer>, TrainError> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let Some((header, known)) = read_lines(path)? else {
        return Ok(BTreeMap::new());
    };
    let is_same = header.task.name == expected.task.name
        && header.fingerprint == expected.fingerprint
        && header.items == expected.items;
    if !is_same {
        return Err(wrong(
            path,
            1,
            "these are answers to other items, prompts or settings than the task has",
        ));
    }
    if same_model && header.model != expected.model {
        return Err(wrong(path, 1, "these are answers of another model or other adapters"));
    }
    Ok(known)
}

/// The answers of a file, whatever they are of, in the order of their numbers.
pub(super) fn read_any(path: &Path) -> Result<(Header, Vec<Answer>), TrainError> {
    let (header, known) = read_lines(path)?.ok_or_else(|| wrong(path, 1, "this is no file of answers"))?;
    Ok((header, known.into_values().collect()))
}

/// The first line of a file, and its answers by their numbers.
type Kept = (Header, BTreeMap<usize, Answer>);

/// What a file says; nothing when it has no whole line.
fn read_lines(path: &Path) -> Result<Option<Kept>, TrainError> {
    let mut text = std::fs::read(path).map_err(|source| TrainError::io(path, source))?;
    // What was not written to its end is answered again.
    text.truncate(text.iter().rposition(|sign| *sign == b'\n').map_or(0, |end| end + 1));
    let mut lines = text.split_inclusive(|sign| *sign == b'\n').enumerate();
    let Some((_, first)) = lines.next() else {
        return Ok(None);
    };
    let header: Header = serde_json::from_slice(first).map_err(|_| wrong(path, 1, "this is no file of answers"))?;
    let mut known = BTreeMap::new();
    for (index, line) in lines {
        let answer: Answer = serde_json::from_slice(line)
            .map_err(|error| wrong(path, index + 1, &format!("this is no answer: {error}")))?;
        if answer.number >= header.items {
            return Err(wrong(path, index + 1, "there is no item of this number"));
        }
        known.insert(answer.number, answer);
    }
    Ok(Some((header, known)))
}

fn wrong(path: &Path, line: usize, why: &str) -> TrainError {
    TrainError::Setup(format!(
        "{}:{line}: {why}. Keep answers in another folder, or remove the file.",
        path.display()
    ))
}

/// The file to go on with: what is known is written anew, so that nothing cut stands in its middle.
fn open(path: &Path, header: &Header, known: &BTreeMap<usize, Answer>) -> Result<(File, PathBuf), TrainError> {
    let failed = |source| TrainError::io(path, source);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut text = encode(header)?;
    text.push(b'\n');
    for answer in known.values() {
        text.extend(encode(answer)?);
        text.push(b'\n');
    }
    write_atomically(path, &text)?;
    let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
    Ok((file, path.to_owned()))
}
