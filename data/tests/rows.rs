//! Preferences, marked answers, choices and parallel texts: from rows to what is trained on.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::Path;

use interlingua_data::DataError;
use interlingua_data::dataset::Dataset;
use interlingua_data::prepare::{Prepared, prepare};
use interlingua_data::preview::pieces;
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::Recipe;
use tempfile::TempDir;

/// A folder with data files, and a cache in it.
struct Place(TempDir);

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        for (name, text) in files {
            place.write(name, text);
        }
        place
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    /// Prepares what these lines of a recipe say, `[data]` first.
    fn prepare(&self, data: &str) -> Result<Prepared, DataError> {
        let text = format!("output = \"out\"\n[model]\npath = \"model\"\n[data]\n{data}");
        let recipe = Recipe::parse(&text, &self.0.path().join("recipe.toml"), &[]).unwrap();
        prepare(&recipe, &tokenizer(), 420, &self.0.path().join("cache"), &mut |_| {})
    }

    /// One source `data.jsonl` of a format, under an objective.
    fn source(&self, objective: &str, format: &str, data: &str) -> Result<Prepared, DataError> {
        self.prepare(&format!(
            "{data}\n[[data.sources]]\nname = \"s\"\npath = \"data.jsonl\"\nformat = \"{format}\"\n[objective]\nkind = \"{objective}\"\n"
        ))
    }
}

fn one(rows: &str) -> Place {
    Place::new(&[("data.jsonl", rows)])
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat")).unwrap()
}

/// The parts of each sample as text with the supervised pieces in brackets.
fn shown(data: &Dataset) -> Vec<Vec<String>> {
    let part = |(ids, labels): (&[u32], &[i32])| {
        let pieces = pieces(&tokenizer(), ids, labels).unwrap().into_iter();
        pieces
            .map(|(piece, supervised)| if supervised { format!("[{piece}]") } else { piece })
            .collect::<String>()
    };
    let sample = |sample: usize| {
        let (ids, labels) = data.tokens(sample);
        let parts = data.parts(sample);
        parts.map(|range| part((&ids[range.clone()], &labels[range]))).collect()
    };
    (0..data.len()).map(sample).collect()
}

#[test]
fn a_pair_is_two_sequences_of_which_the_answers_are_supervised() {
    let rows = r#"{"prompt": "maji", "chosen": " ya", "rejected": " mto", "lang": "sw"}
{"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Yo"}], "rejected": [{"role": "assistant", "content": "No"}], "lang": "en"}
"#;
    for train_on in ["assistant", "all"] {
        let prepared = one(rows)
            .source(
                "dpo",
                "preference",
                &format!("template = \"chatml\"\ntrain_on = \"{train_on}\""),
            )
            .unwrap();
        let train = &prepared.train;
        let chat = |answer| format!("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[{answer}<|im_end|>]\n");
        assert_eq!(
            shown(train),
            [
                [
                    "<|begin_of_text|>maji[ ya<|im_end|>]",
                    "<|begin_of_text|>maji[ mto<|im_end|>]"
                ]
                .map(str::to_owned),
                [chat("Yo"), chat("No")],
            ]
        );
        assert_eq!(prepared.report.by_language()["sw"].samples, 1);
        assert!(train.marks(0).is_empty());
        assert!(prepared.report.notes.is_empty());
    }
}

#[test]
fn a_pair_that_loses_an_answer_is_dropped_as_a_whole() {
    let rows = format!(
        "{{\"prompt\": \"q\", \"chosen\": \"a\", \"rejected\": \"b\", \"lang\": \"sw\"}}\n\
         {{\"prompt\": \"{0}\", \"chosen\": \"a\", \"rejected\": \"b\", \"lang\": \"sw\"}}\n\
         {{\"prompt\": \"q\", \"chosen\": \"a\", \"rejected\": \"{0}\", \"lang\": \"ar\"}}\n\
         {{\"prompt\": \"q\", \"chosen\": \"{0}a\", \"rejected\": \"{0}b\", \"lang\": \"hi\"}}\n",
        "0123456789".repeat(2)
    );
    let place = one(&rows);
    let right = place.source("orpo", "preference", "max_length = 12").unwrap();
    let report = right.report.by_language();
    assert_eq!(right.train.len(), 2);
    assert_eq!(report["sw"].dropped["no supervised token left after truncation"], 1);
    assert_eq!((report["ar"].truncated, report["ar"].samples), (1, 1));
    assert_eq!(
        report["hi"].dropped["chosen and rejected are equal after truncation"],
        1
    );
    assert!((0..2).all(|sample| right.train.parts(sample).all(|part| part.len() <= 12)));
    let drop = place
        .source("orpo", "preference", "max_length = 12\ntruncate = \"drop\"")
        .unwrap();
    assert_eq!(drop.train.len(), 1);
    assert_eq!(drop.report.by_language()["ar"].dropped["longer than max_length"], 1);
}

#[test]
fn pairs_that_cross_languages_are_counted() {
    let row = |chosen: &str, rejected: &str, languages: &str| {
        format!(
            "{{\"prompt\": \"q\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\", \"lang\": \"ar\"{languages}}}\n"
        )
    };
    let rows = [
        row("a", "b", ""),
        row("a", "b", ", \"chosen_lang\": \"en\", \"rejected_lang\": \"EN\""),
        row("a", "c", ", \"chosen_lang\": \"en\", \"rejected_lang\": \"en\""),
        row("a", "d", ", \"rejected_lang\": \"fr\""),
    ];
    let prepared = one(&rows.concat()).source("dpo", "preference", "").unwrap();
    let note =
        "3 of 4 preference pairs of source s have answers in another language than the prompt: ar→en 2; ar→ar, fr 1.";
    assert_eq!(prepared.report.notes, [note]);
    assert_eq!(prepared.train.languages(), ["ar"]);
}

#[test]
fn marked_answers_carry_their_mark() {
    let rows = "{\"prompt\": \"q \", \"completion\": \"a\", \"label\": true}\n{\"prompt\": \"q \", \"completion\": \"b\", \"label\": false}\n";
    let train = one(rows).source("kto", "kto", "").unwrap().train;
    assert_eq!((train.marks(0), train.marks(1)), (&[1][..], &[0][..]));
    let expected = ["a", "b"].map(|answer| vec![format!("<|begin_of_text|>q [{answer}<|im_end|>]")]);
    assert_eq!(shown(&train), expected);
}

#[test]
fn pairs_and_marks_come_as_tokens_too_and_fit_the_objective() {
    let pairs = "{\"chosen_ids\": [1, 2, 3], \"chosen_labels\": [-100, -100, 3], \"rejected_ids\": [1, 4]}\n";
    let train = one(pairs).source("simpo", "tokens", "").unwrap().train;
    assert_eq!(train.tokens(0), (&[1, 2, 3, 1, 4][..], &[-100, -100, 3, 1, 4][..]));
    assert_eq!(train.parts(0).collect::<Vec<_>>(), [0..3, 3..5]);
    assert_eq!(train.supervised(0), 2);

    let marked = "{\"input_ids\": [1, 2], \"label\": false}\n";
    assert_eq!(one(marked).source("kto", "tokens", "").unwrap().train.marks(0), [0]);

    let plain = "{\"input_ids\": [1, 2]}\n";
    for (rows, objective, message) in [
        (
            plain,
            "dpo",
            "data.jsonl:1: the objective is dpo, which reads pairs, and the row has no `chosen_ids`.",
        ),
        (plain, "kto", "and the row has no `label`."),
        (pairs, "kto", "and the row has no `label`."),
        (
            pairs,
            "sft",
            "the objective is sft, which reads one sequence a row, and the row has a pair.",
        ),
        (marked, "sft", "and the row has a `label`."),
        (
            "{\"chosen_ids\": [1, 2], \"rejected_ids\": [1, 999]}\n",
            "dpo",
            "data.jsonl:1: `rejected_ids[1]` is 999",
        ),
    ] {
        let error = one(rows).source(objective, "tokens", "").unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    // What one objective refuses is not found in the cache under another.
    let place = one(plain);
    place.source("sft", "tokens", "").unwrap();
    place.source("dpo", "tokens", "").unwrap_err();
}

#[test]
fn a_choice_is_one_sequence_for_each_answer() {
    let rows = "{\"question\": \"q?\", \"context\": \"c\", \"choices\": [\"x\", \"y\"], \"answer\": \"B\"}\n";
    let chat = one(rows)
        .source("sft", "choice", "template = \"chatml\"")
        .unwrap()
        .train;
    let asked = "<|im_start|>user\nc\nq?<|im_end|>\n<|im_start|>assistant\n";
    let expected = ["x", "y"].map(|answer| format!("{asked}[{answer}<|im_end|>]\n"));
    assert_eq!(shown(&chat), [expected]);
    assert_eq!(chat.marks(0), [1]);
}

#[test]
fn without_a_template_a_choice_is_plain_text() {
    let rows = "{\"question\": \"q?\", \"context\": \"c\", \"choices\": [\"x\", \"y\"], \"answer\": 0}\n";
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    std::fs::copy(fixture.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        "{\"eos_token\": \"<|im_end|>\"}",
    )
    .unwrap();
    let bare = Tokenizer::load(folder.path()).unwrap();
    let place = one(rows);
    let text =
        "output = \"out\"\nmodel.path = \"model\"\n[[data.sources]]\npath = \"data.jsonl\"\nformat = \"choice\"\n";
    let recipe = Recipe::parse(text, &place.0.path().join("recipe.toml"), &[]).unwrap();
    let prepared = prepare(&recipe, &bare, 420, &place.0.path().join("cache"), &mut |_| {}).unwrap();
    let expected = ["x", "y"].map(|answer| format!("<|begin_of_text|>c\nq?\n[{answer}<|im_end|>]"));
    assert_eq!(shown(&prepared.train), [expected]);
}

#[test]
fn bad_rows_are_named_with_their_line() {
    for (objective, format, row, message) in [
        (
            "dpo",
            "preference",
            r#"{"prompt": "a", "chosen": "b", "rejected": "b"}"#,
            "data.jsonl:1: `chosen` and `rejected` are equal",
        ),
        (
            "kto",
            "kto",
            r#"{"prompt": "a", "completion": "b"}"#,
            "data.jsonl:1: the row has no `label`.",
        ),
        (
            "sft",
            "choice",
            r#"{"question": "a", "choices": ["b", "c"], "answer": 2}"#,
            "data.jsonl:1: `answer` is 2, but there are 2 choices.",
        ),
        (
            "sft",
            "parallel",
            r#"{"src": "a", "tgt": "b", "src_lang": "en", "tgt_lang": "sw", "alignment": "0-1"}"#,
            "data.jsonl:1: the pair 0-1 in `alignment` is wrong: `tgt` has 1 words",
        ),
    ] {
        let error = one(&format!("{row}\n"))
            .source(objective, format, "")
            .unwrap_err()
            .to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn parallel_texts_are_learnt_as_texts_and_stay_in_one_group() {
    let rows = r#"{"id": 7, "text": {"en": "river", "sw": "mto"}}
{"src": "water", "tgt": "maji", "src_lang": "en", "tgt_lang": "sw", "alignment": "0-0"}
{"id": 7, "lang": "ar", "text": "نهر"}
"#;
    let train = one(rows).source("sft", "parallel", "").unwrap().train;
    let texts: Vec<String> = shown(&train).concat();
    assert_eq!(texts[1], "<|begin_of_text|>[mto<|im_end|>]");
    assert_eq!(texts[2], "<|begin_of_text|>[water<|im_end|>]");
    let groups: Vec<u64> = (0..5).map(|sample| train.group(sample)).collect();
    assert_eq!([groups[0], groups[2]], [groups[1], groups[3]]);
    assert_eq!(groups[0], groups[4]);
    assert_ne!(groups[0], groups[2]);
    assert!(train.marks(2).is_empty(), "nothing reads them");
    let report = one(rows).source("sft", "parallel", "").unwrap().report;
    assert_eq!(report.sources[0].rows, 3, "rows, not texts");
}

const ALIGNED: &str =
    "[[data.sources]]\nname = \"s\"\nformat = \"parallel\"\npath = { sw = \"x.sw\", en = \"x.en\" }\n";

#[test]
fn line_aligned_files_are_groups_of_their_lines() {
    let place = Place::new(&[("x.sw", "maji\n\nmto\n"), ("x.en", "water\nno translation\nriver")]);
    let train = place.prepare(ALIGNED).unwrap().train;
    let said: Vec<(String, &str)> = (0..train.len())
        .map(|sample| {
            let text = shown(&train.select([sample]))[0][0].clone();
            (text, train.languages()[usize::from(train.language(sample))].as_str())
        })
        .collect();
    let text = |text: &str| format!("<|begin_of_text|>[{text}<|im_end|>]");
    assert_eq!(
        said,
        [
            (text("water"), "en"),
            (text("maji"), "sw"),
            (text("no translation"), "en"),
            (text("river"), "en"),
            (text("mto"), "sw"),
        ]
    );
    assert_eq!(train.group(0), train.group(1));
    assert_eq!(train.group(3), train.group(4));
    assert_ne!(train.group(0), train.group(3));
    assert!(train.describe(4).ends_with("x.sw:3)"), "{}", train.describe(4));
}

#[test]
fn line_aligned_files_of_different_length_are_refused() {
    let place = Place::new(&[("x.sw", "maji\nmto\n\n"), ("x.en", "water\n")]);
    let error = place.prepare(ALIGNED).unwrap_err().to_string();
    assert!(
        error.contains("x.en has 1 lines, but ") && error.contains("x.sw has 3."),
        "{error}"
    );
    place.write("x.sw", "");
    let error = place.prepare(ALIGNED).unwrap_err().to_string();
    assert!(
        error.contains("x.sw has 0 lines, but ") && error.contains("x.en has 1."),
        "{error}"
    );
    std::fs::remove_file(place.0.path().join("x.sw")).unwrap();
    let error = place.prepare(ALIGNED).unwrap_err().to_string();
    assert!(
        error.contains("there is no file at ") && error.contains("x.sw"),
        "{error}"
    );
}

#[test]
fn a_bad_line_of_line_aligned_files_is_left_out_in_all_of_them() {
    let place = Place::new(&[("x.en", "water\nriver\nlake\n")]);
    std::fs::write(place.0.path().join("x.sw"), b"maji\nm\xff\nziwa\n").unwrap();
    let error = place.prepare(ALIGNED).unwrap_err().to_string();
    assert!(error.contains("x.sw:2: the text is not UTF-8 at byte 6"), "{error}");
    let prepared = place.prepare(&format!("on_bad_row = \"skip\"\n{ALIGNED}")).unwrap();
    assert_eq!(prepared.train.len(), 4);
    assert_eq!(prepared.report.sources[0].rows, 3);
}

/// A source that only a loss reads.
fn auxiliary(format: &str, max_length: &str) -> String {
    format!(
        "template = \"chatml\"\n[[data.sources]]\nname = \"s\"\npath = \"data.jsonl\"\nformat = \"{format}\"\nuse = \"auxiliary\"\n\
         [objective]\nkind = \"none\"\n[[objective.auxiliary]]\nkind = \"word-alignment\"\nsource = \"s\"\n{max_length}\n"
    )
}

#[test]
fn auxiliary_texts_are_read_whole_without_an_end_and_nothing_is_supervised() {
    let place = one(&format!(
        "{{\"text\": {{\"en\": \"{}\", \"sw\": \"maji\"}}}}\n",
        "0123456789".repeat(5)
    ));
    let prepared = place.prepare(&auxiliary("parallel", "max_length = 9")).unwrap();
    assert!(prepared.train.is_empty() && prepared.heldout.is_none());
    let data = &prepared.auxiliary["s"];
    assert_eq!(shown(data), [["<|begin_of_text|>01234567"], ["<|begin_of_text|>maji"]]);
    assert_eq!((data.supervised(0), data.group(0)), (0, data.group(1)));
    assert!(prepared.report.by_language().is_empty(), "nothing is trained on");
    assert_eq!(prepared.report.sources[0].by_language["en"].truncated, 1);
    let whole = place.prepare(&auxiliary("parallel", "")).unwrap();
    assert_eq!(whole.auxiliary["s"].length(0), 51);
}

#[test]
fn auxiliary_conversations_are_their_prompts() {
    let rows =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Yo\"}]}\n";
    let prepared = one(rows).prepare(&auxiliary("messages", "")).unwrap();
    let expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(shown(&prepared.auxiliary["s"]), [[expected]]);
    let rows = "{\"messages\": [{\"role\": \"assistant\", \"content\": \"Yo\"}]}\n";
    let error = one(rows).prepare(&auxiliary("messages", "")).unwrap_err().to_string();
    assert!(error.contains("data.jsonl:1: the source is auxiliary"), "{error}");
}

#[test]
fn aligned_words_become_ranges_of_tokens_on_both_sides() {
    let rows = r#"{"src": "maji ya mto 2024", "tgt": "water of river 2024", "src_lang": "sw", "tgt_lang": "en", "alignment": "2-2 0-0 1-1 3-3"}
"#;
    let words = |data: &Dataset, sample: usize| -> Vec<String> {
        let (ids, _) = data.tokens(sample);
        let marks = data.marks(sample);
        let word = |range: &[u32]| {
            tokenizer()
                .decode(&ids[range[0] as usize..range[1] as usize], false)
                .unwrap()
        };
        marks.chunks(2).map(|range| word(range).trim().to_owned()).collect()
    };
    let place = one(rows);
    let all = place.prepare(&auxiliary("parallel", "")).unwrap();
    let data = &all.auxiliary["s"];
    assert_eq!(words(data, 0), ["mto", "maji", "ya"], "equal words are left out");
    assert_eq!(words(data, 1), ["river", "water", "of"]);
    // Cut before the first pair's words are whole on the longer side.
    let end = *data.marks(0)[..2].last().unwrap().max(&data.marks(1)[1]);
    let cut = place
        .prepare(&auxiliary("parallel", &format!("max_length = {}", end - 1)))
        .unwrap();
    let data = &cut.auxiliary["s"];
    assert_eq!(
        (words(data, 0), words(data, 1)),
        (vec!["maji".into(), "ya".into()], vec!["water".into(), "of".into()])
    );
}
