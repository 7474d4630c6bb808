"""Where curves go besides the run's own history: nowhere, Weights & Biases or TensorBoard, imported when chosen.

history.jsonl stays the truth: a tracker that fails says so in one line and the training goes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pdp.config.check import implied_sparsity, is_dense
from pdp.config.schema import Config, NmPruneConfig, TensorboardConfig, WandbConfig
from pdp.config.suggest import one_line
from pdp.errors import Refusal
from pdp.records import Record

_PREFIXES = {"layer_shares": "share", "layer_revived": "revived"}
_LONGEST_TAG = 64
_WANDB_FOLDERS = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_ARTIFACT_DIR": "artifacts"}
_WANDB_SILENCE = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}  # nor reports of errors to its makers


def make_tracker(
    config: Config, directory: Path, run_id: str, say: Callable[[str], None], is_main: bool = True
) -> Tracker:
    """The tracker that `config.tracker` asks for; on processes other than the main one it sends nothing.

    `run_id` is the record's. Raises `Refusal` for tracker.mode=online where no key is configured.
    """
    if is_main and isinstance(config.tracker, WandbConfig):
        return WandbTracker(config, directory, run_id, say)
    if is_main and isinstance(config.tracker, TensorboardConfig):
        return TensorboardTracker(directory, say)
    return Tracker()


def flat(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the history as values by name: share/<layer>, density/<layer>, revived/<layer>, metrics/<name>."""
    values: dict[str, Any] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            values |= {f"{_PREFIXES.get(key, key)}/{name}": one for name, one in value.items()}
        elif value is not None:
            values[key] = value
    # The units of a layer are of one size, so a pruned share is a share of zeros.
    return values | {f"density/{name}": 1 - share for name, share in line.get("layer_shares", {}).items()}


def tags_of(config: Config) -> list[str]:
    """Model, data, method, pattern, sparsity and seed, each once and no longer than W&B takes."""
    prune, sparsity = config.prune, config.sparsity
    pattern = f"{prune.n}:{prune.m}" if isinstance(prune, NmPruneConfig) else prune.pattern
    if sparsity is None:
        sparsity = 0.0 if is_dense(config) else implied_sparsity(config)
    words = [config.model.name, config.data.name, config.method.name, pattern]
    words += [f"sparsity {'file' if sparsity is None else f'{sparsity:g}'}", f"seed {config.seed}"]
    return [word[:_LONGEST_TAG] for word in dict.fromkeys(words)]


class Tracker:
    """Sends nothing; keeps the id under which another tracker would go on."""

    def __init__(self) -> None:
        self.id: str | None = None

    def start(self, step: int = 0) -> None:
        """Begins, or goes on after optimizer step `step` under the id that `load_state_dict` gave."""

    def log(self, line: dict[str, Any]) -> None:
        """Sends one line of the history."""

    def finish(self, record: Record | None = None) -> None:
        """Ends, with the record of a finished run or without; a second call does nothing."""

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back `state_dict`."""
        self.id = state["id"]

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


class _Sender(Tracker):
    """What the trackers that send share: after the first failure nothing more is sent, and that is said once."""

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
        except Exception as error:  # whatever the service throws, the run is worth more
            self._open = False
            self._abandon()
            self.say(
                f"{self.label}: {moment} failed ({_reason(error)}): nothing more is sent, history.jsonl has every line"
            )

    def _start(self, step: int) -> None:
        raise NotImplementedError

    def _log(self, values: dict[str, Any]) -> None:
        raise NotImplementedError

    def _finish(self, record: Record | None) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        """Lets go of what a failure left."""


class TensorboardTracker(_Sender):
    """Event files in the run's directory, against the optimizer step; those of a resumed run hide what it repeats."""

    label = "TensorBoard"

    def _start(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step + 1)

    def _log(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(key, value, values["step"])
        self._writer.flush()

    def _finish(self, record: Record | None) -> None:
        if record:
            text = json.dumps(dataclasses.asdict(record), indent=1)
            self._writer.add_text("record", "\n".join(f"    {line}" for line in text.splitlines()), record.steps)
        self._writer.close()


class WandbTracker(_Sender):
    """Weights & Biases: online where a key is configured, else offline in the run's directory.

    A resumed run goes on under the id in its checkpoint. Online that is one run; offline it is one more folder with
    the same id, and `wandb sync` of all of them in turn makes them one run.
    """

    label = "W&B"

    def __init__(self, config: Config, directory: Path, run_id: str, say: Callable[[str], None]):
        super().__init__(directory, say)
        assert isinstance(config.tracker, WandbConfig)
        self.config, self.options, self.run_id = config, config.tracker, run_id
        self._online = self.options.mode != "offline" and self._finds_key()
        if self.options.mode == "online" and not self._online:
            raise Refusal(
                "tracker.mode=online needs a key: give WANDB_API_KEY, run `wandb login`, or give tracker.mode=auto"
            )

    def _finds_key(self) -> bool:
        """Whether environment, netrc or settings hold a key and do not say offline; never asks for one."""
        import wandb

        with self._staging_here():
            try:
                return bool(wandb.login(prompt=False, verify=False))
            except Exception as error:  # a key that cannot be one, a settings file that cannot be read
                self.say(f"W&B: the key cannot be used ({_reason(error)})")
                return False

    @contextmanager
    def _staging_here(self) -> Iterator[None]:
        """Inside, W&B starts to print nothing and to stage in the run's directory, not in the home directory."""
        here = self.directory.resolve() / "wandb"
        wanted = {name: str(here / folder) for name, folder in _WANDB_FOLDERS.items()} | _WANDB_SILENCE
        missing = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(missing)
        try:
            yield
        finally:
            for name in missing:
                del os.environ[name]

    def _start(self, step: int) -> None:
        # A new tail for every beginning: with rerun=true the same run would be continued online.
        self.id = self.id or f"{self.run_id}-{secrets.token_hex(3)}"
        there = set(self._folders())
        try:
            self._run = self._init("online" if self._online else "offline")
            reason = "" if self._online or self.options.mode == "offline" else "no key is configured, "
        except Exception as error:
            if not self._online:
                raise
            self._abandon()  # its service would not take the same id again
            for folder in set(self._folders()) - there:  # what the failed start left has nothing to sync
                shutil.rmtree(folder, ignore_errors=True)
            self._online = False
            reason = f"the network failed ({_reason(error)}), "
            self._run = self._init("offline")
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        if self._online:
            self.say(f"W&B: {self._run.url}")
        else:
            self.say(f"W&B: {reason}so offline; to send it: wandb sync {self.directory / 'wandb'}/offline-run-*")

    def _abandon(self) -> None:
        import wandb

        with suppress(Exception):  # else W&B would try again when the process ends
            wandb.teardown(exit_code=1)

    def _folders(self) -> list[Path]:
        return list((self.directory / "wandb").glob("*run-*"))

    def _init(self, mode: Any) -> Any:
        import wandb

        config, options = self.config, self.options
        cell = self.directory.resolve().parent.name
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=options.timeout,
            finish_timeout=options.timeout,
            # A killed run loses what was not flushed.
            x_transaction_log_flush_interval=1.0,
        )
        with self._staging_here():
            return wandb.init(
                dir=str(self.directory),
                mode=mode,
                id=self.id,
                resume="allow",
                project=options.project or os.environ.get("WANDB_PROJECT") or "pdp",
                entity=options.entity,
                group=cell[:128],
                name=f"{cell}-seed{config.seed}"[:128],
                tags=tags_of(config),
                config=dataclasses.asdict(config),
                allow_val_change=True,
                save_code=False,
                settings=settings,
            )

    def _log(self, values: dict[str, Any]) -> None:
        self._run.log(values)

    def _finish(self, record: Record | None) -> None:
        if record:
            self._run.summary.update(dataclasses.asdict(record))
        self._run.finish(exit_code=0 if record else 1)


def _reason(error: Exception) -> str:
    return one_line(str(error) or type(error).__name__)[:200]
