//! What can be wrong with data, in sentences for the person who has to correct it.

use std::io;
use std::path::PathBuf;

use crate::sample::Place;

/// Why data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A prompt of a task that is no template.
    #[error("eval task `{task}`: `prompt` is no Jinja template: {message}. Correct it.")]
    TaskPrompt {
        /// The task.
        task: String,
        /// What is wrong.
        message: String,
    },
    /// A task whose files lack a language that it names, or have no row at all.
    #[error(
        "eval task `{task}`: {path} has no row{}. Correct `path`, `languages` or `lang`.",
        of_languages(absent)
    )]
    TaskLanguages {
        /// The task.
        task: String,
        /// The languages that it lacks.
        absent: Vec<String>,
        /// The files.
        path: String,
    },
    /// A row of a parallel task that does not say which item it is.
    #[error(
        "eval task `{task}`, {place}: nothing says which rows are the same item in other languages. \
         Name the column that does: group_field = \"…\"."
    )]
    TaskGroup {
        /// The task.
        task: String,
        /// The row.
        place: String,
    },
    /// An item that is there twice in one language.
    #[error(
        "eval task `{task}`: the item {item:?} is there twice in one language: {places}. \
         Keep one, or correct `group_field`."
    )]
    TaskTwice {
        /// The task.
        task: String,
        /// The item.
        item: String,
        /// The two rows.
        places: String,
    },
    /// Languages with different items.
    #[error(
        "eval task `{task}` compares the same items in several languages, and {}: {lacking}. {}",
        if *none { "no item is there in all of them" } else { "some are missing" },
        if *none { "Correct `group_field` or `languages`." }
        else { "Add them, name other `languages`, or set missing = \"skip\" to leave such items out." }
    )]
    TaskItems {
        /// The task.
        task: String,
        /// What each language lacks.
        lacking: String,
        /// Whether no item is complete.
        none: bool,
    },
    /// There is no file at the path.
    #[error("there is no file at {}. Correct the `path` of the source; it is relative to the recipe file.", file.display())]
    Missing {
        /// The path as resolved.
        file: PathBuf,
    },
    /// The path is a folder.
    #[error("{} is a folder. Name a file in it, or a glob such as {}.", file.display(), file.join("*.jsonl").display())]
    Folder {
        /// The path as resolved.
        file: PathBuf,
    },
    /// A glob that fits no file.
    #[error("no file fits {pattern}. Correct the `path` of the source; it is relative to the recipe file.")]
    NoMatch {
        /// The glob as resolved.
        pattern: String,
    },
    /// A glob that is none.
    #[error("{pattern} is not a glob: {message}. Correct the `path` of the source, or name a file.")]
    Glob {
        /// The text as given.
        pattern: String,
        /// What is wrong with it.
        message: &'static str,
    },
    /// A kind of file that is not read.
    #[error("{} is not a kind of file that is read here. Convert it to .jsonl, .json, .parquet, .tsv or .txt.", file.display())]
    Extension {
        /// The file.
        file: PathBuf,
    },
    /// A .txt file for a format whose rows have several fields.
    #[error("{} is plain text, and rows of format {format:?} have several fields. Use format = \"text\", or a .jsonl, .json, .parquet or .tsv file.", file.display())]
    PlainText {
        /// The file.
        file: PathBuf,
        /// The format as the recipe spells it.
        format: &'static str,
    },
    /// `fields` renames a field that the format does not have.
    #[error(
        "`fields` of source {source_name:?} names `{field}`, which format {format:?} does not have. It has: {}.",
        list(known)
    )]
    UnknownField {
        /// Name of the source.
        source_name: String,
        /// The field that is not there.
        field: String,
        /// The format as the recipe spells it.
        format: &'static str,
        /// The fields of the format.
        known: Vec<String>,
    },
    /// The language of a source is not a well-formed tag.
    #[error("`lang` of source {source_name:?} is {tag:?}, which is not a well-formed BCP-47 language tag. {advice}")]
    Language {
        /// Name of the source.
        source_name: String,
        /// The tag as given.
        tag: String,
        /// What to do.
        advice: String,
    },
    /// The file cannot be read.
    #[error("{} cannot be read: {reason}. Check that the file is whole and that you may read it.", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// The file is text in UTF-16.
    #[error("{} is UTF-16 text. Save it as UTF-8.", file.display())]
    Utf16 {
        /// The file.
        file: PathBuf,
    },
    /// The Parquet file cannot be read.
    #[error("{} cannot be read as Parquet: {message}. Check that the file is whole, or write it again.", file.display())]
    Parquet {
        /// The file.
        file: PathBuf,
        /// What the reader met.
        message: String,
    },
    /// A row that would not fit into memory.
    #[error("{place}: the row is longer than {limit} bytes. Split it, or check that the file has line ends.")]
    LongRow {
        /// Where the row starts.
        place: Place,
        /// Bytes that a row may have.
        limit: usize,
    },
    /// The source has no row.
    #[error("{path} has no rows. Write some, or leave the source out.")]
    NoRows {
        /// The file or glob.
        path: String,
    },
    /// Every row of the source was bad and skipped.
    #[error("{path}: none of the {rows} rows can be used. The first: {first}")]
    NoGoodRows {
        /// The file or glob.
        path: String,
        /// Rows that were read.
        rows: u64,
        /// What is wrong with the first of them.
        first: String,
    },
    /// Line-aligned files of which one is longer.
    #[error(
        "{} has {} lines, but {} has {}. Line-aligned files say the same on each line: correct the files, and leave a line empty where a translation is missing.",
        files[0].0.display(),
        files[0].1,
        files[1].0.display(),
        files[1].1
    )]
    LineCount {
        /// Two files and their numbers of lines.
        files: Box<[(PathBuf, u64); 2]>,
    },
    /// A row builder names a language that no row has.
    #[error(
        "`{key}` names {language:?}, but no row of source {source_name:?} has that language. Its rows have: {}.",
        found.join(", ")
    )]
    BuildLanguage {
        /// The key of the recipe.
        key: String,
        /// The language.
        language: String,
        /// Name of the source.
        source_name: String,
        /// The languages of its rows.
        found: Vec<String>,
    },
    /// A row builder cannot make as many rows as it should.
    #[error(
        "`{key}` is {wanted}, but the parallel rows of source {source_name:?} make only {possible}{mode}. {advice}"
    )]
    BuildCount {
        /// The key of the recipe.
        key: String,
        /// Rows that should be made.
        wanted: usize,
        /// Rows that can be made.
        possible: usize,
        /// Name of the source.
        source_name: String,
        /// Which kind of row, where the builder makes several; starts with a space, or is empty.
        mode: String,
        /// What to do.
        advice: &'static str,
    },
    /// The template of a row builder cannot be used.
    #[error("`{key}` cannot be used: {message}. It sees {variables}.")]
    BuildTemplate {
        /// The key of the recipe.
        key: String,
        /// What is wrong with it.
        message: String,
        /// The variables of its kind.
        variables: &'static str,
    },
    /// There is no tokenizer.json.
    #[error("there is no tokenizer.json in {}. Copy the one that belongs to the model there, or make one with `interlingua tokenizer train`.", folder.display())]
    NoTokenizer {
        /// The folder that was looked in.
        folder: PathBuf,
    },
    /// A file of the tokenizer cannot be understood.
    #[error("{} cannot be read: {message}. Copy the file again from the model it belongs to.", file.display())]
    BadTokenizer {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A text that the tokenizer refuses, or ids that it cannot decode.
    #[error("the tokenizer fails: {message}. Check that tokenizer.json is the one that belongs to the model.")]
    Tokenizer {
        /// What the tokenizer says.
        message: String,
    },
    /// A chat template is needed and the tokenizer has none.
    #[error("the tokenizer in {} has no chat template. Set data.template to a built-in one ({builtins}) or to a .jinja file.", folder.display())]
    NoTemplate {
        /// The tokenizer's folder.
        folder: PathBuf,
        /// The names of the built-in templates.
        builtins: String,
    },
    /// No template has this name.
    #[error(
        "there is no chat template {name:?}. Set data.template to \"auto\", to a built-in one ({builtins}), or to a .jinja file that exists."
    )]
    UnknownTemplate {
        /// The name as given.
        name: String,
        /// The names of the built-in templates.
        builtins: String,
    },
    /// The template is not Jinja.
    #[error(
        "the chat template {name} is not valid: {message}. Correct it, or set data.template to a built-in one ({builtins})."
    )]
    TemplateSyntax {
        /// Where the template comes from.
        name: String,
        /// What is wrong, and in which line.
        message: String,
        /// The names of the built-in templates.
        builtins: String,
    },
    /// The template cannot say what to supervise, or would leave out what has to be learnt.
    #[error(
        "the chat template {name} cannot be trained with: {reason} Correct it, or set data.template to a built-in one ({builtins})."
    )]
    TemplateRefused {
        /// Where the template comes from.
        name: String,
        /// What is wrong with it, in whole sentences.
        reason: String,
        /// The names of the built-in templates.
        builtins: String,
    },
    /// The cache cannot be written or read.
    #[error("the cache of tokenised data, {}, cannot be used: {reason}. Set INTERLINGUA_CACHE to a folder on a disk with room that you may write to.", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// No sample is left to train on.
    #[error("no sample is left to train on: {reasons}.")]
    NothingLeft {
        /// How many rows were dropped, by reason.
        reasons: String,
    },
    /// A step reads more rows than there are.
    #[error(
        "the batch is larger than the data: a step reads {wanted} rows (batch_size {batch_size} × gradient_accumulation {gradient_accumulation} × {world} processes), but the {samples} samples make only {rows} rows. Lower train.batch_size or train.gradient_accumulation, add data, or set data.packing = false for one sample a row."
    )]
    BatchTooLarge {
        /// Rows that a step reads.
        wanted: u64,
        /// Rows per device and micro-step.
        batch_size: usize,
        /// Micro-steps per step.
        gradient_accumulation: usize,
        /// Number of processes.
        world: usize,
        /// Samples that there are.
        samples: usize,
        /// Rows that they make.
        rows: u64,
    },
    /// A share of what is not there.
    #[error(
        "{key} asks for a share of a {class} that no {holding} are left of. The {class}s that have some: {present}. Correct the name, or add data."
    )]
    NothingToMix {
        /// The key of the recipe.
        key: String,
        /// `language` or `source`.
        class: &'static str,
        /// `rows`, or `supervised tokens`.
        holding: &'static str,
        /// What there is, for a sentence.
        present: String,
    },
    /// Batches of groups are asked for, and no group can be used.
    #[error(
        "[data.parallel] leaves no group: {reasons}. Check `group_field` of the sources and data.parallel.languages; data.parallel.missing = \"allow\" uses groups of the anchor and one more."
    )]
    NoGroup {
        /// How many groups lack what.
        reasons: String,
    },
    /// A step reads more groups than there are.
    #[error(
        "a step reads {wanted} groups, but there are only {groups} that can be used. Lower data.parallel.groups_per_batch, or add data."
    )]
    TooFewGroups {
        /// Groups that a step reads.
        wanted: usize,
        /// Groups that there are.
        groups: usize,
    },
    /// A batch in one language has more rows than there are in it.
    #[error(
        "with data.parallel.arrangement = \"same-language\" a batch has {wanted} rows, but only {groups} groups have {language}. Lower data.parallel.groups_per_batch, leave the language out of data.parallel.languages, or add data."
    )]
    TooFewInOneLanguage {
        /// Rows of a batch.
        wanted: usize,
        /// The language.
        language: String,
        /// Groups that have it.
        groups: usize,
    },
    /// A source that a loss reads pairs from has none.
    #[error(
        "source {source_name:?} has no pair of translations: {reasons}. Check its `group_field`: rows of one value are translations of one another."
    )]
    NoPair {
        /// Name of the source.
        source_name: String,
        /// How many groups lack what.
        reasons: String,
    },
    /// A micro-step reads more pairs than a source has.
    #[error(
        "source {source_name:?} has {pairs} pairs, but a micro-step reads {wanted} (batch_size {batch_size} × {world} processes). Lower the loss's batch_size, or add data."
    )]
    TooFewPairs {
        /// Name of the source.
        source_name: String,
        /// Pairs that there are.
        pairs: usize,
        /// Pairs that a micro-step reads.
        wanted: usize,
        /// Pairs per device and micro-step.
        batch_size: usize,
        /// Number of processes.
        world: usize,
    },
    /// A row that cannot be used; `on_bad_row = "skip"` leaves it out.
    #[error(transparent)]
    BadRow(#[from] Box<BadRow>),
}

impl DataError {
    /// A row at this place that cannot be used.
    pub fn bad_row(place: Place, problem: RowProblem) -> Self {
        Self::BadRow(Box::new(BadRow { place, problem }))
    }
}

/// A row that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct BadRow {
    /// Where it is.
    pub place: Place,
    /// What is wrong with it.
    pub problem: RowProblem,
}

/// What is wrong with a row, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    /// A byte that is not UTF-8.
    #[error("the text is not UTF-8 at byte {offset} of the file. Save the file as UTF-8.")]
    NotUtf8 {
        /// Byte offset in the file, counted from 0.
        offset: u64,
    },
    /// The row ends too early.
    #[error("the JSON ends in the middle of a row. {advice}")]
    HalfRow {
        /// What to do.
        advice: &'static str,
    },
    /// The row is not JSON.
    #[error("the row is not JSON: {message}. Correct the row.")]
    NotJson {
        /// What the parser met, and where.
        message: String,
    },
    /// The row is JSON but no object.
    #[error("the row is {found}, where an object such as {{\"text\": \"…\"}} is expected. {advice}")]
    NotAnObject {
        /// What it is.
        found: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The row has more or fewer cells than the header.
    #[error(
        "the row has {found} cells, but the header names {expected} columns. Cells are separated by one tab each, and quotes mean nothing."
    )]
    Cells {
        /// Cells of the row.
        found: usize,
        /// Columns of the header.
        expected: usize,
    },
    /// A field is absent or null.
    #[error(
        "the row has no `{field}`. It has {}; expected are {}. {advice}",
        list(found),
        list(expected)
    )]
    MissingField {
        /// The field, under the name that the row should have it by.
        field: String,
        /// The fields that the row has.
        found: Vec<String>,
        /// The fields that the format knows.
        expected: Vec<String>,
        /// What to do.
        advice: String,
    },
    /// A field holds another kind of value.
    #[error(
        "`{field}` is {found}, where {expected} is expected. Correct the row, or read another column with `fields = {{ … }}`."
    )]
    WrongType {
        /// The field.
        field: String,
        /// What it holds.
        found: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// A field that must say something is empty.
    #[error("`{field}` is empty. {advice}")]
    Empty {
        /// The field.
        field: String,
        /// What to do.
        advice: &'static str,
    },
    /// A speaker that the format does not know.
    #[error(
        "`{field}` is {found:?}. Known are human, user, gpt, assistant, model, system, tool, observation, function_response and function_call."
    )]
    UnknownRole {
        /// The field.
        field: String,
        /// What it holds.
        found: String,
    },
    /// A language tag that is not well-formed.
    #[error("`{field}` is {found:?}, which is not a well-formed BCP-47 language tag. {advice}")]
    Language {
        /// The field.
        field: String,
        /// What it holds.
        found: String,
        /// What to do.
        advice: String,
    },
    /// A number that is no token.
    #[error("`{field}` is {found}, where {expected} is expected. Correct the row.")]
    Token {
        /// The field and the index in it.
        field: String,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A token that the model does not have.
    #[error(
        "`{field}` is {found}, but the vocabulary of the model has {size} tokens. Tokenise the data with the model's own tokenizer."
    )]
    OutOfVocabulary {
        /// The field and the index in it.
        field: String,
        /// The token.
        found: i64,
        /// Number of tokens of the model.
        size: usize,
    },
    /// The chat template refuses the row.
    #[error("the chat template refuses the row: {message}. Correct the row, or use another template.")]
    Template {
        /// What the template says.
        message: String,
    },
    /// A prompt of a task that cannot be filled in.
    #[error(
        "the `prompt` of eval task `{task}` cannot be filled in: {message}. The row has {}. Correct the prompt or the row.",
        list(fields)
    )]
    Prompt {
        /// The task.
        task: String,
        /// What is wrong.
        message: String,
        /// What the prompt may name.
        fields: Vec<String>,
    },
    /// The tokenizer refuses the text.
    #[error("{message}")]
    Tokenizer {
        /// What it says.
        message: String,
    },
    /// What the assistant says cannot be found in what the template makes of the row.
    #[error(
        "what to supervise in message {message} cannot be found in the text that the chat template makes of the row. Put {{% generation %}} marks into the template, or use a built-in one."
    )]
    NoSpan {
        /// The message, counted from 1.
        message: usize,
    },
    /// As many labels as tokens are needed.
    #[error(
        "`{}` has {labels} numbers, but `{}` has {input_ids}. Write one label per token, not shifted; -100 is not supervised.",
        fields[0],
        fields[1]
    )]
    LabelCount {
        /// The fields of labels and of tokens.
        fields: [String; 2],
        /// Number of labels.
        labels: usize,
        /// Number of tokens.
        input_ids: usize,
    },
    /// Two answers that do not differ.
    #[error("`{chosen}` and `{rejected}` are equal, so neither is preferred. Correct or remove the row.")]
    EqualAnswers {
        /// The field of the better answer.
        chosen: String,
        /// The field of the worse one.
        rejected: String,
    },
    /// A question with nothing to choose from.
    #[error("`{field}` has one choice. Write two or more.")]
    OneChoice {
        /// The field.
        field: String,
    },
    /// A right answer that is no choice.
    #[error(
        "`{field}` is {found}, but there are {choices} choices. Write an index from 0 to {}, a letter from A to {}, or the text of a choice.",
        choices - 1,
        letter(*choices)
    )]
    Answer {
        /// The field.
        field: String,
        /// What it holds, as JSON.
        found: String,
        /// Number of choices, at least 2.
        choices: usize,
    },
    /// A pair of aligned words that cannot be.
    #[error("the pair {pair} in `{field}` is wrong: {reason}. Correct the row, or align the texts again.")]
    Alignment {
        /// The field.
        field: String,
        /// The pair as it is written.
        pair: String,
        /// What is wrong, as a sentence without its full stop.
        reason: String,
    },
    /// A row of another kind than what reads it wants.
    #[error("{reader} reads {wanted}, and the row has {found}. {advice}")]
    NotWanted {
        /// What reads the row.
        reader: String,
        /// What it reads.
        wanted: &'static str,
        /// What the row has, or lacks.
        found: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A conversation of which only the prompt is read, and there is none.
    #[error(
        "the source is auxiliary, so only prompts are read, and the row has none before its answer. Remove the row."
    )]
    NoPrompt,
}

impl RowProblem {
    /// The kind of the problem, under which skipped rows are counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotUtf8 { .. } => "not UTF-8",
            Self::HalfRow { .. } | Self::NotJson { .. } => "not JSON",
            Self::NotAnObject { .. } | Self::WrongType { .. } | Self::Cells { .. } => "wrong type",
            Self::MissingField { .. } => "missing field",
            Self::Empty { .. } => "empty",
            Self::UnknownRole { .. } => "unknown role",
            Self::Language { .. } => "language tag",
            Self::Token { .. } | Self::LabelCount { .. } | Self::OutOfVocabulary { .. } => "tokens",
            Self::Template { .. } | Self::NoSpan { .. } => "chat template",
            Self::EqualAnswers { .. } => "equal answers",
            Self::OneChoice { .. } | Self::Answer { .. } => "choices",
            Self::Alignment { .. } => "alignment",
            Self::NotWanted { .. } => "not what the objective reads",
            Self::NoPrompt => "no prompt",
            Self::Prompt { .. } => "prompt",
            Self::Tokenizer { .. } => "tokenizer",
        }
    }
}

/// The letter of the last of so many choices.
fn letter(choices: usize) -> char {
    char::from(b'A' + u8::try_from(choices - 1).unwrap_or(u8::MAX).min(25))
}

/// "" or " in sw, ta".
fn of_languages(languages: &[String]) -> String {
    match languages {
        [] => String::new(),
        some => format!(" in {}", some.join(", ")),
    }
}

/// Names for a sentence: "`a`, `b` and `c`".
fn list(names: &[String]) -> String {
    match names {
        [] => "no fields".to_owned(),
        [only] => format!("`{only}`"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(|name| format!("`{name}`")).collect();
            format!("{} and `{last}`", first.join(", "))
        }
    }
}
