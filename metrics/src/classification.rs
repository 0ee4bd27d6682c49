//! Intents with slots, and labels, one or several for an item.

use serde_json::Value;

use crate::extract::json;
use crate::statistics::{Metric, ratio};
use crate::text::{common, counts};

/// What an utterance asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The intent.
    pub intent: Option<String>,
    /// Slots with their values; a slot with several values stands here several times.
    pub slots: Vec<(String, String)>,
}

impl Frame {
    /// The first JSON object in a text: `{"intent": …, "slots": {name: value or [values]}}`. None where there is none.
    pub fn read(text: &str) -> Option<Self> {
        let Value::Object(object) = json(text)? else {
            return None;
        };
        let mut frame = Self {
            intent: object.get("intent").and_then(said),
            slots: Vec::new(),
        };
        for (name, value) in object.get("slots").and_then(Value::as_object).into_iter().flatten() {
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            frame
                .slots
                .extend(values.iter().filter_map(said).map(|value| (name.clone(), value)));
        }
        Some(frame)
    }

    /// The statistics of one answer: intents that are right; pairs of slot and value that are right, too many, and
    /// missing; answers that are right as a whole; answers that are no JSON, which count as empty; and 1.
    pub fn item(&self, answer: Option<&Self>) -> Vec<f64> {
        let empty = Self::default();
        let given = answer.unwrap_or(&empty);
        let right = common(&counts(&given.slots), &counts(&self.slots));
        let (more, missing) = (given.slots.len() - right, self.slots.len() - right);
        let intent = given.intent.is_some() && given.intent == self.intent;
        let whole = intent && more + missing == 0;
        [
            usize::from(intent),
            right,
            more,
            missing,
            usize::from(whole),
            usize::from(answer.is_none()),
            1,
        ]
        .map(|count| count as f64)
        .to_vec()
    }
}

/// A value as text, without white space around it.
fn said(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.trim().to_owned()),
        value => Some(value.to_string()),
    }
}

/// Metrics of [`Frame::item`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfFrames {
    /// Share of right intents.
    IntentAccuracy,
    /// F1 over all pairs of slot and value; not defined where there are none on either side.
    SlotF1,
    /// Share of answers that are right as a whole.
    ExactMatch,
    /// Share of answers that are no JSON.
    Unreadable,
}

impl Metric for OfFrames {
    fn finish(&self, sum: &[f64]) -> f64 {
        match self {
            Self::IntentAccuracy => ratio(sum[0], sum[6]),
            Self::SlotF1 => f1(&sum[1..4]),
            Self::ExactMatch => ratio(sum[4], sum[6]),
            Self::Unreadable => ratio(sum[5], sum[6]),
        }
    }
}

/// The F1 of what is right, too much, and missing.
fn f1(counts: &[f64]) -> f64 {
    ratio(2.0 * counts[0], 2.0 * counts[0] + counts[1] + counts[2])
}

/// The labels in a text: a JSON list, or what stands between commas and lines.
pub fn labels(text: &str) -> Vec<String> {
    match json(text) {
        Some(Value::Array(values)) => values.iter().filter_map(said).collect(),
        _ => text
            .split([',', '\n'])
            .map(|label| label.trim().to_owned())
            .filter(|label| !label.is_empty())
            .collect(),
    }
}

/// The statistics of one item's labels, of which an item with a single label has one: F1 of the item, 1, and for each of
/// `all` labels whether it is right, too much, or missing. A label that is not among them is counted as too much, behind
/// the others, as one more label. An item without labels that is answered with none has F1 1 (scikit-learn's
/// `zero_division=1`).
pub fn labels_item(answer: &[String], reference: &[String], all: &[String]) -> Vec<f64> {
    let in_both = |label: &String| (answer.contains(label), reference.contains(label));
    let count = |label: &String| match in_both(label) {
        (true, true) => [1.0, 0.0, 0.0],
        (true, false) => [0.0, 1.0, 0.0],
        (false, true) => [0.0, 0.0, 1.0],
        (false, false) => [0.0; 3],
    };
    let unknown = answer.iter().filter(|label| !all.contains(label)).count() as f64;
    let mut counts = all.iter().flat_map(count).collect::<Vec<_>>();
    counts.extend([0.0, unknown, 0.0]);
    let of_item = f1(&total(&counts));
    let of_item = if of_item.is_nan() { 1.0 } else { of_item };
    [vec![of_item, 1.0], counts].concat()
}

fn total(counts: &[f64]) -> [f64; 3] {
    [0, 1, 2].map(|place| counts.iter().skip(place).step_by(3).sum())
}

/// Metrics of [`labels_item`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelF1 {
    /// Over all labels of all items.
    Micro,
    /// Mean over the labels that occur in references or answers.
    Macro,
    /// Mean over items.
    Samples,
}

impl Metric for LabelF1 {
    fn finish(&self, sum: &[f64]) -> f64 {
        let (of_items, counts) = sum.split_at(2);
        match self {
            Self::Micro => f1(&total(counts)),
            Self::Macro => {
                let scores = counts
                    .chunks(3)
                    .map(f1)
                    .filter(|score| !score.is_nan())
                    .collect::<Vec<_>>();
                ratio(scores.iter().sum(), scores.len() as f64)
            }
            Self::Samples => ratio(of_items[0], of_items[1]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::score;

    #[test]
    fn a_table_of_frames_by_hand() {
        // | answer | intent | right, more, missing | whole | no JSON |
        // |---|---|---|---|---|
        // | the same in another order | 1 | 3, 0, 0 | 1 | 0 |
        // | other intent, one value wrong | 0 | 0, 1, 1 | 0 | 0 |
        // | no JSON | 0 | 0, 0, 1 | 0 | 1 |
        // | one slot too many | 1 | 0, 1, 0 | 0 | 0 |
        let frame = |text: &str| Frame::read(text).unwrap();
        let items = [
            (
                r#"{"slots": {"place": "Turku", "time": ["9", "10"]}, "intent": "alarm"}"#,
                frame(r#"{"intent": "alarm", "slots": {"time": ["10", 9], "place": " Turku "}}"#),
            ),
            (
                r#"{"intent": "play", "slots": {"song": "b"}}"#,
                frame(r#"{"intent": "alarm", "slots": {"song": "a"}}"#),
            ),
            ("alarm at 9", frame(r#"{"intent": "alarm", "slots": {"time": "9"}}"#)),
            (
                r#"Sure: {"intent": "stop", "slots": {"x": "y"}}"#,
                frame(r#"{"intent": "stop"}"#),
            ),
        ]
        .map(|(answer, reference)| reference.item(Frame::read(answer).as_ref()));
        assert_eq!(score(&items, &OfFrames::IntentAccuracy), 0.5);
        assert_eq!(score(&items, &OfFrames::SlotF1), 6.0 / 10.0);
        assert_eq!(score(&items, &OfFrames::ExactMatch), 0.25);
        assert_eq!(score(&items, &OfFrames::Unreadable), 0.25);
        assert!(score(&[frame(r#"{"intent": "stop"}"#).item(None)], &OfFrames::SlotF1).is_nan());
    }

    #[test]
    fn labels_come_as_json_or_in_a_row() {
        assert_eq!(labels(r#"Labels: ["joy", "fear"]"#), ["joy", "fear"]);
        assert_eq!(labels("joy, fear\nanger\n"), ["joy", "fear", "anger"]);
        assert_eq!(labels("[]"), [""; 0]);
        assert_eq!(labels(" "), [""; 0]);
    }

    #[test]
    fn unknown_labels_count_as_wrong() {
        let names = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
        let all = names(&["a", "b"]);
        let items = [
            labels_item(&names(&["a", "z"]), &names(&["a"]), &all),
            labels_item(&names(&[]), &names(&[]), &all),
        ];
        // Right 1, too much 1.
        assert_eq!(score(&items, &LabelF1::Micro), 2.0 / 3.0);
        // a: 1; b does not occur; the unknown: 0.
        assert_eq!(score(&items, &LabelF1::Macro), 0.5);
        assert_eq!(score(&items, &LabelF1::Samples), (2.0 / 3.0 + 1.0) / 2.0);
    }
}
