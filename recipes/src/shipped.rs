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
const HUMAN_RIGHTS: File = (
    "examples/human-rights.jsonl",
    include_bytes!("../examples/human-rights.jsonl"),
);

const SHIPPED: &[Shipped] = &[
    Shipped {
        name: "lora-sft",
        summary: "Instruction tuning with LoRA, twelve languages",
        files: &[
            ("lora-sft.toml", include_bytes!("../lora-sft.toml")),
            COMMIT_QUESTIONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "full-finetune",
        summary: "Instruction tuning of every weight, twelve languages",
        files: &[
            ("full-finetune.toml", include_bytes!("../full-finetune.toml")),
            COMMIT_QUESTIONS,
            LICENSES,
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
