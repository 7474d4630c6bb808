"""Holds models of real size in parts on several CPU processes (recipe.sharding=fsdp) against one process.

    python scripts/benchmark_sharded.py gpt2_medium --processes 2
    python scripts/benchmark_sharded.py llama --pattern channel

GPT-2 medium (355 million parameters) or a LLaMA of that size, random weights and random tokens: two steps of PDP, one
in the ramp and one at the target, by one process and then by several of gloo, with the same global batch. Compares each
layer's mask and count after each step, and adds a row with these, seconds and the largest resident size of a process to
results/benchmarks/sharded_cpu.json. Masks at the very cut may differ after a step in float32, counts may not. Exit
codes: 0; 1 a count differs; 2 refused; 3 a process failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pdp.errors import Refusal, Stopped
from pdp.scripting import Parser, guarded

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("gpt2_medium", "llama")
EPOCHS = (1, 3)  # of four: in the ramp, and at the target


def main(argv: Sequence[str] | None = None) -> int:
    """Trains by one process and by several, compares, and writes."""
    parser = Parser("benchmark_sharded.py", __doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pattern", default="random", choices=("random", "2:4", "channel"))
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--layers", type=int, default=24, help="blocks; fewer to try it (24)")
    parser.add_argument("--to", type=Path, default=ROOT / "results" / "benchmarks" / "sharded_cpu.json")
    arguments = parser.parse_args(argv)
    if arguments.processes < 2:
        raise Refusal(f"--processes {arguments.processes}: give 2 or more")

    import torch

    from pdp.benchmarks.benchmarking import machine

    shape = [arguments.model, arguments.pattern, arguments.context, arguments.layers, arguments.processes]
    with tempfile.TemporaryDirectory() as place:
        (alone,) = launched(1, Path(place), shape)
        parts = launched(arguments.processes, Path(place), shape)
    steps = range(len(EPOCHS))
    same_counts = all(
        part["steps"][step]["counts"] == alone["steps"][step]["counts"] for step in steps for part in parts
    )
    same_parts = all(part["steps"] == parts[0]["steps"] for part in parts)
    row = {
        "model": arguments.model,
        "parameters": alone["parameters"],
        "layers": len(alone["steps"][0]["counts"]),
        "pattern": arguments.pattern,
        "processes": arguments.processes,
        "context": arguments.context,
        "counts_equal": same_counts,
        "processes_agree": same_parts,
        "pruned": [sum(step["counts"].values()) for step in alone["steps"]],
        "masks_equal": [
            sum(parts[0]["steps"][step]["masks"][name] == mask for name, mask in alone["steps"][step]["masks"].items())
            for step in steps
        ],
        "nonzero": alone["nonzero"],
        "nonzero_equal": all(part["nonzero"] == alone["nonzero"] for part in parts),
        "loss": [alone["loss"], parts[0]["loss"]],
        "seconds_alone": alone["seconds"],
        "seconds": max(part["seconds"] for part in parts),
        "peak_alone_mb": alone["peak_mb"],
        "peak_mb": [part["peak_mb"] for part in parts],
        "peak_at_start_mb": parts[0]["peak_at_start_mb"],
        "machine": machine(torch.device("cpu"), 1),
    }
    rows = json.loads(arguments.to.read_text()) if arguments.to.is_file() else []
    arguments.to.parent.mkdir(parents=True, exist_ok=True)
    arguments.to.write_text(json.dumps([*rows, row], indent=1) + "\n")
    for key, value in row.items():
        print(f"{key}: {value}")
    return int(not (same_counts and same_parts and row["nonzero_equal"]))


def launched(processes: int, place: Path, shape: list[Any]) -> list[dict[str, Any]]:
    """What so many processes found, in the order of their ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, __file__, "--rank", str(place), *map(str, shape)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        raise Stopped(f"{processes} process(es) failed, see above")
    return [json.loads((place / f"{processes}-{rank}.json").read_text()) for rank in range(processes)]


def one_rank(place: str, name: str, pattern: str, context: str, layers: str, batch: str) -> None:
    """Trains as one of the processes and writes what it found."""
    import hashlib

    import torch
    import torch.distributed as dist
    from torch import nn

    from pdp import Pruner

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if world > 1 else 0
    torch.manual_seed(0)
    model = made(name, int(layers))
    parameters = sum(one.numel() for one in model.parameters())
    example = {"input_ids": torch.zeros(1, 8, dtype=torch.int64)} if pattern == "channel" else None
    pruner = Pruner(model, "pdp", pattern, None if pattern == "2:4" else 0.5, 4, own_exclude=["lm_head"],
                    schedule={"name": "linear", "warmup": "1ep", "ramp": "2ep"}, example_input=example)  # fmt: skip
    begins = peak()
    if world > 1:
        from accelerate import Accelerator

        from pdp.training.sharding import shard

        shard(model, Accelerator(cpu=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)  # of which memory for two such processes is left here
    pruner.attach(optimizer)
    draw = torch.Generator().manual_seed(7)
    examples = int(batch)
    steps, losses, begun = [], [], time.perf_counter()
    for epoch in EPOCHS:
        pruner.start_epoch(epoch)
        ids = torch.randint(0, 30_000, (examples, int(context)), generator=draw)
        ids = ids[rank * examples // world : (rank + 1) * examples // world]
        logits = model(input_ids=ids).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        mean = loss.detach().clone()
        if world > 1:
            dist.all_reduce(mean)
        losses.append(mean.item() / world)
        steps.append(
            {
                "counts": {layer.name: layer.pruned for layer in pruner.layers},
                "masks": {
                    layer.name: hashlib.sha256(pruner.method.keep(layer).cpu().numpy().tobytes()).hexdigest()[:16]
                    for layer in pruner.layers
                },
            }
        )
        pruner.after_backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    pruner.finalize()
    report = pruner.report()
    seconds = time.perf_counter() - begun
    found = {"parameters": parameters, "steps": steps, "loss": losses, "seconds": round(seconds, 1),
             "nonzero": int(report.nonzero.sum()), "peak_mb": peak(), "peak_at_start_mb": begins}  # fmt: skip
    (Path(place) / f"{world}-{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


def peak() -> int:
    """The largest resident size of this process so far, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024


def made(name: str, layers: int) -> Any:
    """The model with random weights, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if name == "gpt2_medium":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=layers, n_head=16, use_cache=False, **dropout))
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers, num_attention_heads=16,
                    num_key_value_heads=16, vocab_size=32_000, max_position_embeddings=1024, use_cache=False)
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        one_rank(*sys.argv[2:])
    else:
        raise SystemExit(guarded("benchmark_sharded", main))
