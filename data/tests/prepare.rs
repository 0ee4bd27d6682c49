//! From files to tokenised data: what is kept, dropped, refused, cached and held out.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::{Path, PathBuf};

use interlingua_data::DataError;
use interlingua_data::order::Order;
use interlingua_data::prepare::{Prepared, Progress, prepare};
use interlingua_data::preview::pieces;
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::Recipe;
use tempfile::TempDir;

/// A folder with data, and a cache in it.
struct Place(TempDir);

impl Place {
    fn new(rows: &str) -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        place.write(rows);
        place
    }

    fn write(&self, rows: &str) {
        std::fs::write(self.0.path().join("data.jsonl"), rows).unwrap();
    }

    fn cache(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    fn cached_files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.cache())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    fn recipe(&self, format: &str, data: &str) -> Recipe {
        let text = format!(
            "output = \"out\"\n[model]\npath = \"model\"\n[data]\ntemplate = \"chatml\"\n{data}\n[[data.sources]]\nname = \"s\"\npath = \"data.jsonl\"\nformat = \"{format}\"\n"
        );
        Recipe::parse(&text, &self.0.path().join("recipe.toml"), &[]).unwrap()
    }

    /// Prepares, and says whether the cache had it.
    fn prepare(&self, format: &str, data: &str) -> Result<(Prepared, bool), DataError> {
        let mut cached = false;
        let mut watch = |progress: Progress| cached |= progress.cached;
        let prepared = prepare(&self.recipe(format, data), &tokenizer(), 420, &self.cache(), &mut watch)?;
        Ok((prepared, cached))
    }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat")).unwrap()
}

/// Samples as text with the supervised pieces in brackets.
fn shown(prepared: &Prepared) -> Vec<String> {
    let show = |sample: usize| {
        let (input_ids, labels) = prepared.train.tokens(sample);
        let pieces = pieces(&tokenizer(), input_ids, labels).unwrap().into_iter();
        pieces
            .map(|(piece, supervised)| if supervised { format!("[{piece}]") } else { piece })
            .collect()
    };
    (0..prepared.train.len()).map(show).collect()
}

#[test]
fn every_format_is_supervised_where_it_should_be() {
    let place = Place::new(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Yo\"}], \"lang\": \"en\"}\n",
    );
    let chat = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Yo<|im_end|>]\n";
    assert_eq!(shown(&place.prepare("messages", "").unwrap().0), [chat]);
    let all = "<|im_start|>[user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n]";
    assert_eq!(
        shown(&place.prepare("messages", "train_on = \"all\"").unwrap().0),
        [all]
    );
    place.write("{\"prompt\": \"maji ya\", \"completion\": \" mto\"}\n");
    assert_eq!(
        shown(&place.prepare("prompt-completion", "").unwrap().0),
        ["<|begin_of_text|>maji ya[ mto<|im_end|>]"]
    );
    place.write("{\"text\": \"maji\"}\n");
    assert_eq!(
        shown(&place.prepare("text", "").unwrap().0),
        ["<|begin_of_text|>[maji<|im_end|>]"]
    );
    place.write("{\"input_ids\": [1, 2, 3], \"labels\": [-100, -100, 3]}\n{\"input_ids\": [5, 6]}\n");
    let tokens = place.prepare("tokens", "").unwrap().0.train;
    assert_eq!(tokens.tokens(0), (&[1, 2, 3][..], &[-100, -100, 3][..]));
    assert_eq!(tokens.tokens(1), (&[5, 6][..], &[5, 6][..]));
    assert!(tokens.describe(1).ends_with("data.jsonl:2)"), "{}", tokens.describe(1));
}

#[test]
fn a_long_text_is_cut_into_sequences_that_supervise_each_token_once() {
    let place = Place::new(&format!("{{\"text\": \"{}\"}}\n", "0123456789".repeat(5)));
    let (prepared, _) = place.prepare("text", "max_length = 8").unwrap();
    let train = &prepared.train;
    let total: usize = (0..train.len()).map(|sample| train.supervised(sample)).sum();
    assert_eq!(total, 51, "50 digits and the end, without the BOS token");
    assert!((0..train.len()).all(|sample| (2..=8).contains(&train.length(sample))));
    let (first, second) = (train.tokens(0).0, train.tokens(1).0);
    assert_eq!(first.last(), second.first());
    let dropped = place
        .prepare("text", "max_length = 8\ntruncate = \"drop\"")
        .unwrap_err()
        .to_string();
    assert!(dropped.contains("1 rows: longer than max_length"), "{dropped}");
}

#[test]
fn rows_that_lose_every_supervised_token_are_dropped_and_counted() {
    let row = |lang: &str, prompt: &str| {
        format!("{{\"prompt\": \"{prompt}\", \"completion\": \"abc\", \"lang\": \"{lang}\"}}\n")
    };
    let long = "0123456789".repeat(3);
    let rows = [
        row("sw", "q"),
        row("sw", &long),
        row("ar", &long),
        row("en", "01234567890123456"),
    ]
    .concat();
    let (prepared, _) = Place::new(&rows)
        .prepare("prompt-completion", "max_length = 20")
        .unwrap();
    assert_eq!(prepared.train.len(), 2);
    let report = prepared.report.by_language();
    assert_eq!(report["sw"].dropped["no supervised token left after truncation"], 1);
    assert_eq!(
        (
            report["ar"].dropped_rows(),
            report["ar"].samples,
            report["en"].truncated
        ),
        (1, 0, 1)
    );
}

#[test]
fn tokens_out_of_the_vocabulary_are_bad_rows() {
    let place = Place::new(
        "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 420]}\n{\"input_ids\": [1, 2], \"labels\": [1, 999]}\n",
    );
    let error = place.prepare("tokens", "").unwrap_err().to_string();
    assert!(
        error.contains("data.jsonl:2: `input_ids[1]` is 420") && error.contains("420 tokens"),
        "{error}"
    );
    let (prepared, _) = place.prepare("tokens", "on_bad_row = \"skip\"").unwrap();
    assert_eq!(prepared.train.len(), 1);
    let source = &prepared.report.sources[0];
    assert_eq!((source.rows, source.skipped["tokens"].rows), (3, 2));
}

#[test]
fn rows_that_the_template_refuses_are_bad_rows() {
    let bad =
        "{\"messages\": [{\"role\": \"user\", \"content\": null}, {\"role\": \"assistant\", \"content\": \"Yo\"}]}\n";
    let error = Place::new(bad).prepare("messages", "").unwrap_err();
    assert!(matches!(error, DataError::BadRow(_)), "{error}");
    assert!(error.to_string().contains("data.jsonl:1"), "{error}");
}

#[test]
fn the_cache_is_used_until_anything_changes_and_repaired_when_damaged() {
    let place = Place::new("{\"text\": \"maji\"}\n");
    let (first, cached) = place.prepare("text", "").unwrap();
    assert!(!cached);
    let (again, cached) = place.prepare("text", "").unwrap();
    assert!(cached);
    assert_eq!((shown(&first), &first.report), (shown(&again), &again.report));

    let file = place.cached_files().pop().unwrap();
    let whole = std::fs::read(&file).unwrap();
    for damaged in [&whole[..whole.len() / 2], &[], &[whole.clone(), vec![0]].concat()[..]] {
        std::fs::write(&file, damaged).unwrap();
        let (repaired, cached) = place.prepare("text", "").unwrap();
        assert!(!cached);
        assert_eq!(shown(&repaired), shown(&first));
        assert_eq!(std::fs::read(&file).unwrap(), whole);
    }

    assert!(!place.prepare("text", "max_length = 77").unwrap().1, "a setting");
    place.write("{\"text\": \"mto\"}\n");
    assert!(!place.prepare("text", "").unwrap().1, "the data");
    assert_eq!(place.cached_files().len(), 3, "no temporary file stays behind");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let place = Place::new("{\"text\": \"maji\"}\n");
    std::fs::write(place.cache(), "a file in the way").unwrap();
    let error = place.prepare("text", "").unwrap_err().to_string();
    assert!(error.contains("INTERLINGUA_CACHE"), "{error}");
}

#[test]
fn translations_of_held_out_rows_are_not_trained_on() {
    let rows: String = (0..60)
        .map(|row| {
            format!(
                "{{\"id\": {}, \"lang\": \"{}\", \"text\": \"maji {row}\"}}\n",
                row / 3,
                ["en", "sw", "ar"][row % 3]
            )
        })
        .collect();
    let (prepared, _) = Place::new(&rows).prepare("text", "holdout = 0.2").unwrap();
    let heldout = prepared.heldout.as_ref().unwrap();
    assert_eq!((prepared.train.len(), heldout.len()), (48, 12));
    for sample in 0..heldout.len() {
        let group = heldout.group(sample);
        assert!((0..prepared.train.len()).all(|other| prepared.train.group(other) != group));
    }
    for language in 0..3 {
        let count = (0..heldout.len())
            .filter(|&sample| heldout.language(sample) == language)
            .count();
        assert_eq!(count, 4, "{}", heldout.languages()[usize::from(language)]);
    }
}

#[test]
fn a_batch_larger_than_the_data_is_refused_with_its_numbers() {
    let place = Place::new("{\"text\": \"maji\"}\n{\"text\": \"mto\"}\n");
    let recipe = place.recipe("text", "");
    let (prepared, _) = place.prepare("text", "").unwrap();
    let error = Order::for_recipe(&recipe, &prepared.train, 2).unwrap_err().to_string();
    assert!(
        error.contains("64 rows") && error.contains("2 samples make only 1 rows"),
        "{error}"
    );
    let files = place.recipe("text", "shuffle = false");
    assert!(Order::for_recipe(&files, &prepared.train, 2).is_ok());
}
