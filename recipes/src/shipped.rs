//! The recipes in the binary, each with the small files it needs.
//!
//! To ship one more, write `recipes/NAME.toml` with a comment that says what it does, on what hardware and how to run
//! it, and add one entry to the table.

/// A file of a shipped recipe: its path relative to the folder `recipes`, and its content.
pub type File = (&'static str, &'static [u8]);

/// A recipe in the binary.
#[derive(Debug, Clone, Copy)]
pub struct Shipped {
    /// What `interlingua init` calls it; the recipe file is `NAME.toml`.
    pub name: &'static str,
    /// One line about what it does.
    pub summary: &'static str,
    /// The recipe file first, then what it needs.
    pub files: &'static [File],
}

const LICENSES: File = ("examples/LICENSES.md", include_bytes!("../examples/LICENSES.md"));
const COMMIT_QUESTIONS: File = (
    "examples/commit-questions.jsonl",
    include_bytes!("../examples/commit-questions.jsonl"),
);
const COMMIT_QUESTIONS_ENGLISH: File = (
    "examples/commit-questions.en.jsonl",
    include_bytes!("../examples/commit-questions.en.jsonl"),
);
const HUMAN_RIGHTS: File = (
    "examples/human-rights.jsonl",
    include_bytes!("../examples/human-rights.jsonl"),
);

const BASE_CONFIG: File = (
    "quickstart/base/config.json",
    include_bytes!("../quickstart/base/config.json"),
);
const BASE_WEIGHTS: File = (
    "quickstart/base/model.safetensors",
    include_bytes!("../quickstart/base/model.safetensors"),
);
const BASE_TOKENIZER: File = (
    "quickstart/base/tokenizer.json",
    include_bytes!("../quickstart/base/tokenizer.json"),
);
const BASE_TOKENIZER_CONFIG: File = (
    "quickstart/base/tokenizer_config.json",
    include_bytes!("../quickstart/base/tokenizer_config.json"),
);
const QUICKSTART_TRAIN: File = ("quickstart/train.jsonl", include_bytes!("../quickstart/train.jsonl"));
const QUICKSTART_LICENSES: File = ("quickstart/LICENSES.md", include_bytes!("../quickstart/LICENSES.md"));

const SHIPPED: &[Shipped] = &[
    Shipped {
        name: "quickstart",
        summary: "Requests in ten languages become intent and slots: LoRA, a few minutes on two cores",
        files: &[
            ("quickstart.toml", include_bytes!("../quickstart.toml")),
            BASE_CONFIG,
            BASE_WEIGHTS,
            BASE_TOKENIZER,
            BASE_TOKENIZER_CONFIG,
            QUICKSTART_TRAIN,
            (
                "quickstart/swapped.jsonl",
                include_bytes!("../quickstart/swapped.jsonl"),
            ),
            ("quickstart/eval.jsonl", include_bytes!("../quickstart/eval.jsonl")),
            QUICKSTART_LICENSES,
        ],
    },
    Shipped {
        name: "quickstart-base",
        summary: "The quickstart's tiny base model, from random weights",
        files: &[
            ("quickstart-base.toml", include_bytes!("../quickstart-base.toml")),
            BASE_CONFIG,
            BASE_TOKENIZER,
            BASE_TOKENIZER_CONFIG,
            QUICKSTART_TRAIN,
            (
                "quickstart/pretraining/tasks.jsonl",
                include_bytes!("../quickstart/pretraining/tasks.jsonl"),
            ),
            (
                "quickstart/pretraining/text.jsonl",
                include_bytes!("../quickstart/pretraining/text.jsonl"),
            ),
            QUICKSTART_LICENSES,
        ],
    },
    Shipped {
        name: "lora-sft",
        summary: "Instruction tuning with LoRA, twelve languages",
        files: &[
            ("lora-sft.toml", include_bytes!("../lora-sft.toml")),
            COMMIT_QUESTIONS,
            LICENSES,
            BASE_CONFIG,
            BASE_WEIGHTS,
            BASE_TOKENIZER,
            BASE_TOKENIZER_CONFIG,
        ],
    },
    Shipped {
        name: "full-finetune",
        summary: "Instruction tuning of every weight, twelve languages",
        files: &[
            ("full-finetune.toml", include_bytes!("../full-finetune.toml")),
            COMMIT_QUESTIONS,
            LICENSES,
            BASE_CONFIG,
            BASE_WEIGHTS,
            BASE_TOKENIZER,
            BASE_TOKENIZER_CONFIG,
        ],
    },
    Shipped {
        name: "continued-pretraining",
        summary: "Plain text in ten languages, every weight",
        files: &[
            (
                "continued-pretraining.toml",
                include_bytes!("../continued-pretraining.toml"),
            ),
            HUMAN_RIGHTS,
            LICENSES,
            BASE_CONFIG,
            BASE_WEIGHTS,
            BASE_TOKENIZER,
            BASE_TOKENIZER_CONFIG,
        ],
    },
    Shipped {
        name: "language-task-adapters",
        summary: "An adapter for each language from plain text, and an English task adapter on top (MAD-X)",
        files: &[
            (
                "language-task-adapters.toml",
                include_bytes!("../language-task-adapters.toml"),
            ),
            HUMAN_RIGHTS,
            COMMIT_QUESTIONS,
            COMMIT_QUESTIONS_ENGLISH,
            LICENSES,
            BASE_CONFIG,
            BASE_WEIGHTS,
            BASE_TOKENIZER,
            BASE_TOKENIZER_CONFIG,
        ],
    },
];

/// All shipped recipes.
#[must_use]
pub fn list() -> &'static [Shipped] {
    SHIPPED
}

/// The shipped recipe of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Shipped> {
    SHIPPED.iter().find(|shipped| shipped.name == name)
}
