"""Checks that method, pattern, sparsity and allocation fit together."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from pdp.config.groups import budgets, find_budget
from pdp.config.schema import PRUNE, Config, NmPruneConfig, pattern_options
from pdp.errors import Refusal
from pdp.methods.checks import check_options, check_pattern, check_saliency, is_free
from pdp.methods.effects import check_allocation, check_temperature
from pdp.methods.options import OPTIONS
from pdp.patterns.options import PATTERNS


def check_prune(config: Config, typed: Set[str]) -> None:
    """Raises `Refusal` for the first combination that does not fit; `typed` are the keys given on the command line."""
    _check_method(config)
    _check_pattern(config, typed)
    _check_sparsity(config, typed)
    _check_allocation(config, typed)
    for pattern in config.prune.exclude:
        if not pattern.strip():
            raise Refusal(
                "prune.exclude has an empty pattern: give names or fnmatch patterns, prune.exclude=[fc,'layer1.*']"
            )


def is_dense(config: Config) -> bool:
    """Whether nothing is pruned: method=dense, also spelled prune=none."""
    return config.method.name == "dense"


def implied_sparsity(config: Config) -> float | None:
    """The sparsity that the pattern itself determines, 1 - N/M of the layers that it prunes; else None."""
    prune = config.prune
    return 1 - prune.n / prune.m if isinstance(prune, NmPruneConfig) else None


def _check_method(config: Config) -> None:
    name = config.method.name
    if name not in OPTIONS or type(config.method) is not OPTIONS[name]:
        raise Refusal(
            f"method.name={name} is not how a method is chosen: give method=<name>, one of {', '.join(OPTIONS)}"
        )
    check_options(config.method)
    if config.prune.pattern == "none" and not is_dense(config):
        raise Refusal(f"prune=none prunes nothing, so method={name} has no work: give method=dense, or prune=random")
    if not is_dense(config):
        check_pattern(config.method, config.prune.pattern)
    fresh = config.model.pretrained == "false" and config.start.run is None
    if name == "asp" and fresh and config.schedule.name == "constant":
        raise Refusal(
            "method=asp starts from a trained model: give model.pretrained=<its weights>, or dense epochs first by "
            "schedule=oneshot schedule.warmup=0.5"
        )
    if getattr(config.method, "stage", "") == "finetune" and fresh:
        raise Refusal(
            "method.stage=finetune keeps the zeros of a pruned model: give model.pretrained=<its weights, or for a "
            "transformer its folder>"
        )


def _check_pattern(config: Config, typed: Set[str]) -> None:
    prune = config.prune
    if type(prune) is not PRUNE[prune.pattern]:
        raise Refusal(
            f"prune.pattern={prune.pattern} is not how a pattern is chosen: give prune=<name>, one of "
            f"{', '.join(PRUNE)}"
        )
    check_temperature(config.method, prune.pattern, typed)
    check_saliency(config.method.name, getattr(prune, "saliency", ""))
    if prune.pattern in PATTERNS:
        PATTERNS[prune.pattern](**pattern_options(prune)).check()


def _check_sparsity(config: Config, typed: Set[str]) -> None:
    sparsity = config.sparsity
    if sparsity is not None and not 0 <= sparsity < 1:
        hint = f"; did you mean {round(sparsity / 100, 10)!r}?" if 2 <= sparsity < 100 else ""
        raise Refusal(f"sparsity={sparsity} is not a fraction from 0 to below 1{hint}")
    if is_dense(config):
        if sparsity and "sparsity" in typed:
            raise Refusal(
                f"sparsity={sparsity} with {'prune=none' if config.prune.pattern == 'none' else 'method=dense'}, which "
                "prunes nothing: drop sparsity, or name a method that prunes, such as method=pdp"
            )
    elif (implied := implied_sparsity(config)) is not None:
        if sparsity is not None and abs(sparsity - implied) > 1e-9 and "sparsity" in typed:
            n, m = config.prune.n, config.prune.m  # type: ignore[attr-defined]
            raise Refusal(
                f"sparsity={sparsity} contradicts prune=nm prune.n={n} prune.m={m}, which is {implied:.10g}: drop "
                "sparsity, or change prune.n or prune.m"
            )
    elif config.allocation.name == "file":
        if sparsity is not None and "sparsity" in typed:
            raise Refusal(
                f"sparsity={sparsity} with allocation=file, whose budgets decide it: drop sparsity, or give another "
                "allocation="
            )
    elif sparsity is None and not is_free(config.method):
        raise Refusal(
            "sparsity must be given: sparsity=<fraction of the weights to prune>, such as 0.866; or prune=none"
        )


def _check_allocation(config: Config, typed: Set[str]) -> None:
    name, path = config.allocation.name, config.allocation.path
    if is_dense(config):
        return
    floors = {"least_density": bool(config.allocation.least_density), "ends": config.allocation.ends != "pruned"}
    check_allocation(config.method.name, config.prune.pattern, name, path, typed, floors)
    if config.prune.pattern == "nm":
        return
    if name == "file":
        if not path:
            raise Refusal("allocation=file needs allocation.path: a CSV of layer,share or the directory of another run")
        if not Path(find_budget(path)).exists():
            raise Refusal(
                f"allocation.path={path} does not exist: give a CSV of layer,share, a run's directory or the name of a "
                f"budget in conf/allocation: {', '.join(budgets())}"
            )
