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

impl Rope {
    /// Whether the frequencies depend on the length of the sequence.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.kind, RopeKind::Dynamic { .. })
    }

    /// Reads the rope of a `config.json`, in either spelling.
    pub(crate) fn read(reader: &Reader, default_positions: usize) -> Result<Self, CheckpointError> {
        let max_position_embeddings = reader.size_or("max_position_embeddings", Some(default_positions))?;
        // `rope_scaling` is the older spelling, and the stronger one in Transformers where a file has both.
        let filled = |value: &&Value| value.as_object().is_none_or(|map| !map.is_empty());
        let nested = reader
            .present("rope_scaling")
            .filter(filled)
            .or(reader.present("rope_parameters"));
        let empty = Value::Object(serde_json::Map::new());
        let inner = Reader {
            path: reader.path,
            json: nested.unwrap_or(&empty),
        };
        if let Some((kind, _)) = inner
            .json
            .as_object()
            .into_iter()
            .flatten()
            .find(|(_, value)| value.is_object())
        {
            return Err(inner.error(
                kind,
                "a number: a rope of its own for each kind of layer is not supported",
            ));
        }
        let theta = match inner.optional_number("rope_theta")? {
            Some(theta) => theta,
            None => reader.number("rope_theta", Some(10_000.0))?,
        };
        for reader in [&inner, reader] {
            if reader.number("partial_rotary_factor", Some(1.0))? != 1.0 {
                return Err(reader.error("partial_rotary_factor", "1"));
            }
        }
        let original = || match reader.present("original_max_position_embeddings") {
            Some(_) => reader.size("original_max_position_embeddings"),
            None => inner.size_or("original_max_position_embeddings", Some(max_position_embeddings)),
        };
        let name = inner
            .present("rope_type")
            .or(inner.present("type"))
            .and_then(Value::as_str)
            .unwrap_or("default");
        let kind = match name {
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
            _ => return Err(inner.error("rope_type", "one of default, linear, dynamic, yarn, llama3")),
        };
        Ok(Rope {
            theta,
            max_position_embeddings,
            kind,
        })
    }
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

/// Inverse frequencies `[head_dim / 2]`, and what cosine and sine are multiplied with. `length`: length of the sequence,
/// which only `Dynamic` looks at.
pub fn inv_freq(rope: &Rope, head_dim: usize, length: usize) -> (Vec<f32>, f32) {
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
            max_position_embeddings: 64,
            kind,
        }
    }

    #[test]
    fn dynamic_equals_default_up_to_the_trained_length_and_slows_down_beyond() {
        let dynamic = rope(RopeKind::Dynamic { factor: 2.0 });
        let default = inv_freq(&rope(RopeKind::Default), 16, 0).0;
        assert_eq!(inv_freq(&dynamic, 16, 64).0, default);
        let longer = inv_freq(&dynamic, 16, 128).0;
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
        let default = inv_freq(&rope(RopeKind::Default), 16, 0).0;
        let scaled = inv_freq(&rope(kind), 16, 0).0;
        assert_eq!(scaled[0], default[0]);
        assert_eq!(scaled[7], default[7] / 8.0);
    }
}
