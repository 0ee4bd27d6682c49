//! Lists of hosts as SLURM writes them: `node[01-03,7],other`.

/// More hosts than any cluster has; a mistyped range must not fill the memory.
const MOST_HOSTS: usize = 1 << 16;

/// The hosts of a list in order. Brackets hold numbers and ranges, whose leading zeros are kept, and there may be several in a name:
/// the last one counts fastest.
///
/// # Errors
/// When brackets do not match, a range is no range, or the list is longer than any cluster; the message is the end of a sentence.
pub(super) fn hosts(list: &str) -> Result<Vec<String>, String> {
    let mut hosts = Vec::new();
    for entry in entries(list)? {
        expand(entry, &mut hosts)?;
    }
    Ok(hosts)
}

/// Splits at the commas outside brackets.
fn entries(list: &str) -> Result<Vec<&str>, String> {
    let mut entries = Vec::new();
    let (mut start, mut inside) = (0, false);
    for (place, character) in list.char_indices() {
        match character {
            '[' if inside => return Err(format!("in {list:?}, a bracket opens within brackets")),
            ']' if !inside => return Err(format!("in {list:?}, a bracket closes that was not opened")),
            '[' => inside = true,
            ']' => inside = false,
            ',' if !inside => {
                entries.push(&list[start..place]);
                start = place + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(format!("in {list:?}, a bracket is not closed"));
    }
    entries.push(&list[start..]);
    Ok(entries
        .into_iter()
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .collect())
}

/// Adds the hosts of one entry.
fn expand(entry: &str, hosts: &mut Vec<String>) -> Result<(), String> {
    let mut names = vec![String::new()];
    let mut rest = entry;
    while let Some((literal, after)) = rest.split_once('[') {
        let (numbers, after) = after.split_once(']').unwrap_or((after, ""));
        let numbers = numbers_in(numbers, entry)?;
        if names.len() * numbers.len() + hosts.len() > MOST_HOSTS {
            return Err(too_many(entry));
        }
        names = names
            .iter()
            .flat_map(|name| numbers.iter().map(move |number| format!("{name}{literal}{number}")))
            .collect();
        rest = after;
    }
    if names.len() + hosts.len() > MOST_HOSTS {
        return Err(too_many(entry));
    }
    hosts.extend(names.into_iter().map(|name| name + rest));
    Ok(())
}

/// What stands between brackets, written out.
fn numbers_in(text: &str, entry: &str) -> Result<Vec<String>, String> {
    let wrong = |part: &str| format!("in {entry:?}, {part:?} is neither a number nor a range of numbers");
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let parse = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain
                .then(|| digits.parse::<u64>().ok())
                .flatten()
                .ok_or_else(|| wrong(part))
        };
        let (from, to) = (parse(first)?, parse(last)?);
        if from > to {
            return Err(wrong(part));
        }
        if to - from >= MOST_HOSTS as u64 {
            return Err(too_many(entry));
        }
        let width = first.len();
        numbers.extend((from..=to).map(|number| format!("{number:0width$}")));
        if numbers.len() > MOST_HOSTS {
            return Err(too_many(entry));
        }
    }
    Ok(numbers)
}

fn too_many(entry: &str) -> String {
    format!("with {entry:?}, there are more than {MOST_HOSTS} hosts")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_keep_their_leading_zeros() {
        let expected = ["node01", "node02", "node03", "node7", "other"];
        assert_eq!(hosts("node[01-03,7],other").unwrap(), expected);
        assert_eq!(hosts("n[8-11]").unwrap(), ["n8", "n9", "n10", "n11"]);
        assert_eq!(hosts("n[098-101]").unwrap(), ["n098", "n099", "n100", "n101"]);
    }

    #[test]
    fn the_last_brackets_count_fastest() {
        let expected = ["r1n1.cluster", "r1n2.cluster", "r2n1.cluster", "r2n2.cluster"];
        assert_eq!(hosts("r[1-2]n[1-2].cluster").unwrap(), expected);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for list in [
            "a[1",
            "a]1",
            "a[[1]]",
            "a[]",
            "a[1-]",
            "a[-1]",
            "a[3-1]",
            "a[x]",
            "a[1-2-3]",
            "a[+1]",
            "a[99999999999999999999]",
        ] {
            assert!(hosts(list).is_err(), "{list}");
        }
        assert!(hosts("a[0-999999999]").unwrap_err().contains("more than 65536 hosts"));
        assert!(hosts("a[0-999][0-999]").unwrap_err().contains("more than 65536 hosts"));
        assert_eq!(hosts("").unwrap(), Vec::<String>::new());
    }

    /// An entry with its hosts: a name, or a name with a range of numbers of a width.
    fn entry() -> impl Strategy<Value = (String, Vec<String>)> {
        let range = (0_u64..2000, 0_u64..20, 1_usize..6);
        ("[a-z][a-z0-9.-]{0,8}", proptest::option::of(range)).prop_map(|(name, range)| match range {
            None => (name.clone(), vec![name]),
            Some((from, more, width)) => {
                let written = |number: u64| format!("{number:0width$}");
                let text = format!("{name}[{}-{}]", written(from), from + more);
                let width = written(from).len();
                let hosts = (from..=from + more)
                    .map(|number| format!("{name}{number:0width$}"))
                    .collect();
                (text, hosts)
            }
        })
    }

    proptest! {
        #[test]
        fn every_list_gives_its_hosts_back(entries in proptest::collection::vec(entry(), 1..6)) {
            let (texts, expected): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
            prop_assert_eq!(hosts(&texts.join(",")).unwrap(), expected.concat());
        }

        #[test]
        fn no_text_is_too_much(text in "[a-b0-9,\\[\\]\\- ]{0,40}") {
            if let Ok(found) = hosts(&text) {
                prop_assert!(found.len() <= MOST_HOSTS);
            }
        }
    }
}
