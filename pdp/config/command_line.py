"""The command line of train.py and evaluate.py: help, sweeps, refusals in one line, exit codes."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from pdp.errors import Refusal, SavedForRestart, Stopped
from pdp.importing import uncollected
from pdp.ranks import OWN_PROCESS

DONE, OUR_BUG, INTERRUPTED = 0, 1, 130
_WORSE = (DONE, Refusal.exit_code, Stopped.exit_code, OUR_BUG)  # worst last: a sweep returns the worst of its cells
_SWEEP_FLAGS = ("-m", "--multirun")
_HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p", "--hydra-help", "--version")
_HANDED_OVER = ("hydra/launcher", "hydra/sweeper")
_CODES = "PDP_SWEEP_CODES"  # names the folder in which a launcher's jobs leave their exit codes


def main(program: str, argv: Sequence[str]) -> int:
    """Runs `program` ("train" or "evaluate") with these arguments and returns its exit code."""
    if "-h" in argv or "--help" in argv:
        from pdp.config.help import help_text

        words = [argument for argument in argv if not argument.startswith("-")]
        return _guarded(program, lambda: _print(help_text(program, words)))
    return _guarded(program, lambda: _settled(program, list(argv)))


def _settled(program: str, argv: list[str]) -> int:
    """Runs the program after making the environment's settings of processes consistent, before anything reads them."""
    from pdp.ranks import settle_processes

    if note := settle_processes():
        print(f"{program}: {note}", file=sys.stderr, flush=True)
    return _dispatch(program, argv)


def _print(text: str) -> int:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # the output is piped into a program such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _guarded(label: str, work: Callable[[], int | None]) -> int:
    """Calls `work` and returns its exit code; every kind of failure is reported on stderr."""
    from pdp.wording import one_line

    try:
        return work() or DONE
    except (Refusal, Stopped, SavedForRestart) as ending:
        print(f"{label}: {one_line(ending)}", file=sys.stderr)
        return ending.exit_code
    except KeyboardInterrupt:
        print(f"{label}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return _our_bug(label)
        name = str(error.filename or "")
        print(f"{label}: {name[:60]}... is longer than a name can be ({error.strerror}): shorten it", file=sys.stderr)
        return Refusal.exit_code
    except Exception:
        return _our_bug(label)


def _our_bug(label: str) -> int:
    print(f"{label}: an error of ours, not of your input:", file=sys.stderr)
    traceback.print_exc()
    return OUR_BUG


def _dispatch(program: str, argv: list[str]) -> int:
    flags = [argument for argument in argv if argument.startswith("-")]
    for flag in flags:
        if flag.split("=")[0] not in (*_SWEEP_FLAGS, *_HYDRA_FLAGS):
            raise Refusal(f"{flag}: no such flag; known: --help, -m (sweep), --cfg job, --info; all else is key=value")
    sweep = any(flag in _SWEEP_FLAGS for flag in flags)
    if any(flag.split("=")[0] in _HYDRA_FLAGS for flag in flags):
        return _show(program, argv, sweep)
    overrides = [argument for argument in argv if not argument.startswith("-")]
    if not sweep:
        return _run(program, overrides)
    return _sweep(program, overrides)


def _run(program: str, overrides: Sequence[str], heading: str = "", made: list[Any] | None = None) -> int:
    """Composes, checks and runs one configuration.

    `heading` is printed once the configuration is accepted; the record is appended to `made`.
    """
    with uncollected():
        accepted, values = _accepted(program, overrides)
    if heading:
        print(heading, file=sys.stderr, flush=True)
    OWN_PROCESS.set(True)
    with uncollected():  # torch is imported only here
        home = importlib.import_module("pdp.training.run" if program == "train" else "pdp.training.measurement")
    record = getattr(home, accepted)(*values)
    if made is not None and record is not None:
        made.append(record)
    return DONE


def _accepted(program: str, overrides: Sequence[str]) -> tuple[str, Sequence[Any]]:
    """The function that does what these arguments ask for, and what it is given."""
    from pdp.config import arguments, compose, evaluation

    typed = arguments.parse(overrides)
    if program == "train":
        return "train", (compose.build(typed),)
    typed, tasks = evaluation.take_lm_eval(typed)
    if any(argument.key == "run" for argument in typed):
        return "evaluate_run", (*evaluation.of_run(typed), tasks)
    return "evaluate", (evaluation.of_model(typed), tasks)


def _sweep(program: str, overrides: Sequence[str]) -> int:
    """Runs every combination; a refused cell refuses only itself, one that was told to stop ends the sweep."""
    from pdp.config import sweep
    from pdp.ranks import take_rank

    parsed, cells = sweep.lay_out(overrides)
    if any(override.key_or_group in _HANDED_OVER for override in parsed):
        return _hand_over(program, overrides, len(cells))
    worst = DONE
    made: list[Any] = []
    for number, cell in enumerate(cells, 1):
        label = f"{program} [{number}/{len(cells)}{' ' + cell.varied if cell.varied else ''}]"
        code = _guarded(label, functools.partial(_run, program, cell.overrides, heading=label, made=made))
        if code not in _WORSE:
            return code
        worst = max(worst, code, key=_WORSE.index)
    if program == "train" and len(made) > 1 and take_rank() == 0:
        importlib.import_module("pdp.training.closing").close_sweep([record.directory for record in made], len(cells))
    return worst


def _hand_over(program: str, overrides: Sequence[str], cells: int) -> int:
    """Passes a sweep to the launcher or sweeper that was named; each job composes and runs like a single command.

    Jobs may run in other processes or on other machines, and neither Hydra nor submitit returns their exit codes. So
    each job leaves its code in a folder of the sweep, which an environment variable names. A cell that left none counts
    as an error.
    """
    import importlib.util
    import tempfile
    from pathlib import Path

    from pdp.config import arguments

    if "hydra/launcher=slurm" in overrides and importlib.util.find_spec("submitit") is None:
        raise Refusal('hydra/launcher=slurm needs submitit: pip install "pdp-pruning[cluster]"')
    overrides = arguments.spell_out(overrides)
    sweeps = Path("results/runs/.sweeps")
    sweeps.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="codes-", dir=sweeps.resolve())
    before = os.environ.get(_CODES)
    os.environ[_CODES] = folder
    try:
        ended = _hydra_main(program, ["-m", *overrides], functools.partial(_handed_over_job, program))
        numbered = {int(path.stem): int(path.read_text()) for path in Path(folder).glob("*.code")}
    finally:
        os.environ.pop(_CODES)
        if before is not None:
            os.environ[_CODES] = before
        shutil.rmtree(folder, ignore_errors=True)
    if ended:
        return ended
    for number, code in sorted(numbered.items()):
        if code:
            print(f"{program}: cell {number} of the sweep ended with exit code {code}", file=sys.stderr)
    codes = list(numbered.values())
    if len(codes) < cells and not any(override.startswith("hydra/sweeper") for override in overrides):
        print(f"{program}: {cells - len(codes)} of {cells} cells ended without an exit code", file=sys.stderr)
        codes.append(OUR_BUG)
    return max(codes, key=lambda code: _WORSE.index(code) if code in _WORSE else len(_WORSE), default=DONE)


def _handed_over_job(program: str, _: object) -> int:
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    from pdp.ranks import take_rank

    settings = HydraConfig.get()
    cell, number = list(settings.overrides.task), settings.job.num
    rank = take_rank()
    code = _guarded(f"{program} [{' '.join(cell)}]", lambda: _run(program, cell))
    if rank == 0:
        # The folder is gone if nobody waits for the codes any more.
        with contextlib.suppress(FileNotFoundError):
            (Path(os.environ[_CODES]) / f"{number}.code").write_text(str(code))
    if code == SavedForRestart.exit_code:
        raise SystemExit(code)  # returned, it would be the cell's result, and a requeued job's next one be ignored
    return code


def _show(program: str, argv: Sequence[str], sweep: bool) -> int:
    """Answers --cfg, --info and similar options of Hydra, with the same overrides that composition would use."""
    from pdp.config import arguments, compose

    lines = [argument for argument in argv if "=" in argument and not argument.startswith("-")]
    rest = [argument for argument in argv if argument not in lines]
    if not sweep:
        _, lines, _ = compose.compose_tree(arguments.parse(lines))
    return _hydra_main(program, [*rest, *lines], lambda _: DONE)


def _hydra_main(program: str, argv: Sequence[str], job: Callable[[object], int]) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from pdp.config import compose
    from pdp.config.groups import CONF
    from pdp.wording import one_line

    compose.register_schemas()
    before, sys.argv = sys.argv, [f"{program}.py", *argv]
    handlers, level = logging.root.handlers[:], logging.root.level
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes exceptions on to us instead of printing them
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base=compose.VERSION_BASE)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise Refusal(one_line(str(error).split("Config search path")[0])) from error
    except SystemExit as ending:  # Hydra's own parser, after it has printed its message
        return ending.code if isinstance(ending.code, int) else DONE
    finally:
        sys.argv = before
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    return DONE
