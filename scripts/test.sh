#!/usr/bin/env bash
# Sets up everything the tests need, then lints, checks types and runs them: bash scripts/test.sh [pytest arguments]
# The environment is .venv here, or the folder that PDP_VENV names.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${PDP_VENV:-.venv}"
stamp="$venv/.complete-$(sha256sum pyproject.toml | cut -c1-16)"
if [ ! -f "$stamp" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[harness,export,cluster,dev]"
    touch "$stamp"
fi
export PATH="$(cd "$venv/bin" && pwd):$PATH"
# An environment shared between checkouts must test this one.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
ruff check .
ruff format --check .
mypy
python -m pytest "$@"
