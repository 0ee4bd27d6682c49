//! Evaluation during a run: the held-out samples, and the recipe's tasks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use interlingua_checkpoints::config::ModelConfig;
use interlingua_data::DataError;
use interlingua_data::batch::MicroBatch;
use interlingua_data::dataset::Dataset;
use interlingua_data::language::canonical;
use interlingua_data::sample::{Content, Message, Sample};
use interlingua_data::source::read_source;
use interlingua_data::tokenize::{Outcome, SampleTokenizer};
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::{Metric, Recipe, Source, Task, TaskKind};

use super::main_loss::{Company, MainLoss, Totals, boundaries};
use super::metrics::{EvalRow, Example};
use super::ranks::Deal;
use super::reference::{Reference, sequence_of};
use super::step::{Tally, inputs_and_targets};
use crate::engine::head::{Targets, log_probs};
use crate::error::TrainError;
use crate::generate::{GenerateOptions, generate_by_language};
use crate::models::Model;

/// Tokens of one evaluation batch.
const BATCH_TOKENS: usize = 4096;

/// Answers of a task that are shown.
const EXAMPLES: usize = 4;

/// What the held-out samples are called in `metrics.jsonl`.
pub const HELDOUT: &str = "heldout";

/// Everything to evaluate on, read and tokenised once.
pub struct Evaluator {
    tasks: Vec<Prepared>,
}

/// Held-out samples, and what they are measured by.
#[derive(Clone, Copy)]
pub struct Heldout<'a> {
    /// The samples.
    pub data: &'a Dataset,
    /// The run's main loss.
    pub main: MainLoss,
    /// What preferences are compared with.
    pub reference: Option<&'a Reference>,
}

/// A task, ready to run.
enum Prepared {
    Perplexity {
        name: String,
        languages: Vec<String>,
        batches: Vec<MicroBatch>,
        bytes: Vec<u64>,
    },
    Generate {
        name: String,
        questions: Vec<Question>,
        options: GenerateOptions,
    },
}

/// A prompt whose answer is known.
struct Question {
    language: String,
    prompt: String,
    input_ids: Vec<u32>,
    reference: String,
}

impl Evaluator {
    /// Reads and tokenises the recipe's tasks.
    pub fn new(recipe: &Recipe, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Self, TrainError> {
        let prepared = recipe.eval.tasks.iter().map(|task| {
            let samples = read(recipe, task)?;
            let mut data = recipe.data.clone();
            data.sources = sources(task);
            let tokenize = SampleTokenizer::new(tokenizer, &data, config.vocab_size)?;
            match task.kind {
                TaskKind::Perplexity => perplexity_task(task, &samples, &tokenize, tokenizer),
                TaskKind::Generate => generate_task(task, &samples, &tokenize, tokenizer, config),
            }
        });
        Ok(Self {
            tasks: prepared.collect::<Result<_, _>>()?,
        })
    }

    /// Evaluates the model: held-out samples first, then the tasks in their order. `deal`: the processes that share the work, and
    /// all get the same rows.
    pub fn run(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        heldout: Option<Heldout>,
        (step, time): (u64, f64),
        deal: Deal,
    ) -> Result<Vec<EvalRow>, TrainError> {
        let mut rows = Vec::new();
        if let Some(heldout) = heldout.filter(|heldout| !heldout.data.is_empty()) {
            let by_language = heldout_losses(model, tokenizer, heldout, deal)?;
            rows.push(row(HELDOUT, by_language, Vec::new(), step, time));
        }
        for task in &self.tasks {
            rows.push(match task {
                Prepared::Perplexity {
                    name,
                    languages,
                    batches,
                    bytes,
                } => row(
                    name,
                    losses(model, batches, languages, bytes, deal),
                    Vec::new(),
                    step,
                    time,
                ),
                Prepared::Generate {
                    name,
                    questions,
                    options,
                } => {
                    let (by_language, examples) = answers(model, tokenizer, questions, options, deal)?;
                    row(name, by_language, examples, step, time)
                }
            });
        }
        Ok(rows)
    }
}

/// Whether a value of a metric is better than the best so far.
pub fn improves(metric: Metric, value: f64, best: Option<f64>) -> bool {
    best.is_none_or(|best| {
        if metric.higher_is_better() {
            value > best
        } else {
            value < best
        }
    })
}

type ByLanguage = BTreeMap<String, BTreeMap<String, f64>>;

/// A row, with mean and gap over languages for every metric. Values that are not finite, which JSON cannot say, are left
/// out.
fn row(task: &str, mut by_language: ByLanguage, examples: Vec<Example>, step: u64, time: f64) -> EvalRow {
    by_language
        .values_mut()
        .for_each(|metrics| metrics.retain(|_, value| value.is_finite()));
    let mut values = BTreeMap::<String, Vec<f64>>::new();
    for metrics in by_language.values() {
        metrics
            .iter()
            .for_each(|(name, value)| values.entry(name.clone()).or_default().push(*value));
    }
    let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let gap = |values: &Vec<f64>| {
        let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        largest - values.iter().copied().fold(f64::INFINITY, f64::min)
    };
    EvalRow {
        step,
        time,
        task: task.to_owned(),
        mean: values
            .iter()
            .map(|(name, values)| (name.clone(), mean(values)))
            .collect(),
        gap: values
            .iter()
            .map(|(name, values)| (name.clone(), gap(values)))
            .collect(),
        by_language,
        examples,
    }
}

/// A task's file, or one for each of its languages where the path says `{lang}`, as sources of data.
fn sources(task: &Task) -> Vec<Source> {
    let source = |path: PathBuf, lang: Option<String>| Source {
        lang,
        lang_field: task.lang_field.clone(),
        fields: task.fields.clone(),
        ..Source::new(&task.name, &path, task.format)
    };
    let path = task.path.to_string_lossy();
    if !path.contains("{lang}") {
        return vec![source(task.path.clone(), task.lang.clone())];
    }
    let of_language = |lang: &String| source(path.replace("{lang}", lang).into(), Some(lang.clone()));
    task.languages.iter().map(of_language).collect()
}

/// A task's samples of the languages that it names, or of all when it names none; at most `limit` of each.
fn read(recipe: &Recipe, task: &Task) -> Result<Vec<Sample>, TrainError> {
    let tags = task
        .languages
        .iter()
        .map(|tag| canonical(tag).unwrap_or_else(|_| tag.clone()));
    let languages: Vec<String> = tags.collect();
    let mut samples = Vec::new();
    for (index, source) in sources(task).iter().enumerate() {
        let rows = read_source(index, source, recipe.data.on_bad_row)?;
        let mut taken = BTreeMap::<String, usize>::new();
        for sample in rows {
            let sample = sample?;
            if !languages.is_empty() && !languages.contains(&sample.language) {
                continue;
            }
            let count = taken.entry(sample.language.clone()).or_default();
            *count += 1;
            if task.limit == 0 || *count <= task.limit {
                samples.push(sample);
            }
        }
    }
    if samples.is_empty() {
        return Err(TrainError::Setup(format!(
            "eval task `{}`: {} has no row of its languages {:?}",
            task.name,
            task.path.display(),
            task.languages
        )));
    }
    Ok(samples)
}

fn language_index(languages: &mut Vec<String>, language: &str) -> u16 {
    let found = languages.iter().position(|known| known == language);
    found.unwrap_or_else(|| {
        languages.push(language.to_owned());
        languages.len() - 1
    }) as u16
}

fn perplexity_task(
    task: &Task,
    samples: &[Sample],
    tokenize: &SampleTokenizer,
    tokenizer: &Tokenizer,
) -> Result<Prepared, TrainError> {
    let mut languages = Vec::new();
    let mut sequences = Vec::new();
    for sample in samples {
        let outcome = tokenize.tokenize(&sample.content);
        let outcome = outcome.map_err(|problem| DataError::bad_row(sample.place.clone(), problem))?;
        let language = language_index(&mut languages, &sample.language);
        if let Outcome::Kept { sequences: kept, .. } = outcome {
            sequences.extend(kept.into_iter().map(|tokens| (tokens, language)));
        }
    }
    let batches = batches(
        sequences
            .iter()
            .map(|(tokens, language)| ((&tokens.input_ids[..], &tokens.labels[..]), *language)),
    );
    let bytes = supervised_bytes(&batches, languages.len(), tokenizer)?;
    Ok(Prepared::Perplexity {
        name: task.name.clone(),
        languages,
        batches,
        bytes,
    })
}

fn generate_task(
    task: &Task,
    samples: &[Sample],
    tokenize: &SampleTokenizer,
    tokenizer: &Tokenizer,
    config: &ModelConfig,
) -> Result<Prepared, TrainError> {
    let mut questions = Vec::new();
    for sample in samples {
        let problem = |problem| DataError::bad_row(sample.place.clone(), problem);
        let question = question(&sample.content, tokenize, tokenizer).ok_or_else(|| {
            TrainError::Setup(format!(
                "eval task `{}`, {}: a generate task needs rows that end with an answer of the assistant",
                task.name, sample.place
            ))
        })?;
        let (prompt, input_ids, reference) = question.map_err(problem)?;
        questions.push(Question {
            language: sample.language.clone(),
            prompt,
            input_ids,
            reference,
        });
    }
    let options = GenerateOptions {
        max_new_tokens: task.max_new_tokens,
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        stop_tokens: stop_tokens(tokenize, tokenizer, config),
    };
    Ok(Prepared::Generate {
        name: task.name.clone(),
        questions,
        options,
    })
}

/// Tokens that end an answer: those of the template, of the tokenizer and of the config.
pub fn stop_tokens(tokenize: &SampleTokenizer, tokenizer: &Tokenizer, config: &ModelConfig) -> Vec<u32> {
    let template = tokenize
        .conversations()
        .map(|conversations| conversations.stop_tokens(tokenizer));
    let mut tokens = template.unwrap_or_default();
    tokens.extend(&config.eos_token_ids);
    tokens.extend(tokenizer.eos_id());
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

type Asked = (String, Vec<u32>, String);

/// The last question of a sample as text and tokens, and its answer; none when the sample does not end with an answer.
fn question(
    content: &Content,
    tokenize: &SampleTokenizer,
    tokenizer: &Tokenizer,
) -> Option<Result<Asked, interlingua_data::error::RowProblem>> {
    use interlingua_data::error::RowProblem;
    let encode = |text: &str, special: bool| {
        tokenizer.encode(text, special).map_err(|error| RowProblem::Tokenizer {
            message: error.to_string(),
        })
    };
    match content {
        Content::PromptCompletion { prompt, completion } => {
            Some(encode(prompt, true).map(|ids| (prompt.clone(), ids, completion.clone())))
        }
        Content::Conversation { messages, tools, .. } => {
            let (answer, before) = messages.split_last().filter(|(last, _)| last.role == "assistant")?;
            let reference = answer.content.as_str()?.to_owned();
            let asked = before
                .last()
                .and_then(|message: &Message| message.content.as_str())
                .unwrap_or_default();
            let template = tokenize.conversations()?.template();
            let rendered = template.render(before, tools.as_ref(), true);
            let ids = rendered
                .map_err(|message| RowProblem::Template { message })
                .and_then(|rendered| encode(&rendered.text, false));
            Some(ids.map(|ids| (asked.to_owned(), ids, reference)))
        }
        _ => None,
    }
}

/// Sequences in batches of about equal size.
fn batches<'a>(sequences: impl Iterator<Item = ((&'a [u32], &'a [i32]), u16)>) -> Vec<MicroBatch> {
    let mut batches = Vec::new();
    let mut open = MicroBatch::default();
    for (index, ((ids, labels), language)) in sequences.enumerate() {
        if open.tokens() + ids.len() > BATCH_TOKENS && open.tokens() > 0 {
            batches.push(std::mem::take(&mut open));
        }
        open.push(ids, labels, language, index as u64, 0);
    }
    if open.tokens() > 0 {
        batches.push(open);
    }
    batches
}

/// Bytes of the supervised text, by language.
fn supervised_bytes(batches: &[MicroBatch], languages: usize, tokenizer: &Tokenizer) -> Result<Vec<u64>, TrainError> {
    let mut bytes = vec![0; languages];
    for batch in batches {
        let targets = Targets::of_labels(&batch.labels, &boundaries(batch));
        add_bytes(&mut bytes, batch, &targets, tokenizer)?;
    }
    Ok(bytes)
}

/// Losses of the held-out samples under the main loss: per token, with perplexity and bits per byte, or per pair, with
/// how often the chosen answer has the higher reward, and by how much.
fn heldout_losses(
    model: &Model,
    tokenizer: &Tokenizer,
    heldout: Heldout,
    deal: Deal,
) -> Result<ByLanguage, TrainError> {
    let Heldout { data, main, reference } = heldout;
    let mut batches = Vec::new();
    let mut open = MicroBatch::default();
    for sample in 0..data.len() {
        if open.tokens() + data.length(sample) > BATCH_TOKENS && open.tokens() > 0 {
            batches.push(std::mem::take(&mut open));
        }
        open.push_sample(data, sample);
    }
    batches.push(open);
    // What the goldfish loss leaves out is measured all the same, and so is what only auxiliary losses are trained on.
    let main = if main.is_linear() { MainLoss::Tokens } else { main };
    let mut totals = Totals::default();
    batches.iter().for_each(|batch| main.count(data, batch, &mut totals));
    let mut tally = Tally::default();
    let mut bytes = vec![0; data.languages().len()];
    for (_, batch) in batches.iter().enumerate().filter(|(number, _)| deal.is_mine(*number)) {
        let boundaries = boundaries(batch);
        let (inputs, _) = inputs_and_targets(model, batch, data.languages());
        let targets = main.targets(data, batch, &boundaries, false);
        let log_probs = log_probs(model, &model.last_hidden_state(&inputs, None), &targets.targets);
        let models = (model, reference);
        let company = (&totals, &Company::NONE);
        let evaluated = main.evaluate(models, (data, batch), (&targets, &log_probs), 1.0, company);
        tally.add(data, batch, &targets, &evaluated.samples);
        if main.is_linear() {
            add_bytes(&mut bytes, batch, &targets.targets, tokenizer)?;
        }
    }
    tally.add_up(data.languages(), deal.collectives());
    let bytes = summed(bytes, deal);
    let (by_language, _) = tally.finish(!main.is_linear());
    let index = |language: &str| data.languages().iter().position(|known| known == language);
    let metrics = by_language.into_iter().map(|(language, sum)| {
        let metrics = if main.is_linear() {
            token_metrics(sum.loss, sum.tokens, index(&language).map_or(0, |index| bytes[index]))
        } else {
            let rewards = sum.rewards.unwrap_or_default();
            let known = [("accuracy", rewards.accuracy), ("margin", rewards.margin)];
            let known = known
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)));
            known.chain([("loss".to_owned(), sum.loss)]).collect()
        };
        (language, metrics)
    });
    Ok(metrics.collect())
}

/// Counts, added up over the processes that share the work.
fn summed(counts: Vec<u64>, deal: Deal) -> Vec<u64> {
    let mut values: Vec<f64> = counts.into_iter().map(|count| count as f64).collect();
    deal.add_up(&mut values);
    values.into_iter().map(|value| value as u64).collect()
}

/// Bytes of the text of each language's targets.
fn add_bytes(
    bytes: &mut [u64],
    batch: &MicroBatch,
    targets: &Targets,
    tokenizer: &Tokenizer,
) -> Result<(), TrainError> {
    let mut pairs = targets.positions.iter().zip(&targets.tokens).peekable();
    for sequence in &batch.sequences {
        let end = sequence.range().end as u32;
        let mut tokens = Vec::new();
        while let Some((_, token)) = pairs.next_if(|(position, _)| **position < end) {
            tokens.push(*token);
        }
        bytes[usize::from(sequence.language)] += tokenizer.decode(&tokens, true)?.len() as u64;
    }
    Ok(())
}

/// Loss per token, perplexity, and bits per byte where there is text.
fn token_metrics(loss: f64, tokens: u64, bytes: u64) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::from([("loss".to_owned(), loss), ("perplexity".to_owned(), loss.exp())]);
    if bytes > 0 {
        let bits = loss * tokens as f64 / std::f64::consts::LN_2;
        metrics.insert("bits_per_byte".into(), bits / bytes as f64);
    }
    metrics
}

/// Loss, perplexity and bits per byte by language.
fn losses(model: &Model, batches: &[MicroBatch], languages: &[String], bytes: &[u64], deal: Deal) -> ByLanguage {
    // For each language the sum of the losses, and how many tokens they are of.
    let mut sums = vec![0.0; 2 * languages.len()];
    for (_, batch) in batches.iter().enumerate().filter(|(number, _)| deal.is_mine(*number)) {
        let (inputs, targets) = inputs_and_targets(model, batch, languages);
        let log_probs = log_probs(model, &model.last_hidden_state(&inputs, None), &targets);
        for (position, log_prob) in targets.positions.iter().zip(log_probs) {
            let language = usize::from(batch.sequences[sequence_of(batch, *position)].language);
            sums[2 * language] -= f64::from(log_prob);
            sums[2 * language + 1] += 1.0;
        }
    }
    deal.add_up(&mut sums);
    let known = sums.chunks(2).enumerate().filter(|(_, sum)| sum[1] > 0.0);
    let metrics = known.map(|(language, sum)| {
        let metrics = token_metrics(sum[0] / sum[1], sum[1] as u64, bytes[language]);
        (languages[language].clone(), metrics)
    });
    metrics.collect()
}

/// Exact match by language, and a few answers of different languages.
fn answers(
    model: &Model,
    tokenizer: &Tokenizer,
    questions: &[Question],
    options: &GenerateOptions,
    deal: Deal,
) -> Result<(ByLanguage, Vec<Example>), TrainError> {
    let mine: Vec<&Question> = questions
        .iter()
        .enumerate()
        .filter(|(number, _)| deal.is_mine(*number))
        .map(|(_, question)| question)
        .collect();
    let prompts: Vec<Vec<u32>> = mine.iter().map(|question| question.input_ids.clone()).collect();
    let languages: Vec<&str> = mine.iter().map(|question| question.language.as_str()).collect();
    let generated = generate_by_language(model, &prompts, &languages, options);
    let decoded = generated.iter().map(|tokens| tokenizer.decode(tokens, true));
    let decoded = decoded.collect::<Result<Vec<String>, _>>()?;
    let said = serde_json::to_vec(&decoded).map_err(|source| TrainError::Encode {
        what: "answers",
        source,
    })?;
    // By rank, and dealt out in turn.
    let all: Vec<Vec<String>> = deal
        .gather(said)
        .iter()
        .filter_map(|said| serde_json::from_slice(said).ok())
        .collect();
    let answer = |number: usize| {
        all[number % all.len()]
            .get(number / all.len())
            .cloned()
            .unwrap_or_default()
    };
    let mut counts = BTreeMap::<String, (u64, u64)>::new();
    let mut examples: Vec<Example> = Vec::new();
    for (number, question) in questions.iter().enumerate() {
        let answer = answer(number);
        let count = counts.entry(question.language.clone()).or_default();
        count.0 += u64::from(answer.trim() == question.reference.trim());
        count.1 += 1;
        if examples.len() < EXAMPLES && !examples.iter().any(|known| known.language == question.language) {
            examples.push(Example {
                language: question.language.clone(),
                prompt: question.prompt.clone(),
                answer,
                reference: question.reference.clone(),
            });
        }
    }
    let share = |(right, all): (u64, u64)| right as f64 / all as f64;
    let metrics = |(language, count)| (language, BTreeMap::from([("exact_match".to_owned(), share(count))]));
    Ok((counts.into_iter().map(metrics).collect(), examples))
}
