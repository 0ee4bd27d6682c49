//! What each of several processes holds under each strategy, by the allocator's count. Ranks are threads here, so the count is that
//! of all of them together.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::path::Path;
use std::sync::Mutex;

use interlingua_recipes::Recipe;
use interlingua_trainer::collectives::on_threads;
use interlingua_trainer::memory::{CountingAllocator, current_bytes};
use interlingua_trainer::train::{Event, Outcome, StopFlag, TrainOptions, train};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// A model whose blocks are nearly all of it: 5.1 million numbers.
const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
"intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 128,
"max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu"}"#;

/// Numbers in the linear layers of its blocks.
const NUMBERS: f64 = 6.0 * (4.0 * 256.0 * 256.0 + 3.0 * 256.0 * 768.0);

/// Bytes that all ranks together hold between the second and the third step.
fn held(folder: &Path, strategy: &str, world: usize, extra: &str) -> f64 {
    let path = folder.join(format!("{strategy}-{world}.toml"));
    let text = format!(
        "output = \"run-{strategy}-{world}\"\n[model]\npath = \"model\"\ninit = \"random\"\ndevice = \"cpu\"\n[memory]\n\
         recompute = \"block\"\n[distributed]\nstrategy = \"{strategy}\"\n[train]\nsteps = 3\nbatch_size = 1\n[data]\nmax_length = 16\n\
         packing = false\n[[data.sources]]\npath = \"rows.jsonl\"\nformat = \"tokens\"\n{extra}"
    );
    std::fs::write(&path, text).unwrap();
    let recipe = Recipe::load(&path, &[]).unwrap();
    let before = current_bytes();
    let found = Mutex::new(0);
    on_threads(world, |collectives| {
        let options = TrainOptions {
            fresh: false,
            collectives: collectives.clone(),
        };
        let mut observe = |event| {
            if matches!(event, Event::Step(row) if row.step == 2) {
                // Nobody computes while it is counted.
                collectives.barrier();
                if collectives.rank() == 0 {
                    *found.lock().unwrap() = current_bytes();
                }
                collectives.barrier();
            }
        };
        // A pool of this thread alone: a rank that waits keeps nothing from the others, and what it let go is free at once.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
        let _pool = pool.build().unwrap();
        let outcome = train(&recipe, options, &StopFlag::default(), &mut observe);
        assert_eq!(outcome.unwrap(), Outcome::Finished);
    });
    let found = *found.lock().unwrap();
    (found - before) as f64
}

/// What is trained, the strategy, what the recipe says besides, and bytes of all ranks together for each number of the blocks.
type Case<'a> = (&'a str, &'a str, &'a str, fn(f64) -> f64);

/// Weights and moments of full fine-tuning are 12 bytes a number: every rank holds all of them under DDP, a third of them and a
/// share of the rest under ZeRO-1, and a share of all under ZeRO-3. Of a frozen base the weights are shared alone.
#[test]
fn what_is_shared_is_held_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("model")).unwrap();
    std::fs::write(path.join("model/config.json"), CONFIG).unwrap();
    let rows = (0..32).map(|row| format!("{{\"input_ids\": [{}, 2, 3, 4, 5, 6, 7, 8]}}\n", row + 1));
    std::fs::write(path.join("rows.jsonl"), rows.collect::<String>()).unwrap();

    let frozen = "[adapter]\nkind = \"lora\"\nrank = 2\ntargets = [\"q_proj\"]\n";
    let quantised = format!("{frozen}[model.quantization]\nscheme = \"nf4\"\n");
    let cases: [Case; 6] = [
        ("full", "ddp", "", |ranks| 12.0 * ranks),
        ("full", "zero1", "", |ranks| 4.0 * ranks + 8.0),
        ("full", "zero3", "", |_| 12.0),
        ("lora", "ddp", frozen, |ranks| 4.0 * ranks),
        ("lora", "zero3", frozen, |_| 4.0),
        ("qlora", "zero3", &quantised, |_| 0.5 + 1.0 / 64.0),
    ];
    let mut wrong = Vec::new();
    for (name, strategy, extra, bytes) in cases {
        for world in [1, 4] {
            let folder = path.join(name);
            std::fs::create_dir_all(&folder).unwrap();
            for file in ["model", "rows.jsonl"] {
                std::os::unix::fs::symlink(path.join(file), folder.join(file)).ok();
            }
            let found = held(&folder, strategy, world, extra);
            let wanted = bytes(world as f64) * NUMBERS;
            // Embedding, adapters, data, tables and what a step leaves are every rank's own; `gemm` keeps buffers as large as the
            // machine's caches ask for.
            let own = 5e6 * world as f64;
            let line = format!(
                "{name}, {strategy} on {world}: {:.2} MB held, {:.2} MB wanted",
                found / 1e6,
                wanted / 1e6
            );
            if found < 0.97 * wanted || found > 1.05 * wanted + own {
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
