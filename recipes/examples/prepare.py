#!/usr/bin/env python3
"""Makes the example data of the shipped recipes from extracts of public data sets.

  python3 prepare.py SOURCE [--out FOLDER]

SOURCE holds the rows of the original data as JSON lines with `pid`, `lang` and the fields named below (LICENSES.md says where they come from).
Rows with one `pid` say the same thing in different languages.
  sft/iot_lessons.jsonl, sft/semver_faq.jsonl, sft/conventional_commits_faq.jsonl, sft/self_instruct_seeds.jsonl   instruction, input, output
  sft/js_quiz.jsonl                 instruction, choices = [text, ...], answer = index of the right one
  align/tico19.jsonl, align/udhr.jsonl, mono/common_voice_sentences.jsonl   text
  align/cldr_emoji_names.jsonl      text, the name of the emoji that `pid` stands for

`commit-questions.jsonl`, `human-rights.jsonl` and `replay.en.jsonl` are older and not made here. Nothing but the standard library; the same
input gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections import defaultdict
from pathlib import Path

LESSON_LANGUAGES = ("en", "ar", "cs", "es", "et", "fi", "he", "hi", "it", "ru", "sw", "vi", "zh-Hans")
LESSON_BYTES = 12_000  # of one lesson in all its languages
PROMPT_LANGUAGES = ("en", "zh-Hans", "ja", "ko", "ar", "bn", "sw")
ARABIC_CHARACTERS = 1000  # of one answer
QUESTION_LANGUAGES = ("en", "es", "ja", "ko", "nl", "ro", "zh-Hans")
LANGUAGE_NAMES = {"en": "English", "es": "Spanish", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "ro": "Romanian", "zh-Hans": "Chinese"}
QUIZ_LANGUAGES = ("en", "de", "es", "it", "ko", "ru", "zh-Hans")
QUIZ_GROUPS = 48
HEALTH_LANGUAGES = ("en", "ar", "hi", "id", "sw", "zh-Hans")
WORD_LANGUAGES = ("de", "es", "hi", "ru", "tr")
WORD_ROWS = 48
WORDS_PER_ROW = 5
URALIC_LANGUAGES = ("et", "fi", "hu", "koi", "krl", "ru", "se", "smn", "sms", "vep", "vot")
URALIC_ROWS = 220  # of one source in one language
INSTRUCTIONS = 90

Row = dict[str, object]
Groups = dict[str, dict[str, dict]]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def groups(path: Path) -> Groups:
    """pid -> language -> row."""
    found: Groups = defaultdict(dict)
    for row in read(path):
        found[row["pid"]][row["lang"]] = row
    return found


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def rank(*key: str) -> str:
    """A fixed pseudo-random order of things by name."""
    return hashlib.sha256("\t".join(("interlingua examples", *key)).encode()).hexdigest()


def prose(text: str) -> str:
    """Without the lines that describe pictures."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"(?m)^!.*$", "", text)).strip()


def lessons(source: Path) -> list[Row]:
    """Sections of lessons: the heading and the lesson's title are the instruction, the section is the answer. The shorter ones."""
    out = []
    for pid, versions in sorted(groups(source / "sft/iot_lessons.jsonl").items()):
        if not all(language in versions for language in LESSON_LANGUAGES):
            continue
        rows = [
            {"id": pid, "lang": language, "instruction": row["instruction"], "input": row["input"], "output": prose(row["output"])}
            for language in LESSON_LANGUAGES
            for row in [versions[language]]
        ]
        if sum(len(json.dumps(row, ensure_ascii=False).encode()) for row in rows) <= LESSON_BYTES and all(row["output"] for row in rows):
            out += rows
    return out


def prompts(source: Path) -> list[Row]:
    """The instructions of all lessons, without answers, as conversations of one message."""
    out = []
    for pid, versions in sorted(groups(source / "sft/iot_lessons.jsonl").items()):
        if all(language in versions for language in PROMPT_LANGUAGES):
            for language in PROMPT_LANGUAGES:
                content = f"{versions[language]['instruction']}\n\n{versions[language]['input']}"
                out.append({"id": pid, "lang": language, "messages": [{"role": "user", "content": content}]})
    return out


def questions(source: Path) -> list[Row]:
    """Frequently asked questions with their answers."""
    out = []
    for name in ("conventional_commits_faq", "semver_faq"):
        for pid, versions in sorted(groups(source / f"sft/{name}.jsonl").items()):
            for language in QUESTION_LANGUAGES:
                row = versions[language]
                out.append({"id": pid, "lang": language, "instruction": row["instruction"], "output": row["output"]})
    return out


def arabic(source: Path) -> list[Row]:
    """Questions and answers in Arabic, the shorter ones."""
    out = []
    for name in ("iot_lessons", "conventional_commits_faq"):
        for row in read(source / f"sft/{name}.jsonl"):
            output = prose(row["output"])
            if row["lang"] == "ar" and 0 < len(output) <= ARABIC_CHARACTERS:
                instruction = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
                out.append({"id": row["pid"], "lang": "ar", "instruction": instruction, "output": output})
    return out


def answers_in_other_languages(asked: list[Row]) -> list[Row]:
    """Preferences whose answers are in another language than the prompt. Rejected are in turn the answer to another question, in the
    wanted language, and the right answer in the language of the prompt."""
    answers = {(row["id"], row["lang"]): row["output"] for row in asked}
    names = sorted({row["id"] for row in asked})
    out = []
    for index, row in enumerate(asked):
        chooser = random.Random(rank("answer", row["id"], row["lang"]))
        for target in chooser.sample([language for language in QUESTION_LANGUAGES if language != row["lang"]], 2):
            if len(out) % 2 == 0:
                other = chooser.choice([name for name in names if name != row["id"]])
                rejected, rejected_language = answers[other, target], target
            else:
                rejected, rejected_language = row["output"], row["lang"]
            out.append({
                "id": row["id"], "lang": row["lang"], "chosen_lang": target, "rejected_lang": rejected_language,
                "prompt": [{"role": "user", "content": f"{row['instruction']}\nAnswer in {LANGUAGE_NAMES[target]}."}],
                "chosen": [{"role": "assistant", "content": answers[row["id"], target]}],
                "rejected": [{"role": "assistant", "content": rejected}],
            })
    return sorted(out, key=lambda row: rank("order", row["id"], row["lang"], row["chosen_lang"]))


def quiz(source: Path) -> list[Row]:
    """Preferences that are translations of one another: chosen is the right option of a multiple-choice question, rejected a wrong one,
    the same in all languages."""
    complete = []
    for pid, versions in groups(source / "sft/js_quiz.jsonl").items():
        rows = [versions.get(language) for language in QUIZ_LANGUAGES]
        if all(row and row.get("choices") for row in rows) and len({(len(row["choices"]), row["answer"]) for row in rows}) == 1:
            complete.append((sum(len(row["instruction"].encode()) for row in rows), pid, rows))
    out = []
    for _, pid, rows in sorted(sorted(complete)[:QUIZ_GROUPS], key=lambda group: group[1]):
        right = rows[0]["answer"]
        wrong = random.Random(rank("wrong", pid)).choice([option for option in range(len(rows[0]["choices"])) if option != right])
        for row in rows:
            options = [f"{chr(65 + number)}: {text}" for number, text in enumerate(row["choices"])]
            out.append({
                "id": pid, "lang": row["lang"],
                "prompt": [{"role": "user", "content": "\n".join([row["instruction"], "", *options])}],
                "chosen": [{"role": "assistant", "content": options[right]}],
                "rejected": [{"role": "assistant", "content": options[wrong]}],
            })
    return out


def health(source: Path) -> list[Row]:
    """Sentences about a pandemic and their translations."""
    found = sorted(groups(source / "align/tico19.jsonl").items())
    return [{"id": pid, "lang": language, "text": versions[language]["text"]} for pid, versions in found for language in HEALTH_LANGUAGES]


def aligned_words(source: Path) -> list[Row]:
    """Lists of names of emoji, in two languages in one order. Only names of one word in both languages are used, so that the N-th words
    name the same emoji: the alignment is known and not guessed."""
    named = groups(source / "align/cldr_emoji_names.jsonl")
    out = []
    for language in WORD_LANGUAGES:
        pairs = [(versions[language]["text"], versions["en"]["text"]) for _, versions in sorted(named.items()) if language in versions]
        pairs = [pair for pair in pairs if not any(re.search(r"[\s:-]", name) for name in pair) and pair[0].casefold() != pair[1].casefold()]
        chooser = random.Random(rank("words", language))
        for number in range(WORD_ROWS):
            chosen = chooser.sample(pairs, WORDS_PER_ROW)
            out.append({
                "id": f"emoji/{language}/{number}", "src_lang": language, "tgt_lang": "en",
                "src": " ".join(name for name, _ in chosen), "tgt": " ".join(name for _, name in chosen),
                "alignment": " ".join(f"{word}-{word}" for word in range(WORDS_PER_ROW)),
            })
    return out


def uralic(source: Path) -> list[Row]:
    """Plain text in Uralic languages and Russian, of very different amounts."""
    out = []
    for path, column in (("align/udhr", "text"), ("mono/common_voice_sentences", "text"), ("sft/iot_lessons", "output")):
        found = defaultdict(list)
        for row in read(source / f"{path}.jsonl"):
            text = re.sub(r"\s+", " ", prose(row[column]))
            if row["lang"] in URALIC_LANGUAGES and 0 < len(text) <= 700:
                found[row["lang"]].append({"lang": row["lang"], "text": text})
        for language in sorted(found):
            rows = sorted(found[language], key=lambda row: rank(path, row["text"]))
            out += rows[:URALIC_ROWS]
    return out


def instructions(source: Path) -> list[Row]:
    """English instructions and answers of many kinds, the shorter ones."""
    rows = [row for row in read(source / "sft/self_instruct_seeds.jsonl") if row["lang"] == "en" and len(row["input"]) + len(row["output"]) < 600]
    rows = sorted(rows, key=lambda row: rank("instruction", row["pid"]))[:INSTRUCTIONS]
    return [{"id": row["pid"], "lang": "en", "instruction": row["instruction"], "input": row["input"], "output": row["output"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    arguments = parser.parse_args()
    source, out = arguments.source, arguments.out

    asked = questions(source)
    write(out / "lessons.jsonl", lessons(source))
    write(out / "prompts.jsonl", prompts(source))
    write(out / "questions.jsonl", asked)
    write(out / "arabic.jsonl", arabic(source))
    write(out / "answers-in-other-languages.jsonl", answers_in_other_languages(asked))
    write(out / "quiz.jsonl", quiz(source))
    write(out / "health.jsonl", health(source))
    write(out / "aligned-words.jsonl", aligned_words(source))
    write(out / "uralic.jsonl", uralic(source))
    write(out / "instructions.en.jsonl", instructions(source))


if __name__ == "__main__":
    main()
