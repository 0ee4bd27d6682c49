//! Chat templates: Jinja rendered as Transformers' `apply_chat_template` renders it.
//!
//! The environment is that of Transformers: `trim_blocks`, `lstrip_blocks`, loop controls, Python's string, list and dict methods,
//! `raise_exception`, `strftime_now`, a `tojson` like `json.dumps(…, ensure_ascii=False)`, and values printed as Python prints them.
//! `{% generation %}…{% endgeneration %}` becomes a filter block, which has the same scope and whitespace rules; the filter
//! puts a mark that cannot occur in the text at either end, and the marks are cut out of the result to give the spans.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;

use crate::error::DataError;
use crate::python_json::{self, Style};
use crate::sample::Message;

/// The built-in templates by name.
const BUILTIN: [(&str, &str); 9] = [
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("chatml", include_str!("templates/chatml.jinja")),
    ("gemma", include_str!("templates/gemma.jinja")),
    ("llama2", include_str!("templates/llama2.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
    ("phi3", include_str!("templates/phi3.jinja")),
    ("vicuna", include_str!("templates/vicuna.jinja")),
    ("zephyr", include_str!("templates/zephyr.jinja")),
];

/// The source of a built-in template.
pub fn builtin(name: &str) -> Option<&'static str> {
    BUILTIN
        .iter()
        .find(|(builtin, _)| *builtin == name)
        .map(|(_, source)| *source)
}

/// The names of the built-in templates, as a list for messages.
pub fn builtin_names() -> String {
    BUILTIN.map(|(name, _)| name).join(", ")
}

/// A chat template, ready to render.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    name: String,
    source: String,
    tool_use: Option<String>,
    marks: bool,
    special_tokens: BTreeMap<String, String>,
    environment: Arc<Environment<'static>>,
}

/// What a template made of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// The text, without marks.
    pub text: String,
    /// The byte ranges of the text between `{% generation %}` and `{% endgeneration %}`; none for a template without them.
    pub generated: Vec<Range<usize>>,
}

/// What a template sees.
#[derive(Serialize)]
struct Context<'a> {
    messages: &'a [Message],
    tools: Option<&'a serde_json::Value>,
    documents: Option<()>,
    add_generation_prompt: bool,
    #[serde(flatten)]
    special_tokens: &'a BTreeMap<String, String>,
}

/// Marks around what is generated: private-use characters, and a conversation that contains one is refused.
const MARKS: [char; 2] = ['\u{10fff0}', '\u{10fff1}'];

impl ChatTemplate {
    /// A template from its source. `name` stands in messages; `tool_use` is the template for conversations with tools where a tokenizer
    /// has two; `special_tokens` are the variables `bos_token`, `eos_token` and so on.
    ///
    /// # Errors
    /// When the source is not valid Jinja.
    pub fn new(
        name: &str,
        source: &str,
        tool_use: Option<&str>,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<Self, DataError> {
        let invalid = |error: &Error| DataError::TemplateSyntax {
            name: name.to_owned(),
            message: message_of(error),
            builtins: builtin_names(),
        };
        let mut environment = environment().map_err(|error| invalid(&error))?;
        for (key, source) in [("default", Some(source)), ("tool_use", tool_use)] {
            let Some(source) = source else { continue };
            environment
                .add_template_owned(key, with_filter_blocks(source))
                .map_err(|error| invalid(&error))?;
        }
        Ok(ChatTemplate {
            name: name.to_owned(),
            source: source.to_owned(),
            tool_use: tool_use.map(str::to_owned),
            marks: with_filter_blocks(source) != source,
            special_tokens: special_tokens.clone(),
            environment: Arc::new(environment),
        })
    }

    /// Where the template comes from, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The template's source, as it belongs into a tokenizer's `chat_template`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether `{% generation %}` in the template says what is supervised.
    pub fn has_generation_marks(&self) -> bool {
        self.marks
    }

    /// BLAKE3 over all that the rendering depends on.
    pub fn fingerprint(&self) -> [u8; 32] {
        let all = (&self.source, &self.tool_use, &self.special_tokens);
        *blake3::hash(format!("{all:?}").as_bytes()).as_bytes()
    }

    /// The text of a conversation. `add_generation_prompt` asks for the beginning of an answer at the end.
    ///
    /// # Errors
    /// What the template says when it refuses the conversation (`raise_exception`), or what it does not know.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<Rendered, String> {
        if self.marks && serde_json::to_string(&(messages, tools)).is_ok_and(|text| text.contains(MARKS)) {
            return Err("the text contains one of the private-use characters U+10FFF0 and U+10FFF1".to_owned());
        }
        let key = if tools.is_some() && self.tool_use.is_some() {
            "tool_use"
        } else {
            "default"
        };
        let special_tokens = &self.special_tokens;
        let context = Context {
            messages,
            tools,
            documents: None,
            add_generation_prompt,
            special_tokens,
        };
        let template = self.environment.get_template(key).map_err(|error| message_of(&error))?;
        let text = template.render(Serde(context)).map_err(|error| message_of(&error))?;
        if !self.marks {
            return Ok(Rendered {
                text,
                generated: Vec::new(),
            });
        }
        Ok(cut_marks(&text))
    }
}

/// Puts `{% filter interlingua_generation %}` in the place of `{% generation %}`, and `{% endfilter %}` in that of `{% endgeneration %}`.
fn with_filter_blocks(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        output.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let inner = tag
            .trim_start_matches("{%")
            .trim_end_matches("%}")
            .trim_matches(['-', '+'])
            .trim();
        output.push_str(&match inner {
            "generation" => tag.replacen("generation", "filter interlingua_generation", 1),
            "endgeneration" => tag.replacen("endgeneration", "endfilter", 1),
            _ => tag.to_owned(),
        });
        rest = after;
    }
    output.push_str(rest);
    output
}

fn cut_marks(marked: &str) -> Rendered {
    let [open, close] = MARKS;
    let mut rendered = Rendered::default();
    let mut opened = Vec::new();
    for character in marked.chars() {
        if character == open {
            opened.push(rendered.text.len());
        } else if character == close {
            if let Some(start) = opened.pop() {
                rendered.generated.push(start..rendered.text.len());
            }
        } else {
            rendered.text.push(character);
        }
    }
    rendered.generated.retain(|range| !range.is_empty());
    rendered.generated.sort_by_key(|range| range.start);
    rendered
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// What a person needs of an error: the message of `raise_exception` as it is, else what went wrong and in which line.
fn message_of(error: &Error) -> String {
    use std::error::Error as _;
    let message = match error.source().and_then(|source| source.downcast_ref::<Raised>()) {
        Some(Raised(message)) => message.clone(),
        None => {
            let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
            error.line().map_or_else(
                || detail.clone(),
                |line| format!("{detail} (line {line} of the template)"),
            )
        }
    };
    message.trim_end_matches(['.', '\n']).to_owned()
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|output, _, value| Ok(output.write_str(&python_json::display(value))?));
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: Value| python_json::display(&value));
    environment.add_filter("interlingua_generation", |body: String| {
        format!("{}{body}{}", MARKS[0], MARKS[1])
    });
    // In Python a string can be iterated over, and is a sequence; so is a dict.
    environment.add_test("iterable", |value: Value| is_kind(&value, &[ValueKind::Iterable]));
    environment.add_test("sequence", |value: Value| is_kind(&value, &[]));
    Ok(environment)
}

fn is_kind(value: &Value, more: &[ValueKind]) -> bool {
    let kind = value.kind();
    [ValueKind::String, ValueKind::Seq, ValueKind::Map].contains(&kind) || more.contains(&kind)
}

/// The local time, formatted as Python's `strftime` does.
fn strftime_now(format: String) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(&format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("{format:?} is not a time format")))?;
    Ok(text)
}

/// `tojson` with the arguments that Transformers gives it: `ensure_ascii`, `indent`, `separators`, `sort_keys`.
fn to_json(value: Value, arguments: Kwargs) -> Result<String, Error> {
    let indent = match arguments.get::<Option<Value>>("indent")? {
        Some(indent) if indent.kind() == ValueKind::Number => Some(" ".repeat(usize::try_from(indent)?)),
        Some(indent) if indent.kind() == ValueKind::String => Some(indent.to_string()),
        _ => None,
    };
    let separators = arguments.get::<Option<Vec<String>>>("separators")?.unwrap_or_default();
    let item = if indent.is_some() { "," } else { ", " };
    let style = Style {
        ensure_ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        item_separator: separators.first().map_or(item, String::as_str).to_owned(),
        key_separator: separators.get(1).map_or(": ", String::as_str).to_owned(),
        indent,
    };
    arguments.assert_all_used()?;
    let value = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))?;
    Ok(python_json::to_json(&value, &style))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<Rendered, String> {
        let tokens = BTreeMap::from([("eos_token".to_owned(), "</s>".to_owned())]);
        ChatTemplate::new("test", source, None, &tokens)
            .unwrap()
            .render(messages, None, false)
    }

    fn text(source: &str) -> String {
        render(source, &[Message::new("user", "hi")]).unwrap().text
    }

    #[test]
    fn prints_and_dumps_as_python_does() {
        assert_eq!(
            text("{{ none }} {{ true }} {{ 1.0 }} {{ [1, 'a', None] }}"),
            "None True 1.0 [1, 'a', None]"
        );
        assert_eq!(
            text("{{ {'b': [1, 2.5], 'a': 'é\"\n'} | tojson }}"),
            "{\"b\": [1, 2.5], \"a\": \"é\\\"\\n\"}"
        );
        assert_eq!(
            text("{{ {'a': [1], 'b': {}} | tojson(indent=2) }}"),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"
        );
        assert_eq!(
            text("{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}"),
            "{\"a\":\"\\u00e9\",\"b\":1}"
        );
        assert_eq!(text("{{ messages }}"), "[{'role': 'user', 'content': 'hi'}]");
        assert_eq!(
            text("{{ 'x' is iterable }} {{ 'x' is sequence }} {{ 3 is iterable }}"),
            "True True False"
        );
        assert_eq!(
            text("{{ tools is none }} {{ bos_token is defined }}{{ eos_token }}"),
            "True False</s>"
        );
        assert_eq!(
            text(
                "{{ ' a b '.strip().split(' ')[-1] }}{% for k, v in messages[0].items() %}{{ k }}{% break %}{% endfor %}"
            ),
            "brole"
        );
        assert_eq!(text("{{ strftime_now('%Y') | length }}"), "4");
    }

    #[test]
    fn whitespace_as_in_transformers() {
        assert_eq!(text("  {% if true %}\n  a\n  {% endif %}\nb\n"), "  a\nb");
    }

    #[test]
    fn generation_marks_give_spans() {
        let source = "{% for m in messages %}\n<{{ m.role }}>\n  {% generation %}\n{{ m.content }}!\n  {%- endgeneration -%}\n  .{% endfor %}";
        let rendered = render(source, &[Message::new("user", "é"), Message::new("assistant", "bc")]).unwrap();
        assert_eq!(rendered.text, "<user>\né!.<assistant>\nbc!.");
        let spans: Vec<&str> = rendered
            .generated
            .iter()
            .map(|range| &rendered.text[range.clone()])
            .collect();
        assert_eq!(spans, ["é!", "bc!"]);
        assert!(render(source, &[Message::new("user", "\u{10fff0}")]).is_err());
    }

    #[test]
    fn messages_say_what_was_raised_or_where_it_failed() {
        let raised = render("{{ raise_exception('roles must alternate.') }}", &[]).unwrap_err();
        assert_eq!(raised, "roles must alternate");
        let failed = render("a\n{{ nothing.at_all }}", &[]).unwrap_err();
        assert!(failed.contains("line 2"), "{failed}");
        let error = ChatTemplate::new("x.jinja", "a\n{% if %}", None, &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("x.jinja") && error.contains("line 2") && error.contains("chatml"),
            "{error}"
        );
    }

    #[test]
    fn every_builtin_renders_a_conversation() {
        let tokens = BTreeMap::from([("eos_token".to_owned(), "</s>".to_owned())]);
        for (name, source) in BUILTIN {
            let template = ChatTemplate::new(name, source, None, &tokens).unwrap();
            let messages = [
                Message::new("system", "First"),
                Message::new("user", "Second"),
                Message::new("assistant", "Third"),
                Message::new("user", "Fourth"),
            ];
            let with_prompt = template.render(&messages, None, true).unwrap().text;
            let without = template.render(&messages, None, false).unwrap().text;
            assert!(with_prompt.starts_with(&without), "{name}");
            let places: Vec<usize> = ["First", "Second", "Third", "Fourth"]
                .iter()
                .map(|part| with_prompt.rfind(part).unwrap())
                .collect();
            assert!(places.is_sorted(), "{name}: {with_prompt}");
        }
    }
}
