"""Read by every Python that has this folder in PYTHONPATH: leaves a rank to warm_ranks.py, where all is imported.

The process that Slurm started stays, as the one that Slurm, the job and the tests see: it passes signals on, it ends as
its rank ends, and its rank does not outlive it.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)


def stand_for(words: list[str], place: str) -> None:
    """Has the rank made at the socket `place`, and ends with its exit code or signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    with socket.socket(socket.AF_UNIX) as maker:
        maker.connect(place)
        asked = json.dumps({"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(maker, [len(asked).to_bytes(4, "big")], [0, 1, 2])
        maker.sendall(asked)
        answers = maker.makefile()
        rank = int(answers.readline())

        def pass_on(number: int, frame: object) -> None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(rank, number)

        for number in PASSED_ON:
            signal.signal(number, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        end = int(answers.readline())
    if end < 0:
        if -end in PASSED_ON:
            signal.signal(-end, signal.SIG_DFL)
        os.kill(os.getpid(), -end)
    os._exit(end)


own = sys.orig_argv[2:] if sys.orig_argv[1:2] == ["-u"] else sys.orig_argv[1:]  # -u: torchrun's
if own[:2] == ["-m", "pdp.cluster.rank"]:
    stand_for(own[2:], os.environ["PDP_TEST_WARM_RANKS"])
