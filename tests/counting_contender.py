"""A contender for benchmarks that another process can import quickly."""

import os

from pdp.errors import Refusal


def counting(start: int):
    """A contender for another process: says where it lives, and refuses more than it has."""
    left = start

    def measure(steps: int) -> dict:
        nonlocal left
        if steps > left:
            raise Refusal(f"{steps} steps of {left}")
        left -= steps
        return {"seconds": steps / 2, "left": left, "process": os.getpid()}

    return measure
