"""Makes the data of the alignment experiment from public data sets; LICENSES.md names them and their commits.

  python3 prepare.py NTREX XSID FLORES [--out FOLDER]

NTREX   a clone of github.com/MicrosoftTranslator/NTREX
XSID    a clone of github.com/mainlp/xsid
FLORES  rows of the devtest of FLORES-200 as JSON lines {pid, lang, text}

Nothing but the standard library; the same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

# Language -> its file in NTREX and in xSID.
LANGUAGES = {
    "en": ("src.eng", "en"), "de": ("ref.deu", "de"), "it": ("ref.ita", "it"),
    "nl": ("ref.nld", "nl"), "id": ("ref.ind", "id"), "tr": ("ref.tur", "tr"), "ar": ("ref.arb", "ar"), "zh-Hans": ("ref.zho-CN", "zh"),
    "da": ("ref.dan", "da"), "kk": ("ref.kaz", "kk"), "lt": ("ref.lit", "lt"),
}
# Intents as the model says them. Those that xSID has fewer requests of are left out.
INTENTS = {
    "weather/find": "weather", "alarm/set_alarm": "alarm", "reminder/set_reminder": "reminder", "AddToPlaylist": "playlist", "PlayMusic": "music",
    "BookRestaurant": "restaurant", "RateBook": "rating", "SearchCreativeWork": "search", "SearchScreeningEvent": "cinema",
}
SENTENCES = 1200  # of NTREX
LONGEST = (150, 230)  # characters of an English sentence, and of a translation
TRAIN_PER_INTENT = 50
TEST_PER_INTENT = 16


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def rank(*key: str) -> str:
    """A fixed pseudo-random order of things by name."""
    return hashlib.sha256("\t".join(("interlingua alignment", *key)).encode()).hexdigest()


def tidy(text: str, lang: str) -> str:
    """Undoes tokenisation: no space before punctuation, none between Chinese characters."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([.,?!؟،。？！])", r"\1", text)
    if lang == "zh-Hans":
        wide = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"
        text = re.sub(rf"(?<=[{wide}]) | (?=[{wide}])", "", text)
    return text


def sentences(ntrex: Path) -> dict[str, list[str]]:
    """Sentences that are not too long in any language, in the order of the source; line N says the same in each language."""
    columns = {}
    for lang, (name, _) in LANGUAGES.items():
        lines = (ntrex / f"NTREX-128/newstest2019-{name}.txt").read_text(encoding="utf-8-sig").split("\n")
        columns[lang] = [re.sub(r"\s+", " ", line).strip() for line in lines]
    fit = [
        index for index, english in enumerate(columns["en"])
        if 25 <= len(english) <= LONGEST[0] and all(4 <= len(columns[lang][index]) <= LONGEST[1] for lang in LANGUAGES)
    ]
    kept = sorted(sorted(fit, key=lambda index: rank("sentence", columns["en"][index]))[:SENTENCES])
    return {lang: [lines[index] for index in kept] for lang, lines in columns.items()}


def requests(xsid: Path, part: str, lang: str) -> list[tuple[str, str]]:
    """(text, intent) of each request, in the order of the file, which is the same in all languages."""
    text = (xsid / f"data/xSID-0.7/{LANGUAGES[lang][1]}.{part}.conll").read_text(encoding="utf-8")
    found = re.findall(r"^# text ?[=:] ?(.*)\n(?:#.*\n)*?# intent ?[=:] ?(.*)$", text, re.MULTILINE)
    return [(tidy(request, lang), intent.strip()) for request, intent in found]


def same(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def choose(xsid: Path) -> tuple[list[dict], list[dict]]:
    """(rows to train on, rows to test on), each request in all languages. The test has requests of xSID's own test part; the rest of both parts is
    for training, but for what says the same as a test request in any language."""
    columns = {
        lang: [(f"{part}/{number}", *request) for part in ("valid", "test") for number, request in enumerate(requests(xsid, part, lang), 1)]
        for lang in LANGUAGES
    }
    english = columns["en"]
    assert all([row[0] for row in column] == [row[0] for row in english] for column in columns.values())
    count: Counter[tuple[bool, str]] = Counter()
    seen: set[tuple[str, str]] = set()
    chosen: dict[bool, list[dict]] = {True: [], False: []}
    for test in (True, False):
        for index in sorted(range(len(english)), key=lambda index: rank(*english[index])):
            name, request, intent = english[index]
            keys = [(lang, same(column[index][1])) for lang, column in columns.items()]
            full = count[test, intent] == (TEST_PER_INTENT if test else TRAIN_PER_INTENT)
            if intent not in INTENTS or full or (test and not name.startswith("test")) or any(key in seen for key in keys):
                continue
            seen.update(keys)
            count[test, intent] += 1
            wrong = min(set(INTENTS) - {intent}, key=lambda other: rank("wrong", request, other))
            for lang, column in columns.items():
                text, right = column[index][1], INTENTS[intent]
                chosen[test].append(
                    {"id": name, "lang": lang, "question": text, "answer": right}
                    if test
                    else {"id": name, "lang": lang, "prompt": f"{text}\n", "completion": right, "rejected": INTENTS[wrong]}
                )
    return chosen[False], chosen[True]


def dump(rows: list[dict]) -> list[str]:
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ntrex", type=Path)
    parser.add_argument("xsid", type=Path)
    parser.add_argument("flores", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "data")
    arguments = parser.parse_args()

    for lang, lines in sentences(arguments.ntrex).items():
        write(arguments.out / f"news.{lang}.txt", lines)
    train, test = choose(arguments.xsid)
    write(arguments.out / "requests.jsonl", dump(train))
    write(arguments.out / "requests.test.jsonl", dump(test))
    rows = [json.loads(line) for line in arguments.flores.read_text(encoding="utf-8").splitlines()]
    rows = [{"id": row["pid"], "lang": row["lang"], "text": row["text"]} for row in rows if row["lang"] in LANGUAGES]
    write(arguments.out / "flores.jsonl", dump(sorted(rows, key=lambda row: (row["id"], list(LANGUAGES).index(row["lang"])))))


if __name__ == "__main__":
    main()
