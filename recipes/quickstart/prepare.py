"""Makes the data of the quickstart from public data sets: the task (request -> intent and slots as JSON) and the text of the tiny base.

  python3 prepare.py SOURCE [--out FOLDER]

SOURCE holds the rows of the original data as JSON lines with `pid`, `lang` and the fields named below (LICENSES.md says where they come from):
  sft/xsid_intent_slots.jsonl       input, output = {"intent": ..., "slots": {kind: [words as in the request, ...]}}
  sft/home_assistant_intents.jsonl  input, output = {"intent": ..., "slots": {kind: value}}
  sft/tldr_commands.jsonl           instruction
  sft/iot_lessons.jsonl             output
  align/udhr.jsonl, mono/common_voice_sentences.jsonl   text

Nothing but the standard library; the same input gives the same bytes. Rows of one meaning in different languages (one `pid`), and meanings that share
a request in any language, are on one side: train or eval. No eval row is in any other file, in any language or form.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

LANGUAGES = ("en", "de", "nl", "it", "id", "tr", "kk", "ar", "ja", "zh-Hans")
# The kinds of request that a tiny model can learn; their slots, and the short names used here. Kinds of slot not named are left out.
INTENTS = ("alarm/", "reminder/", "weather/")
SLOTS = {"datetime": "when", "recurring_datetime": "when", "location": "where", "reminder/todo": "what",
         "weather/attribute": "weather", "condition_description": "weather", "condition_temperature": "weather"}
HOME_SLOTS = {"name": "name", "area": "where", "item": "what"}
EVAL_SHARE = 0.26
SWAPPED_COPIES = 6
MARKED_COPIES = 3
REPEATS = 700
RECORDS = 400
RECORD_KEYS = ("title", "author", "city", "date", "price", "color", "size", "team", "topic", "note", "unit/name", "unit/code", "shop/item", "shop/open_until")
TEXT_BYTES = {"tldr_commands": 24_000, "iot_lessons": 16_000}

Span = tuple[int, int, str]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def rank(*key: str) -> str:
    """A fixed pseudo-random order of things by name."""
    return hashlib.sha256("\t".join(("interlingua quickstart", *key)).encode()).hexdigest()


def tidy(text: str, lang: str) -> str:
    """Undoes tokenisation: no space before punctuation, none between Chinese characters."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([.,?!؟،。？！])", r"\1", text)
    if lang == "zh-Hans":
        wide = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"
        text = re.sub(rf"(?<=[{wide}]) | (?=[{wide}])", "", text)
    return text


def same_request(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def find_spans(request: str, values: list[tuple[str, str]]) -> list[Span] | None:
    """(start, end, kind) of each value in the request, in order; None when one is not there or two overlap."""
    spans = []
    for kind, value in values:
        found = re.search(re.escape(value), request, re.IGNORECASE)
        if not value or found is None:
            return None
        spans.append((found.start(), found.end(), kind))
    spans.sort()
    if any(a[1] > b[0] for a, b in zip(spans, spans[1:])):
        return None
    joined: list[Span] = []
    for start, end, kind in spans:  # "Urbank", "California": one place when nothing but space or a comma is between
        if joined and joined[-1][2] == kind and request[joined[-1][1] : start].strip(" ,") == "":
            joined[-1] = (joined[-1][0], end, kind)
        else:
            joined.append((start, end, kind))
    kinds = [kind for _, _, kind in joined]
    return joined if len(set(kinds)) == len(kinds) else None


def requests_of(source: Path) -> list[dict]:
    """xSID rows of the chosen kinds: pid, lang, request, intent, spans."""
    rows = []
    for row in read(source / "sft/xsid_intent_slots.jsonl"):
        label = json.loads(row["output"])
        if row["lang"] not in LANGUAGES or not label["intent"].startswith(INTENTS):
            continue
        request = tidy(row["input"], row["lang"])
        values = [(SLOTS[kind], tidy(value, row["lang"])) for kind, found in label["slots"].items() if kind in SLOTS for value in found]
        spans = find_spans(request, values)
        if spans is not None:
            rows.append({"pid": row["pid"], "lang": row["lang"], "request": request, "intent": label["intent"], "spans": spans})
    return rows


def home_requests_of(source: Path) -> list[dict]:
    """Home Assistant rows whose slots are words of the request; intents that occur often enough to be learnt."""
    rows = []
    for row in read(source / "sft/home_assistant_intents.jsonl"):
        label = json.loads(row["output"])
        slots = {kind: value for kind, value in label["slots"].items() if kind != "domain"}
        if row["lang"] not in LANGUAGES or not all(kind in HOME_SLOTS and isinstance(value, str) for kind, value in slots.items()):
            continue
        request = tidy(row["input"], row["lang"])
        spans = find_spans(request, [(HOME_SLOTS[kind], value) for kind, value in slots.items()])
        if spans is not None:
            intent = "home/" + re.sub(r"(?<!^)(?=[A-Z])", "_", label["intent"].removeprefix("Hass")).lower()
            rows.append({"pid": row["pid"], "lang": row["lang"], "request": request, "intent": intent, "spans": spans})
    common = Counter(row["intent"] for row in rows)
    return [row for row in rows if common[row["intent"]] >= 8]


def meanings(rows: list[dict]) -> dict[str, str]:
    """pid -> the name of its cluster: pids that share a request in any language are one cluster."""
    parent: dict[str, str] = {}

    def root(pid):
        parent.setdefault(pid, pid)
        while parent[pid] != pid:
            pid = parent[pid]
        return pid

    first: dict[str, str] = {}
    for row in rows:
        key = same_request(row["request"])
        a, b = root(row["pid"]), root(first.setdefault(key, row["pid"]))
        parent[max(a, b)] = min(a, b)
    return {pid: root(pid) for pid in list(parent)}


def held_out(rows: list[dict], cluster: dict[str, str]) -> set[str]:
    """The clusters kept for evaluation: the same share of every intent, and none of an intent with fewer than three clusters."""
    by_intent = defaultdict(set)
    for row in rows:
        by_intent[row["intent"]].add(cluster[row["pid"]])
    kept: set[str] = set()
    for intent in sorted(by_intent):
        names = sorted(by_intent[intent], key=lambda name: rank("split", name))
        if len(names) >= 3:
            kept.update(names[: max(1, round(EVAL_SHARE * len(names)))])
    return kept


def answer(row: dict) -> str:
    """{"intent": ..., "when": ...}: the slots follow in the order of the request."""
    return json.dumps({"intent": row["intent"], **{kind: row["request"][a:b] for a, b, kind in row["spans"]}}, ensure_ascii=False)


def task_row(row: dict) -> dict:
    return {"id": row["pid"], "lang": row["lang"], "instruction": row["request"], "output": answer(row)}


def with_values(row: dict, values: list[str]) -> dict:
    """The row with other words in its slots."""
    request, spans, last = "", [], 0
    for (start, end, kind), value in zip(row["spans"], values):
        request += row["request"][last:start]
        spans.append((len(request), len(request) + len(value), kind))
        request += value
        last = end
    return {**row, "request": request + row["request"][last:], "spans": spans}


def swapped(rows: list[dict], phrases: dict[str, list[str]]) -> list[dict]:
    """Each row again with other words in its slots: of the same kind and language from other rows, and any words of the language.

    The first teach what a slot looks like, the second that its words are to be copied, whatever they are.
    """
    pool = defaultdict(list)
    for row in rows:
        for start, end, kind in row["spans"]:
            pool[row["lang"], kind].append(row["request"][start:end])
    pool = {key: sorted(set(values)) for key, values in pool.items()}
    out, seen = [], {(row["lang"], same_request(row["request"])) for row in rows}
    for index, row in enumerate(rows):
        chooser = random.Random(rank("swap", str(index), row["lang"], row["request"]))
        for copy in range(SWAPPED_COPIES if row["spans"] else 0):
            values = [pool[row["lang"], kind] if copy % 2 == 0 else phrases[row["lang"]] for _, _, kind in row["spans"]]
            new = with_values(row, [chooser.choice(known) for known in values])
            key = (row["lang"], same_request(new["request"]))
            if key not in seen:
                seen.add(key)
                out.append(new)
    return out


def marked(row: dict) -> str:
    """The request with its slots in brackets: set an alarm for [when 6 am]"""
    text, last = "", 0
    for start, end, kind in row["spans"]:
        text += f"{row['request'][last:start]}[{kind} {row['request'][start:end]}]"
        last = end
    return text + row["request"][last:]


def phrases_of(text: list[dict]) -> dict[str, list[str]]:
    """Stretches of one to three words (or two to six characters where words are not spaced) of the plain text, by language."""
    found = defaultdict(set)
    for row in text:
        chooser = random.Random(rank("phrase", row["lang"], row["text"]))
        spaced = row["lang"] not in ("ja", "zh-Hans")
        units = re.findall(r"[^\W_]+", row["text"]) if spaced else list(re.sub(r"[\W_]+", "", row["text"]))
        for _ in range(min(6, len(units) // 4)):
            length = chooser.randint(1, 3) if spaced else chooser.randint(2, 6)
            start = chooser.randrange(max(1, len(units) - length))
            found[row["lang"]].add((" " if spaced else "").join(units[start : start + length]))
    return {lang: sorted(phrases) for lang, phrases in found.items()}


def base_tasks(rows: list[dict], phrases: dict[str, list[str]]) -> list[dict]:
    """What the base learns besides plain text: to repeat what was said, to write a record as JSON, and to put brackets around the slots of a request.

    What is copied is drawn at random from the plain text, so that it cannot be learnt by heart. No request with its JSON, and no intent.
    """
    out = []
    for row in rows:
        chooser = random.Random(rank("mark", row["pid"], row["lang"], row["request"]))
        variants = [row] + [with_values(row, [chooser.choice(phrases[row["lang"]]) for _ in row["spans"]]) for _ in range(MARKED_COPIES if row["spans"] else 0)]
        out += [{"lang": row["lang"], "instruction": f"[]: {variant['request']}", "output": marked(variant)} for variant in variants]
    for lang, known in sorted(phrases.items()):
        chooser = random.Random(rank("copy", lang))
        for _ in range(REPEATS):
            said = ("" if lang in ("ja", "zh-Hans") else " ").join(chooser.choice(known) for _ in range(chooser.randint(2, 8)))
            out.append({"lang": lang, "instruction": f"=: {said}", "output": said})
        for _ in range(RECORDS):
            record = {chooser.choice(RECORD_KEYS): chooser.choice(known) for _ in range(chooser.randint(1, 4))}
            said = "; ".join(f"{key} {value}" for key, value in record.items())
            out.append({"lang": lang, "instruction": f"{{}}: {said}", "output": json.dumps(record, ensure_ascii=False)})
    return sorted(out, key=lambda row: rank("task", row["instruction"], row["output"]))


def plain_text(source: Path, keep, home: list[dict], requests: list[dict]) -> list[dict]:
    """Short texts in the ten languages; `keep` says whether a request may be used."""
    out = [{"lang": r["lang"], "text": r["request"]} for r in [*requests, *home]]
    for row in read(source / "sft/xsid_intent_slots.jsonl"):
        text = tidy(row["input"], row["lang"])
        if row["lang"] in LANGUAGES and keep(row["pid"], text):
            out.append({"lang": row["lang"], "text": text})
    for name, column in (("tldr_commands", "instruction"), ("iot_lessons", "output")):
        size = Counter()
        for row in sorted(read(source / f"sft/{name}.jsonl"), key=lambda row: rank(name, row["pid"])):
            text = re.sub(r"\s+", " ", re.sub(r"https?://\S+|[`*#<>|]", "", row[column])).strip()[:700]
            if row["lang"] in LANGUAGES and size[row["lang"]] < TEXT_BYTES[name] and len(text) > 12:
                size[row["lang"]] += len(text.encode())
                out.append({"lang": row["lang"], "text": text})
    for name in ("align/udhr", "mono/common_voice_sentences"):
        out += [{"lang": row["lang"], "text": re.sub(r"\s+", " ", row["text"])[:700]} for row in read(source / f"{name}.jsonl") if row["lang"] in LANGUAGES]
    unique = {(row["lang"], row["text"]): row for row in out if keep("", row["text"])}
    return sorted(unique.values(), key=lambda row: rank("text", row["lang"], row["text"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    arguments = parser.parse_args()

    rows = requests_of(arguments.source)
    cluster = meanings(rows)
    kept = held_out(rows, cluster)
    evaluation = [row for row in rows if cluster[row["pid"]] in kept]
    eval_requests = {same_request(row["request"]) for row in evaluation}
    eval_pids = {row["pid"] for row in evaluation}
    # Rows of an eval meaning in every language and dialect stay out, also those that `requests_of` leaves out.
    train = [row for row in rows if row["pid"] not in eval_pids]
    home = [row for row in home_requests_of(arguments.source) if same_request(row["request"]) not in eval_requests]
    text = plain_text(arguments.source, lambda pid, text: pid not in eval_pids and same_request(text) not in eval_requests, home, train)
    phrases = phrases_of(text)
    extra = [row for row in swapped([*train, *home], phrases) if same_request(row["request"]) not in eval_requests]

    def order(row):
        return rank("order", row["pid"], row["lang"], row["request"])

    evaluation = sorted({(row["lang"], same_request(row["request"])): row for row in sorted(evaluation, key=order)}.values(), key=order)
    write(arguments.out / "train.jsonl", [task_row(row) for row in sorted([*train, *home], key=order)])
    write(arguments.out / "swapped.jsonl", [task_row(row) for row in sorted(extra, key=order)])
    write(arguments.out / "eval.jsonl", [task_row(row) for row in evaluation])
    write(arguments.out / "pretraining/text.jsonl", text)
    write(arguments.out / "pretraining/tasks.jsonl", base_tasks([*train, *home], phrases))


if __name__ == "__main__":
    main()
