//! Finds a model: a folder, or a hub id in the local Hugging Face cache; what is not there is fetched when online.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::CheckpointError;
#[cfg(feature = "hub")]
use crate::fetch::fetch;
use crate::model_folder::INDEX;

/// Where models come from: what the environment says about the Hugging Face hub, as `huggingface_hub` reads it.
#[derive(Clone, PartialEq)]
pub struct Hub {
    /// The cache: `HF_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub` or `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// The server: `HF_ENDPOINT`, or the hub itself.
    pub endpoint: String,
    /// `HF_TOKEN`, or what `hf auth login` left beside the cache.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`.
    pub offline: bool,
}

/// The folder of a model: `id_or_path` itself when it is one, else the snapshot of a hub id.
///
/// # Errors
/// When there is no such folder; when the id is not in the cache and cannot be fetched.
pub fn resolve(id_or_path: &str) -> Result<PathBuf, CheckpointError> {
    Hub::from_environment(|name| std::env::var(name).ok()).resolve(id_or_path)
}

/// The folder of a model's config: as [`resolve`], but without its weights where they would have to be fetched.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_config(id_or_path: &str) -> Result<PathBuf, CheckpointError> {
    Hub::from_environment(|name| std::env::var(name).ok()).find(id_or_path, false)
}

impl Hub {
    /// Reads the environment through `variable`.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let home = || PathBuf::from(variable("HOME").unwrap_or_default());
        let xdg = || variable("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
        let hf_home = variable("HF_HOME").map_or_else(|| xdg().join("huggingface"), PathBuf::from);
        let token_file = variable("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), PathBuf::from);
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        let is_on = |name: &str| {
            variable(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
        };
        Self {
            cache: variable("HF_HUB_CACHE").map_or_else(|| hf_home.join("hub"), PathBuf::from),
            endpoint: variable("HF_ENDPOINT")
                .unwrap_or("https://huggingface.co".into())
                .trim_end_matches('/')
                .into(),
            token: token
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
        }
    }

    /// As [`resolve`], with the cache and server of this hub.
    ///
    /// # Errors
    /// As [`resolve`].
    pub fn resolve(&self, id_or_path: &str) -> Result<PathBuf, CheckpointError> {
        self.find(id_or_path, true)
    }

    /// The folder of a model, its weights included or not.
    fn find(&self, id_or_path: &str, weights: bool) -> Result<PathBuf, CheckpointError> {
        let path = Path::new(id_or_path);
        if path.is_dir() {
            return Ok(path.to_owned());
        }
        if path.is_file() {
            return Err(CheckpointError::NotFound(format!(
                "{id_or_path}: this is a file; name the folder of the model, the one with config.json in it"
            )));
        }
        if !is_hub_id(id_or_path)
            || path
                .parent()
                .is_some_and(|parent| parent != Path::new("") && parent.is_dir())
        {
            return Err(CheckpointError::NotFound(format!(
                "{id_or_path}: there is no such folder; give the folder of a model in Hugging Face's layout, or a hub \
                 id such as Qwen/Qwen2-1.5B"
            )));
        }
        match self.snapshot(id_or_path) {
            Some(snapshot) if self.offline || !weights || is_whole(&snapshot) => Ok(snapshot),
            _ if self.offline => Err(CheckpointError::NotFound(format!(
                "{id_or_path}: there is no such folder, and no model of this id in the cache {}; HF_HUB_OFFLINE or \
                 TRANSFORMERS_OFFLINE forbids to fetch it: unset them, or run `hf download {id_or_path}` on a machine \
                 with network and copy the cache",
                self.cache.display()
            ))),
            partial => fetch(self, id_or_path, weights).or_else(|error| match partial {
                // Enough for a model with random weights; a missing file is named by whoever needs it.
                Some(snapshot) if !is_status(&error) => Ok(snapshot),
                _ => Err(error),
            }),
        }
    }

    /// The newest snapshot of `main` that the cache has, whole or not.
    pub fn snapshot(&self, id: &str) -> Option<PathBuf> {
        let folder = self.cache.join(format!("models--{}", id.replace('/', "--")));
        let commit = std::fs::read_to_string(folder.join("refs/main")).ok()?;
        let snapshot = folder.join("snapshots").join(commit.trim());
        snapshot.join("config.json").is_file().then_some(snapshot)
    }
}

/// A build without the feature `hub` knows only the cache.
#[cfg(not(feature = "hub"))]
fn fetch(hub: &Hub, id: &str, _weights: bool) -> Result<PathBuf, CheckpointError> {
    Err(CheckpointError::NotFound(format!(
        "{id}: there is no such folder, and no whole model of this id in the cache {}; this program was built without \
         the feature `hub` and fetches nothing: run `hf download {id}`, or give the folder of a model",
        hub.cache.display()
    )))
}

/// Whether the hub answered, and refused.
fn is_status(error: &CheckpointError) -> bool {
    matches!(error, CheckpointError::Refused { .. })
}

/// `name` or `organisation/name`, of letters, digits, `-`, `_` and `.`.
fn is_hub_id(text: &str) -> bool {
    let is_name = |part: &str| {
        let mut letters = part.chars();
        letters
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric() || first == '_')
            && letters.all(|letter| letter.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&letter))
    };
    text.split('/').count() <= 2 && text.split('/').all(is_name)
}

/// Whether a snapshot has its weights: an interrupted download leaves one with some files.
fn is_whole(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    let shards = || -> Option<Value> {
        let text = std::fs::read_to_string(snapshot.join(INDEX)).ok()?;
        serde_json::from_str::<Value>(&text)
            .ok()?
            .get_mut("weight_map")
            .map(Value::take)
    };
    let has_shards = |map: Value| {
        map.as_object()
            .is_some_and(|map| map.values().all(|shard| shard.as_str().is_some_and(has)))
    };
    has("model.safetensors") || shards().is_some_and(has_shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Hub {
        let variables: Vec<(String, String)> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Hub::from_environment(|name| {
            variables
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        })
    }

    fn offline(cache: &Path) -> Hub {
        Hub {
            cache: cache.to_owned(),
            endpoint: String::new(),
            token: None,
            offline: true,
        }
    }

    #[test]
    fn the_environment_is_read_as_huggingface_hub_reads_it() {
        let plain = hub(&[("HOME", "/home/me")]);
        assert_eq!(plain.cache, Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(
            (plain.endpoint.as_str(), plain.offline, plain.token),
            ("https://huggingface.co", false, None)
        );
        assert_eq!(hub(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
        assert_eq!(
            hub(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]).cache,
            Path::new("/h/hub")
        );
        let all = hub(&[
            ("HF_HOME", "/h"),
            ("HF_HUB_CACHE", "/c"),
            ("HF_TOKEN", "secret\n"),
            ("TRANSFORMERS_OFFLINE", "TRUE"),
            ("HF_ENDPOINT", "http://mirror/"),
        ]);
        assert_eq!(
            (all.cache.as_path(), all.token.as_deref()),
            (Path::new("/c"), Some("secret"))
        );
        assert_eq!((all.endpoint.as_str(), all.offline), ("http://mirror", true));
        assert!(!hub(&[("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn a_cached_model_is_found_and_an_absent_one_is_explained() {
        let cache = tempfile::tempdir().unwrap();
        let hub = offline(cache.path());
        let error = hub.resolve("org/tiny").unwrap_err().to_string();
        assert!(
            error.contains("HF_HUB_OFFLINE") && error.contains("hf download org/tiny"),
            "{error}"
        );
        let folder = cache.path().join("models--org--tiny");
        let snapshot = folder.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::write(folder.join("refs/main"), "abc").unwrap();
        assert!(
            hub.resolve("org/tiny").is_err(),
            "a snapshot without config.json is none"
        );
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(hub.resolve("org/tiny").unwrap(), snapshot);
    }

    #[test]
    fn what_looks_like_a_path_is_never_looked_for_on_the_hub() {
        let folder = tempfile::tempdir().unwrap();
        let hub = Hub {
            offline: false,
            ..offline(folder.path())
        };
        let absent = folder.path().join("absent");
        for path in [
            "./absent",
            "../absent",
            "/absent/model",
            "a/b/c",
            "~/model",
            "model/",
            "",
            absent.to_str().unwrap(),
        ] {
            let error = hub.resolve(path).unwrap_err().to_string();
            assert!(error.contains("there is no such folder; give"), "{path}: {error}");
        }
        let file = folder.path().join("config.json");
        std::fs::write(&file, "{}").unwrap();
        assert!(
            hub.resolve(file.to_str().unwrap())
                .unwrap_err()
                .to_string()
                .contains("this is a file")
        );
    }

    #[test]
    fn a_snapshot_is_whole_when_every_shard_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let index =
            r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
        std::fs::write(folder.path().join(INDEX), index).unwrap();
        std::fs::write(folder.path().join("model-00001-of-00002.safetensors"), "").unwrap();
        assert!(!is_whole(folder.path()));
        std::fs::write(folder.path().join("model-00002-of-00002.safetensors"), "").unwrap();
        assert!(is_whole(folder.path()));
    }
}
