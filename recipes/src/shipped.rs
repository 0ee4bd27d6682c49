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
const REPLAY: File = (
    "examples/replay.en.jsonl",
    include_bytes!("../examples/replay.en.jsonl"),
);
const LESSONS: File = ("examples/lessons.jsonl", include_bytes!("../examples/lessons.jsonl"));
const PROMPTS: File = ("examples/prompts.jsonl", include_bytes!("../examples/prompts.jsonl"));
const QUESTIONS: File = (
    "examples/questions.jsonl",
    include_bytes!("../examples/questions.jsonl"),
);
const OTHER_LANGUAGES: File = (
    "examples/answers-in-other-languages.jsonl",
    include_bytes!("../examples/answers-in-other-languages.jsonl"),
);
const QUIZ: File = ("examples/quiz.jsonl", include_bytes!("../examples/quiz.jsonl"));
const ARABIC: File = ("examples/arabic.jsonl", include_bytes!("../examples/arabic.jsonl"));
const HUMAN_ASSISTANT: File = (
    "examples/human-assistant.jinja",
    include_bytes!("../examples/human-assistant.jinja"),
);
const HEALTH: File = ("examples/health.jsonl", include_bytes!("../examples/health.jsonl"));
const ALIGNED_WORDS: File = (
    "examples/aligned-words.jsonl",
    include_bytes!("../examples/aligned-words.jsonl"),
);
const URALIC: File = ("examples/uralic.jsonl", include_bytes!("../examples/uralic.jsonl"));
const INSTRUCTIONS: File = (
    "examples/instructions.en.jsonl",
    include_bytes!("../examples/instructions.en.jsonl"),
);
const QUICKSTART_TRAIN: File = ("quickstart/train.jsonl", include_bytes!("../quickstart/train.jsonl"));
const QUICKSTART_SWAPPED: File = (
    "quickstart/swapped.jsonl",
    include_bytes!("../quickstart/swapped.jsonl"),
);
const QUICKSTART_LICENSES: File = ("quickstart/LICENSES.md", include_bytes!("../quickstart/LICENSES.md"));
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

/// How a recipe of several processes is started on a cluster: these stand with the documentation.
const SLURM: File = (
    "examples/slurm.sbatch",
    include_bytes!("../../docs/examples/slurm.sbatch"),
);
const KUBERNETES: File = (
    "examples/kubernetes.yaml",
    include_bytes!("../../docs/examples/kubernetes.yaml"),
);
const SSH_HOSTS: File = (
    "examples/ssh-hosts.sh",
    include_bytes!("../../docs/examples/ssh-hosts.sh"),
);

/// A recipe's own files and the quickstart's tiny base model, which it starts from or can be tried with.
macro_rules! with_base {
    ($($file:expr),* $(,)?) => {
        &[$($file,)* BASE_CONFIG, BASE_WEIGHTS, BASE_TOKENIZER, BASE_TOKENIZER_CONFIG, QUICKSTART_LICENSES]
    };
}

const SHIPPED: &[Shipped] = &[
    Shipped {
        name: "quickstart",
        summary: "Requests in ten languages become intent and slots: LoRA, a few minutes on two cores",
        files: with_base![
            ("quickstart.toml", include_bytes!("../quickstart.toml")),
            QUICKSTART_TRAIN,
            QUICKSTART_SWAPPED,
            ("quickstart/eval.jsonl", include_bytes!("../quickstart/eval.jsonl")),
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
        files: with_base![
            ("lora-sft.toml", include_bytes!("../lora-sft.toml")),
            COMMIT_QUESTIONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "full-finetune",
        summary: "Instruction tuning of every weight, twelve languages",
        files: with_base![
            ("full-finetune.toml", include_bytes!("../full-finetune.toml")),
            COMMIT_QUESTIONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "continued-pretraining",
        summary: "Plain text in ten languages, every weight",
        files: with_base![
            (
                "continued-pretraining.toml",
                include_bytes!("../continued-pretraining.toml"),
            ),
            HUMAN_RIGHTS,
            LICENSES,
        ],
    },
    Shipped {
        name: "ratio-study",
        summary: "Arabic and English at seven ratios with one number of tokens, compared by language",
        files: with_base![
            ("ratio-study.toml", include_bytes!("../ratio-study.toml")),
            LESSONS,
            COMMIT_QUESTIONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "curriculum",
        summary: "Mostly English first, mostly other languages later",
        files: with_base![
            ("curriculum.toml", include_bytes!("../curriculum.toml")),
            HUMAN_RIGHTS,
            REPLAY,
            LICENSES,
        ],
    },
    Shipped {
        name: "pinch",
        summary: "Forty examples in other languages among 4,600 in English",
        files: with_base![
            ("pinch.toml", include_bytes!("../pinch.toml")),
            INSTRUCTIONS,
            LESSONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "temperature-sampling",
        summary: "Languages with little text are read more often than they come",
        files: with_base![
            (
                "temperature-sampling.toml",
                include_bytes!("../temperature-sampling.toml"),
            ),
            URALIC,
            LICENSES,
        ],
    },
    Shipped {
        name: "batch-wise-dpo",
        summary: "DPO on batches of equivalent preferences in seven languages, English as their anchor",
        files: with_base![
            ("batch-wise-dpo.toml", include_bytes!("../batch-wise-dpo.toml")),
            QUIZ,
            LICENSES,
        ],
    },
    Shipped {
        name: "batch-wise-orpo",
        summary: "ORPO on batches of equivalent preferences in seven languages, English as their anchor",
        files: with_base![
            ("batch-wise-orpo.toml", include_bytes!("../batch-wise-orpo.toml")),
            QUIZ,
            LICENSES,
        ],
    },
    Shipped {
        name: "cross-lingual-dpo",
        summary: "DPO with prompts in one language and answers in another",
        files: with_base![
            ("cross-lingual-dpo.toml", include_bytes!("../cross-lingual-dpo.toml")),
            OTHER_LANGUAGES,
            LICENSES,
        ],
    },
    Shipped {
        name: "middle-layer",
        summary: "A task, and in turn translations pulled together in the middle of the model",
        files: with_base![
            ("middle-layer.toml", include_bytes!("../middle-layer.toml")),
            QUICKSTART_TRAIN,
            HEALTH,
            LICENSES,
        ],
    },
    Shipped {
        name: "align-after-pretrain",
        summary: "Translations pulled together in the first block, and answers in the language asked for",
        files: with_base![
            (
                "align-after-pretrain.toml",
                include_bytes!("../align-after-pretrain.toml"),
            ),
            QUESTIONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "crossin",
        summary: "Questions in one language answered in another, beside a task in English",
        files: with_base![
            ("crossin.toml", include_bytes!("../crossin.toml")),
            INSTRUCTIONS,
            LESSONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "lens",
        summary: "Languages pulled together where they agree and moved apart where they differ",
        files: with_base![("lens.toml", include_bytes!("../lens.toml")), PROMPTS, LICENSES],
    },
    Shipped {
        name: "steering",
        summary: "A vector for each language, added in the middle of the model",
        files: with_base![("steering.toml", include_bytes!("../steering.toml")), HEALTH, LICENSES],
    },
    Shipped {
        name: "word-alignment",
        summary: "Aligned words pulled together in the last layer",
        files: with_base![
            ("word-alignment.toml", include_bytes!("../word-alignment.toml")),
            ALIGNED_WORDS,
            LICENSES,
        ],
    },
    Shipped {
        name: "embedding-only",
        summary: "Only the embeddings learn, from translations",
        files: with_base![
            ("embedding-only.toml", include_bytes!("../embedding-only.toml")),
            HEALTH,
            LICENSES,
        ],
    },
    Shipped {
        name: "goldfish",
        summary: "One in fifty tokens carries no loss, against learning by heart",
        files: with_base![
            ("goldfish.toml", include_bytes!("../goldfish.toml")),
            HUMAN_RIGHTS,
            LICENSES,
        ],
    },
    Shipped {
        name: "branch-and-merge",
        summary: "Slices trained apart and merged, round by round, so that less is forgotten",
        files: with_base![
            ("branch-and-merge.toml", include_bytes!("../branch-and-merge.toml")),
            HUMAN_RIGHTS,
            COMMIT_QUESTIONS,
            REPLAY,
            LICENSES,
            QUICKSTART_TRAIN,
            QUICKSTART_SWAPPED,
        ],
    },
    Shipped {
        name: "merge-adapters",
        summary: "A task and an alignment of languages learnt apart, and merged",
        files: with_base![
            ("merge-adapters.toml", include_bytes!("../merge-adapters.toml")),
            HEALTH,
            LICENSES,
            QUICKSTART_TRAIN,
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
    Shipped {
        name: "qlora-4gb-arabic",
        summary: "QLoRA: 1.5 billion parameters in four bits, an Arabic adapter, on a card of 4 GB",
        files: with_base![
            ("qlora-4gb-arabic.toml", include_bytes!("../qlora-4gb-arabic.toml")),
            ARABIC,
            HUMAN_ASSISTANT,
            COMMIT_QUESTIONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "qlora-8b-8gb",
        summary: "QLoRA: 8 billion parameters in four bits, 8-bit moments, on a card of 8 GB",
        files: with_base![
            ("qlora-8b-8gb.toml", include_bytes!("../qlora-8b-8gb.toml")),
            LESSONS,
            COMMIT_QUESTIONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "qlora-70b-24gb-offload",
        summary: "QLoRA: 70 billion parameters on a card of 24 GB, their weights in host memory",
        files: with_base![
            (
                "qlora-70b-24gb-offload.toml",
                include_bytes!("../qlora-70b-24gb-offload.toml"),
            ),
            LESSONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "lora-bf16-h100",
        summary: "LoRA: 8 billion parameters in bf16 on one large card, nothing computed twice",
        files: with_base![
            ("lora-bf16-h100.toml", include_bytes!("../lora-bf16-h100.toml")),
            LESSONS,
            LICENSES,
        ],
    },
    Shipped {
        name: "ddp-lora",
        summary: "LoRA: 8 billion parameters on several GPUs that each have them all; files for SLURM, Kubernetes, ssh",
        files: with_base![
            ("ddp-lora.toml", include_bytes!("../ddp-lora.toml")),
            LESSONS,
            LICENSES,
            SLURM,
            KUBERNETES,
            SSH_HOSTS,
        ],
    },
    Shipped {
        name: "zero3-full",
        summary: "Every weight of 8 billion on several GPUs that share weights, gradients and moments",
        files: with_base![
            ("zero3-full.toml", include_bytes!("../zero3-full.toml")),
            LESSONS,
            LICENSES,
            SLURM,
            KUBERNETES,
            SSH_HOSTS,
        ],
    },
    Shipped {
        name: "zero3-qlora-70b",
        summary: "QLoRA: 70 billion parameters in four bits, shared by eight cards of 24 GB",
        files: with_base![
            ("zero3-qlora-70b.toml", include_bytes!("../zero3-qlora-70b.toml")),
            LESSONS,
            LICENSES,
            SLURM,
            KUBERNETES,
            SSH_HOSTS,
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
