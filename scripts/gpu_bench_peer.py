#!/usr/bin/env python3
"""The other side of the benchmark in gpu-check.sh: PyTorch, Transformers and PEFT on the models that Interlingua trains.

    gpu_bench_peer.py make --shape qwen3-1.7b --method lora --out DIR --text FILE…   writes config.json, rows and a recipe
    gpu_bench_peer.py train --folder DIR --device cuda:0                             trains, prints one line of JSON

`make` needs Python alone. `train` needs torch, transformers and peft, and bitsandbytes for nf4. Weights are random on both sides, drawn
on the spot: only shapes matter for speed and memory. Rows hold the words of real texts, a token for each word or sign, so that their
lengths are those of texts; packed, both sides see the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import statistics
import sys
import time
from pathlib import Path

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False}
COMMON = {"hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1}

# The shapes are those of the models' own config.json; batch and length are what fits an 80 GB card without recomputing.
SHAPES = {
    "qwen3-1.7b": dict(
        config=QWEN3
        | COMMON
        | dict(
            vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rms_norm_eps=1e-6, rope_theta=1e6,
            tie_word_embeddings=True,
        ),
        batch=4,
        length=2048,
    ),
    "llama-3.1-8b": dict(
        config=LLAMA
        | COMMON
        | dict(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=5e5,
            tie_word_embeddings=False,
        ),
        batch=2,
        length=2048,
    ),
    "tiny": dict(
        config=LLAMA
        | COMMON
        | dict(
            vocab_size=512, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=1e4,
            tie_word_embeddings=True,
        ),
        batch=2,
        length=128,
    ),
}
RANK, ALPHA, LEARNING_RATE = 16, 32, 1e-4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Steps that are run and not counted: kernels are compiled and chosen in them.
UNCOUNTED = 3


def token(word: str, vocabulary: int) -> int:
    """A number for a word, the same on every machine. 0 and 1 begin and end a text."""
    return 2 + int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % (vocabulary - 2)


def texts(files: list[Path]) -> list[str]:
    """Paragraphs of text files; the longer values of JSON lines."""
    found = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if file.suffix == ".jsonl":
                values = [value for value in json.loads(line).values() if isinstance(value, str) and " " in value]
                line = "\n".join(values)
            if line.strip():
                found.append(line)
    return found


def rows(files: list[Path], vocabulary: int, longest: int, tokens: int) -> list[list[int]]:
    """Samples of at most `longest` tokens, `tokens` together, from the texts, over and over."""
    samples = [[0, *(token(word, vocabulary) for word in re.findall(r"\w+|[^\w\s]", text))][: longest - 1] + [1] for text in texts(files)]
    if not samples:
        sys.exit("no text in the files of --text")
    chosen, total = [], 0
    while total < tokens:
        sample = samples[len(chosen) % len(samples)]
        chosen.append(sample)
        total += len(sample)
    return chosen


def packed(samples: list[list[int]], length: int) -> list[list[int]]:
    """Rows of exactly `length` tokens, samples end to end."""
    flat = [number for sample in samples for number in sample]
    return [flat[start : start + length] for start in range(0, len(flat) - length + 1, length)]


def make(arguments: argparse.Namespace) -> None:
    shape = SHAPES[arguments.shape]
    batch, length = arguments.batch or shape["batch"], arguments.length or shape["length"]
    out: Path = arguments.out
    (out / "model").mkdir(parents=True, exist_ok=True)
    (out / "model" / "config.json").write_text(json.dumps(shape["config"], indent=1))
    # One more row for each step than it takes, since packing leaves some room at the ends of rows.
    needed = (arguments.steps + 1) * (batch + 1) * length
    samples = rows(arguments.text, shape["config"]["vocab_size"], length, needed)
    with (out / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps({"input_ids": sample, "lang": "und"}) + "\n" for sample in samples)
    plan = dict(shape=arguments.shape, method=arguments.method, batch=batch, length=length, steps=arguments.steps)
    (out / "bench.json").write_text(json.dumps(plan))
    quantization = '[model.quantization]\nscheme = "nf4"\nblock = 64\ndouble = true\n' if arguments.method == "nf4" else ""
    dtype = "f32" if arguments.device == "cpu" else "auto"
    (out / "recipe.toml").write_text(
        f"""output = "run"
[model]
path = "./model"
init = "random"
device = "{arguments.device}"
dtype = "{dtype}"
{quantization}[adapter]
rank = {RANK}
alpha = {ALPHA}
dropout = 0.0
[data]
max_length = {length}
packing = true
shuffle = false
[[data.sources]]
path = "rows.jsonl"
format = "tokens"
[optimizer]
learning_rate = {LEARNING_RATE}
[schedule]
kind = "constant"
warmup = 0
[train]
steps = {arguments.steps}
batch_size = {batch}
checkpoint_every = 0
[memory]
recompute = "none"
"""
    )


def quantize(model, device) -> None:
    """Every linear layer but the head as NF4 with double quantisation, in place, one at a time."""
    import bitsandbytes
    import torch

    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            if not isinstance(child, torch.nn.Linear) or child_name == "lm_head":
                continue
            packed_linear = bitsandbytes.nn.Linear4bit(
                child.in_features, child.out_features, bias=child.bias is not None, compute_dtype=torch.bfloat16,
                compress_statistics=True, quant_type="nf4",
            )
            packed_linear.weight = bitsandbytes.nn.Params4bit(
                child.weight.data.to("cpu"), requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed_linear
            )
            setattr(module, child_name, packed_linear.to(device))


def train(arguments: argparse.Namespace) -> None:
    plan = json.loads((arguments.folder / "bench.json").read_text())
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    if plan["method"] == "nf4":
        import bitsandbytes  # noqa: F401  (missing: said before anything is built)

    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(arguments.folder / "model")
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if plan["method"] == "nf4":
        quantize(model, device)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"))
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0, fused=on_gpu)

    with (arguments.folder / "rows.jsonl").open() as file:
        samples = [json.loads(line)["input_ids"] for line in file]
    all_rows = packed(samples, plan["length"])
    synchronize = torch.cuda.synchronize if on_gpu else (lambda: None)
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, loss = [], None
    for step in range(plan["steps"]):
        chosen = [all_rows[(step * plan["batch"] + index) % len(all_rows)] for index in range(plan["batch"])]
        ids = torch.tensor(chosen, device=device)
        synchronize()
        start = time.perf_counter()
        # Rows are full, so no mask: the attention takes its fastest kernel, over sample boundaries too.
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        seconds.append(time.perf_counter() - start)
    tokens = plan["batch"] * plan["length"]
    counted = seconds[min(UNCOUNTED, len(seconds) - 1) :]
    # On a CPU the process as a whole; Linux counts in KiB.
    peak = torch.cuda.max_memory_reserved() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = dict(plan, tokens_per_second=round(tokens / statistics.median(counted), 1), peak_bytes=peak, loss=round(loss.item(), 4))
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("make", help="write config.json, rows and a recipe")
    command.add_argument("--shape", choices=SHAPES, required=True)
    command.add_argument("--method", choices=["lora", "nf4"], default="lora")
    command.add_argument("--device", default="cuda:0", help="what the recipe computes on")
    command.add_argument("--batch", type=int, default=0, help="rows of a step; 0: the shape's own")
    command.add_argument("--length", type=int, default=0, help="tokens of a row; 0: the shape's own")
    command.add_argument("--steps", type=int, default=13)
    command.add_argument("--text", type=Path, nargs="+", required=True, help="text or JSONL files")
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(run=make)
    command = commands.add_parser("train", help="train with PEFT")
    command.add_argument("--folder", type=Path, required=True, help="what make has written")
    command.add_argument("--device", default="cuda:0")
    command.set_defaults(run=train)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
