//! `interlingua tokenizer train`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use interlingua_checkpoints::atomic::write_atomically;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::exit::{CommandResult, Exit, Failure};
use crate::tokenizer_training::{self, Settings};
use crate::{inspect, output, table};

/// The subcommands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a byte-level BPE tokenizer from texts
    Train(Arguments),
}

/// Makes a byte-level BPE tokenizer from texts: .txt, .jsonl, .json, .parquet or .tsv files, whose format is found by reading.
#[derive(Args)]
#[command(
    after_help = "Example: interlingua tokenizer train texts/*.txt --vocab-size 8000 --chat-template chatml --out my-tokenizer"
)]
pub(crate) struct Arguments {
    /// The files to learn from; a glob may stand in quotes
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The folder to write tokenizer.json and tokenizer_config.json into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many pieces it has, the 256 bytes and the special tokens included
    #[arg(long, value_name = "N", default_value_t = 32_000, value_parser = clap::value_parser!(u32).range(257..))]
    vocab_size: u32,
    /// How often a pair of pieces must occur to become one
    #[arg(long, value_name = "N", default_value_t = 2)]
    min_frequency: u64,
    /// A token that is never split; may be repeated. <|endoftext|> always is one
    #[arg(long, value_name = "TOKEN")]
    special: Vec<String>,
    /// A built-in chat template to put in, with the tokens that it writes
    #[arg(long, value_name = "NAME")]
    chat_template: Option<String>,
    /// Overwrite a tokenizer that is there
    #[arg(long)]
    force: bool,
}

/// Trains and writes.
///
/// # Errors
/// When the texts cannot be read, or the folder cannot be written or has a tokenizer.
pub(crate) fn train(arguments: &Arguments, global: &Global) -> CommandResult {
    let target = arguments.out.join("tokenizer.json");
    if target.exists() && !arguments.force {
        return Err(Failure::usage(format!(
            "{} is there already. Choose another folder with --out, or add --force.",
            target.display()
        )));
    }
    let mut texts = Vec::new();
    for file in &arguments.files {
        texts.extend(inspect::texts(file)?);
    }
    let settings = Settings {
        vocab_size: arguments.vocab_size as usize,
        min_frequency: arguments.min_frequency,
        special_tokens: &arguments.special,
        chat_template: arguments.chat_template.as_deref(),
    };
    let trained = tokenizer_training::train(&texts, &settings)?;
    fs::create_dir_all(&arguments.out).map_err(|error| {
        Failure::usage(format!(
            "{} cannot be made: {error}. Choose another folder with --out.",
            arguments.out.display()
        ))
    })?;
    write(&target, &trained.tokenizer)?;
    write(&arguments.out.join("tokenizer_config.json"), &trained.config)?;
    let bytes: usize = texts.iter().map(String::len).sum();
    if global.json {
        output::json(&json!({
            "path": target, "pieces": trained.pieces, "texts": texts.len(), "bytes": bytes, "bytes_per_token": trained.bytes_per_token,
        }))?;
    } else {
        output::line(format!(
            "{}: {} pieces from {} texts ({}), {:.2} bytes a token",
            target.display(),
            table::count(trained.pieces as u64),
            table::count(texts.len() as u64),
            table::bytes(bytes as u64),
            trained.bytes_per_token
        ))?;
        if trained.pieces < arguments.vocab_size as usize {
            tracing::warn!(
                "there was not enough text for {} pieces",
                table::count(arguments.vocab_size.into())
            );
        }
    }
    Ok(Exit::Done)
}

fn write(path: &Path, value: &Value) -> Result<(), Failure> {
    let text = interlingua_checkpoints::write::pretty(value).map_err(Failure::running)?;
    write_atomically(path, text.as_bytes()).map_err(Failure::running)
}
