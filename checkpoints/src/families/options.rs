//! The named options of the parametric block, in which families differ, and which of them a checkpoint uses.

use std::fmt::{self, Display};

use crate::blocks::{ActivationKind, BlockConfig, FusedOrder, MlpConfig, NormKind, Positions, Projections};
use crate::config::{AddedPositions, ModelConfig};

/// What sets a family apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OptionName {
    /// RMSNorm or LayerNorm, with an offset or a bias.
    Norm,
    /// Where in a block norms stand.
    NormPlacement,
    /// Norms of queries and keys.
    QkNorm,
    /// Fewer heads of keys and values than of queries.
    GroupedQueries,
    /// A size of heads that is not hidden size by heads.
    HeadDim,
    /// Biases of linear layers.
    Biases,
    /// One layer for queries, keys and values, or for gate and up.
    Fused,
    /// Rotary embedding, ALiBi, learned or sinusoidal positions.
    Positions,
    /// How rotary frequencies are scaled.
    RopeScaling,
    /// A sliding window, and in which blocks.
    Window,
    /// What scores are multiplied with, other than `1 / sqrt(head_dim)`.
    ScoreScale,
    /// Bound of the scores.
    ScoreSoftcap,
    /// The MLP: gated or not, and its nonlinearity.
    Mlp,
    /// Experts and their routing.
    Experts,
    /// Attention and MLP side by side, or the residual stream taken behind the norm.
    Residual,
    /// What the embedding is multiplied with, and its norm.
    Embedding,
    /// Tied or own head, scale and bound of the logits.
    Head,
}

impl OptionName {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Norm,
        Self::NormPlacement,
        Self::QkNorm,
        Self::GroupedQueries,
        Self::HeadDim,
        Self::Biases,
        Self::Fused,
        Self::Positions,
        Self::RopeScaling,
        Self::Window,
        Self::ScoreScale,
        Self::ScoreSoftcap,
        Self::Mlp,
        Self::Experts,
        Self::Residual,
        Self::Embedding,
        Self::Head,
    ];

    /// As the support matrix and `inspect` name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::NormPlacement => "norm placement",
            Self::QkNorm => "QK-norm",
            Self::GroupedQueries => "grouped queries",
            Self::HeadDim => "head size",
            Self::Biases => "biases",
            Self::Fused => "fused projections",
            Self::Positions => "positions",
            Self::RopeScaling => "rope scaling",
            Self::Window => "sliding window",
            Self::ScoreScale => "score scale",
            Self::ScoreSoftcap => "score soft-cap",
            Self::Mlp => "MLP",
            Self::Experts => "experts",
            Self::Residual => "residual",
            Self::Embedding => "embedding",
            Self::Head => "head",
        }
    }
}

impl Display for OptionName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The options that a model uses, each in words.
pub fn of(config: &ModelConfig) -> Vec<(OptionName, String)> {
    let Some(block) = config.blocks.first() else {
        return Vec::new();
    };
    let attention = &block.attention;
    let mut options = vec![(OptionName::Norm, norm(&config.norm.kind))];
    let mut add = |name: OptionName, value: Option<String>| options.extend(value.map(|value| (name, value)));
    add(OptionName::NormPlacement, norm_placement(block));
    add(
        OptionName::QkNorm,
        attention.qk_norm.as_ref().map(|[query, _]| {
            let over = if query.shape == [attention.head_dim] {
                "over each head"
            } else if query.shape.len() == 2 {
                "over each head, with weights of its own"
            } else {
                "over all heads at once"
            };
            format!("{}, {over}", norm(&query.kind))
        }),
    );
    add(
        OptionName::GroupedQueries,
        (attention.kv_heads != attention.heads).then(|| {
            format!(
                "{} query heads on {} of keys and values",
                attention.heads, attention.kv_heads
            )
        }),
    );
    add(
        OptionName::HeadDim,
        (attention.query_size() != config.hidden_size).then(|| attention.head_dim.to_string()),
    );
    add(OptionName::Biases, biases(block));
    add(OptionName::Fused, fused(block));
    add(OptionName::Positions, Some(positions(config)));
    let scalings: Vec<&str> = config.ropes.iter().map(|rope| rope.kind.name()).collect();
    add(
        OptionName::RopeScaling,
        scalings
            .iter()
            .any(|name| *name != "default")
            .then(|| scalings.join(" and ")),
    );
    add(OptionName::Window, window(config));
    let usual = (attention.head_dim as f64).powf(-0.5);
    add(
        OptionName::ScoreScale,
        ((attention.scale - usual).abs() > 1e-9).then(|| format!("{:.4}", attention.scale)),
    );
    add(OptionName::ScoreSoftcap, attention.softcap.map(|cap| cap.to_string()));
    add(OptionName::Mlp, mlp(config));
    add(OptionName::Experts, experts(config));
    let residual = match (block.parallel, block.residual_after_norm) {
        (true, _) => Some("attention and MLP side by side"),
        (false, true) => Some("taken behind the norms"),
        (false, false) => None,
    };
    add(OptionName::Residual, residual.map(str::to_owned));
    add(OptionName::Embedding, embedding(config));
    add(OptionName::Head, Some(head(config)));
    options
}

fn norm(kind: &NormKind) -> String {
    match kind {
        NormKind::Rms { offset: 0.0 } => "RMSNorm".to_owned(),
        NormKind::Rms { offset } => format!("RMSNorm, {offset} + weight"),
        NormKind::Layer { bias: true } => "LayerNorm".to_owned(),
        NormKind::Layer { bias: false } => "LayerNorm without bias".to_owned(),
    }
}

fn norm_placement(block: &BlockConfig) -> Option<String> {
    let before = block.input_norm.is_some();
    let behind = block.attention_output_norm.is_some() && block.mlp_output_norm.is_some();
    let text = match (before, behind) {
        (true, true) => "before and behind attention and MLP",
        (false, true) => "behind attention and MLP",
        (true, false) if block.mlp_norm.is_none() => "one for attention and MLP",
        _ => return None,
    };
    Some(text.to_owned())
}

fn biases(block: &BlockConfig) -> Option<String> {
    let linears = block.linears();
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let with: Vec<String> = linears
        .iter()
        .filter(|linear| linear.bias)
        .map(|linear| last(&linear.path))
        .collect();
    if with.is_empty() {
        return None;
    }
    Some(if with.len() == linears.len() {
        "on all linear layers".to_owned()
    } else {
        format!("on {}", with.join(", "))
    })
}

fn fused(block: &BlockConfig) -> Option<String> {
    let attention = match &block.attention.projections {
        Projections::Separate { .. } => None,
        Projections::Fused {
            order: FusedOrder::ByKind,
            ..
        } => Some("queries, keys, values"),
        Projections::Fused {
            order: FusedOrder::ByHead,
            ..
        } => Some("queries, keys, values head by head"),
    };
    let mlp = matches!(block.mlp, MlpConfig::FusedGated { .. }).then_some("gate and up");
    let parts: Vec<&str> = attention.into_iter().chain(mlp).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn positions(config: &ModelConfig) -> String {
    match &config.embedding.positions {
        AddedPositions::Learned { count, .. } => return format!("learned, {count}"),
        AddedPositions::Sinusoidal { .. } => return "sinusoidal".to_owned(),
        AddedPositions::None => {}
    }
    let count = |wanted: fn(&Positions) -> bool| {
        let blocks = config.blocks.iter();
        blocks.filter(|block| wanted(&block.attention.positions)).count()
    };
    if count(|positions| *positions == Positions::Alibi) > 0 {
        return "ALiBi".to_owned();
    }
    let mut texts: Vec<String> = config
        .ropes
        .iter()
        .map(|rope| {
            let pairs = if rope.interleaved { ", neighbours as pairs" } else { "" };
            let head_dim = config.blocks.first().map_or(0, |block| block.attention.head_dim);
            let part = if rope.dimensions == head_dim {
                String::new()
            } else {
                format!(", on {} of {head_dim} features", rope.dimensions)
            };
            format!("rotary, base {}{pairs}{part}", rope.theta)
        })
        .collect();
    let without = count(|positions| *positions == Positions::None);
    if without > 0 {
        texts.push(format!("none in {without} of {} blocks", config.num_hidden_layers));
    }
    texts.join("; ")
}

fn window(config: &ModelConfig) -> Option<String> {
    let windows: Vec<usize> = config
        .blocks
        .iter()
        .filter_map(|block| block.attention.window)
        .collect();
    let size = windows.iter().max()?;
    Some(if windows.len() == config.num_hidden_layers {
        format!("{size} in all blocks")
    } else {
        format!("{size} in {} of {} blocks", windows.len(), config.num_hidden_layers)
    })
}

fn mlp(config: &ModelConfig) -> Option<String> {
    let activations = config.blocks.iter().find_map(|block| match &block.mlp {
        MlpConfig::Gated { activation, .. } | MlpConfig::FusedGated { activation, .. } => Some((true, *activation)),
        MlpConfig::Plain { activation, .. } => Some((false, *activation)),
        MlpConfig::Experts(_) => None,
    });
    let (gated, activation) = activations?;
    let name = match activation {
        ActivationKind::GeluTanh => "gelu (tanh)",
        other => other.name(),
    };
    Some(if gated {
        format!("gated, {name}")
    } else {
        name.to_owned()
    })
}

fn experts(config: &ModelConfig) -> Option<String> {
    let of_blocks = config.blocks.iter().filter_map(|block| match &block.mlp {
        MlpConfig::Experts(experts) => Some(experts),
        _ => None,
    });
    let of_blocks: Vec<_> = of_blocks.collect();
    let first = of_blocks.first()?;
    let shares = if first.normalized {
        ""
    } else {
        ", shares not normalised"
    };
    let blocks = if of_blocks.len() == config.num_hidden_layers {
        String::new()
    } else {
        format!(" in {} of {} blocks", of_blocks.len(), config.num_hidden_layers)
    };
    Some(format!("{} of {}{shares}{blocks}", first.top_k, first.experts.len()))
}

fn embedding(config: &ModelConfig) -> Option<String> {
    let scale = config.embedding.scale.map(|scale| format!("times {scale:.4}"));
    let norm = config.embedding.norm.is_some().then(|| "normed".to_owned());
    let parts: Vec<String> = scale.into_iter().chain(norm).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn head(config: &ModelConfig) -> String {
    let tied = if config.tie_word_embeddings { "tied" } else { "its own" };
    let scale = config.head.scale.map(|scale| format!(", times {scale}"));
    let cap = config.head.softcap.map(|cap| format!(", soft-cap {cap}"));
    format!("{tied}{}{}", scale.unwrap_or_default(), cap.unwrap_or_default())
}
