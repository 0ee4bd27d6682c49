//! Rotary position embeddings: the inverse frequencies of each kind, in the f32 arithmetic and order of Transformers'
//! `modeling_rope_utils`.

use std::f64::consts::PI;

use serde_json::Value;

use crate::config_reader::Reader;
use crate::error::CheckpointError;

/// The rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base θ of the frequencies.
    pub theta: f64,
    /// Features of a head that are turned; the others stay.
    pub dimensions: usize,
    /// Whether neighbours are turned together, `(x[2i], x[2i + 1])`, rather than `(x[i], x[i + dimensions / 2])`.
    pub interleaved: bool,
    /// `max_position_embeddings` of the config.
    pub max_position_embeddings: usize,
    /// How the frequencies are scaled.
    pub kind: RopeKind,
}

/// How frequencies are scaled to longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeKind {
    /// `θ^(-2i/d)` (Su et al., "RoFormer", 2021).
    Default,
    /// Positions divided by a factor (Chen et al., 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// The base grows with the sequence beyond `max_position_embeddings` (dynamic NTK).
    Dynamic {
        /// The factor.
        factor: f64,
    },
    /// YaRN (Peng et al., 2023).
    Yarn {
        /// The factor.
        factor: f64,
        /// Length the model was trained on first.
        original_max_position_embeddings: usize,
        /// Rotations above which nothing is interpolated.
        beta_fast: f64,
        /// Rotations below which everything is.
        beta_slow: f64,
        /// What cosine and sine are multiplied with.
        attention_factor: f64,
        /// Whether the range of dimensions is rounded to whole ones.
        truncate: bool,
    },
    /// LongRoPE (Ding et al., 2024): a divisor for each frequency, one set for short and one for long sequences.
    Longrope {
        /// Divisors up to the original length.
        short_factor: Vec<f32>,
        /// Divisors beyond it.
        long_factor: Vec<f32>,
        /// Length the model was trained on first.
        original_max_position_embeddings: usize,
        /// What cosine and sine are multiplied with.
        attention_factor: f64,
    },
    /// Llama 3.1's scaling by wavelength.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Divides the length to give the longest wavelength that is kept in part.
        low_freq_factor: f64,
        /// Divides the length to give the wavelength below which all is kept.
        high_freq_factor: f64,
        /// Length the model was trained on first.
        original_max_position_embeddings: usize,
    },
}

impl RopeKind {
    /// The name in a `config.json`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Yarn { .. } => "yarn",
            Self::Longrope { .. } => "longrope",
            Self::Llama3 { .. } => "llama3",
        }
    }
}

/// What a family's configuration class says of ropes.
#[derive(Clone, Copy)]
pub(crate) struct RopeDefaults {
    /// `max_position_embeddings`.
    pub positions: usize,
    /// The base.
    pub theta: f64,
    /// The key of the base outside the rope's own object.
    pub theta_key: &'static str,
    /// Size of a head.
    pub head_dim: usize,
    /// The share of a head that is turned; absent: all of it, and no other value is allowed.
    pub partial: Option<f64>,
    /// The key of that share outside the rope's own object.
    pub partial_key: &'static str,
    /// `original_max_position_embeddings` of the class, whose ropes are longrope or none.
    pub longrope: Option<usize>,
}

impl RopeDefaults {
    /// A rope over whole heads, with the usual keys.
    pub(crate) fn new(positions: usize, theta: f64, head_dim: usize) -> Self {
        Self {
            positions,
            theta,
            theta_key: "rope_theta",
            head_dim,
            partial: None,
            partial_key: "partial_rotary_factor",
            longrope: None,
        }
    }
}

impl Rope {
    /// Whether the frequencies depend on the length of the sequence.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.kind, RopeKind::Dynamic { .. } | RopeKind::Longrope { .. })
    }

    /// Reads the rope of a `config.json`, in either spelling.
    pub(crate) fn read(reader: &Reader, defaults: &RopeDefaults) -> Result<Self, CheckpointError> {
        // `rope_scaling` is the older spelling, and the stronger one in Transformers where a file has both.
        let filled = |value: &&Value| value.as_object().is_none_or(|map| !map.is_empty());
        let nested = reader
            .present("rope_scaling")
            .filter(filled)
            .or(reader.present("rope_parameters"));
        let empty = Value::Object(serde_json::Map::new());
        let inner = Reader {
            json: nested.unwrap_or(&empty),
            ..*reader
        };
        if let Some((kind, _)) = inner
            .json
            .as_object()
            .into_iter()
            .flatten()
            .find(|(_, value)| value.is_object())
        {
            return Err(inner.error(kind, "a number: models of this family have one rope for all layers"));
        }
        Self::from_parts(reader, &inner, defaults)
    }

    /// Reads the rope of one type of layer: `rope_parameters` by type, or `rope_scaling` (which is for `full_attention` alone)
    /// beside the key of the base.
    pub(crate) fn read_of_layers(
        reader: &Reader,
        layers: &str,
        theta_key: &'static str,
        defaults: &RopeDefaults,
    ) -> Result<Self, CheckpointError> {
        let own = reader.present("rope_parameters").and_then(|ropes| ropes.get(layers));
        let scaling = reader.present("rope_scaling").filter(|_| layers == "full_attention");
        let empty = Value::Object(serde_json::Map::new());
        let inner = Reader {
            json: own.filter(|own| !own.is_null()).or(scaling).unwrap_or(&empty),
            ..*reader
        };
        let defaults = RopeDefaults { theta_key, ..*defaults };
        Self::from_parts(reader, &inner, &defaults)
    }

    /// `inner`: the rope's own object.
    fn from_parts(reader: &Reader, inner: &Reader, defaults: &RopeDefaults) -> Result<Self, CheckpointError> {
        let max_position_embeddings = reader.size_or("max_position_embeddings", Some(defaults.positions))?;
        let theta = match inner.optional_number("rope_theta")? {
            Some(theta) => theta,
            None => reader.number(defaults.theta_key, Some(defaults.theta))?,
        };
        let dimensions = turned(reader, inner, defaults)?;
        let kind = kind(reader, inner, defaults, max_position_embeddings, dimensions)?;
        Ok(Rope {
            theta,
            dimensions,
            interleaved: false,
            max_position_embeddings,
            kind,
        })
    }
}

/// How many features of a head are turned.
fn turned(reader: &Reader, inner: &Reader, defaults: &RopeDefaults) -> Result<usize, CheckpointError> {
    let Some(default) = defaults.partial else {
        for reader in [inner, reader] {
            if reader.number("partial_rotary_factor", Some(1.0))? != 1.0 {
                return Err(reader.error("partial_rotary_factor", "1: models of this family turn whole heads"));
            }
        }
        return Ok(defaults.head_dim);
    };
    let share = match inner.optional_number("partial_rotary_factor")? {
        Some(share) => share,
        None => reader.number(defaults.partial_key, Some(default))?,
    };
    if !(0.0..=1.0).contains(&share) {
        return Err(reader.error(defaults.partial_key, "a share between 0 and 1"));
    }
    Ok((defaults.head_dim as f64 * share) as usize)
}

fn kind(
    reader: &Reader,
    inner: &Reader,
    defaults: &RopeDefaults,
    max_position_embeddings: usize,
    dimensions: usize,
) -> Result<RopeKind, CheckpointError> {
    let original = || match reader.present("original_max_position_embeddings") {
        Some(_) => reader.size("original_max_position_embeddings"),
        None => inner.size_or("original_max_position_embeddings", Some(max_position_embeddings)),
    };
    let key = if inner.present("rope_type").is_some() {
        "rope_type"
    } else {
        "type"
    };
    let name = match inner.present(key) {
        None => "default",
        Some(value) => value.as_str().ok_or_else(|| inner.error(key, "the name of a rope"))?,
    };
    if let Some(usual) = defaults.longrope {
        return match name {
            "default" => Ok(RopeKind::Default),
            // The key outside is the stronger one, also by its default, but for the two old names.
            "longrope" => {
                let original = reader.size_or("original_max_position_embeddings", Some(usual))?;
                longrope(inner, max_position_embeddings, original, dimensions)
            }
            "su" | "yarn" => {
                let outside = reader.size_or("original_max_position_embeddings", Some(usual))?;
                let original = inner.size_or("original_max_position_embeddings", Some(outside))?;
                longrope(inner, max_position_embeddings, original, dimensions)
            }
            _ => Err(inner.error(key, "one of default, longrope")),
        };
    }
    Ok(match name {
        "default" => RopeKind::Default,
        "linear" => RopeKind::Linear {
            factor: inner.number("factor", None)?,
        },
        "dynamic" => RopeKind::Dynamic {
            factor: inner.number("factor", None)?,
        },
        "llama3" => RopeKind::Llama3 {
            factor: inner.number("factor", None)?,
            low_freq_factor: inner.number("low_freq_factor", None)?,
            high_freq_factor: inner.number("high_freq_factor", None)?,
            original_max_position_embeddings: original()?,
        },
        "longrope" => longrope(inner, max_position_embeddings, original()?, dimensions)?,
        "yarn" => {
            let original = original()?;
            // Transformers 4 takes this ratio even where there is a factor; 5 and the authors of YaRN models the factor.
            let ratio = max_position_embeddings as f64 / original as f64;
            let factor = inner.number("factor", Some(ratio))?;
            let mscale = inner.optional_number("mscale")?;
            let mscale_all_dim = inner.optional_number("mscale_all_dim")?;
            let own = yarn_attention_factor(factor, mscale, mscale_all_dim);
            RopeKind::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast: inner.number("beta_fast", Some(32.0))?,
                beta_slow: inner.number("beta_slow", Some(1.0))?,
                attention_factor: inner.number("attention_factor", Some(own))?,
                truncate: inner.flag("truncate", true)?,
            }
        }
        _ => return Err(inner.error(key, "one of default, linear, dynamic, yarn, llama3, longrope")),
    })
}

fn longrope(
    inner: &Reader,
    max_position_embeddings: usize,
    original: usize,
    dimensions: usize,
) -> Result<RopeKind, CheckpointError> {
    let count = dimensions / 2;
    let factors = |key: &str| -> Result<Vec<f32>, CheckpointError> {
        let numbers = inner.present(key).and_then(Value::as_array);
        let numbers = numbers.and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
        let numbers = numbers.filter(|numbers| numbers.len() == count && numbers.iter().all(|number| *number > 0.0));
        let numbers = numbers.ok_or_else(|| {
            inner.error(
                key,
                &format!("a list of {count} numbers above 0, one for each pair of features that is turned"),
            )
        })?;
        Ok(numbers.into_iter().map(|number| number as f32).collect())
    };
    let factor = inner.number("factor", Some(max_position_embeddings as f64 / original as f64))?;
    let own = if factor <= 1.0 {
        1.0
    } else {
        (1.0 + factor.ln() / (original as f64).ln()).sqrt()
    };
    Ok(RopeKind::Longrope {
        short_factor: factors("short_factor")?,
        long_factor: factors("long_factor")?,
        original_max_position_embeddings: original,
        attention_factor: inner.number("attention_factor", Some(own))?,
    })
}

/// YaRN's attention factor where the config gives none: 0.1 ln(factor) + 1, or the ratio of two `mscale`s.
pub fn yarn_attention_factor(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let scale = |mscale: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * mscale * factor.ln() + 1.0
        }
    };
    match (
        mscale.filter(|value| *value != 0.0),
        mscale_all_dim.filter(|value| *value != 0.0),
    ) {
        (Some(mscale), Some(all)) => scale(mscale) / scale(all),
        _ => scale(1.0),
    }
}

/// Inverse frequencies `[dimensions / 2]`, and what cosine and sine are multiplied with. `length`: length of the sequence,
/// which only `Dynamic` and `Longrope` look at.
pub fn inv_freq(rope: &Rope, length: usize) -> (Vec<f32>, f32) {
    let head_dim = rope.dimensions;
    let base = |theta: f64| {
        let exponents = (0..head_dim)
            .step_by(2)
            .map(move |index| index as f32 / head_dim as f32);
        exponents.map(move |exponent| (theta as f32).powf(exponent))
    };
    let plain = || base(rope.theta).map(|power| 1.0 / power);
    match &rope.kind {
        RopeKind::Default => (plain().collect(), 1.0),
        RopeKind::Linear { factor } => (plain().map(|frequency| frequency / *factor as f32).collect(), 1.0),
        RopeKind::Dynamic { factor } => {
            let maximum = rope.max_position_embeddings;
            if length <= maximum {
                return (plain().collect(), 1.0);
            }
            let dimension = head_dim as f64;
            let stretch = *factor as f32 * length as f32 / maximum as f32 - (*factor - 1.0) as f32;
            let growth = stretch.powf((dimension / (dimension - 2.0)) as f32);
            (
                base(f64::from(rope.theta as f32 * growth))
                    .map(|power| 1.0 / power)
                    .collect(),
                1.0,
            )
        }
        RopeKind::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => {
            let dimension = head_dim as f64;
            let correction = |rotations: f64| {
                let turns = *original_max_position_embeddings as f64 / (rotations * 2.0 * PI);
                dimension * turns.ln() / (2.0 * rope.theta.ln())
            };
            let (mut low, mut high) = (correction(*beta_fast), correction(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(dimension - 1.0));
            if low == high {
                high += 0.001;
            }
            let frequencies = base(rope.theta).enumerate().map(|(index, power)| {
                let ramp = ((index as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let kept = 1.0 - ramp;
                1.0 / (*factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
            });
            (frequencies.collect(), *attention_factor as f32)
        }
        RopeKind::Longrope {
            short_factor,
            long_factor,
            original_max_position_embeddings,
            attention_factor,
        } => {
            let factors = if length > *original_max_position_embeddings {
                long_factor
            } else {
                short_factor
            };
            let frequencies = base(rope.theta)
                .zip(factors)
                .map(|(power, factor)| 1.0 / (factor * power));
            (frequencies.collect(), *attention_factor as f32)
        }
        RopeKind::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let length = *original_max_position_embeddings as f64;
            let (low, high) = (*low_freq_factor, *high_freq_factor);
            let (longest, shortest) = ((length / low) as f32, (length / high) as f32);
            let scaled = plain().map(|frequency| {
                let wavelength = (2.0 * PI) as f32 / frequency;
                let divided = frequency / *factor as f32;
                if wavelength > longest {
                    divided
                } else if wavelength < shortest {
                    frequency
                } else {
                    let smooth = (length as f32 / wavelength - low as f32) / (high - low) as f32;
                    (1.0 - smooth) * frequency / *factor as f32 + smooth * frequency
                }
            });
            (scaled.collect(), 1.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(kind: RopeKind) -> Rope {
        Rope {
            theta: 10_000.0,
            dimensions: 16,
            interleaved: false,
            max_position_embeddings: 64,
            kind,
        }
    }

    #[test]
    fn dynamic_equals_default_up_to_the_trained_length_and_slows_down_beyond() {
        let dynamic = rope(RopeKind::Dynamic { factor: 2.0 });
        let default = inv_freq(&rope(RopeKind::Default), 0).0;
        assert_eq!(inv_freq(&dynamic, 64).0, default);
        let longer = inv_freq(&dynamic, 128).0;
        assert!(
            longer
                .iter()
                .zip(&default)
                .skip(1)
                .all(|(longer, default)| longer < default)
        );
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
        let kind = RopeKind::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        };
        let default = inv_freq(&rope(RopeKind::Default), 0).0;
        let scaled = inv_freq(&rope(kind), 0).0;
        assert_eq!(scaled[0], default[0]);
        assert_eq!(scaled[7], default[7] / 8.0);
    }
}
