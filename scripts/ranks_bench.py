#!/usr/bin/env python3
"""What several processes of one host cost and send, beside one process at the same global batch.

    scripts/ranks_bench.py target/release/interlingua --ranks 2

Trains a model of 30 million numbers with random weights for some steps: on one process with all cores, and on N ranks that share
them, under each strategy, LoRA and all weights. Prints for each the median time of a step, the bytes that each rank sends in a
step beside what docs/scaling.md says, the memory of a rank beside the plan, and the time from launch to the first step.

Bytes are those of the loopback interface, so MPI is told to use TCP (Open MPI); times are taken in a run of their own, with
shared memory. Needs a binary with the feature `mpi`, Open MPI, and nothing from Python but its library."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 8192,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu",
}
LORA = '[adapter]\nkind = "lora"\nrank = 16\ntargets = "all-linear"\n'


def recipe(folder, name, strategy, ranks, adapter, arguments):
    rows = arguments.rows // ranks
    path = folder / f"{name}.toml"
    path.write_text(
        f'output = "{name}"\n[model]\npath = "model"\ninit = "random"\ndevice = "cpu"\n{adapter}[data]\nmax_length = 256\n'
        f'packing = false\n[[data.sources]]\npath = "rows.jsonl"\nformat = "tokens"\n[train]\nsteps = {arguments.steps}\n'
        f"batch_size = {rows}\ngradient_accumulation = 1\ncheckpoint_every = 0\n[memory]\nrecompute = \"block\"\n[distributed]\nstrategy = \"{strategy}\"\n"
    )
    return path


def loopback():
    for line in pathlib.Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[8])
    raise SystemExit("there is no loopback interface")


def run(arguments, path, ranks, tcp):
    """Seconds until the first step, the rows of metrics, and the bytes over the loopback interface."""
    environment = dict(os.environ)
    if tcp:
        environment["OMPI_MCA_btl"] = "tcp,self"
    start, before = time.time(), loopback()
    command = [arguments.binary, "launch", "--nproc", str(ranks), str(path), "-q"] if ranks > 1 else [arguments.binary, "train", str(path), "-q"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}")
    sent = loopback() - before
    output = path.with_suffix("")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    plan = json.loads((output / "plan.json").read_text())
    started = time.time() - start - (steps[-1]["time"] - steps[0]["time"] + steps[0]["step_seconds"])
    return started, steps, plan, sent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8, help="rows of a step over all ranks")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    arguments.binary = str(pathlib.Path(arguments.binary).resolve())
    print("| trained | strategy | ranks | step, s | of one process | sent by a rank in a step, MB | memory of a rank, MiB | planned | start and end, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model").mkdir()
        (folder / "model/config.json").write_text(json.dumps(CONFIG))
        with open(folder / "rows.jsonl", "w") as file:
            for row in range(64):
                ids = [(row * 7919 + place * 104729) % 8192 for place in range(256)]
                file.write(json.dumps({"input_ids": ids}) + "\n")
        for trained, adapter in (("LoRA", LORA), ("all", "")):
            alone = None
            for strategy, ranks in (("ddp", 1), *((strategy, arguments.ranks) for strategy in ("ddp", "zero1", "zero3"))):
                label = f"{trained.lower()}-{strategy}-{ranks}"
                path = recipe(folder, label, strategy, ranks, adapter, arguments)
                started, steps, plan, _ = run(arguments, path, ranks, False)
                seconds = statistics.median(row["step_seconds"] for row in steps[1:])
                alone = alone or seconds
                sent = "0"
                if ranks > 1:
                    # What a run sends besides its steps cancels out in the difference of a long and a short one.
                    counts = []
                    for times in (1, 2):
                        own = recipe(folder, f"{label}-tcp-{times}", strategy, ranks, adapter, argparse.Namespace(rows=ranks, steps=4 * times))
                        counts.append(run(arguments, own, ranks, True)[3])
                    sent = f"{(counts[1] - counts[0]) / 4 / ranks / 1e6:.2f}"
                peak = max(row["memory_bytes"] for row in steps) / 2**20
                planned = (plan["device"]["total"] + plan["host"]["total"]) / 2**20
                print(
                    f"| {trained} | {strategy} | {ranks} | {seconds:.3f} | {seconds / alone:.2f} | {sent} | {peak:.0f} | {planned:.0f} | {started:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
