//! Rows that are the same item in several languages.

use std::collections::{BTreeMap, BTreeSet};

use interlingua_recipes::{MissingItem, Task};

use super::TaskRow;
use crate::error::DataError;

/// The items of a task that all of its languages have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    /// The languages, in the order of their tags.
    pub languages: Vec<String>,
    /// For each item, the rows of the languages in their order: indices into the task's rows. Items stand in the order of their
    /// first rows.
    pub items: Vec<Vec<usize>>,
    /// Rows of items that some language lacks, by language.
    pub left_out: BTreeMap<String, usize>,
}

/// Finds the items that all languages of the rows have.
///
/// # Errors
/// When an item is there twice in one language, no item is there in all languages, or, unless the task skips them, an item is
/// missing in one of them.
pub fn groups(task: &Task, rows: &[TaskRow]) -> Result<Groups, DataError> {
    let languages: BTreeSet<&str> = rows.iter().map(|row| row.sample.language.as_str()).collect();
    let mut order: Vec<&str> = Vec::new();
    let mut by_group = BTreeMap::<&str, BTreeMap<&str, usize>>::new();
    for (index, row) in rows.iter().enumerate() {
        let Some(group) = row.group() else {
            return Err(DataError::TaskGroup {
                task: task.name.clone(),
                place: row.sample.place.to_string(),
            });
        };
        let of_group = by_group.entry(group).or_insert_with(|| {
            order.push(group);
            BTreeMap::new()
        });
        if let Some(first) = of_group.insert(&row.sample.language, index) {
            return Err(DataError::TaskTwice {
                task: task.name.clone(),
                item: group.to_owned(),
                places: format!("{} and {}", rows[first].sample.place, row.sample.place),
            });
        }
    }
    let mut left_out = BTreeMap::new();
    let mut lacking = BTreeMap::<String, (usize, String)>::new();
    let mut items = Vec::new();
    for group in order {
        let of_group = &by_group[group];
        if of_group.len() == languages.len() {
            items.push(of_group.values().copied().collect());
            continue;
        }
        for language in of_group.keys() {
            *left_out.entry((*language).to_owned()).or_default() += 1;
        }
        for language in languages.iter().filter(|language| !of_group.contains_key(**language)) {
            let lack = lacking.entry((*language).to_owned());
            lack.or_insert_with(|| (0, group.to_owned())).0 += 1;
        }
    }
    if items.is_empty() || task.missing == MissingItem::Fail && !lacking.is_empty() {
        let lacking = lacking.into_iter();
        let lacking = lacking.map(|(language, (count, first))| format!("{language} lacks {count}, such as {first:?}"));
        return Err(DataError::TaskItems {
            task: task.name.clone(),
            lacking: lacking.collect::<Vec<_>>().join("; "),
            none: items.is_empty(),
        });
    }
    Ok(Groups {
        languages: languages.into_iter().map(str::to_owned).collect(),
        items,
        left_out,
    })
}

/// The items of a task, where it says that its rows have some, or several of its languages share some anyway.
///
/// # Errors
/// As [`groups`], where the task names a `group_field`.
pub fn check_shared(task: &Task, rows: &[TaskRow]) -> Result<Option<Groups>, DataError> {
    let languages: BTreeSet<&str> = rows.iter().map(|row| row.sample.language.as_str()).collect();
    if languages.len() < 2 {
        return Ok(None);
    }
    match groups(task, rows) {
        Ok(groups) => Ok(Some(groups)),
        Err(error) if task.group_field.is_some() => Err(error),
        Err(_) => Ok(None),
    }
}
