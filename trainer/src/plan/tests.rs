//! Plans for models of real shapes: what has to fit where, as the project promises it.

use std::path::Path;

use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::dtype::Dtype;
use interlingua_checkpoints::packed::{Quantization, Scheme};
use interlingua_recipes::{Offload, Recipe, Recompute};
use proptest::prelude::*;

use super::Planner;
use super::settings::{DataFacts, DeviceKind, Settings};
use crate::optimizers::moments::MomentFormat;

const GIB: u64 = 1 << 30;
const QWEN: &str = include_str!("fixtures/qwen2-1.5b.json");
const LLAMA_8B: &str = include_str!("fixtures/llama-3.1-8b.json");
const LLAMA_70B: &str = include_str!("fixtures/llama-3.1-70b.json");
const ATTENTION: &str = "adapter.targets=[\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\"]";

fn recipe(settings: &[&str]) -> Recipe {
    let text = "output = \"out\"\n[model]\npath = \"base\"\n[adapter]\nkind = \"lora\"\n\
                [[data.sources]]\npath = \"rows.jsonl\"\nformat = \"text\"\n";
    let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
    Recipe::parse(text, Path::new("my.toml"), &settings).unwrap()
}

fn config(text: &str) -> ModelConfig {
    let json = serde_json::from_str(text).unwrap();
    ModelConfig::from_json(&json, Path::new("config.json")).unwrap()
}

fn planner(shape: &str, device: DeviceKind, settings: &[&str]) -> Planner {
    Planner::new(&recipe(settings), &config(shape), Dtype::BF16, device, None).unwrap()
}

/// The same over a base of 4 bits.
fn quantised(shape: &str, device: DeviceKind, settings: &[&str]) -> Planner {
    let mut planner = planner(shape, device, settings);
    planner.settings.quantization = Some(Quantization {
        scheme: Scheme::Nf4 {
            block: 64,
            double: true,
        },
        head: false,
    });
    planner
}

/// The recipes that ship for a card of some size fit it as they stand.
#[test]
fn shipped_recipes_fit_their_cards() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    for (name, shape, card) in [
        ("qlora-4gb-arabic", QWEN, 2_500_000_000),
        ("qlora-8b-8gb", LLAMA_8B, 7 * GIB),
        ("qlora-70b-24gb-offload", LLAMA_70B, 22 * GIB),
        ("lora-bf16-h100", LLAMA_8B, 76 * GIB),
    ] {
        let recipe = Recipe::load(&folder.join(format!("{name}.toml")), &[]).unwrap();
        let mut planner = Planner::new(&recipe, &config(shape), Dtype::BF16, DeviceKind::Cuda, None).unwrap();
        planner.decide(recipe.memory.recompute, recipe.memory.budget_bytes(), None);
        let budget = recipe.memory.budget_bytes().unwrap_or(card);
        let fits = planner.check(budget.min(card));
        assert!(fits.is_ok(), "{name}: {fits:?}");
    }
}

#[test]
fn qwen_of_a_billion_and_a_half_trains_on_a_small_card() {
    let settings = [
        "adapter.rank=8",
        ATTENTION,
        "data.max_length=512",
        "train.batch_size=1",
        "train.gradient_accumulation=16",
        "memory.recompute=block",
    ];
    for (device, most) in [(DeviceKind::Cuda, 1_700_000_000), (DeviceKind::Cpu, 2_500_000_000)] {
        let planner = quantised(QWEN, device, &settings);
        assert_eq!(planner.trainable_parameters(), 2_179_072);
        let plan = planner.plan();
        assert!(plan.device.total < most, "{plan:#?}");
    }
}

#[test]
fn llama_of_eight_billion_trains_on_eight_gibibytes() {
    let settings = [
        "adapter.rank=16",
        "data.max_length=2048",
        "train.batch_size=2",
        "memory.recompute=block",
    ];
    let mut planner = quantised(LLAMA_8B, DeviceKind::Cuda, &settings);
    planner.settings.moments = MomentFormat::EightBits;
    let plan = planner.plan();
    assert!(plan.device.total < 7 * GIB, "{plan:#?}");
    planner.settings.offload = Offload::Activations;
    let plan = planner.plan();
    assert!(plan.device.total * 10 < 62 * GIB, "{plan:#?}");
    assert_eq!(plan.host.block_inputs, GIB);
}

/// The lengths are those that Unsloth publishes for the same model on cards of these sizes.
#[test]
fn long_contexts_fit_with_room() {
    for (tokens, gibibytes) in [(2_972, 8), (78_475, 24), (342_733, 80)] {
        let length = format!("data.max_length={tokens}");
        let settings = [
            "adapter.rank=32",
            &length,
            "train.batch_size=1",
            "train.gradient_accumulation=1",
            "memory.recompute=block",
            "memory.offload=activations",
        ];
        let mut planner = quantised(LLAMA_8B, DeviceKind::Cuda, &settings);
        planner.settings.moments = MomentFormat::EightBits;
        let plan = planner.plan();
        assert!(plan.device.total * 10 < 9 * gibibytes * GIB, "{tokens}: {plan:#?}");
    }
}

#[test]
fn seventy_billion_train_on_24_gibibytes_with_their_weights_elsewhere() {
    let settings = [
        "adapter.rank=16",
        "data.max_length=2048",
        "train.batch_size=1",
        "memory.recompute=block",
        "memory.offload=weights",
    ];
    let plan = planner(LLAMA_70B, DeviceKind::Cuda, &settings).plan();
    assert!(plan.device.total < 24 * GIB, "{plan:#?}");
    assert!(plan.device.weights < 8 * GIB, "{plan:#?}");
}

#[test]
fn what_fits_is_proposed_and_what_does_not_is_refused() {
    let settings = [
        "data.max_length=2048",
        "train.batch_size=8",
        "train.gradient_accumulation=4",
    ];
    let planner = quantised(LLAMA_8B, DeviceKind::Cuda, &settings);
    let proposals = planner.fit(12 * GIB).unwrap();
    let batch = proposals.largest_batch.unwrap();
    assert!(batch.plan.peak() <= 12 * GIB);
    assert_eq!(batch.settings.rows * batch.settings.accumulation, 32);
    assert!(batch.settings.recompute);
    let changes = planner.changes(&batch.settings).join(" ");
    assert!(changes.contains("--set memory.recompute=block"), "{changes}");
    assert!(proposals.longest.plan.peak() <= 12 * GIB);
    assert!(proposals.longest.settings.length > 2048);
    // A row more, or a token more, does not fit in the same way.
    let way = &proposals.longest.settings;
    let longer = way.with_rows(1, way.length + 1);
    let longer = Settings {
        row_tokens: longer.length,
        ..longer
    };
    assert!(way.length == 131_072 || planner.under(&longer).peak() > 12 * GIB);

    let refused = planner.check(12 * GIB).unwrap_err().to_string();
    for part in [
        "memory.budget is 12.00 GiB",
        "activations",
        "--set memory.recompute=block",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    let impossible = planner.fit(GIB).unwrap_err().to_string();
    for part in ["1.00 GiB are too little", "one sequence of 64 tokens", "weights"] {
        assert!(impossible.contains(part), "{impossible}");
    }
    assert!(planner.check(200 * GIB).is_ok());
}

#[test]
fn recomputation_is_decided_by_what_there_is() {
    let mut planner = planner(QWEN, DeviceKind::Cpu, &["adapter.rank=8"]);
    let keeping = planner.plan().peak();
    let mut decide = |wanted, budget, available| {
        planner.decide(wanted, budget, available);
        planner.settings.recompute
    };
    assert!(!decide(Recompute::Auto, None, None));
    assert!(!decide(Recompute::Auto, Some(keeping), None));
    assert!(decide(Recompute::Auto, Some(keeping - 1), Some(u64::MAX)));
    assert!(decide(Recompute::Auto, None, Some(keeping - 1)));
    assert!(!decide(Recompute::None, Some(1), None));
    assert!(decide(Recompute::Block, None, None));
}

#[test]
fn data_that_is_known_bounds_the_rows() {
    let facts = DataFacts {
        longest: 100,
        tokens: 350,
        languages: 1,
        heldout_tokens: 0,
    };
    let tokens = |settings: &[&str], facts| {
        let recipe = recipe(settings);
        Settings::of(&recipe, &config(QWEN), Dtype::BF16, DeviceKind::Cpu, facts).tokens()
    };
    let length = "data.max_length=512";
    assert_eq!(tokens(&[length, "train.batch_size=3"], None), 3 * 512);
    assert_eq!(
        tokens(&[length, "train.batch_size=3", "data.packing=false"], Some(facts)),
        300
    );
    assert_eq!(
        tokens(&[length, "train.batch_size=4", "data.packing=false"], Some(facts)),
        350
    );
    let pairs = [
        length,
        "train.batch_size=3",
        "objective.kind=dpo",
        "data.sources.0.format=preference",
    ];
    assert_eq!(tokens(&pairs, None), 3 * 2 * 512);
}

proptest! {
    /// More of anything takes no less, and the highest moment is at most all parts together.
    #[test]
    fn plans_grow_with_what_they_are_of(
        rows in 1usize..9, length in 64usize..4096, rank in 1usize..65, recompute: bool, cuda: bool,
    ) {
        let device = if cuda { DeviceKind::Cuda } else { DeviceKind::Cpu };
        let (rank_setting, larger_rank) = (format!("adapter.rank={rank}"), format!("adapter.rank={}", rank + 1));
        let planner = planner(QWEN, device, &[&rank_setting]);
        let at = |rows, length| {
            let settings = Settings { row_tokens: usize::MAX, recompute, ..planner.settings.clone() };
            planner.under(&settings.with_rows(rows, length))
        };
        let plan = at(rows, length);
        let sum: u64 = plan.device.parts().iter().map(|(_, bytes)| bytes).sum();
        prop_assert!(plan.device.total <= sum, "{plan:?}");
        prop_assert!(plan.device.total >= plan.device.weights + plan.device.adapter + plan.device.optimizer);
        prop_assert!(at(rows, length + 1).device.total >= plan.device.total);
        prop_assert!(at(rows + 1, length).device.total >= plan.device.total);
        let larger = super::tests::planner(QWEN, device, &[&larger_rank]);
        prop_assert!(larger.trainable_parameters() > planner.trainable_parameters());
        prop_assert!(larger.plan().device.total > planner.plan().device.total);
    }
}
