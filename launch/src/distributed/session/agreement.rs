//! Whether ranks fit together.

use crate::distributed::store::Hello;

/// Longest part of a line that a message shows, in characters.
const SHOWN: usize = 160;

/// A rank and what it said when it joined.
pub(super) type Member<'a> = (usize, &'a Hello);

/// What keeps a rank from working with rank 0, as sentences; None when they fit.
pub(super) fn disagreement(first: Member<'_>, new: Member<'_>) -> Option<String> {
    let ((first_rank, first_hello), (rank, hello)) = (first, new);
    if first_hello.version != hello.version {
        return Some(sentence(&format!(
            "{} runs version {} of interlingua, {} version {}. Install the same version on all hosts.",
            named(new),
            hello.version,
            named(first),
            first_hello.version
        )));
    }
    let texts = [
        (
            &first_hello.recipe,
            &hello.recipe,
            "another recipe",
            "Start all ranks with the same recipe and the same --set.",
        ),
        (
            &first_hello.data,
            &hello.data,
            "other data",
            "Give all hosts the same files.",
        ),
    ];
    texts.into_iter().find_map(|(first_text, text, what, advice)| {
        let difference = difference(first_text, text)?.between(first_rank, rank);
        Some(sentence(&format!(
            "{} has {what} than {}. {difference}. {advice}",
            named(new),
            named(first)
        )))
    })
}

/// Why two ranks cannot have the devices that they have, as sentences; None when they can. CPUs may be shared.
pub(super) fn collision(there: Member<'_>, new: Member<'_>) -> Option<String> {
    let hello = new.1;
    one_gpu(there.1, hello).then(|| {
        let id = hello.device_id.as_ref().map(|id| format!(" ({id})")).unwrap_or_default();
        sentence(&format!(
            "{} computes on {}{id}, and so does {}. A GPU takes one process: start as many on a host as it has GPUs, each with its own \
             LOCAL_RANK.",
            named(new),
            hello.device,
            named(there)
        ))
    })
}

/// "rank 2 on host".
pub(super) fn named((rank, hello): Member<'_>) -> String {
    format!("rank {rank} on {}", hello.host)
}

/// The text with a capital in the beginning.
pub(super) fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}

/// "Ranks 1, 2 and 5", shortened when there are many.
pub(super) fn ranks(numbers: &[usize]) -> String {
    const MANY: usize = 16;
    let shown: Vec<_> = numbers.iter().take(MANY).map(usize::to_string).collect();
    let rest = numbers.len().saturating_sub(MANY);
    match (shown.split_last(), rest) {
        (None, _) => "No rank".to_owned(),
        (Some((last, [])), _) => format!("Rank {last}"),
        (Some((last, before)), 0) => format!("Ranks {} and {last}", before.join(", ")),
        _ => format!("Ranks {} and {rest} more", shown.join(", ")),
    }
}

/// Whether both compute on one GPU.
fn one_gpu(a: &Hello, b: &Hello) -> bool {
    match (&a.device_id, &b.device_id) {
        (Some(a), Some(b)) => a == b,
        // LibTorch and CubeCL number the same GPUs.
        _ => match (gpu(&a.device), gpu(&b.device)) {
            (Some(first), Some(second)) => first == second && a.host == b.host,
            _ => false,
        },
    }
}

/// The number of a GPU in its name; the name without a number is the first one's.
fn gpu(device: &str) -> Option<&str> {
    let (_, number) = device.split_once("cuda")?;
    Some(number.strip_prefix(':').unwrap_or("0"))
}

/// The first lines that differ between two texts, with the last heading in brackets before them.
#[derive(Debug, PartialEq, Eq)]
struct Difference<'a> {
    heading: Option<&'a str>,
    first: Option<&'a str>,
    second: Option<&'a str>,
}

fn difference<'a>(a: &'a str, b: &'a str) -> Option<Difference<'a>> {
    if a == b {
        return None;
    }
    let (mut first_lines, mut second_lines) = (a.lines(), b.lines());
    let mut heading = None;
    loop {
        match (first_lines.next(), second_lines.next()) {
            (Some(first), Some(second)) if first == second => {
                if first.starts_with('[') {
                    heading = Some(first);
                }
            }
            (first, second) => {
                return Some(Difference { heading, first, second });
            }
        }
    }
}

impl Difference<'_> {
    fn between(&self, first_rank: usize, second_rank: usize) -> String {
        let shown = |line: Option<&str>| match line {
            None => "nothing more".to_owned(),
            Some(line) => {
                let start: String = line.trim().chars().take(SHOWN).collect();
                let more = if start.len() < line.trim().len() { "…" } else { "" };
                format!("`{start}{more}`")
            }
        };
        let heading = self.heading.map(|heading| format!(" in {heading}")).unwrap_or_default();
        format!(
            "The first difference{heading}: rank {first_rank} has {}, rank {second_rank} has {}",
            shown(self.first),
            shown(self.second)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            host: "a".to_owned(),
            device: "cpu".to_owned(),
            device_id: None,
            version: "0.1.0".to_owned(),
            recipe: "name = \"x\"\n[train]\nlr = 1e-4\nsteps = 5\n".to_owned(),
            data: "11aa data/de.jsonl\n22bb data/fr.jsonl\n".to_owned(),
        }
    }

    fn of(change: impl Fn(&mut Hello)) -> Option<String> {
        let mut other = hello();
        other.host = "b".to_owned();
        change(&mut other);
        disagreement((0, &hello()), (3, &other))
    }

    #[test]
    fn equal_ranks_fit() {
        assert_eq!(of(|_| {}), None);
    }

    #[test]
    fn each_difference_is_named() {
        assert_eq!(
            of(|other| other.version = "0.2.0".to_owned()).unwrap(),
            "Rank 3 on b runs version 0.2.0 of interlingua, rank 0 on a version 0.1.0. Install the same version on all hosts."
        );
        let recipe = of(|other| other.recipe = other.recipe.replace("1e-4", "2e-4")).unwrap();
        let expected = "Rank 3 on b has another recipe than rank 0 on a. The first difference in [train]: rank 0 has `lr = 1e-4`, rank 3 has \
                        `lr = 2e-4`.";
        assert!(recipe.starts_with(expected), "{recipe}");
        let data = of(|other| other.data = "11aa data/de.jsonl\n".to_owned()).unwrap();
        let expected = "Rank 3 on b has other data than rank 0 on a. The first difference: rank 0 has `22bb data/fr.jsonl`, rank 3 has \
                        nothing more.";
        assert!(data.starts_with(expected), "{data}");
    }

    #[test]
    fn one_gpu_of_one_host_takes_one_rank() {
        let on = |host: &str, device: &str, id: Option<&str>| Hello {
            host: host.to_owned(),
            device: device.to_owned(),
            device_id: id.map(str::to_owned),
            ..hello()
        };
        let both = |a: Hello, b: Hello| collision((1, &a), (2, &b));
        let message = both(on("a", "cuda:0", None), on("a", "cuda:0", None)).unwrap();
        assert!(
            message.starts_with("Rank 2 on a computes on cuda:0, and so does rank 1 on a."),
            "{message}"
        );
        assert!(both(on("a", "cuda", None), on("a", "tch:cuda:0", None)).is_some());
        assert_eq!(both(on("a", "cuda:0", None), on("a", "cuda:1", None)), None);
        assert_eq!(both(on("a", "cuda:0", None), on("b", "cuda:0", None)), None);
        assert_eq!(both(on("a", "cpu", None), on("a", "cpu", None)), None);
        assert_eq!(both(on("a", "tch", None), on("a", "tch", None)), None);
        // Each process may see its own GPU as the first; two may see one GPU under different numbers.
        assert_eq!(
            both(on("a", "cuda:0", Some("GPU-1")), on("a", "cuda:0", Some("GPU-2"))),
            None
        );
        assert!(both(on("a", "cuda:0", Some("GPU-1")), on("a", "cuda:1", Some("GPU-1"))).is_some());
    }

    #[test]
    fn what_differs_only_in_its_end_is_different_too() {
        let found = difference("a\n", "a").unwrap();
        assert_eq!((found.first, found.second), (None, None));
    }

    #[test]
    fn ranks_are_listed() {
        assert_eq!(ranks(&[2]), "Rank 2");
        assert_eq!(ranks(&[1, 3]), "Ranks 1 and 3");
        assert_eq!(ranks(&[1, 2, 3]), "Ranks 1, 2 and 3");
        let many: Vec<_> = (1..1024).collect();
        assert!(ranks(&many).ends_with("15, 16 and 1007 more"));
    }
}
