//! `interlingua generate`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use interlingua_data::language::canonical;
use interlingua_data::mask::{Conversations, check_template};
use interlingua_data::sample::Message;
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::{Device, Dtype};
use interlingua_trainer::generate::{GenerateOptions, generate_by_language};
use interlingua_trainer::models::Model;
use interlingua_trainer::train::setup::load_for_inference;
use serde_json::{Map, Value, json};

use crate::cli::Global;
use crate::exit::{CommandResult, Exit, Failure};
use crate::{model, output, progress};

/// Rows that are answered before the first of them is written out.
const AT_ONCE: usize = 64;

/// Writes text with a model, and an adapter on it: for one prompt, or for each row of a JSONL file.
#[derive(Args)]
#[command(
    after_help = "Example: interlingua generate --model path/to/model --adapter runs/quickstart/adapter --chat --prompt 'Turn on the light'\n\n\
    Example: interlingua generate --model path/to/model --input prompts.jsonl --out answers.jsonl\n\
    reads rows {prompt or messages, lang?} and writes the same rows with `output`."
)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["prompt", "input"]))]
pub(crate) struct Arguments {
    /// The model: a folder or a hub id
    #[arg(long, value_name = "DIR")]
    model: String,
    /// An adapter's folder to put on the model; repeated, each stands on those before it
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// The language of the prompt, for an adapter with a copy for each language (a row's own `lang` comes before it)
    #[arg(long, value_name = "TAG", value_parser = language)]
    lang: Option<String>,
    /// The text to go on from
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A JSONL file of rows {prompt or messages, lang?}
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where the rows go; standard output without it
    #[arg(long, value_name = "FILE", requires = "input")]
    out: Option<PathBuf>,
    /// Put the prompt into the chat template, as the user's turn (rows with messages always are)
    #[arg(long)]
    chat: bool,
    /// The chat template: auto (the tokenizer's own), a built-in one's name, or a .jinja file
    #[arg(long, value_name = "NAME", default_value = "auto")]
    template: String,
    /// The longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// Randomness: 0 takes the likeliest token each time
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,
    /// Draw from the likeliest tokens that hold this share of the probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share)]
    top_p: f32,
    /// Take the likeliest token each time, whatever --temperature says
    #[arg(long)]
    greedy: bool,
    /// The seed of the draws
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// What to compute in: auto (as stored, where the device can), f32, bf16 or f16
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = model::parse_dtype)]
    dtype: Dtype,
    /// Where to compute: auto, cpu, cuda or cuda:N, tch or tch:cuda
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,
}

fn language(tag: &str) -> Result<String, String> {
    canonical(tag)
}

fn temperature(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|value: &f32| *value >= 0.0 && value.is_finite())
        .ok_or_else(|| "a number from 0 on is expected".to_owned())
}

fn share(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|value: &f32| *value > 0.0 && *value <= 1.0)
        .ok_or_else(|| "a number above 0, at most 1, is expected".to_owned())
}

/// What turns prompts into answers.
struct Writer<'a> {
    arguments: &'a Arguments,
    model: Model,
    tokenizer: Tokenizer,
    /// Read when the first conversation comes.
    conversations: Option<Conversations>,
}

/// Writes the answers.
///
/// # Errors
/// When the model, the tokenizer or the rows are wrong, or the answers cannot be written.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let rows = match (&arguments.input, &arguments.prompt) {
        (Some(input), _) => read_rows(input)?,
        (None, prompt) => vec![Map::from_iter([("prompt".to_owned(), json!(prompt))])],
    };
    let (model, folder) = load_for_inference(
        &arguments.model,
        &arguments.adapter,
        arguments.dtype,
        arguments.device,
        None,
    )?;
    let tokenizer = Tokenizer::load(folder.path()).map_err(Failure::usage)?;
    let mut writer = Writer {
        arguments,
        model,
        tokenizer,
        conversations: None,
    };
    // Every prompt is read before the first answer is written.
    let mut prompts = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let read = writer
            .prompt(row)
            .and_then(|tokens| Ok((tokens, writer.language(row)?)));
        prompts.push(read.map_err(|message| match &arguments.input {
            Some(input) => Failure::usage(format!("{}: row {}: {message}", input.display(), index + 1)),
            None => Failure::usage(message),
        })?);
    }
    let mut target = arguments.out.as_deref().map(create).transpose()?;
    let bar = progress::bar(global, rows.len() as u64, "{bar:24} {pos}/{len} rows  {eta} left");
    for (number, (rows, prompts)) in rows.chunks(AT_ONCE).zip(prompts.chunks(AT_ONCE)).enumerate() {
        let answers = writer.answers(prompts, number as u64)?;
        for (row, answer) in rows.iter().zip(answers) {
            let mut row = row.clone();
            row.insert("output".to_owned(), json!(answer));
            match &mut target {
                Some((path, file)) => {
                    let written = writeln!(file, "{}", Value::Object(row));
                    written
                        .map_err(|error| Failure::running(format!("{} cannot be written: {error}.", path.display())))?;
                }
                None if arguments.input.is_some() => output::line(Value::Object(row).to_string())?,
                None if global.json => output::json(&Value::Object(row))?,
                None => output::line(answer)?,
            }
        }
        bar.inc(rows.len() as u64);
    }
    bar.finish_and_clear();
    if let Some((path, file)) = &mut target {
        file.flush()
            .map_err(|error| Failure::running(format!("{} cannot be written: {error}.", path.display())))?;
    }
    Ok(Exit::Done)
}

impl Writer<'_> {
    /// The tokens of a row's prompt.
    fn prompt(&mut self, row: &Map<String, Value>) -> Result<Vec<u32>, String> {
        let (text, special) = match (row.get("messages"), row.get("prompt")) {
            (Some(messages), _) => {
                let messages = read_messages(messages)?;
                (self.render(&messages, row.get("tools"))?, false)
            }
            (None, Some(Value::String(prompt))) if self.arguments.chat => {
                (self.render(&[Message::new("user", prompt.as_str())], None)?, false)
            }
            (None, Some(Value::String(prompt))) => (prompt.clone(), true),
            _ => {
                return Err(
                    "there is neither `prompt`, a text, nor `messages`. Write one of them into each row.".to_owned(),
                );
            }
        };
        let tokens = self
            .tokenizer
            .encode(&text, special)
            .map_err(|error| error.to_string())?;
        if tokens.is_empty() {
            return Err("the prompt is empty, and this tokenizer puts nothing before it. Write some text.".to_owned());
        }
        Ok(tokens)
    }

    /// The language of a row; empty where nothing asks for it.
    fn language(&self, row: &Map<String, Value>) -> Result<String, String> {
        let known = self.model.adapter_languages();
        if known.is_empty() {
            return Ok(String::new());
        }
        match (row.get("lang"), &self.arguments.lang) {
            (Some(Value::String(tag)), _) => canonical(tag),
            (_, Some(tag)) => Ok(tag.clone()),
            (_, None) => Err(format!(
                "the adapter has a copy for each of {}, and the language of the prompt is not known. Say it with --lang, or with \
                 `lang` in the row; with another language the model answers without a copy.",
                known.into_iter().collect::<Vec<_>>().join(", ")
            )),
        }
    }

    /// A conversation as text, up to where the assistant begins.
    fn render(&mut self, messages: &[Message], tools: Option<&Value>) -> Result<String, String> {
        if self.conversations.is_none() {
            let template = self
                .tokenizer
                .chat_template(&self.arguments.template)
                .map_err(|error| error.to_string())?;
            self.conversations = Some(check_template(&self.tokenizer, &template).map_err(|error| error.to_string())?);
        }
        let Some(conversations) = &self.conversations else {
            return Err("there is no chat template.".to_owned());
        };
        Ok(conversations.template().render(messages, tools, true)?.text)
    }

    /// The texts that follow the prompts of the chunk with this number.
    fn answers(&self, prompts: &[(Vec<u32>, String)], chunk: u64) -> Result<Vec<String>, Failure> {
        let mut stop_tokens = match &self.conversations {
            Some(conversations) => conversations.stop_tokens(&self.tokenizer),
            None => self.tokenizer.eos_id().into_iter().collect(),
        };
        stop_tokens.extend(&self.model.config.eos_token_ids);
        let options = GenerateOptions {
            max_new_tokens: self.arguments.max_new_tokens,
            temperature: if self.arguments.greedy {
                0.0
            } else {
                self.arguments.temperature
            },
            top_p: self.arguments.top_p,
            seed: self.arguments.seed.wrapping_add(chunk),
            stop_tokens,
        };
        let (prompts, languages): (Vec<Vec<u32>>, Vec<&str>) = prompts
            .iter()
            .map(|(tokens, language)| (tokens.clone(), language.as_str()))
            .unzip();
        let answers = generate_by_language(&self.model, &prompts, &languages, &options, None);
        answers
            .iter()
            .map(|ids| self.tokenizer.decode(ids, true).map_err(Failure::running))
            .collect()
    }
}

fn read_rows(path: &Path) -> Result<Vec<Map<String, Value>>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{} cannot be read: {error}.", path.display())))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows: Vec<Map<String, Value>> = lines
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| {
                Failure::usage(format!(
                    "{}:{}: the line is no JSON object: {error}. Correct the row.",
                    path.display(),
                    index + 1
                ))
            })
        })
        .collect::<Result<_, _>>()?;
    if rows.is_empty() {
        return Err(Failure::usage(format!(
            "{} has no rows. Write some: {{\"prompt\": \"…\"}}",
            path.display()
        )));
    }
    Ok(rows)
}

fn read_messages(messages: &Value) -> Result<Vec<Message>, String> {
    let wrong = || "`messages` is no list of {role, content}. Correct the row.".to_owned();
    let list = messages.as_array().filter(|list| !list.is_empty()).ok_or_else(wrong)?;
    let message = |message: &Value| {
        let mut extra = message.as_object().cloned().ok_or_else(wrong)?;
        let role = extra
            .shift_remove("role")
            .and_then(|role| role.as_str().map(str::to_owned))
            .ok_or_else(wrong)?;
        let content = extra.shift_remove("content").unwrap_or(Value::Null);
        Ok(Message {
            role,
            content,
            train: None,
            extra,
        })
    };
    list.iter().map(message).collect()
}

fn create(path: &Path) -> Result<(&Path, std::io::BufWriter<std::fs::File>), Failure> {
    let file = std::fs::File::create(path).map_err(|error| {
        Failure::usage(format!(
            "{} cannot be written: {error}. Choose another file with --out.",
            path.display()
        ))
    })?;
    Ok((path, std::io::BufWriter::new(file)))
}
