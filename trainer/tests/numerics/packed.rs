//! Models whose weights are kept in fewer bits or in their files, against the same weights decoded beforehand.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device};
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::packed::{Format, Quantization, Scheme};
use interlingua_recipes::{Adapter, AdapterKind};
use interlingua_trainer::adapters::fresh::attach_new;
use interlingua_trainer::models::Model;
use interlingua_trainer::models::load::{Storage, Weights, load};
use interlingua_trainer::parameters::{ParameterId, Stored};

use crate::fixtures::{batch, distance, host, loss_and_gradients, norm, path, tensors};

const SCHEMES: [Option<Scheme>; 4] = [
    None,
    Some(Scheme::Int8),
    Some(Scheme::Nf4 {
        block: 64,
        double: false,
    }),
    Some(Scheme::Nf4 {
        block: 64,
        double: true,
    }),
];

fn loaded(name: &str, scheme: Option<Scheme>, offload: bool) -> Model {
    let folder = ModelFolder::open(&path(&format!("models/{name}"))).unwrap();
    let storage = Storage {
        quantization: scheme.map(|scheme| Quantization { scheme, head: false }),
        offload,
        ..Storage::frozen(DType::F32, &Device::flex())
    };
    load(folder.config(), &Weights::Folder(&folder), &storage).unwrap()
}

fn with_adapter(mut model: Model, kind: AdapterKind) -> Model {
    let adapter = Adapter {
        kind,
        rank: 4,
        alpha: 8.0,
        ..Adapter::default()
    };
    attach_new(&mut model, &adapter, 3, None).unwrap();
    model
}

/// The same model with every weight dense.
fn decoded(model: &Model) -> Model {
    let mut dense = model.clone();
    let ids: Vec<ParameterId> = model.parameters.iter().map(|(id, _)| id).collect();
    for id in ids {
        dense.parameters.set_value(id, model.parameters.get(id).values());
    }
    dense
}

fn packed(model: &Model) -> BTreeMap<String, Format> {
    let all = model.parameters.iter();
    all.filter_map(|(_, parameter)| match &parameter.value {
        Stored::Packed(weight) => Some((parameter.name.clone(), weight.on_host().unwrap().format().clone())),
        Stored::Dense(_) | Stored::Spread(_) => None,
    })
    .collect()
}

#[test]
fn a_packed_model_computes_what_its_decoded_weights_say() {
    for name in [
        "llama",
        "qwen2",
        "qwen3",
        "bloom",
        "phi3",
        "gpt_neox",
        "apertus",
        "mixtral",
        "qwen3_moe",
    ] {
        for scheme in SCHEMES {
            for (kind, recompute) in [(AdapterKind::Lora, false), (AdapterKind::Dora, true)] {
                // PEFT knows no DoRA on experts.
                let routed = ["mixtral", "qwen3_moe"].contains(&name);
                let kind = if routed { AdapterKind::Lora } else { kind };
                let what = format!("{name}, {scheme:?}, {kind:?}");
                let model = with_adapter(loaded(name, scheme, true), kind);
                let batch = batch(&model, &tensors(&format!("models/{name}.golden.safetensors")));
                let (loss, gradients) = loss_and_gradients(&model, &batch, recompute);
                let (expected_loss, expected) = loss_and_gradients(&decoded(&model), &batch, recompute);
                assert!(
                    (loss - expected_loss).abs() <= 1e-5 * expected_loss,
                    "{what}: {loss} is not {expected_loss}"
                );
                let trained = model.parameters.trainable().count();
                assert_eq!(gradients.iter().count(), trained, "{what}");
                for (id, gradient) in gradients.iter() {
                    let (found, expected) = (host(gradient), host(expected.get(id).unwrap()));
                    let name = &model.parameters.get(id).name;
                    assert!(
                        distance(&found, &expected) <= 1e-4 * norm(&expected).max(1e-3),
                        "{what}: {name}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_packed_is_the_linear_layers_of_blocks_and_what_is_read_by_rows() {
    let linear = |name: &String| name.contains("_proj");
    let model = loaded("llama", Some(Scheme::Int8), false);
    let formats = packed(&model);
    assert_eq!(
        formats.keys().filter(|name| linear(name)).count(),
        7 * model.blocks.len()
    );
    for (name, format) in &formats {
        assert_eq!(linear(name), matches!(format, Format::Int8 { .. }), "{name}");
    }
    // Untied: the embedding stays in its file, and the head in its format.
    assert!(formats.contains_key("model.embed_tokens.weight") && formats.contains_key("lm_head.weight"));
    let plain = packed(&loaded("llama", None, false));
    assert_eq!(plain.keys().collect::<Vec<_>>(), ["model.embed_tokens.weight"]);
}
