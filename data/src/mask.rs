//! Which part of a rendered conversation is supervised: what the assistant says, with the token that ends its turn.
//!
//! With `{% generation %}` marks the template says so itself. Without, the text of every supervised message is found in the rendering of
//! the whole conversation: it starts where the rendering of the messages before it, with the generation prompt, ends; and it reaches
//! to the end-of-turn token behind the message's content. Where a template does not keep that prefix as it is (one that strips the
//! thinking of earlier turns, say), the conversation is rendered again with the message replaced by a probe, and what differs is the
//! message. A row for which neither gives a clear answer is refused, never guessed.

use std::ops::Range;

use crate::batch::UNSUPERVISED;
use crate::error::{DataError, RowProblem};
use crate::sample::Message;
use crate::template::{ChatTemplate, builtin_names};
use crate::tokenizer::{Encoded, Tokenizer};

/// A chat template of which it is known that, and how, it can be trained with.
#[derive(Debug, Clone)]
pub struct Conversations {
    template: ChatTemplate,
    ends: Ends,
    /// Whether the generation prompt is all that stands between a question and its answer.
    prompt_is_whole: bool,
}

/// What ends a turn of the assistant.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ends {
    /// In the middle of a conversation.
    middle: String,
    /// At the end of one; some templates differ.
    last: String,
    /// Added tokens that begin a turn of the assistant.
    openers: Vec<String>,
}

/// Contents of the messages of the conversation that a template is tried on.
const PROBES: [&str; 4] = [
    "InterlinguaAsksOne",
    "InterlinguaSaysTwo",
    "InterlinguaAsksThree",
    "InterlinguaSaysFour",
];
/// The content that stands in for a message: a private-use character, so that it shares no beginning or end with any text.
const STAND_IN: &str = "\u{10ffe0}";

/// Tries a template on a small conversation.
///
/// # Errors
/// [`DataError::TemplateRefused`] when the template fails on it, leaves out what the assistant says, has no end-of-turn token, or
/// has `{% generation %}` marks that leave the end-of-turn token or everything unsupervised.
pub fn check_template(tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<Conversations, DataError> {
    let refused = |reason: String| DataError::TemplateRefused {
        name: template.name().to_owned(),
        reason,
        builtins: builtin_names(),
    };
    let messages: Vec<Message> = ["user", "assistant", "user", "assistant"]
        .into_iter()
        .zip(PROBES)
        .map(|(role, text)| Message::new(role, text))
        .collect();
    let render = |count: usize, prompt: bool| {
        template
            .render(&messages[..count], None, prompt)
            .map_err(|message| refused(failure(tokenizer, template, &message)))
    };
    let (short, long) = (render(2, false)?, render(4, false)?);
    let ends = ends(tokenizer, &short.text, &long.text, &render(2, true)?.text)?.map_err(refused)?;

    if template.has_generation_marks() {
        for (rendered, answers) in [
            (&short, vec![(PROBES[1], &ends.last)]),
            (&long, vec![(PROBES[1], &ends.middle), (PROBES[3], &ends.last)]),
        ] {
            for (answer, end) in answers {
                let start = rendered.text.find(answer).unwrap_or_default();
                let content = start..start + answer.len();
                if !covered(&rendered.generated, content.clone()) {
                    let reason =
                        "Its {% generation %} marks leave out what the assistant says, so nothing would be learnt.";
                    return Err(refused(reason.to_owned()));
                }
                if !covered(&rendered.generated, content.end..content.end + end.len()) {
                    let reason = format!(
                        "Its {{% generation %}} marks leave out {:?}, which ends the assistant's turn, so the model would never learn to stop. Move {{% endgeneration %}} behind it.",
                        end.trim()
                    );
                    return Err(refused(reason));
                }
            }
        }
    }
    let (question, prompt) = (render(1, false)?.text, render(1, true)?.text);
    let header = short
        .text
        .strip_prefix(&question)
        .and_then(|rest| rest.split(PROBES[1]).next());
    let prompt_is_whole = prompt != question || header.is_some_and(|header| header.trim().is_empty());
    Ok(Conversations {
        template: template.clone(),
        ends,
        prompt_is_whole,
    })
}

/// Why a template fails on the smallest of conversations.
fn failure(tokenizer: &Tokenizer, template: &ChatTemplate, message: &str) -> String {
    if template.source().contains("eos_token") && tokenizer.special_token("eos_token").is_none() {
        return "It ends turns with `eos_token`, and tokenizer_config.json names none.".to_owned();
    }
    format!("It fails on a conversation of user and assistant: {message}.")
}

/// Finds what ends a turn, from a conversation of one question and answer, one of two, and the first with a generation prompt.
/// The inner error says why a template has no such thing.
fn ends(tokenizer: &Tokenizer, short: &str, long: &str, prompted: &str) -> Result<Result<Ends, String>, DataError> {
    let after = |text: &str, probe: &str| text.find(probe).map(|start| start + probe.len());
    let (Some(short_start), Some(long_start), Some(_)) =
        (after(short, PROBES[1]), after(long, PROBES[1]), after(long, PROBES[3]))
    else {
        return Ok(Err("It leaves out what the assistant says.".to_owned()));
    };
    let (last_tail, middle_tail) = (&short[short_start..], &long[long_start..]);
    let (short_tokens, long_tokens) = (added_tokens(tokenizer, short)?, added_tokens(tokenizer, long)?);

    // What follows an answer both at the end of a conversation and in its middle ends the turn; it must not cut a token in two.
    let mut common = common_prefix(last_tail, middle_tail);
    for (tokens, start) in [(&short_tokens, short_start), (&long_tokens, long_start)] {
        let cut = tokens
            .iter()
            .find(|token| token.start < start + common && start + common < token.end);
        common = cut.map_or(common, |token| token.start.saturating_sub(start));
    }
    let prompt = prompted.strip_prefix(short).unwrap_or_default();
    let openers = added_tokens(tokenizer, prompt)?
        .into_iter()
        .map(|token| prompt[token].to_owned())
        .collect();
    let shared = last_tail[..common].trim_end();
    if !shared.is_empty() {
        let end = shared.to_owned();
        return Ok(Ok(Ends {
            middle: end.clone(),
            last: end,
            openers,
        }));
    }
    let last = end_token(short, short_start, &short_tokens, &openers);
    let middle = end_token(long, long_start, &long_tokens, &openers);
    Ok(match (middle, last) {
        (Some(middle), Some(last)) => Ok(Ends {
            middle: long[long_start..middle].to_owned(),
            last: short[short_start..last].to_owned(),
            openers,
        }),
        _ => Err(
            "It ends the assistant's turn with no token of its own, so the model would never learn to stop.".to_owned(),
        ),
    })
}

/// The end of the added token that follows a place directly, white space apart, unless it opens a turn.
fn end_token(text: &str, place: usize, added: &[Range<usize>], openers: &[String]) -> Option<usize> {
    let token = added.iter().find(|token| token.start >= place)?;
    let directly = text[place..token.start].trim().is_empty();
    (directly && !openers.iter().any(|opener| *opener == text[token.clone()])).then_some(token.end)
}

/// Where added tokens such as `<|im_end|>` stand in a text.
fn added_tokens(tokenizer: &Tokenizer, text: &str) -> Result<Vec<Range<usize>>, DataError> {
    let Encoded { ids, spans } = tokenizer.encode_with_spans(text, false)?;
    let tokens = ids
        .into_iter()
        .zip(spans)
        .filter(|(id, _)| tokenizer.is_added_token(*id));
    Ok(tokens
        .map(|(_, (start, end))| start..end)
        .filter(|range| !range.is_empty())
        .collect())
}

fn covered(ranges: &[Range<usize>], wanted: Range<usize>) -> bool {
    wanted
        .clone()
        .all(|byte| ranges.iter().any(|range| range.contains(&byte)))
}

/// Bytes of the longest common beginning, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars()
        .zip(b.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum()
}

/// Bytes of the longest common end, in whole characters.
fn common_suffix(a: &str, b: &str) -> usize {
    a.chars()
        .rev()
        .zip(b.chars().rev())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum()
}

impl Conversations {
    /// The template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Ids of the tokens that end a generated answer: the template's end-of-turn token and the tokenizer's end-of-text token.
    pub fn stop_tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let ends = [&self.ends.last, &self.ends.middle]
            .into_iter()
            .filter_map(|end| tokenizer.id(end.trim()));
        let mut ids: Vec<u32> = ends.chain(tokenizer.eos_id()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The text of a conversation and the byte ranges of it that are supervised, in order and apart from each other. Messages before
    /// `supervise_from` never are.
    ///
    /// # Errors
    /// When the template refuses the conversation, or a supervised message cannot be found in what it makes of it.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        supervise_from: usize,
    ) -> Result<(String, Vec<Range<usize>>), RowProblem> {
        let refused = |message| RowProblem::Template { message };
        let full = self.template.render(messages, tools, false).map_err(refused)?;
        let marked = self.template.has_generation_marks();
        let mut ranges = full.generated;
        for (index, message) in messages.iter().enumerate() {
            let says = message.role == "assistant";
            let wanted = index >= supervise_from && message.train.unwrap_or(says);
            // Marks cover what the assistant says, and only what differs from that needs to be found. A mark around a message that is
            // not wanted goes as a whole, with the line end behind the message.
            if wanted == (marked && says) {
                continue;
            }
            let range = self
                .message_range(tokenizer, messages, tools, index, &full.text)
                .ok_or(RowProblem::NoSpan { message: index + 1 })?;
            if wanted {
                ranges.push(range);
            } else {
                ranges.retain(|marked| marked.end <= range.start || range.end <= marked.start);
            }
        }
        ranges.sort_by_key(|range| range.start);
        Ok((full.text, ranges))
    }

    /// Where a message stands in the rendering of its conversation, the end of its turn included.
    fn message_range(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        index: usize,
        full: &str,
    ) -> Option<Range<usize>> {
        let message = &messages[index];
        let prompted = self.prompt_is_whole && message.role == "assistant" && index > 0;
        let prompt = prompted
            .then(|| self.template.render(&messages[..index], tools, true).ok())
            .flatten();
        let start = prompt
            .map(|prompt| prompt.text)
            .filter(|prompt| full.starts_with(prompt.as_str()))
            .map(|prompt| prompt.len());
        let ends = match index + 1 == messages.len() {
            true => [&self.ends.last, &self.ends.middle],
            false => [&self.ends.middle, &self.ends.last],
        };
        let with_end = |place: usize| {
            let end = ends.into_iter().find(|end| full[place..].starts_with(end.as_str()))?;
            Some(place + end.len())
        };
        // Most templates put the content, or the content trimmed, right there.
        if let (Some(start), Some(content)) = (start, message.content.as_str()) {
            let rest = &full[start..];
            let white = rest.len() - rest.trim_start().len();
            for (skipped, content) in [(0, content), (white, content.trim())] {
                let place = start + skipped + content.len();
                if full[start + skipped..].starts_with(content)
                    && let Some(end) = with_end(place)
                {
                    return Some(start..end);
                }
            }
        }
        let mut replaced = messages.to_vec();
        replaced[index] = Message::new(message.role.clone(), STAND_IN);
        let other = self.template.render(&replaced, tools, false).ok()?.text;
        let before = common_prefix(full, &other);
        let after = common_suffix(&full[before..], &other[before..]);
        let content = before..full.len() - after;
        let stand_in = &other[before..other.len() - after];
        let inside_turn = start.is_some_and(|start| start <= before) && stand_in.ends_with(STAND_IN);
        if stand_in != STAND_IN && !inside_turn {
            return None;
        }
        let start = start.unwrap_or(content.start).min(content.start);
        let end = with_end(content.end).or_else(|| {
            let added = added_tokens(tokenizer, full).ok()?;
            end_token(full, content.end, &added, &self.ends.openers)
        });
        match end {
            Some(end) => Some(start..end),
            // What others say need not end with a token.
            None => (message.role != "assistant").then_some(start..content.end),
        }
    }
}

/// Labels of a tokenised text of which only some byte ranges are supervised: a token is when its span overlaps one of them, so that
/// a character split over several tokens is supervised as a whole. `ranges` are in order.
pub fn labels(encoded: &Encoded, ranges: &[Range<usize>]) -> Vec<i32> {
    let mut first = 0;
    let tokens = encoded.ids.iter().zip(&encoded.spans);
    tokens
        .map(|(&id, &(start, end))| {
            while ranges.get(first).is_some_and(|range| range.end <= start) {
                first += 1;
            }
            let overlaps = ranges
                .get(first)
                .is_some_and(|range| start < end && start < range.end && range.start < end);
            if overlaps { id as i32 } else { UNSUPERVISED }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cover_every_token_that_overlaps() {
        let spans = vec![(0, 0), (0, 2), (2, 5), (2, 5), (5, 6), (6, 9)];
        let encoded = Encoded {
            ids: vec![9, 1, 2, 3, 4, 5],
            spans,
        };
        assert_eq!(labels(&encoded, &[3..4, 4..6]), [-100, -100, 2, 3, 4, -100]);
        assert_eq!(labels(&encoded, &[0..1, 8..9]), [-100, 1, -100, -100, -100, 5]);
        assert_eq!(labels(&encoded, &[]), [-100; 6]);
    }
}
