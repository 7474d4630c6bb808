"""Trains and prunes one model: python train.py model=mobilenet_v1 prune=random sparsity=0.866; --help says all."""

import sys

from pdp.config.command_line import main
from pdp.ranks import end_quietly

if __name__ == "__main__":
    code = main("train", sys.argv[1:])
    end_quietly()
    raise SystemExit(code)
