//! AdamW as in PyTorch, learning-rate schedules as in Transformers.

use burn::tensor::{DType, Device};
use interlingua_recipes::{DecayType, Schedule, ScheduleKind};
use interlingua_trainer::engine::gradients::Gradients;
use interlingua_trainer::models::load::tensor;
use interlingua_trainer::optimizers::adamw::AdamW;
use interlingua_trainer::optimizers::schedule::learning_rate;
use interlingua_trainer::parameters::{Parameter, ParameterId, Parameters, Stored};
use serde_json::Value;

use crate::fixtures::{host, json, tensors, values};

const NAMES: [&str; 3] = ["weight", "bias", "scale"];

#[test]
fn adamw_steps_as_in_pytorch() {
    let (file, facts) = (tensors("optim/adamw.safetensors"), json("optim/adamw.json"));
    let tolerance = facts["tolerance"].as_f64().unwrap();
    let skipped: Vec<u64> = serde_json::from_value(facts["no_gradient_for_bias_in_steps"].clone()).unwrap();
    let device = Device::flex();
    for case in facts["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let number = |key: &str| case[key].as_f64().unwrap();
        let mut parameters = Parameters::default();
        let ids: Vec<ParameterId> = NAMES
            .iter()
            .map(|part| {
                let start = values(&file, &format!("start.{part}"));
                let shape = vec![start.len()];
                let value = tensor(start, &device, DType::F32);
                parameters.add(Parameter {
                    name: (*part).into(),
                    shape,
                    value: Stored::Dense(value),
                    trainable: true,
                    adapter: false,
                    frozen: false,
                })
            })
            .collect();
        let mut optimizer = AdamW {
            betas: serde_json::from_value(case["betas"].clone()).unwrap(),
            epsilon: number("eps"),
            weight_decay: number("weight_decay"),
            moments: Default::default(),
        };
        for step in 0..facts["steps"].as_u64().unwrap() {
            let row = |tensor: &str, length: usize| {
                let start = step as usize * length;
                values(&file, tensor)[start..start + length].to_vec()
            };
            let mut gradients = Gradients::default();
            for (id, part) in ids.iter().zip(NAMES) {
                if !(part == "bias" && skipped.contains(&step)) {
                    let values = row(&format!("gradient.{part}"), parameters.get(*id).len());
                    gradients.add(*id, tensor(values, &device, DType::F32));
                }
            }
            let norm = gradients.norm();
            let expected = facts["grad_norm"][name][step as usize].as_f64().unwrap();
            assert!(
                (norm / expected - 1.0).abs() < 1e-6,
                "{name}, step {step}: norm {norm}, expected {expected}"
            );
            if let Some(max) = case["max_grad_norm"].as_f64() {
                gradients.clip(norm, max);
            }
            optimizer.step(&mut parameters, &gradients, number("lr"));
            for (id, part) in ids.iter().zip(NAMES) {
                let found = host(&parameters.get(*id).values());
                let expected = row(&format!("{name}.{part}"), found.len());
                for (found, expected) in found.iter().zip(expected) {
                    let off = f64::from((found - expected).abs());
                    assert!(
                        off <= tolerance,
                        "{name}, step {step}, {part}: {found}, expected {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn norms_and_biases_do_not_decay() {
    use interlingua_trainer::optimizers::adamw::decays;
    assert!(decays("model.layers.0.self_attn.q_proj.weight") && decays("model.layers.0.mlp.up_proj.lora_A.weight"));
    assert!(!decays("model.layers.0.self_attn.q_proj.bias"));
    assert!(!decays("model.norm.weight") && !decays("model.layers.0.input_layernorm.weight"));
}

/// The recipe's name of a schedule of Transformers; none where there is no such schedule in a recipe.
fn schedule(case: &Value) -> Option<Schedule> {
    let number = |key: &str, default: f64| case["arguments"][key].as_f64().unwrap_or(default);
    let default = Schedule::default();
    let warmup = case["warmup_steps"].as_f64().unwrap();
    let kind = match case["kind"].as_str().unwrap() {
        // Transformers has two constant ones, the first deaf to the warm-up; ours is the second.
        "constant" if warmup > 0.0 => return None,
        "constant" | "constant_with_warmup" => ScheduleKind::Constant,
        "linear" => ScheduleKind::Linear,
        "cosine" | "cosine_with_min_lr" => ScheduleKind::Cosine,
        "inverse_sqrt" => ScheduleKind::InverseSqrt,
        "polynomial" => ScheduleKind::Polynomial,
        "warmup_stable_decay" => ScheduleKind::Wsd,
        other => panic!("{other} is new"),
    };
    let min_ratio = number("min_lr_rate", number("min_lr_ratio", 0.0));
    let decay_type = match case["arguments"]["decay_type"].as_str() {
        Some("linear") => DecayType::Linear,
        Some("1-sqrt") => DecayType::OneMinusSqrt,
        _ => DecayType::Cosine,
    };
    Some(Schedule {
        kind,
        warmup,
        min_ratio,
        power: number("power", default.power),
        lr_end: number("lr_end", default.lr_end),
        num_decay_steps: number("num_decay_steps", default.num_decay_steps),
        decay_type,
    })
}

#[test]
fn schedules_are_those_of_transformers() {
    let facts = json("optim/schedules.json");
    let tolerance = facts["tolerance_relative"].as_f64().unwrap();
    let mut compared = 0;
    for case in facts["schedules"].as_array().unwrap() {
        let Some(schedule) = schedule(case) else { continue };
        compared += 1;
        let (base, total) = (
            case["learning_rate"].as_f64().unwrap(),
            case["total_steps"].as_u64().unwrap(),
        );
        for (step, expected) in case["rates"].as_array().unwrap().iter().enumerate() {
            let (found, expected) = (
                learning_rate(&schedule, base, step as u64, total),
                expected.as_f64().unwrap(),
            );
            assert!(
                (found - expected).abs() <= tolerance * base,
                "step {step}: {found}, expected {expected}: {schedule:?}"
            );
        }
    }
    assert!(compared > 30);
}
