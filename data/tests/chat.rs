//! Tokenizer, chat templates and masks against what Transformers computes (`fixtures/write_chat.py` writes the fixtures).

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::{Path, PathBuf};

use interlingua_data::mask::{Conversations, check_template, labels};
use interlingua_data::preview::pieces;
use interlingua_data::sample::Message;
use interlingua_data::template::ChatTemplate;
use interlingua_data::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&folder()).unwrap()
}

fn cases() -> Value {
    serde_json::from_slice(&std::fs::read(folder().join("cases.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn messages(value: &Value) -> Vec<Message> {
    let message = |message: &Value| {
        let mut extra = message.as_object().unwrap().clone();
        let role = extra.shift_remove("role").unwrap().as_str().unwrap().to_owned();
        let content = extra.shift_remove("content").unwrap();
        Message {
            role,
            content,
            train: None,
            extra,
        }
    };
    value.as_array().unwrap().iter().map(message).collect()
}

fn template(source: &str) -> ChatTemplate {
    let tokens = [("bos_token", "<|begin_of_text|>"), ("eos_token", "<|im_end|>")];
    let tokens = tokens.map(|(role, token)| (role.to_owned(), token.to_owned())).into();
    ChatTemplate::new("test", source, None, &tokens).unwrap()
}

fn checked(source: &str) -> Conversations {
    check_template(&tokenizer(), &template(source)).unwrap()
}

/// The texts that are supervised in a conversation.
fn supervised(conversations: &Conversations, messages: &[Message], supervise_from: usize) -> Vec<String> {
    let (text, ranges) = conversations
        .render(&tokenizer(), messages, None, supervise_from)
        .unwrap();
    ranges.into_iter().map(|range| text[range].to_owned()).collect()
}

fn case(name: &str) -> Value {
    cases()["cases"]
        .as_array()
        .unwrap()
        .iter()
        .find(|case| case["name"] == name)
        .unwrap()
        .clone()
}

#[test]
fn encodes_as_transformers_does() {
    let tokenizer = tokenizer();
    for encoding in cases()["encodings"].as_array().unwrap() {
        let text = encoding["text"].as_str().unwrap();
        assert_eq!(
            tokenizer.encode(text, true).unwrap(),
            numbers(&encoding["ids"]),
            "{text}"
        );
        let encoded = tokenizer.encode_with_spans(text, false).unwrap();
        assert_eq!(tokenizer.decode(&encoded.ids, false).unwrap(), text);
        // Every byte belongs to a token, spaces too.
        let mut end = 0;
        for (from, to) in encoded.spans {
            assert!(from <= end && to >= end, "{text}: {from}..{to} after {end}");
            end = to;
        }
        assert_eq!(end, text.len());
    }
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()),
        (Some(1), Some(3), Some(0))
    );
    assert_eq!(tokenizer.vocabulary_size(), 420);
}

#[test]
fn renders_tokenises_and_masks_as_transformers_does() {
    let tokenizer = tokenizer();
    for case in cases()["cases"].as_array().unwrap() {
        let name = &case["name"];
        let template = template(case["template"].as_str().unwrap());
        let messages = messages(&case["messages"]);
        let tools = Some(&case["tools"]).filter(|tools| !tools.is_null());
        let rendered = template.render(&messages, tools, false);
        if let Some(error) = case["error"].as_str() {
            assert_eq!(rendered.unwrap_err(), error, "{name}");
            continue;
        }
        let rendered = rendered.unwrap();
        assert_eq!(rendered.text, case["rendered"].as_str().unwrap(), "{name}");
        let prompted = template.render(&messages, tools, true).unwrap().text;
        assert_eq!(prompted, case["rendered_with_prompt"].as_str().unwrap(), "{name}");
        let encoded = tokenizer.encode_with_spans(&rendered.text, false).unwrap();
        assert_eq!(encoded.ids, numbers(&case["ids"]), "{name}");
        assert_eq!(template.has_generation_marks(), !case["mask"].is_null(), "{name}");
        if template.has_generation_marks() {
            let conversations = check_template(&tokenizer, &template).unwrap();
            let (_, ranges) = conversations.render(&tokenizer, &messages, tools, 0).unwrap();
            let mask: Vec<u32> = labels(&encoded, &ranges)
                .iter()
                .map(|&label| u32::from(label != -100))
                .collect();
            assert_eq!(mask, numbers(&case["mask"]), "{name}");
        }
    }
}

#[test]
fn without_marks_each_answer_and_its_end_of_turn_is_supervised() {
    let chat = messages(&case("thinking")["messages"]);
    let source = interlingua_data::template::builtin("chatml").unwrap();
    assert_eq!(
        supervised(&checked(source), &chat, 0),
        [
            "<think>\nkm 3?\n</think>\n\nHospitali ya karibu iko 医院. <|im_end|>",
            "مياه النهر باردة اليوم 🏥🏥<|im_end|>"
        ]
    );
    // The template takes the thinking out of the first answer, and its generation prompt opens a thought.
    let thinking = checked(case("thinking")["template"].as_str().unwrap());
    assert_eq!(
        supervised(&thinking, &chat, 0),
        [
            "Hospitali ya karibu iko 医院. <|im_end|>",
            "مياه النهر باردة اليوم 🏥🏥<|im_end|>"
        ]
    );
    let tools = case("tools");
    let calls = messages(&tools["messages"]);
    assert_eq!(
        supervised(&checked(tools["template"].as_str().unwrap()), &calls, 0),
        [
            "{\"name\": \"weather\", \"arguments\": {\"city\": \"पुणे\", \"days\": [1, 2.0]}}<|im_end|>",
            "It is 21 °C.<|im_end|>"
        ]
    );
}

#[test]
fn rows_can_say_which_messages_are_supervised() {
    let marked = case("marked")["template"].as_str().unwrap().to_owned();
    for source in [interlingua_data::template::builtin("chatml").unwrap(), &marked] {
        let conversations = checked(source);
        let newline = if source == marked { "\n" } else { "" };
        let mut chat: Vec<Message> = ["user", "assistant", "user", "assistant"]
            .into_iter()
            .zip(["a", "b", "c", "d"])
            .map(|(role, text)| Message::new(role, text))
            .collect();
        assert_eq!(supervised(&conversations, &chat, 2), [format!("d<|im_end|>{newline}")]);
        chat[3].train = Some(false);
        chat[0].train = Some(true);
        assert_eq!(
            supervised(&conversations, &chat, 0),
            ["a<|im_end|>".to_owned(), format!("b<|im_end|>{newline}")]
        );
    }
}

#[test]
fn templates_that_would_teach_the_wrong_thing_are_refused() {
    let refused = |source: &str| check_template(&tokenizer(), &template(source)).unwrap_err().to_string();
    let marks = "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n{% endfor %}";
    assert!(
        refused(marks).contains("leave out \"<|im_end|>\""),
        "{}",
        refused(marks)
    );
    let nothing = "{% for m in messages %}{{ m.content }}<|im_end|>{% generation %}{% endgeneration %}{% endfor %}";
    assert!(
        refused(nothing).contains("nothing would be learnt"),
        "{}",
        refused(nothing)
    );
    let endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}";
    assert!(refused(endless).contains("never learn to stop"), "{}", refused(endless));
    let deaf = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}";
    assert!(
        refused(deaf).contains("leaves out what the assistant says"),
        "{}",
        refused(deaf)
    );
    let failing = "{{ raise_exception('no') }}";
    assert!(
        refused(failing).contains("fails on a conversation"),
        "{}",
        refused(failing)
    );
}

#[test]
fn a_generation_prompt_that_is_missing_does_not_teach_the_header() {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    let chat = [Message::new("user", "a"), Message::new("assistant", "b")];
    assert_eq!(supervised(&checked(source), &chat, 0), ["b<|im_end|>"]);
}

#[test]
fn a_missing_tokenizer_or_template_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(
        missing.contains("tokenizer.json") && missing.contains("tokenizer train"),
        "{missing}"
    );
    let none = tokenizer().chat_template("auto").unwrap_err().to_string();
    assert!(
        none.contains("no chat template") && none.contains("chatml, gemma, llama2, llama3"),
        "{none}"
    );
    let unknown = tokenizer().chat_template("chatmll").unwrap_err().to_string();
    assert!(unknown.contains("\"chatmll\""), "{unknown}");
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(
        Tokenizer::load(folder.path())
            .unwrap_err()
            .to_string()
            .contains("cannot be read")
    );
}

#[test]
fn the_templates_of_a_tokenizer_are_found_wherever_they_are() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(
        self::folder().join("tokenizer.json"),
        folder.path().join("tokenizer.json"),
    )
    .unwrap();
    let config = |text: &str| std::fs::write(folder.path().join("tokenizer_config.json"), text).unwrap();
    let source = || {
        Tokenizer::load(folder.path())
            .unwrap()
            .chat_template("auto")
            .map(|found| found.source().to_owned())
    };
    config(r#"{"chat_template": "one"}"#);
    assert_eq!(source().unwrap(), "one");
    config(r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]}"#);
    assert_eq!(source().unwrap(), "two");
    std::fs::write(folder.path().join("chat_template.jinja"), "three").unwrap();
    assert_eq!(source().unwrap(), "three");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is supervised decodes to exactly the answers, whatever characters they are made of.
    #[test]
    fn masks_give_the_answers_back(turns in prop::collection::vec(("[a-z é🙂医ा\\n]{1,12}", "[a-z é🙂医ा\\n]{0,12}x"), 1..4)) {
        let tokenizer = tokenizer();
        let conversations = checked(interlingua_data::template::builtin("chatml").unwrap());
        let chat: Vec<Message> = turns
            .iter()
            .flat_map(|(question, answer)| [Message::new("user", question.as_str()), Message::new("assistant", answer.as_str())])
            .collect();
        let (text, ranges) = conversations.render(&tokenizer, &chat, None, 0).unwrap();
        let encoded = tokenizer.encode_with_spans(&text, false).unwrap();
        let labels = labels(&encoded, &ranges);
        let shown = pieces(&tokenizer, &encoded.ids, &labels).unwrap();
        prop_assert_eq!(shown.iter().map(|(piece, _)| piece.as_str()).collect::<String>(), text);
        let spoken: Vec<&str> = shown.iter().filter(|(_, supervised)| *supervised).map(|(piece, _)| piece.as_str()).collect();
        let wanted: Vec<String> = turns.iter().map(|(_, answer)| format!("{answer}<|im_end|>")).collect();
        prop_assert_eq!(spoken, wanted);
    }
}
