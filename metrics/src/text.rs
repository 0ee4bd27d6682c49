//! What several metrics do with texts, so that they do it alike.

use std::collections::HashMap;
use std::hash::Hash;

/// White space as Python's `str.split` and `str.strip` have it: Unicode's, and four separators of ASCII.
pub(crate) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// The words between white space.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// How often each run of `order` neighbours occurs.
pub(crate) fn ngrams<T: Hash + Eq>(units: &[T], order: usize) -> HashMap<&[T], usize> {
    counts(units.windows(order))
}

/// How often each thing occurs.
pub(crate) fn counts<T: Hash + Eq>(things: impl IntoIterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    things
        .into_iter()
        .for_each(|thing| *counts.entry(thing).or_default() += 1);
    counts
}

/// How many things two bags have in common.
pub(crate) fn common<T: Hash + Eq>(first: &HashMap<T, usize>, second: &HashMap<T, usize>) -> usize {
    let both = |(thing, count): (&T, &usize)| second.get(thing).map_or(0, |other| *count.min(other));
    first.iter().map(both).sum()
}
