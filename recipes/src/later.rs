//! Keys and values that the recipe format has and this version does not: refused by name, not as typing mistakes.

/// Keys, without list indices. A key covers everything below it.
const KEYS: &[&str] = &["model.vocabulary", "objective.temperature"];

/// Data formats that this version does not read.
const FORMATS: &[&str] = &["retrieval", "stepwise"];

/// Values, by key.
const VALUES: &[(&str, &[&str])] = &[
    ("data.sources.format", FORMATS),
    ("eval.tasks.format", FORMATS),
    ("objective.kind", &["contrastive", "reward", "process-reward"]),
    ("train.parameters", &["new-tokens"]),
];

/// Whether a later version has this key.
pub(crate) fn has_key(path: &[String]) -> bool {
    let key = plain(path);
    KEYS.contains(&key.as_str())
}

/// Whether a later version has this value of the key.
pub(crate) fn has_value(path: &[String], value: &str) -> bool {
    let key = plain(path);
    VALUES.iter().any(|(of, values)| *of == key && values.contains(&value))
}

/// The key without list indices and without the stage it is laid over.
fn plain(path: &[String]) -> String {
    let names: Vec<&str> = path
        .iter()
        .map(String::as_str)
        .filter(|segment| segment.parse::<usize>().is_err())
        .collect();
    match names.as_slice() {
        ["stage", rest @ ..] => rest.join("."),
        all => all.join("."),
    }
}
