//! A Hugging Face tokenizer: `tokenizer.json` with `tokenizer_config.json` and `chat_template.jinja` beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::PostProcessorWrapper;

use crate::error::DataError;
use crate::template::{self, ChatTemplate};

/// The special tokens that tokenizer_config.json can name and that a chat template sees as variables.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A Hugging Face tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    folder: PathBuf,
    special_tokens: BTreeMap<String, String>,
    chat_template: Option<TokenizerTemplate>,
    fingerprint: [u8; 32],
}

/// The templates that a tokenizer brings along.
#[derive(Debug, Clone)]
struct TokenizerTemplate {
    name: String,
    default: String,
    tool_use: Option<String>,
}

/// A text as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token the bytes of the text that it stands for, start and end; tokens that the post-processor added have an empty span at 0.
    /// Tokens that share one character have the same span.
    pub spans: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// A tokenizer that knows no token, for a model folder without one whose data is tokenised already.
    #[must_use]
    pub fn without_vocabulary(folder: &Path) -> Self {
        Tokenizer {
            inner: tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default()),
            folder: folder.to_owned(),
            special_tokens: BTreeMap::new(),
            chat_template: None,
            fingerprint: [0; 32],
        }
    }

    /// Reads a tokenizer from a folder, or from a tokenizer.json and the files beside it.
    ///
    /// # Errors
    /// When there is no tokenizer.json, or a file cannot be understood.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let file = if path.is_dir() {
            path.join("tokenizer.json")
        } else {
            path.to_owned()
        };
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(DataError::NoTokenizer {
                    folder: if path.is_dir() { path.to_owned() } else { folder },
                });
            }
            Err(reason) => return Err(DataError::Unreadable { file, reason }),
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| DataError::BadTokenizer {
            file: file.clone(),
            message: error.to_string(),
        })?;
        exact_offsets(&mut inner);
        // What Transformers does too: padding and truncation of the file are no part of what a text is.
        inner.with_padding(None);
        let bad = |message| DataError::BadTokenizer {
            file: file.clone(),
            message,
        };
        inner.with_truncation(None).map_err(|error| bad(error.to_string()))?;

        let config_file = folder.join("tokenizer_config.json");
        let config = read_json(&config_file)?;
        let mut special_tokens = special_tokens(&read_json(&folder.join("special_tokens_map.json"))?);
        special_tokens.extend(special_tokens_of_config(&config, &special_tokens));
        let chat_template = chat_template(&folder, &config, &config_file)?;

        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        for (role, token) in &special_tokens {
            hasher.update(format!("\0{role}\0{token}").as_bytes());
        }
        let fingerprint = *hasher.finalize().as_bytes();
        Ok(Tokenizer {
            inner,
            folder,
            special_tokens,
            chat_template,
            fingerprint,
        })
    }

    /// The chat template that `data.template` names: `auto` (the tokenizer's own), a built-in one, or a .jinja file.
    ///
    /// # Errors
    /// When there is none, or it is not valid Jinja.
    pub fn chat_template(&self, name: &str) -> Result<ChatTemplate, DataError> {
        if name == "auto" {
            let Some(own) = &self.chat_template else {
                return Err(DataError::NoTemplate {
                    folder: self.folder.clone(),
                    builtins: template::builtin_names(),
                });
            };
            return ChatTemplate::new(&own.name, &own.default, own.tool_use.as_deref(), &self.special_tokens);
        }
        if let Some(source) = template::builtin(name) {
            return ChatTemplate::new(&format!("{name:?}"), source, None, &self.special_tokens);
        }
        let file = Path::new(name);
        match std::fs::read_to_string(file) {
            Ok(source) => ChatTemplate::new(name, &source, None, &self.special_tokens),
            Err(reason) if file.exists() => Err(DataError::Unreadable {
                file: file.to_owned(),
                reason,
            }),
            Err(_) => Err(DataError::UnknownTemplate {
                name: name.to_owned(),
                builtins: template::builtin_names(),
            }),
        }
    }

    /// Whether the tokenizer brings a chat template along.
    pub fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    /// Ids of a text. With `add_special_tokens` the post-processor of tokenizer.json adds what it adds, such as a BOS token;
    /// a rendered chat template is tokenised without.
    ///
    /// # Errors
    /// When the tokenizer cannot tokenise the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode`], with the place of each token in the text.
    ///
    /// # Errors
    /// When the tokenizer cannot tokenise the text.
    pub fn encode_with_spans(&self, text: &str, add_special_tokens: bool) -> Result<Encoded, DataError> {
        let encoding = self.inner.encode(text, add_special_tokens).map_err(failed)?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            spans: encoding.get_offsets().to_vec(),
        })
    }

    /// The text of these ids.
    ///
    /// # Errors
    /// When the decoder of tokenizer.json cannot decode them.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, DataError> {
        self.inner.decode(ids, skip_special_tokens).map_err(failed)
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token with an id, as tokenizer.json spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id is one of the tokens added to the vocabulary as a whole, such as `<|im_end|>`.
    pub fn is_added_token(&self, id: u32) -> bool {
        self.inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .contains_key(&id)
    }

    /// Smallest vocabulary that a model needs for this tokenizer: the largest id plus one.
    pub fn vocabulary_size(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    /// A special token by its role in tokenizer_config.json, such as `eos_token`.
    pub fn special_token(&self, role: &str) -> Option<&str> {
        self.special_tokens.get(role).map(String::as_str)
    }

    /// Id of the token that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.special_token("eos_token").and_then(|token| self.id(token))
    }

    /// Id of the token that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.special_token("bos_token").and_then(|token| self.id(token))
    }

    /// Id of the token that fills up short rows.
    pub fn pad_id(&self) -> Option<u32> {
        self.special_token("pad_token").and_then(|token| self.id(token))
    }

    /// The folder that the tokenizer was read from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// BLAKE3 over tokenizer.json and the special tokens. The chat template is not part of it.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }
}

fn failed(error: tokenizers::Error) -> DataError {
    DataError::Tokenizer {
        message: error.to_string(),
    }
}

/// Lets spans keep the spaces that a byte-level post-processor would cut off, so that every character belongs to a token.
fn exact_offsets(tokenizer: &mut tokenizers::Tokenizer) {
    fn keep_spaces(processor: PostProcessorWrapper) -> PostProcessorWrapper {
        match processor {
            PostProcessorWrapper::ByteLevel(processor) => {
                PostProcessorWrapper::ByteLevel(processor.trim_offsets(false))
            }
            PostProcessorWrapper::Roberta(processor) => PostProcessorWrapper::Roberta(processor.trim_offsets(false)),
            PostProcessorWrapper::Sequence(mut processors) => {
                for processor in processors.as_mut() {
                    *processor = keep_spaces(processor.clone());
                }
                PostProcessorWrapper::Sequence(processors)
            }
            other => other,
        }
    }
    let processor = tokenizer.get_post_processor().cloned().map(keep_spaces);
    tokenizer.with_post_processor(processor);
}

/// The file's JSON; null when there is no such file.
fn read_json(file: &Path) -> Result<Value, DataError> {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| DataError::BadTokenizer {
            file: file.to_owned(),
            message: error.to_string(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(reason) => Err(DataError::Unreadable {
            file: file.to_owned(),
            reason,
        }),
    }
}

/// A token spelled as a string or as an object with `content`.
fn spelling(value: &Value) -> Option<String> {
    value
        .as_str()
        .or_else(|| value.get("content")?.as_str())
        .map(str::to_owned)
}

fn special_tokens(map: &Value) -> BTreeMap<String, String> {
    ROLES
        .iter()
        .filter_map(|&role| Some((role.to_owned(), spelling(map.get(role)?)?)))
        .collect()
}

/// As [`special_tokens`]. A token that tokenizer_config.json leaves out (older files keep them in special_tokens_map.json) stays as it was.
fn special_tokens_of_config(config: &Value, known: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut tokens = special_tokens(config);
    for (role, token) in known {
        tokens.entry(role.clone()).or_insert_with(|| token.clone());
    }
    tokens
}

fn chat_template(folder: &Path, config: &Value, config_file: &Path) -> Result<Option<TokenizerTemplate>, DataError> {
    let file = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&file) {
        Ok(default) => {
            return Ok(Some(TokenizerTemplate {
                name: file.display().to_string(),
                default,
                tool_use: None,
            }));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(reason) => return Err(DataError::Unreadable { file, reason }),
    }
    let name = format!("chat_template in {}", config_file.display());
    let (default, tool_use) = match config.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => (Some(source.clone()), None),
        Some(Value::Array(templates)) => {
            let named = |wanted: &str| {
                let template = templates.iter().find(|template| template["name"] == wanted)?;
                template["template"].as_str().map(str::to_owned)
            };
            (named("default"), named("tool_use"))
        }
        Some(_) => (None, None),
    };
    match default {
        Some(default) => Ok(Some(TokenizerTemplate {
            name,
            default,
            tool_use,
        })),
        None => Err(DataError::BadTokenizer {
            file: config_file.to_owned(),
            message: "`chat_template` is neither text nor a list of templates of which one is named \"default\""
                .to_owned(),
        }),
    }
}
