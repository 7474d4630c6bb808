"""The harness from Python: configurations, whole runs and sweeps; refusals of the command line are exceptions here."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdp.errors import Refusal, Stopped

if TYPE_CHECKING:
    import pandas as pd

    from pdp.config.schema import Config
    from pdp.runs.record import Record

Words = str | Sequence[str] | Mapping[str, Any]
_NEEDED = ("hydra", "omegaconf", "accelerate", "rich", "safetensors")


def compose(overrides: Words = (), **values: Any) -> Config:
    """The checked configuration for which `python train.py` would run with the same arguments, as plain dataclasses.

    `overrides` are arguments such as "recipe.epochs=5", one string of them, or a mapping of keys to values; further
    keywords are keys without a dot. Raises `Refusal`, which names the value, what is allowed and what to change.
    """
    _need_harness()
    from pdp.config.compose import compose as composed

    return composed(_words(overrides, values))


def run(overrides: Words = (), *, quiet: bool = False, **values: Any) -> Record:
    """Trains, prunes, measures and records one run as `python train.py` does, and returns its record.

    A run that is already finished is returned at once, an interrupted one is resumed. `record.directory` is its folder.
    `overrides` and `values` are those of `compose`; dry_run=true, which leaves no record, is refused. Raises `Refusal`
    before work begins, `Stopped` if the run cannot continue, and `SavedForRestart` if it was told to stop and has
    saved.
    """
    config = compose(overrides, **values)
    if config.dry_run:
        raise Refusal(
            "dry_run=true leaves no record: drop it, or run train.py with it; pdp.compose gives the configuration"
        )
    from pdp.training.run import train

    record = train(config, shown=not quiet)
    assert record is not None
    return record


def sweep(
    overrides: Words = (), lists: Mapping[str, Iterable[Any]] | None = None, *, quiet: bool = True, **more: Any
) -> pd.DataFrame:
    """Runs every combination of `lists` (and of `more`, keys without a dot), each in addition to `overrides`.

        pdp.sweep(["model=resnet20"], {"recipe.lr": [0.05, 0.1]}, method=["pdp", "gmp"], sparsity=[0.8, 0.9])

    Returns one row per run, in the order of the lists: the swept values, `status` (finished, refused or stopped),
    `error` (the message), `directory`, and every value of the record. Arguments with commas, "method=pdp,gmp", are
    expanded too. Raises `Refusal` if every combination is refused.
    """
    _need_harness()
    import pandas as pd

    from pdp.config.compose import compose as composed
    from pdp.config.sweep import lay_out

    _, cells = lay_out(_words(overrides, {}))
    swept = {key: _listed(values) for key, values in {**(lists or {}), **more}.items()}
    rows: list[dict[str, Any]] = []
    ready: list[tuple[dict[str, Any], Config]] = []
    for cell in cells:
        varied = dict(word.split("=", 1) for word in cell.overrides if word in cell.varied.split(" "))
        for chosen in itertools.product(*swept.values()):
            row = varied | dict(zip(swept, chosen, strict=True))
            rows.append(row)
            try:
                config = composed([*cell.overrides, *_words(dict(zip(swept, chosen, strict=True)), {})])
                if config.dry_run:
                    raise Refusal("dry_run=true leaves no record: drop it")
                ready.append((row, config))
            except Refusal as refusal:
                row |= {"status": "refused", "error": str(refusal)}
    if rows and not ready:
        raise Refusal(rows[0]["error"])
    for row, config in ready:
        row |= _outcome(config, set(row), quiet)
    columns = list(dict.fromkeys(itertools.chain(*(row for row in rows))))
    return pd.DataFrame(rows, columns=columns)


def _outcome(config: Config, taken: set[str], quiet: bool) -> dict[str, Any]:
    from pdp.training.run import train

    try:
        record = train(config, shown=not quiet)
    except Refusal as refusal:
        return {"status": "refused", "error": str(refusal)}
    except Stopped as stopped:
        return {"status": "stopped", "error": str(stopped)}
    assert record is not None
    values = {key: value for key, value in dataclasses.asdict(record).items() if key not in taken}
    return {"status": "finished", "error": None, "directory": str(record.directory)} | values


def _listed(values: Any) -> list[Any]:
    """A list unchanged; a single value, such as a string, as a list of one."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        return [values]
    return list(values)


def _words(overrides: Words, values: Mapping[str, Any]) -> list[str]:
    """The overrides and values as arguments of a command line."""
    if isinstance(overrides, str):
        words = shlex.split(overrides)
    elif isinstance(overrides, Mapping):
        words = [_word(key, value) for key, value in overrides.items()]
    else:
        words = list(overrides)
    for word in words:
        if not isinstance(word, str) or "=" not in word:
            raise Refusal(f'{word!r} is not an override: give words such as "sparsity=0.9"')
    return words + [_word(key, value) for key, value in values.items()]


def _word(key: str, value: Any) -> str:
    from pdp.config.command import spell

    if hasattr(value, "item"):  # a numpy number
        value = value.item()
    return f"{key}={spell(key, str(value) if isinstance(value, Path) else value)}"


def _need_harness() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"pdp.run, pdp.compose and pdp.sweep need the harness, of which {missing[0]} is not installed: "
            'pip install "pdp-pruning[harness]"'
        )
