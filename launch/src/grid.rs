//! The grid of a sweep: `KEY=V1,V2` for each key, one point for each combination.

/// One axis of the grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    /// The recipe's key, as in `optimizer.learning_rate`.
    pub(crate) key: String,
    /// The values, as they were typed.
    pub(crate) values: Vec<String>,
}

/// One combination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// A folder's name that says the values: `learning_rate=1e-4,rank=8`.
    pub(crate) name: String,
    /// Overrides in the form of `--set`.
    pub(crate) settings: Vec<(String, String)>,
}

/// Reads `KEY=V1,V2`. Commas inside brackets, braces and quotes belong to a value.
///
/// # Errors
/// A sentence for the command line.
pub(crate) fn parse_axis(text: &str) -> Result<Axis, String> {
    let (key, values) = text
        .split_once('=')
        .filter(|(key, values)| !key.trim().is_empty() && !values.trim().is_empty())
        .ok_or("write a key and its values, as in optimizer.learning_rate=1e-4,2e-4")?;
    let values = split(values);
    if values.iter().any(String::is_empty) {
        return Err(format!(
            "`{key}` has an empty value; write KEY=V1,V2 without a comma at the end"
        ));
    }
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = values.iter().find(|value| !seen.insert(value.as_str())) {
        return Err(format!("`{key}` has the value {twice} twice"));
    }
    Ok(Axis {
        key: key.trim().to_owned(),
        values,
    })
}

/// Splits at the commas that stand outside brackets and quotes.
fn split(text: &str) -> Vec<String> {
    let (mut depth, mut quote, mut parts) = (0_usize, None, vec![String::new()]);
    for character in text.chars() {
        match (quote, character) {
            (None, ',') if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, '"' | '\'') => quote = Some(character),
            (Some(open), close) if open == close => quote = None,
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(character);
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).collect()
}

/// Every combination, the last axis changing fastest.
pub(crate) fn points(axes: &[Axis]) -> Vec<Point> {
    let mut points: Vec<Vec<(String, String)>> = vec![Vec::new()];
    for axis in axes {
        points = points
            .into_iter()
            .flat_map(|point| {
                axis.values.iter().map(move |value| {
                    point
                        .iter()
                        .cloned()
                        .chain([(axis.key.clone(), value.clone())])
                        .collect::<Vec<_>>()
                })
            })
            .collect();
    }
    // What a file name cannot hold may have been all that told two points apart.
    let mut names = std::collections::BTreeMap::<String, usize>::new();
    let mut unique = |name: String| {
        let times = names.entry(name.clone()).or_default();
        *times += 1;
        if *times == 1 { name } else { format!("{name}~{times}") }
    };
    points
        .into_iter()
        .map(|settings| Point {
            name: unique(name(axes, &settings)),
            settings,
        })
        .collect()
}

/// The last part of each key where that is unambiguous, and what a file name can hold of the value.
fn name(axes: &[Axis], settings: &[(String, String)]) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let parts = settings.iter().map(|(key, value)| {
        let short = last(key);
        let shared = axes.iter().filter(|axis| last(&axis.key) == short).count() > 1;
        let key = if shared { key.clone() } else { short };
        let safe = |c: char| {
            if c.is_alphanumeric() || "-_.+".contains(c) {
                c
            } else {
                '_'
            }
        };
        format!(
            "{key}={}",
            value
                .chars()
                .filter(|c| !"\"' ".contains(*c))
                .map(safe)
                .collect::<String>()
        )
    });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(text: &str) -> Axis {
        parse_axis(text).unwrap()
    }

    #[test]
    fn the_product_is_taken_with_the_last_axis_fastest() {
        let points = points(&[axis("adapter.rank=4,8"), axis("optimizer.learning_rate=1e-4,2e-4")]);
        let names: Vec<_> = points.iter().map(|point| point.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "rank=4,learning_rate=1e-4",
                "rank=4,learning_rate=2e-4",
                "rank=8,learning_rate=1e-4",
                "rank=8,learning_rate=2e-4"
            ]
        );
        assert_eq!(points[3].settings[0], ("adapter.rank".to_owned(), "8".to_owned()));
    }

    #[test]
    fn commas_inside_a_value_stay() {
        let axis = axis(r#"adapter.targets=["q_proj", "v_proj"],all-linear"#);
        assert_eq!(axis.values, [r#"["q_proj", "v_proj"]"#, "all-linear"]);
        assert_eq!(points(&[axis])[0].name, "targets=_q_proj_v_proj_");
    }

    #[test]
    fn a_value_may_be_an_inline_table() {
        let axis = axis(r#"data.mix.ratios={ ar = 1 },{ ar = 0.5, en = 0.5 },{ en = 0.9, "*" = 0.1 }"#);
        assert_eq!(axis.key, "data.mix.ratios");
        assert_eq!(
            axis.values,
            ["{ ar = 1 }", "{ ar = 0.5, en = 0.5 }", r#"{ en = 0.9, "*" = 0.1 }"#]
        );
        let points = points(&[axis]);
        let names: Vec<_> = points.iter().map(|point| point.name.as_str()).collect();
        assert_eq!(
            names,
            ["ratios=_ar_1_", "ratios=_ar_0.5_en_0.5_", "ratios=_en_0.9___0.1_"]
        );
    }

    #[test]
    fn equal_last_parts_are_told_apart() {
        let points = points(&[axis("optimizer.kind=adamw"), axis("schedule.kind=linear")]);
        assert_eq!(points[0].name, "optimizer.kind=adamw,schedule.kind=linear");
    }

    #[test]
    fn no_two_points_share_a_folder() {
        let points = points(&[axis("model.path=a/b,a_b")]);
        assert_eq!(
            (points[0].name.as_str(), points[1].name.as_str()),
            ("path=a_b", "path=a_b~2")
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["rank", "=4", "rank=", "rank=4,", "rank=4,4"] {
            assert!(parse_axis(text).is_err(), "{text}");
        }
    }
}
