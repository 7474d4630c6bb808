"""Measures a finished run, or a model with given weights: python evaluate.py run=<directory>; --help says all."""

import sys

from pdp.config.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("evaluate", sys.argv[1:]))
