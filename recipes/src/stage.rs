//! `[[stage]]`: a pipeline of runs, each with keys of its own laid over the rest of the recipe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::adapter::{AdapterKind, NUMBERS};
use crate::document::LENGTHS;
use crate::error::Finding;
use crate::keys;
use crate::merge::{self, Merge};
use crate::recipe::Recipe;
use crate::train::Parameters;

/// One stage of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Name of the stage, and of its folder in `output`.
    pub name: String,
    /// The stage whose model or adapter this one goes on from; `None`: the stage before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Makes the stage a merge; then it has a name and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merge>,
    /// The recipe keys that are laid over the rest.
    #[serde(flatten)]
    pub overlay: Table,
}

impl JsonSchema for Stage {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Stage".into()
    }

    /// Filled in by `schema.rs`, which has the keys of a recipe.
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "object" })
    }
}

/// What a stage is made of: its recipe, or what is wrong with it.
pub(crate) type Expanded = Result<Recipe, Vec<Finding>>;

/// One recipe per stage, in order; the recipe itself when it has no stages. `base` is the recipe as a table.
pub(crate) fn expand(recipe: &Recipe, base: &Table) -> Vec<Expanded> {
    let mut expanded: Vec<Expanded> = Vec::new();
    for (index, stage) in recipe.stage.iter().enumerate() {
        let next = unique(recipe, index).and_then(|()| {
            if let Some(merge) = &stage.merge {
                let names = recipe.stage.iter().map(|stage| stage.name.as_str());
                let earlier: Vec<_> = names.zip(expanded.iter().map(|stage| stage.as_ref().ok())).collect();
                return merge::stage(recipe, stage, merge, &earlier);
            }
            let from = source(recipe, index)?;
            let from = match from.map(|from| &expanded[from]) {
                // What is wrong there was already said there.
                Some(Err(_)) => return Err(Vec::new()),
                Some(Ok(from)) => Some(from),
                None => None,
            };
            one(recipe, base, stage, from)
        });
        expanded.push(next);
    }
    expanded
}

/// An error when a stage before has the same name.
fn unique(recipe: &Recipe, index: usize) -> Result<(), Vec<Finding>> {
    let name = &recipe.stage[index].name;
    if recipe.stage[..index].iter().any(|earlier| earlier.name == *name) {
        let message = format!("is {name:?}, as is that of a stage before it. Give each a name of its own.");
        return Err(vec![Finding::at("name", &message)]);
    }
    Ok(())
}

/// The index of the stage that this one goes on from.
fn source(recipe: &Recipe, index: usize) -> Result<Option<usize>, Vec<Finding>> {
    let stage = &recipe.stage[index];
    let earlier: Vec<&str> = recipe.stage[..index].iter().map(|stage| stage.name.as_str()).collect();
    let Some(from) = &stage.from else {
        return Ok(index.checked_sub(1));
    };
    earlier.iter().position(|name| name == from).map(Some).ok_or_else(|| {
        let advice = keys::stage_advice(from, &earlier, "This is the first stage: leave `from` out.");
        vec![Finding::at(
            "from",
            &format!("is {from:?}, which is no stage before this one. {advice}"),
        )]
    })
}

fn one(recipe: &Recipe, base: &Table, stage: &Stage, from: Option<&Recipe>) -> Expanded {
    let mut table = base.clone();
    table.remove("stage");
    lay_over(&mut table, &stage.overlay);
    let output = recipe.output.join(&stage.name);
    table.insert(
        "output".to_owned(),
        Value::String(output.to_string_lossy().into_owned()),
    );
    if let Some(from) = from {
        go_on_from(&mut table, &stage.overlay, from)?;
    }
    Recipe::finish(table, &recipe.file)
}

/// Lays tables over tables, key by key; anything else takes the place of what was there.
fn lay_over(below: &mut Table, above: &Table) {
    for (key, value) in above {
        match (below.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => {
                if key == "train" && LENGTHS.iter().any(|length| above.contains_key(*length)) {
                    LENGTHS.iter().for_each(|length| drop(below.remove(*length)));
                }
                // `[adapter]` without a kind means LoRA, also over a recipe that trains base weights.
                if key == "adapter" && below.get("kind").and_then(Value::as_str) == Some("none") {
                    below.remove("kind");
                }
                // The keys that one kind of adapter reads are not those of another.
                if key == "adapter" && above.get("kind").is_some_and(|kind| below.get("kind") != Some(kind)) {
                    below.retain(|key, _| !NUMBERS.contains(&key));
                }
                // Nor is the format that one optimizer keeps its moments in.
                if key == "optimizer" && above.contains_key("kind") {
                    below.remove("moments");
                }
                // Nor are those of one quantisation those of another.
                if key == "quantization"
                    && above
                        .get("scheme")
                        .is_some_and(|scheme| below.get("scheme") != Some(scheme))
                {
                    below.retain(|key, _| key == "head");
                }
                // The numbers of one objective are not those of another.
                if key == "objective" && above.contains_key("kind") {
                    below.retain(|key, _| key == "weight" || key == "auxiliary");
                }
                lay_over(below, above);
            }
            _ => drop(below.insert(key.clone(), value.clone())),
        }
    }
}

/// Feeds what an earlier stage trained to this one, except where this one says itself what it starts from.
fn go_on_from(table: &mut Table, overlay: &Table, from: &Recipe) -> Result<(), Vec<Finding>> {
    let own = |of: &str, key: &str| {
        overlay
            .get(of)
            .and_then(Value::as_table)
            .is_some_and(|of| of.contains_key(key))
    };
    let text = |path: std::path::PathBuf| Value::String(path.to_string_lossy().into_owned());
    let trained_base = from.adapter.kind == AdapterKind::None;
    let adapter = table.get("adapter").and_then(Value::as_table);
    let has_adapter = adapter.is_some_and(|adapter| adapter.get("kind").and_then(Value::as_str) != Some("none"));
    if !own("model", "path") {
        if !(trained_base || has_adapter) {
            let message = "`model.path` is not set, and the stage this one goes on from leaves an adapter, while this one trains base \
                           weights. Set it to a model folder, or train an adapter here too.";
            return Err(vec![Finding {
                path: vec!["from".to_owned()],
                message: message.to_owned(),
            }]);
        }
        if !trained_base && from.train.parameters != Parameters::Auto && !own("adapter", "init_from") {
            let message = "`model.path` is not set, and the stage this one goes on from trains an adapter and chosen parameters. \
                           Set `model.path` and `adapter.init_from` to what it should start from.";
            return Err(vec![Finding {
                path: vec!["from".to_owned()],
                message: message.to_owned(),
            }]);
        }
        let path = if trained_base {
            text(from.output.join("model"))
        } else {
            Value::String(from.model.path.clone())
        };
        let model = table.entry("model").or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(model) = model {
            model.insert("path".to_owned(), path);
            if trained_base && !own("model", "init") {
                model.insert("init".to_owned(), Value::String("weights".to_owned()));
            }
        }
    }
    if !trained_base
        && has_adapter
        && !own("adapter", "init_from")
        // An adapter on top of others is a new one.
        && !own("adapter", "under")
        && let Some(Value::Table(adapter)) = table.get_mut("adapter")
    {
        adapter.insert("init_from".to_owned(), text(from.output.join("adapter")));
    }
    Ok(())
}
