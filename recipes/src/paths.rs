//! Relative paths in a recipe are relative to its file: made absolute here, so that nobody has to know the file.

use std::path::{Path, PathBuf};

use path_clean::PathClean;
use toml::{Table, Value};

use crate::reference::{INITIAL, OFF};

/// The folder that a recipe's relative paths start from: absolute, with links resolved.
pub(crate) fn folder_of(file: &Path) -> PathBuf {
    let parent = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    parent
        .canonicalize()
        .or_else(|_| std::path::absolute(parent))
        .unwrap_or_else(|_| parent.to_owned())
}

/// Makes every path in a recipe, and in its stages, absolute.
pub(crate) fn resolve(table: &mut Table, folder: &Path) {
    change(table, &["output"], |path| place(folder, path));
    change(table, &["model", "path"], |path| model(folder, path));
    change(table, &["adapter", "init_from"], |path| place(folder, path));
    change(table, &["reference", "model"], |path| model(folder, path));
    change(table, &["reference", "adapter"], |path| {
        if [OFF, INITIAL].contains(&path) {
            path.to_owned()
        } else {
            place(folder, path)
        }
    });
    change(table, &["data", "template"], |path| {
        if path.ends_with(".jinja") {
            place(folder, path)
        } else {
            path.to_owned()
        }
    });
    for item in tables(table, &["adapter", "under"]) {
        change(item, &["path"], |path| place(folder, path));
    }
    for list in [["data", "sources"], ["eval", "tasks"]] {
        for item in tables(table, &list) {
            change(item, &["path"], |path| pattern(folder, path));
            change(item, &["shots_path"], |path| pattern(folder, path));
            let aligned = find(item, &["path"]).and_then(Value::as_table_mut);
            for (_, file) in aligned.into_iter().flatten() {
                if let Value::String(path) = file {
                    *path = place(folder, path);
                }
            }
        }
    }
    for stage in tables(table, &["stage"]) {
        change(stage, &["merge", "base"], |path| model(folder, path));
        resolve(stage, folder);
    }
}

fn find<'a>(table: &'a mut Table, path: &[&str]) -> Option<&'a mut Value> {
    match path {
        [] => None,
        [key] => table.get_mut(*key),
        [key, rest @ ..] => find(table.get_mut(*key)?.as_table_mut()?, rest),
    }
}

fn change(table: &mut Table, path: &[&str], resolve: impl FnOnce(&str) -> String) {
    if let Some(Value::String(text)) = find(table, path)
        && !text.is_empty()
    {
        *text = resolve(text);
    }
}

fn tables<'a>(table: &'a mut Table, path: &[&str]) -> impl Iterator<Item = &'a mut Table> {
    let items = find(table, path).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_table_mut)
}

fn place(folder: &Path, path: &str) -> String {
    folder.join(path).clean().to_string_lossy().into_owned()
}

/// A glob keeps its meaning when the folder's own name has signs that a glob reads.
fn pattern(folder: &Path, path: &str) -> String {
    let is_glob = path.contains(['*', '?', '[']);
    if !is_glob || Path::new(path).is_absolute() {
        return place(folder, path);
    }
    place(Path::new(&glob::Pattern::escape(&folder.to_string_lossy())), path)
}

/// A folder, unless the text looks like a hub id and there is no such folder.
fn model(folder: &Path, path: &str) -> String {
    let is_folder = path.starts_with('.') || path.ends_with('/') || folder.join(path).is_dir();
    if !is_folder && is_hub_id(path) {
        path.to_owned()
    } else {
        place(folder, path)
    }
}

/// Whether the text is `organisation/name` in the characters that a hub allows.
fn is_hub_id(path: &str) -> bool {
    let allowed = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|sign| sign.is_ascii_alphanumeric() || matches!(sign, '-' | '_' | '.'))
    };
    path.split_once('/')
        .is_some_and(|(organisation, name)| allowed(organisation) && allowed(name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{model, pattern};

    #[test]
    fn hub_ids_stay_and_folders_are_resolved() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_string_lossy();
        std::fs::create_dir_all(folder.path().join("there/base")).unwrap();
        assert_eq!(model(folder.path(), "Qwen/Qwen2-1.5B"), "Qwen/Qwen2-1.5B");
        assert_eq!(model(folder.path(), "there/base"), format!("{root}/there/base"));
        assert_eq!(model(folder.path(), "./not/there"), format!("{root}/not/there"));
        assert_eq!(model(folder.path(), "not/there/"), format!("{root}/not/there"));
        assert_eq!(model(folder.path(), "a/b/c"), format!("{root}/a/b/c"));
        assert_eq!(model(folder.path(), "base"), format!("{root}/base"));
    }

    #[test]
    fn a_folder_with_brackets_is_not_read_as_a_glob() {
        let folder = Path::new("/data [v2]");
        assert_eq!(pattern(folder, "../x/*.jsonl"), "/x/*.jsonl");
        assert_eq!(pattern(folder, "x/*.jsonl"), "/data [[]v2[]]/x/*.jsonl");
        assert_eq!(pattern(folder, "x.jsonl"), "/data [v2]/x.jsonl");
        assert!(
            glob::Pattern::new(&pattern(folder, "x/*.jsonl"))
                .unwrap()
                .matches("/data [v2]/x/1.jsonl")
        );
    }
}
