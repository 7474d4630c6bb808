#!/usr/bin/env bash
# Sets up everything the tests need, then lints, checks types, contracts and documentation, and runs the tests:
#   bash scripts/test.sh [pytest arguments]          all of it, under 20 minutes on two cores
#   bash scripts/test.sh quick [pytest arguments]    without the documentation and what takes long, under three minutes
# The environment is .venv here, or the folder that PDP_VENV names.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${PDP_VENV:-.venv}"
stamp="$venv/.complete-$(sha256sum pyproject.toml | cut -c1-16)"
if [ ! -f "$stamp" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[harness,export,cluster,docs,dev]"
    touch "$stamp"
fi
export PATH="$(cd "$venv/bin" && pwd):$PATH"
# An environment shared between checkouts must test this one.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# Hundreds of processes import the same files: what they compile is kept, also where the machine's setting is not to.
export PYTHONDONTWRITEBYTECODE=
chosen=()
if [ "${1:-}" = quick ]; then
    shift
    chosen=(-m "not slow and not kills and not language and not slurm")
fi
# Types and documentation are checked beside the tests; what they have to say comes at the end.
said="$(mktemp -d)"
trap 'jobs -p | xargs -r kill 2>/dev/null; rm -rf "$said"' EXIT
names=() pids=() failed=()
beside() {
    "$@" >"$said/$1" 2>&1 &
    names+=("$1") pids+=("$!")
}
beside mypy --cache-dir "$venv/.mypy_cache" # lies with the environment, so that a new checkout has it
# The kernels are compiled once, before every process that needs them would do it.
python -c "from pdp.kernels.cpu import found_groups, found_units; found_groups(), found_units()" &
kernels=$!
ruff check .
ruff format --check .
lint-imports --no-logo
wait "$kernels"

if [ ${#chosen[@]} -eq 0 ]; then
    beside sphinx-build -q -W docs docs/_build
fi
# One worker more than cores, two where many tests wait for the processes that they have started; at most four.
workers="$(($(nproc) + (${#chosen[@]} ? 1 : 2)))"
python -m pytest -n "$((workers < 4 ? workers : 4))" ${chosen[@]+"${chosen[@]}"} "$@" || failed+=(pytest)
for place in "${!names[@]}"; do
    wait "${pids[$place]}" || failed+=("${names[$place]}")
    echo "${names[$place]}:"
    cat "$said/${names[$place]}"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
