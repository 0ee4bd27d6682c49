//! `tokenizer.json` and the files beside it.

use std::path::Path;

use serde_json::{Value, json};

use super::{Facts, facts as object, get, read_json};
use crate::exit::Failure;

/// What a `tokenizer.json` is.
///
/// # Errors
/// When it cannot be read.
pub(super) fn facts(path: &Path) -> Result<Facts, Failure> {
    let tokenizer = read_json(path)?;
    let model = get(&tokenizer, "model");
    let pieces = match get(&model, "vocab") {
        Value::Object(vocabulary) => vocabulary.len(),
        Value::Array(vocabulary) => vocabulary.len(),
        _ => {
            return Err(Failure::usage(format!(
                "{} has no model.vocab: it is no tokenizer of the tokenizers library.",
                path.display()
            )));
        }
    };
    let added = get(&tokenizer, "added_tokens");
    let special: Vec<Value> = added
        .as_array()
        .into_iter()
        .flatten()
        .map(|token| get(token, "content"))
        .collect();
    let folder = path.parent().unwrap_or(Path::new("."));
    Ok(object([
        ("kind", json!("tokenizer")),
        ("path", json!(path)),
        ("algorithm", get(&model, "type")),
        ("pieces", json!(pieces)),
        ("added_tokens", json!(special.len())),
        ("first_added_tokens", json!(special.iter().take(8).collect::<Vec<_>>())),
        ("chat_template", json!(has_chat_template(folder))),
    ]))
}

/// Whether the folder brings a chat template along, in either of the two places.
pub(super) fn has_chat_template(folder: &Path) -> bool {
    let in_config = || {
        read_json(&folder.join("tokenizer_config.json")).is_ok_and(|config| !get(&config, "chat_template").is_null())
    };
    folder.join("chat_template.jinja").is_file() || in_config()
}
