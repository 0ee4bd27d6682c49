//! Plans for models of real shapes: what has to fit where, as the project promises it.

use std::path::Path;

use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::dtype::Dtype;
use interlingua_checkpoints::packed::{Quantization, Scheme};
use interlingua_recipes::{Offload, Recipe, Recompute, Strategy};
use proptest::prelude::*;

use super::scaling::{LATENCY, worlds};
use super::settings::{DataFacts, DeviceKind, Settings};
use super::{Plan, Planner};
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
    for (name, shape, card, cards) in [
        ("qlora-4gb-arabic", QWEN, 2_500_000_000, 1),
        ("qlora-8b-8gb", LLAMA_8B, 7 * GIB, 1),
        ("qlora-70b-24gb-offload", LLAMA_70B, 22 * GIB, 1),
        ("lora-bf16-h100", LLAMA_8B, 76 * GIB, 1),
        ("ddp-lora", LLAMA_8B, 76 * GIB, 8),
        ("zero3-full", LLAMA_8B, 38 * GIB, 8),
        ("zero3-qlora-70b", LLAMA_70B, 22 * GIB, 8),
    ] {
        let recipe = Recipe::load(&folder.join(format!("{name}.toml")), &[]).unwrap();
        let mut planner = Planner::new(&recipe, &config(shape), Dtype::BF16, DeviceKind::Cuda, None).unwrap();
        planner.settings.world = cards;
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

/// The plan of one of so many processes.
fn one_of(planner: &Planner, strategy: Strategy, world: usize) -> Plan {
    let mut planner = planner.clone();
    planner.settings.strategy = strategy;
    planner.settings.world = world;
    planner.decide(Recompute::Block, None, None);
    planner.plan()
}

/// All weights of a model, without an adapter.
const FULL: [&str; 4] = [
    "adapter.kind=none",
    "data.max_length=512",
    "train.batch_size=1",
    "train.gradient_accumulation=2",
];

#[test]
fn one_process_shares_nothing() {
    let planner = planner(QWEN, DeviceKind::Cuda, &FULL);
    let plans = [Strategy::Ddp, Strategy::Zero1, Strategy::Zero3].map(|strategy| one_of(&planner, strategy, 1));
    assert_eq!(plans[0], plans[1]);
    assert_eq!(plans[0], plans[2]);
    assert_eq!(plans[0].of.world_size, None);
    let json = serde_json::to_value(&plans[0]).unwrap();
    assert!(json["of"].get("world_size").is_none() && json["of"].get("strategy").is_none());
}

#[test]
fn strategies_cut_what_they_say() {
    let planner = planner(LLAMA_8B, DeviceKind::Cuda, &FULL);
    let trained = 4 * planner.trainable_parameters();
    let alone = one_of(&planner, Strategy::Ddp, 1).device;
    let ddp = one_of(&planner, Strategy::Ddp, 8);
    assert_eq!(
        (ddp.device.weights, ddp.device.optimizer),
        (alone.weights, alone.optimizer)
    );
    // The largest bucket is the embedding: as it is sent, and as it comes.
    let embedding = 4 * 128_256 * 4096u64;
    assert_eq!(ddp.device.gradients, trained + 2 * embedding);
    assert_eq!((ddp.of.world_size, ddp.of.strategy.as_deref()), (Some(8), Some("ddp")));

    let zero1 = one_of(&planner, Strategy::Zero1, 8).device;
    assert_eq!(zero1.weights, alone.weights);
    assert_near(zero1.optimizer, alone.optimizer / 8);
    assert_near(zero1.gradients, trained + 2 * embedding);

    // Embedding, head and norms stay whole as values and gradients, and one block comes together.
    let ends = 2 * embedding;
    let blocks = trained - ends;
    for world in [2, 8, 64] {
        let zero3 = one_of(&planner, Strategy::Zero3, world as usize).device;
        assert_near(zero3.optimizer, 2 * trained / world);
        assert_near(zero3.weights, ends + blocks / world + blocks / 32);
        assert_near(zero3.gradients, ends + 2 * embedding + blocks / world);
    }
}

/// Equal up to what rounding pieces to whole blocks of moments adds.
fn assert_near(found: u64, expected: u64) {
    let off = (found as f64 / expected as f64 - 1.0).abs();
    assert!(off < 0.002, "{found} is not {expected}");
}

#[test]
fn seventy_billion_in_four_bits_over_eight_cards() {
    let settings = [
        "adapter.rank=16",
        "data.max_length=2048",
        "train.batch_size=2",
        "optimizer.kind=adamw8bit",
    ];
    let planner = quantised(LLAMA_70B, DeviceKind::Cuda, &settings);
    let (alone, shared) = (
        one_of(&planner, Strategy::Zero3, 1),
        one_of(&planner, Strategy::Zero3, 8),
    );
    assert!(alone.device.weights > 34 * GIB, "{alone:#?}");
    assert!(shared.device.weights < 8 * GIB, "{shared:#?}");
    assert!(shared.device.total < 16 * GIB, "{shared:#?}");
    assert_eq!(shared.device.adapter, alone.device.adapter);
    assert_near(8 * shared.device.optimizer, alone.device.optimizer);
    assert_eq!(shared.of.recompute, "block");
}

#[test]
fn weights_that_are_shared_are_not_kept_elsewhere_nor_graphs_of_them() {
    let planner = planner(QWEN, DeviceKind::Cuda, &["adapter.rank=8"]);
    for (strategy, offload) in [(Strategy::Ddp, "weights"), (Strategy::Zero3, "activations")] {
        let mut planner = planner.clone();
        planner.settings.strategy = strategy;
        planner.settings.world = 4;
        planner.decide(Recompute::Auto, None, Some(u64::MAX));
        assert_eq!(planner.settings.recompute, strategy == Strategy::Zero3);
        let refused = planner.fit(1 << 20).unwrap_err().to_string();
        assert!(refused.contains(&format!("offload = \"{offload}\"")), "{refused}");
    }
}

/// Sent bytes by hand: LoRA of rank 16 on all linear layers of 32 blocks, and all weights of the same model.
#[test]
fn traffic_is_that_of_the_algorithms() {
    let sent = |planner: &Planner, strategy, world| {
        let mut planner = planner.clone();
        planner.settings.strategy = strategy;
        planner.settings.world = world;
        planner.decide(Recompute::Block, None, None);
        planner.traffic()
    };
    let lora = planner(
        LLAMA_8B,
        DeviceKind::Cuda,
        &["adapter.rank=16", "train.gradient_accumulation=4"],
    );
    let trained = 4 * 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336));
    assert_eq!(sent(&lora, Strategy::Ddp, 1).bytes, 0);
    assert_eq!(sent(&lora, Strategy::Ddp, 4).bytes, 2 * 3 * trained / 4);
    assert_eq!(
        sent(&lora, Strategy::Zero1, 4),
        super::scaling::Traffic {
            operations: 2 + 6,
            ..sent(&lora, Strategy::Ddp, 4)
        }
    );

    let full = planner(
        LLAMA_8B,
        DeviceKind::Cuda,
        &["adapter.kind=none", "train.gradient_accumulation=4"],
    );
    let (ends, blocks) = (
        2 * 4 * 128_256 * 4096 + 4 * 4096,
        4 * (full.trainable_parameters() - 2 * 128_256 * 4096 - 4096),
    );
    assert_eq!(sent(&full, Strategy::Ddp, 8).bytes, 2 * 7 * (ends + blocks) / 8);
    // Weights forward and backward, and gradients layer by layer, in each micro-batch; embedding, head and norms once, and back.
    let zero3 = sent(&full, Strategy::Zero3, 8);
    assert_near(zero3.bytes, 7 * (4 * 3 * blocks + 2 * ends) / 8);
    assert_eq!(zero3.operations, 4 * 32 * (2 + 7) + 2 * 3 + 6);

    // Packed weights go as they are: 4.13 bits a number, twice in each of four micro-batches.
    let packed = quantised(
        LLAMA_8B,
        DeviceKind::Cuda,
        &["adapter.rank=16", "train.gradient_accumulation=4"],
    );
    let linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336u64);
    let zero3 = sent(&packed, Strategy::Zero3, 8);
    assert_near(zero3.bytes, 7 * (8 * linear * 4127 / 8000 + 2 * trained) / 8);
}

#[test]
fn a_step_is_computation_and_waiting() {
    let mut planner = planner(
        LLAMA_8B,
        DeviceKind::Cuda,
        &["adapter.rank=16", "train.gradient_accumulation=4"],
    );
    planner.settings.rate = 330e12;
    assert_eq!(worlds(6), [1, 2, 4, 6]);
    assert_eq!(worlds(8), [1, 2, 4, 8]);
    assert_eq!(worlds(1), [1]);
    let alone = planner.scaling(1, 50e9);
    assert_eq!(
        (alone.sent, alone.communication_seconds, alone.synchronous.efficiency),
        (0, 0.0, 1.0)
    );
    let eight = planner.scaling(8, 50e9);
    let waits = eight.sent as f64 / 50e9 + 7.0 * 3.0 * LATENCY;
    assert!((eight.communication_seconds / waits - 1.0).abs() < 1e-12, "{eight:?}");
    let step = alone.compute_seconds + waits;
    assert!((eight.synchronous.step_seconds / step - 1.0).abs() < 1e-12, "{eight:?}");
    let speed = 8.0 * alone.synchronous.tokens_per_second * eight.synchronous.efficiency;
    assert!(
        (eight.synchronous.tokens_per_second / speed - 1.0).abs() < 1e-12,
        "{eight:?}"
    );
    assert_eq!(eight.overlapped.efficiency, 1.0);
    // Over a slow network the other way round.
    let slow = planner.scaling(8, 1e6);
    assert!(slow.overlapped.efficiency < 0.2 && slow.synchronous.efficiency < slow.overlapped.efficiency);
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

    /// More processes take no more of what they cut, and efficiency falls with them.
    #[test]
    fn more_processes_hold_less_each(world in 2usize..300, zero3: bool, cuda: bool, adapter: bool) {
        let device = if cuda { DeviceKind::Cuda } else { DeviceKind::Cpu };
        let settings: &[&str] = if adapter { &["adapter.rank=8"] } else { &FULL };
        let strategy = if zero3 { Strategy::Zero3 } else { Strategy::Zero1 };
        let planner = super::tests::planner(QWEN, device, settings);
        let (fewer, more) = (one_of(&planner, strategy, world), one_of(&planner, strategy, world + 1));
        prop_assert!(more.device.weights <= fewer.device.weights);
        prop_assert!(more.device.optimizer <= fewer.device.optimizer);
        let mut planner = planner;
        planner.settings.strategy = strategy;
        planner.settings.world = world;
        planner.decide(Recompute::Auto, None, None);
        let efficiency = |world| planner.scaling(world, 10e9).synchronous.efficiency;
        prop_assert!(efficiency(world) < 1.0);
        prop_assert!(efficiency(2 * world) <= efficiency(world));
    }
}
