"""Trains and prunes one model: python train.py model=mobilenet_v1 prune=random sparsity=0.866; --help says all."""

import atexit
import sys

from pdp.config.command_line import main
from pdp.ranks import end_quietly

if __name__ == "__main__":
    code = main("train", sys.argv[1:])
    atexit.register(end_quietly)  # not now: a notebook or a debugger that runs this file goes on after it
    raise SystemExit(code)
