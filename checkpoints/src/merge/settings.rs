//! How to merge: the methods, what the user may say about them, and what follows from it.

use std::str::FromStr;

use crate::error::CheckpointError;

/// How tensors of one name become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The weighted mean.
    Linear,
    /// Spherical interpolation between two.
    Slerp,
    /// Trimmed task vectors with elected signs.
    Ties,
    /// Randomly thinned task vectors with elected signs.
    DareTies,
}

impl Method {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Slerp => "slerp",
            Self::Ties => "ties",
            Self::DareTies => "dare-ties",
        }
    }

    /// Whether it merges differences to a base.
    pub fn has_base(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies)
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let methods = [Self::Linear, Self::Slerp, Self::Ties, Self::DareTies];
        let found = methods.into_iter().find(|method| method.name() == text);
        found.ok_or_else(|| "the methods are linear, slerp, ties and dare-ties".to_owned())
    }
}

/// What of adapters is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combination {
    /// Their updates `s·B·A`: the matrices are put side by side, so that ranks add up.
    Exact,
    /// The entries of A, and those of B.
    EntryWise,
}

impl Combination {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::EntryWise => "entry-wise",
        }
    }
}

impl FromStr for Combination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Exact, Self::EntryWise]
            .into_iter()
            .find(|combination| combination.name() == text);
        found.ok_or_else(|| "write exact or entry-wise".to_owned())
    }
}

/// What the user asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The method.
    pub method: Method,
    /// A weight for each parent; none: all alike.
    pub weights: Option<Vec<f64>>,
    /// Share of the task vectors' entries that is kept; none: 0.2 for `ties`, 0.5 for `dare-ties`.
    pub density: Option<f64>,
    /// λ, what the merged task vector is multiplied by; none: 1.
    pub scale: Option<f64>,
    /// Where the randomness of `dare-ties` comes from.
    pub seed: u64,
    /// What of adapters is merged; none: exact for `linear`, entry-wise for the others.
    pub combination: Option<Combination>,
}

/// The same with every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The method.
    pub method: Method,
    /// A weight for each parent; they sum to 1.
    pub weights: Vec<f64>,
    /// Share of the task vectors' entries that is kept.
    pub density: f64,
    /// λ.
    pub scale: f64,
    /// Where the randomness of `dare-ties` comes from.
    pub seed: u64,
}

impl Settings {
    /// Checks options for a number of parents; notes say what was changed.
    pub(super) fn resolve(options: &Options, parents: usize) -> Result<(Self, Vec<String>), CheckpointError> {
        let method = options.method;
        let refuse = |problem: String| Err(CheckpointError::Merge(problem));
        if parents < 2 {
            return refuse(format!("merging takes two folders or more, found {parents}"));
        }
        if method == Method::Slerp && parents != 2 {
            return refuse(format!(
                "slerp merges two, found {parents}; merge two and then the result with the next, or use linear"
            ));
        }
        for (name, is_given) in [
            ("density", options.density.is_some()),
            ("scale", options.scale.is_some()),
        ] {
            if is_given && !method.has_base() {
                return refuse(format!(
                    "a {name} is for ties and dare-ties, which {} is not; leave it out",
                    method.name()
                ));
            }
        }
        let density = options.density.unwrap_or(match method {
            Method::DareTies => 0.5,
            _ => 0.2,
        });
        if !(density > 0.0 && density <= 1.0) {
            return refuse(format!(
                "the density is {density}, but must be above 0 and at most 1: the share of entries that is kept"
            ));
        }
        let scale = options.scale.unwrap_or(1.0);
        if !(scale > 0.0 && scale.is_finite()) {
            return refuse(format!("the scale is {scale}, but must be a number above 0"));
        }
        let mut notes = Vec::new();
        let weights = match &options.weights {
            None => vec![1.0 / parents as f64; parents],
            Some(given) => normalised(given, parents, &mut notes)?,
        };
        let settings = Self {
            method,
            weights,
            density,
            scale,
            seed: options.seed,
        };
        Ok((settings, notes))
    }

    /// The method with its numbers, in words.
    pub fn describe(&self) -> String {
        let weights: Vec<String> = self.weights.iter().map(|weight| short(*weight)).collect();
        let mut text = format!("{}, weights {}", self.method.name(), weights.join(", "));
        if self.method.has_base() {
            text.push_str(&format!(", density {}, scale {}", self.density, self.scale));
        }
        if self.method == Method::DareTies {
            text.push_str(&format!(", seed {}", self.seed));
        }
        text
    }
}

fn normalised(given: &[f64], parents: usize, notes: &mut Vec<String>) -> Result<Vec<f64>, CheckpointError> {
    let refuse = |problem: String| Err(CheckpointError::Merge(problem));
    if given.len() != parents {
        return refuse(format!(
            "there are {} weights for {parents} folders; give one for each, in the same order",
            given.len()
        ));
    }
    if let Some(wrong) = given.iter().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
        return refuse(format!("the weight {wrong} is no number of at least 0"));
    }
    let total: f64 = given.iter().sum();
    if total <= 0.0 || !total.is_finite() {
        return refuse("all weights are 0; give at least one above 0".to_owned());
    }
    let weights: Vec<f64> = given.iter().map(|weight| weight / total).collect();
    if (total - 1.0).abs() > 1e-9 {
        let list = |weights: &[f64]| {
            weights
                .iter()
                .map(|weight| short(*weight))
                .collect::<Vec<_>>()
                .join(", ")
        };
        notes.push(format!(
            "the weights {} sum to {} and are taken as {}",
            list(given),
            short(total),
            list(&weights)
        ));
    }
    Ok(weights)
}

/// A number with at most four decimals.
pub(super) fn short(number: f64) -> String {
    let text = format!("{number:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(method: Method) -> Options {
        Options {
            method,
            weights: None,
            density: None,
            scale: None,
            seed: 0,
            combination: None,
        }
    }

    fn resolved(options: &Options, parents: usize) -> Result<(Settings, Vec<String>), String> {
        Settings::resolve(options, parents).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_filled_in_and_weights_sum_to_one() {
        let (settings, notes) = resolved(&options(Method::Ties), 4).unwrap();
        assert_eq!((settings.density, settings.scale), (0.2, 1.0));
        assert_eq!((settings.weights, notes), (vec![0.25; 4], vec![]));
        assert_eq!(resolved(&options(Method::DareTies), 2).unwrap().0.density, 0.5);
        let weighted = Options {
            weights: Some(vec![1.0, 3.0]),
            ..options(Method::Slerp)
        };
        let (settings, notes) = resolved(&weighted, 2).unwrap();
        assert_eq!(settings.weights, [0.25, 0.75]);
        assert_eq!(notes, ["the weights 1, 3 sum to 4 and are taken as 0.25, 0.75"]);
        assert_eq!(settings.describe(), "slerp, weights 0.25, 0.75");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let refused = |change: &dyn Fn(&mut Options), method, parents| {
            let mut options = options(method);
            change(&mut options);
            resolved(&options, parents).unwrap_err()
        };
        let plain = |_: &mut Options| {};
        assert!(refused(&plain, Method::Slerp, 3).starts_with("slerp merges two, found 3"));
        assert!(refused(&plain, Method::Linear, 1).contains("two folders or more"));
        assert!(refused(&|options| options.density = Some(0.5), Method::Linear, 2).contains("a density is for ties"));
        assert!(refused(&|options| options.scale = Some(0.5), Method::Slerp, 2).contains("a scale is for ties"));
        assert!(refused(&|options| options.density = Some(0.0), Method::Ties, 2).contains("above 0 and at most 1"));
        assert!(refused(&|options| options.scale = Some(f64::NAN), Method::Ties, 2).contains("the scale is NaN"));
        let weights = |weights: &'static [f64]| move |options: &mut Options| options.weights = Some(weights.to_vec());
        assert!(refused(&weights(&[1.0]), Method::Linear, 2).contains("1 weights for 2 folders"));
        assert!(refused(&weights(&[2.0, -1.0]), Method::Linear, 2).contains("the weight -1 is no number"));
        assert!(refused(&weights(&[0.0, 0.0]), Method::Linear, 2).contains("all weights are 0"));
    }
}
