"""What a method adds to a training step: a row of figures per pattern and method, against one dense contender."""

from __future__ import annotations

import sys
from functools import partial
from statistics import median
from typing import Any

from rich.progress import Progress

from pdp.benchmarks.contender import Contender, own_seconds
from pdp.benchmarks.measured_words import PATTERNS, pruned_words, words
from pdp.benchmarks.step_memory import step_peak, step_peak_apart
from pdp.benchmarks.step_profile import profile_steps
from pdp.benchmarks.step_timing import in_turn, quartiles
from pdp.benchmarks.step_ways import Captured, compile_anew, graph_breaks
from pdp.errors import Refusal
from pdp.methods.checks import PATTERNS_OF

MEMORY_TARGET = 1.1  # as a multiple of the prunable weights' bytes


def measure(model: str, batch: int, targets: dict[str, float | None], values: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per pattern and method, all compared with the same dense contender."""
    base, rows = words(model, batch, values), []
    of_pruning = ("method", "sparsity", "prune", "schedule", "allocation")
    dense_words = [word for word in base if not word.startswith(of_pruning)] + ["prune=none"]
    given = next((word[7:] for word in base if word.startswith("method=")), "pdp")
    if values["compile"]:
        compile_anew()
    dense = Contender(dense_words, made=True)
    of_dense: dict[str, Any] = {}
    peak: Any = partial(step_peak_apart, threads=values["threads"])
    if not values["no_memory"]:
        if values["device"] == "cuda":
            dense.seconds(values["warmup"])
            peak = step_peak
        of_dense["memory"] = peak(dense_words)
    if values["profile"]:
        dense.seconds(values["warmup"])
        of_dense["profile"] = profile_steps(dense)
    first, of_dense["way"] = _made_ready(dense, values)
    for method in values["method"] or [given]:
        for pattern in _patterns_of(method, list(targets)) if values["method"] else targets:
            row: dict[str, Any] = {"model": model, "pattern": pattern, "method": method, "batch": batch}
            keys = ("size", "length", "precision", "channels_last", "compile", "captured", "steps", "at")
            target = targets.get(pattern, next(iter(targets.values())))
            row |= {key: values[key] for key in keys} | {"target": target, "held": None}
            row["words"] = [*base, *([f"method={method}"] if values["method"] else [])]
            row["words"] += pruned_words(model, pattern, values["words"])
            try:
                row |= _compared(row["words"], first, of_dense, target, values, peak)
            except (Refusal, RuntimeError) as refusal:
                row["refused"] = str(refusal)
                print(f"{model}, {method}, {pattern}: {refusal}", file=sys.stderr)
            rows.append(row)
            values["tell"](rows)
    return rows


def _patterns_of(method: str, asked: list[str]) -> list[str]:
    """The requested patterns that the method supports, or else the first one that it supports."""
    known = PATTERNS_OF.get(method, PATTERNS)
    return [one for one in asked if one in known] or [known[0]]


def _made_ready(contender: Any, values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The contender in the requested way (plain, compiled, captured), and what is known about the preparation."""
    found = graph_breaks(contender, values["warmup"]) if values["compile"] else {}
    return Captured(contender) if values["captured"] else contender, found


def _compared(
    given: list[str], dense: Any, of_dense: dict[str, Any], target: float | None, values: dict[str, Any], peak: Any
) -> dict[str, Any]:
    """The figures of one row; raises `Refusal` for what train.py refuses and for ways that cannot be prepared."""
    pruned, steps = Contender(given, made=True, at=values["at"]), values["steps"]
    row: dict[str, Any] = {}
    if values["profile"]:
        pruned.seconds(values["warmup"])
        row["profile"] = {"pruned": profile_steps(pruned)}
        if "profile" in of_dense:  # only one profile per file
            row["profile"]["dense"] = of_dense.pop("profile")
    second, way = _made_ready(pruned, values)
    if way:
        row |= {"dense_graphs": of_dense["way"], "pruned_graphs": way}
    before = [dense.steps, second.steps]
    with Progress() as bar:
        task = bar.add_task(" ".join(given[:1] + given[-2:]), total=2 * (values["pairs"] + 1))
        pairs = in_turn(dense, second, values["pairs"], steps, values["warmup"], lambda: bar.advance(task))
    row |= {
        "dense_ms": 1000 * median(first for first, _ in pairs.rows) / steps,
        "pdp_ms": 1000 * median(second for _, second in pairs.rows) / steps,
        "ratio": median(pairs.ratios),
        "ratio_quartiles": quartiles(pairs.ratios),
        "repeat_quartiles": quartiles(pairs.repeats) if pairs.repeats else None,
        "pairs": len(pairs.rows),
        "measured_steps": [one.steps - count for one, count in zip((dense, second), before, strict=True)],
        "held": None if target is None else median(pairs.ratios) <= target,
        "parts_ms": {key: 1000 * median(taken) for key, taken in own_seconds(pruned).items()},
        "weights": pruned.prunable,
        "pruned_share": pruned.pruner.share,
    }
    del pruned, second
    if "memory" in of_dense:
        memory, least = peak(given), of_dense["memory"]
        extra = memory["peak"] - least["peak"]
        multiple = extra / (row["weights"] * (2 if values["precision"] in ("bf16", "fp16") else 4))
        row |= {
            "dense_peak_bytes": least["peak"],
            "pdp_peak_bytes": memory["peak"],
            "extra_bytes": extra,
            "extra_numpy_bytes": memory["numpy"] - least["numpy"],
            "extra_of_weights": multiple,
            "memory_target": MEMORY_TARGET,
            "memory_held": multiple <= MEMORY_TARGET,
        }
    return row
