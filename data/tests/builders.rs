//! Rows that are built out of parallel ones.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write;
use std::path::Path;

use interlingua_data::DataError;
use interlingua_data::dataset::Dataset;
use interlingua_data::prepare::prepare;
use interlingua_data::preview::pieces;
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::Recipe;
use proptest::prelude::*;
use tempfile::TempDir;

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat")).unwrap()
}

/// A folder with rows, and a cache in it.
struct Place(TempDir);

impl Place {
    fn new(rows: &str) -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::write(place.0.path().join("data.jsonl"), rows).unwrap();
        place
    }

    /// What the builders of a source make; `lines` go on after the format.
    fn build(&self, format: &str, lines: &str, seed: u64) -> Result<Dataset, DataError> {
        let text = format!(
            "seed = {seed}\noutput = \"out\"\nmodel.path = \"model\"\n[data]\ntemplate = \"chatml\"\n[[data.sources]]\nname = \"s\"\n\
             path = \"data.jsonl\"\nformat = \"{format}\"\n{lines}\n"
        );
        let recipe = Recipe::parse(&text, &self.0.path().join("recipe.toml"), &[]).unwrap();
        let cache = self.0.path().join("cache");
        Ok(prepare(&recipe, &tokenizer(), 420, &cache, &mut |_| {})?.train)
    }
}

/// Prompt and answer of each sample; a document has no prompt.
fn said(data: &Dataset) -> Vec<(String, String)> {
    let sample = |sample: usize| {
        let (ids, labels) = data.tokens(sample);
        let pieces = pieces(&tokenizer(), ids, labels).unwrap();
        let of = |wanted: bool| -> String {
            let pieces = pieces.iter().filter(|(_, supervised)| *supervised == wanted);
            pieces.map(|(piece, _)| piece.as_str()).collect()
        };
        let (prompt, answer) = (of(false), of(true));
        let prompt = prompt.trim_start_matches("<|begin_of_text|>");
        let prompt = prompt.strip_prefix("<|im_start|>user\n").unwrap_or(prompt);
        let prompt = prompt
            .strip_suffix("<|im_end|>\n<|im_start|>assistant\n\n")
            .unwrap_or(prompt);
        (prompt.to_owned(), answer.trim_end_matches("<|im_end|>").to_owned())
    };
    (0..data.len()).map(sample).collect()
}

fn languages(data: &Dataset) -> Vec<&str> {
    (0..data.len())
        .map(|sample| data.languages()[usize::from(data.language(sample))].as_str())
        .collect()
}

/// Alpaca rows of so many groups in these languages: instruction "I-en-0", input "N-en-0", output "O-en-0", and so on.
fn tasks(groups: usize, languages: &[&str]) -> String {
    let mut rows = String::new();
    for language in languages {
        for group in 0..groups {
            let row = serde_json::json!({
                "id": group, "lang": language, "instruction": format!("I-{language}-{group}"),
                "input": format!("N-{language}-{group}"), "output": format!("O-{language}-{group}"),
            });
            writeln!(rows, "{row}").unwrap();
        }
    }
    rows
}

fn builder(lines: &str) -> String {
    format!("[[data.sources.build]]\n{lines}")
}

fn pair(prompt: &str, answer: &str) -> (String, String) {
    (prompt.to_owned(), answer.to_owned())
}

#[test]
fn translations_go_from_each_language_into_each() {
    let rows = "{\"id\": 1, \"text\": {\"en\": \"river\", \"sw\": \"mto\", \"qaa\": \"xx\"}}\n";
    let place = Place::new(rows);
    let one_way = place
        .build(
            "parallel",
            &builder("kind = \"translation\"\nfrom = [\"en\"]\nto = [\"sw\"]"),
            1,
        )
        .unwrap();
    let prompt = "Translate the following text from English into Swahili.\n\nriver";
    assert_eq!(said(&one_way), [pair(prompt, "mto")]);
    assert_eq!(languages(&one_way), ["sw"]);
    assert!(
        one_way.describe(0).ends_with("data.jsonl:1, id 1, translation en→sw)"),
        "{}",
        one_way.describe(0)
    );
    let all = place
        .build("parallel", &builder("kind = \"translation\"\nlang = \"source\""), 1)
        .unwrap();
    assert_eq!(languages(&all), ["en", "en", "sw", "sw", "qaa", "qaa"]);
    let prompt = "Translate the following text from Swahili into qaa.\n\nmto";
    assert_eq!(
        said(&all)[3],
        pair(prompt, "xx"),
        "a language without a name is its tag"
    );
    let keep = format!(
        "keep = true\n{}",
        builder("kind = \"translation\"\nfrom = [\"en\"]\nto = [\"sw\"]")
    );
    let kept = place.build("parallel", &keep, 1).unwrap();
    assert_eq!(kept.len(), 4);
    let groups: HashSet<u64> = (0..4).map(|sample| kept.group(sample)).collect();
    assert_eq!(groups.len(), 1, "made rows belong to the group of their parents");
}

#[test]
fn questions_are_translated_without_answers_and_tags_stand_before_texts() {
    let place = Place::new(&tasks(1, &["en", "sw"]));
    let to = "from = [\"sw\"]\nto = [\"en\"]";
    let questions = place
        .build("alpaca", &builder(&format!("kind = \"question-translation\"\n{to}")), 1)
        .unwrap();
    let prompt =
        "Translate the following question from Swahili into English, without answering it.\n\nI-sw-0\n\nN-sw-0";
    assert_eq!(said(&questions), [pair(prompt, "I-en-0\n\nN-en-0")]);
    let tagged = place
        .build("alpaca", &builder(&format!("kind = \"language-tag\"\n{to}")), 1)
        .unwrap();
    assert_eq!(said(&tagged), [pair("<2en> O-sw-0", "O-en-0")]);
}

#[test]
fn crossin_asks_across_languages_in_three_modes() {
    let place = Place::new(&tasks(40, &["en", "sw", "ar", "hi"]));
    let built = place
        .build(
            "alpaca",
            &builder("kind = \"crossin\"\nto = [\"sw\", \"ar\"]\ncount = 30"),
            1,
        )
        .unwrap();
    assert_eq!(built.len(), 90);
    let said = said(&built);
    let mut drawn: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, (prompt, answer)) in said.iter().enumerate() {
        let (language, group) = match number / 30 {
            0 | 2 => (if number < 30 { answer } else { prompt }, answer),
            _ => (prompt, answer),
        };
        let x = ["sw", "ar"]
            .into_iter()
            .find(|x| language.contains(&format!("-{x}-")))
            .unwrap();
        let group = group.rsplit('-').next().unwrap();
        *drawn.entry(x).or_default() += 1;
        let expected = match number / 30 {
            0 => pair(
                &format!("I-en-{group}\n\nN-en-{group}\n[{x}]"),
                &format!("O-{x}-{group}"),
            ),
            1 => pair(
                &format!("I-{x}-{group}\n\nN-{x}-{group}\n[en]"),
                &format!("O-en-{group}"),
            ),
            _ => {
                let name = if x == "sw" { "Swahili" } else { "Arabic" };
                let prompt = format!("Translate the following text from {name} into English.\n\nI-{x}-{group}");
                pair(&prompt, &format!("I-en-{group}"))
            }
        };
        assert_eq!((prompt, answer), (&expected.0, &expected.1));
    }
    assert!(drawn.values().all(|count| (30..=60).contains(count)), "{drawn:?}");
    let distinct: HashSet<_> = said.iter().collect();
    assert_eq!(distinct.len(), 90);
}

#[test]
fn answers_cross_languages_as_often_as_asked() {
    let place = Place::new(&tasks(200, &["en", "sw", "ar"]));
    let crossing = |lines: &str| -> (usize, usize, usize) {
        let built = place
            .build(
                "alpaca",
                &builder(&format!("kind = \"cross-lingual-answer\"\n{lines}")),
                3,
            )
            .unwrap();
        let said = said(&built);
        let tag = |text: &str| text.split('-').nth(1).unwrap().to_owned();
        for (prompt, answer) in &said {
            let name = [("en", "English"), ("sw", "Swahili"), ("ar", "Arabic")];
            let name = name.iter().find(|(tag_of, _)| *tag_of == tag(answer)).unwrap().1;
            assert!(prompt.ends_with(&format!(" Answer in {name}: ")), "{prompt}");
        }
        let crossed = said.iter().filter(|(prompt, answer)| tag(prompt) != tag(answer));
        let centred = crossed
            .clone()
            .filter(|(prompt, answer)| [tag(prompt), tag(answer)].contains(&"en".into()));
        (said.len(), crossed.count(), centred.count())
    };
    let (rows, crossed, centred) = crossing("");
    assert_eq!(rows, 600);
    assert!(
        (250..350).contains(&crossed) && centred < crossed,
        "{crossed} {centred}"
    );
    let (rows, crossed, centred) = crossing("from = [\"en\"]\nprobability = 0.25");
    assert_eq!(rows, 200);
    assert!((30..70).contains(&crossed) && centred == crossed, "{crossed} {centred}");
    assert_eq!(crossing("probability = 1.0").1, 600);
    assert_eq!(crossing("probability = 0.0").1, 0);
}

#[test]
fn a_document_holds_several_versions_in_an_order_of_its_own() {
    let rows: String = (0..20)
        .map(|group| format!("{{\"text\": {{\"en\": \"e{group}\", \"sw\": \"s{group}\", \"ar\": \"a{group}\"}}}}\n"))
        .collect();
    let place = Place::new(&rows);
    let all = place
        .build("parallel", &builder("kind = \"parallel-document\""), 1)
        .unwrap();
    let orders: BTreeSet<String> = said(&all)
        .iter()
        .enumerate()
        .map(|(group, (_, text))| {
            let lines: BTreeSet<&str> = text.lines().collect();
            let expected = [
                format!("[en] e{group}"),
                format!("[sw] s{group}"),
                format!("[ar] a{group}"),
            ];
            assert_eq!(lines, expected.iter().map(String::as_str).collect());
            text.lines().map(|line| &line[1..3]).collect::<Vec<_>>().join(" ")
        })
        .collect();
    assert!(orders.len() > 3, "{orders:?}");
    for (sample, (_, text)) in said(&all).iter().enumerate() {
        let last = &text.lines().last().unwrap()[1..3];
        assert_eq!(languages(&all)[sample], last, "it counts as its last version");
    }
    let two =
        builder("kind = \"parallel-document\"\nto = [\"en\", \"sw\", \"ar\"]\nlanguages_per_document = 2\ncount = 5");
    let two = place.build("parallel", &two, 1).unwrap();
    assert_eq!(two.len(), 5);
    assert!(said(&two).iter().all(|(_, text)| text.lines().count() == 2));
}

#[test]
fn templates_see_the_row_and_wrong_ones_are_named() {
    let place = Place::new(&tasks(1, &["en", "sw"]));
    let with = |template: &str| {
        let lines = format!("kind = \"translation\"\nfrom = [\"en\"]\nto = [\"sw\"]\ntemplate = '{template}'");
        place.build("alpaca", &builder(&lines), 1)
    };
    let all = "{{source}} {{target}} {{source_language}} {{target_language}} {{text}} {{instruction}} {{input}} {{output}} {{mode}}";
    let expected = "en sw English Swahili O-en-0 I-en-0 N-en-0 O-en-0 0";
    assert_eq!(said(&with(all).unwrap()), [pair(expected, "O-sw-0")]);
    for (template, message) in [
        (
            "{{ text",
            "`data.sources.0.build.0.template` cannot be used: syntax error",
        ),
        (
            "{{ txt }}",
            "`data.sources.0.build.0.template` cannot be used: undefined value",
        ),
        ("{{ \"\" }}", "it makes an empty text"),
    ] {
        let error = with(template).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("source_language"), "{error}");
    }
}

#[test]
fn builders_that_can_make_too_little_are_refused() {
    let place = Place::new(&tasks(2, &["en", "sw"]));
    let refused = |lines: &str| place.build("alpaca", &builder(lines), 1).unwrap_err().to_string();
    assert_eq!(
        refused("kind = \"translation\"\nto = [\"fr\"]"),
        "`data.sources.0.build.0.to` names \"fr\", but no row of source \"s\" has that language. Its rows have: en, sw."
    );
    assert_eq!(
        refused("kind = \"translation\"\ncount = 5"),
        "`data.sources.0.build.0.count` is 5, but the parallel rows of source \"s\" make only 4. Lower it, or write 0 for all."
    );
    assert!(refused("kind = \"crossin\"\ncount = 3").contains("make only 2 of mode 1."));
    let apart = Place::new(&tasks(2, &["sw"]));
    let error = apart
        .build("alpaca", &builder("kind = \"crossin\""), 1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("`data.sources.0.build.0.from` names \"en\""), "{error}");
    let lonely = "{\"lang\": \"en\", \"text\": \"a\"}\n{\"lang\": \"sw\", \"text\": \"b\"}\n";
    let error = Place::new(lonely)
        .build("text", &builder("kind = \"translation\""), 1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("make only 0. Rows of one group"), "{error}");
}

#[test]
fn conversations_give_their_first_question_and_answer() {
    let row = |id: u32, lang: &str| {
        format!(
            "{{\"id\": {id}, \"lang\": \"{lang}\", \"messages\": [{{\"role\": \"system\", \"content\": \"s\"}}, {{\"role\": \"user\", \"content\": \"q-{lang}\"}}, \
             {{\"role\": \"assistant\", \"content\": \"a-{lang}\"}}, {{\"role\": \"user\", \"content\": \"more\"}}, {{\"role\": \"assistant\", \"content\": \"more\"}}]}}\n"
        )
    };
    let place = Place::new(&(row(1, "en") + &row(1, "sw")));
    let lines = builder("kind = \"crossin\"\ntemplate = \"{{ mode }} {{ text }}\"");
    let built = place.build("messages", &lines, 1).unwrap();
    let expected = [pair("1 q-en", "a-sw"), pair("2 q-sw", "a-en"), pair("3 q-sw", "q-en")];
    assert_eq!(said(&built), expected);
    let prompts = "{\"id\": 1, \"lang\": \"en\", \"prompt\": \"q-en\", \"completion\": \"a-en\"}\n\
                   {\"id\": 1, \"lang\": \"sw\", \"prompt\": \"q-sw\", \"completion\": \"a-sw\"}\n";
    let built = Place::new(prompts).build("prompt-completion", &lines, 1).unwrap();
    assert_eq!(said(&built), expected);
}

#[test]
fn the_seed_is_part_of_what_is_cached() {
    let place = Place::new(&tasks(30, &["en", "sw", "ar"]));
    let lines = builder("kind = \"translation\"\ncount = 20");
    let one = said(&place.build("alpaca", &lines, 1).unwrap());
    let two = said(&place.build("alpaca", &lines, 2).unwrap());
    assert_ne!(one, two);
    assert_eq!(one, said(&place.build("alpaca", &lines, 1).unwrap()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn counts_are_exact_and_the_seed_decides(
        kind in prop::sample::select(vec!["translation", "question-translation", "crossin", "cross-lingual-answer", "language-tag", "parallel-document"]),
        count in 1_usize..8, groups in 8_usize..14, seed in 0_u64..1000, alone: bool,
    ) {
        let lines = builder(&format!("kind = \"{kind}\"\ncount = {count}"));
        let mut rows = tasks(groups, &["en", "sw", "ar"]);
        let build = |rows: &str| said(&Place::new(rows).build("alpaca", &lines, seed).unwrap());
        let built = build(&rows);
        let modes = if kind == "crossin" { 3 } else { 1 };
        prop_assert_eq!(built.len(), count * modes);
        let distinct: HashSet<_> = built.iter().collect();
        prop_assert_eq!(distinct.len(), built.len(), "no row twice");
        if alone {
            // Rows that cannot be parallel, at the end, change nothing.
            rows.push_str("{\"id\": \"alone\", \"lang\": \"en\", \"instruction\": \"x\", \"output\": \"y\"}\n");
        }
        prop_assert_eq!(built, build(&rows));
    }
}
