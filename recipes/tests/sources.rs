//! Sources: line-aligned files, auxiliary sources, builders, and which objective reads which rows.

use std::path::Path;

use insta::assert_snapshot;
use interlingua_recipes::{Build, BuildKind, BuiltLanguage, Recipe, RecipeError, SourcePath, SourceUse};

fn parse(lines: &str) -> Result<Recipe, RecipeError> {
    let text = format!("output = \"out\"\nmodel.path = \"org/name\"\n{lines}");
    Recipe::parse(&text, Path::new("/work/my.toml"), &[])
}

fn refusal(lines: &str) -> String {
    match parse(lines) {
        Ok(recipe) => panic!("was accepted: {recipe:?}"),
        Err(error) => error.to_string(),
    }
}

/// The refusal of a source of a format under an objective.
fn under(objective: &str, format: &str) -> String {
    refusal(&format!(
        "objective.kind = \"{objective}\"\n[[data.sources]]\npath = \"x.jsonl\"\nformat = \"{format}\""
    ))
}

/// The refusal of a source of `format` with a builder.
fn build(format: &str, lines: &str) -> String {
    refusal(&format!(
        "[[data.sources]]\npath = \"x.jsonl\"\nformat = \"{format}\"\n[[data.sources.build]]\n{lines}"
    ))
}

#[test]
fn line_aligned_files_are_resolved_saved_and_compared() {
    let lines = "[[data.sources]]\nformat = \"parallel\"\npath = { sw = \"a/x.sw\", en = \"/b/x.en\" }";
    let recipe = parse(lines).unwrap();
    let source = &recipe.data.sources[0];
    let files = [("en", "/b/x.en"), ("sw", "/work/a/x.sw")];
    let files = files.map(|(language, file)| (language.to_owned(), file.into())).into();
    assert_eq!(source.path, SourcePath::Aligned(files));
    assert_eq!((source.name.as_str(), source.r#use), ("x", SourceUse::Train));
    let again = Recipe::parse(&recipe.to_toml().unwrap(), Path::new("/work/my.toml"), &[]).unwrap();
    assert_eq!(again, recipe);
    let other = parse(&lines.replace("/b/", "/c/")).unwrap();
    assert_eq!(other.resume_conflicts(&recipe).unwrap(), ["data.sources.0.path.en"]);
}

#[test]
fn line_aligned_files_are_parallel_texts_of_two_languages_or_more() {
    let with = |path: &str, lines: &str| refusal(&format!("[[data.sources]]\npath = {path}\n{lines}"));
    assert_snapshot!(with("{ en = \"x.en\" }", "format = \"parallel\""), @r#"/work/my.toml:4: `data.sources.0.path` is a table, but must be a file, a glob, or two or more line-aligned files such as { en = "x.en", sw = "x.sw" }."#);
    assert_snapshot!(with("{ en = \"x.en\", sw = 3 }", "format = \"parallel\""), @r#"/work/my.toml:4: `data.sources.0.path` is a table, but must be a file, a glob, or two or more line-aligned files such as { en = "x.en", sw = "x.sw" }."#);
    assert_snapshot!(with("{ en = \"x.en\", sw_KE = \"x.sw\" }", "format = \"text\"\nlang = \"en\""), @r#"
    /work/my.toml:4: `data.sources.0.path.sw_KE` is "sw_KE", which is not a well-formed BCP-47 language tag. Write "sw-KE".
    /work/my.toml:5: `data.sources.0.format` is "text", but line-aligned files hold texts that are translations of one another. Write "parallel".
    /work/my.toml:6: `data.sources.0.lang` says nothing of line-aligned files: their languages stand in `path`, and their lines are the groups. Leave it out.
    "#);
}

#[test]
fn objectives_read_the_rows_they_are_made_for() {
    assert_snapshot!(under("dpo", "alpaca"), @r#"/work/my.toml:6: `data.sources.0.format` is "alpaca", but the objective "dpo" reads pairs of a chosen and a rejected answer. Use format = "preference", or "tokens" with chosen_ids and rejected_ids."#);
    assert_snapshot!(under("kto", "preference"), @r#"/work/my.toml:6: `data.sources.0.format` is "preference", but the objective "kto" reads answers that are marked desirable or not. Use format = "kto", or "tokens" with label."#);
    assert_snapshot!(under("sft", "preference"), @r#"/work/my.toml:6: `data.sources.0.format` is "preference", but the objective "sft" does not read pairs of a chosen and a rejected answer. Choose an objective that does, such as dpo or orpo."#);
    assert_snapshot!(under("goldfish", "kto"), @r#"/work/my.toml:6: `data.sources.0.format` is "kto", but the objective "goldfish" does not read answers that are marked desirable or not. Choose an objective that does, such as kto."#);
    for (objective, formats) in [
        ("dpo", ["preference", "tokens"]),
        ("kto", ["kto", "tokens"]),
        ("sft", ["choice", "parallel"]),
    ] {
        for format in formats {
            let lines = format!(
                "objective.kind = \"{objective}\"\n[[data.sources]]\npath = \"x.jsonl\"\nformat = \"{format}\""
            );
            assert!(parse(&lines).is_ok(), "{objective} reads {format}");
        }
    }
}

const LOSS: &str = "[[objective.auxiliary]]\nkind = \"middle-layer\"\nsource = \"pairs\"\n";

#[test]
fn auxiliary_sources_are_named_and_nothing_else_is() {
    let pairs = "[[data.sources]]\nname = \"pairs\"\npath = \"x.jsonl\"\nformat = \"parallel\"\n";
    let auxiliary = format!("{pairs}use = \"auxiliary\"\n");
    let rows = "[[data.sources]]\nname = \"rows\"\npath = \"x.jsonl\"\nformat = \"alpaca\"\n";
    let recipe = parse(&format!("{rows}{auxiliary}{LOSS}")).unwrap();
    assert_eq!(recipe.data.sources[1].r#use, SourceUse::Auxiliary);
    assert!(parse(&format!("objective.kind = \"none\"\n{auxiliary}{LOSS}")).is_ok());
    assert_snapshot!(refusal(&format!("{rows}{auxiliary}")), @r#"/work/my.toml:11: `data.sources.1.use` is "auxiliary", but no loss names the source. Write its name as `source` in [[objective.auxiliary]], or use = "train"."#);
    assert_snapshot!(refusal(&format!("{rows}{pairs}{LOSS}")), @r#"/work/my.toml:13: `objective.auxiliary.0.source` is "pairs", a source that is trained on. Write use = "auxiliary" in that source."#);
    assert_snapshot!(refusal(&format!("{auxiliary}{LOSS}")), @r#"/work/my.toml:3: `data.sources` are all auxiliary, so the objective "sft" has nothing to learn from. Add a source with use = "train", or write objective.kind = "none"."#);
    let kto = auxiliary.replace("parallel", "kto");
    assert_snapshot!(refusal(&format!("{rows}{kto}{LOSS}")), @r#"/work/my.toml:10: `data.sources.1.format` is "kto", but the rows of an auxiliary source are read as one text each. Use parallel, text, tokens or a format of conversations, whose prompts are read."#);
    let two = format!("{LOSS}max_length = 20\n{LOSS}max_length = 30\n");
    assert_snapshot!(refusal(&format!("{rows}{auxiliary}{two}")), @r#"/work/my.toml:11: `data.sources.1.use` is "auxiliary", and the losses that name the source cut its texts at [20, 30] tokens. Give them one max_length, or a source each."#);
    let mix = "[data.mix]\nby = \"source\"\nratios = { rows = 0.5, pairs = 0.5 }\n";
    assert_snapshot!(refusal(&format!("{rows}{auxiliary}{LOSS}{mix}")), @r#"/work/my.toml:17: `data.mix.ratios.pairs` is an auxiliary source, of which nothing is trained on. Leave it out."#);
}

#[test]
fn builders_have_documented_defaults() {
    let lines = "[[data.sources]]\npath = \"x.jsonl\"\nformat = \"alpaca\"\nkeep = true\n[[data.sources.build]]\nkind = \"crossin\"\n";
    let recipe = parse(lines).unwrap();
    let expected = Build {
        kind: BuildKind::Crossin,
        from: Vec::new(),
        to: Vec::new(),
        count: 0,
        template: None,
        probability: None,
        languages_per_document: None,
        lang: BuiltLanguage::Target,
    };
    assert_eq!(recipe.data.sources[0].build, [expected]);
    assert!(recipe.data.sources[0].keep);
    let of = |kind: &str| parse(&lines.replace("crossin", kind)).unwrap().data.sources[0].build[0].clone();
    assert_eq!(of("cross-lingual-answer").probability, Some(0.5));
    assert_eq!(of("parallel-document").languages_per_document, Some(0));
    let again = Recipe::parse(&recipe.to_toml().unwrap(), Path::new("/work/my.toml"), &[]).unwrap();
    assert_eq!(again, recipe);
}

#[test]
fn builders_that_can_make_nothing_are_refused() {
    assert_snapshot!(build("parallel", "kind = \"crossin\""), @r#"/work/my.toml:7: `data.sources.0.build.0.kind` is "crossin", which needs questions with their answers, but the source's format is "parallel". Use alpaca, sharegpt, messages or prompt-completion."#);
    assert_snapshot!(build("tokens", "kind = \"translation\""), @r#"/work/my.toml:7: `data.sources.0.build.0.kind` is "translation", but the source's format is "tokens". Rows are built out of parallel, text, alpaca, sharegpt, messages and prompt-completion."#);
    assert_snapshot!(build("alpaca", "kind = \"crossin\"\nfrom = [\"en\", \"sw\"]"), @r#"/work/my.toml:8: `data.sources.0.build.0.from` names several languages, but "crossin" has one that all others are asked from and answered in. Keep one."#);
    assert_snapshot!(build("alpaca", "kind = \"translation\"\nfrom = [\"en\"]\nto = [\"en\"]"), @r#"/work/my.toml:9: `data.sources.0.build.0.to` is "en", as is `from`, so no row can be made. Name another language."#);
    assert_snapshot!(build("alpaca", "kind = \"translation\"\nto = [\"pt_BR\"]"), @r#"/work/my.toml:8: `data.sources.0.build.0.to.0` is "pt_BR", which is not a well-formed BCP-47 language tag. Write "pt-BR"."#);
    assert_snapshot!(build("alpaca", "kind = \"translation\"\nprobability = 0.5\nlanguages_per_document = 2"), @r#"
    /work/my.toml:8: `data.sources.0.build.0.probability` is read by "cross-lingual-answer" alone. Leave it out.
    /work/my.toml:9: `data.sources.0.build.0.languages_per_document` is read by "parallel-document" alone. Leave it out.
    "#);
    assert_snapshot!(build("text", "kind = \"parallel-document\"\nfrom = [\"en\"]\nto = [\"en\", \"sw\"]\nlanguages_per_document = 3"), @r#"
    /work/my.toml:8: `data.sources.0.build.0.from` is not read by "parallel-document", whose versions are equals. Name its languages in `to`.
    /work/my.toml:10: `data.sources.0.build.0.languages_per_document` is 3, but a document has 2 languages or more, and no more than `to` names. Write 0 for all.
    "#);
    assert_snapshot!(refusal("[[data.sources]]\npath = \"x.jsonl\"\nformat = \"text\"\nkeep = true"), @r#"/work/my.toml:6: `data.sources.0.keep` keeps the source's own rows beside those that are built, and nothing is built. Leave it out."#);
    assert_snapshot!(build("text", "kind = \"translate\""), @r#"/work/my.toml:7: `data.sources.0.build.0.kind` is "translate", but must be "translation", "question-translation", "crossin", "cross-lingual-answer", "language-tag" or "parallel-document". Did you mean "translation"?"#);
}

#[test]
fn tasks_read_one_good_answer_a_row() {
    let task = |kind: &str, format: &str| {
        refusal(&format!(
            "[[data.sources]]\npath = \"x.jsonl\"\nformat = \"text\"\n[[eval.tasks]]\nkind = \"{kind}\"\npath = \"y.jsonl\"\nformat = \"{format}\""
        ))
    };
    assert_snapshot!(task("perplexity", "preference"), @r#"/work/my.toml:9: `eval.tasks.0.format` is "preference", whose rows hold several answers or a bad one, and a task of kind "perplexity" reads one good answer a row. Use another format for the task."#);
    assert_snapshot!(task("generate", "text"), @r#"/work/my.toml:9: `eval.tasks.0.format` has no question to answer, but the task's kind is "generate". Use alpaca, sharegpt, messages or prompt-completion, parallel for translations, or kind = "perplexity"."#);
    assert_snapshot!(task("retrieval", "text"), @r#"/work/my.toml:9: `eval.tasks.0.format` is "text", but a task of kind "retrieval" reads texts that are translations of one another: "parallel"."#);
    assert_snapshot!(task("multiple-choice", "alpaca"), @r#"/work/my.toml:9: `eval.tasks.0.format` is "alpaca", but a task of kind "multiple-choice" reads "choice": question, choices and answer."#);
}
