//! Values of one `config.json`, with errors that name file and key.

use std::path::Path;

use serde_json::Value;

use crate::error::CheckpointError;

/// Reads values of one JSON object.
pub(crate) struct Reader<'a> {
    pub(crate) path: &'a Path,
    pub(crate) json: &'a Value,
}

impl Reader<'_> {
    pub(crate) fn error(&self, key: &str, expected: &str) -> CheckpointError {
        let found = self.json.get(key).map_or("nothing".to_owned(), Value::to_string);
        CheckpointError::config(self.path, format!("`{key}` should be {expected}, found {found}"))
    }

    pub(crate) fn present(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// The spelling of a key that is there, or the first one.
    pub(crate) fn spelling(&self, names: &[&'static str]) -> &'static str {
        let found = names.iter().find(|name| self.present(name).is_some());
        found.or(names.first()).copied().unwrap_or_default()
    }

    /// The object without some keys.
    pub(crate) fn without(&self, keys: &[&str]) -> Value {
        let mut json = self.json.clone();
        if let Some(map) = json.as_object_mut() {
            map.retain(|key, _| !keys.contains(&key.as_str()));
        }
        json
    }

    /// A whole number that may be 0.
    pub(crate) fn count_or(&self, key: &str, default: usize) -> Result<usize, CheckpointError> {
        self.present(key).map_or(Ok(default), |value| {
            let count = value.as_u64().ok_or_else(|| self.error(key, "a whole number"))?;
            Ok(count as usize)
        })
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize, CheckpointError> {
        self.size_or(key, None)
    }

    pub(crate) fn size_or(&self, key: &str, default: Option<usize>) -> Result<usize, CheckpointError> {
        let valid = |size: &u64| *size > 0 && i32::try_from(*size).is_ok();
        match (self.present(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => {
                let size = value.and_then(Value::as_u64).filter(valid);
                size.map(|size| size as usize)
                    .ok_or_else(|| self.error(key, "a whole number above 0"))
            }
        }
    }

    pub(crate) fn number(&self, key: &str, default: Option<f64>) -> Result<f64, CheckpointError> {
        match (self.present(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => value.and_then(Value::as_f64).ok_or_else(|| self.error(key, "a number")),
        }
    }

    pub(crate) fn optional_number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.present(key).map(|_| self.number(key, None)).transpose()
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        self.present(key).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| self.error(key, "true or false"))
        })
    }

    /// Token ids. `default` stands where the key is absent; null is none.
    pub(crate) fn tokens(&self, key: &str, default: Option<u32>) -> Result<Vec<u32>, CheckpointError> {
        if self.json.get(key).is_none() {
            return Ok(default.into_iter().collect());
        }
        let token = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.error(key, "a token id or a list of them"))
        };
        match self.present(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(token).collect(),
            // Some files say -1 where they mean none.
            Some(value) if value.as_i64() == Some(-1) => Ok(Vec::new()),
            Some(value) => Ok(vec![token(value)?]),
        }
    }
}
