"""One process of a run inside a job: python -m pdp.cluster.rank FOLDER overrides...; writes its exit code into FOLDER.

torchrun ends with 1 after any failure, and srun with the largest code, so the run's exit codes are read from the
folder. During training a run notes a request to stop; before and after, it exits at once, with its last checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from pdp.config.command_line import main
from pdp.errors import SavedForRestart
from pdp.ranks import end_quietly, note_code, take_rank

REQUESTS = (signal.SIGTERM, signal.SIGUSR1)


def listen(place: Path, rank: int) -> None:
    """From now on a request to stop ends this process at once, with the exit code of a run to be started again."""
    told = 2  # the process's own stderr: sys.stderr is something else while a model's module is imported

    def leave(number: int, frame: FrameType | None) -> None:
        # Not an exception, because the code that runs at this moment, such as an import, might catch it.
        words = f"train: {signal.Signals(number).name}: the same command goes on from the last checkpoint\n"
        os.write(told, words.encode())
        note_code(place, rank, SavedForRestart.exit_code)
        os._exit(SavedForRestart.exit_code)

    for request in REQUESTS:
        signal.signal(request, leave)


if __name__ == "__main__":
    folder, this = Path(sys.argv[1]), take_rank()
    listen(folder, this)
    code = main("train", sys.argv[2:])
    end_quietly()
    note_code(folder, this, code)
    raise SystemExit(code)
