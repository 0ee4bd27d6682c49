//! What `[model.quantization]` must hold beyond what a schema can say.

use crate::adapter::AdapterKind;
use crate::error::Finding;
use crate::quantization::Quantization;
use crate::recipe::Recipe;
use crate::selector::Selector;
use crate::train::Parameters;

/// The linear layers of a block.
const LINEAR: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// More blocks than a model has, whose number a recipe does not know.
const BLOCKS: usize = 256;

pub(super) fn check(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let Some(quantization) = &recipe.model.quantization else {
        return;
    };
    check_block(recipe, findings);
    let parameters = &recipe.train.parameters;
    if recipe.adapter.kind == AdapterKind::None && *parameters == Parameters::Auto {
        let message = "keeps the weights of linear layers in few bits, in which they cannot be trained, and without an \
                       adapter everything is. Add [adapter], or name in train.parameters what is not quantised, such as \
                       [\"embed_tokens\"].";
        findings.push(Finding::at("model.quantization", message));
    }
    // A pattern that is none is reported elsewhere.
    if let Ok(Some(selector)) = parameters.selector()
        && let Some(name) = quantised(quantization).find(|name| selector.selects(&format!("{name}.weight")))
    {
        let message = format!(
            "selects {name}.weight, which `model.quantization` keeps in few bits, so that it cannot be trained. Select \
             other parameters, or leave model.quantization out."
        );
        findings.push(Finding::at("train.parameters", &message));
    }
    for (index, module) in recipe.adapter.modules_to_save.iter().enumerate() {
        let selector = Selector::from_names(std::slice::from_ref(module));
        if quantised(quantization).any(|name| selector.selects(&name)) {
            let advice = if module.ends_with("lm_head") {
                "Set model.quantization.head = false, or leave it out here."
            } else {
                "Adapt it with adapter.targets instead."
            };
            let message = format!(
                "is {module:?}, which `model.quantization` keeps in few bits, so that it cannot be trained in full. {advice}"
            );
            findings.push(Finding::at(&format!("adapter.modules_to_save.{index}"), &message));
        }
    }
}

/// The size of its blocks.
pub(super) fn check_block(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let block = recipe
        .model
        .quantization
        .as_ref()
        .and_then(|quantization| quantization.block);
    if let Some(block) = block.filter(|block| !(block.is_power_of_two() && (64..=4096).contains(block))) {
        let message = format!("is {block}, but must be 64, 128, 256, 512, 1024, 2048 or 4096.");
        findings.push(Finding::at("model.quantization.block", &message));
    }
}

/// The modules whose weights are quantised.
fn quantised(quantization: &Quantization) -> impl Iterator<Item = String> {
    let blocks = (0..BLOCKS).flat_map(|block| LINEAR.map(|linear| format!("model.layers.{block}.{linear}")));
    blocks.chain(quantization.head.then(|| "lm_head".to_owned()))
}
