//! What has a share in a mixture: languages or sources with their samples, and the shares that a recipe gives them.

use std::collections::{BTreeMap, BTreeSet};

use interlingua_recipes::{Mix, MixBy, MixUnit};

use super::shares::units;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::language::canonical;

/// The name that stands for all classes that are not named.
const OTHERS: &str = "*";

/// Sums of ratios this near to 1 are taken for 1.
const ROUNDING: f64 = 1e-6;

/// Languages or sources with their samples, in alphabetical order.
#[derive(Debug)]
pub(super) struct Classes {
    by: MixBy,
    unit: MixUnit,
    pub(super) names: Vec<String>,
    /// The samples of each class, in file order; those that hold no unit are left out, since they cannot make up a share.
    pub(super) samples: Vec<Vec<u32>>,
    /// Units of each class.
    units: Vec<u64>,
}

impl Classes {
    /// The classes of a dataset.
    pub(super) fn new(dataset: &Dataset, mix: &Mix) -> Self {
        let mut all: BTreeMap<&str, (Vec<u32>, u64)> = BTreeMap::new();
        for sample in 0..dataset.len() {
            let units = units(dataset, sample, mix.unit);
            if units == 0 {
                continue;
            }
            let name = match mix.by {
                MixBy::Language => &dataset.languages()[usize::from(dataset.language(sample))],
                MixBy::Source => dataset.source(sample),
            };
            let (samples, sum) = all.entry(name).or_default();
            samples.push(sample as u32);
            *sum += units;
        }
        let mut classes = Classes {
            by: mix.by,
            unit: mix.unit,
            names: Vec::new(),
            samples: Vec::new(),
            units: Vec::new(),
        };
        for (name, (samples, units)) in all {
            classes.names.push(name.to_owned());
            classes.samples.push(samples);
            classes.units.push(units);
        }
        classes
    }

    /// Units of all classes.
    pub(super) fn all_units(&self) -> u64 {
        self.units.iter().sum()
    }

    /// Shares proportional to n^(1/T), n being the units of each class (Arivazhagan et al. 2019, section 4.2).
    pub(super) fn at_temperature(&self, temperature: f64) -> Vec<f64> {
        // The largest class counts as 1, so that a low temperature gives no infinite weights.
        let most = self.units.iter().copied().max().unwrap_or(1) as f64;
        let weights = self
            .units
            .iter()
            .map(|&units| (units as f64 / most).powf(1.0 / temperature));
        scaled(weights.collect())
    }

    /// The shares that ratios give; `key` is where they stand in the recipe. What a person should know is added to the notes.
    ///
    /// # Errors
    /// When a ratio above 0 is given to a class without a sample.
    pub(super) fn of_ratios(
        &self,
        ratios: &BTreeMap<String, f64>,
        key: &str,
        notes: &mut Vec<String>,
    ) -> Result<Vec<f64>, DataError> {
        let mut weights = vec![0.0; self.names.len()];
        let mut named = BTreeSet::new();
        for (given, &ratio) in ratios.iter().filter(|(given, _)| *given != OTHERS) {
            let name = match self.by {
                MixBy::Language => canonical(given).unwrap_or_else(|_| given.clone()),
                MixBy::Source => given.clone(),
            };
            match self.names.binary_search(&name) {
                Ok(class) => {
                    weights[class] += ratio;
                    named.insert(class);
                }
                Err(_) if ratio > 0.0 => return Err(self.without_rows(format!("{key}.{given}"))),
                Err(_) => {}
            }
        }
        let others: Vec<usize> = (0..weights.len()).filter(|class| !named.contains(class)).collect();
        let for_others = ratios.get(OTHERS).copied().unwrap_or(0.0);
        if for_others > 0.0 && others.is_empty() {
            let note = format!("{key} has a ratio for \"*\", but names all that there is: \"*\" stands for nothing.");
            notes.push(note);
        }
        for &class in &others {
            weights[class] = for_others / others.len() as f64;
        }
        let sum: f64 = weights.iter().sum();
        if sum <= 0.0 {
            return Err(self.without_rows(key.to_owned()));
        }
        if (sum - 1.0).abs() > ROUNDING {
            // Enough decimals to see it, and no tail of rounding errors.
            let sum = (sum * 1e6).round() / 1e6;
            notes.push(format!("{key} sum to {sum} and are scaled to sum to 1."));
        }
        Ok(scaled(weights))
    }

    fn without_rows(&self, key: String) -> DataError {
        let (class, holding) = match (self.by, self.unit) {
            (MixBy::Language, MixUnit::SupervisedTokens) => ("language", "supervised tokens"),
            (MixBy::Source, MixUnit::SupervisedTokens) => ("source", "supervised tokens"),
            (MixBy::Language, _) => ("language", "rows"),
            (MixBy::Source, _) => ("source", "rows"),
        };
        DataError::NothingToMix {
            key,
            class,
            holding,
            present: self.names.join(", "),
        }
    }
}

fn scaled(weights: Vec<f64>) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dataset, sample};
    use super::*;
    use proptest::prelude::*;

    fn classes(tokens: &[usize]) -> Classes {
        let samples: Vec<_> = tokens
            .iter()
            .enumerate()
            .map(|(language, &tokens)| sample(language as u32, 0, tokens))
            .collect();
        Classes::new(&dataset(&samples), &Mix::default())
    }

    fn ratios(ratios: &[(&str, f64)]) -> BTreeMap<String, f64> {
        ratios.iter().map(|&(name, ratio)| (name.to_owned(), ratio)).collect()
    }

    #[test]
    fn ratios_are_scaled_and_the_star_is_shared_evenly() {
        let classes = classes(&[5, 5, 5, 5]);
        assert_eq!(classes.names, ["ar", "en", "hi", "sw"]);
        let mut notes = Vec::new();
        for (given, expected) in [
            (&[("EN", 0.5), ("*", 0.5)][..], [1.0 / 6.0, 0.5, 1.0 / 6.0, 1.0 / 6.0]),
            (&[("en", 3.0), ("sw", 1.0), ("xx", 0.0)], [0.0, 0.75, 0.0, 0.25]),
        ] {
            let shares = classes
                .of_ratios(&ratios(given), "data.mix.ratios", &mut notes)
                .unwrap();
            let near = |(share, expected): (&f64, f64)| (share - expected).abs() < 1e-12;
            assert!(shares.iter().zip(expected).all(near), "{shares:?}");
        }
        assert_eq!(notes, ["data.mix.ratios sum to 4 and are scaled to sum to 1."]);
    }

    #[test]
    fn a_ratio_for_what_is_not_there_is_refused() {
        let classes = classes(&[5, 5]);
        let given = ratios(&[("en", 0.5), ("sw", 0.5)]);
        let error = classes
            .of_ratios(&given, "data.mix.ratios", &mut Vec::new())
            .unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("data.mix.ratios.sw") && message.contains("ar, en"),
            "{message}"
        );
    }

    proptest! {
        #[test]
        fn temperature_one_is_proportional_and_a_high_one_even(tokens in prop::collection::vec(1_usize..2000, 1..4)) {
            let classes = classes(&tokens);
            let all: usize = tokens.iter().sum();
            for (share, &tokens) in classes.at_temperature(1.0).iter().zip(&tokens) {
                prop_assert!((share - tokens as f64 / all as f64).abs() < 1e-12);
            }
            for share in classes.at_temperature(1e9) {
                prop_assert!((share - 1.0 / tokens.len() as f64).abs() < 1e-6);
            }
            let cold = classes.at_temperature(1e-3);
            prop_assert!(cold.iter().all(|share| share.is_finite()));
        }
    }
}
