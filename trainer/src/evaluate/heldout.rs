//! The held-out samples of a run, measured by its main loss.

use std::collections::BTreeMap;

use interlingua_checkpoints::blocks::BlockConfig;
use interlingua_data::batch::MicroBatch;
use interlingua_data::dataset::Dataset;
use interlingua_data::tokenizer::Tokenizer;

use super::perplexity::BATCH_TOKENS;
use super::scores::{Scores, Scoring};
use crate::engine::head::{Targets, log_probs};
use crate::engine::routing::ExpertUse;
use crate::error::TrainError;
use crate::models::Model;
use crate::train::main_loss::{Company, MainLoss, Totals, boundaries};
use crate::train::ranks::Deal;
use crate::train::reference::Reference;
use crate::train::step::{Tally, inputs_and_targets};

/// What the held-out samples are called in `metrics.jsonl`.
pub const HELDOUT: &str = "heldout";

/// The language that the others are compared with.
const ANCHOR: &str = "en";

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

/// Losses of the held-out samples under the main loss: per token, with perplexity and bits per byte, or per pair, with
/// how often the chosen answer has the higher reward, and by how much.
pub(super) fn heldout_losses(
    model: &Model,
    tokenizer: &Tokenizer,
    heldout: Heldout,
    deal: Deal,
) -> Result<Scores, TrainError> {
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
    let mut used = vec![ExpertUse::default(); data.languages().len()];
    for (_, batch) in batches.iter().enumerate().filter(|(number, _)| deal.is_mine(*number)) {
        let boundaries = boundaries(batch);
        let (inputs, _) = inputs_and_targets(model, batch, data.languages());
        let targets = main.targets(data, batch, &boundaries, false);
        let (hidden, routing) = model.routed_hidden_state(&inputs);
        for sequence in &batch.sequences {
            used[usize::from(sequence.language)].add(&routing, &sequence.range());
        }
        let log_probs = log_probs(model, &hidden, &targets.targets);
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
    let used = summed_use(used, model, deal);
    let (by_language, _) = tally.finish(!main.is_linear());
    let index = |language: &str| data.languages().iter().position(|known| known == language);
    let mut scoring = Scoring::new(ANCHOR);
    for (language, sum) in by_language {
        let metrics = if main.is_linear() {
            token_metrics(sum.loss, sum.tokens, index(&language).map_or(0, |index| bytes[index]))
        } else {
            let rewards = sum.rewards.unwrap_or_default();
            let known = [
                ("accuracy", rewards.accuracy),
                ("margin", rewards.margin),
                ("loss", Some(sum.loss)),
            ];
            let known = known.into_iter();
            known
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect()
        };
        metrics
            .iter()
            .for_each(|(name, value)| scoring.set(&language, name, *value));
        if let Some(index) = index(&language) {
            scoring.set_experts(&language, &used[index]);
        }
        scoring.row.items.insert(language, sum.samples);
    }
    Ok(scoring.finish())
}

/// Counts, added up over the processes that share the work.
fn summed(counts: Vec<u64>, deal: Deal) -> Vec<u64> {
    let mut values: Vec<f64> = counts.into_iter().map(|count| count as f64).collect();
    deal.add_up(&mut values);
    values.into_iter().map(|value| value as u64).collect()
}

/// The use of experts, added up over the processes that share the work.
fn summed_use(used: Vec<ExpertUse>, model: &Model, deal: Deal) -> Vec<ExpertUse> {
    if !model.config.has_experts() {
        return used;
    }
    let of_block = |block: &BlockConfig| block.mlp.experts().map_or(0, |experts| experts.experts.len());
    let experts: Vec<usize> = model.config.blocks.iter().map(of_block).collect();
    let of_language = |used: ExpertUse| {
        let mut all = ExpertUse {
            counts: experts.iter().map(|experts| vec![0; *experts]).collect(),
        };
        all.add_all(&used.counts);
        all.counts.into_iter().flatten()
    };
    let counts = summed(used.into_iter().flat_map(of_language).collect(), deal);
    let each = experts.iter().sum::<usize>().max(1);
    let of_language = |counts: &[u64]| {
        let mut rest = counts;
        let mut take = |experts: &usize| {
            let (own, behind) = rest.split_at(*experts);
            rest = behind;
            own.to_vec()
        };
        ExpertUse {
            counts: experts.iter().map(&mut take).collect(),
        }
    };
    counts.chunks(each).map(of_language).collect()
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
