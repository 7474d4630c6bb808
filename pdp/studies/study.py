"""A study: methods x sparsities x seeds on one task, each method with a setting chosen beforehand by validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pdp.errors import Refusal
from pdp.studies.search import Search, read_search

Setting = tuple[str, ...]
Chosen = Setting | Mapping[float | None, Setting]  # one setting, or one per sparsity


@dataclass(frozen=True)
class Cell:
    """One run of a study, as the arguments of its command."""

    study: str
    method: str
    setting: Setting
    sparsity: float | None
    seed: int
    common: Setting

    @property
    def overrides(self) -> list[str]:
        """The arguments of train.py; those of the setting override those of the study."""
        own = {word.partition("=")[0] for word in self.setting}
        common = [word for word in self.common if word.partition("=")[0] not in own]
        words = [*common, f"method={self.method}", *self.setting, f"seed={self.seed}"]
        return words if self.sparsity is None else [*words, f"sparsity={self.sparsity}"]

    @property
    def label(self) -> str:
        """The name of the cell in progress and messages."""
        sparsity = "" if self.sparsity is None else f" {self.sparsity:g}"
        return f"{self.study} {self.method}{sparsity} seed {self.seed}" + "".join(f" {one}" for one in self.setting)


@dataclass(frozen=True)
class Stage:
    """A part of a study that is run before the next one: these methods at these sparsities with these seeds."""

    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass
class Study:
    """The content of a study file; `sparsities` is empty if the pattern implies it.

    With `tuned` False (`tuning: none`) nothing is chosen: every setting of a method is a row of the table. With a
    `search`, each method's first setting is its first trial, and further trials are drawn at each sparsity.
    """

    name: str
    common: Setting
    sparsities: list[float]
    seeds: list[int]
    tuning_seed: int
    tuning_sparsity: float | None
    methods: dict[str, list[Setting]] = field(default_factory=dict)
    tuned: bool = True
    search: Search | None = None
    stages: list[Stage] = field(default_factory=list)

    def tuning(self, method: str) -> list[Cell]:
        """The runs from which a method's setting is chosen; empty if there is no choice, or if trials are drawn."""
        settings = self.methods[method]
        if len(settings) < 2 or not self.tuned or self.search:
            return []
        sparsity = None if method == "dense" else self.tuning_sparsity
        name = f"{self.name}_tuning"
        return [Cell(name, method, one, sparsity, self.tuning_seed, self.common) for one in settings]

    def trial(self, method: str, sparsity: float | None, setting: Setting) -> Cell:
        """The tuning run of a drawn setting, with the arguments of all trials and of the method's trials."""
        assert self.search is not None
        words = merged(setting, self.search.words, self.search.of.get(method, ()))
        return Cell(f"{self.name}_tuning", method, words, sparsity, self.tuning_seed, self.common)

    def sparsities_of(self, method: str) -> list[float | None]:
        """The sparsities at which a method is run; None for a method without one, or if the pattern implies it."""
        return [None] if method == "dense" or not self.sparsities else list(self.sparsities)

    def runs(self, method: str, chosen: Chosen) -> list[Cell]:
        """The runs of the table: every sparsity with every seed, or those of its stages if it has any."""
        return [
            Cell(self.name, method, setting, sparsity, seed, self.common)
            for seed in self.seeds
            for sparsity in self.sparsities_of(method)
            if self._wanted(method, sparsity, seed)
            and (setting := chosen.get(sparsity) if isinstance(chosen, Mapping) else chosen) is not None
        ]

    def wants(self, method: str, sparsity: float | None) -> bool:
        """Whether the table has a run of the method at that sparsity."""
        return any(self._wanted(method, sparsity, seed) for seed in self.seeds)

    def _wanted(self, method: str, sparsity: float | None, seed: int) -> bool:
        return not self.stages or any(
            method in stage.methods and seed in stage.seeds and (sparsity is None or sparsity in stage.sparsities)
            for stage in self.stages
        )

    def stage_of(self, cell: Cell) -> int:
        """The first stage that contains the cell, counted from 0."""
        for number, stage in enumerate(self.stages):
            if (
                cell.method in stage.methods
                and cell.seed in stage.seeds
                and (cell.sparsity is None or cell.sparsity in stage.sparsities)
            ):
                return number
        return len(self.stages)

    def rows(self, chosen: Mapping[str, Chosen]) -> dict[str, list[Cell]]:
        """The runs of each row of the table, by its name: a method with its `chosen` setting, or with every setting."""
        if self.tuned:
            return {method: self.runs(method, setting) for method, setting in chosen.items()}
        return {
            " ".join([method, *setting]): self.runs(method, setting)
            for method, settings in self.methods.items()
            for setting in settings
        }

    def cells(self, method: str) -> list[Cell]:
        """All runs of a method, whichever setting is chosen, to count them; without drawn trials."""
        settings = self.methods[method]
        return self.tuning(method) + [
            cell for setting in (settings[:1] if self.tuned else settings) for cell in self.runs(method, setting)
        ]

    def shapes(self) -> list[Cell]:
        """A run of every row at every sparsity: all models that its tables name, where a tuned setting changes none."""
        settings = {method: found[:1] if self.tuned else found for method, found in self.methods.items()}
        runs = [cell for method, found in settings.items() for one in found for cell in self.runs(method, one)]
        return list({(cell.method, cell.setting, cell.sparsity): cell for cell in reversed(runs)}.values())[::-1]

    def at_stage(self, number: int | None) -> Study:
        """The part of the study in one of its stages, counted from 1; None means all of it. Raises `Refusal`."""
        if number is None:
            return self
        if not 1 <= number <= len(self.stages):
            raise Refusal(f"--stage={number}: {self.name} has {len(self.stages) or 'no'} stages")
        stage = self.stages[number - 1]
        return Study(
            self.name,
            self.common,
            list(stage.sparsities) if self.sparsities else [],
            list(stage.seeds),
            self.tuning_seed,
            self.tuning_sparsity,
            {method: self.methods[method] for method in stage.methods},
            self.tuned,
            self.search,
            [stage],
        )


def merged(*parts: Sequence[str]) -> Setting:
    """Joins arguments; a later one replaces an earlier one with the same key."""
    found: dict[str, str] = {}
    for word in (word for part in parts for word in part):
        key = word.partition("=")[0]
        found.pop(key, None)
        found[key] = word
    return tuple(found.values())


def read_study(path: Path) -> Study:
    """Reads a study file; raises `Refusal` if it cannot be read or is invalid."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        tuning = values.get("tuning") or {}
        tuned = tuning != "none"
        tuning = tuning if tuned else {}
        study = Study(
            name=path.stem,
            common=tuple(map(str, values["common"])),
            sparsities=[float(one) for one in values.get("sparsities", [])],
            seeds=[int(one) for one in values["seeds"]],
            tuning_seed=int(tuning.get("seed", 10)),
            tuning_sparsity=float(tuning["sparsity"]) if "sparsity" in tuning else None,
            methods={
                str(name): [tuple(map(str, one)) for one in (settings or [[]])]
                for name, settings in values["methods"].items()
            },
            tuned=tuned,
            search=read_search(tuning, values["search"]) if values.get("search") else None,
            stages=[_stage(one, values) for one in values.get("stages", [])],
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Refusal(
            f"{path} is no study ({type(error).__name__}: {reason}): it needs common, seeds, methods, and sparsities "
            "where the pattern implies none; see conf/study"
        ) from None
    if study.tuned and study.tuning_seed in study.seeds:
        raise Refusal(f"{path}: tuning.seed={study.tuning_seed} is among seeds: choose settings with a seed of its own")
    for stage in study.stages:
        unknown = [one for one in stage.methods if one not in study.methods]
        unknown += [str(one) for one in stage.sparsities if one not in study.sparsities]
        unknown += [f"seed {one}" for one in stage.seeds if one not in study.seeds]
        if unknown:
            raise Refusal(f"{path}: a stage names {unknown[0]}, which the study itself does not")
    return study


def _stage(values: Mapping[str, Any], whole: Mapping[str, Any]) -> Stage:
    return Stage(
        tuple(map(str, values.get("methods", whole["methods"]))),
        tuple(float(one) for one in values.get("sparsities", whole.get("sparsities", []))),
        tuple(int(one) for one in values.get("seeds", whole["seeds"])),
    )
