//! Rotary position embeddings: the inverse frequencies of each kind, in the f32 arithmetic and order of Transformers'
//! `modeling_rope_utils`.

use std::f64::consts::PI;

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

impl Rope {
    /// Whether the frequencies depend on the length of the sequence.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.kind, RopeKind::Dynamic { .. } | RopeKind::Longrope { .. })
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
