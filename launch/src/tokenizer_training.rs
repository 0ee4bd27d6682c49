//! A byte-level BPE tokenizer from texts (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016),
//! in the layout that `tokenizers` and Transformers read.

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, NormalizerWrapper, TokenizerBuilder};

use crate::exit::Failure;

/// Ends a text, and fills.
const END_OF_TEXT: &str = "<|endoftext|>";

/// What may become one piece: a word with the character before it, at most three digits, punctuation, line ends, spaces. Llama 3's
/// pattern, with combining marks counted as letters: without them it cuts every vowel sign of Indic and other scripts off.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How to train.
pub(crate) struct Settings<'a> {
    /// Pieces, the 256 bytes and the special tokens included.
    pub(crate) vocab_size: usize,
    /// How often a pair must occur to become one piece.
    pub(crate) min_frequency: u64,
    /// More tokens that are never split.
    pub(crate) special_tokens: &'a [String],
    /// Name of a built-in chat template.
    pub(crate) chat_template: Option<&'a str>,
}

/// A tokenizer.
pub(crate) struct Trained {
    /// The content of `tokenizer.json`.
    pub(crate) tokenizer: Value,
    /// The content of `tokenizer_config.json`.
    pub(crate) config: Value,
    /// How many pieces it has.
    pub(crate) pieces: usize,
    /// How well it packs the texts that it was trained on.
    pub(crate) bytes_per_token: f64,
}

/// Trains on texts.
///
/// # Errors
/// When there is no text, or no such template.
pub(crate) fn train(texts: &[String], settings: &Settings) -> Result<Trained, Failure> {
    let bytes: usize = texts.iter().map(String::len).sum();
    if bytes == 0 {
        return Err(Failure::usage("There is no text in these files. Name files with some."));
    }
    let template = settings.chat_template.map(template).transpose()?;
    let mut special = vec![END_OF_TEXT.to_owned()];
    special.extend(
        template
            .iter()
            .flat_map(|template| template.tokens)
            .map(|token| (*token).to_owned()),
    );
    special.extend(settings.special_tokens.iter().cloned());
    let mut seen = HashSet::new();
    special.retain(|token| seen.insert(token.clone()));

    let byte_level = ByteLevel::default()
        .add_prefix_space(false)
        .use_regex(false)
        .trim_offsets(false);
    let words = Split::new(
        SplitPattern::Regex(WORDS.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(failed)?;
    let steps = vec![
        PreTokenizerWrapper::Split(words),
        PreTokenizerWrapper::ByteLevel(byte_level),
    ];
    let mut tokenizer = TokenizerBuilder::<BPE, NormalizerWrapper, Sequence, ByteLevel, ByteLevel>::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(Sequence::new(steps)))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(failed)?;
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(settings.vocab_size)
        .min_frequency(settings.min_frequency)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(
            special
                .iter()
                .map(|token| AddedToken::from(token.clone(), true))
                .collect(),
        )
        .build();
    tokenizer.train(&mut trainer, texts.iter()).map_err(failed)?;

    let mut tokens = 0;
    for text in texts {
        tokens += tokenizer.encode_fast(text.as_str(), false).map_err(failed)?.len();
    }
    let tokenizer_json = serde_json::to_value(&tokenizer).map_err(failed)?;
    Ok(Trained {
        tokenizer: tokenizer_json,
        config: config(template.as_ref()),
        pieces: tokenizer.get_vocab_size(true),
        bytes_per_token: bytes as f64 / tokens as f64,
    })
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::running(format!("The tokenizer could not be made: {error}."))
}

/// `tokenizer_config.json` as Transformers reads it.
fn config(template: Option<&Template>) -> Value {
    let end = template.map_or(END_OF_TEXT, |template| template.end_of_turn);
    let mut config = Map::new();
    for (key, value) in [
        ("tokenizer_class", json!("PreTrainedTokenizerFast")),
        ("clean_up_tokenization_spaces", json!(false)),
        ("eos_token", json!(end)),
        ("pad_token", json!(END_OF_TEXT)),
    ] {
        config.insert(key.to_owned(), value);
    }
    if let Some(template) = template {
        config.insert("chat_template".to_owned(), json!(template.text));
    }
    Value::Object(config)
}

/// A built-in chat template, with what a tokenizer needs for it.
struct Template {
    text: &'static str,
    /// The special tokens that it writes itself.
    tokens: &'static [&'static str],
    /// What ends a turn.
    end_of_turn: &'static str,
}

fn template(name: &str) -> Result<Template, Failure> {
    let Some(text) = interlingua_data::template::builtin(name) else {
        let names = interlingua_data::template::builtin_names();
        return Err(Failure::usage(format!(
            "There is no built-in chat template named {name}. There are: {names}."
        )));
    };
    // The others write their marks as plain text, and end a turn with the tokenizer's `eos_token`.
    let (tokens, end_of_turn): (&[&str], &str) = match name {
        "chatml" => (&["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        "gemma" => (&["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
        "llama3" => (
            &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            "<|eot_id|>",
        ),
        "phi3" => (&["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], "<|end|>"),
        _ => (&[], END_OF_TEXT),
    };
    Ok(Template {
        text,
        tokens,
        end_of_turn,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(chat_template: Option<&str>) -> Settings<'_> {
        Settings {
            vocab_size: 320,
            min_frequency: 2,
            special_tokens: &[],
            chat_template,
        }
    }

    #[test]
    fn every_text_comes_back_and_special_tokens_stay_whole() {
        let texts = vec![
            "नमस्ते दुनिया नमस्ते".to_owned(),
            "habari ya dunia, habari 2024\n\n  x".to_owned(),
        ];
        let trained = train(&texts, &settings(Some("chatml"))).unwrap();
        let tokenizer: tokenizers::Tokenizer = trained.tokenizer.to_string().parse().unwrap();
        for text in texts.iter().map(String::as_str).chain(["never seen: ሰላም 🙂"]) {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
        }
        assert_eq!(tokenizer.encode("<|im_end|>", false).unwrap().len(), 1);
        assert_eq!(trained.config["eos_token"], "<|im_end|>");
        assert!(trained.pieces <= 320 && trained.bytes_per_token > 1.0);
    }

    #[test]
    fn the_same_texts_give_the_same_tokenizer() {
        let texts: Vec<String> = (0..200).map(|n| format!("word{} ya {}", n % 7, n % 13)).collect();
        let [one, two] = [(); 2].map(|()| train(&texts, &settings(None)).unwrap().tokenizer);
        assert_eq!(one, two);
    }

    #[test]
    fn an_unknown_template_and_no_text_are_refused() {
        let message = train(&["a".to_owned()], &settings(Some("chatlm")))
            .err()
            .unwrap()
            .message;
        assert!(message.contains("chatlm") && message.contains("chatml"));
        assert!(train(&[String::new()], &settings(None)).is_err());
    }
}
