//! What was asked of a mixture, and what came of it.

use std::collections::BTreeMap;

use interlingua_recipes::MixUnit;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;

/// Asked and reached shares at a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shares {
    /// By class: languages or sources, as `data.mix.by` says.
    pub by: BTreeMap<String, Share>,
}

/// The share of one class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// What the recipe asks for at this step.
    pub asked: f64,
    /// What was drawn from the start of the phase of the schedule up to and including the step, in the mix's unit.
    pub reached: f64,
}

/// What a whole run reads.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// By language.
    #[serde(rename = "by_language")]
    pub languages: BTreeMap<String, Planned>,
    /// By source.
    #[serde(rename = "by_source")]
    pub sources: BTreeMap<String, Planned>,
}

/// What a whole run reads of one language or source.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Planned {
    /// The share that the recipe asks for, as a mean over the run; none when it asks for none.
    pub asked: Option<f64>,
    /// The share that the run has, in the mix's unit; in tokens without a mix.
    pub reached: f64,
    /// How often the samples are seen: draws / samples.
    pub epochs: f64,
}

/// Units of a sample.
pub(super) fn units(dataset: &Dataset, sample: usize, unit: MixUnit) -> u64 {
    match unit {
        MixUnit::Tokens => dataset.length(sample) as u64,
        MixUnit::SupervisedTokens => dataset.supervised(sample) as u64,
        MixUnit::Samples => 1,
    }
}

/// What comes of drawing each sample so often; parts of draws where a long run is estimated.
pub(super) fn plan(dataset: &Dataset, draws: &[f64], unit: MixUnit) -> Plan {
    let languages = tally(dataset, draws, unit, |sample| {
        dataset.languages()[usize::from(dataset.language(sample))].as_str()
    });
    let sources = tally(dataset, draws, unit, |sample| dataset.source(sample));
    Plan { languages, sources }
}

fn tally<'a>(
    dataset: &Dataset,
    draws: &[f64],
    unit: MixUnit,
    class: impl Fn(usize) -> &'a str,
) -> BTreeMap<String, Planned> {
    /// Samples, draws and units drawn of one class.
    #[derive(Default)]
    struct Sums(u64, f64, f64);
    let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
    for (sample, &draws) in draws.iter().enumerate() {
        let sums = sums.entry(class(sample)).or_default();
        sums.0 += 1;
        sums.1 += draws;
        sums.2 += draws * units(dataset, sample, unit) as f64;
    }
    let all: f64 = sums.values().map(|sums| sums.2).sum();
    let planned = |sums: Sums| Planned {
        asked: None,
        reached: sums.2 / all.max(f64::MIN_POSITIVE),
        epochs: sums.1 / sums.0 as f64,
    };
    sums.into_iter()
        .map(|(name, sums)| (name.to_owned(), planned(sums)))
        .collect()
}
