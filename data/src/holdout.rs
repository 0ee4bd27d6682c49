//! Keeping a share of the samples for evaluation, whole groups at a time.

use std::collections::HashMap;

use crate::dataset::Dataset;

/// Splits a dataset into what is trained on and what is held out: whole groups, so that no translation of a held-out sample is
/// trained on, and of each language as near to the share as groups allow.
///
/// Groups are looked at in an order keyed by the seed, and one is held out when that brings the languages it is in, together,
/// nearer to their share. Which groups those are does not depend on the order of files.
pub(crate) fn split(dataset: &Dataset, share: f64, seed: u64) -> (Dataset, Dataset) {
    let mut groups: HashMap<u64, Vec<usize>> = HashMap::new();
    let mut wanted = vec![0.0; dataset.languages().len()];
    for sample in 0..dataset.len() {
        groups.entry(dataset.group(sample)).or_default().push(sample);
        wanted[dataset.language(sample) as usize] += share;
    }
    let key = |group: u64| {
        let mut hasher = blake3::Hasher::new_derive_key("interlingua 2026 held-out groups");
        hasher.update(&seed.to_le_bytes()).update(&group.to_le_bytes());
        *hasher.finalize().as_bytes()
    };
    let mut groups: Vec<([u8; 32], Vec<usize>)> = groups
        .into_iter()
        .map(|(group, samples)| (key(group), samples))
        .collect();
    groups.sort_unstable();

    let mut held = vec![false; dataset.len()];
    let mut taken = vec![0.0; wanted.len()];
    for (_, samples) in groups {
        let mut adds: HashMap<usize, f64> = HashMap::new();
        for &sample in &samples {
            *adds.entry(dataset.language(sample) as usize).or_default() += 1.0;
        }
        let change: f64 = adds
            .iter()
            .map(|(&language, count)| {
                let missing: f64 = wanted[language] - taken[language];
                (missing - count).abs() - missing.abs()
            })
            .sum();
        if change < 0.0 {
            adds.iter().for_each(|(&language, count)| taken[language] += count);
            samples.iter().for_each(|&sample| held[sample] = true);
        }
    }
    let choose = |wanted: bool| {
        (0..dataset.len())
            .filter(|&sample| held[sample] == wanted)
            .collect::<Vec<_>>()
    };
    (dataset.select(choose(false)), dataset.select(choose(true)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenized_file::TokenizedSample;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn dataset(rows: &[(u32, u64)]) -> Dataset {
        let sample = |&(language, group): &(u32, u64)| TokenizedSample {
            input_ids: vec![1, 2],
            labels: vec![1, 2],
            language,
            group,
            ..Default::default()
        };
        Dataset::in_memory(&["ar", "en", "sw"], &rows.iter().map(sample).collect::<Vec<_>>()).unwrap()
    }

    fn count(dataset: &Dataset, language: u16) -> usize {
        (0..dataset.len())
            .filter(|&sample| dataset.language(sample) == language)
            .count()
    }

    #[test]
    fn shares_are_met_where_groups_allow() {
        let rows: Vec<(u32, u64)> = (0..300)
            .map(|n| ((n % 3) as u32, n / 3))
            .chain((0..40).map(|n| (1, 1000 + n)))
            .collect();
        let (train, held) = split(&dataset(&rows), 0.1, 7);
        for (language, wanted) in [(0, 10), (1, 14), (2, 10)] {
            assert!(count(&held, language).abs_diff(wanted) <= 1, "language {language}");
        }
        assert_eq!(train.len() + held.len(), rows.len());
    }

    proptest! {
        #[test]
        fn groups_stay_whole(rows in prop::collection::vec((0_u32..3, 0_u64..30), 1..120), seed: u64) {
            let (train, held) = split(&dataset(&rows), 0.3, seed);
            let groups = |data: &Dataset| (0..data.len()).map(|sample| data.group(sample)).collect::<HashSet<_>>();
            prop_assert!(groups(&train).is_disjoint(&groups(&held)));
            prop_assert_eq!(train.len() + held.len(), rows.len());
        }
    }
}
