"""Shared by the scripts: refusals in one line, and exit codes. Needs no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from pdp.errors import Refusal, Stopped


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses in one line, and shows a script's whole docstring under --help."""

    def __init__(self, prog: str | None = None, description: str | None = None, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, description=description, **options)

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}; --help says all")


def guarded(name: str, work: Callable[[], int | None]) -> int:
    """Calls `work` and returns the exit code: 0 done, 2 refused, 3 stopped; the latter two print one line on stderr."""
    try:
        return work() or 0
    except (Refusal, Stopped) as ending:
        print(f"{name}: {ending}", file=sys.stderr)
        return ending.exit_code
    except OSError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return Stopped.exit_code
