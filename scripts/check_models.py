"""Checks whole models of torchvision, timm and transformers: is each pruned as pdp promises, or refused with a reason?

python scripts/check_models.py                    single weights and 2:4 of about 180 models; continues where it stopped
python scripts/check_models.py --channel          whole channels, beside torch-pruning's own pruner
python scripts/check_models.py --language         Hugging Face's transformers, a small one of each architecture
python scripts/check_models.py resnet swin        those whose names contain one of these words
python scripts/check_models.py --some 3 --seed 7  three models drawn by that seed, as the tests do
python scripts/check_models.py --table            writes docs/models.md from the results, checks nothing
The exit code is 1 if a model was pruned wrongly or crashed.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pdp.benchmarks.model_checks import PARTS  # noqa: E402
from pdp.benchmarks.model_checks.running import read, run  # noqa: E402
from pdp.benchmarks.model_checks.table import write_table  # noqa: E402


def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only models whose names hold one of these")
    for part in PARTS:
        parser.add_argument(f"--{part}", dest="part", action="store_const", const=part, help=f"the part {part}")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "models", help="where the lines lie")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "models.md", help="the table's page")
    parser.add_argument("--limit", type=float, default=600, help="seconds for each model")
    parser.add_argument("--workers", type=int, default=1, help="models at once")
    parser.add_argument("--some", type=int, help="so many, drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--again", action="store_true", help="check models that have a line too")
    parser.add_argument("--table", action="store_true", help="write the page from the lines, check nothing")
    given = parser.parse_args()
    part = given.part or "weights"
    path = given.results / f"{part}.jsonl"
    if given.table:
        write_table({name: read(given.results / f"{name}.jsonl") for name in PARTS}, given.page)
        return 0
    models = importlib.import_module(PARTS[part]).names()
    if given.words:
        models = [name for name in models if any(word in name for word in given.words)]
    if given.some is not None:
        models = random.Random(given.seed).sample(models, min(given.some, len(models)))
    if given.again and path.is_file():
        kept = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if not any(f'"model": "{name}"' in line for name in models)
        ]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    done = run(part, models, path, given.limit, given.workers, print)
    bad = [name for name in models if done[name]["status"] not in ("works", "refused", "too large")]
    print(
        f"{len(models) - len(bad)} of {len(models)} work or are refused" + (f"; not: {', '.join(bad)}" if bad else "")
    )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
