//! The same rows in Parquet and in JSON Lines are the same samples.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use interlingua_data::error::DataError;
use interlingua_data::sample::{Content, Sample};
use interlingua_data::source::read_source;
use interlingua_recipes::{BadRow, Format, Source};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use serde_json::{Value, json};

const SCHEMA: &str = "message rows {
    optional int64 id;
    optional binary lang (UTF8);
    optional binary picture;
    optional group messages (LIST) {
        repeated group list {
            optional group element {
                optional binary role (UTF8);
                optional binary content (UTF8);
                optional binary name (UTF8);
            }
        }
    }
    optional group input_ids (LIST) { repeated group list { optional int32 element; } }
}";

#[derive(Debug, Clone)]
struct Row {
    id: Option<i64>,
    lang: Option<String>,
    /// Role, content, name.
    messages: Vec<(String, String, Option<String>)>,
    input_ids: Vec<i32>,
}

impl Row {
    fn json(&self) -> Value {
        let messages: Vec<Value> = self
            .messages
            .iter()
            .map(|(role, content, name)| match name {
                Some(name) => json!({"role": role, "content": content, "name": name}),
                None => json!({"role": role, "content": content}),
            })
            .collect();
        let mut row = json!({"messages": messages, "input_ids": self.input_ids});
        if let Some(id) = self.id {
            row["id"] = id.into();
        }
        if let Some(lang) = &self.lang {
            row["lang"] = lang.as_str().into();
        }
        row
    }
}

fn bytes(text: &str) -> ByteArray {
    text.as_bytes().to_vec().into()
}

/// Writes a column of texts of which some are null; the levels are those of a value that is there and of one that is not.
fn texts<'a>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: impl Iterator<Item = (Option<&'a str>, i16)>,
    (there, absent): (i16, i16),
) {
    let (mut present, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    for (value, level) in values {
        present.extend(value.map(bytes));
        definition.push(if value.is_some() { there } else { absent });
        repetition.push(level);
    }
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<ByteArrayType>()
        .write_batch(&present, Some(&definition), Some(&repetition))
        .unwrap();
    column.close().unwrap();
}

fn write_parquet(path: &Path, rows: &[Row], rows_per_group: usize) {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for rows in rows.chunks(rows_per_group) {
        let mut group = writer.next_row_group().unwrap();
        let ids: Vec<i64> = rows.iter().filter_map(|row| row.id).collect();
        let levels: Vec<i16> = rows.iter().map(|row| row.id.is_some().into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int64Type>()
            .write_batch(&ids, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        texts(&mut group, rows.iter().map(|row| (row.lang.as_deref(), 0)), (1, 0));
        texts(&mut group, rows.iter().map(|_| (None, 0)), (1, 0));
        let messages = || {
            rows.iter().flat_map(|row| {
                row.messages
                    .iter()
                    .enumerate()
                    .map(|(index, message)| (message, i16::from(index > 0)))
            })
        };
        texts(
            &mut group,
            messages().map(|((role, ..), level)| (Some(role.as_str()), level)),
            (4, 3),
        );
        texts(
            &mut group,
            messages().map(|((_, content, _), level)| (Some(content.as_str()), level)),
            (4, 3),
        );
        texts(
            &mut group,
            messages().map(|((.., name), level)| (name.as_deref(), level)),
            (4, 3),
        );
        let ids: Vec<i32> = rows.iter().flat_map(|row| row.input_ids.clone()).collect();
        let levels: Vec<i16> = rows
            .iter()
            .flat_map(|row| (0..row.input_ids.len()).map(|index| i16::from(index > 0)))
            .collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int32Type>()
            .write_batch(&ids, Some(&vec![3; ids.len()]), Some(&levels))
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn read(path: &Path, format: Format) -> Result<Vec<Sample>, DataError> {
    let source: Source = serde_json::from_value(json!({"path": path, "format": format})).unwrap();
    let samples: Result<Vec<Sample>, DataError> = read_source(0, &source, BadRow::Fail)?.collect();
    let anywhere: Arc<Path> = Path::new("x").into();
    samples.map(|mut samples| {
        samples
            .iter_mut()
            .for_each(|sample| sample.place.file = anywhere.clone());
        samples
    })
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let role = prop_oneof!["user", "assistant", "tool"];
    let message = (role, "[a-zàé中あ\"\\\\\n😀]{1,12}x", proptest::option::of("[a-z]{0,3}"));
    let row = (
        proptest::option::of(any::<i64>()),
        proptest::option::of(prop_oneof!["sw", "zh-Hant", "pt-BR"]),
        proptest::collection::vec(message, 1..4),
        proptest::collection::vec(0..i32::MAX, 1..6),
    );
    proptest::collection::vec(
        row.prop_map(|(id, lang, messages, input_ids)| Row {
            id,
            lang,
            messages,
            input_ids,
        }),
        1..20,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn parquet_and_json_lines_say_the_same(rows in rows(), rows_per_group in 1..8_usize) {
        let folder = tempfile::tempdir().unwrap();
        let (parquet, jsonl, list) =
            (folder.path().join("x.parquet"), folder.path().join("x.jsonl"), folder.path().join("x.json"));
        write_parquet(&parquet, &rows, rows_per_group);
        let lines: String = rows.iter().map(|row| row.json().to_string() + "\n").collect();
        std::fs::write(&jsonl, lines).unwrap();
        std::fs::write(&list, serde_json::to_string_pretty(&rows.iter().map(Row::json).collect::<Vec<_>>()).unwrap()).unwrap();
        for format in [Format::Messages, Format::Tokens] {
            let expected = read(&jsonl, format).unwrap();
            prop_assert_eq!(expected.len(), rows.len());
            prop_assert_eq!(&read(&parquet, format).unwrap(), &expected);
            prop_assert_eq!(&read(&list, format).unwrap(), &expected);
        }
    }
}

fn some_rows(count: i64) -> Vec<Row> {
    let row = |id| Row {
        id: Some(id),
        lang: None,
        messages: vec![("user".into(), format!("words {id}"), None)],
        input_ids: vec![1],
    };
    (0..count).map(row).collect()
}

#[test]
fn a_missing_column_is_named_with_those_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    write_parquet(&path, &some_rows(2), 2);
    let message = read(&path, Format::Text).unwrap_err().to_string();
    assert!(
        message.contains("x.parquet:1: the row has no `text`. It has `id`, `lang`, `picture`, "),
        "{message}"
    );
}

#[test]
fn damage_ends_in_an_error_or_in_whole_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    write_parquet(&path, &some_rows(50), 10);
    let whole = std::fs::read(&path).unwrap();
    let expected = read(&path, Format::Messages).unwrap();
    for place in (4..whole.len()).step_by(5) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x55;
        std::fs::write(&path, damaged).unwrap();
        if let Ok(samples) = read(&path, Format::Messages) {
            assert!(
                samples
                    .iter()
                    .all(|sample| matches!(sample.content, Content::Conversation { .. }))
            );
        }
    }
    for length in [0, 3, 8, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = read(&path, Format::Messages).unwrap_err();
        assert!(
            error.to_string().contains("x.parquet cannot be read as Parquet: "),
            "{error}"
        );
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(read(&path, Format::Messages).unwrap(), expected);
}
