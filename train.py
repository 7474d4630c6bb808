"""Trains and prunes one model: python train.py model=mobilenet_v1 prune=random sparsity=0.866; --help says all."""

import sys

from pdp.config.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("train", sys.argv[1:]))
