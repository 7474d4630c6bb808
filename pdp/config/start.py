"""from=<run>: a finished run that another run continues from, the settings taken from it, and checks that they fit."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pdp.config.arguments import Argument
from pdp.config.groups import nearest_choice, said
from pdp.config.schema import Config
from pdp.config.stored import read_config
from pdp.errors import Refusal
from pdp.methods.options import BY_MAGNITUDE, DenseOptions
from pdp.runs.record import RECORD, Record, read_record

HELD = "held"
FIRST = "first"  # of start.mask
_WEIGHTS = "model.safetensors"
_SAME_MODEL = ("name", "library", "architecture", "arguments", "sizes")
_NO_EFFECT = ("schedule", "allocation")  # without effect if the existing zeros are kept


@dataclass(frozen=True)
class Start:
    """A finished run: its directory, configuration and record."""

    path: Path
    config: Config
    record: Record

    @property
    def dense(self) -> bool:
        """Whether the run pruned nothing."""
        return isinstance(self.config.method, DenseOptions)

    def complete(self, typed: Sequence[Argument]) -> list[Argument]:
        """Adds the run's choices of model, data and pattern where the user named none, and method=held."""
        given = {argument.key: argument.value for argument in typed}
        added = []

        def add(group: str, choice: str) -> None:
            if group not in given:
                added.append(Argument(group, choice, f"{group}={choice}", True))

        if not given.get("experiment"):
            add("model", nearest_choice("model", self.config.model))
            add("data", nearest_choice("data", self.config.data))
        if not self.dense:
            add("prune", self.config.prune.pattern)
        named = given.get("method") or given.get("experiment") or given.get("prune") == "none"
        if self.dense and named and "start.mask" not in given and given.get("method") != HELD:
            # There is nothing to hold.
            added.append(Argument("start.mask", "free", "start.mask=free", False))
        elif given.get("start.mask") == FIRST:
            add("schedule", "constant")
        elif given.get("start.mask") != "free" and given.get("prune") != "none":
            add("method", HELD)
        return [*added, *typed]

    def fill(self, tree: DictConfig, typed: Sequence[Argument]) -> None:
        """Writes the run's settings into a composed configuration, except for keys that were typed."""
        # `complete` has added the run's own choices, so only a choice that differs from the run's is the user's.
        model, data, prune = self.config.model, self.config.data, self.config.prune
        keys = {argument.key for argument in typed}
        chosen = {argument.key: argument.value for argument in typed if argument.is_group}
        overlaid = _keys_of("debug", chosen.get("debug"))

        def take(group: str, node: Any) -> None:
            for field in fields(node):
                key = f"{group}.{field.name}"
                if key not in overlaid and not any(one == key or one.startswith(f"{key}.") for one in keys):
                    OmegaConf.update(tree, key, getattr(node, field.name), merge=False)

        if chosen.get("model") == nearest_choice("model", model) and (
            "model.name" not in keys or tree.model.name == model.name
        ):
            take("model", model)
        if (
            model.library != "transformers"
            and "model.pretrained" not in keys
            and not OmegaConf.is_missing(tree, "model")
        ):
            tree.model.pretrained = "false"
        if chosen.get("data") == nearest_choice("data", data):
            take("data", data)
        if chosen.get("prune") == prune.pattern:
            take("prune", prune)
        elif "prune.exclude" not in keys:
            tree.prune.exclude = list(prune.exclude)
        if "sparsity" not in keys and not self.dense and (tree.sparsity is None or tree.method.name == HELD):
            tree.sparsity = self.sparsity

    @property
    def sparsity(self) -> float | None:
        """The sparsity that the run was asked for, or else reached; None if the pattern determines it."""
        if self.config.prune.pattern == "nm":
            return None
        return self.config.sparsity if self.config.sparsity is not None else round(self.record.target_sparsity, 6)


def _keys_of(group: str, choice: Any) -> set[str]:
    """The dotted keys that a choice's file sets."""
    if not choice:
        return set()
    values = said(group, str(choice))
    return {f"{node}.{key}" for node, one in values.items() if isinstance(one, dict) for key in one}


def read_start(typed: Sequence[Argument]) -> Start | None:
    """The run that start.run names, or None if it names none; raises `Refusal` if it is not a finished run."""
    given = {argument.key: argument.value for argument in typed}
    if given.get("start.run") is None:
        return None
    seed = given.get("seed", 0)
    return open_start(given["start.run"], seed if isinstance(seed, int) else 0)


def open_start(run: Any, seed: int) -> Start:
    """The finished run at `run`: its directory, or the folder of its seeds (then the one with the same seed)."""
    if not isinstance(run, str) or not run.strip():
        raise Refusal(f"from={run} is no directory: give from=results/runs/<run>/seed<k>")
    path = Path(os.path.expanduser(run))
    if not path.is_dir():
        raise Refusal(f"from={run} is no directory: give the directory of a finished run, results/runs/<run>/seed<k>")
    if not (path / "config.yaml").is_file():
        path = _seed_of(path, run, seed)
    for name in ("config.yaml", RECORD, _WEIGHTS):
        if not (path / name).is_file():
            raise Refusal(
                f"from={run}: {path} has no {name}, so that run is not finished: the command that began it goes on "
                "with it, or give another run"
            )
    try:
        return Start(path, read_config(path), read_record(path))
    except Refusal as refusal:
        raise Refusal(f"from={run}: {refusal}") from None


def _seed_of(folder: Path, run: str, seed: int) -> Path:
    """The run with the same seed in a folder of seeds, or the only run there."""
    seeds = sorted(path for path in folder.glob("seed*") if (path / "config.yaml").is_file() and "." not in path.name)
    if not seeds:
        raise Refusal(f"from={run} holds no run: give the directory of a finished run, results/runs/<run>/seed<k>")
    same = [path for path in seeds if path.name == f"seed{seed}"]
    if not same and len(seeds) > 1:
        raise Refusal(
            f"from={run} has no seed{seed}, which is this run's; it holds {', '.join(one.name for one in seeds)}: give "
            f"from={seeds[0]}"
        )
    return (same or seeds)[0]


def check_start(config: Config, typed: Set[str]) -> None:
    """Raises `Refusal` if what was typed does not fit the run to continue from; completes its path by the seed."""
    if config.start.run is None:
        if config.method.name == HELD:
            raise Refusal("method=held holds the zeros of a finished run: give from=results/runs/<run>/seed<k>")
        if "start.mask" in typed:
            raise Refusal(f"start.mask={config.start.mask} has no meaning without a run: give from=<run>, or drop it")
        return
    start = open_start(config.start.run, config.seed)
    config.start.run = str(start.path)
    said_run = f"from={start.path} ({start.record.model}, {start.record.method})"
    if "model.pretrained" in typed and config.model.pretrained.lower() != "false":
        raise Refusal(
            f"{said_run} and model.pretrained={config.model.pretrained} both say what to begin with: drop one"
        )
    for key in _SAME_MODEL:
        theirs, ours = getattr(start.config.model, key), getattr(config.model, key)
        if theirs != ours:
            raise Refusal(
                f"{said_run} has model.{key}={theirs}, and this run has {ours}: drop model=, which the run says, or "
                "give from=<a run of that model>"
            )
    theirs, ours = (getattr(one.data, "vocabulary", None) for one in (start.config, config))
    if "data.vocabulary" in typed and theirs != ours:
        raise Refusal(
            f"data.vocabulary={ours}: the words of {said_run} are kept, of which there are at most {theirs}: drop "
            "data.vocabulary"
        )
    if config.start.mask == "free":
        if config.method.name == HELD:
            raise Refusal("method=held holds the zeros of the run, start.mask=free does not: drop one of them")
        return
    if config.start.mask == FIRST:
        _check_first(config, start, said_run)
        return
    _check_held(config, start, said_run, typed)


def _check_first(config: Config, start: Start, said_run: str) -> None:
    """Whether the zeros of the run are the first mask: those of a method that goes by magnitude, at the same share."""
    free = "or add start.mask=free to begin with its weights alone"
    if start.dense:
        raise Refusal(f"{said_run} has no zeros for a first mask: drop start.mask=first")
    if config.method.name not in BY_MAGNITUDE:
        raise Refusal(
            f"start.mask=first: method={config.method.name} does not begin with the smallest weights: give a method of "
            f"{', '.join(BY_MAGNITUDE)}, {free}"
        )
    if (ours := _pattern(config)) != (theirs := _pattern(start.config)):
        raise Refusal(f"{said_run} was pruned with {theirs}, which is its first mask, not {ours}: drop prune=, {free}")
    if config.sparsity is not None and start.sparsity is not None and config.sparsity < start.sparsity - 1e-9:
        raise Refusal(
            f"sparsity={config.sparsity} is less than the zeros of {said_run}, {start.sparsity}: drop sparsity=, {free}"
        )


def _check_held(config: Config, start: Start, said_run: str, typed: Set[str]) -> None:
    free = "or add start.mask=free to begin with its weights alone"
    if start.dense:
        raise Refusal(f"{said_run} has no zeros to hold: give start.mask=free, which begins with its weights alone")
    if config.method.name != HELD:
        raise Refusal(
            f"method={config.method.name} does not hold the zeros of {said_run}: drop method= and prune=, {free}"
        )
    if (ours := _pattern(config)) != (theirs := _pattern(start.config)):
        raise Refusal(f"{said_run} was pruned with {theirs}, and its zeros are held, not {ours}: drop prune=, {free}")
    if "sparsity" in typed and config.sparsity is not None and abs(config.sparsity - (start.sparsity or 0)) > 1e-9:
        its = start.record.target_sparsity
        if abs(config.sparsity - its) > 1e-9:
            raise Refusal(
                f"sparsity={config.sparsity}: the zeros of {said_run} are held, which is {its}: drop it, {free}"
            )
    for group in _NO_EFFECT:
        for key in sorted(typed):
            if key == group or key.startswith(f"{group}."):
                raise Refusal(f"{key} has no effect where the zeros of {said_run} are held: drop it, {free}")


def _pattern(config: Config) -> str:
    prune: Any = config.prune
    if prune.pattern == "block":
        return f"prune=block prune.block=[{','.join(map(str, prune.block))}]"
    return f"prune=nm prune.n={prune.n} prune.m={prune.m}" if prune.pattern == "nm" else f"prune={prune.pattern}"
