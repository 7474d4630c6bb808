"""The interface of all trackers, and what those that send curves share.

history.jsonl is the authoritative record: if a tracker fails, one line says so and training continues.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from pdp.config.check_prune import implied_sparsity, is_dense
from pdp.config.schema import Config
from pdp.patterns.options import label_of
from pdp.runs.record import Record
from pdp.wording import one_line

_PREFIXES = {"layer_shares": "share", "layer_revived": "revived"}
_LONGEST_TAG = 64


def flat(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the history as values by name: share/<layer>, density/<layer>, revived/<layer>, metrics/<name>."""
    values: dict[str, Any] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            values |= {f"{_PREFIXES.get(key, key)}/{name}": one for name, one in value.items()}
        elif value is not None:
            values[key] = value
    if "epochs_done" in line:  # may be a fraction, for evaluations within epochs
        values["epoch"] = line["epochs_done"] - 1
    # All units of a layer have the same size, so the pruned share is the share of zeros.
    return values | {f"density/{name}": 1 - share for name, share in line.get("layer_shares", {}).items()}


def tags_of(config: Config) -> list[str]:
    """Model, data, method, pattern, sparsity and seed, without duplicates and no longer than W&B allows."""
    prune, sparsity = config.prune, config.sparsity
    pattern = label_of(prune.pattern, vars(prune))
    if sparsity is None:
        sparsity = 0.0 if is_dense(config) else implied_sparsity(config)
    words = [config.model.name, config.data.name, config.method.name, pattern]
    words += [f"sparsity {'file' if sparsity is None else f'{sparsity:g}'}", f"seed {config.seed}"]
    return [word[:_LONGEST_TAG] for word in dict.fromkeys(words)]


class Tracker:
    """Sends nothing; keeps the id under which another tracker would continue."""

    def __init__(self) -> None:
        self.id: str | None = None

    def start(self, step: int = 0) -> None:
        """Begins, or continues after optimizer step `step` under the id that `load_state_dict` restored."""

    def log(self, line: dict[str, Any]) -> None:
        """Sends one line of the history."""

    def finish(self, record: Record | None = None) -> None:
        """Ends tracking, with the record if the run is finished; a second call does nothing."""

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint stores."""
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.id = state["id"]

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


class Sender(Tracker):
    """Shared by trackers that send: after the first failure nothing more is sent, and one line says so."""

    label = ""

    def __init__(self, directory: Path, say: Callable[[str], None]):
        super().__init__()
        self.directory, self.say = directory, say
        self._open = False

    def start(self, step: int = 0) -> None:
        self._open = True
        self._try("start", self._start, step)

    def log(self, line: dict[str, Any]) -> None:
        if self._open:
            self._try("logging", self._log, flat(line))

    def finish(self, record: Record | None = None) -> None:
        if self._open:
            self._try("end", self._finish, record)
            self._open = False

    def _try(self, moment: str, work: Callable[[Any], None], argument: Any) -> None:
        try:
            work(argument)
        except Exception as error:  # the service may raise anything, but the run must continue
            self._open = False
            self._abandon()
            reason = reason_of(error)
            self.say(f"{self.label}: {moment} failed ({reason}): nothing more is sent, history.jsonl has every line")

    def _start(self, step: int) -> None:
        raise NotImplementedError

    def _log(self, values: dict[str, Any]) -> None:
        raise NotImplementedError

    def _finish(self, record: Record | None) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        """Closes what a failure left open."""


def reason_of(error: Exception) -> str:
    return one_line(str(error) or type(error).__name__)[:200]
