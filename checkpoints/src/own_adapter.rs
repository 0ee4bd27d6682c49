//! What PEFT's layout has no place for: adapters of other kinds (`adapter.safetensors`), and what is to be known about an adapter
//! besides its tensors (`interlingua.json`).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic::write_atomically;
use crate::dtype::HostTensor;
use crate::error::CheckpointError;
use crate::packed::Quantization;
use crate::peft::{AdapterFolder, CONFIG};
use crate::tensors::TensorsFile;
use crate::write::{pretty, write_tensors};

/// Name of the description.
pub const DESCRIPTION: &str = "interlingua.json";

/// Name of the weights.
const WEIGHTS: &str = "adapter.safetensors";

/// `interlingua.json`: what an adapter folder is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Kind of the adapter as recipes call it.
    pub kind: String,
    /// The base, as a path or hub id.
    pub base_model: String,
    /// The languages that have a copy, each in the folder of its name. Empty: the adapter is in this folder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// The frozen adapters that it was trained on top of, the lowest one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub under: Vec<Below>,
    /// How the base was quantised while the adapter was trained; absent: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// steering: N of the hidden states that the vector is added to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// steering: what the vector is multiplied by. A number that may be changed by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// bottleneck: hidden size divided by the inner dimension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduction: Option<usize>,
    /// bottleneck: dropout while training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
}

/// An adapter that another one stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Below {
    /// Its folder, as the recipe named it.
    pub path: PathBuf,
    /// The language whose rows it was for; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lang: Option<String>,
}

impl Description {
    /// That of a folder; none where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is something else.
    pub fn read(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        let path = folder.join(DESCRIPTION);
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(|source| CheckpointError::io(&path, source))?;
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| CheckpointError::config(&path, format!("this does not describe an adapter: {error}")))
    }

    /// Writes it into a folder.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        std::fs::create_dir_all(folder).map_err(|source| CheckpointError::io(folder, source))?;
        let json = serde_json::to_value(self)
            .map_err(|error| CheckpointError::Other(format!("{DESCRIPTION} cannot be written: {error}")))?;
        write_atomically(&folder.join(DESCRIPTION), pretty(&json)?.as_bytes())
    }
}

/// An open folder of a kind that PEFT lacks.
#[derive(Debug)]
pub struct OwnAdapter {
    path: PathBuf,
    description: Description,
    file: TensorsFile,
}

impl OwnAdapter {
    /// What the folder says about itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file.shape(name)
    }

    /// The numbers of a tensor.
    ///
    /// # Errors
    /// When it is not there, or has another shape.
    pub fn read_f32(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let advice = format!(
            "the adapter was trained on another model ({})",
            self.description.base_model
        );
        self.file
            .read_f32(name, expected, &advice)?
            .ok_or_else(|| CheckpointError::MissingTensor {
                folder: self.path.clone(),
                tensor: name.to_owned(),
                advice: format!("expected one of shape {expected:?}; {advice}, or the file is not whole"),
            })
    }

    /// Writes a folder.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(
        path: &Path,
        description: &Description,
        tensors: Vec<(String, HostTensor)>,
        readme: &str,
    ) -> Result<(), CheckpointError> {
        std::fs::create_dir_all(path).map_err(|source| CheckpointError::io(path, source))?;
        write_tensors(&path.join(WEIGHTS), &tensors.into_iter().collect())?;
        write_atomically(&path.join("README.md"), readme.as_bytes())?;
        description.write(path)
    }
}

/// An open adapter folder of any kind.
#[derive(Debug)]
pub enum AnyAdapter {
    /// In PEFT's layout.
    Peft(AdapterFolder),
    /// Of a kind that PEFT lacks.
    Own(OwnAdapter),
}

impl AnyAdapter {
    /// Opens a folder: one adapter without a language, or a copy for each language.
    ///
    /// # Errors
    /// When it is no adapter's, or cannot be read.
    pub fn open(path: &Path) -> Result<Vec<(Option<String>, Self)>, CheckpointError> {
        let languages = match Description::read(path)? {
            Some(description) if !path.join(CONFIG).is_file() => description.languages,
            _ => Vec::new(),
        };
        if languages.is_empty() {
            return Ok(vec![(None, Self::open_one(path)?)]);
        }
        let copy = |language: String| {
            let adapter = Self::open_one(&path.join(&language))?;
            Ok((Some(language), adapter))
        };
        languages.into_iter().map(copy).collect()
    }

    fn open_one(path: &Path) -> Result<Self, CheckpointError> {
        let description = if path.join(CONFIG).is_file() {
            None
        } else {
            Description::read(path)?
        };
        let Some(description) = description else {
            return AdapterFolder::open(path).map(Self::Peft);
        };
        let weights = path.join(WEIGHTS);
        if !weights.is_file() {
            return Err(CheckpointError::MissingFile {
                folder: path.to_owned(),
                file: WEIGHTS.to_owned(),
                advice: format!("a folder with {DESCRIPTION} has one; copy the whole folder"),
            });
        }
        Ok(Self::Own(OwnAdapter {
            path: path.to_owned(),
            description,
            file: TensorsFile::open(&weights)?,
        }))
    }

    /// Its kind as recipes call it.
    pub fn kind(&self) -> &str {
        match self {
            Self::Peft(folder) if folder.config().use_dora => "dora",
            Self::Peft(_) => "lora",
            Self::Own(folder) => &folder.description.kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(kind: &str) -> Description {
        Description {
            kind: kind.to_owned(),
            base_model: "base".to_owned(),
            layer: Some(3),
            scale: Some(0.5),
            ..Description::default()
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = HostTensor::from_f32(vec![3], &[1.0, 2.0, 3.0]);
        OwnAdapter::write(
            folder.path(),
            &description("steering"),
            vec![("v".to_owned(), tensor)],
            "readme",
        )
        .unwrap();
        let mut read = AnyAdapter::open(folder.path()).unwrap();
        let Some((None, AnyAdapter::Own(read))) = read.pop() else {
            panic!("one adapter was written");
        };
        assert_eq!(read.description(), &description("steering"));
        assert_eq!(read.read_f32("v", &[3]).unwrap(), [1.0, 2.0, 3.0]);
        let error = read.read_f32("v", &[4]).unwrap_err().to_string();
        assert!(error.contains("another model (base)"), "{error}");
        assert!(read.read_f32("w", &[3]).is_err());
    }

    #[test]
    fn each_language_has_a_folder_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let languages = ["en", "sw"].map(str::to_owned).to_vec();
        let top = Description {
            languages: languages.clone(),
            ..description("steering")
        };
        top.write(folder.path()).unwrap();
        let tensor = || vec![("v".to_owned(), HostTensor::from_f32(vec![1], &[1.0]))];
        OwnAdapter::write(&folder.path().join("en"), &description("steering"), tensor(), "").unwrap();
        let error = AnyAdapter::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("sw"), "{error}");
        OwnAdapter::write(&folder.path().join("sw"), &description("steering"), tensor(), "").unwrap();
        let read = AnyAdapter::open(folder.path()).unwrap();
        let found: Vec<_> = read.into_iter().filter_map(|(language, _)| language).collect();
        assert_eq!(found, languages);
    }
}
