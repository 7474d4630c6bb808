"""A study: methods x sparsities x seeds on one cell, each method with a setting chosen beforehand by validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pdp.errors import Refusal

Setting = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a study, as the words of its command."""

    study: str
    method: str
    setting: Setting
    sparsity: float | None
    seed: int
    common: Setting

    @property
    def overrides(self) -> list[str]:
        """What train.py would be given."""
        words = [*self.common, f"method={self.method}", *self.setting, f"seed={self.seed}"]
        return words if self.sparsity is None else [*words, f"sparsity={self.sparsity}"]

    @property
    def label(self) -> str:
        """For progress and messages."""
        sparsity = "" if self.sparsity is None else f" {self.sparsity:g}"
        return f"{self.study} {self.method}{sparsity} seed {self.seed}" + "".join(f" {one}" for one in self.setting)


@dataclass
class Study:
    """What a study file says; `sparsities` is empty where the pattern implies it.

    With `tuned` false (`tuning: none`) nothing is chosen: every setting of a method is a row of the table.
    """

    name: str
    common: Setting
    sparsities: list[float]
    seeds: list[int]
    tuning_seed: int
    tuning_sparsity: float | None
    methods: dict[str, list[Setting]] = field(default_factory=dict)
    tuned: bool = True

    def tuning(self, method: str) -> list[Cell]:
        """The runs among which a method's setting is chosen; none where there is nothing to choose."""
        settings = self.methods[method]
        if len(settings) < 2 or not self.tuned:
            return []
        sparsity = None if method == "dense" else self.tuning_sparsity
        name = f"{self.name}_tuning"
        return [Cell(name, method, one, sparsity, self.tuning_seed, self.common) for one in settings]

    def runs(self, method: str, setting: Setting) -> list[Cell]:
        """The runs of the table: every sparsity with every seed."""
        sparsities: list[Any] = [None] if method == "dense" or not self.sparsities else list(self.sparsities)
        return [
            Cell(self.name, method, setting, sparsity, seed, self.common)
            for seed in self.seeds
            for sparsity in sparsities
        ]

    def rows(self, chosen: Mapping[str, Setting]) -> dict[str, list[Cell]]:
        """The runs of each row of the table by its name: of a method at its `chosen` setting, or at every setting."""
        if self.tuned:
            return {method: self.runs(method, setting) for method, setting in chosen.items()}
        return {
            " ".join([method, *setting]): self.runs(method, setting)
            for method, settings in self.methods.items()
            for setting in settings
        }

    def cells(self, method: str) -> list[Cell]:
        """All runs of a method, whichever setting is chosen: as many as there will be."""
        settings = self.methods[method]
        return self.tuning(method) + [
            cell for setting in (settings[:1] if self.tuned else settings) for cell in self.runs(method, setting)
        ]


def read_study(path: Path) -> Study:
    """Reads a study file; raises `Refusal` for one that cannot be read or says something else."""
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
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Refusal(
            f"{path} is no study ({type(error).__name__}: {reason}): it needs common, seeds, methods, and sparsities "
            "where the pattern implies none; see conf/study"
        ) from None
    if study.tuned and study.tuning_seed in study.seeds:
        raise Refusal(f"{path}: tuning.seed={study.tuning_seed} is among seeds: choose settings with a seed of its own")
    return study
