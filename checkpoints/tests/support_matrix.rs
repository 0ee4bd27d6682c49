//! docs/support-matrix.md is written from the families that the code knows, and every checkpoint of the fixtures keeps to it.

#![cfg(test)]

use std::path::{Path, PathBuf};

use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::families::{FAMILIES, options};

const PAGE: &str = "../docs/support-matrix.md";
const BEGIN: &str =
    "<!-- families: written by `WRITE_DOCS=1 cargo test --release --workspace --test support_matrix` -->\n";
const END: &str = "<!-- end of families -->\n";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The part of the page that is written.
fn families() -> String {
    let mut text = String::from("| family | `model_type` | models |\n|---|---|---|\n");
    for family in FAMILIES {
        let (name, kind, models) = (family.architecture, family.model_type, family.models);
        text.push_str(&format!(
            "| [{name}](#{}) | `{kind}` | {models} |\n",
            name.to_lowercase()
        ));
    }
    for family in FAMILIES {
        text.push_str(&format!(
            "\n### {}\n\n| option | source |\n|---|---|\n",
            family.architecture
        ));
        for (option, source) in family.options {
            text.push_str(&format!("| {option} | {source} |\n"));
        }
    }
    text
}

#[test]
fn the_page_is_that_of_the_code() {
    let page = std::fs::read_to_string(path(PAGE)).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let expected = families();
    if std::env::var_os("WRITE_DOCS").is_some() {
        std::fs::write(path(PAGE), format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
    } else {
        assert!(found == expected, "{PAGE} is not that of the code: {BEGIN}");
    }
}

#[test]
fn each_family_lists_its_options_once_and_in_order() {
    for family in FAMILIES {
        let names: Vec<_> = family.options.iter().map(|(name, _)| name).collect();
        assert!(names.is_sorted_by(|one, other| one < other), "{family:?}: {names:?}");
    }
}

#[test]
fn checkpoints_use_what_their_families_list() {
    let mut seen = 0;
    for folder in std::fs::read_dir(path("../tests/fixtures/models")).unwrap().flatten() {
        if !folder.path().is_dir() {
            continue;
        }
        let (config, _) = ModelConfig::read(&folder.path()).unwrap();
        let listed: Vec<_> = config.family.options.iter().map(|(name, _)| *name).collect();
        for (option, value) in options::of(&config) {
            assert!(
                listed.contains(&option),
                "{}: {option} ({value}) is not listed for {:?}",
                folder.path().display(),
                config.family
            );
        }
        seen += 1;
    }
    assert!(seen > 25, "{seen}");
}
