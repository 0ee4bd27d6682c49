//! A model small enough for a test, made by the binary itself: a tokenizer trained on a few texts and a config beside it.

use std::fmt::Write;

use crate::binary::Scratch;

/// What the tiny model can be taught: greetings in four languages and three scripts.
const GREETINGS: [(&str, &str, &str); 4] = [
    ("en", "Good morning", "Hello"),
    ("sw", "Habari ya asubuhi", "Habari"),
    ("ar", "صباح الخير", "مرحبا"),
    ("hi", "सुप्रभात", "नमस्ते"),
];

/// Rows of `data.jsonl`.
pub const ROWS: usize = 48;

/// Writes `base/` (config and tokenizer, no weights), `data.jsonl` (messages in four languages) and `recipe.toml`, which trains
/// all weights from random ones for eight steps with a checkpoint every two.
///
/// # Panics
/// When the binary fails.
pub fn write(scratch: &Scratch) {
    let mut rows = String::new();
    for row in 0..ROWS {
        let (lang, question, answer) = GREETINGS[row % GREETINGS.len()];
        let number = row / GREETINGS.len();
        let messages = serde_json::json!([
            { "role": "user", "content": format!("{question} {number}") },
            { "role": "assistant", "content": format!("{answer} {number}") },
        ]);
        let line = serde_json::json!({ "id": format!("g{number}"), "lang": lang, "messages": messages });
        writeln!(rows, "{line}").expect("a string takes text");
    }
    scratch.write("data.jsonl", rows);
    let tokenizer = [
        "tokenizer",
        "train",
        "data.jsonl",
        "--vocab-size",
        "320",
        "--chat-template",
        "chatml",
        "--out",
        "base",
    ];
    scratch.run(tokenizer).succeeds();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 320, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "float32",
    });
    scratch.write("base/config.json", config.to_string());
    scratch.write("recipe.toml", RECIPE);
}

/// The recipe that [`write()`] writes.
pub const RECIPE: &str = r#"output = "run"

[model]
path = "base"
init = "random"

[data]
max_length = 128
packing = false

[[data.sources]]
path = "data.jsonl"
format = "messages"

[optimizer]
learning_rate = 1e-3

[train]
steps = 8
batch_size = 4
gradient_accumulation = 2
checkpoint_every = 2
"#;
