"""Turns sweep arguments into a checked manifest: composes every cell, opens its data, determines its directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pdp.cluster.manifest import SWEEPS, Run
from pdp.config import compose, sweep
from pdp.config.identity import config_hash, run_directory
from pdp.config.schema import Config
from pdp.errors import Refusal, Stopped
from pdp.tasks import build_task
from pdp.wording import one_line

_FOR_ONE_RUN = {
    "rerun": "a requeued job would move its own work aside; start over with `train.py rerun=true` or a new output_dir",
    "dry_run": "nothing would be left to gather; look with `train.py -m ... dry_run=true`",
}


@dataclass
class Plan:
    """The runs that a sweep's arguments mean, or why there are none."""

    runs: list[Run] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)  # cells with the same run as an earlier cell
    output_dir: Path = Path()

    @property
    def folder(self) -> Path:
        """The folder of the sweep's own files."""
        return self.output_dir / SWEEPS


def make_plan(words: Sequence[str], processes: int, progress: Callable[[int, int], None] | None = None) -> Plan:
    """Checks every cell of `words` for runs of `processes` processes each; raises `Refusal` for invalid arguments.

    `progress` is called with the number of cells done and their total.
    """
    parsed, cells = sweep.lay_out(words)
    for override in parsed:
        if override.key_or_group.split("/")[0].split(".")[0] == "hydra":
            raise Refusal(f"{override.input_line}: here Slurm gets the sweep; leave it out, or use train.py -m")
    plan, places = Plan(), set()
    fingerprints: dict[str, str] = {}
    seen: dict[Path, str] = {}
    for number, cell in enumerate(cells):
        name = cell.varied or " ".join(cell.overrides)
        try:
            config = compose.compose(cell.overrides)
            _check(config, processes)
            task = build_task(config)
            key = repr((config.data, config.model, config.start.run))
            if key not in fingerprints:
                task.open_data()
                fingerprints[key] = task.data_fingerprint
            path = run_directory(config, fingerprints[key])
        except (Refusal, Stopped) as refusal:
            plan.refused.append(f"[{name}] {one_line(refusal)}")
        else:
            places.add(config.output_dir)
            if path in seen:
                plan.twice.append(f"[{name}] is the run of [{seen[path]}]")
            else:
                seen[path] = name
                run_id = f"{config_hash(config, fingerprints[key])[:8]}-{config.seed}"
                plan.runs.append(Run(len(plan.runs), list(cell.overrides), cell.varied, run_id, str(path.absolute())))
        if progress:
            progress(number + 1, len(cells))
    if len(places) > 1:
        raise Refusal(f"output_dir takes one value in a sweep, here {' and '.join(sorted(places))}: give output_dir=")
    plan.output_dir = Path(next(iter(places), ""))
    return plan


def _check(config: Config, processes: int) -> None:
    """Checks that only apply to sweeps of jobs; raises `Refusal`."""
    for key, reason in _FOR_ONE_RUN.items():
        if getattr(config, key):
            raise Refusal(f"{key}=true in a sweep of jobs: {reason}")
    if not config.resume:
        raise Refusal("resume=false in a sweep of jobs: a requeued job must go on where it was; give resume=true")
    share = config.recipe.accumulation * processes
    if config.recipe.batch_size % share:
        raise Refusal(
            f"recipe.batch_size={config.recipe.batch_size} is global and must divide by recipe.accumulation x "
            f"processes = {config.recipe.accumulation} x {processes}"
        )


def tracked_by_wandb(words: Sequence[str]) -> bool:
    """Whether the sweep's runs are tracked by W&B, so that its tables should be sent there too."""
    return any(word.partition("=")[0] == "tracker" and "wandb" in word.partition("=")[2].split(",") for word in words)
