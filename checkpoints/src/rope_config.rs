//! The rope of a `config.json`, in the spellings of Transformers 4 and 5.

use serde_json::Value;

use crate::config_reader::Reader;
use crate::error::CheckpointError;
use crate::rope::{Rope, RopeKind, yarn_attention_factor};

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
