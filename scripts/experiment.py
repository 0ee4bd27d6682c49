#!/usr/bin/env python3
"""Repeats the experiment of docs/experiments.md and writes its tables: trains the base, then each arm with three seeds, and measures them.

  python3 scripts/experiment.py [--binary PROGRAM] [--out FOLDER]

What is finished is passed over, and what was interrupted goes on, when the same command is given again. The tables go to the screen and
to FOLDER/results.md. Nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes/experiments/alignment"
SEEDS = (1, 2, 3)
CHANCE = 1 / 9  # nine intents, as many requests of each

# Each comparison: its two arms, the one that is compared with first, each with its recipe and settings; and the tasks that it is measured by, each
# with what its languages have in common. English is in every task, to compare with.
COMPARISONS = {
    "Middle-layer alignment": (
        {"none": ("task.toml", []), "alignment": ("align.toml", [])},
        {"intents-task": "task and alignment", "intents-aligned": "alignment only", "intents-unseen": "neither"},
    ),
    "Batch-wise groups": (
        {"shuffled": ("groups.toml", ["data.parallel.arrangement=shuffled"]), "groups": ("groups.toml", [])},
        {"intents-seen": "in the groups", "intents-unseen": "not in them"},
    ),
}


def run(binary: str, *arguments: str | Path, keep: Path | None = None) -> None:
    """Runs the program; `keep` takes what it says, once it has said everything."""
    command = [binary, *map(str, arguments)]
    ran = subprocess.run(command, stdout=subprocess.PIPE if keep else None)
    if ran.returncode != 0:
        sys.exit(f"`{' '.join(command)}` ended with {ran.returncode}. Give the same command again to go on.")
    if keep:
        keep.write_bytes(ran.stdout)


def measure(binary: str, folder: Path) -> None:
    if not (folder / "evaluation.json").exists():
        run(binary, "--json", "eval", "--model", folder / "model", "--tasks", RECIPES / "tasks.toml", keep=folder / "evaluation.json")


def train(binary: str, out: Path) -> None:
    """The base, and a sweep over the seeds for each arm."""
    base = out / "base"
    run(binary, "train", RECIPES / "base.toml", "--set", f"output={base}")
    measure(binary, base)
    for arms, _ in COMPARISONS.values():
        for arm, (recipe, settings) in arms.items():
            settings = [f"output={out / arm}", f"model.path={base / 'model'}", *settings]
            seeds = ",".join(map(str, SEEDS))
            run(binary, "sweep", RECIPES / recipe, "--grid", f"seed={seeds}", *(part for setting in settings for part in ("--set", setting)))
            for seed in SEEDS:
                measure(binary, out / arm / f"sweep/seed={seed}")


def evaluation(folder: Path) -> dict[str, dict]:
    return {row["task"]: row for row in json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["tasks"]}


def seconds(folder: Path) -> float:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max(json.loads(line)["time"] for line in lines)


def others(row: dict) -> list[str]:
    return [lang for lang in row["by_language"] if lang != "en"]


def english(row: dict) -> float:
    return row["by_language"]["en"]["accuracy"]


def accuracy(row: dict) -> float:
    """Mean over the languages but English."""
    return statistics.mean(row["by_language"][lang]["accuracy"] for lang in others(row))


def retrieval(row: dict, metric: str, languages: list[str]) -> list[float]:
    """At each layer the mean over the languages and both directions with English."""
    series = [values for name, values in row["layers"][metric].items() if "→" in name and set(name.split("→")) - {"en"} <= set(languages)]
    return [statistics.mean(layer) for layer in zip(*series)]


def above_chance(row: dict) -> bool:
    """Whether the lower ends of the languages' 95 % intervals are above chance, on average."""
    return statistics.mean(row["intervals"][lang]["accuracy"][0] for lang in others(row)) > CHANCE


def spread(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation over seeds, in percent."""
    return f"{100 * statistics.mean(values):{sign}.1f} ± {100 * statistics.stdev(values):.1f}"


def table(head: list[str], body: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body]) + "\n"


def compare(out: Path, title: str) -> str:
    arms, tasks = COMPARISONS[title]
    base = evaluation(out / "base")
    folders = {arm: [out / arm / f"sweep/seed={seed}" for seed in SEEDS] for arm in arms}
    measured = {arm: [evaluation(folder) for folder in of_arm] for arm, of_arm in folders.items()}

    def cells(number, with_base: bool = True) -> list[str]:
        """A number of the base, of both arms, and the difference seed by seed."""
        plain, treated = ([number(tasks) for tasks in of_arm] for of_arm in measured.values())
        before = f"{100 * number(base):.1f}" if with_base else ""
        return [before, spread(plain), spread(treated), spread([b - a for a, b in zip(plain, treated)], "+")]

    def of(task: str, number):
        return lambda measured: number(measured[task])

    layers = len(retrieval(base["flores"], "retrieval_cosine", others(base["flores"])))
    quality = [["intent accuracy", "English", *cells(of(next(iter(tasks)), english))]]
    by_layer = []
    for task, what in tasks.items():
        languages = others(base[task])
        where = f"{what}: {', '.join(languages)}"
        quality.append(["intent accuracy", where, *cells(of(task, accuracy))])
        quality.append(["behind English", where, *cells(of(task, lambda row: english(row) - accuracy(row)))])
        if all(above_chance(tasks[task]) for of_arm in measured.values() for tasks in of_arm):
            # The base answers all alike, which is no consistency worth the name.
            quality.append(["C3", where, *cells(of(task, lambda row: row["consistency_by_size"]["3"]), above_chance(base[task]))])
            quality.append(["AC3", where, *cells(of(task, lambda row: row["ac3_by_size"]["3"]), above_chance(base[task]))])
            quality.append(["MLC", where, *cells(of(task, lambda row: row["mlc"]), above_chance(base[task]))])
        for metric, name in (("retrieval_cosine", "cosine"), ("retrieval_margin", "margin")):
            middle = cells(of("flores", lambda row: retrieval(row, metric, languages)[(layers - 1) // 2]))
            quality.append([f"retrieval, middle layer, {name}", where, *middle])
            by_layer.append([where, name, "base", *(f"{100 * value:.1f}" for value in retrieval(base["flores"], metric, languages))])
            for arm, of_arm in measured.items():
                values = zip(*(retrieval(tasks["flores"], metric, languages) for tasks in of_arm))
                by_layer.append([where, name, arm, *(spread(list(layer)) for layer in values)])
    head = ["base", *arms, "difference"]
    minutes = [seconds(folder) / 60 for of_arm in folders.values() for folder in of_arm]
    return (
        f"## {title}\n\n{table(['%', 'languages', *head], quality)}\nRetrieval on FLORES at each layer, %:\n\n"
        f"{table(['languages', 'by', 'after', *map(str, range(layers))], by_layer)}\nMinutes of a run: {min(minutes):.1f} to {max(minutes):.1f}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="interlingua", help="the program, where it is not on the path")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/experiments/alignment", help="where the runs go")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    train(arguments.binary, out)
    text = "\n".join(compare(out, title) for title in COMPARISONS)
    (out / "results.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
