//! What the data files of a recipe hold, in a few words, so that ranks that read different files notice.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use interlingua_recipes::Recipe;

use crate::exit::Failure;

/// Of a longer file only so many bytes at its beginning are read, and its length.
const READ: u64 = 1 << 20;

/// A line `HASH PATH` for each file that the sources and the tasks of a recipe name, in order. The hash is of the file's length and its
/// first mebibyte. A file that cannot be read has a line that says so; reading it later is an error with more to say.
///
/// # Errors
/// When a stage of the recipe is wrong.
pub(crate) fn describe(recipe: &Recipe) -> Result<String, Failure> {
    let mut files = BTreeSet::new();
    for stage in recipe.stages().map_err(Failure::usage)? {
        for source in &stage.data.sources {
            files.extend(source.path.paths().flat_map(files_of));
        }
        files.extend(stage.eval.tasks.iter().flat_map(|task| files_of(&task.path)));
    }
    let mut lines = String::new();
    for file in files {
        let hash = hash(&file).unwrap_or_else(|error| error.kind().to_string());
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{hash} {}", file.display());
    }
    Ok(lines)
}

/// The files that a path or a glob names; `{lang}` stands for any language.
fn files_of(path: &Path) -> Vec<PathBuf> {
    let text = path.to_string_lossy().replace("{lang}", "*");
    if path.exists() || !text.contains(['*', '?', '[']) {
        return vec![path.to_owned()];
    }
    let found = glob::glob(&text).map(|found| found.filter_map(Result::ok).collect());
    found.unwrap_or_default()
}

fn hash(file: &Path) -> io::Result<String> {
    let file = File::open(file)?;
    let length = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update_reader(file.take(READ))?;
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(folder: &Path) -> Recipe {
        let text = r#"
            output = "run"
            [model]
            path = "model"
            [[data.sources]]
            path = "*.jsonl"
            format = "text"
            [train]
            steps = 1
        "#;
        Recipe::parse(text, &folder.join("recipe.toml"), &[]).unwrap()
    }

    #[test]
    fn each_file_has_a_line_that_changes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("a.jsonl", "{}");
        write("b.jsonl", "{ }");
        let recipe = recipe(folder.path());
        let before = describe(&recipe).unwrap();
        assert_eq!(before.lines().count(), 2, "{before}");
        assert!(before.lines().all(|line| line.ends_with(".jsonl")), "{before}");
        write("b.jsonl", "[ ]");
        let after = describe(&recipe).unwrap();
        assert_eq!(before.lines().next(), after.lines().next());
        assert_ne!(before.lines().nth(1), after.lines().nth(1));
        write("c.jsonl", "");
        assert_eq!(describe(&recipe).unwrap().lines().count(), 3);
    }
}
