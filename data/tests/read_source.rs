//! Files of all kinds, read into samples: what comes out, and what is said of files that cannot be read.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::{Path, PathBuf};

use interlingua_data::error::DataError;
use interlingua_data::sample::{Content, Sample};
use interlingua_data::source::{content_fingerprint, read_source};
use interlingua_recipes::{BadRow, Format, Normalization, Source};
use tempfile::TempDir;

fn source(path: impl Into<PathBuf>, format: Format) -> Source {
    let path = path.into();
    serde_json::from_value(serde_json::json!({"name": "s", "path": path, "format": format})).unwrap()
}

/// A folder with one file in it, and the source that reads it.
fn one_file(name: &str, bytes: impl AsRef<[u8]>, format: Format) -> (TempDir, Source) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, source(path, format))
}

/// The one file of a source.
fn file(source: &Source) -> &Path {
    source.path.paths().next().unwrap()
}

fn all(source: &Source) -> Result<Vec<Sample>, DataError> {
    read_source(3, source, BadRow::Fail)?.collect()
}

fn text(sample: &Sample) -> &str {
    match &sample.content {
        Content::Text(text) => text,
        other => panic!("{other:?}"),
    }
}

/// The texts in a file of format `text`, each with its line.
fn texts(name: &str, bytes: impl AsRef<[u8]>) -> Vec<(String, u64)> {
    let (_folder, source) = one_file(name, bytes, Format::Text);
    all(&source)
        .unwrap()
        .iter()
        .map(|sample| (text(sample).to_owned(), sample.place.line))
        .collect()
}

/// The message about a source, with `…` in place of the folder.
fn message(source: &Source) -> String {
    let folder = file(source).parent().unwrap().display().to_string();
    all(source).unwrap_err().to_string().replace(&folder, "…")
}

/// The message about a file of format `text`.
fn text_message(name: &str, bytes: impl AsRef<[u8]>) -> String {
    let (_folder, source) = one_file(name, bytes, Format::Text);
    message(&source)
}

fn row(text: &str, line: u64) -> (String, u64) {
    (text.to_owned(), line)
}

#[test]
fn every_kind_of_text_file_gives_the_same_rows() {
    let expected = [row("a", 1), row("été", 2)];
    assert_eq!(texts("x.txt", "a\nété\n"), expected);
    assert_eq!(
        texts("x.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\\u00e9t\\u00e9\"}"),
        expected
    );
    assert_eq!(
        texts("x.JSONL", "\u{feff}{\"text\": \"a\"}\r\n{\"text\": \"été\"}\r\n"),
        expected
    );
    assert_eq!(texts("x.json", "{\"text\": \"a\"}\n{\"text\": \"été\"}\n"), expected);
    assert_eq!(
        texts("x.json", "\u{feff} [\n {\"text\":\n \"a\"},\n\n{\"text\": \"été\"} ]\n"),
        expected
    );
    assert_eq!(
        texts("x.tsv", "\u{feff}text\tid\r\na\t1\r\nété\t2\r\n"),
        [row("a", 2), row("été", 3)]
    );
}

#[test]
fn blank_lines_are_passed_over_and_counted() {
    let expected = [row("a", 2), row("b", 5)];
    assert_eq!(texts("x.txt", "\na\n \n\u{3000}\nb\n\n"), expected);
    assert_eq!(
        texts("x.jsonl", "\n{\"text\":\"a\"}\n\n\n{\"text\":\"b\"}\n\n"),
        expected
    );
}

#[test]
fn strings_in_a_list_may_hold_what_ends_elements_outside() {
    let content = r#"[{"text": "a ], } \" \\"}, {"text": "b", "more": [[1, 2], {"c": "]"}]}]"#;
    assert_eq!(texts("x.json", content), [row("a ], } \" \\", 1), row("b", 2)]);
    let long = "ä".repeat(100_000);
    assert_eq!(texts("x.json", format!("[{{\"text\": \"{long}\"}}]")), [row(&long, 1)]);
}

#[test]
fn quotes_in_tsv_mean_nothing() {
    assert_eq!(
        texts("x.tsv", "text\tlang\n\"a\"\tsw\nshe said \"b\ten\n"),
        [row("\"a\"", 2), row("she said \"b", 3)]
    );
}

#[test]
fn a_sample_says_where_it_is_from() {
    let rows = "{\"text\": \"a\", \"id\": 7, \"lang\": \"ZH-hant\"}\n{\"text\": \"b\", \"pid\": \"p\"}\n";
    let (_folder, mut source) = one_file("x.jsonl", rows, Format::Text);
    let samples = all(&source).unwrap();
    assert_eq!(
        (samples[0].id.as_deref(), samples[0].group.as_deref()),
        (Some("7"), Some("7"))
    );
    assert_eq!(
        (samples[0].language.as_str(), samples[1].language.as_str()),
        ("zh-Hant", "und")
    );
    assert_eq!((samples[0].place.source, samples[0].place.line), (3, 1));
    assert_eq!(*samples[0].place.file, *file(&source));

    source.lang = Some("sw".into());
    assert!(all(&source).unwrap().iter().all(|sample| sample.language == "sw"));

    source.group_field = Some("pid".into());
    let expected = "…/x.jsonl:1: the row has no `pid`. It has `text`, `id` and `lang`; expected are `pid`. Fill it in, or \
                    correct `lang_field` or `group_field` of the source.";
    assert_eq!(message(&source), expected);
}

#[test]
fn fields_are_read_from_other_columns() {
    let (_folder, mut source) = one_file(
        "x.tsv",
        "question\tanswer\tsprache\tkey\na\tb\tde\tk\n",
        Format::PromptCompletion,
    );
    let renames = [
        ("prompt", "question"),
        ("completion", "answer"),
        ("lang", "sprache"),
        ("id", "key"),
    ];
    source.fields = renames
        .map(|(field, column)| (field.to_owned(), column.to_owned()))
        .into();
    let sample = all(&source).unwrap().remove(0);
    assert_eq!(
        sample.content,
        Content::PromptCompletion {
            prompt: "a".into(),
            completion: "b".into()
        }
    );
    assert_eq!((sample.language.as_str(), sample.group.as_deref()), ("de", Some("k")));

    source.fields.clear();
    let expected = "…/x.tsv:2: the row has no `prompt`. It has `question`, `answer`, `sprache` and `key`; expected are \
                    `prompt`, `completion` and `tools`. If another column holds it, write fields = { prompt = \"question\" } \
                    in the source.";
    assert_eq!(message(&source), expected);

    source.fields = [("promt".to_owned(), "question".to_owned())].into();
    assert!(message(&source).starts_with("`fields` of source \"s\" names `promt`, which format \"prompt-completion\""));
}

#[test]
fn normalisation_is_applied_but_not_to_tokens() {
    let (_folder, mut source) = one_file("x.txt", "أ e\u{301}\n", Format::Text);
    source.normalize = vec![Normalization::Nfc, Normalization::ArabicLetters];
    assert_eq!(text(&all(&source).unwrap()[0]), "ا é");
    let (_folder, mut source) = one_file("x.jsonl", "{\"input_ids\": [1]}", Format::Tokens);
    source.normalize = vec![Normalization::Nfkc];
    assert_eq!(
        all(&source).unwrap()[0].content,
        Content::Tokens {
            input_ids: vec![1],
            labels: None
        }
    );
}

#[test]
fn globs_are_sorted_and_brackets_in_names_are_names() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.txt", "a.txt", "c [1].txt"] {
        std::fs::write(folder.path().join(name), name).unwrap();
    }
    let read = |pattern: &str| {
        let samples = all(&source(folder.path().join(pattern), Format::Text)).unwrap();
        samples.iter().map(|sample| text(sample).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(read("*.txt"), ["a.txt", "b.txt", "c [1].txt"]);
    assert_eq!(read("[ab].txt"), ["a.txt", "b.txt"]);
    assert_eq!(read("c [1].txt"), ["c [1].txt"]);
    let nothing = message(&source(folder.path().join("*.tsv"), Format::Text));
    assert_eq!(
        nothing,
        "no file fits …/*.tsv. Correct the `path` of the source; it is relative to the recipe file."
    );
}

#[test]
fn files_that_cannot_be_read_are_named_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let source = source(folder.path().join(name), Format::Messages);
        let folder = folder.path().display().to_string();
        let error = read_source(0, &source, BadRow::Skip).err().unwrap();
        error.to_string().replace(&folder, "…")
    };
    let expected =
        "there is no file at …/x.jsonl. Correct the `path` of the source; it is relative to the recipe file.";
    assert_eq!(at("x.jsonl"), expected);
    std::fs::create_dir(folder.path().join("d")).unwrap();
    assert_eq!(
        at("d"),
        "…/d is a folder. Name a file in it, or a glob such as …/d/*.jsonl."
    );
    assert!(at("a**b").starts_with("…/a**b is not a glob: "));
    for name in ["x.csv", "x", "x.jsonl.gz"] {
        std::fs::write(folder.path().join(name), "a").unwrap();
        let expected = format!(
            "…/{name} is not a kind of file that is read here. Convert it to .jsonl, .json, .parquet, .tsv or .txt."
        );
        assert_eq!(at(name), expected);
    }
    std::fs::write(folder.path().join("x.txt"), "a").unwrap();
    assert!(at("x.txt").starts_with("…/x.txt is plain text, and rows of format \"messages\" have several fields."));
    std::fs::write(folder.path().join("x.parquet"), "PAR1 and no more").unwrap();
    assert!(
        at("x.parquet").starts_with("…/x.parquet cannot be read as Parquet: "),
        "{}",
        at("x.parquet")
    );
    std::fs::write(folder.path().join("x.tsv"), b"\xFF\xFEa\0").unwrap();
    assert_eq!(at("x.tsv"), "…/x.tsv is UTF-16 text. Save it as UTF-8.");
}

#[test]
fn files_without_rows_are_named() {
    for (name, content) in [
        ("x.jsonl", ""),
        ("x.jsonl", "\n\n"),
        ("x.json", "[ ]"),
        ("x.json", ""),
        ("x.tsv", "text\n"),
        ("x.tsv", ""),
    ] {
        assert_eq!(
            text_message(name, content),
            format!("…/{name} has no rows. Write some, or leave the source out.")
        );
    }
}

#[test]
fn bad_text_is_named_with_line_and_place() {
    let bad = b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n";
    let expected = "the text is not UTF-8 at byte 24 of the file. Save the file as UTF-8.";
    assert_eq!(text_message("x.jsonl", bad), format!("…/x.jsonl:2: {expected}"));
    let marked = [b"\xEF\xBB\xBF", &bad[..]].concat();
    assert!(text_message("x.jsonl", marked).contains("at byte 27 of"));
    let listed = b"[{\"text\": \"a\"},{\"text\": \"\xff\"}]";
    assert_eq!(
        text_message("x.json", listed),
        "…/x.json:2: the text is not UTF-8 at byte 25 of the file. Save the file as UTF-8."
    );
    assert!(text_message("x.tsv", b"text\na\n\xff\n").starts_with("…/x.tsv:3: the text is not UTF-8 at byte 7"));
    assert!(text_message("x.tsv", b"t\xff\n").starts_with("…/x.tsv:1: the text is not UTF-8 at byte 1"));
}

#[test]
fn half_rows_and_rows_that_are_not_json_are_named() {
    let half = text_message("x.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b");
    assert!(half.starts_with("…/x.jsonl:2: the JSON ends in the middle of a row. Write each row whole on one line;"));
    assert!(text_message("x.json", "{\n \"text\": \"a\"\n}").starts_with("…/x.json:1: the JSON ends in the middle"));
    let half = "…/x.json:2: the JSON ends in the middle of a row. The file ends before the list does: write it again.";
    assert_eq!(text_message("x.json", "[{\"text\": \"a\"}, {\"text\""), half);
    assert_eq!(text_message("x.json", "[{\"text\": \"a\"},"), half);
    assert_eq!(
        text_message("x.jsonl", "{'text': 'a'}"),
        "…/x.jsonl:1: the row is not JSON: key must be a string at column 2. Correct the row."
    );
    assert_eq!(
        text_message("x.json", "[\n{\"text\": \"a\"},\n{\"text\":\n b}]"),
        "…/x.json:2: the row is not JSON: expected value at line 4, column 2. Correct the row."
    );
    assert!(
        text_message("x.json", "[{\"text\": \"a\"},\n]")
            .contains(":2: the row is not JSON: nothing stands beside a comma")
    );
    assert!(text_message("x.json", "[{\"text\": \"a\"}]\n[").contains("something follows the list in line 2"));
    assert!(
        text_message("x.jsonl", "[{\"text\": \"a\"}]").starts_with("…/x.jsonl:1: the row is a list, where an object")
    );
    assert!(text_message("x.json", "[\"a\"]").starts_with("…/x.json:1: the row is text, where an object"));
    assert!(text_message("x.jsonl", "3").starts_with("…/x.jsonl:1: the row is a number, where an object"));
    assert!(text_message("x.jsonl", format!("{}1", "[".repeat(100_000))).contains("recursion limit"));
    assert!(
        text_message("x.tsv", "text\tid\na\n").starts_with("…/x.tsv:2: the row has 1 cells, but the header names 2")
    );
}

#[test]
fn bad_values_are_named() {
    assert!(text_message("x.jsonl", "{\"text\": \"\"}").starts_with("…/x.jsonl:1: `text` is empty."));
    assert!(
        text_message("x.jsonl", "{\"text\": 1}")
            .starts_with("…/x.jsonl:1: `text` is a number, where text is expected.")
    );
    assert!(
        text_message("x.jsonl", "{}")
            .starts_with("…/x.jsonl:1: the row has no `text`. It has no fields; expected are `text`.")
    );
    let tag = "…/x.jsonl:1: `lang` is \"zh_Hans\", which is not a well-formed BCP-47 language tag. Write \"zh-Hans\".";
    assert_eq!(text_message("x.jsonl", "{\"text\": \"a\", \"lang\": \"zh_Hans\"}"), tag);
    let tag = text_message("x.jsonl", "{\"text\": \"a\", \"lang\": [\"en\"]}");
    assert!(tag.starts_with("…/x.jsonl:1: `lang` is a list, where a language tag such as \"sw\" is expected."));
    let id = text_message("x.jsonl", "{\"text\": \"a\", \"id\": 1.5}");
    assert!(id.starts_with("…/x.jsonl:1: `id` is a number, where text or a whole number is expected."));
    let (_folder, mut source) = one_file("x.jsonl", "{\"text\": \"a\"}", Format::Text);
    source.lang_field = Some("language".into());
    assert!(message(&source).starts_with("…/x.jsonl:1: the row has no `language`. It has `text`;"));
    source.lang = Some("e n".into());
    assert!(message(&source).starts_with("`lang` of source \"s\" is \"e n\", which is not a well-formed BCP-47"));
}

#[test]
fn bad_rows_are_skipped_and_counted_by_kind() {
    let rows =
        b"{\"text\": \"a\"}\nnot json\n{\"text\": \"\"}\n{\"txt\": 1}\n{\"text\": \"b\"}\n\xff\n{\"text\": \"c\"";
    let (_folder, mut source) = one_file("x.jsonl", rows, Format::Text);
    let read = |source: &Source| {
        let mut rows = read_source(0, source, BadRow::Skip).unwrap();
        let texts: Vec<String> = rows.by_ref().map(|sample| text(&sample.unwrap()).to_owned()).collect();
        let skipped = rows.skipped().clone();
        (texts, skipped)
    };
    let (texts, skipped) = read(&source);
    assert_eq!(texts, ["a", "b"]);
    let counts: Vec<_> = skipped
        .kinds
        .iter()
        .map(|(&kind, skipped)| (kind, skipped.rows))
        .collect();
    assert_eq!(
        counts,
        [("empty", 1), ("missing field", 1), ("not JSON", 2), ("not UTF-8", 1)]
    );
    assert_eq!(skipped.rows(), 5);
    assert!(
        skipped.kinds["not JSON"]
            .first
            .contains("x.jsonl:2: the row is not JSON: ")
    );

    source.limit = 3;
    let (texts, skipped) = read(&source);
    assert_eq!((texts.len(), skipped.rows()), (1, 2));
    source.limit = 5;
    assert_eq!(read(&source).0, ["a", "b"]);

    let mut rows = read_source(0, &source, BadRow::Fail).unwrap();
    assert!(rows.next().unwrap().is_ok());
    assert!(rows.next().unwrap().is_err());
    assert!(rows.next().is_none());
}

#[test]
fn bad_elements_of_a_list_are_skipped() {
    let (_folder, source) = one_file(
        "x.json",
        "[{\"text\": \"a\"}, {\"text\" 1}, 5, {\"text\": \"b\"}, {\"te",
        Format::Text,
    );
    let mut rows = read_source(0, &source, BadRow::Skip).unwrap();
    let lines: Vec<u64> = rows.by_ref().map(|sample| sample.unwrap().place.line).collect();
    assert_eq!(lines, [1, 4]);
    assert_eq!(rows.skipped().rows(), 3);
}

#[test]
fn a_source_of_bad_rows_alone_is_an_error() {
    let (_folder, source) = one_file("x.jsonl", "{}\n{}\n", Format::Text);
    let error = read_source(0, &source, BadRow::Skip)
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("x.jsonl: none of the 2 rows can be used. The first: "),
        "{error}"
    );
}

#[test]
fn rows_are_read_as_they_are_asked_for() {
    for name in ["x.jsonl", "x.json", "x.txt", "x.tsv"] {
        let rows = 20_000;
        let content: String = match name {
            "x.jsonl" => "{\"text\": \"some words\"}\n".repeat(rows),
            "x.json" => format!("[{}]", vec!["{\"text\": \"some words\"}"; rows].join(",\n")),
            "x.tsv" => format!("text\n{}", "some words\n".repeat(rows)),
            _ => "some words\n".repeat(rows),
        };
        let (_folder, source) = one_file(name, &content, Format::Text);
        let mut reader = read_source(0, &source, BadRow::Skip).unwrap();
        assert!(reader.next().unwrap().is_ok());
        // What has not been read yet is cut off, and must be missing.
        let file = std::fs::OpenOptions::new().write(true).open(file(&source)).unwrap();
        file.set_len(100_000).unwrap();
        let read = 1 + reader.by_ref().filter(Result::is_ok).count();
        assert!(read > 3_000 && read < rows / 2 + 1_000, "{name}: {read}");
    }
}

#[test]
fn the_fingerprint_follows_bytes_and_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let of = |pattern: &str| content_fingerprint(&source(folder.path().join(pattern), Format::Text)).unwrap();
    write("a.txt", "x");
    write("b.txt", "y");
    let (both, one) = (of("*.txt"), of("a.txt"));
    assert_ne!(both, one);
    write("a.json", "x");
    assert_ne!(of("a.json"), one);
    write("b.txt", "x");
    assert_eq!(of("b.txt"), one);
    write("a.txt", "xx");
    write("b.txt", "");
    assert_ne!(of("*.txt"), both);
    assert!(content_fingerprint(&source(folder.path().join("c.txt"), Format::Text)).is_err());
}
