"""Weights & Biases: a run's curves, record and files; online if a key is configured, else offline for later."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pdp.config.schema import Config, WandbConfig
from pdp.errors import Refusal
from pdp.runs.record import RECORD, Record
from pdp.tracking.tracker import Sender, reason_of, tags_of

ARTIFACTS = {
    "model": ("model.safetensors", "config.yaml"),
    "result": (RECORD, "layers.csv", "soft_gap.csv", "history.jsonl", "distributions.npz"),
}
_FOLDERS = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_ARTIFACT_DIR": "artifacts"}
_SILENCE = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}  # the second: no error reports to W&B


@contextmanager
def staging_in(directory: Path) -> Iterator[None]:
    """Inside this context W&B starts without printing, and stages files in `directory`, not in the home folder."""
    here = directory.resolve() / "wandb"
    wanted = {name: str(here / folder) for name, folder in _FOLDERS.items()} | _SILENCE
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def finds_key(directory: Path, say: Callable[[str], None]) -> bool:
    """Whether environment, netrc or settings contain a key and do not ask for offline mode; never prompts for a key."""
    import wandb

    with staging_in(directory):
        try:
            return bool(wandb.login(prompt=False, verify=False))
        except Exception as error:  # an invalid key, or a settings file that cannot be read
            say(f"W&B: the key cannot be used ({reason_of(error)})")
            return False


def quiet(timeout: float) -> Any:
    """Settings for a run that prints nothing and waits for the network at most `timeout` seconds."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=timeout,
        finish_timeout=timeout,
        # Data that is not flushed is lost when a run is killed.
        x_transaction_log_flush_interval=1.0,
    )


def artifact_of(name: str, kind: str, files: Sequence[Path], copied: bool = False) -> Any:
    """An artifact of these files, which must not change until they are sent, unless they are `copied`."""
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:128], kind)
    for file in files:
        policy: Any = "mutable" if copied else "immutable"
        artifact.add_file(str(file.resolve()), name=file.name, policy=policy, skip_cache=not copied)
    return artifact


def cell_of(config: Config) -> dict[str, Any]:
    """The values by which the dashboards group runs."""
    return {
        "model": config.model.name,
        "data": config.data.name,
        "method": config.method.name,
        "pattern": config.prune.pattern,
        "sparsity": config.sparsity,
        "seed": config.seed,
    }


class WandbTracker(Sender):
    """Weights & Biases: online if a key is configured, else offline in the run's directory.

    A resumed run continues under the id in its checkpoint or, if it was killed before its first one, in its directory.
    Online this is one run; offline it is a further folder with the same id, and `wandb sync` of all of them in order
    makes one run.
    """

    label = "W&B"

    def __init__(self, config: Config, directory: Path, run_id: str, say: Callable[[str], None]):
        super().__init__(directory, say)
        assert isinstance(config.tracker, WandbConfig)
        self.config, self.options, self.run_id = config, config.tracker, run_id
        self._online = self.options.mode != "offline" and finds_key(directory, say)
        if self.options.mode == "online" and not self._online:
            raise Refusal(
                "tracker.mode=online needs a key: give WANDB_API_KEY, run `wandb login`, or give tracker.mode=auto"
            )

    def _start(self, step: int) -> None:
        # A new id for every new beginning: otherwise rerun=true, which moves the directory away, would continue the old
        # online run.
        noted = self.directory / "wandb" / "id"
        if self.id is None and noted.is_file():
            self.id = noted.read_text(encoding="utf-8").strip() or None
        self.id = self.id or f"{self.run_id}-{secrets.token_hex(3)}"
        there = set(self._folders())
        try:
            self._run = self._init("online" if self._online else "offline")
            reason = "" if self._online or self.options.mode == "offline" else "no key is configured, "
        except Exception as error:
            if not self._online:
                raise
            self._abandon()  # W&B's service would refuse the same id a second time
            for folder in set(self._folders()) - there:  # the failed start left nothing to send
                shutil.rmtree(folder, ignore_errors=True)
            self._online = False
            reason = f"the network failed ({reason_of(error)}), "
            self._run = self._init("offline")
        self.id = self._run.id  # in a sweep of W&B's own the agent chooses the id
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(self.id, encoding="utf-8")
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        if self._online:
            self.say(f"W&B: {self._run.url}")
        else:
            self.say(f"W&B: {reason}so offline; to send it: wandb sync {self.directory / 'wandb'}/offline-run-*")

    def _abandon(self) -> None:
        import wandb

        with suppress(Exception):  # otherwise W&B tries again when the process ends
            wandb.teardown(exit_code=1)

    def _folders(self) -> list[Path]:
        return list((self.directory / "wandb").glob("*run-*"))

    def _init(self, mode: Any) -> Any:
        import wandb

        config, options = self.config, self.options
        cell = self.directory.resolve().parent.name
        with staging_in(self.directory):
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
                # In a sweep started by W&B, the keys that it varies belong to it and are plain values.
                config=dataclasses.asdict(config) | {"cell": cell_of(config)},
                allow_val_change=True,
                save_code=False,
                settings=quiet(options.timeout),
            )

    def _log(self, values: dict[str, Any]) -> None:
        self._run.log(values)

    def _finish(self, record: Record | None) -> None:
        if record:
            self._run.summary.update(dataclasses.asdict(record))
            if self.options.artifacts:
                self._send_files()
        self._run.finish(exit_code=0 if record else 1)

    def _send_files(self) -> None:
        """Sends the hard model and the results as two artifacts by reference, without copies on the disk."""
        for kind, names in ARTIFACTS.items():
            files = [self.directory / name for name in names if (self.directory / name).is_file()]
            if files:
                cell = self.directory.resolve().parent.name
                self._run.log_artifact(artifact_of(f"{kind}-{cell}-seed{self.config.seed}", kind, files))
