//! Wrong recipes, each with the exact message that its author reads.

use std::path::Path;

use insta::assert_snapshot;
use interlingua_recipes::{Recipe, RecipeError};

const GOOD: &str = r#"
output = "out"
[model]
path = "org/name"
[[data.sources]]
path = "rows.jsonl"
format = "alpaca"
"#;

fn refusal(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    match Recipe::parse(text, Path::new("my.toml"), &overrides) {
        Ok(recipe) => panic!("was accepted: {recipe:?}"),
        Err(error) => error.to_string(),
    }
}

/// The refusal of a good recipe with these lines behind it.
fn with(lines: &str) -> String {
    refusal(&format!("{GOOD}{lines}"), &[])
}

/// The refusal of a good recipe with this override.
fn set(text: &str) -> String {
    refusal(GOOD, &[text])
}

#[test]
fn unknown_keys() {
    assert_snapshot!(with("[adapter]\nrnak = 8"), @r#"my.toml:9: `adapter.rnak` is not a recipe key. Did you mean `rank`?"#);
    assert_snapshot!(with("[adaptor]\nrank = 8"), @r#"my.toml:8: `adaptor` is not a recipe key. Did you mean `adapter`?"#);
    assert_snapshot!(with("[train]\nlearning_rate = 1e-4"), @r#"my.toml:9: `train.learning_rate` is not a recipe key. Did you mean `optimizer.learning_rate`?"#);
    assert_snapshot!(with("[memory]\nwindow = 1"), @r#"my.toml:9: `memory.window` is not a recipe key. Known here: recompute, offload, block_inputs, budget."#);
    assert_snapshot!(with("[[data.sources]]\npath = \"x\"\nformat = \"text\"\nlangfield = \"x\""), @r#"my.toml:11: `data.sources.1.langfield` is not a recipe key. Did you mean `lang_field`?"#);
    assert_snapshot!(set("optimizer.lerning-rate=1"), @r#"--set optimizer.lerning-rate=1: `optimizer.lerning-rate` is not a recipe key. Did you mean `learning_rate`?"#);
}

#[test]
fn keys_and_values_of_later_versions() {
    assert_snapshot!(set("train.parameters=new-tokens"), @r#"--set train.parameters=new-tokens: `train.parameters` is "new-tokens", which this version of Interlingua does not have yet. Use "auto", a list of parameter names, or "re:" and a regular expression."#);
    assert_snapshot!(set("data.sources.0.format=stepwise"), @r#"--set data.sources.0.format=stepwise: `data.sources.0.format` is "stepwise", which this version of Interlingua does not have yet. Use "alpaca", "sharegpt", "messages", "prompt-completion", "text", "preference", "kto", "parallel", "choice" or "tokens"."#);
}

#[test]
fn adapters() {
    assert_snapshot!(set("adapter.kind=ia3"), @r#"--set adapter.kind=ia3: `adapter.kind` is "ia3", but must be "lora", "dora", "bottleneck", "steering" or "none"."#);
    assert_snapshot!(set("adapter.layer=3"), @r#"--set adapter.layer=3: `adapter.layer` is not read by "lora". Leave it out. It reads none."#);
    assert_snapshot!(set("adapter.reduction=2"), @r#"--set adapter.reduction=2: `adapter.reduction` is not read by "lora". Leave it out. It reads none."#);
    assert_snapshot!(with("[adapter]\nkind = \"bottleneck\"\nlayer = 3"), @r#"my.toml:10: `adapter.layer` is not read by "bottleneck". Leave it out. It reads reduction."#);
    assert_snapshot!(with("[adapter]\nkind = \"steering\"\nlayer = 0"), @r#"my.toml:10: `adapter.layer` is 0, the embedding's output. A vector is added to the output of a block: write 1 or more."#);
    assert_snapshot!(with("[adapter]\nkind = \"steering\"\nlayer = \"first\""), @r#"my.toml:10: `adapter.layer` is "first", but must be "middle", "last", or N as in hidden_states.N."#);
    assert_snapshot!(with("[adapter]\nkind = \"steering\"\nsource = \"rows\""), @r#"my.toml:10: `adapter.source` is read with fit = "closed-form" only. Set adapter.fit, or leave it out."#);
    assert_snapshot!(with("[adapter]\nkind = \"steering\"\nfit = \"closed-form\""), @r#"my.toml:8: `adapter.source` is missing. fit = "closed-form" reads a source of translations: name one of data.sources."#);
    assert_snapshot!(with("[adapter]\nkind = \"steering\"\nfit = \"closed-form\"\nsource = \"row\"\nanchor = \"english\""), @r#"my.toml:11: `adapter.source` is "row", which is no source. The sources are rows."#);
    assert_snapshot!(with("[train]\nsteps = 5\n[adapter]\nkind = \"steering\"\nfit = \"closed-form\"\nsource = \"rows\""), @r#"my.toml:12: `adapter.fit` is "closed-form", which leaves nothing to train. Leave out train.steps, train.epochs and train.tokens."#);
    assert_snapshot!(with("[train]\nsteps = 0"), @r#"my.toml:9: `train.steps` is 0, so nothing would be trained. Write 1 or more."#);
    assert_snapshot!(with("[adapter]\nroute = \"language\"\nmodules_to_save = [\"lm_head\"]"), @r#"my.toml:10: `adapter.modules_to_save` trains modules that all languages share, while each language has an adapter folder of its own. Leave it out, or select them with train.parameters."#);
    assert_snapshot!(with("[adapter]\nkind = \"steering\"\nmodules_to_save = [\"lm_head\"]"), @r#"my.toml:10: `adapter.modules_to_save` belongs to lora and dora. Leave it out, or select them with train.parameters."#);
    assert_snapshot!(with("[adapter]\nroute = \"source\""), @r#"my.toml:9: `adapter.route` is "source", but must be "none" or "language"."#);
    assert_snapshot!(with("[[adapter.under]]\nlang = \"sw\""), @r#"my.toml:8: `adapter.under.0.path` is missing. Write `path = …` with a text that is not empty."#);
    assert_snapshot!(with("[[adapter.under]]\npath = \"a\"\nlang = \"sw_KE\""), @r#"my.toml:10: `adapter.under.0.lang` is "sw_KE", which is not a well-formed BCP-47 language tag. Write "sw-KE"."#);
    assert_snapshot!(with("[adapter]\nkind = \"none\"\nroute = \"language\"\n[[adapter.under]]\npath = \"a\""), @r#"
    my.toml:10: `adapter.route` asks for an adapter for each language, but `adapter.kind` is "none". Set the kind, or leave it out.
    my.toml:11: `adapter.under` names adapters below the trained one, but `adapter.kind` is "none". Set the kind, or leave it out.
    "#);
}

#[test]
fn quantization() {
    let quantised = |lines: &str| with(&format!("[adapter]\n[model.quantization]\n{lines}"));
    assert_snapshot!(quantised("scheme = \"fp4\""), @r#"my.toml:10: `model.quantization.scheme` is "fp4", but must be "nf4" or "int8"."#);
    assert_snapshot!(quantised("block = 96"), @r#"my.toml:10: `model.quantization.block` is 96, but must be 64, 128, 256, 512, 1024, 2048 or 4096."#);
    assert_snapshot!(quantised("block = 32"), @r#"my.toml:10: `model.quantization.block` is 32, but must be a whole number from 64 to 4096."#);
    assert_snapshot!(quantised("scheme = \"int8\"\ndouble = true"), @r#"my.toml:11: `model.quantization.double` is not read by "int8". Leave it out. It reads none."#);
    assert_snapshot!(with("[model.quantization]"), @r#"my.toml:8: `model.quantization` keeps the weights of linear layers in few bits, in which they cannot be trained, and without an adapter everything is. Add [adapter], or name in train.parameters what is not quantised, such as ["embed_tokens"]."#);
    assert_snapshot!(with("[model.quantization]\n[train]\nparameters = \"re:layers.3.mlp\""), @r#"my.toml:10: `train.parameters` selects model.layers.3.mlp.gate_proj.weight, which `model.quantization` keeps in few bits, so that it cannot be trained. Select other parameters, or leave model.quantization out."#);
    assert_snapshot!(with("[model.quantization]\nhead = true\n[train]\nparameters = [\"lm_head\"]"), @r#"my.toml:11: `train.parameters` selects lm_head.weight, which `model.quantization` keeps in few bits, so that it cannot be trained. Select other parameters, or leave model.quantization out."#);
    assert_snapshot!(with("[model.quantization]\nhead = true\n[adapter]\nmodules_to_save = [\"embed_tokens\", \"lm_head\"]"), @r#"my.toml:11: `adapter.modules_to_save.1` is "lm_head", which `model.quantization` keeps in few bits, so that it cannot be trained in full. Set model.quantization.head = false, or leave it out here."#);
    assert_snapshot!(with("[model.quantization]\n[adapter]\nmodules_to_save = [\"down_proj\"]"), @r#"my.toml:10: `adapter.modules_to_save.0` is "down_proj", which `model.quantization` keeps in few bits, so that it cannot be trained in full. Adapt it with adapter.targets instead."#);
}

#[test]
fn wrong_types() {
    assert_snapshot!(with("[adapter]\nrank = \"8\""), @r#"my.toml:9: `adapter.rank` is "8", but must be a whole number of at least 1. Write 8 without quotes."#);
    assert_snapshot!(with("[adapter]\nrank = 8.0"), @r#"my.toml:9: `adapter.rank` is 8.0, but must be a whole number of at least 1. Write 8."#);
    assert_snapshot!(with("[adapter]\nrslora = \"yes\""), @r#"my.toml:9: `adapter.rslora` is "yes", but must be true or false."#);
    assert_snapshot!(with("[adapter]\ntargets = \"q_proj\""), @r#"my.toml:9: `adapter.targets` is "q_proj", but must be "all-linear", a list of module names, or "re:" and a regular expression."#);
    assert_snapshot!(with("[adapter]\ntargets = []"), @r#"my.toml:9: `adapter.targets` is an empty list, but must be "all-linear", a list of module names, or "re:" and a regular expression."#);
    assert_snapshot!(with("[adapter]\nmodules_to_save = \"lm_head\""), @r#"my.toml:9: `adapter.modules_to_save` is "lm_head", but must be a list, each element a text. Write ["lm_head"]."#);
    assert_snapshot!(with("[optimizer]\nbetas = [0.9]"), @r#"my.toml:9: `optimizer.betas` is a list of 1, but must be a list of 2, each a number of at least 0 and below 1."#);
    assert_snapshot!(with("[train.early_stop]\nmetric = 3"), @r#"my.toml:9: `train.early_stop.metric` is 3, but must be "loss", "perplexity", "bits_per_byte", "exact_match", "accuracy", "chrf", "bleu", "retrieval", "fidelity", "consistency", "ac3", "mlc" or "gap"."#);
    assert_snapshot!(with("[[train]]\nsteps = 3"), @r#"my.toml:8: `train` is a list of 1, but must be a table. Write [train] in place of [[train]]."#);
    assert_snapshot!(set("data.sources={path=\"x\"}"), @r#"--set data.sources={path="x"}: `data.sources` is a table, but must be a list, each element a table. Write [[data.sources]] in place of [data.sources]."#);
    assert_snapshot!(set("data.sources.0.name=3"), @r#"--set data.sources.0.name=3: `data.sources.0.name` is 3, but must be a text. Put it in quotes."#);
    assert_snapshot!(set("data.sources.0.fields={prompt=3}"), @r#"--set data.sources.0.fields={prompt=3}: `data.sources.0.fields.prompt` is 3, but must be a text. Put it in quotes."#);
}

#[test]
fn values_out_of_range() {
    assert_snapshot!(set("seed=-1"), @r#"--set seed=-1: `seed` is -1, but must be a whole number of at least 0."#);
    assert_snapshot!(set("output="), @r#"--set output=: `output` is "", but must be a text that is not empty."#);
    assert_snapshot!(set("adapter.rank=0"), @r#"--set adapter.rank=0: `adapter.rank` is 0, but must be a whole number of at least 1."#);
    assert_snapshot!(set("adapter.alpha=0"), @r#"--set adapter.alpha=0: `adapter.alpha` is 0, but must be a number above 0."#);
    assert_snapshot!(set("adapter.dropout=1.0"), @r#"--set adapter.dropout=1.0: `adapter.dropout` is 1.0, but must be a number of at least 0 and below 1."#);
    assert_snapshot!(set("data.holdout=1"), @r#"--set data.holdout=1: `data.holdout` is 1, but must be a number of at least 0 and below 1."#);
    assert_snapshot!(set("data.max_length=1"), @r#"--set data.max_length=1: `data.max_length` is 1, but must be a whole number of at least 2."#);
    assert_snapshot!(set("train.batch_size=0"), @r#"--set train.batch_size=0: `train.batch_size` is 0, but must be a whole number of at least 1."#);
    assert_snapshot!(set("train.epochs=0"), @r#"--set train.epochs=0: `train.epochs` is 0, but must be a number above 0."#);
    assert_snapshot!(set("optimizer.learning_rate=-1e-4"), @r#"--set optimizer.learning_rate=-1e-4: `optimizer.learning_rate` is -0.0001, but must be a number of at least 0."#);
    assert_snapshot!(set("optimizer.learning_rate=inf"), @r#"--set optimizer.learning_rate=inf: `optimizer.learning_rate` is inf, but must be a number of at least 0. Write a finite number."#);
    assert_snapshot!(set("optimizer.learning_rate=nan"), @r#"--set optimizer.learning_rate=nan: `optimizer.learning_rate` is NaN, but must be a number of at least 0. Write a finite number."#);
    assert_snapshot!(set("optimizer.betas=[0.9, 1.0]"), @r#"--set optimizer.betas=[0.9, 1.0]: `optimizer.betas.1` is 1.0, but must be a number of at least 0 and below 1."#);
    assert_snapshot!(set("optimizer.eps=0"), @r#"--set optimizer.eps=0: `optimizer.eps` is 0, but must be a number above 0."#);
    assert_snapshot!(set("optimizer.kind=adamw4bit"), @r#"--set optimizer.kind=adamw4bit: `optimizer.kind` is "adamw4bit", but must be "adamw" or "adamw8bit". Did you mean "adamw8bit"?"#);
    assert_snapshot!(set("optimizer.moments=f16"), @r#"--set optimizer.moments=f16: `optimizer.moments` is "f16", but must be "f32" or "bf16". Did you mean "bf16"?"#);
    assert_snapshot!(with("[optimizer]\nkind = \"adamw8bit\"\nmoments = \"f32\""), @r#"my.toml:10: `optimizer.moments` is not read by "adamw8bit", whose moments have 8 bits. Leave it out."#);
    assert_snapshot!(set("schedule.warmup=1.5"), @r#"--set schedule.warmup=1.5: `schedule.warmup` is 1.5, but must be a fraction below 1 of the run or a whole number of steps."#);
    assert_snapshot!(set("schedule.min_ratio=2"), @r#"--set schedule.min_ratio=2: `schedule.min_ratio` is 2, but must be a number from 0 to 1."#);
    assert_snapshot!(set("train.freeze=[{match='x', until=2}]"), @r#"--set train.freeze=[{match='x', until=2}]: `train.freeze.0.until` is 2, but must be a number above 0 and of at most 1."#);
    assert_snapshot!(set("model.device=cuda:x"), @r#"--set model.device=cuda:x: `model.device` is "cuda:x", but must be "auto", "cpu", "cuda", "tch", "tch:cuda", or "cuda:N" or "tch:cuda:N" with a GPU's index."#);
    assert_snapshot!(set("model.device=tch:1"), @r#"--set model.device=tch:1: `model.device` is "tch:1", but must be "auto", "cpu", "cuda", "tch", "tch:cuda", or "cuda:N" or "tch:cuda:N" with a GPU's index."#);
}

#[test]
fn memory() {
    assert_snapshot!(set("memory.budget=4"), @r#"--set memory.budget=4: `memory.budget` is 4, but must be empty, or a number of bytes such as "4GiB" or "2500MB". Put it in quotes."#);
    assert_snapshot!(set("memory.budget=4 gigabytes"), @r#"--set memory.budget=4 gigabytes: `memory.budget` is "4 gigabytes", but must be empty, or a number of bytes such as "4GiB" or "2500MB"."#);
    assert_snapshot!(set("memory.offload=disk"), @r#"--set memory.offload=disk: `memory.offload` is "disk", but must be "none", "activations" or "weights"."#);
    assert_snapshot!(set("memory.block_inputs=f16"), @r#"--set memory.block_inputs=f16: `memory.block_inputs` is "f16", but must be "auto" or "bf16". Did you mean "bf16"?"#);
    assert_snapshot!(set("memory.recompute=blocks"), @r#"--set memory.recompute=blocks: `memory.recompute` is "blocks", but must be "auto", "none" or "block". Did you mean "block"?"#);
}

#[test]
fn distributed() {
    assert_snapshot!(set("distributed.strategy=fsdp"), @r#"--set distributed.strategy=fsdp: `distributed.strategy` is "fsdp", but must be "ddp", "zero1" or "zero3"."#);
    assert_snapshot!(set("distributed.backend=gloo"), @r#"--set distributed.backend=gloo: `distributed.backend` is "gloo", but must be "auto", "nccl" or "mpi"."#);
    assert_snapshot!(with("[distributed]\nstrategy = \"zero3\"\n[memory]\nrecompute = \"none\"\noffload = \"weights\""), @r#"
    my.toml:11: `memory.recompute` is "none", but with distributed.strategy = "zero3" a block's weights are gone when it has computed, so that the backward pass has to compute it again. Write "auto" or "block".
    my.toml:12: `memory.offload` is "weights", but with distributed.strategy = "zero3" each process keeps its part of them on its device. Write "none" or "activations", or choose another strategy.
    "#);
}

#[test]
fn unknown_words() {
    assert_snapshot!(set("data.truncate=rigth"), @r#"--set data.truncate=rigth: `data.truncate` is "rigth", but must be "right" or "drop". Did you mean "right"?"#);
    assert_snapshot!(set("model.dtype=float32"), @r#"--set model.dtype=float32: `model.dtype` is "float32", but must be "auto", "f32", "bf16" or "f16"."#);
    assert_snapshot!(set("schedule.kind=cosin"), @r#"--set schedule.kind=cosin: `schedule.kind` is "cosin", but must be "constant", "linear", "cosine", "inverse_sqrt", "polynomial" or "wsd". Did you mean "cosine"?"#);
    assert_snapshot!(set("data.sources.0.normalize=[\"nfd\"]"), @r#"--set data.sources.0.normalize=["nfd"]: `data.sources.0.normalize.0` is "nfd", but must be "nfc", "nfkc" or "arabic-letters". Did you mean "nfc"?"#);
}

#[test]
fn what_is_missing() {
    assert_snapshot!(refusal("", &[]), @r#"my.toml: `output` is missing. Write `output = …` with a text that is not empty."#);
    assert_snapshot!(refusal("output = \"out\"", &[]), @r#"
    my.toml: `model.path` is missing. Write `path = …` in [model] with a model folder or a hub id.
    my.toml: `data.sources` is missing, so there is nothing to learn from. Write [[data.sources]] with a path and a format.
    "#);
    assert_snapshot!(with("[[data.sources]]\nname = \"two\""), @r#"
    my.toml:8: `data.sources.1.path` is missing. Write `path = …` with a file, a glob, or two or more line-aligned files such as { en = "x.en", sw = "x.sw" }.
    my.toml:8: `data.sources.1.format` is missing. Write `format = …` with "alpaca", "sharegpt", "messages", "prompt-completion", "text", "preference", "kto", "parallel", "choice" or "tokens".
    "#);
}

#[test]
fn what_does_not_go_together() {
    assert_snapshot!(with("[train]\nsteps = 10\nepochs = 3"), @r#"my.toml:10: `train.epochs` and `train.steps` both say how long the run is. Keep one of them."#);
    assert_snapshot!(with("[[data.sources]]\npath = \"deeper/rows.json\"\nformat = \"text\""), @r#"my.toml:8: `data.sources.1.name` is "rows", as is `data.sources.0.name`. Give each a name of its own."#);
    assert_snapshot!(with("lang = \"en\"\nlang_field = \"language\""), @r#"my.toml:9: `data.sources.0.lang_field` and `data.sources.0.lang` both say the language of the rows. Keep one of them."#);
    assert_snapshot!(set("data.sources.0.lang=pt_BR"), @r#"--set data.sources.0.lang=pt_BR: `data.sources.0.lang` is "pt_BR", which is not a well-formed BCP-47 language tag. Write "pt-BR"."#);
    assert_snapshot!(set("data.sources.0.lang=klingonese"), @r#"--set data.sources.0.lang=klingonese: `data.sources.0.lang` is "klingonese", which is not a well-formed BCP-47 language tag. Write a tag such as "en", "sw", "pt-BR" or "zh-Hant"."#);
    assert_snapshot!(set("data.sources.0.path=a/***.jsonl"), @r#"--set data.sources.0.path=a/***.jsonl: `data.sources.0.path` is not a glob: wildcards are either regular `*` or recursive `**`. Correct the pattern, or name a file."#);
    assert_snapshot!(set("adapter.targets=re:(q|k"), @r#"--set adapter.targets=re:(q|k: `adapter.targets` is not a regular expression: unclosed group. Correct what follows "re:"."#);
    assert_snapshot!(set("train.parameters=re:layers[9"), @r#"--set train.parameters=re:layers[9: `train.parameters` is not a regular expression: unclosed character class. Correct what follows "re:"."#);
    assert_snapshot!(set("train.early_stop.patience=2"), @r#"my.toml: `train.early_stop` waits for "loss", but nothing measures that. Set data.holdout, or add a task of kind "perplexity" to [[eval.tasks]]."#);
    assert_snapshot!(with("[adapter]\nkind = \"none\"\ninit_from = \"runs/a/adapter\""), @r#"my.toml:10: `adapter.init_from` names an adapter to go on from, but `adapter.kind` is "none". Set the kind, or leave it out."#);
    assert_snapshot!(
        with("[[eval.tasks]]\nname = \"a\"\nkind = \"generate\"\npath = \"x.{lang}.jsonl\"\nformat = \"text\""),
        @r#"
        my.toml:11: `eval.tasks.0.path` has {lang} in it, but the task names no languages. Write languages = ["en", …].
        my.toml:12: `eval.tasks.0.format` has no question to answer, but the task's kind is "generate". Use alpaca, sharegpt, messages or prompt-completion, parallel for translations, or kind = "perplexity".
        "#
    );
    assert_snapshot!(
        with("[[eval.tasks]]\nkind = \"perplexity\"\npath = \"x.jsonl\"\nformat = \"text\"\nlanguages = [\"en\", \"xx-\", \"en\"]"),
        @r#"
        my.toml:12: `eval.tasks.0.languages.1` is "xx-", which is not a well-formed BCP-47 language tag. Write a tag such as "en", "sw", "pt-BR" or "zh-Hant".
        my.toml:12: `eval.tasks.0.languages.2` names "en" a second time. Keep one.
        "#
    );
}

#[test]
fn overrides_that_cannot_be_laid_over() {
    assert_snapshot!(set("train.steps"), @r#"--set train.steps: there is no value. Write --set KEY=VALUE, such as --set train.steps=100."#);
    assert_snapshot!(set("=3"), @r#"--set =3: "" is no key. Write --set KEY=VALUE, such as --set train.steps=100."#);
    assert_snapshot!(set("data.sources.1.path=x"), @r#"--set data.sources.1.path=x: `sources` is a list of 1. Use an index below 1 in place of "1"."#);
    assert_snapshot!(set("data.sources.first.path=x"), @r#"--set data.sources.first.path=x: `sources` is a list of 1. Use an index below 1 in place of "first"."#);
    assert_snapshot!(set("output.x=3"), @r#"--set output.x=3: `output` is a single value, with no keys in it. Set `output` itself."#);
    assert_snapshot!(set("adapter.targets=[q_proj]"), @r#"--set adapter.targets=[q_proj]: [q_proj] is not a TOML value: string values must be quoted, expected literal string. Put texts in quotes, also inside lists."#);
}

#[test]
fn text_that_is_no_toml() {
    assert_snapshot!(refusal("output = \"out\"\n[model\npath = 3", &[]), @r#"my.toml:2:7: the recipe is not valid TOML: unclosed table, expected `]`."#);
    assert_snapshot!(refusal("seed = 1\nseed = 2", &[]), @r#"my.toml:2:1: the recipe is not valid TOML: duplicate key."#);
    assert_snapshot!(refusal("output = out", &[]), @r#"my.toml:1:10: the recipe is not valid TOML: string values must be quoted, expected literal string."#);
    assert_snapshot!(refusal("seed = 99999999999999999999", &[]), @r#"my.toml:1:8: the recipe is not valid TOML: this number does not fit into 64 bits, write a smaller one."#);
}

#[test]
fn all_problems_are_reported_together_in_the_order_of_the_file() {
    let text = "output = 3\n[train]\nbatch_size = 0\n[model]\npth = \"x\"\n[adapter]\nrank = 0";
    assert_snapshot!(refusal(text, &["seed=x"]), @r#"
    my.toml:1: `output` is 3, but must be a text that is not empty. Put it in quotes.
    my.toml:3: `train.batch_size` is 0, but must be a whole number of at least 1.
    my.toml:5: `model.pth` is not a recipe key. Did you mean `path`?
    my.toml:7: `adapter.rank` is 0, but must be a whole number of at least 1.
    --set seed=x: `seed` is "x", but must be a whole number of at least 0.
    "#);
}

#[test]
fn merges() {
    let merge = |text: &str| {
        let stages = "[[stage]]\nname = \"one\"\n[[stage]]\nname = \"two\"\nmodel.path = \"org/name\"\n[[stage]]\nname = \"both\"\n";
        with(&format!("{stages}{text}"))
    };
    assert_snapshot!(merge("merge = {}"), @r#"
    my.toml:15: `stage.2.merge.method` is missing. Write `method = …` with "linear", "slerp", "ties" or "dare-ties".
    my.toml:15: `stage.2.merge.of` is missing. Write `of = …` with a list, each element a text.
    "#);
    assert_snapshot!(merge("merge = { method = \"slerpp\", of = [\"one\", \"two\"] }"), @r#"my.toml:15: `stage.2.merge.method` is "slerpp", but must be "linear", "slerp", "ties" or "dare-ties". Did you mean "slerp"?"#);
    assert_snapshot!(merge("merge = { method = \"slerp\", of = [\"one\", \"twoo\"] }"), @r#"my.toml:15: stage `both`: `merge.of.1` is "twoo", which is no stage before this one. Did you mean "two"?"#);
    assert_snapshot!(merge("merge = { method = \"slerp\", of = [\"one\", \"both\"] }"), @r#"my.toml:15: stage `both`: `merge.of.1` is "both", which is no stage before this one. The stages before are one, two."#);
    assert_snapshot!(merge("merge = { method = \"slerp\", of = [\"one\"] }"), @r#"my.toml:15: stage `both`: `merge.of` is a list of 1, but must name two stages or more."#);
    assert_snapshot!(merge("merge = { method = \"linear\", of = [\"one\", \"one\"] }"), @r#"my.toml:15: stage `both`: `merge.of.1` names "one" a second time. Keep one, and give it more weight."#);
    assert_snapshot!(merge("merge = { method = \"linear\", of = [\"one\", \"two\"], weights = [1] }"), @r#"my.toml:15: stage `both`: `merge.weights` is a list of 1, but must have a number for each of the 2 stages."#);
    assert_snapshot!(merge("merge = { method = \"linear\", of = [\"one\", \"two\"], weights = [1, -1] }"), @r#"my.toml:15: stage `both`: `merge.weights` has a number below 0. Write numbers of at least 0."#);
    assert_snapshot!(merge("merge = { method = \"linear\", of = [\"one\", \"two\"], weights = [0, 0] }"), @r#"my.toml:15: stage `both`: `merge.weights` are all 0. Write at least one above 0."#);
    assert_snapshot!(merge("merge = { method = \"linear\", of = [\"one\", \"two\"], density = 0.5 }"), @r#"my.toml:15: stage `both`: `merge.density` is for "ties" and "dare-ties", and the method is "linear". Leave it out."#);
    assert_snapshot!(merge("merge = { method = \"ties\", of = [\"one\", \"two\"], density = 0.0 }"), @r#"my.toml:15: `stage.2.merge.density` is 0.0, but must be a number above 0 and of at most 1."#);
    assert_snapshot!(merge("merge = { method = \"ties\", of = [\"one\", \"two\"], combination = \"exact\" }"), @r#"my.toml:15: stage `both`: `merge.combination` is "exact", which is for "linear", and the method is "ties". Leave it out."#);
    assert_snapshot!(merge("from = \"one\"\nmerge = { method = \"ties\", of = [\"one\", \"two\"] }\n[stage.train]\nsteps = 3"), @r#"
    my.toml:15: stage `both`: `from` cannot stand beside `merge`: such a stage trains nothing. Leave it out.
    my.toml:17: stage `both`: `train` cannot stand beside `merge`: such a stage trains nothing. Leave it out.
    "#);
    assert_snapshot!(merge("[[stage]]\nname = \"three\"\nmerge = { method = \"ties\", of = [\"one\", \"both\"] }"), @r#"my.toml:17: stage `three`: `merge.base` is missing, and the merged stages did not start from the same weights. Write `base = …` with the model that their task vectors start from."#);
    assert_snapshot!(merge("model.path = \"org/name\"\nadapter = { rank = 4 }\n[[stage]]\nname = \"three\"\nmerge = { method = \"ties\", of = [\"one\", \"both\"] }"), @r#"my.toml:19: stage `three`: `merge.of.1` is "both", which leaves an adapter, while "one" leaves a model. Merge models with models and adapters with adapters."#);
    assert_snapshot!(with("[[stage]]\nname = \"a\"\nmerge = { method = \"linear\", of = [\"b\", \"c\"] }"), @r#"
    my.toml:10: stage `a`: `merge.of.0` is "b", which is no stage before this one. A merge stands after the stages that it merges.
    my.toml:10: stage `a`: `merge.of.1` is "c", which is no stage before this one. A merge stands after the stages that it merges.
    "#);
    let adapters = |text: &str| {
        let stages = "[[stage]]\nname = \"one\"\n[[stage]]\nname = \"two\"\n[[stage]]\nname = \"both\"\n";
        with(&format!("[adapter]\nrank = 4\n{stages}{text}"))
    };
    assert_snapshot!(adapters("merge = { method = \"ties\", base = \"x\", of = [\"one\", \"two\"] }"), @r#"my.toml:16: stage `both`: `merge.base` is for models, and these are adapters: each is what was learnt. Leave it out."#);
}

#[test]
fn stages() {
    let stages = |text: &str| with(&format!("[adapter]\nrank = 4\n[[stage]]\nname = \"one\"\n{text}"));
    assert_snapshot!(stages("[[stage]]\nname = \"one\""), @r#"my.toml:13: stage `one`: `name` is "one", as is that of a stage before it. Give each a name of its own."#);
    assert_snapshot!(stages("from = \"zero\""), @r#"my.toml:12: stage `one`: `from` is "zero", which is no stage before this one. This is the first stage: leave `from` out."#);
    assert_snapshot!(stages("[[stage]]\nname = \"two\"\nfrom = \"onne\""), @r#"my.toml:14: stage `two`: `from` is "onne", which is no stage before this one. Did you mean "one"?"#);
    assert_snapshot!(stages("[stage.adapter]\nrnk = 4"), @r#"my.toml:13: `stage.0.adapter.rnk` is not a recipe key. Did you mean `rank`?"#);
    assert_snapshot!(stages("[stage.adapter]\nrank = 0"), @r#"my.toml:13: `stage.0.adapter.rank` is 0, but must be a whole number of at least 1."#);
    assert_snapshot!(stages("output = \"x\""), @r#"my.toml:12: `stage.0.output` cannot be set: a stage runs into a folder of its name in the recipe's `output`. Leave it out."#);
    assert_snapshot!(stages("[[stage]]\nname = \"../two\""), @r#"my.toml:13: `stage.1.name` is "../two", but must be a folder name of letters, digits, dots, hyphens and underscores."#);
    assert_snapshot!(stages("[[stage]]\ntrain = { steps = 3 }"), @r#"my.toml:12: `stage.1.name` is missing. Write `name = …` with a folder name of letters, digits, dots, hyphens and underscores."#);
    assert_snapshot!(stages("[stage.train]\nsteps = 3\nepochs = 1"), @r#"my.toml:14: stage `one`: `train.epochs` and `train.steps` both say how long the run is. Keep one of them."#);
    assert_snapshot!(stages("[[stage]]\nname = \"two\"\n[stage.adapter]\nkind = \"none\""), @r#"my.toml:12: stage `two`: `model.path` is not set, and the stage this one goes on from leaves an adapter, while this one trains base weights. Set it to a model folder, or train an adapter here too."#);
    assert_snapshot!(stages("[stage.schedule]\nwarmup = 2.5\n[[stage]]\nname = \"two\""), @r#"my.toml:13: stage `one`: `schedule.warmup` is 2.5, but must be a fraction below 1 of the run or a whole number of steps."#);
}

#[test]
fn files_that_are_no_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str| {
        let message = Recipe::load(&folder.path().join(name), &[]).unwrap_err().to_string();
        message.replace(&folder.path().to_string_lossy().into_owned(), "FOLDER")
    };
    std::fs::write(folder.path().join("latin1.toml"), b"seed = 1\n# caf\xe9\n").unwrap();
    std::fs::create_dir(folder.path().join("runs")).unwrap();
    assert_snapshot!(load("none.toml"), @r#"there is no recipe at FOLDER/none.toml. Check the path, or write a shipped recipe out with `interlingua init NAME`."#);
    assert_snapshot!(load("latin1.toml"), @r#"FOLDER/latin1.toml:2: the file is not UTF-8. Save it as UTF-8 text."#);
    assert_snapshot!(load("runs"), @r#"FOLDER/runs is a folder. Name the recipe file in it, such as FOLDER/runs/recipe.toml."#);
}

#[test]
fn every_problem_names_its_key() {
    let text = format!("{GOOD}[adapter]\nrank = 0");
    let Err(RecipeError::Invalid { problems }) = Recipe::parse(&text, Path::new("my.toml"), &[]) else {
        panic!("was accepted")
    };
    assert_eq!(problems[0].key, "adapter.rank");
}
